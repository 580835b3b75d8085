"""What the suite puts, and how it looks at what comes back."""

from __future__ import annotations

import array
import mmap
import random
import tempfile
from collections.abc import Callable
from typing import Any

from proxyplane.abc import Buffer, Frames

LARGE_BYTES = 5 << 20
"""Size of the large objects of the suite: above what one write or one packet takes."""

_LARGE = random.Random(0).randbytes(LARGE_BYTES)


def large() -> bytes:
    """A large body in which no part equals another."""
    return _LARGE


def _view(values: Any) -> Buffer:
    return memoryview(values)


def _map() -> Buffer:
    memory = mmap.mmap(-1, 100_000)
    memory[:] = _LARGE[:100_000]
    return memory


def _file_map() -> Buffer:
    with tempfile.TemporaryFile() as file:
        file.write(_LARGE)
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


SHAPES: dict[str, Callable[[], list[Buffer]]] = {
    "one byte": lambda: [b"\0"],
    "bytes": lambda: [b"payload"],
    "bytearray and view": lambda: [bytearray(b"abc"), memoryview(b"defgh")[1:3]],
    "empty ones among": lambda: [b"", b"a", bytearray(), memoryview(b""), b"b", b""],
    "floats": lambda: [_view(array.array("d", [0.5, -1e300])), _view(array.array("d"))],
    "matrix": lambda: [b"head", _view(memoryview(_LARGE[:960]).cast("d", (10, 12)))],
    "many small": lambda: [_LARGE[i : i + i % 7] for i in range(3000)],
    "map": lambda: [b"head", _map()],
    "map of a file": lambda: [_file_map(), b"tail"],
    "large": lambda: [_LARGE],
    "large among small": lambda: [b"head", memoryview(_LARGE), b"", bytearray(_LARGE), b"tail"],
}
"""Frames of one object, by the name of their shape; each call makes them anew."""


def joined(frames: Frames) -> bytes:
    """The bytes of one object."""
    return b"".join(memoryview(frame).tobytes() for frame in frames)


class Content:
    """The bytes of a buffer; shown by their number when there are many.

    Not iterable, so that pytest does not compare them line by line when they are not what they
    should be: for megabytes, and where it believes to be on a CI server, that takes minutes.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return self.data == (other.data if isinstance(other, Content) else other)

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        if len(self.data) <= 100:
            return repr(self.data)
        return f"<{len(self.data)} bytes, {self.data[:20]!r}...>"


def content(buffer: Buffer | None) -> Content | None:
    """The bytes of what `get` returned; fails if it is no flat buffer of bytes."""
    if buffer is None:
        return None
    with memoryview(buffer) as view:
        assert view.c_contiguous and view.nbytes == len(buffer), f"{view!r} is not flat"
        return Content(view.tobytes())
