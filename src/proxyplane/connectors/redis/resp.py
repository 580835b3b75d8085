"""The wire format of Redis (RESP2): replies as they arrive, long strings straight into place.

Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, cast

from redis import exceptions as redis_errors

Reply = Any
"""None, int, bytes, bytearray or memoryview (a long string), list of these, or an exception."""
Piece = bytes | bytearray | memoryview
"""A part of what is sent."""

# What is read at once when nobody knows what comes. Of a long string no more than this is copied,
# and so many short replies come in one call.
ROOM: Final = 16 << 10
# From here on a string gets a buffer of its own as soon as its length is known.
_LONG = 4 << 10

# Buffers of such sizes are used again, when nobody refers to them any more: of bytes and text,
# which are copies. The system gives a megabyte as 256 page faults, which take a quarter of a get.
_AGAIN: Final = range(64 << 10, (1 << 20) + (128 << 10))

# Up to here to join the pieces of a command is cheaper than anything else.
SMALL: Final = 16 << 10
_LEAST: Final = 2 << 10  # of a piece that is sent by itself
# What says that a string is as long as this is no Redis server.
_TOO_LONG = 1 << 40

_new_buffer = ctypes.pythonapi.PyByteArray_FromStringAndSize
_new_buffer.restype = ctypes.py_object
_new_buffer.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_resize = ctypes.pythonapi.PyByteArray_Resize
_resize.argtypes = [ctypes.py_object, ctypes.c_ssize_t]

# As numpy does for its arrays, from the same size up.
_HUGE: Final = 4 << 20
_MADV_HUGEPAGE: Final = getattr(mmap, "MADV_HUGEPAGE", 0)  # Linux only


def _find_madvise() -> Callable[[int, int, int], object] | None:
    if not _MADV_HUGEPAGE:
        return None
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return cast("Callable[[int, int, int], object]", madvise)


_madvise: Final = _find_madvise()


def new_buffer(size: int) -> bytearray:
    """A bytearray of `size` bytes with anything in it.

    To fill 100 MB with zeros before they are read takes as long as reading them; and so does it to
    be given them in pages of 4 KiB, so large pages are asked for.
    """
    buffer = cast(bytearray, _new_buffer(None, size))
    if size >= _HUGE and _madvise is not None:
        start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        # It is advice: where it is not taken, or not known, everything works as well.
        _madvise(first, start + size - first, _MADV_HUGEPAGE)
    return buffer


def command(*words: bytes | str | int) -> bytes:
    """One command, as it is sent."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def slices(pieces: Iterable[Piece], size: int) -> Iterator[list[Piece]]:
    """Groups pieces, and cuts large ones, into lists of at most `size` bytes in all.

    None of the pieces in a list is empty: the transports of Python 3.12 never get past one.
    """
    group: list[Piece] = []
    room = size
    for piece in _joined(pieces):
        view = memoryview(piece)
        start = 0
        while start < len(view):
            part = view[start : start + room]
            group.append(part)
            start += len(part)
            room -= len(part)
            if not room:
                yield group
                group, room = [], size
    if group:
        yield group


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces, with small ones in a row joined: each piece may be a call of the system."""
    small: list[Piece] = []
    size = 0
    for piece in pieces:
        if len(piece) < _LEAST:
            small.append(piece)
            size += len(piece)
            if size < SMALL:
                continue
        if small:
            yield b"".join(small)
            small, size = [], 0
        if len(piece) >= _LEAST:
            yield piece
    if small:
        yield b"".join(small)


class Parser:
    """Takes what arrives, in pieces of any length, and tells of each reply.

    Args:
        deliver: Called with each reply, in order.
        place: Asked where a long string of so many bytes goes, if it is a reply by itself; None
            for a buffer of its own. The reply is then the view it returned.
        refusal: Makes the exception for what the server says when it refuses.
    """

    def __init__(
        self,
        deliver: Callable[[Reply], object],
        place: Callable[[int], memoryview | None],
        refusal: Callable[[str], Exception],
    ) -> None:
        self._deliver = deliver
        self._place = place
        self._refusal = refusal
        self._buffer = bytearray(ROOM)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        # A long string on its way: what is told when it is there, and what is still empty.
        self._long: Reply = None
        self._empty: memoryview | None = None
        self._skip = 0  # bytes of the line end after it
        self._arrays: list[tuple[list[Reply], int]] = []  # begun, and how long they get
        self._last: bytearray | None = None  # the last buffer of a size that is used again
        self._references = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._empty is not None:
            return self._empty
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == ROOM:  # and not all of it is one line, which `received` refused
            rest = self._buffer[self._start : self._end]
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """`count` bytes were written to the beginning of `room`.

        Raises:
            redis.InvalidResponse: What came is not RESP.
        """
        if self._empty is None:
            self._end += count
        else:
            self._empty = self._empty[count:]
            if len(self._empty):
                return
            self._empty = None
            self._skip = 2
            value, self._long = self._long, None
            self._complete(value)
        self._parse()

    def let_go(self) -> None:
        """Nobody wants the long string that is on its way: the rest of it goes elsewhere."""
        if self._empty is not None:
            self._long = new_buffer(len(self._empty))
            self._empty = memoryview(self._long)

    def rest(self) -> None:
        """Nothing comes for a while."""
        self._last = None

    def end(self) -> None:
        """What has come so far is of no use, and nothing comes any more."""
        self._last = self._long = self._empty = None
        self._arrays.clear()
        self._start = self._end = 0

    def _parse(self) -> None:
        buffer = self._buffer
        while self._start < self._end:
            start = self._start
            if self._skip:
                step = min(self._skip, self._end - start)
                self._start += step
                self._skip -= step
                continue
            stop = buffer.find(b"\r\n", start, self._end)
            if stop < 0:
                if self._end - start == ROOM:
                    raise redis_errors.InvalidResponse("the server sent a line without an end")
                return
            kind = buffer[start]
            value: Reply
            try:
                if kind == 36:  # $
                    size = int(buffer[start + 1 : stop])
                    if size < 0:
                        value = None
                    elif size > _TOO_LONG:
                        raise ValueError
                    elif stop + 4 + size <= self._end:
                        value = buffer[stop + 2 : stop + 2 + size]
                        if self._arrays:
                            value = bytes(value)  # a name, perhaps
                        stop += 2 + size
                    elif size < _LONG:
                        return
                    else:
                        self._begin(size, stop + 2)
                        continue
                elif kind == 58:  # :
                    value = int(buffer[start + 1 : stop])
                elif kind == 43:  # +
                    value = bytes(self._view[start + 1 : stop])
                elif kind == 45:  # -
                    value = self._refusal(buffer[start + 1 : stop].decode("utf-8", "replace"))
                elif kind == 42:  # *
                    size = int(buffer[start + 1 : stop])
                    if size > 0:
                        self._arrays.append(([], size))
                        self._start = stop + 2
                        continue
                    value = None if size < 0 else []
                else:
                    raise ValueError
            except ValueError:
                line = bytes(buffer[start : min(stop, start + 40)])
                raise redis_errors.InvalidResponse(f"the server sent {line!r}") from None
            self._start = stop + 2
            self._complete(value)

    def _begin(self, size: int, start: int) -> None:
        """Goes on with a long string, the first bytes of which are in the buffer."""
        view = None if self._arrays else self._place(size)
        if view is None:
            self._long = self._buffer_of(size)
            view = memoryview(self._long)
        else:
            self._long = view
        # At most the string itself; of the line end after it there may be a byte here.
        here = min(self._end - start, size)
        view[:here] = self._view[start : start + here]
        self._start = start + here
        self._empty = view[here:]
        if here == size:
            self._empty = None
            self._skip = 2
            value, self._long = self._long, None
            self._complete(value)

    def _buffer_of(self, size: int) -> bytearray:
        if size not in _AGAIN:
            return new_buffer(size)
        last = self._last
        # Whoever has a view of it refers to it too.
        free = last is not None and sys.getrefcount(last) == self._references
        if last is None or not free or not size < last.__alloc__() < 2 * size:
            last = self._last = new_buffer(size)
            self._references = sys.getrefcount(last)  # here alone; what that is depends on Python
        elif len(last) != size:
            _resize(last, size)
        return last

    def _complete(self, value: Reply) -> None:
        while self._arrays:
            array, size = self._arrays[-1]
            array.append(value)
            if len(array) < size:
                return
            self._arrays.pop()
            value = array
        self._deliver(value)
