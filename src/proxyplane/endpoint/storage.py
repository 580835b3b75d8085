"""The objects of one endpoint: a table, and what comes and goes.

An object comes as an *upload*, of a size that is known when it begins, and is in the table only
when all of it is there; several uploads can be committed together. With persistence every object is
in a file before anybody hears that it was stored, and small ones in memory too.

What has a lease is gone the moment that ends: every look sees to it, and a timer to what nobody
looks at.

All methods are for one event loop. What touches a disk runs on a worker thread, except for the
removal of a small file's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from proxyplane._runtime.workers import run_in_worker
from proxyplane.abc import RECORD_BYTES
from proxyplane.endpoint.files import Files, recover, remove, write_file, write_head, write_lease
from proxyplane.endpoint.leases import Lease, Leases, pack
from proxyplane.endpoint.objects import Entry, Reading, Registration
from proxyplane.endpoint.room import Limits, Room
from proxyplane.endpoint.upload import Upload, full_or_broken, uncancelled
from proxyplane.exceptions import (
    ConnectorLostError,
    KeyExistsError,
    ObjectLostError,
)

__all__ = ["Limits", "Storage"]

T = TypeVar("T")

log = logging.getLogger("proxyplane.endpoint")

_FORBIDDEN_SECONDS = 120.0


class Storage:
    """The objects of one endpoint.

    Args:
        directory: Where its files are; nobody else uses it.
        limits: What it may use.
        on_change: Called with a key that has got an object, or that will never have one.

    Attributes:
        room: What is used of memory and disk.
        leases: Those that there are.
        ended: How many objects, and registrations, went with their lease.
    """

    def __init__(self, directory: str, limits: Limits, on_change: Callable[[str], object]) -> None:
        self.directory = directory
        self.limits = limits
        self.leases = Leases(self._end)
        self.ended = 0
        self._on_change = on_change
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # the first was not used for longest
        self._later: dict[str, Registration] = {}
        self._committing: dict[str, asyncio.Future[None]] = {}
        self._forbidden: OrderedDict[str, float] = OrderedDict()
        self._extending = asyncio.Lock()
        self._files = Files(directory)
        self.room = Room(limits, self._entries, self._files)
        self._going: dict[str, list[str]] = {}  # files that are removed just now, by key
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Takes over what an earlier run left, or removes it if nothing is to persist."""
        entries, self._later = await run_in_worker(
            lambda: recover(self._files, persist=self.limits.persist)
        )
        self._entries.update(entries)
        self.room.disk_used = sum(one.size for one in self._entries.values())
        for table in (self._entries, self._later):
            for key, one in table.items():
                self.leases.note(key, one.lease)

    async def close(self) -> None:
        """Lets go of everything; without persistence of the files too."""
        self.leases.close()
        paths = [] if self.limits.persist else [one.path for one in self._entries.values()]
        self._entries.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await run_in_worker(remove, [path for path in paths if path])

    # -- what is there ------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def awaited(self) -> int:
        """How many keys there are whose object will come."""
        return len(self._later)

    def find(self, key: str) -> Entry | None:
        """The object of a key."""
        self._end_if_over(key)
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def is_awaited(self, key: str) -> bool:
        """Whether the object of this key will come."""
        self._end_if_over(key)
        return key in self._later

    async def read(self, entry: Entry) -> tuple[Entry, Reading] | None:
        """Begins to read an object, or the one that has taken its place; None if there is none."""
        found: Entry | None = entry
        while found is not None:
            try:
                return found, await found.read()
            except FileNotFoundError:
                if self._entries.get(entry.key) is found:
                    raise
                found = self.find(entry.key)
        return None

    # -- what comes ---------------------------------------------------------------------------

    async def begin(self, key: str, size: int) -> Upload:
        """Makes room for an object.

        Raises:
            ObjectTooLargeError: No such object can ever be here.
            StoreFullError: There is no room now.
        """
        return await self.room.take(key, size)

    async def commit(
        self, uploads: Sequence[Upload], *, later: bool = False, ttl: float | None = None
    ) -> None:
        """Puts uploads into the table, all or none.

        Args:
            uploads: What is complete.
            later: Whether it is the object of a key that was registered.
            ttl: Seconds of their lease. An object that comes later has that of its key.

        Raises:
            KeyExistsError: One of the keys is taken.
            ObjectLostError: The key is not registered (any more).
        """
        keys = [upload.key for upload in uploads]
        for key in keys:
            self.check_free(key, later=later)
        if len({*keys}) != len(keys):
            raise KeyExistsError("a key stands twice in a batch")
        registrations = [self._later[key] for key in keys] if later else []
        with self._commit(keys):
            leases = [one.lease for one in registrations] or [_lease(ttl) for _ in keys]
            entries = [
                # Each has a name of its own: the file of an object that was evicted just now,
                # under the same key, may not be removed yet.
                await upload.finish(self._files.new(upload.key), lease)
                for upload, lease in zip(uploads, leases, strict=True)
            ]
            for key in keys:
                self._check(key, later=later)  # it may have been evicted meanwhile
            for upload, entry in zip(uploads, entries, strict=True):
                self._add(upload, entry)
            for key in keys:
                self._later.pop(key, None)
                self._on_change(key)
            if later:
                await self._remove_files(
                    [(key, one.path) for key, one in zip(keys, registrations, strict=True)]
                )

    @contextlib.contextmanager
    def _commit(self, keys: Sequence[str]) -> Iterator[None]:
        """In the block nobody else commits these keys, nor gives them a lease."""
        done = asyncio.get_running_loop().create_future()
        self._committing.update(dict.fromkeys(keys, done))
        try:
            yield
        finally:
            for key in keys:
                del self._committing[key]
            done.set_result(None)

    async def _settled(self, key: str) -> None:
        """Returns when nobody is committing a key."""
        while (done := self._committing.get(key)) is not None:
            await asyncio.wait([done])

    def check_free(self, key: str, *, later: bool = False) -> None:
        """Raises what `commit` would raise now."""
        if key in self._committing:
            raise _taken(key)
        self._check(key, later=later)

    def _check(self, key: str, *, later: bool = False) -> None:
        self._end_if_over(key)
        if key in self._entries or (key in self._later and not later):
            raise _taken(key)
        if key in self._forbidden or (later and key not in self._later):
            raise ObjectLostError(
                f"the endpoint does not know the key {key!r}, or not any more",
                hint="it was evicted, its lease ended, or the endpoint was restarted and keeps "
                "nothing",
            )

    def _add(self, upload: Upload, entry: Entry) -> None:
        upload.settled = True
        self._entries[entry.key] = entry
        self.leases.note(entry.key, entry.lease)

    async def swap(self, key: str, upload: Upload | None, ttl: float | None = None) -> bytes | None:
        """Puts an upload in the place of what a key holds, in one step.

        Args:
            key: The key.
            upload: What is complete; None to leave nothing there.
            ttl: Seconds of its lease.

        Returns:
            What was there, the beginning of a large object; None if there was nothing.

        Raises:
            KeyExistsError: The object of this key is still to come.
            ConnectorLostError: It is done, but what was there cannot be read, or removed, any more.
        """
        await self._settled(key)
        if key in self._forbidden or self.is_awaited(key):
            self._check(key)
        with self._commit([key]):
            entry = None
            if upload is not None:
                entry = await upload.finish(self._files.new(key), _lease(ttl))
            was = self._pop(key)
            if upload is not None and entry is not None:
                self._add(upload, entry)
            if was is None:
                return None
            return await asyncio.shield(self._keep(self._retire(was)))

    async def _retire(self, was: Entry) -> bytes:
        """The beginning of an object that was in the table, which is then removed."""
        try:
            try:
                reading = await was.read()
                try:
                    pieces = reading.pieces(0, min(was.size, RECORD_BYTES))
                    return b"".join([bytes(piece) async for piece in pieces])
                finally:
                    await reading.close()
            finally:
                await self._remove_files([(was.key, was.path)])
        except (OSError, EOFError) as error:
            raise ConnectorLostError(
                f"the object was replaced, but what was there cannot be read or removed: {error}"
            ) from error

    async def register(self, key: str, ttl: float | None = None) -> None:
        """Remembers that the object of a key will come.

        Args:
            key: The key.
            ttl: Seconds of its lease.

        Raises:
            KeyExistsError: It has come.
        """
        if self.is_awaited(key):
            return
        self.check_free(key)
        # To the end also when cancelled: a file that nobody knows of would come back one day.
        await uncancelled(self._register(key, _lease(ttl)))

    async def _register(self, key: str, lease: Lease | None) -> None:
        path, head = None, b""
        if self.limits.persist:
            path, head = self._files.new(key, "later"), write_head(key)
            raw = b"" if lease is None else pack(lease)
            await run_in_worker(write_file, path, head, raw)
            await self._settled(key)
            # Two did it at once, and perhaps the object has come meanwhile; or it is over.
            if key in self._later or key in self._entries or key in self._forbidden:
                await run_in_worker(remove, [path])
                return
        self._later[key] = Registration(path, len(head), lease)
        self.leases.note(key, lease)

    # -- what goes ----------------------------------------------------------------------------

    async def evict(self, keys: Sequence[str], *, forbid: bool = False) -> list[bool]:
        """Removes objects, all at one moment, and tells of each whether it was there.

        Args:
            keys: Of objects, or registered ones.
            forbid: Whether the keys are never to be used: nothing may come under them later.
        """
        there: list[bool] = []
        gone: list[tuple[str, str | None]] = []
        now = time.monotonic()
        while self._forbidden and next(iter(self._forbidden.values())) < now:
            self._forbidden.popitem(last=False)
        for key in keys:
            self._end_if_over(key)
            entry = self._pop(key)
            there.append(entry is not None)
            if entry is not None:
                gone.append((key, entry.path))
            elif (registration := self._later.pop(key, None)) is not None:
                self.leases.drop(registration.lease)
                gone.append((key, registration.path))
            elif not forbid:
                continue
            if forbid:
                self._forbidden[key] = now + _FORBIDDEN_SECONDS
                self._forbidden.move_to_end(key)
            self._on_change(key)
        await self._remove_files(gone)
        return there

    async def clear(self, prefix: str) -> int:
        """Evicts every object, and every registered key, that begins so; returns how many."""
        keys = [key for key in (*self._entries, *self._later) if key.startswith(prefix)]
        await self.evict(keys)
        return len(keys)

    def _pop(self, key: str) -> Entry | None:
        """Takes an object out of the table; its file, if it has one, is still to be removed."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.room.give_back(entry)
            self.leases.drop(entry.lease)
        return entry

    async def _remove_files(self, gone: Sequence[tuple[str, str | None]]) -> None:
        """Removes files, with all that are being removed of the same keys.

        So none that is older is left when the removal of the latest was acknowledged.
        """
        keys = {key for key, path in gone if path is not None}
        if not keys:
            return
        for key, path in gone:
            if path is not None:
                self._going.setdefault(key, []).append(path)
        await asyncio.shield(self._keep(self._finish_removing(keys)))

    async def _finish_removing(self, keys: set[str]) -> None:
        going = {key: [*self._going.get(key, ())] for key in keys}
        await run_in_worker(remove, [path for paths in going.values() for path in paths])
        for key, paths in going.items():
            left = [path for path in self._going.get(key, ()) if path not in paths]
            if left:
                self._going[key] = left
            else:
                self._going.pop(key, None)

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts what goes on whoever is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- leases -------------------------------------------------------------------------------

    async def extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        """Gives objects, and registered keys, a new lease; tells of each whether it was there.

        Args:
            keys: The keys.
            ttl: Seconds from now; None for no lease any more.

        Raises:
            StoreFullError: There is no room to write a lease down.
        """
        held: list[bool] = []
        # One after another, or a lease that was written down later may be the older one.
        async with self._extending:
            await uncancelled(self._extend(keys, ttl, held))
        return held

    async def _extend(self, keys: Sequence[str], ttl: float | None, held: list[bool]) -> None:
        to_write: list[tuple[str, int, bytes]] = []
        for key in keys:
            await self._settled(key)
            self._end_if_over(key)
            one = self._entries.get(key) or self._later.get(key)
            held.append(one is not None)
            if one is None or (ttl is None and one.lease is None):
                continue
            if one.lease is None:
                one.lease = Lease(ttl)
            else:
                one.lease.set(ttl)
            self.leases.note(key, one.lease)
            if self.limits.persist and one.path is not None:
                to_write.append((one.path, one.offset + one.size, pack(one.lease)))
        if to_write:
            try:
                await run_in_worker(_write_leases, to_write)
            except OSError as error:
                raise full_or_broken(error) from error

    def _end_if_over(self, key: str) -> None:
        """Ends what a key has, if its lease has ended."""
        one = self._entries.get(key) or self._later.get(key)
        if one is not None and one.lease is not None and one.lease.ended:
            self._end([(key, one.lease)])

    def _end(self, over: Sequence[tuple[str, Lease]]) -> None:
        """Ends what has these leases, if it is still there."""
        gone: list[tuple[str, str | None]] = []
        for key, lease in over:
            entry, registration = self._entries.get(key), self._later.get(key)
            if entry is not None and entry.lease is lease:
                self._pop(key)
                gone.append((key, entry.path))
            elif registration is not None and registration.lease is lease:
                del self._later[key]
                self.leases.drop(lease)
                gone.append((key, registration.path))
            else:
                continue
            self.ended += 1
            self._on_change(key)
        if any(path for _, path in gone):
            self._keep(self._remove_files(gone)).add_done_callback(_report)


def _lease(ttl: float | None) -> Lease | None:
    return None if ttl is None else Lease(ttl)


def _taken(key: str) -> KeyExistsError:
    return KeyExistsError(
        f"key {key!r} is taken",
        hint="keys are write-once: evict it first, or choose another",
    )


def _write_leases(leases: Sequence[tuple[str, int, bytes]]) -> None:
    for one in leases:
        write_lease(*one)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("cannot remove the file of an object whose lease has ended: %s", error)
