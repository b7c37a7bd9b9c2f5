"""Signals, the parent's death, resource limits and standard streams of a process (Linux).

Imports nothing heavy: the entrypoint and every command use it before anything else is loaded.
"""

import contextlib
import ctypes
import errno
import io
import logging
import os
import re
import resource
import signal
import sys
import textwrap
from typing import Any

from seqtrack.errors import Problem

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_NO_MEMORY = re.compile("can(no|')t allocate memory|failed to map segment")
# Whatever ends a process from outside and can be caught. Schedulers send SIGUSR1 or SIGUSR2 before the time is up, the
# kernel SIGXCPU at the limit of `ulimit -t`, a closed terminal or a dropped connection SIGHUP.
STOP_SIGNALS = tuple(signal.Signals[f"SIG{name}"] for name in ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "XCPU"))


def stop_signals() -> list[signal.Signals]:
    """STOP_SIGNALS, without SIGHUP under `nohup`."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (number == signal.SIGHUP and ignored)]


def end_with_parent(number: int) -> None:
    """Request signal `number` for the death of the parent process.

    A parent that died before this call goes unnoticed: where that matters, check the parent's id afterwards.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


class _SignalStack(ctypes.Structure):
    _fields_ = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]  # stack_t of <signal.h>


def disable_signal_stack() -> None:
    """Run this thread's signal handlers on its usual stack again.

    OpenVINO gives the thread that opens a graph another one. When several graphs are closed, the last one restores the
    first one's, which is freed by then: the next signal would end the process with a segmentation fault.
    """
    ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(None, 2, 0)), None)  # SS_DISABLE


def exit_reason(code: int) -> str:
    """How a process ended, by its exit code as `subprocess` has it: the name of a signal, or the code."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Screen(io.FileIO):
    """A standard stream whose reader may go away: output after that is dropped, and `lost` is why."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
            return len(data) if written is None else written  # None: the terminal accepts nothing now
        except OSError as error:
            self.lost = self.lost or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for libraries that write to the descriptor
            os.close(nowhere)
            return len(data)


def protect_screen() -> None:
    """Survive a closed terminal, a broken pipe or a full disk behind stdout and stderr.

    Descriptors 0 to 2 are opened if they are closed: the next file of the run would get one of them, and with it
    whatever a library prints.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    for number, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        if before is not getattr(sys, f"__{name}__") or isinstance(_raw(before), _Screen):
            continue  # replaced by the caller, or protected already
        protected = io.TextIOWrapper(
            io.BufferedWriter(_Screen(number, "w", closefd=False)),
            encoding=before.encoding if before else "utf-8",
            errors="backslashreplace",  # a character that the locale lacks is no error
            line_buffering=number == 2 or before is None or before.line_buffering or before.write_through,
        )
        setattr(sys, name, protected)
        setattr(sys, f"__{name}__", protected)


def terminal_columns() -> int:
    """The width of the terminal that stderr is; 80 where it has none, as in some containers."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(2).columns or 80
    return 80


class TerminalFormatter(logging.Formatter):
    """Log lines on a terminal: a record's attribute `short`, if it has one, in place of its message, wrapped at blanks.

    Tables are as wide as they are.
    """

    def format(self, record: logging.LogRecord) -> str:
        lines = (getattr(record, "short", None) or super().format(record)).splitlines()
        width = terminal_columns() - 1
        wrap = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        return "\n".join(line if len(line) <= width or line.startswith("|") else wrap.fill(line) for line in lines)


def _raw(stream: object) -> object:
    return getattr(getattr(stream, "buffer", None), "raw", None)


def unwritten_output() -> OSError | None:
    """Why output did not reach stdout; None if it did or if only its reader went away."""
    sys.stdout.flush()
    lost = getattr(_raw(sys.stdout), "lost", None)
    return None if lost is None or lost.errno in (errno.EPIPE, errno.EIO, errno.EBADF) else lost


def limit_problem(error: BaseException | None) -> Problem | None:
    """The limit of this process that caused an error; None if no known limit did."""
    first = error
    while error is not None:
        number, words, found = getattr(error, "errno", None), str(error).lower(), ("", "")
        if number == errno.EMFILE or "too many open files" in words:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            found = "limits.open_files", f"raise ulimit -n from {limit} (docker run --ulimit nofile=256 or more)"
        # A lock held by another process raises the same error: it counts only where nobody caught it before.
        elif (isinstance(error, BlockingIOError) and error is first) or "can't start new thread" in words:
            advice = "raise ulimit -u or docker run --pids-limit, or lower TRAIN.NUM_WORKER and TRAIN.NUM_THREADS"
            found = "limits.processes", advice
        elif isinstance(error, MemoryError) or number == errno.ENOMEM or _NO_MEMORY.search(words):
            found = "limits.memory", "raise the container's limit, or lower BATCH_SIZE and TRAIN.NUM_WORKER"
            if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
                # torch for CUDA 12 maps more than 3 GiB of libraries before it computes anything.
                found = "limits.address_space", f"raise ulimit -v from {limit >> 10} to 8388608 KiB or unlimited"
        if found[0]:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return Problem(f"this process reached a limit of the system ({reason}): {found[1]}", found[0])
        error = error.__cause__ or error.__context__
    return None
