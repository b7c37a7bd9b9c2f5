"""What a process asks of the kernel about the process that started it (Linux)."""

import ctypes

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def end_with_parent(number: int) -> None:
    """Ask for signal `number` when the process that started this one dies, however it dies.

    A parent that died before this call goes unnoticed: where that matters, look at the parent's id afterwards.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
