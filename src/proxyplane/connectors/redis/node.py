"""What is sent to one node of a cluster, other than to a server of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from redis import exceptions as redis_errors

from proxyplane.connectors.redis.client import Client
from proxyplane.connectors.redis.pool import Pool
from proxyplane.connectors.redis.resp import Piece, Reply, command
from proxyplane.connectors.redis.wire import Slot, Wire

ASKING: Final = command("ASKING")
# So much of a batch is handed to a connection at once.
_GROUP_BYTES: Final = 1 << 20


async def read_asked(node: Client, name: bytes) -> bytes | bytearray:
    """Reads an object from a node that does not serve its key yet."""
    # In one piece: between two windows the slot may have moved for good.
    async with node.pool.wire() as wire:
        reply: bytes | bytearray = await asked_first(wire, [command("GETRANGE", name, 0, -1)])
        return reply


async def asked_first(wire: Wire, pieces: Iterable[Piece]) -> Reply:
    """Sends one command to a node that does not serve its key yet, and takes the reply."""
    await wire.send([ASKING, *pieces], 2)
    await wire.read()
    return await wire.read()


async def each(pool: Pool, commands: Sequence[bytes], ahead: int) -> list[Reply]:
    """Sends commands in a pipeline; what the node refuses has the refusal in its place.

    Args:
        pool: The connections of the node.
        commands: The commands.
        ahead: How many replies may be outstanding.
    """
    replies: list[Reply] = []
    slots: deque[Slot] = deque()
    # What is sent takes effect before what a caller who is cancelled asks for next.
    async with pool.wire(changes=True) as wire:
        while len(replies) < len(commands):
            sent = len(replies) + len(slots)
            if sent < len(commands) and len(slots) <= ahead // 2:
                upto = sent + 1
                size = len(commands[sent])
                while upto < min(len(commands), len(replies) + ahead) and size < _GROUP_BYTES:
                    size += len(commands[upto])
                    upto += 1
                # At once, so that whoever is cancelled has sent whole commands.
                slots += wire.request(b"".join(commands[sent:upto]), upto - sent)
            try:
                replies.append(await wire.take(slots.popleft()))
            except redis_errors.RedisError as error:
                if wire.lost:
                    raise
                replies.append(error)
    return replies
