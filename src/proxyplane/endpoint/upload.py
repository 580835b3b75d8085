"""An object that is on its way into an endpoint: its bytes arrive, and it is not there yet."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from proxyplane._runtime.workers import run_in_worker
from proxyplane.endpoint.files import write_head
from proxyplane.endpoint.leases import Lease, pack
from proxyplane.endpoint.memory import Memory
from proxyplane.endpoint.objects import Entry
from proxyplane.exceptions import ConnectorError, StoreFullError

if TYPE_CHECKING:
    from proxyplane.endpoint.room import Room

__all__ = ["Upload", "full_or_broken", "uncancelled"]

_TOGETHER = 4 << 20  # bytes that are written to a file at once
_VECTORS = 1000  # that a system takes in one call


class Upload:
    """Receives the bytes of one object; a context manager that gives its room back if it fails.

    Attributes:
        key: Under which it is to be.
        size: Bytes that are to come.
        memory: Where they go, if to memory.
        path: The file they go to, if to one.
        final: The name that this file gets when all is written, and may have.
        tag: What tells the object from every other one.
        settled: Whether it is in the table.
    """

    def __init__(
        self, room: Room, key: str, size: int, *, in_memory: bool, path: str | None
    ) -> None:
        self.key = key
        self.size = size
        self.memory = Memory(size) if in_memory else None
        self.path = path
        self.final: str | None = None
        self.settled = False
        self._room = room
        self._received = 0
        self._file = -1
        self.tag = os.urandom(8).hex()
        head = write_head(key, size, self.tag) if path is not None else b""
        self._offset = self._held_bytes = len(head)
        self._held: list[bytes | bytearray | memoryview] = [head]

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if not self.settled:
            self._room.abandon(self)

    async def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes; those of a view may be used again when this returns.

        Raises:
            StoreFullError: The disk is full.
            ConnectorError: There is more than was announced.
        """
        size = len(piece)
        if self._received + size > self.size:
            raise ConnectorError("more bytes came than were announced")
        if self.memory is not None:
            self.memory.write(piece)
        elif self.path is not None:
            self._held.append(bytes(piece) if isinstance(piece, memoryview) else piece)
            self._held_bytes += size
            if self._held_bytes >= _TOGETHER or len(self._held) >= _VECTORS:
                await self._flush()
        self._received += size

    async def finish(self, path: str, lease: Lease | None = None) -> Entry:
        """Makes of it what the table holds; its file, if it has one, gets this path.

        Args:
            path: For the file.
            lease: When the object ends.

        Raises:
            ConnectorError: Not all bytes have come.
            StoreFullError: The disk is full.
        """
        if self._received != self.size:
            raise ConnectorError(f"{self._received} of {self.size} bytes came")
        if self.path is not None:
            self.final = path  # before: a worker renames it also if this is cancelled
            end = [] if lease is None or lease.deadline is None else [pack(lease)]
            if self.memory is None:
                self._held += end
                await self._flush(path)
            else:
                with self.memory.view() as view:
                    self._held += [view, *end]
                    await self._flush(path)
            self.path = path
        return Entry(self.key, self.size, self.memory, self.path, self._offset, self.tag, lease)

    async def _flush(self, final: str | None = None) -> None:
        assert self.path is not None
        pieces, self._held, self._held_bytes = self._held, [], 0
        if self._file < 0:
            # Named by this object before the worker begins, which goes on if this is cancelled.
            self._file = os.open(
                self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
        try:
            await uncancelled(run_in_worker(_write_out, self._file, pieces, self.path, final))
        except OSError as error:
            raise full_or_broken(error) from error


async def uncancelled(work: Coroutine[Any, Any, None]) -> None:
    """Waits for a worker also when cancelled: it uses a file that is closed afterwards."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _write_out(
    file: int, pieces: list[bytes | bytearray | memoryview], path: str, final: str | None
) -> None:
    while pieces:
        written = os.writev(file, pieces[:_VECTORS])
        while written:
            size = len(pieces[0])
            if written < size:
                pieces[0] = memoryview(pieces[0])[written:]
                break
            written -= size
            del pieces[0]
        while pieces and not len(pieces[0]):
            del pieces[0]
    if final is not None:
        os.rename(path, final)


def full_or_broken(error: OSError) -> ConnectorError:
    """What a failure of the disk means to the one who puts."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(
            "the disk of the endpoint is full", hint="evict objects, or give it more room"
        )
    return ConnectorError(f"the endpoint cannot write its files: {error.strerror}")
