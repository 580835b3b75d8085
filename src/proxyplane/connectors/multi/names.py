"""What stands under the keys that users choose for objects in a multi-connector.

A connector is chosen by size, which a reader does not know. So all chosen keys are in one of them,
the *home*, where each is taken once, with a small record: the object, or where it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence

from proxyplane.abc import RECORD_BYTES, Buffer, Connector, SupportsNames
from proxyplane.connectors._inline import total
from proxyplane.connectors._multi_keys import HERE, Record, join, pointer, read_record, split
from proxyplane.connectors._tasks import all_or_raise, to_the_end
from proxyplane.connectors.multi.parts import Part, Parts, by_part, options
from proxyplane.exceptions import (
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    KeyExistsError,
    ProxyPlaneError,
)

Swap = Callable[..., Awaitable[Buffer | None]]

INLINE_RECORD_BYTES = 4096
"""A larger object stands beside its record, which every look and every evict reads whole."""


class Names:
    """The chosen keys.

    Args:
        parts: The connectors.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def put(
        self, bodies: list[memoryview], key: str, tags: Collection[str], ttl: float | None
    ) -> None:
        """Stores an object under a key, unless that is taken."""
        parts = self._parts
        part = parts.choose(total(bodies), tags)
        home = await parts.open(parts.home)
        lease = options(home, ttl=ttl)
        if part is parts.home and total(bodies) <= INLINE_RECORD_BYTES:
            await home.put([*bodies, HERE], key=key, **lease)
            return
        # Before the body is moved. A directory that is not there yet holds nothing.
        with contextlib.suppress(ConnectorUnavailableError):
            if await home.exists(key):
                raise taken(key)
        connector = await parts.open(part)
        # Its lease ends before that of its record: a key that holds a record may hold nothing, but
        # nothing is there that no key holds.
        inner = await connector.put(bodies, **options(connector, tags, ttl))

        async def publish() -> None:
            try:
                await home.put(pointer(join(part.mark, inner)), key=key, **lease)
            except ConnectorLostError:
                # The record may stand there, or be on its way. An object that nobody finds is the
                # lesser evil, beside a key that is taken by nothing.
                raise
            except BaseException:
                with contextlib.suppress(ProxyPlaneError):
                    await connector.evict(inner)
                raise

        await to_the_end(publish())

    async def swap(
        self, bodies: list[memoryview] | None, key: str, ttl: float | None
    ) -> Buffer | None:
        """Replaces what stands under a key, and returns it: nothing of what stands elsewhere."""
        parts = self._parts
        home = await parts.open(parts.home)
        swap, lease = swapping(home, parts.home), options(home, ttl=ttl)

        async def replace() -> Buffer | None:
            was = await swap(key, None if bodies is None else [*bodies, HERE], **lease)
            if was is None or len(was) >= RECORD_BYTES:
                return was  # an object; of one that was cut off the last byte means nothing
            record = read_record(was)
            if record is None or record.body is not None:
                return was if record is None else record.body
            with contextlib.suppress(ProxyPlaneError):  # it is done; an object may be left behind
                part, inner = parts.require(record.key)
                await (await parts.open(part)).evict(inner)
            return b""

        return await to_the_end(replace())

    async def look(self, keys: Sequence[str]) -> list[Record | None]:
        """What stands under keys.

        Raises:
            NoConnectorError: Nothing, and the key is one that an unknown connector made.
            ConnectorError: Something that is no record.
        """
        home = await self._parts.open(self._parts.home)
        records: list[Record | None] = []
        for key, buffer in zip(keys, await home.get_batch(keys), strict=True):
            record = None if buffer is None else read_record(buffer)
            if buffer is None and split(key) is not None:
                self._parts.require(key)
            if buffer is not None and record is None:
                raise ConnectorError(
                    f"what the connector {self._parts.home.name!r} has under {key!r} was not put "
                    "by a MultiConnector"
                )
            records.append(record)
        return records

    async def extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        """Gives records and their objects a new lease; goes on when its caller is cancelled."""
        return await to_the_end(self._extend(keys, ttl))

    async def _extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        records = await self.look(keys)
        home = await self._parts.open(self._parts.home)
        elsewhere = {
            place: self._parts.require(record.key)
            for place, record in enumerate(records)
            if record is not None and record.body is None
        }
        held = await home.extend(keys, ttl)
        for part, some in by_part(elsewhere).items():
            connector = await self._parts.open(part)
            for place, there in zip(
                some, await connector.extend(list(some.values()), ttl), strict=True
            ):
                held[place] = held[place] and there
        return held

    async def evict(self, keys: Sequence[str]) -> list[bool]:
        """Removes records with their objects; goes on when its caller is cancelled."""
        return await to_the_end(self._evict(keys))

    async def _evict(self, keys: Sequence[str]) -> list[bool]:
        records = await self.look(keys)
        elsewhere = {
            place: self._parts.require(record.key)
            for place, record in enumerate(records)
            if record is not None and record.body is None
        }
        opened = {part: await self._parts.open(part) for part in by_part(elsewhere)}
        home = await self._parts.open(self._parts.home)
        there = await home.evict_batch(keys)
        # The record decides who was first; its object belongs to that one.
        mine = {place: found for place, found in elsewhere.items() if there[place]}
        if mine:
            groups = by_part(mine).items()
            await all_or_raise(
                [opened[part].evict_batch(list(some.values())) for part, some in groups]
            )
        return there


def swapping(connector: Connector, part: Part) -> Swap:
    """The `swap` of a connector.

    Raises:
        NotImplementedError: It has none.
    """
    if isinstance(connector, SupportsNames):
        return connector.swap
    raise NotImplementedError(
        f"the connector {part.name!r} of this MultiConnector cannot replace what a key holds"
    )


def taken(key: str) -> KeyExistsError:
    """The error for a key that is taken."""
    return KeyExistsError(
        f"the key {key!r} is taken, and keys are write-once",
        hint="choose another key, or evict it first",
    )
