"""Objects larger than a string of Redis may be: a record under the key, the bytes in parts.

A record is written last, in one transaction that also lets the parts stay: until then each of them
has a short time to live. So nobody sees half of an object, and of a writer that died nothing is
left for long. The parts have names that no other put gives, and their contents never change: a
reader who finds one missing knows that the object is gone, or is another one now.

A small object costs no more for it: its key holds either the object or a record, and the reply to
the first request tells which. An object that looks like a record is stored in parts itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import struct
import zlib
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from proxyplane._runtime.progress import telling
from proxyplane.connectors.redis.later import (
    WAS_EVICTED,
    Setting,
    record_name,
    setting,
    what_was_set,
)
from proxyplane.connectors.redis.pool import Pool
from proxyplane.connectors.redis.resp import Piece, Reply, command
from proxyplane.connectors.redis.transfer import (
    DISCARD,
    EXEC,
    LARGEST,
    MULTI,
    Body,
    Report,
    evicted_meanwhile,
    into_new_buffer,
    replaced_each_time,
)
from proxyplane.connectors.redis.wire import Wire
from proxyplane.exceptions import ConnectorError, ObjectLostError, StoreFullError

# Up to here an object is one string.
WHOLE = LARGEST
# Above it, the size of each part. Not the largest that there may be: the server has an object of
# its own to make for each, and notices between two that it is full.
PART = 64 << 20
# How long a part lives whose object is not there yet. While its writer lives it is renewed.
STAGED_SECONDS = 60.0
_RENEWALS: Final = 4  # in that time
# How often to publish, when something touches what is watched each time.
_TRIES: Final = 4

_SLOTS: Final = 16384  # of a cluster
_MAGIC: Final = b"\x89PPparts"
_RECORD: Final = struct.Struct(">8sQQ16s")
RECORD_SIZE: Final = _RECORD.size + 4
"""The length of a record; no other value of this length needs a second look."""


class Layout(NamedTuple):
    """How an object is cut; what its record says."""

    size: int
    part: int
    token: bytes

    def encode(self) -> bytes:
        """The record."""
        record = _RECORD.pack(_MAGIC, *self)
        return record + zlib.crc32(record).to_bytes(4, "big")

    def names(self, name: bytes) -> list[bytes]:
        """The names of the parts of the object whose key is `name`.

        No key of a user's has such a name, and in a cluster they have the slot of `name`.
        """
        stem = b"{%b}part:%b:" % (_tag(name), self.token.hex().encode())
        return [b"%b%d" % (stem, i) for i in range(-(-self.size // self.part))]

    def spans(self) -> list[tuple[int, int]]:
        """Where each part begins and ends."""
        return [(i, min(i + self.part, self.size)) for i in range(0, self.size, self.part)]


def _tag(name: bytes) -> bytes:
    """What a cluster finds the slot of a name by: something in braces, or all of it.

    Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
    """
    start = name.find(b"{") + 1
    stop = name.find(b"}", start)
    if start and stop > start:
        return name[start:stop]
    return _same_slot(name) if b"}" in name else name


@functools.lru_cache(maxsize=256)
def _same_slot(name: bytes) -> bytes:
    """Something of the slot of `name` that can stand in braces, as a name with a ``}`` cannot."""
    slot = crc_hqx(name, 0) % _SLOTS
    namespace, colon, _ = name.partition(b":")
    found = (b"%b%b%d" % (namespace, colon, i) for i in itertools.count())
    return next(one for one in found if crc_hqx(one, 0) % _SLOTS == slot)


def layout_of(value: bytes | bytearray | None) -> Layout | None:
    """What a record says; None for an object, or none."""
    if value is None or len(value) != RECORD_SIZE or not value.startswith(_MAGIC):
        return None
    if zlib.crc32(value[:-4]) != int.from_bytes(value[-4:], "big"):
        return None
    _, size, part, token = _RECORD.unpack(value[:-4])
    return Layout(size, part, token) if size and part else None


def in_parts(body: Body) -> bool:
    """Whether an object is stored in parts."""
    if body.size != RECORD_SIZE:
        return body.size > WHOLE
    return layout_of(b"".join(body.views)) is not None


def life_of_parts(lease: int | None) -> int | None:
    """How long the parts of an object live that has so many milliseconds, or for ever."""
    return None if lease is None else lease + int(STAGED_SECONDS * 1000)


class Reader(Protocol):
    """Reads from one server, or from a cluster."""

    @property
    def where(self) -> str:
        """Names it in messages."""
        ...

    async def read_string(self, name: bytes, size: int | None) -> bytearray | None:
        """Reads what one key holds."""
        ...

    async def read_part(self, name: bytes, view: memoryview, report: Report = None) -> bool:
        """Reads what one key holds to its place; tells whether that was as long."""
        ...


async def follow(reader: Reader, name: bytes, value: bytearray) -> bytearray | None:
    """Reads an object whose key holds `value`, which may be its record, or be itself the object.

    Raises:
        ObjectLostError: A part of it is gone.
    """
    before: Layout | None = None
    body: bytearray | None = value
    for _ in range(_TRIES):
        layout = layout_of(body)
        if layout is None:
            if body is None:
                raise evicted_meanwhile()
            return body
        if layout == before:
            raise ObjectLostError(
                f"a part of an object of {layout.size} bytes is gone from Redis at {reader.where}",
                hint="with a maxmemory-policy other than noeviction the server drops parts",
            )
        fill = partial(_read_parts, reader, layout, name, telling(layout.size))
        found = await into_new_buffer(layout.size, fill)
        if isinstance(found, bytearray):
            return found
        before = layout
        body = await reader.read_string(name, None)
    raise replaced_each_time()


async def _read_parts(
    reader: Reader, layout: Layout, name: bytes, report: Report, view: memoryview
) -> bool:
    for part, (start, stop) in zip(layout.names(name), layout.spans(), strict=True):
        if not await reader.read_part(part, view[start:stop], _further(report, start)):
            return False
    return True


def _further(report: Report, start: int) -> Report:
    return None if report is None else lambda done: report(start + done)


def evicting(keys: Sequence[tuple[bytes, bool]]) -> tuple[bytes, int]:
    """The commands that remove objects, in one transaction, and how many they are.

    To look what a key holds and to remove it is one step: what others put there meanwhile is
    another object. The parts follow.

    Args:
        keys: The Redis key of each, and whether its object came later, or would have.
    """
    data = [MULTI]
    count = 2
    for name, later in keys:
        if later:
            # The record first: without it nobody can set the object any more.
            data.append(command("UNLINK", record_name(name)))
            data.append(command("PUBLISH", name, WAS_EVICTED))
        data.append(_EVICT % (len(name), name, len(name), name))
        count += 4 if later else 2
    return b"".join([*data, EXEC]), count


_EVICT: Final = (
    b"*4\r\n$8\r\nGETRANGE\r\n$%%d\r\n%%b\r\n$1\r\n0\r\n$2\r\n%d\r\n"
    b"*2\r\n$6\r\nUNLINK\r\n$%%d\r\n%%b\r\n" % RECORD_SIZE  # with one byte more than a record
)


def what_was_evicted(
    keys: Sequence[tuple[bytes, bool]], replies: Sequence[Reply]
) -> tuple[list[bool], list[bytes]]:
    """For each key whether it held an object, and the parts that are still there.

    Raises:
        redis.ResponseError: The server refused one.
    """
    there: list[bool] = []
    left: list[bytes] = []
    rest = iter(replies)
    for name, later in keys:
        if later:
            next(rest), next(rest)
        value, gone = next(rest), next(rest)
        if isinstance(gone, Exception):
            raise gone
        there.append(bool(gone))
        layout = None if isinstance(value, Exception) else layout_of(value)
        left += layout.names(name) if layout is not None else ()
    return there, left


class Upload:
    """One object on its way into parts; what was not published in the end is removed.

    Args:
        pool: The connections.
        wire: The one that the upload has for itself.
        name: The Redis key of the object.
        body: The object.
        mine: Whether nobody else can know the key, so that when this is cancelled the object is of
            no use to anybody.
    """

    def __init__(
        self, pool: Pool, wire: Wire, name: bytes, body: Body, *, mine: bool = False
    ) -> None:
        self._pool = pool
        self._wire = wire
        self._name = name
        self._body = body
        self._mine = mine
        self._layout = Layout(body.size, min(PART, body.size), os.urandom(16))
        self._names = self._layout.names(name)
        self._begun: list[bytes] = []
        self._asked = self._published = False
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Upload:
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        # No await in here: it must happen also when the caller is cancelled once more.
        if self._renewing is not None:
            self._renewing.cancel()
        if self._published:
            return
        wire = self._wire
        gone = self._begun
        if self._asked:  # and whether it happened, nobody knows
            cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
            gone = [self._name, *gone] if self._mine and cancelled else []
        if not wire.lost and wire.midway:
            wire.request(MULTI + DISCARD, 2)  # as at the end of `read_windows`
            wire.midway = False
        if gone:
            # Behind what was sent, if that is on its way; else by the way that is left. If there is
            # none, the parts end by themselves.
            self._pool.forget(command("UNLINK", *gone), None if wire.lost else wire)
        if not wire.lost:
            self._pool.hold(wire)

    async def send(self) -> None:
        """Sends all parts."""
        report = telling(self._body.size)
        life = int(STAGED_SECONDS * 1000)
        for name, (start, stop) in zip(self._names, self._layout.spans(), strict=True):
            self._begun.append(name)
            with self._body.cut(start, stop) as part:
                pieces = part.set_for_a_while(name, life)
                await self._wire.send(pieces, 1, _further(report, start))
                del pieces
                await self._wire.read()

    async def publish(self) -> bool:
        """Makes the object visible unless its key is taken; returns whether it was not."""
        with Body([self._layout.encode()]) as record:
            pieces = [*record.set_command(self._name, *self._body.options), EXEC]
            results = await self._publish([self._name], lambda there: not there[0], pieces, 1)
        return isinstance(results[-1], bytes) and self._published

    async def publish_registered(self, *, cluster: bool = False) -> Setting:
        """Makes it visible as the object of a registered key; see `later.setting`."""
        keys = [record_name(self._name), self._name]
        behind = 1 if cluster else 0  # where the message is
        count = 4 - behind
        with Body([self._layout.encode()]) as record:
            pieces = setting(self._name, record, cluster=cluster)[1:]
            results = await self._publish(keys, lambda there: there[0], pieces, count, behind)
        if not self._published:
            return "taken" if results[1] else "gone"
        return what_was_set([results[-count:]])

    async def _publish(
        self,
        keys: Sequence[bytes],
        may: Callable[[Sequence[bool]], bool],
        pieces: Sequence[Piece],
        count: int,
        behind: int = 0,
    ) -> list[Reply]:
        """Lets the parts stay, or live as long as the object, in one transaction with `pieces`.

        Args:
            keys: What must not change meanwhile, beside the parts.
            may: Whether to do it, given which of the keys are there.
            pieces: The rest of the transaction, to its end or further.
            count: How many commands of it that is.
            behind: How many follow it.

        Returns:
            The replies to the commands; or, if it may not be done, which of the keys are there.
        """
        assert self._renewing is not None
        self._renewing.cancel()  # it would touch what is watched
        wire, names = self._wire, self._names
        for _ in range(_TRIES):
            wire.midway = True
            await wire.ask(
                *(("PEXPIRE", name, int(STAGED_SECONDS * 1000)) for name in names),
                ("WATCH", *keys, *names),
                ("PTTL", keys[0]),
                *(("EXISTS", key) for key in keys),
            )
            replies, refusal = await wire.read_few(len(names) + 2 + len(keys))
            if refusal is not None:
                raise refusal
            stay = self._staying(replies[len(names) + 1])
            there = [bool(reply) for reply in replies[-len(keys) :]]
            if not may(there):
                return there
            if not all(replies[: len(names)]):
                raise self._dropped()
            self._asked = True
            total = len(stay) + count + 2 + behind
            await wire.send([MULTI, *stay, *pieces], total)
            wire.midway = False
            replies, refusal = await wire.read_few(total)
            self._asked = False
            if refusal is not None:
                raise refusal
            results = replies[-1 - behind]
            if results is None:
                continue  # something was touched
            for result in results:
                if isinstance(result, Exception):
                    raise result
            self._published = bool(results[-count])
            if self._published and not all(results[: len(stay)]):
                # Only a server that lets what is watched end meanwhile gets here.
                self._published = False
                self._begun.append(self._name)
                raise self._dropped()
            return list(results)
        raise ConnectorError(
            "the key of a large object was changed each time while it was being stored"
        )

    def _staying(self, registered: int) -> list[bytes]:
        """The commands that let the parts live as long as the object.

        Args:
            registered: How long what is under its first key has, in milliseconds; below 0 if there
                is no such thing, or for ever.
        """
        lease = self._body.lease
        if lease is None and registered >= 0:
            lease = registered  # of a registered key: the object has its lease
        life = life_of_parts(lease)
        if life is None:
            return [command("PERSIST", name) for name in self._names]
        return [command("PEXPIRE", name, life) for name in self._names]

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(STAGED_SECONDS / _RENEWALS)
            words: list[tuple[Any, ...]]
            words = [("PEXPIRE", name, int(STAGED_SECONDS * 1000)) for name in self._begun]
            with contextlib.suppress(ConnectorError):
                await self._pool.requests(b"".join(command(*one) for one in words), len(words))

    def _dropped(self) -> StoreFullError:
        return StoreFullError(
            "the server dropped a part of a large object while it was being stored",
            hint="its memory is full, it was restarted, or somebody emptied it",
        )
