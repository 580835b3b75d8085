"""Leases on Redis: the time to live of a key, and of the parts of a large object.

The parts of an object outlive the lease of its record by a while, so that whoever finds the record
finds them too. All of an object gets a new lease in one transaction, so no crash leaves parts with
another one than their record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from proxyplane.connectors.redis.later import record_name
from proxyplane.connectors.redis.parts import RECORD_SIZE, layout_of, life_of_parts
from proxyplane.connectors.redis.resp import Reply, command
from proxyplane.connectors.redis.transfer import DISCARD, EXEC, MULTI
from proxyplane.connectors.redis.wire import Wire

Ask = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Reply]]]
"""Sends commands that begin with their name and a key, in order, and returns the replies."""
ExtendParts = Callable[[bytes], Awaitable[bool | None]]
"""Gives an object in parts its new lease; see `extend_parts`."""

# How often, when the key is changed each time.
_TRIES: Final = 1000


async def extend(
    ask: Ask, in_parts: ExtendParts, keys: Sequence[tuple[bytes, bool]], lease: int | None
) -> list[bool]:
    """Gives objects a new lease; tells for each key whether it held one, or was to.

    Done twice it does no harm.

    Args:
        ask: Sends commands.
        in_parts: Does it with one object that is in parts.
        keys: The Redis key of each, and whether its object came later, or may.
        lease: Milliseconds; None for no lease any more.
    """
    held: list[bool | None] = [None] * len(keys)
    left = list(range(len(keys)))
    for _ in range(_TRIES):
        values = await ask([("GETRANGE", keys[i][0], 0, RECORD_SIZE) for i in left])
        whole = [i for i, value in zip(left, values, strict=True) if layout_of(value) is None]
        for i in set(left).difference(whole):
            held[i] = await in_parts(keys[i][0])
        empty = {i for i, value in zip(left, values, strict=True) if not value}
        came = await _extend_whole(ask, keys, whole, lease, held)
        # What came between the two may be in parts, as what was in parts may not be any more.
        left = [i for i in left if held[i] is None or i in empty & came]
        if not left:
            break
    return [bool(one) for one in held]


async def _extend_whole(
    ask: Ask,
    keys: Sequence[tuple[bytes, bool]],
    which: Sequence[int],
    lease: int | None,
    held: list[bool | None],
) -> set[int]:
    """Does it with some keys whose objects are not in parts; gives those that hold one now."""
    commands: list[tuple[Any, ...]] = []
    places: list[tuple[int, int]] = []
    for i in which:
        name, later = keys[i]
        begin = len(commands)
        if later:
            # First: if it becomes the object meanwhile, that is met by what follows.
            commands += _extending(record_name(name), lease)
        commands += _extending(name, lease)
        places.append((begin, len(commands)))
    replies = await ask(commands) if commands else []
    came: set[int] = set()
    for i, (begin, end) in zip(which, places, strict=True):
        held[i] = any(replies[begin:end])
        if replies[end - 1]:
            came.add(i)
    return came


async def extend_parts(wire: Wire, name: bytes, lease: int | None) -> bool | None:
    """Gives the record of an object and its parts a new lease, in one transaction.

    Args:
        wire: A connection for this alone.
        name: The Redis key of the object.
        lease: Milliseconds; None for no lease any more.

    Returns:
        Whether the key held something; None if it is not in parts, or changes each time.

    Raises:
        redis.ResponseError: The server refused.
    """
    for _ in range(_TRIES):
        wire.midway = True
        await wire.ask(("WATCH", name), ("GETRANGE", name, 0, RECORD_SIZE))
        replies, refusal = await wire.read_few(2)
        if refusal is not None:
            raise refusal
        layout, value = layout_of(replies[1]), replies[1]
        if layout is None:
            await wire.send([MULTI, DISCARD], 2)  # as at the end of `read_windows`
            wire.midway = False
            await wire.read_few(2)
            return None if value else False
        words: list[tuple[Any, ...]] = []
        for part in layout.names(name):
            words += _extending(part, life_of_parts(lease))
        words += _extending(name, lease)
        await wire.send([MULTI, *(command(*one) for one in words), EXEC], len(words) + 2)
        wire.midway = False
        replies, refusal = await wire.read_few(len(words) + 2)
        if refusal is not None:
            raise refusal
        if replies[-1] is not None:  # else somebody changed the key meanwhile
            return bool(replies[-1][-1])
    return None


def _extending(name: bytes, lease: int | None) -> list[tuple[Any, ...]]:
    if lease is not None:
        return [("PEXPIRE", name, lease)]
    # The first says no if there was no lease either.
    return [("PERSIST", name), ("EXISTS", name)]
