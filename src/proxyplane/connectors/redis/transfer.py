"""How the bytes of objects go over one connection."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from redis import exceptions as redis_errors

from proxyplane.abc import Buffer, Frames
from proxyplane.connectors.redis.wire import Piece, Wire
from proxyplane.exceptions import ObjectLostError

T = TypeVar("T")

# The largest string of a Redis server with its usual settings (proto-max-bulk-len).
LARGEST: Final = 512 << 20
# Asked for when the size is unknown. For a small object it costs no more than GET.
FIRST: Final = 256 << 10
# Large objects are read in windows, two of them on the way at a time: no reply is larger, so the
# loop is never busy with one for long and other clients of the server get their turn.
WINDOW: Final = 2 << 20
WINDOWS_AHEAD: Final = 2
_READS_AHEAD: Final = 32  # of up to 256 KiB each
# One transaction of `put_batch`: the server drops a client that holds more than 1 GB in one
# (client-query-buffer-limit), and one object may have half of that.
_TOGETHER_BYTES = 64 << 20
_TOGETHER_COUNT = 1000


_FIRST_WINDOW: Final = b"*4\r\n$8\r\nGETRANGE\r\n$%%d\r\n%%b\r\n$1\r\n0\r\n$%d\r\n%d\r\n" % (
    len(str(FIRST - 1)),
    FIRST - 1,
)
MULTI = b"*1\r\n$5\r\nMULTI\r\n"


class Body:
    """The frames of one object, as flat views that are released at the end of the block."""

    def __init__(self, frames: Frames) -> None:
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

    def set_command(self, name: bytes, condition: bytes = b"NX") -> list[Piece]:
        """``SET name <body> NX``, or ``XX``, not joined."""
        head = b"*4\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, self.size)
        return [head, *self.views, b"\r\n$2\r\n%b\r\n" % condition]


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


async def read_whole(wire: Wire, name: bytes, hint: int | None) -> bytearray | None:
    """Reads one object of any size, in windows, as it was at one moment.

    Objects are write-once, but one under a key of the user's may be evicted and the key put again
    between two windows. So the key is watched: the transaction at the end fails if anything
    touched it, and then what was read is thrown away. That costs no round trip, since everything
    is sent ahead, and a few microseconds of the server; it is done for all keys alike, because a
    key does not tell who made it. A single GET would be as safe, but stalls this loop and the
    server's other clients for its whole length, and needs the memory twice.

    Args:
        wire: A connection.
        name: The Redis key.
        hint: The size, if the caller has an idea of it.

    Returns:
        The bytes, or None when there is no such key.

    Raises:
        ObjectLostError: It was there and is gone, or is being replaced all the time.
    """
    known = False
    if hint is None or hint <= FIRST:
        # By hand: most objects are small, and this is what they wait for.
        await wire.send([_FIRST_WINDOW % (len(name), name)], 1)
        head = await wire.read()
        if len(head) < FIRST:
            return bytearray(head) if head else None
        # Read again below, with the rest, under watch: 256 KiB is cheap at this size.
        del head
        known = True
    for _ in range(3):
        body = await _read_watched(wire, name, hint)
        if body:
            return body
        if body is not None:
            if known:
                raise ObjectLostError(
                    "the object was evicted while it was being read",
                    hint="with a maxmemory-policy other than noeviction the server drops objects",
                )
            return None
        known = True
    raise ObjectLostError(
        "the object was replaced each time while it was being read", hint="read it again"
    )


async def _read_watched(wire: Wire, name: bytes, hint: int | None) -> bytearray | None:
    """One try of `read_whole`: empty when there is no such key, None when the key was touched."""
    wire.midway = True
    asked = WINDOWS_AHEAD if hint is not None and hint > WINDOW else 1
    first = [_window(name, i) for i in range(asked)]
    await wire.ask(("WATCH", name), ("STRLEN", name), *first)
    await wire.read()
    size: int = await wire.read()
    count = -(-size // WINDOW)
    body = bytearray()
    finished = False
    for i in range(max(count, asked)):
        more = [_window(name, j) for j in range(asked, min(count, i + WINDOWS_AHEAD))]
        asked += len(more)
        if asked >= count and not finished:
            more += [("MULTI",), ("EXEC",)]
            finished = True
        if more:
            await wire.ask(*more)
        # Grown step by step rather than made at full size: filling 100 MB with zeros first would
        # stall the loop, and the memory is moved by the kernel, not copied, as it grows.
        body += await wire.read()
    await wire.read()
    untouched = await wire.read() is not None
    wire.midway = False
    if not untouched:
        return None
    if len(body) != size:
        raise ObjectLostError(f"the server sent {len(body)} bytes of an object of {size}")
    return body


def _window(name: bytes, i: int) -> tuple[Any, ...]:
    return ("GETRANGE", name, i * WINDOW, (i + 1) * WINDOW - 1)


async def read_many(
    wire: Wire, names: Sequence[bytes], hints: Sequence[int | None]
) -> list[Buffer | None]:
    """Reads many objects: small ones in one pipeline, then large ones one after another."""
    found: list[Buffer | None] = [None] * len(names)
    later = [i for i in range(len(names)) if (hints[i] or 0) > FIRST]
    small = sorted({*range(len(names))} - {*later})
    commands = [("GETRANGE", names[i], 0, FIRST - 1) for i in small]
    # A full first window is dropped: there is more, and it is read in one go then.
    heads = await pipeline(wire, commands, ahead=_READS_AHEAD, convert=_small_body)
    for i, head in zip(small, heads, strict=True):
        if head is _MORE:
            later.append(i)
        else:
            found[i] = head
    for i in later:
        found[i] = await read_whole(wire, names[i], hints[i])
    return found


_MORE = bytearray()


def _small_body(reply: bytes) -> bytearray | None:
    """A whole small object, None for no object, `_MORE` when there is more of it."""
    if len(reply) == FIRST:
        return _MORE
    return bytearray(reply) if reply else None


def groups(named: Sequence[tuple[str, Body]]) -> Iterator[list[tuple[str, Body]]]:
    """Cuts a batch into transactions."""
    group: list[tuple[str, Body]] = []
    size = 0
    for key, body in named:
        if group and (size + body.size > _TOGETHER_BYTES or len(group) >= _TOGETHER_COUNT):
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
    _, refusal = await read_all(wire, len(batch) + 1)
    # The last word is sent when all else has arrived, so that a caller who is cancelled before
    # knows that nothing will be stored.
    if refusal is not None:
        await wire.call("DISCARD")
        wire.midway = False
        raise refusal
    results = await wire.call("EXEC")
    wire.midway = False
    for result in results:
        if isinstance(result, redis_errors.ResponseError):
            raise result
    return [result is not None for result in results]


async def read_all(wire: Wire, count: int) -> tuple[list[Any], redis_errors.ResponseError | None]:
    """Reads replies, and tells the first refusal among them."""
    replies: list[Any] = []
    refusal: redis_errors.ResponseError | None = None
    for _ in range(count):
        try:
            replies.append(await wire.read())
        except redis_errors.ResponseError as exc:
            refusal = refusal or exc
    return replies, refusal


async def read_limit(wire: Wire, where: str) -> int:
    """The server's maxmemory in bytes, 0 for none or unknown; warns if it drops objects."""
    try:
        # CONFIG GET would do, but hosted servers refuse it more often.
        text: bytes = await wire.call("INFO", "memory")
    except redis_errors.ResponseError:
        return 0
    info = dict(line.split(":", 1) for line in text.decode().split("\r\n") if ":" in line)
    limit = int(info.get("maxmemory", 0))
    policy = info.get("maxmemory_policy", "")
    # Under volatile-* only keys with a time to live are dropped, and ours have none.
    if limit and policy.startswith("allkeys"):
        warnings.warn(
            f"Redis at {where} silently drops objects when its memory is full "
            f"(maxmemory-policy {policy}); set it to noeviction to get StoreFullError instead",
            RuntimeWarning,
            stacklevel=2,
        )
    return limit


async def remove_made(wire: Wire, namespace: str, prefix: str) -> None:
    """Removes every object and record whose key begins with `prefix`."""
    name = f"{namespace}:{prefix}".encode()
    mine = (name, b"{" + name)  # the second are records, see `later.record_name`
    cursor = b"0"
    while True:
        cursor, found = await wire.call("SCAN", cursor, "MATCH", b"*%b*" % name, "COUNT", 1000)
        if names := [one for one in found if one.startswith(mine)]:
            await wire.call("UNLINK", *names)
        if int(cursor) == 0:
            return
