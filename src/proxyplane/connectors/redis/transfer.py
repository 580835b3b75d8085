"""How the bytes of objects go over the connections."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from redis import exceptions as redis_errors

from proxyplane._runtime.progress import telling
from proxyplane._ttl import milliseconds
from proxyplane.abc import Buffer, Frames
from proxyplane.connectors.redis.pool import Pool
from proxyplane.connectors.redis.resp import Piece, command, new_buffer
from proxyplane.connectors.redis.wire import Slot, Wire
from proxyplane.exceptions import ConnectorError, ObjectLostError

T = TypeVar("T")

# The largest string of a Redis server with its usual settings (proto-max-bulk-len).
LARGEST: Final = 512 << 20
# Asked for when the size is unknown. For a small object it costs no more than GET; one of 1 MB with
# what belongs to it comes in one round trip, where to find out that it is large would take three.
FIRST: Final = (1 << 20) + (64 << 10)
# Large objects are read in windows, two of them on the way at a time: no reply is larger, so the
# loop is never busy with one for long and other clients of the server get their turn.
WINDOW: Final = 2 << 20
WINDOWS_AHEAD: Final = 2
_READS_AHEAD: Final = 16  # of up to `FIRST` bytes each
# One transaction of `put_batch`: the server drops a client that holds more than 1 GB in one
# (client-query-buffer-limit), and one object may have half of that.
_TOGETHER_BYTES = 64 << 20
_TOGETHER_COUNT = 1000


def first_window(name: bytes) -> bytes:
    """The command for an object that is probably small; `small_body` takes the reply."""
    return _FIRST_WINDOW % (len(name), name)


_FIRST_WINDOW: Final = b"*4\r\n$8\r\nGETRANGE\r\n$%%d\r\n%%b\r\n$1\r\n0\r\n$%d\r\n%d\r\n" % (
    len(str(FIRST - 1)),
    FIRST - 1,
)
MULTI: Final = command("MULTI")
EXEC: Final = command("EXEC")
DISCARD: Final = command("DISCARD")

Report = Callable[[int], object] | None
"""Told, from any thread, how many bytes are done."""
Read = Callable[["Wire", bytes, memoryview, Report], Awaitable["bool | Touched"]]
"""Tries once to fill a view with an object on a connection; False when there is none."""


class Touched(NamedTuple):
    """What reading gives in place of an object that is not as it was thought to be."""

    size: int | None
    """What it has now, if known."""


class Body:
    """The frames of one object, as flat views that are released at the end of the block.

    Args:
        frames: The frames.
        ttl: Seconds that the object has; None for ever.

    Attributes:
        lease: The same in milliseconds.
        options: Of the command that stores it.
    """

    def __init__(self, frames: Frames, ttl: float | None = None) -> None:
        self.lease = None if ttl is None else milliseconds(ttl)
        self.options = (b"NX",) if self.lease is None else (b"NX", b"PX", b"%d" % self.lease)
        self.views = [memoryview(frame).cast("B") for frame in frames]
        self.size = sum(view.nbytes for view in self.views)
        if not self.size:
            self.close()
            raise ValueError("an object has at least one byte")

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the caller's buffers, which may be maps that are to be closed."""
        for view in self.views:
            view.release()

    def set_command(self, name: bytes, *options: bytes, replace: bool = False) -> list[Piece]:
        """``SET name <body> NX``, with the lease if there is one, or with `options`; not joined.

        Args:
            name: The Redis key.
            options: In place of ``NX`` and the lease.
            replace: Leaves out the ``NX``.
        """
        options = self.options[1:] if replace else options or self.options
        head = b"*%d\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (
            3 + len(options),
            len(name),
            name,
            self.size,
        )
        tail = b"".join([b"\r\n$%d\r\n%b" % (len(option), option) for option in options])
        return [head, *self.views, tail + b"\r\n"]

    def set_for_a_while(self, name: bytes, milliseconds: int) -> list[Piece]:
        """``SET name <body> PX milliseconds``, not joined."""
        head = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, self.size)
        life = b"%d" % milliseconds
        return [head, *self.views, b"\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % (len(life), life)]

    def cut(self, start: int, stop: int) -> Body:
        """The bytes from `start` to `stop`."""
        found: list[memoryview] = []
        for view in self.views:
            found.append(view[max(start, 0) : max(stop, 0)])
            start, stop = start - view.nbytes, stop - view.nbytes
        part = Body(found)
        for view in found:
            view.release()
        return part


async def pipeline(
    wire: Wire,
    commands: Sequence[tuple[Any, ...]],
    *,
    ahead: int,
    convert: Callable[[Any], T],
) -> list[T]:
    """Sends commands and reads their replies in order, with at most `ahead` on the way.

    Replies stream in while the next commands go out, so the whole costs about one round trip, and
    neither side ever holds more than `ahead` replies.
    """
    results: list[T] = []
    sent = 0
    for i in range(len(commands)):
        if sent < len(commands) and sent - i <= ahead // 2:
            group = commands[sent : i + ahead]
            await wire.ask(*group)
            sent += len(group)
        results.append(convert(await wire.read()))
    return results


async def read_large(pool: Pool, name: bytes, size: int | None, read: Read) -> bytearray | None:
    """Reads one object in windows, as it was at one moment.

    Objects are write-once, but one under a key of the user's may be evicted and the key put again
    between two windows. So the key is watched: the transaction at the end fails if anything
    touched it, and then what was read is thrown away. That costs no round trip, since everything
    is sent ahead, and a few microseconds of the server; it is done for all keys alike, because a
    key does not tell who made it. A single GET would be as safe, but stalls this loop and the
    server's other clients for its whole length, and needs the memory twice.

    Args:
        pool: The connections; each try has one for itself.
        name: The Redis key.
        size: The size, as far as the caller knows; None if the object was just seen to be large.
        read: Tries it once.

    Returns:
        The bytes, or None when there is no such key.

    Raises:
        ObjectLostError: It was there and is gone, or is being replaced all the time.
    """
    known = size is None
    for _ in range(4):
        async with pool.wire() as wire:
            if size is None:
                size = await wire.call("STRLEN", name)
            found: bytearray | Touched | None = None
            if size:
                report = telling(size)
                found = await into_new_buffer(size, partial(_read_into, read, wire, name, report))
        if found is None and known:
            raise evicted_meanwhile()
        if not isinstance(found, Touched):
            return found
        known = True
        size = found.size
    raise replaced_each_time()


def evicted_meanwhile() -> ObjectLostError:
    """The error of a reader whose object is gone halfway."""
    return ObjectLostError(
        "the object was evicted while it was being read",
        hint="with a maxmemory-policy other than noeviction the server drops objects",
    )


def replaced_each_time() -> ObjectLostError:
    """The error of a reader who has tried it several times."""
    return ObjectLostError(
        "the object was replaced each time while it was being read", hint="read it again"
    )


async def _read_into(
    read: Read, wire: Wire, name: bytes, report: Report, view: memoryview
) -> bool | Touched:
    return await read(wire, name, view, report)


async def into_new_buffer(
    size: int, fill: Callable[[memoryview], Awaitable[bool | Touched]]
) -> bytearray | Touched | None:
    """A new buffer when `fill` has filled it, None when there was nothing to fill it with."""

    async def make() -> bytearray | Touched | None:
        body = new_buffer(size)
        found = await fill(memoryview(body))
        if isinstance(found, Touched):
            return found
        return body if found else None

    try:
        return await make()
    except BaseException as error:
        # The frames of an error may live on in a circle; the memory must not.
        traceback.clear_frames(error.__traceback__)
        raise


async def read_windows(
    wire: Wire, name: bytes, view: memoryview, report: Report = None
) -> bool | Touched:
    """Reads one object as long as `view` on the running loop, straight into its place."""
    size = len(view)
    slots = [Slot(view[i : i + WINDOW]) for i in range(0, size, WINDOW)]
    places = [slot.into for slot in slots]
    wire.midway = True
    asked = 0
    try:
        await wire.ask(("WATCH", name), ("STRLEN", name))
        for i, place in enumerate(places):
            if asked < len(slots):
                upto = min(len(slots), i + WINDOWS_AHEAD)
                windows = [window_command(name, j) for j in range(asked, upto)]
                await wire.send(windows, slots[asked:upto])
                asked = upto
                if asked == len(slots):
                    await wire.send([MULTI, EXEC], 2)
                    wire.midway = False
            if not i:
                await wire.read()
                there: int = await wire.read()
                if there != size:
                    return Touched(there) if there else False
            _fill(place, await wire.read())
            if report is not None:
                report(min((i + 1) * WINDOW, size))
        await wire.read()
        untouched = await wire.read() is not None
    finally:
        wire.leave()  # what was asked for in vain
        if wire.midway and not wire.lost:
            wire.request(MULTI + DISCARD, 2)  # ends it without one more permission, for UNWATCH
            wire.midway = False
    return True if untouched else Touched(None)


def _fill(place: memoryview | None, reply: bytes | memoryview) -> None:
    """Writes a window to its place, unless it is there or is of another size."""
    if place is not None and reply is not place and len(reply) == len(place):
        place[:] = reply


def window_command(name: bytes, i: int) -> bytes:
    """Asks for window `i` of an object."""
    return command("GETRANGE", name, i * WINDOW, (i + 1) * WINDOW - 1)


async def read_many(
    pool: Pool, names: Sequence[bytes], hints: Sequence[int | None], read: Read
) -> list[Buffer | None]:
    """Reads many objects: small ones in one pipeline, then large ones one after another."""
    found: list[Buffer | None] = [None] * len(names)
    later = [i for i in range(len(names)) if (hints[i] or 0) > FIRST]
    small = sorted({*range(len(names))} - {*later})
    commands = [("GETRANGE", names[i], 0, FIRST - 1) for i in small]
    # A full first window is dropped: there is more, and it is read in one go then.
    async with pool.wire() as wire:
        heads = await pipeline(wire, commands, ahead=_READS_AHEAD, convert=small_body)
    for i, head in zip(small, heads, strict=True):
        if head is MORE:
            found[i] = await read_large(pool, names[i], None, read)
        else:
            found[i] = head
    for i in later:
        found[i] = await read_large(pool, names[i], hints[i], read)
    return found


MORE: Final = bytearray()


def small_body(reply: bytes | bytearray) -> bytearray | None:
    """A whole small object, None for no object, `MORE` when there is more of it."""
    if len(reply) == FIRST:
        # Read again with the rest, under watch: it is cheap beside that.
        return MORE
    if not reply:
        return None
    return reply if isinstance(reply, bytearray) else bytearray(reply)


def groups(
    named: Sequence[tuple[str, Body]], alone: Callable[[Body], bool]
) -> Iterator[list[tuple[str, Body]]]:
    """Cuts a batch into transactions, with one for each object that is to be alone."""
    group: list[tuple[str, Body]] = []
    size = 0
    for key, body in named:
        full = size + body.size > _TOGETHER_BYTES or len(group) >= _TOGETHER_COUNT
        if group and (full or alone(body) or alone(group[-1][1])):
            yield group
            group, size = [], 0
        group.append((key, body))
        size += body.size
    if group:
        yield group


async def write_together(wire: Wire, batch: Sequence[tuple[bytes, Body]]) -> list[bool]:
    """Stores several objects in one transaction: all of them, or none.

    Returns:
        For each whether it was stored, and not there before.

    Raises:
        redis.ResponseError: The server refused one; none is stored.
    """
    wire.midway = True
    commands = (piece for name, body in batch for piece in body.set_command(name))
    await wire.send([MULTI, *commands], 1 + len(batch))
    # The last word is sent when all else has arrived, so that a caller who is cancelled before
    # knows that nothing will be stored.
    last = DISCARD
    try:
        _, refusal = await wire.read_few(len(batch) + 1)
        last = EXEC if refusal is None else DISCARD
    finally:
        if not wire.lost:
            (end,) = wire.request(last)
            wire.midway = False
    results = await wire.take(end)
    if refusal is not None:
        raise refusal
    for result in results:
        if isinstance(result, redis_errors.ResponseError):
            raise result
    return [result is not None for result in results]


class Limit(int):
    """The server's maxmemory in bytes, 0 for none or unknown.

    Attributes:
        policy: What a full server does, if it drops only what has a lease, and until that was told.
    """

    policy = ""

    def tell_of_leases(self, where: str) -> None:
        """Warns, once, that a full server drops objects that have a lease, if it does."""
        policy, self.policy = self.policy, ""
        if policy:
            warnings.warn(
                f"Redis at {where} silently drops objects that have a lease, before it ends, when "
                f"its memory is full (maxmemory-policy {policy}); set it to noeviction to get "
                "StoreFullError instead",
                RuntimeWarning,
                stacklevel=3,
            )


async def read_limit(pool: Pool, where: str) -> Limit:
    """The server's maxmemory; warns if it drops objects."""
    try:
        # CONFIG GET would do, but hosted servers refuse it more often.
        return limit_of(await pool.request(command("INFO", "memory")), where)
    except ConnectorError as error:
        return limit_of(error, where)


def limit_of(text: bytes | ConnectorError, where: str) -> Limit:
    """What `read_limit` gives, by the reply to INFO or the error in its place; or raises that."""
    if isinstance(text, ConnectorError):
        if isinstance(text.__cause__, redis_errors.ResponseError):
            return Limit(0)
        raise text
    info = dict(line.split(":", 1) for line in text.decode().split("\r\n") if ":" in line)
    limit = Limit(info.get("maxmemory", 0))
    policy = info.get("maxmemory_policy", "")
    # Only objects with a lease are dropped, which may be none: told when there is one.
    if limit and policy.startswith("volatile"):
        limit.policy = policy
    if limit and policy.startswith("allkeys"):
        warnings.warn(
            f"Redis at {where} silently drops objects when its memory is full "
            f"(maxmemory-policy {policy}); set it to noeviction to get StoreFullError instead",
            RuntimeWarning,
            stacklevel=2,
        )
    return limit


async def find_made(wire: Wire, namespace: str, prefix: str) -> AsyncGenerator[list[bytes], None]:
    """Gives the names of the objects and records whose key begins with `prefix`, bit by bit."""
    name = f"{namespace}:{prefix}".encode()
    mine = (name, b"{" + name)  # the second are records, see `later.record_name`
    cursor = b"0"
    while True:
        cursor, found = await wire.call("SCAN", cursor, "MATCH", b"*%b*" % name, "COUNT", 1000)
        if names := [one for one in found if one.startswith(mine)]:
            yield names
        if int(cursor) == 0:
            return
