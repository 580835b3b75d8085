"""Leases on Redis: the time to live of a key, and of the parts of a large object.

The parts of an object outlive the lease of its record by a while, so that whoever finds the record
finds them too. When a lease is extended they come first: if it goes no further than that, nothing
is lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from proxyplane.connectors.redis.later import record_name
from proxyplane.connectors.redis.parts import RECORD_SIZE, layout_of, life_of_parts
from proxyplane.connectors.redis.resp import Reply

Ask = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Reply]]]
"""Sends commands that begin with their name and a key, in order, and returns the replies."""


async def extend(ask: Ask, keys: Sequence[tuple[bytes, bool]], lease: int | None) -> list[bool]:
    """Gives objects a new lease; tells for each key whether it held one, or was to.

    Done twice it does no harm.

    Args:
        ask: Sends commands.
        keys: The Redis key of each, and whether its object came later, or may.
        lease: Milliseconds; None for no lease any more.
    """
    values = await ask([("GETRANGE", name, 0, RECORD_SIZE) for name, _ in keys])
    commands: list[tuple[Any, ...]] = []
    places: list[tuple[int, int]] = []
    parts: list[list[bytes]] = []
    for (name, later), value in zip(keys, values, strict=True):
        layout = layout_of(value)
        parts.append([] if layout is None else layout.names(name))
        for part in parts[-1]:
            commands += _extending(part, life_of_parts(lease))
        begin = len(commands)
        if later:
            # First: if it becomes the object meanwhile, that is met by what follows.
            commands += _extending(record_name(name), lease)
        commands += _extending(name, lease)
        places.append((begin, len(commands)))
    replies = await ask(commands)
    held = [any(replies[begin:end]) for begin, end in places]
    gone = [part for i, names in enumerate(parts) if not held[i] for part in names]
    if gone and lease is None:
        await ask([("PEXPIRE", part, life_of_parts(0)) for part in gone])
    # What came between the two may have parts.
    came = [i for i, (_, end) in enumerate(places) if not values[i] and replies[end - 1]]
    if came:
        await extend(ask, [keys[i] for i in came], lease)
    return held


def _extending(name: bytes, lease: int | None) -> list[tuple[Any, ...]]:
    if lease is not None:
        return [("PEXPIRE", name, lease)]
    # The first says no if there was no lease either.
    return [("PERSIST", name), ("EXISTS", name)]
