"""What an endpoint may use of memory and disk, and how much of that is used.

Objects go to memory while the budget lasts; then those that were used longest ago move to files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from proxyplane._runtime.workers import run_in_worker
from proxyplane.endpoint.files import Files, remove, write_file, write_head
from proxyplane.endpoint.objects import Entry
from proxyplane.endpoint.upload import Upload, uncancelled
from proxyplane.exceptions import ObjectTooLargeError, StoreFullError

__all__ = ["Limits", "Room"]

log = logging.getLogger("proxyplane.endpoint")

_KEPT_IN_MEMORY: Final = 1 << 20  # bytes of a persistent object that is in memory as well


@dataclass(frozen=True)
class Limits:
    """What an endpoint may use.

    Attributes:
        memory: Bytes of objects in memory.
        disk: Bytes of objects in files; 0 for none at all.
        largest: Bytes of the largest object.
        persist: Whether objects survive a restart.
    """

    memory: int = 1 << 30
    disk: int = 1 << 40
    largest: int = 1 << 40
    persist: bool = False


class Room:
    """What is used of memory and disk.

    Args:
        limits: What may be used.
        entries: What is there; the first was not used for longest.
        files: The names of files.
    """

    def __init__(self, limits: Limits, entries: Mapping[str, Entry], files: Files) -> None:
        self.limits = limits
        self.memory_used = self.disk_used = 0
        self._entries = entries
        self._files = files
        self._lock = asyncio.Lock()

    async def take(self, key: str, size: int) -> Upload:
        """Makes room for an object; see `Storage.begin`."""
        limits = self.limits
        fits_memory = size <= limits.memory and not limits.persist
        if size > limits.largest or not (fits_memory or size <= limits.disk):
            most = min(limits.largest, max(limits.disk, 0 if limits.persist else limits.memory))
            raise ObjectTooLargeError(
                f"an object of {size} bytes is more than this endpoint ever holds: {most}",
                hint="raise --max-object, --memory or --disk of the endpoint",
            )
        in_memory = fits_memory or (limits.persist and size <= min(_KEPT_IN_MEMORY, limits.memory))
        if in_memory:
            async with self._lock:
                in_memory = await self._make_room(size)
                if in_memory:
                    self.memory_used += size
        in_file = limits.persist or not in_memory
        if in_file:
            if self.disk_used + size > limits.disk:
                self.memory_used -= size if in_memory else 0
                raise StoreFullError(
                    f"the endpoint has no room for {size} bytes: {self.memory_used} of "
                    f"{limits.memory} in memory and {self.disk_used} of {limits.disk} in files",
                    hint="evict objects, or raise --memory or --disk of the endpoint",
                )
            self.disk_used += size
        path = self._files.new() if in_file else None
        return Upload(self, key, size, in_memory=in_memory, path=path)

    async def _make_room(self, size: int) -> bool:
        """Moves old objects to files until there is room in memory; returns whether there is."""
        while self.memory_used + size > self.limits.memory:
            oldest = next((one for one in self._entries.values() if one.memory is not None), None)
            if oldest is None or not await self._spill(oldest):
                return False
        return True

    async def _spill(self, entry: Entry) -> bool:
        if entry.path is None:
            if self.disk_used + entry.size > self.limits.disk:
                return False
            head = write_head(entry.key, entry.size, entry.tag)
            path = self._files.new()
            assert entry.memory is not None
            self.disk_used += entry.size
            try:
                with entry.memory.view() as view:
                    await uncancelled(run_in_worker(write_file, path, head, view))
            except BaseException as error:
                self.disk_used -= entry.size
                remove([path])
                if not isinstance(error, OSError):
                    raise
                log.warning("cannot move an object to a file: %s", error)
                return False
            if self._entries.get(entry.key) is not entry:  # evicted meanwhile, and counted
                self.disk_used -= entry.size
                remove([path])
                return True
            entry.path, entry.offset = path, len(head)
        entry.memory = None
        self.memory_used -= entry.size
        return True

    def abandon(self, upload: Upload) -> None:
        """Gives back the room of an upload that will not be committed."""
        if upload.memory is not None:
            self.memory_used -= upload.size
        if upload.path is not None:
            self.disk_used -= upload.size
            remove([path for path in (upload.path, upload.final) if path])

    def give_back(self, entry: Entry) -> None:
        """Gives back the room of an object that was there."""
        if entry.memory is not None:
            self.memory_used -= entry.size
        if entry.path is not None:
            self.disk_used -= entry.size
