"""One object of an endpoint: in memory, in a file, or both; and how its bytes are handed out."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

from proxyplane._runtime.workers import run_in_worker
from proxyplane.endpoint.memory import Memory

__all__ = ["Entry", "FoundFile", "file_name", "read_head", "write_head"]

PIECE = 1 << 18
_FILE_PIECE = 1 << 20
_MAGIC = b"PPEO1\n"
_LENGTH = struct.Struct(">I")
_LONGEST_HEAD = 1 << 20
LATER = -1
"""In the place of the size, for a key whose object has not come."""


class Entry:
    """An object that is there.

    Attributes:
        key: Its key.
        size: Its bytes.
        memory: The bytes, if they are in memory.
        path: The file they are in, if they are.
        offset: Where in the file they begin.
    """

    __slots__ = ("key", "memory", "offset", "path", "size")

    def __init__(
        self,
        key: str,
        size: int,
        memory: Memory | None,
        path: str | None,
        offset: int,
    ) -> None:
        self.key = key
        self.size = size
        self.memory = memory
        self.path = path
        self.offset = offset

    async def pieces(self, first: int, end: int) -> AsyncIterator[memoryview | bytes]:
        """The bytes from `first` to before `end`; unharmed by an eviction meanwhile."""
        if self.memory is not None:
            with self.memory.view() as view:
                for at in range(first, end, PIECE):
                    yield view[at : min(at + PIECE, end)]
            return
        assert self.path is not None
        # Open from here on, so that it can be read though it is removed.
        file = await run_in_worker(os.open, self.path, os.O_RDONLY)
        try:
            at = first
            while at < end:
                wanted = min(_FILE_PIECE, end - at)
                piece = await run_in_worker(os.pread, file, wanted, self.offset + at)
                if not piece:
                    raise EOFError(f"{self.path} is shorter than it was")
                yield piece
                at += len(piece)
        finally:
            os.close(file)


class FoundFile(NamedTuple):
    """A file that an earlier run left.

    Attributes:
        key: The key of its object.
        size: Its bytes; `LATER` for a key whose object has not come.
        offset: Where they begin.
    """

    key: str
    size: int
    offset: int


def file_name(key: str) -> str:
    """The name of the file of a key: nothing of the key itself gets into a path."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def write_head(key: str, size: int) -> bytes:
    """What precedes the bytes in a file."""
    said = json.dumps({"key": key, "size": size}).encode()
    return _MAGIC + _LENGTH.pack(len(said)) + said


def read_head(path: str) -> FoundFile | None:
    """What a file says of its object; None if it is not whole."""
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return None
        raw = file.read(_LENGTH.size)
        if len(raw) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(raw)
        if length > _LONGEST_HEAD:
            return None
        try:
            said = json.loads(file.read(length))
            key, size = str(said["key"]), int(said["size"])
        except (ValueError, KeyError, TypeError):
            return None
        offset = file.tell()
        whole = os.fstat(file.fileno()).st_size == offset + max(size, 0)
    return FoundFile(key, size, offset) if whole else None


def files_in(directory: str) -> Iterator[str]:
    """The paths of all files of a directory."""
    with os.scandir(directory) as found:
        for one in found:
            if one.is_file(follow_symlinks=False):
                yield one.path
