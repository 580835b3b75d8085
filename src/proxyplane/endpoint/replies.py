"""Answers that are made often, and what cannot be answered."""

from __future__ import annotations

from proxyplane.connectors.endpoint.problems import HEADER, KINDS, text_of
from proxyplane.endpoint.transport import Reply
from proxyplane.exceptions import ConnectorError, ProxyPlaneError

__all__ = ["BadRequestError", "problem", "problem_of", "whole"]

_KIND_OF = {cls: kind for kind, (_, cls) in KINDS.items() if kind not in ("token", "stopping")}


class BadRequestError(ConnectorError):
    """What was asked makes no sense."""


def problem(kind: str, message: str, hint: str | None = None) -> Reply:
    """The answer that something was not done."""
    text = text_of(message, hint)
    fields = {HEADER: kind, "Content-Type": "application/json"}
    return Reply(KINDS[kind][0], fields, len(text), text)


def problem_of(error: ProxyPlaneError) -> Reply:
    """The answer that stands for an error."""
    kind = "bad-request" if isinstance(error, BadRequestError) else "failed"
    for cls in type(error).__mro__:
        if kind == "failed":
            kind = _KIND_OF.get(cls, kind)
    return problem(kind, str(error.args[0]) if error.args else kind, error.hint)


def whole(body: bytes, kind: str = "application/json") -> Reply:
    """An answer whose body is at hand."""
    return Reply(200, {"Content-Type": kind}, len(body), body)
