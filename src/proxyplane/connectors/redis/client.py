"""What the connector does in one event loop, with the connections of that loop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, Final

from proxyplane._runtime.io_thread import on_io_thread
from proxyplane._runtime.progress import telling
from proxyplane.abc import RECORD_BYTES, Buffer
from proxyplane.connectors.redis import behind, leases, parts
from proxyplane.connectors.redis.later import (
    SETTING_REPLIES,
    Setting,
    look_up,
    px,
    record_name,
    setting,
    what_was_set,
)
from proxyplane.connectors.redis.names import SWAP_REPLIES, swapping, what_was_there
from proxyplane.connectors.redis.parts import (
    RECORD_SIZE,
    Upload,
    evicting,
    follow,
    in_parts,
    layout_of,
    what_was_evicted,
)
from proxyplane.connectors.redis.pool import Pool
from proxyplane.connectors.redis.resp import SMALL, Piece, Reply, command
from proxyplane.connectors.redis.transfer import (
    FIRST,
    MORE,
    Body,
    Limit,
    Report,
    Touched,
    find_made,
    first_window,
    pipeline,
    read_large,
    read_limit,
    read_many,
    read_windows,
    small_body,
    write_together,
)
from proxyplane.connectors.redis.url import RedisOptions
from proxyplane.connectors.redis.waiting import Waiters
from proxyplane.connectors.redis.wire import Slot, Wire
from proxyplane.exceptions import ObjectTooLargeError

_FEW: Final = 16  # commands that may go together on the shared connection
_NUMBERS_AHEAD: Final = 512  # replies that are numbers, or no longer than a record
_EVICT_TOGETHER: Final = 250  # keys in one transaction, on the shared connection


class Client:
    """What the connector keeps for one event loop.

    Args:
        options: How to reach the server.
        tls: For ``rediss``.

    Attributes:
        pool: The connections.
        waiters: Who waits for an object.
    """

    def __init__(self, options: RedisOptions, tls: ssl.SSLContext | None) -> None:
        self.pool = Pool(options, tls)
        self.waiters = Waiters(self, options)
        self._options = options
        # The server's maxmemory in bytes, 0 for none or unknown; None until asked for.
        self._limit: Limit | None = None

    @property
    def where(self) -> str:
        """Names the server in messages."""
        return self._options.where

    async def store(self, name: bytes, body: Body, *, mine: bool = False) -> bool:
        """Stores one object unless the key is taken; returns whether it was not.

        Args:
            name: The Redis key.
            body: The object.
            mine: Whether nobody else can know the key, so that when this is cancelled the object
                is of no use to anybody.
        """
        await self.check_limit(body.size, leased=body.lease is not None)
        if in_parts(body):
            return await self._store_in_parts(name, body, mine)
        used: Wire | None = None
        try:
            if body.size <= SMALL:
                return await self.pool.request(b"".join(body.set_command(name))) is not None
            async with self.pool.wire() as used:
                await used.send(body.set_command(name), 1, telling(body.size))
                return await used.read() is not None
        except asyncio.CancelledError:
            if mine:
                self.pool.forget(command("UNLINK", name), used)
            else:
                self.pool.hold(used)
            raise

    async def _store_in_parts(self, name: bytes, body: Body, mine: bool) -> bool:
        async with self.pool.wire() as wire:
            # On a second try it may be there, and gigabytes are not sent to find that out.
            if await wire.call("EXISTS", name):
                return False
            async with Upload(self.pool, wire, name, body, mine=mine) as upload:
                await upload.send()
                return await upload.publish()

    async def store_together(self, batch: Sequence[tuple[bytes, Body]]) -> list[bool]:
        """Stores several objects, all or none; tells for each whether it was not there before."""
        leased = any(body.lease is not None for _, body in batch)
        await self.check_limit(max(body.size for _, body in batch), leased=leased)
        async with self.pool.wire(changes=True) as wire:
            return await write_together(wire, batch)

    async def register(self, name: bytes, lease: int | None) -> None:
        """Registers a key whose object will come later, for so many milliseconds or for ever."""
        record = record_name(name)
        try:
            await self.pool.request(command("SET", record, b"", *px(lease)))
        except asyncio.CancelledError:
            self.pool.forget(command("UNLINK", record))  # nobody knows the key
            raise

    async def store_registered(self, name: bytes, body: Body) -> Setting:
        """Stores the object of a registered key."""
        await self.check_limit(body.size)
        if in_parts(body):
            async with (
                self.pool.wire() as wire,
                Upload(self.pool, wire, name, body) as upload,
            ):
                await upload.send()
                return await upload.publish_registered(cluster=self._options.cluster)
        pieces = setting(name, body, cluster=self._options.cluster)
        return what_was_set(await self._together(pieces, SETTING_REPLIES, body.size))

    async def swap(self, name: bytes, body: Body | None) -> bytes | None:
        """Stores an object, or nothing, in the place of another one; returns its beginning.

        Raises:
            NotImplementedError: It would go in parts.
        """
        size = 0
        if body is not None:
            size = body.size
            await self.check_limit(size, leased=body.lease is not None)
            # A record is whole, however little may be.
            if in_parts(body) and (size > RECORD_BYTES or size == RECORD_SIZE):
                raise NotImplementedError(
                    f"an object of {size} bytes cannot replace another in Redis in one step"
                )
        left = partial(self._remove_replaced, name)
        replies = await self._together(swapping(name, body), SWAP_REPLIES, size, left)
        was = what_was_there(replies)
        layout = layout_of(was)
        if layout is None:
            return was
        await self._unlink(layout.names(name))
        return b""

    async def _unlink(self, names: Sequence[bytes]) -> None:
        """Removes keys that nobody else knows; also if the caller is cancelled."""
        unlink = command("UNLINK", *names)
        try:
            await self.pool.request(unlink)
        except asyncio.CancelledError:
            self.pool.forget(unlink)  # whether it was sent or not: twice does no harm
            raise

    def _remove_replaced(self, name: bytes, slots: Sequence[Slot]) -> None:
        """Removes the parts of an object that was replaced for a caller who is gone."""
        if isinstance(replies := slots[-1].value, list):
            layout = None if isinstance(replies[0], Exception) else layout_of(replies[0])
            if layout is not None and not isinstance(replies[1], Exception):
                self.pool.forget(command("UNLINK", *layout.names(name)))

    async def _together(
        self,
        pieces: Sequence[Piece],
        count: int,
        size: int,
        left: Callable[[Sequence[Slot]], object] | None = None,
    ) -> list[Reply]:
        """Sends a transaction with an object of `size` bytes, and returns its replies.

        Args:
            pieces: The commands.
            count: How many they are.
            size: The size of the object.
            left: As for `Pool.requests`.
        """
        if size <= SMALL:
            return await self.pool.requests(b"".join(pieces), count, left, changes=True)
        async with self.pool.wire(changes=True) as wire:
            slots = [Slot() for _ in range(count)]
            try:
                await wire.send(pieces, slots, telling(size))
                replies, refusal = await wire.read_few(count)
            except asyncio.CancelledError:
                if left is not None:
                    wire.afterwards(slots[-1], partial(left, slots))
                raise
            if refusal is not None:
                raise refusal
        return replies

    async def read(
        self, name: bytes, size: int | None, *, record: bool = False
    ) -> bytearray | None:
        """Reads one object of about `size` bytes; or its `record`, if it is in parts."""
        body: bytearray | None = MORE
        if size is None or size <= FIRST or size > parts.WHOLE:
            body, size = small_body(await self.pool.request(first_window(name))), None
        if body is MORE:
            body = await read_large(self.pool, name, size, self._read_large)
        if record or body is None or len(body) != RECORD_SIZE:
            return body
        return await follow(self, name, body)

    async def read_string(self, name: bytes, size: int | None) -> bytearray | None:
        """Reads what one key holds: an object, or the record of one."""
        return await self.read(name, size, record=True)

    async def read_part(self, name: bytes, view: memoryview, report: Report = None) -> bool:
        """Reads what one key holds to its place; tells whether that was as long."""
        async with self.pool.wire() as wire:
            return await self._read_large(wire, name, view, report) is True

    async def read_more(self, name: bytes) -> bytearray | None:
        """Reads an object that was seen to be large."""
        body = await read_large(self.pool, name, None, self._read_large)
        return body if body is None else await follow(self, name, body)

    async def read_many(
        self, names: Sequence[bytes], sizes: Sequence[int | None]
    ) -> list[Buffer | None]:
        """Reads many objects."""
        hints = [None if (size or 0) > parts.WHOLE else size for size in sizes]
        found = await read_many(self.pool, names, hints, self._read_large)
        for i, body in enumerate(found):
            if isinstance(body, bytearray) and len(body) == RECORD_SIZE:
                found[i] = await follow(self, names[i], body)
        return found

    async def _read_large(
        self, wire: Wire, name: bytes, view: memoryview, report: Report = None
    ) -> bool | Touched:
        # With TLS a thread has nothing to gain: each record costs it a wait for the lock.
        plain = behind.POSSIBLE and not self._options.tls and self._options.wire == "direct"
        if len(view) >= behind.LEAST and plain and on_io_thread():
            return await behind.read_behind(wire, name, view, report)
        return await read_windows(wire, name, view, report)

    async def exists(self, name: bytes) -> bool:
        """Whether there is an object."""
        return bool(await self.pool.request(command("EXISTS", name)))

    async def evict(self, keys: Sequence[tuple[bytes, bool]]) -> list[bool]:
        """Removes objects, with their parts, and tells for each key whether it held one.

        Args:
            keys: The Redis key of each, and whether its object came later, or would have.
        """
        there: list[bool] = []
        for start in range(0, len(keys), _EVICT_TOGETHER):
            group = keys[start : start + _EVICT_TOGETHER]
            left = partial(self._remove_left, group)
            replies = await self.pool.requests(*evicting(group), left, changes=True)
            found, rest = what_was_evicted(group, replies[-1])
            there += found
            if rest:
                await self._unlink(rest)
        return there

    def _remove_left(self, group: Sequence[tuple[bytes, bool]], slots: Sequence[Slot]) -> None:
        """Removes the parts of objects that were evicted for a caller who is gone."""
        if isinstance(replies := slots[-1].value, list):
            _, rest = what_was_evicted(group, replies)
            if rest:
                self.pool.forget(command("UNLINK", *rest))

    async def count(self, commands: Sequence[tuple[Any, ...]]) -> list[bool]:
        """Sends commands whose replies are numbers, and tells of each whether it is not zero."""
        return [bool(reply) for reply in await self._replies(commands)]

    async def extend(self, keys: Sequence[tuple[bytes, bool]], lease: int | None) -> list[bool]:
        """Gives objects a new lease; see `leases.extend`."""
        in_parts = partial(self.extend_parts, lease=lease)
        return await leases.extend(self._replies, in_parts, keys, lease)

    async def extend_parts(self, name: bytes, lease: int | None) -> bool | None:
        """Gives an object in parts a new lease; see `leases.extend_parts`."""
        async with self.pool.wire(changes=True) as wire:
            return await leases.extend_parts(wire, name, lease)

    async def _replies(self, commands: Sequence[tuple[Any, ...]]) -> list[Reply]:
        if len(commands) <= _FEW:
            data = b"".join(command(*words) for words in commands)
            return await self.pool.requests(data, len(commands), changes=True)
        async with self.pool.wire(changes=True) as wire:
            return await pipeline(wire, commands, ahead=_NUMBERS_AHEAD, convert=lambda one: one)

    async def look_up(self, names: Sequence[bytes]) -> list[tuple[bool, bool]]:
        """For each registered key whether its object is there, and whether its record is."""
        return await look_up(self.pool, names)

    def extra(self) -> AbstractAsyncContextManager[Wire]:
        """A connection for whoever waits; see `Pool.extra`."""
        return self.pool.extra()

    async def remove_made(self, namespace: str, prefix: str) -> None:
        """Removes every object and record whose key begins with `prefix`."""
        async with self.pool.wire() as wire, aclosing(find_made(wire, namespace, prefix)) as found:
            async for names in found:
                await wire.call("UNLINK", *names)

    async def aclose(self) -> None:
        """Ends every wait, and closes the connections."""
        try:
            await self.waiters.aclose()
        finally:  # also when this is cancelled, as it is when another loop closes and this one ends
            await self.pool.aclose()

    async def check_limit(self, size: int, *, leased: bool = False) -> None:
        """Raises ObjectTooLargeError for an object that exceeds the server's maxmemory."""
        if self._limit is None:
            self._limit = await read_limit(self.pool, self._options.where)
        check_memory(size, self._limit, self._options.where, leased=leased)


def check_size(size: int, limit: int, what: str, where: str) -> None:
    """Raises ObjectTooLargeError before anything is sent.

    The server would take all of it and then hang up.
    """
    if size > limit:
        raise ObjectTooLargeError(
            f"an object of {size} bytes does not fit in Redis at {where}: {limit} bytes are {what}",
            hint="split the object, or use FileConnector",
        )


def check_memory(size: int, limit: Limit | None, where: str, *, leased: bool = False) -> None:
    """The same for what the server has no memory for, as far as that is known."""
    if limit:
        if leased and limit.policy:
            limit.tell_of_leases(where)
        check_size(size, limit, "all the memory of the server (maxmemory)", where)
