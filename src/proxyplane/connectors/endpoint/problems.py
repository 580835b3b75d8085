"""What an endpoint says when it does not do what it was asked: kinds of problems, and errors.

An answer that is a problem has its kind in the header ``Problem`` and a sentence for the user, and
perhaps a hint, as JSON in its body. Kinds and statuses belong together, so that other programs can
do with the status.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from proxyplane.exceptions import (
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    KeyExistsError,
    NotAllowedError,
    ObjectLostError,
    ObjectTooLargeError,
    PeerUnreachableError,
    StoreFullError,
)

__all__ = ["HEADER", "KINDS", "PASSING", "error_of", "text_of"]

HEADER: Final = "Problem"

KINDS: Final[dict[str, tuple[int, type[ConnectorError]]]] = {
    "bad-request": (400, ConnectorError),
    "token": (401, ConnectorUnavailableError),
    "not-allowed": (403, NotAllowedError),
    "no-route": (404, ConnectorError),
    "taken": (409, KeyExistsError),
    "gone": (410, ObjectLostError),
    "too-large": (413, ObjectTooLargeError),
    "unknown-endpoint": (421, ConnectorUnavailableError),
    "failed": (500, ConnectorError),
    "unreachable": (502, PeerUnreachableError),
    "stopping": (503, ConnectorUnavailableError),
    "lost": (504, ConnectorLostError),
    "full": (507, StoreFullError),
}
"""The status of each kind of problem, and the error that a connector makes of it."""

PASSING: Final = frozenset({"unreachable", "stopping", "lost"})
"""Those that may be over when one tries again."""


def text_of(message: str, hint: str | None) -> bytes:
    """The body of an answer that is a problem."""
    return json.dumps({"message": message, "hint": hint}).encode()


def error_of(fields: Mapping[str, str], text: bytes) -> ConnectorError | None:
    """The error that an answer stands for; None if it is no problem."""
    kind = fields.get(HEADER.lower())
    if kind is None:
        return None
    _, cls = KINDS.get(kind, KINDS["failed"])
    message, hint = f"the endpoint refused: {kind}", None
    try:
        said = json.loads(text)
        message, hint = str(said["message"]), said["hint"]
    except (ValueError, KeyError, TypeError):
        pass
    return cls(message, hint=None if hint is None else str(hint))
