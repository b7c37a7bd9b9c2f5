"""Errors that are shown without a traceback, and the exit codes.

A problem of configuration or data is a `UserError`: exit code 2 with every problem listed. A problem that ends a run
which started correctly (a full disk, a loss that is not finite, no memory left) is a `RunError`: exit code 1.
Everything else is a bug and keeps its traceback, also with exit code 1. Imports nothing of the project, because the
entrypoint uses the same codes.
"""

import os
from collections.abc import Sequence

USER_ERROR_EXIT_CODE = 2
STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: a restart policy should try again


def as_typed(text: str) -> str:
    """A text with the commands in it as they are typed here: SEQTRACK_COMMAND in place of `seqtrack`."""
    return text.replace("`seqtrack ", f"`{os.environ.get('SEQTRACK_COMMAND', '').strip() or 'seqtrack'} ")


class Problem(str):
    """One sentence (what, where, found, expected, what to do) with a stable code for programs and tests.

    Args:
        text: the sentence.
        code: `area.name`, lower case with underscores, for example `config.unknown_key`.
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
        return f"error [{self.code}]: {as_typed(self)}"


def _with_code(text: str, code: str | None) -> Problem:
    if isinstance(text, Problem):
        return text
    if code is None:
        raise ValueError(f"an error without a code: {text}")
    return Problem(text, code)


class UserError(Exception):
    """One or more problems that the user can fix.

    Args:
        problems: one or more sentences; all are shown at once.
        code: for problems that do not have their own.
    """

    def __init__(self, problems: str | Sequence[str], code: str | None = None) -> None:
        self.problems = [_with_code(one, code) for one in ([problems] if isinstance(problems, str) else problems)]
        self.code = self.problems[0].code
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["UserError"], tuple[list[Problem]]]:
        return type(self), (self.problems,)


class RunError(Exception):
    """A run cannot continue."""

    def __init__(self, message: str, code: str | None = None) -> None:
        self.problem = _with_code(message, code)
        self.code = self.problem.code
        super().__init__(self.problem)
