"""One object of an endpoint: in memory, in a file, or both; and how its bytes are handed out."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from proxyplane._runtime.workers import run_in_worker
from proxyplane.endpoint.leases import Lease
from proxyplane.endpoint.memory import Memory

__all__ = ["Entry", "Reading", "Registration"]

PIECE = 1 << 18
_FILE_PIECE = 1 << 20


class Entry:
    """An object that is there.

    Attributes:
        key: Its key.
        size: Its bytes.
        memory: The bytes, if they are in memory.
        path: The file they are in, if they are.
        offset: Where in the file they begin.
        tag: Tells it from every other object, also of the same key; stays for as long as it is
            there.
        lease: When it ends; None if it never had a lease.
    """

    __slots__ = ("key", "lease", "memory", "offset", "path", "size", "tag")

    def __init__(
        self,
        key: str,
        size: int,
        memory: Memory | None,
        path: str | None,
        offset: int,
        tag: str,
        lease: Lease | None = None,
    ) -> None:
        self.key = key
        self.size = size
        self.memory = memory
        self.path = path
        self.offset = offset
        self.tag = tag
        self.lease = lease

    @property
    def ended(self) -> bool:
        """Whether its lease has ended."""
        return self.lease is not None and self.lease.ended

    async def read(self) -> Reading:
        """Begins to read it; an eviction from here on does no harm.

        Raises:
            FileNotFoundError: It was evicted while its file was to be opened.
        """
        if self.memory is not None:
            return Reading(self.memory, -1, 0)
        assert self.path is not None
        file = await run_in_worker(os.open, self.path, os.O_RDONLY | os.O_CLOEXEC)
        return Reading(None, file, self.offset)


class Registration:
    """A key whose object will come.

    Attributes:
        path: The file that says so, if there is one.
        offset: Where that ends.
        lease: When it ends, and its object after it; None if it never had a lease.
    """

    __slots__ = ("lease", "offset", "path")

    def __init__(self, path: str | None, offset: int, lease: Lease | None) -> None:
        self.path = path
        self.offset = offset
        self.lease = lease

    @property
    def size(self) -> int:
        """Bytes of the object: none has come."""
        return 0

    @property
    def ended(self) -> bool:
        """Whether its lease has ended."""
        return self.lease is not None and self.lease.ended


class Reading:
    """The bytes of an object, of which the memory or the open file is held."""

    def __init__(self, memory: Memory | None, file: int, offset: int) -> None:
        self._memory = memory
        self._file = file
        self._offset = offset

    async def pieces(self, first: int, end: int) -> AsyncIterator[memoryview | bytes]:
        """The bytes from `first` to before `end`."""
        if self._memory is not None:
            with self._memory.view() as view:
                for at in range(first, end, PIECE):
                    yield view[at : min(at + PIECE, end)]
            return
        at = first
        while at < end:
            wanted = min(_FILE_PIECE, end - at)
            piece = await run_in_worker(os.pread, self._file, wanted, self._offset + at)
            if not piece:
                raise EOFError("the file of an object is shorter than it was")
            yield piece
            at += len(piece)

    async def close(self) -> None:
        """Lets go of it."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
