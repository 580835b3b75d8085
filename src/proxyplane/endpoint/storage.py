"""The objects of one endpoint: a table, a budget of memory, files for what exceeds it.

An object comes as an *upload*, of a size that is known when it begins, and is in the table only
when all of it is there; several uploads can be committed together. Objects go to memory while the
budget lasts; then those that were used longest ago move to files. With persistence every object is
in a file before anybody hears that it was stored, and small ones in memory too.

All methods are for one event loop. What touches a disk runs on a worker thread, except for the
removal of a small file's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proxyplane._runtime.workers import run_in_worker
from proxyplane.endpoint.objects import (
    LATER,
    Entry,
    file_name,
    files_in,
    read_head,
    write_head,
)
from proxyplane.endpoint.upload import Upload, uncancelled
from proxyplane.exceptions import (
    KeyExistsError,
    ObjectLostError,
    ObjectTooLargeError,
    StoreFullError,
)

__all__ = ["Limits", "Storage"]

log = logging.getLogger("proxyplane.endpoint")

_KEPT_IN_MEMORY = 1 << 20  # bytes of a persistent object that is in memory as well
_FORBIDDEN_SECONDS = 120.0


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


class Storage:
    """The objects of one endpoint.

    Args:
        directory: Where its files are; nobody else uses it.
        limits: What it may use.
        on_change: Called with a key that has got an object, or that will never have one.
    """

    def __init__(self, directory: str, limits: Limits, on_change: Callable[[str], object]) -> None:
        self.directory = directory
        self.limits = limits
        self.memory_used = self.disk_used = 0
        self._on_change = on_change
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # the first was not used for longest
        self._later: set[str] = set()
        self._committing: set[str] = set()
        self._forbidden: OrderedDict[str, float] = OrderedDict()
        self._room = asyncio.Lock()
        self._numbers = iter(range(1 << 62))

    async def open(self) -> None:
        """Takes over what an earlier run left, or removes it if nothing is to persist."""
        await run_in_worker(self._open)

    def _open(self) -> None:
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        for path in list(files_in(self.directory)):
            name = os.path.basename(path)
            found = read_head(path) if self.limits.persist else None
            if found is None or not name.startswith(file_name(found.key)):
                if self.limits.persist and not name.startswith("upload-"):
                    log.warning("removed %s, which is not whole", path)
                os.unlink(path)
            elif found.size == LATER:
                self._later.add(found.key)
            elif found.key in self._entries:
                os.unlink(path)  # it ended while one was evicted and the next came
            else:
                self._entries[found.key] = Entry(found.key, found.size, None, path, found.offset)
                self.disk_used += found.size
        for key in self._later & set(self._entries):
            # It ended between the two steps of a `set`.
            self._later.discard(key)
            os.unlink(self._later_path(key))

    async def close(self) -> None:
        """Lets go of everything; without persistence of the files too."""
        paths = [] if self.limits.persist else [one.path for one in self._entries.values()]
        self._entries.clear()
        await run_in_worker(_remove, [path for path in paths if path])

    # -- what is there ------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def awaited(self) -> int:
        """How many keys there are whose object will come."""
        return len(self._later)

    def find(self, key: str) -> Entry | None:
        """The object of a key."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def is_awaited(self, key: str) -> bool:
        """Whether the object of this key will come."""
        return key in self._later

    # -- what comes ---------------------------------------------------------------------------

    async def begin(self, key: str, size: int) -> Upload:
        """Makes room for an object.

        Raises:
            ObjectTooLargeError: No such object can ever be here.
            StoreFullError: There is no room now.
        """
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
            async with self._room:
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
        path = os.path.join(self.directory, f"upload-{next(self._numbers)}") if in_file else None
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
            head = write_head(entry.key, entry.size)
            path = os.path.join(self.directory, f"upload-{next(self._numbers)}")
            assert entry.memory is not None
            self.disk_used += entry.size
            try:
                with entry.memory.view() as view:
                    await uncancelled(run_in_worker(_write_file, path, head, view))
            except BaseException as error:
                self.disk_used -= entry.size
                _remove([path])
                if not isinstance(error, OSError):
                    raise
                log.warning("cannot move an object to a file: %s", error)
                return False
            if self._entries.get(entry.key) is not entry:  # evicted meanwhile, and counted
                self.disk_used -= entry.size
                _remove([path])
                return True
            entry.path, entry.offset = path, len(head)
        entry.memory = None
        self.memory_used -= entry.size
        return True

    async def commit(self, uploads: Sequence[Upload], *, later: bool = False) -> None:
        """Puts uploads into the table, all or none.

        Args:
            uploads: What is complete.
            later: Whether it is the object of a key that was registered.

        Raises:
            KeyExistsError: One of the keys is taken.
            ObjectLostError: The key is not registered (any more).
        """
        keys = [upload.key for upload in uploads]
        for key in keys:
            self.check_free(key, later=later)
        if len({*keys}) != len(keys):
            raise KeyExistsError("a key stands twice in a batch")
        self._committing.update(keys)
        try:
            # Each has a name of its own: the file of an object that was evicted just now, under
            # the same key, may not be removed yet.
            entries = [
                await upload.finish(
                    os.path.join(
                        self.directory,
                        f"{file_name(upload.key)}-{time.time_ns():x}-{next(self._numbers):x}.object",
                    )
                )
                for upload in uploads
            ]
        finally:
            self._committing.difference_update(keys)
        for key in keys:
            self.check_free(key, later=later)  # it may have been evicted meanwhile
        for upload, entry in zip(uploads, entries, strict=True):
            upload.settled = True
            self._entries[entry.key] = entry
            self._later.discard(entry.key)
        for key in keys:
            self._on_change(key)
        if later and self.limits.persist:
            await asyncio.shield(run_in_worker(_remove, [self._later_path(key) for key in keys]))

    def check_free(self, key: str, *, later: bool = False) -> None:
        """Raises what `commit` would raise now."""
        if key in self._entries or key in self._committing or (key in self._later and not later):
            raise KeyExistsError(
                f"key {key!r} is taken",
                hint="keys are write-once: evict it first, or choose another",
            )
        if key in self._forbidden or (later and key not in self._later):
            raise ObjectLostError(
                f"the endpoint does not know the key {key!r}, or not any more",
                hint="it was evicted, or the endpoint was restarted and keeps nothing",
            )

    def abandon(self, upload: Upload) -> None:
        """Gives back the room of an upload that will not be committed."""
        if upload.memory is not None:
            self.memory_used -= upload.size
        if upload.path is not None:
            self.disk_used -= upload.size
            _remove([path for path in (upload.path, upload.final) if path])

    async def register(self, key: str) -> None:
        """Remembers that the object of a key will come.

        Raises:
            KeyExistsError: It has come.
        """
        if key in self._later:
            return
        self.check_free(key)
        # To the end also when cancelled: a file that nobody knows of would come back one day.
        await uncancelled(self._note_later(key))

    async def _note_later(self, key: str) -> None:
        if self.limits.persist:
            with contextlib.suppress(FileExistsError):  # two who register it at the same time
                await run_in_worker(_write_file, self._later_path(key), write_head(key, LATER), b"")
        self._later.add(key)

    # -- what goes ----------------------------------------------------------------------------

    async def evict(self, keys: Sequence[str], *, forbid: bool = False) -> list[bool]:
        """Removes objects, all at one moment, and tells of each whether it was there.

        Args:
            keys: Of objects, or registered ones.
            forbid: Whether the keys are never to be used: nothing may come under them later.
        """
        there, paths = [], []
        now = time.monotonic()
        while self._forbidden and next(iter(self._forbidden.values())) < now:
            self._forbidden.popitem(last=False)
        for key in keys:
            entry = self._entries.pop(key, None)
            there.append(entry is not None)
            if entry is not None:
                if entry.memory is not None:
                    self.memory_used -= entry.size
                if entry.path is not None:
                    self.disk_used -= entry.size
                    paths.append(entry.path)
            elif key in self._later:
                self._later.discard(key)
                if self.limits.persist:
                    paths.append(self._later_path(key))
            elif forbid:
                self._forbidden[key] = now + _FORBIDDEN_SECONDS
            else:
                continue
            self._on_change(key)
        if paths:
            await asyncio.shield(run_in_worker(_remove, paths))
        return there

    def _later_path(self, key: str) -> str:
        return os.path.join(self.directory, f"{file_name(key)}.later")

    async def clear(self, prefix: str) -> int:
        """Evicts every object, and every registered key, that begins so; returns how many."""
        keys = [key for key in (*self._entries, *self._later) if key.startswith(prefix)]
        await self.evict(keys)
        return len(keys)


def _write_file(path: str, head: bytes, body: bytes | memoryview) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for part in (head, body):
            with memoryview(part) as view:
                at = 0
                while at < len(view):
                    at += os.write(file, view[at:])
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(file)


def _remove(paths: Sequence[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
