"""Replacing what a key holds, in one transaction that also tells what was there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from proxyplane.abc import RECORD_BYTES
from proxyplane.connectors.redis.resp import Piece, Reply, command
from proxyplane.connectors.redis.transfer import EXEC, MULTI, Body

SWAP_REPLIES: Final = 4


def swapping(name: bytes, body: Body | None) -> list[Piece]:
    """Stores an object in the place of another one, or nothing.

    ``SET … GET`` and ``GETDEL`` would do it too, from Redis 6.2 on, but they send all of an object
    that is large, and was put there by other means.
    """
    look = MULTI + command("GETRANGE", name, 0, RECORD_BYTES - 1)
    if body is None:
        return [look + command("UNLINK", name) + EXEC]
    # The last word goes with the rest: a caller who is cancelled while sending never sends it.
    return [look, *body.set_command(name, replace=True), EXEC]


def what_was_there(replies: Sequence[Reply]) -> bytes | None:
    """What the key held, by the replies to `swapping`; of a large object the beginning."""
    was, done = replies[-1]
    for reply in (was, done):
        if isinstance(reply, Exception):
            raise reply
    # The parser may have it in memory that it uses again.
    return bytes(was) if was else None
