"""How the demo ends when it cannot do its work: one sentence and an exit code."""

from __future__ import annotations

from proxyplane.exceptions import ProxyPlaneError


class DemoError(Exception):
    """The demo cannot go on.

    Args:
        message: One sentence for the user.
        code: The exit code: 2 if the user has to correct or install something, else 1.
    """

    def __init__(self, message: str, *, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def sentence(error: BaseException) -> str:
    """One line that says what happened and what to do."""
    if isinstance(error, ProxyPlaneError) and error.hint:
        return f"{error.args[0]}; {error.hint}"
    return str(error) or type(error).__name__
