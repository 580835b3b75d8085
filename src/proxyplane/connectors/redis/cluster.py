"""What the connector does with a cluster in one event loop: each key at the node that serves it.

Every node has a `Client` like a server of its own, so objects go over the same connections in the
same way. Added here is the way to the right node. A node that is asked for a key of another's says
so and does nothing; then the other one is asked, whatever the operation is. While a slot moves
there are two nodes: the old one says of what it does not have (any more) that the new one is to be
asked, which answers if the question begins with ``ASKING``.

A registered key has two names, of one slot (`later.record_name`). While that slot moves they may be
at different nodes, and no transaction spans the two: to set it waits until the move is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Sequence,
)
from typing import Any, Final, TypeVar, cast

from redis import exceptions as redis_errors

from proxyplane.abc import Buffer
from proxyplane.connectors._tasks import to_the_end
from proxyplane.connectors.redis import leases
from proxyplane.connectors.redis.client import Client
from proxyplane.connectors.redis.errors import CHANGING, is_passing, map_errors
from proxyplane.connectors.redis.later import WAS_EVICTED, Setting, px, record_name
from proxyplane.connectors.redis.node import ASKING, asked_first, each, read_asked
from proxyplane.connectors.redis.parts import (
    RECORD_SIZE,
    follow,
    in_parts,
    layout_of,
    what_was_evicted,
)
from proxyplane.connectors.redis.resp import SMALL, Piece, Reply, command
from proxyplane.connectors.redis.topology import Address, Topology
from proxyplane.connectors.redis.transfer import FIRST, MORE, Body, Report, find_made, small_body
from proxyplane.connectors.redis.url import RedisOptions
from proxyplane.connectors.redis.waiting import Waiters
from proxyplane.connectors.redis.wire import Wire
from proxyplane.exceptions import ConnectorError, ConnectorUnavailableError

T = TypeVar("T")
Ask = Callable[[Client], Awaitable[T]]

# How often a key is looked for where one node says that another has it: while a slot changes hands
# two of them may say so of each other.
_REDIRECTIONS: Final = 16
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
# Replies on the way together in a batch: numbers, those of small objects that are stored, and
# objects of up to `FIRST` bytes.
_NUMBERS_AHEAD: Final = 512
_STORES_AHEAD: Final = 128
_READS_AHEAD: Final = 16


class ClusterClient:
    """What the connector keeps for one event loop; does what `Client` does.

    Args:
        options: How to reach the cluster.
        tls: For ``rediss+cluster``.

    Attributes:
        waiters: Who waits for an object, anywhere in the cluster.
        topology: The nodes.
    """

    def __init__(self, options: RedisOptions, tls: ssl.SSLContext | None) -> None:
        self.waiters = Waiters(self, options)
        self.topology = Topology(options, lambda node: Client(node, tls))
        self._options = options

    # -- one object -----------------------------------------------------------------------------

    @property
    def where(self) -> str:
        """Names the cluster in messages."""
        return self._options.where

    async def store(self, name: bytes, body: Body, *, mine: bool = False) -> bool:
        """Stores one object unless the key is taken; see `Client.store`.

        One in parts waits while its slot is being moved.
        """

        async def asked(node: Client) -> bool:
            await node.check_limit(body.size, leased=body.lease is not None)
            return await _asked(node, name, body.set_command(name), mine=mine) is not None

        return await self._at(
            name,
            lambda node: node.store(name, body, mine=mine),
            None if in_parts(body) else asked,
        )

    async def read(self, name: bytes, size: int | None) -> bytearray | None:
        """Reads one object of about `size` bytes."""
        body = await self.read_string(name, size)
        if body is None or len(body) != RECORD_SIZE:
            return body
        return await follow(self, name, body)

    async def read_string(self, name: bytes, size: int | None) -> bytearray | None:
        """Reads what one key holds: an object, or the record of one."""

        async def asked(node: Client) -> bytearray | None:
            reply = await read_asked(node, name)
            if not reply:
                return None
            return reply if isinstance(reply, bytearray) else bytearray(reply)

        return await self._at(name, lambda node: node.read_string(name, size), asked)

    async def read_part(self, name: bytes, view: memoryview, report: Report = None) -> bool:
        """Reads what one key holds to its place; tells whether that was as long."""

        async def asked(node: Client) -> bool:
            reply = await read_asked(node, name)
            if len(reply) != len(view):
                return False
            view[:] = reply
            return True

        return await self._at(name, lambda node: node.read_part(name, view, report), asked)

    async def read_more(self, name: bytes) -> bytearray | None:
        """Reads an object that was seen to be large."""
        return await self.read(name, None)

    async def exists(self, name: bytes) -> bool:
        """Whether there is an object."""
        return bool(await self._reply("EXISTS", name))

    async def register(self, name: bytes, lease: int | None) -> None:
        """Registers a key whose object will come later, for so many milliseconds or for ever."""
        record = record_name(name)
        data = command("SET", record, b"", *px(lease))
        await self._at(
            record,
            lambda node: node.register(name, lease),
            lambda node: _asked(node, record, [data], mine=True),
        )

    async def store_registered(self, name: bytes, body: Body) -> Setting:
        """Stores the object of a registered key; waits while its slot is being moved."""
        return await self._at(name, lambda node: node.store_registered(name, body), None)

    async def swap(self, name: bytes, body: Body | None) -> bytes | None:
        """Stores an object in the place of another one; waits while its slot is being moved."""
        return await self._at(name, lambda node: node.swap(name, body), None)

    async def _reply(self, *words: bytes | str | int) -> Reply:
        data = command(*words)

        async def asked(node: Client) -> Reply:
            async with node.pool.wire() as wire:
                return await asked_first(wire, [data])

        return await self._at(cast(bytes, words[1]), lambda node: node.pool.request(data), asked)

    # -- the way to it ----------------------------------------------------------------------------

    async def _at(self, name: bytes, operation: Ask[T], asked: Ask[T] | None) -> T:
        """Does something at the node that serves a key.

        Args:
            name: The key.
            operation: What to do there.
            asked: The same, for a node that gets the key's slot and may have got the key itself;
                None to wait until it has got all of the slot.
        """
        until = time.monotonic() + self._options.timeout
        pause = _FIRST_PAUSE
        redirected = 0
        while True:
            address = await self.topology.owner(name)
            try:
                return await self._try(address, operation, asked)
            except ConnectorUnavailableError as error:
                cause = error.__cause__
                if isinstance(cause, redis_errors.MovedError):
                    self.topology.moved(cause.slot_id, (cause.host or address[0], cause.port))
                    redirected += 1
                    if redirected <= 2:
                        continue
                    if redirected > _REDIRECTIONS:
                        raise
                elif isinstance(cause, redis_errors.AskError | redis_errors.TryAgainError):
                    if time.monotonic() >= until:
                        raise
                elif await self._has_successor(name, address, error):
                    continue
                else:
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _try(self, address: Address, operation: Ask[T], asked: Ask[T] | None) -> T:
        try:
            return await operation(self.topology.client(address))
        except ConnectorUnavailableError as error:
            cause = error.__cause__
            if (
                asked is None
                or not isinstance(cause, redis_errors.AskError)
                or isinstance(cause, redis_errors.MovedError)
            ):
                raise
        return await asked(self.topology.client((cause.host or address[0], cause.port)))

    async def _has_successor(
        self, name: bytes, address: Address, error: ConnectorUnavailableError
    ) -> bool:
        """Whether another node serves the key, now that this one cannot be reached."""
        if not is_passing(error) or isinstance(error.__cause__, redis_errors.ResponseError):
            return False
        with contextlib.suppress(ConnectorUnavailableError):
            await self.topology.learn(without=address)
            return await self.topology.owner(name) != address
        return False

    # -- many objects -----------------------------------------------------------------------------

    async def store_together(self, batch: Sequence[tuple[bytes, Body]]) -> list[bool]:
        """Stores several objects, and tells for each whether it was not there before.

        Small ones in a pipeline for each node, large ones one by one. When one fails, others may be
        stored; the caller takes them back.
        """
        names = [name for name, _ in batch]

        async def send(node: Client, places: Sequence[int]) -> list[Reply]:
            leased = any(batch[i][1].lease is not None for i in places)
            await node.check_limit(max(batch[i][1].size for i in places), leased=leased)
            commands = [b"".join(batch[i][1].set_command(names[i])) for i in places]
            return await each(node.pool, commands, _STORES_AHEAD)

        async def alone(i: int) -> Reply:
            return await self.store(names[i], batch[i][1], mine=True) or None

        large = {i for i, (_, body) in enumerate(batch) if body.size > SMALL or in_parts(body)}
        stored = await self._spread(names, send, alone, large)
        return [reply is not None for reply in stored]

    async def read_many(
        self, names: Sequence[bytes], sizes: Sequence[int | None]
    ) -> list[Buffer | None]:
        """Reads many objects: small ones in a pipeline for each node, large ones one by one."""

        async def send(node: Client, places: Sequence[int]) -> list[Reply]:
            commands = [command("GETRANGE", names[i], 0, FIRST - 1) for i in places]
            replies = await each(node.pool, commands, _READS_AHEAD)
            for at, i in enumerate(places):
                if not isinstance(replies[at], Exception):
                    replies[at] = small_body(replies[at])
                    if replies[at] is MORE:
                        large.add(i)
                    elif layout_of(replies[at]) is not None:
                        replies[at] = MORE
            return replies

        async def alone(i: int) -> Reply:
            # One that is known to be large is not begun like a small one.
            return await self.read(names[i], sizes[i] or (FIRST + 1 if i in large else None))

        large = {i for i, size in enumerate(sizes) if size is not None and size > FIRST}
        return await self._spread(names, send, alone, large)

    async def evict(self, keys: Sequence[tuple[bytes, bool]]) -> list[bool]:
        """Removes objects, and tells for each key whether it held one; see `Client.evict`.

        Not in transactions, which have to wait where a slot is being moved.
        """
        # What the replies tell of, the parts of large objects, must be removed by whoever asked.
        return await to_the_end(self._evict(keys))

    async def _evict(self, keys: Sequence[tuple[bytes, bool]]) -> list[bool]:
        commands: list[tuple[Any, ...]] = []
        for name, later in keys:
            if later:
                # The record first: without it nobody can set the object any more.
                commands.append(("UNLINK", record_name(name)))
                commands.append(("PUBLISH", name, WAS_EVICTED))
            commands.append(("GETRANGE", name, 0, RECORD_SIZE))
            commands.append(("UNLINK", name))
        there, left = what_was_evicted(keys, await self._replies(commands))
        await self.count([("UNLINK", part) for part in left])
        return there

    async def extend(self, keys: Sequence[tuple[bytes, bool]], lease: int | None) -> list[bool]:
        """Gives objects a new lease; see `leases.extend`."""

        async def in_parts(name: bytes) -> bool | None:
            return await self._at(name, lambda node: node.extend_parts(name, lease), None)

        return await leases.extend(self._replies, in_parts, keys, lease)

    async def count(self, commands: Sequence[tuple[Any, ...]]) -> list[bool]:
        """Sends commands whose replies are numbers, and tells of each whether it is not zero.

        Each begins with its name and a key.
        """
        return [bool(reply) for reply in await self._replies(commands)]

    async def _replies(self, commands: Sequence[tuple[Any, ...]]) -> list[Reply]:
        """Sends commands that begin with their name and a key, or the channel of one."""
        if len(commands) == 1:
            return [await self._reply(*commands[0])]
        again = False

        async def send(node: Client, places: Sequence[int]) -> list[Reply]:
            return await each(node.pool, [command(*commands[i]) for i in places], _NUMBERS_AHEAD)

        async def alone(i: int) -> Reply:
            nonlocal again
            again = True
            return await self._reply(*commands[i])

        replies = await self._spread([words[1] for words in commands], send, alone)
        if again:  # then a message may have come before what it is about
            for words in commands:
                if words[0] == "PUBLISH":
                    await self._reply(*words)
        return replies

    async def _spread(
        self,
        names: Sequence[bytes],
        send: Callable[[Client, Sequence[int]], Awaitable[list[Reply]]],
        alone: Callable[[int], Awaitable[Reply]],
        large: Collection[int] = (),
    ) -> list[Reply]:
        """Does the same with many keys, at all nodes at the same time.

        Args:
            names: The keys.
            send: Does it with those in some places at one node; gives the replies, or in place of
                them the refusals, or `MORE` for what is to be done alone.
            alone: Does it with the one in a place, wherever its node is.
            large: Places of those to be done alone from the start.
        """
        replies: list[Reply] = [None] * len(names)

        async def at(address: Address, places: Sequence[int]) -> None:
            node = self.topology.client(address)
            later = [i for i in places if i in large]
            if together := [i for i in places if i not in large]:
                try:
                    got = await send(node, together)
                except ConnectorUnavailableError as error:
                    if not is_passing(error):
                        raise
                    got = [MORE] * len(together)  # not reached, but it may have a successor
                for i, reply in zip(together, got, strict=True):
                    if reply is MORE or isinstance(reply, CHANGING):
                        later.append(i)
                    elif isinstance(reply, Exception):
                        with map_errors(self._options.node(*address)):
                            raise reply
                    else:
                        replies[i] = reply
            for i in later:
                replies[i] = await alone(i)

        await _all([at(*group) for group in (await self._by_node(names)).items()])
        return replies

    async def _by_node(self, names: Sequence[bytes]) -> dict[Address, list[int]]:
        """The places of the keys that each node serves."""
        groups: dict[Address, list[int]] = {}
        for i, name in enumerate(names):
            groups.setdefault(await self.topology.owner(name), []).append(i)
        return groups

    async def remove_made(self, namespace: str, prefix: str) -> None:
        """Removes every object and record whose key begins with `prefix`, at every node."""
        for address in await self.topology.owners():
            async with self.topology.client(address).pool.wire() as wire:
                names = [one async for some in find_made(wire, namespace, prefix) for one in some]
            if names:
                await self.count([("UNLINK", name) for name in names])

    # -- for those who wait -----------------------------------------------------------------------

    async def look_up(self, names: Sequence[bytes]) -> list[tuple[bool, bool]]:
        """For each registered key whether its object is there, and whether its record is.

        What a node has that cannot be reached is taken to come later, unless none can be: those who
        wait for objects of others must be told. Of these they are told by a message, or at the next
        look.

        Raises:
            ConnectorError: No node can be asked.
        """
        found = [(False, True)] * len(names)
        failed: list[ConnectorError] = []

        async def look(places: Sequence[int]) -> None:
            try:
                there = await self._look_up([names[i] for i in places])
            except ConnectorError as error:
                failed.append(error)
                return
            for i, one in zip(places, there, strict=True):
                found[i] = one

        groups = (await self._by_node(names)).values()
        await _all([look(places) for places in groups])
        lasting = [error for error in failed if not is_passing(error, cluster=True)]
        if lasting or (failed and len(failed) == len(groups)):
            raise [*lasting, *failed][0]
        return found

    async def _look_up(self, names: Sequence[bytes]) -> list[tuple[bool, bool]]:
        # The record first: when it is found missing, the object is there or gone for good.
        both = [("EXISTS", one) for name in names for one in (record_name(name), name)]
        replies = await self.count(both)
        found = list(zip(replies[1::2], replies[::2], strict=True))
        # Of what was redirected the one may have been asked for long before the other.
        for i, name in enumerate(names):
            if found[i] == (False, False):
                registered = await self._reply("EXISTS", record_name(name))
                found[i] = (bool(await self._reply("EXISTS", name)), bool(registered))
        return found

    @contextlib.asynccontextmanager
    async def extra(self) -> AsyncIterator[Wire]:
        """A connection to any node: each passes on what is published at another."""
        async with contextlib.AsyncExitStack() as stack:
            yield await self._enter_any(stack)

    async def _enter_any(self, stack: contextlib.AsyncExitStack) -> Wire:
        addresses = await self.topology.owners()
        random.shuffle(addresses)
        failed: ConnectorUnavailableError | None = None
        for address in addresses:
            try:
                return await stack.enter_async_context(self.topology.client(address).extra())
            except ConnectorUnavailableError as error:
                failed = error
        assert failed is not None
        await self.topology.learn()
        raise failed

    async def aclose(self) -> None:
        """Ends every wait, and closes the connections."""
        self.topology.closed = True
        try:
            await self.waiters.aclose()
        finally:
            nodes = list(self.topology.clients.values())
            try:
                await _all([node.aclose() for node in nodes])
            finally:  # when this is cancelled at once, none of them has begun
                for node in nodes:
                    node.pool.abort()


async def _asked(node: Client, name: bytes, pieces: Sequence[Piece], *, mine: bool) -> Reply:
    """Stores something at a node that gets its slot; `mine` as for `Client.store`."""
    used: Wire | None = None
    try:
        async with node.pool.wire() as used:
            return await asked_first(used, pieces)
    except asyncio.CancelledError:
        if used is not None and mine:
            if not used.lost:
                used.request(ASKING + command("UNLINK", name), 2)
        elif used is not None:
            node.pool.hold(used)
        raise


async def _all(calls: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Runs all to their end, then raises the first exception."""
    if len(calls) == 1:
        await calls[0]
        return
    for done in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(done, BaseException):
            raise done
