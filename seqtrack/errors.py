"""The one error that is the user's to mend.

Whatever a user, a file or a network can cause is raised as `UserError` and ends in exit code 2 with every problem
listed; everything else is a fault of this program, keeps its traceback and ends in exit code 1.
"""

from collections.abc import Sequence


class UserError(Exception):
    """One or more problems, each a sentence that says what, where, found, expected and what to do.

    Args:
        problems: one sentence or all of them; a list is shown whole, so that nobody mends one error at a time.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))
