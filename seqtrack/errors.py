"""Errors that are shown without a traceback, and the exit codes.

Whatever is wrong with configuration or data is a `UserError` and ends in exit code 2 with every problem listed. What
ends a run that started correctly (a full disk, a loss that is not finite, no memory left) is a `RunError` and ends in
exit code 1. Everything else is a bug in this program and keeps its traceback, with exit code 1 as well. Imports
nothing, so that the entrypoint can use the same codes before it has set up anything.
"""

from collections.abc import Sequence

USER_ERROR_EXIT_CODE = 2
STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "try again", which is what a restart policy should do


class Problem(str):
    """One sentence that says what, where, found, expected and what to do, with a stable code for programs and tests.

    Args:
        text: the sentence.
        code: `area.name`, lower case with underscores, for example `config.unknown_key`. It never changes.
    """

    code: str

    def __new__(cls, text: str, code: str) -> "Problem":
        problem = super().__new__(cls, text)
        problem.code = code
        return problem

    def __reduce__(self) -> tuple[type["Problem"], tuple[str, str]]:
        return Problem, (str(self), self.code)

    @property
    def line(self) -> str:
        """The problem as a command prints it: `error [config.unknown_key]: ...`."""
        return f"error [{self.code}]: {self}"


class UserError(Exception):
    """One or more problems that the user can fix.

    Args:
        problems: one sentence or all of them; all are shown, so that nobody fixes one error at a time.
        code: the code of every problem that does not bring its own.
    """

    def __init__(self, problems: str | Sequence[str], code: str = "user.error") -> None:
        every = [problems] if isinstance(problems, str) else problems
        self.problems = [one if isinstance(one, Problem) else Problem(one, code) for one in every]
        self.code = self.problems[0].code if self.problems else code
        super().__init__("\n".join(self.problems))


class RunError(Exception):
    """A run cannot continue; the message says what was found where, and what to do."""

    def __init__(self, message: str, code: str = "run.error") -> None:
        self.problem = message if isinstance(message, Problem) else Problem(message, code)
        self.code = self.problem.code
        super().__init__(message)
