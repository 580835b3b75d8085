"""Objects that come later: the registration of a key, its end, and waiting for it.

A registration is an empty file in a sub-directory. Whoever sets the key publishes the object, which
fails if there is one, and then removes the registration: that is the moment from which it is set,
and what wakes the waiters. A key with neither is gone. A registration stays until then, or until
its lease ends, if it has one; its object has that lease after it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from proxyplane._runtime.workers import run_in_worker
from proxyplane.connectors._waiters import deadline, too_late
from proxyplane.connectors.file.directory import PENDING, Directory
from proxyplane.connectors.file.leases import (
    Leases,
    deadline_of,
    has_ended,
    lock_or_stall,
    same_file,
)
from proxyplane.connectors.file.publish import file_name, is_library_key
from proxyplane.connectors.file.unshared import unshared
from proxyplane.connectors.file.watch import Place, place_of, wake_here
from proxyplane.exceptions import KeyExistsError, ObjectLostError

# Seconds that a first look at a remote directory has, however short the timeout is: an object that
# is there is found.
_FIRST_LOOK = 1.0


class Registrations:
    """The keys of one directory whose object is still to come.

    Args:
        directory: The directory.
        leases: The leases in it.
    """

    def __init__(self, directory: Directory, leases: Leases) -> None:
        self._directory = directory
        self._leases = leases

    def make(self, key: str, ends: int | None = None) -> None:
        """Registers a new key.

        Args:
            key: The key.
            ends: When its lease ends, as `file.leases.deadline` says; None for no lease.

        Raises:
            OSError: It could not be written.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        while True:
            try:
                fd = os.open(self._path(key), flags, self._directory.file_mode)
                break
            except FileNotFoundError:
                self._make_folder()
        try:
            with self._leases.publishing(fd, key, ends):
                pass
        except BaseException:
            with suppress(OSError):  # what went wrong before is what to tell
                os.unlink(self._path(key))
            raise
        finally:
            os.close(fd)

    def refuse_set(self, key: str) -> None:
        """Checks that the key may be set now.

        Raises:
            KeyExistsError: It was set before.
            ObjectLostError: It is not registered.
            OSError: The file system does not tell.
        """
        if self.is_set(key):
            raise taken(key, self._directory)

    @contextmanager
    def setting(self, key: str, *, wait: bool = True) -> Iterator[Callable[[], int | None]]:
        """Gives what is to be called just before the object of a key is published.

        It keeps the lease of the key as it is until the end of the block, returns when that lease
        ends, and raises what `refuse_set` raises; and WouldStallError if others have locked that
        lease, and `wait` is not allowed.
        """
        held: list[int] = []

        def hold() -> int | None:
            try:
                held.append(unshared.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW))
            except FileNotFoundError:
                self.refuse_set(key)
                raise
            lock_or_stall(held[0], wait=wait)
            self.refuse_set(key)
            return deadline_of(os.fstat(held[0]))

        try:
            yield hold
        finally:
            for fd in held:
                unshared.close(fd)

    def extend(self, key: str, ttl: float | None, *, wait: bool = True) -> bool:
        """Gives the registration of a key a new lease; False if there is none.

        Raises:
            WouldStallError: It is locked, and `wait` is not allowed.
            OSError: The file system refuses.
        """
        if not is_library_key(key):
            return False
        return self._leases.extend(self._path(key), key, ttl, wait=wait) is not None

    def is_set(self, key: str) -> bool:
        """Whether the key holds an object; False while it is registered to get one.

        Raises:
            ObjectLostError: Neither.
            OSError: The file system does not tell.
        """
        if self._holds_object(key):
            return True
        if self._is_registered(key):
            return False
        # A set publishes the object before it ends the registration: maybe between these looks.
        return self._holds_object(key) or self._lost(key)

    def settle(self, key: str, wrote: tuple[int, int]) -> None:
        """Ends the registration of a key whose object was published.

        Args:
            key: The key.
            wrote: The identity of its file.

        Raises:
            ObjectLostError: The key was evicted before that; the object is withdrawn.
            OSError: The file system does not do it.
        """
        if self.remove(key):
            return
        # Somebody evicted the key since it was checked. If that took this object, then it came
        # after this set, else before.
        path = self._object(key)
        try:
            if not same_file(os.lstat(path), wrote):
                return
            withdrawn = self._leases.unlink(path, file_name(key), again=False)
        except FileNotFoundError:
            return
        if withdrawn:  # else it was evicted in between
            self._lost(key)

    def remove(self, key: str) -> bool:
        """Ends the registration of a key, which wakes who waits for it; False if there is none."""
        if not is_library_key(key):
            return False
        if not self._leases.unlink(self._path(key), key, again=False):
            return False
        wake_here(self._directory.path, key)
        return True

    def clear(self, is_mine: Callable[[str], bool]) -> None:
        """Ends the registrations of all keys that `is_mine` accepts."""
        try:
            with os.scandir(os.path.join(self._directory.path, PENDING)) as entries:
                mine = [entry.name for entry in entries if is_mine(entry.name)]
        except FileNotFoundError:
            return
        for key in mine:
            self.remove(key)

    def _make_folder(self) -> None:
        if not os.path.isdir(self._directory.path):
            self._directory.make()
        folder = os.path.join(self._directory.path, PENDING)
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise
            return
        self._directory.share(folder)

    def _holds_object(self, key: str) -> bool:
        return _is_there(self._object(key))

    def _is_registered(self, key: str) -> bool:
        return _is_there(self._path(key))

    def _path(self, key: str) -> str:
        return f"{self._directory.path}/{PENDING}/{file_name(key)}"

    def _object(self, key: str) -> str:
        return f"{self._directory.path}/{file_name(key)}"

    def _lost(self, key: str) -> bool:
        path = self._directory.path
        raise ObjectLostError(
            f"the key {key!r} holds no object in {path} and is not registered to get one"
            + ("" if os.path.isdir(path) else ", for there is no such directory"),
            hint="it was evicted, its lease ended, the directory was emptied or is another one, or "
            "new_key() did not make the key",
        )


class Waiting:
    """The waits of one connector.

    Args:
        directory: Where its objects are.
        look: Whether a key is set; raises when it never will be, or must not be waited for.
    """

    def __init__(self, directory: Directory, look: Callable[[str], bool]) -> None:
        self._directory = directory
        self._look_sync = look
        self._place: Place | None = None

    async def wait(self, key: str, timeout: float | None) -> None:
        """Returns when the key is set.

        Raises:
            TimeoutError: It was not, for `timeout` seconds.
        """
        began = asyncio.get_running_loop().time()
        remote = self._directory.remote
        async with deadline(key, None if timeout is None else max(timeout, _FIRST_LOOK)):
            if await self._look(key):
                return
        if timeout is not None and timeout <= 0:
            raise too_late(key, timeout)
        place = self._place
        if place is None:
            place = self._place = place_of(self._directory.path)
        place.remote |= remote
        async with deadline(key, timeout, since=began):
            waiter = place.waiters.join(file_name(key), self)
            try:
                new = True
                while True:
                    place.attend(new=new)
                    if await self._look(key):
                        return
                    await waiter.sleep()
                    if await self._look(key):  # what it was woken for, most often
                        return
                    new = False
            finally:
                waiter.leave()

    def end(self) -> None:
        """Lets every wait of this connector look again."""
        if self._place is not None:
            self._place.waiters.wake_owned(self)

    async def _look(self, key: str) -> bool:
        if self._directory.remote:
            return await run_in_worker(self._look_sync, key)
        return self._look_sync(key)


def taken(key: str, directory: Directory) -> KeyExistsError:
    """The error for a key that holds an object already."""
    return KeyExistsError(
        f"the key {key!r} is taken in {directory.path}, and keys are write-once",
        hint="choose another key, or evict it first",
    )


def _is_there(path: str) -> bool:
    try:
        return not has_ended(os.lstat(path))
    except FileNotFoundError:
        return False
