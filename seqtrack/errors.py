"""The errors that are told without a traceback, and the exit codes with a meaning of their own.

Whatever is wrong with configuration or data is raised as `UserError` and ends in exit code 2 with every problem
listed. What ends a run that began well (a full disk, a loss that is not finite, memory used up) is a `RunError` and
ends in exit code 1. Everything else is a fault of this program and keeps its traceback, exit code 1 as well. Imports
nothing, so that the entrypoint knows the same codes before it has settled anything.
"""

from collections.abc import Sequence

USER_ERROR_EXIT_CODE = 2
STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "try again", which is what a restart policy should do


class UserError(Exception):
    """One or more problems, each a sentence that says what, where, found, expected and what to do.

    Args:
        problems: one sentence or all of them; a list is shown whole, so that nobody mends one error at a time.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RunError(Exception):
    """A run cannot go on; the message says what was found where, and what to do."""
