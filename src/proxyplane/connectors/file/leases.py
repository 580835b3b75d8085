"""Leases of files: where they are written down, how they end, and what finds those that have.

A file has a lease if its sticky bit is set, which means nothing for files; its time of
modification is then when the lease ends. One `fstat` tells both, so a reader needs no other call
than the one that tells it the size.

To find what has ended without a look at every object there is an index: an empty file
``.leases/<second>/<name>~<tag>`` for each lease, where all leases that end in the same few seconds
share a directory. A sweep looks at the directories whose time has come and at nothing else. The
index is written before the file it is for, so a crash may leave an entry too many, which the sweep
drops, but never a lease that is not in it.

The end of a lease is final. To extend one and to remove a file whose lease ended both take a lock
on the file and look at it again, so either the lease is extended or the file is gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from proxyplane._ttl import milliseconds
from proxyplane.abc import Swept
from proxyplane.connectors._inline import WouldStallError
from proxyplane.connectors.file.directory import LEASES, PENDING, Directory
from proxyplane.connectors.file.unshared import unshared
from proxyplane.connectors.file.watch import wake_here

_BIT = stat.S_ISVTX
_KIND, _LEASED = stat.S_IFMT(0o177777) | _BIT, stat.S_IFREG | _BIT
_TAGS = 1_000_000
"""The last digits of the time tell a file from a later one of the same name; never the lease."""
_BUCKET_SECONDS = 4
_PASSING = "passing-"
_BACK = "~"  # before the name that it had
_LOCK_SECONDS = 1.0
# Where there are no locks, a file is removed this long after its lease ended, in nanoseconds: no
# process takes longer between the look that tells it that the lease still holds and the call that
# extends it.
_UNLOCKED_GRACE = 60 * 10**9
_FREE, _BUSY, _NO_LOCKS = range(3)


def is_leased(found: os.stat_result) -> bool:
    """Whether a file has a lease."""
    return found.st_mode & _KIND == _LEASED


def has_ended(found: os.stat_result) -> bool:
    """Whether a file has a lease that ended."""
    return found.st_mode & _KIND == _LEASED and found.st_mtime_ns <= time.time_ns()


def deadline(ttl: float, tag: int | None = None) -> int:
    """What to write down for a lease that ends in `ttl` seconds, in nanoseconds.

    Args:
        ttl: Seconds.
        tag: What the file has had so far; by default a new one.
    """
    if tag is None:
        tag = secrets.randbelow(_TAGS)
    return (time.time_ns() // _TAGS + milliseconds(ttl)) * _TAGS + tag % _TAGS


def deadline_of(found: os.stat_result) -> int | None:
    """When the lease of a file ends, as `deadline` gives it; None if it has none."""
    return found.st_mtime_ns if is_leased(found) else None


def same_file(found: os.stat_result, wrote: tuple[int, int]) -> bool:
    """Whether a file is the one of this `identity`, whatever became of its lease."""
    if found.st_ino != wrote[0]:
        return False
    return found.st_mtime_ns == wrote[1] or (
        is_leased(found) and found.st_mtime_ns % _TAGS == wrote[1] % _TAGS
    )


class Leases:
    """The leases of one directory.

    Args:
        directory: The directory.

    Attributes:
        idle: Whether there is no need to sweep it in the background.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.idle = False

    @contextmanager
    def publishing(self, fd: int, name: str, ends: int | None) -> Iterator[None]:
        """Gives a file that is written a lease, and has the block publish it under a name.

        Args:
            fd: The file.
            name: The name.
            ends: When the lease ends, as `deadline` says; None for no lease.

        Raises:
            OSError: It could not be written down.
        """
        if ends is None:
            yield
            return
        self._write(fd, os.fstat(fd), ends)
        entry, made = self._enter(name, ends)
        try:
            yield
        except BaseException:
            if made:
                with suppress(OSError):
                    os.unlink(entry)
            raise
        if ends <= time.time_ns():
            self._enter(name, ends)  # a sweep may have come by before there was a file

    def extend(
        self, path: str, name: str, ttl: float | None, *, wait: bool = True
    ) -> tuple[int, int] | None:
        """Gives a file a new lease, or none; returns its new identity, None if it is gone.

        Raises:
            WouldStallError: It is locked, and `wait` is not allowed.
            OSError: The file system refuses.
        """
        try:
            fd = unshared.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            lock_or_stall(fd, wait=wait)
            found = os.fstat(fd)
            if not found.st_nlink or has_ended(found):
                return None
            if ttl is None:
                if is_leased(found):
                    os.fchmod(fd, stat.S_IMODE(found.st_mode) & ~_BIT)
                    self.forget(name, found)
                return found.st_ino, found.st_mtime_ns
            ends = deadline(ttl, found.st_mtime_ns)
            self._move(name, found, ends)
            self._write(fd, found, ends)
            return found.st_ino, ends
        finally:
            unshared.close(fd)

    def unlink(self, path: str, name: str, *, again: bool = True, wait: bool = True) -> bool:
        """Removes a file; False if there was none, or its lease had ended.

        Args:
            path: Its path.
            name: Its name.
            again: Whether another file may come under that name.
            wait: Whether one may wait for the lock of somebody else.

        Raises:
            WouldStallError: It is locked, and `wait` is not allowed.
            OSError: The file system refuses.
        """
        try:
            found = os.lstat(path)
            with ExitStack() as stack:
                if again and is_leased(found):
                    # The lease may end between this look and the removal. A sweep that looks then
                    # is not to find another file under the name when it takes away what it saw.
                    stack.enter_context(kept(path, wait=wait))
                    found = os.lstat(path)
                if has_ended(found):
                    return False
                os.unlink(path)
        except FileNotFoundError:
            return False
        if is_leased(found):
            self.forget(name, found)
        return True

    def forget(self, name: str, found: os.stat_result) -> None:
        """Drops the entry of a file that is gone, or has no lease any more."""
        with suppress(OSError):
            os.unlink(self._entry(name, found.st_mtime_ns))

    def remove_ended(self, path: str) -> int | None:
        """Removes a file whose lease has ended; returns its bytes, None if it did not.

        Raises:
            OSError: The file system refuses.
        """
        try:
            fd = unshared.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            locked = lock(fd, 0)
            found = os.fstat(fd)
            if locked == _BUSY or not found.st_nlink or not has_ended(found):
                return None
            if locked == _NO_LOCKS and found.st_mtime_ns + _UNLOCKED_GRACE > time.time_ns():
                return None
            return found.st_size if self._take(path, found) else None
        finally:
            unshared.close(fd)

    def make_way(self, path: str, *, wait: bool = True) -> bool:
        """Whether a file that took a name has a lease that ended; it is removed then.

        Raises:
            WouldStallError: Somebody else removes it, and `wait` is not allowed.
        """
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                if not has_ended(os.lstat(path)):
                    return False
            except FileNotFoundError:
                return True
            if self.remove_ended(path) is not None:
                return True
            if not wait:
                raise WouldStallError
            if time.monotonic() > until:
                return False
            time.sleep(0.001)  # somebody else removes it

    # -- sweeping --------------------------------------------------------------------------------

    @property
    def place(self) -> str:
        """What tells this directory from others."""
        return self._directory.path

    def sweep_some(self, seconds: float) -> bool:
        """Sweeps in the background; see `_sweeping.Medium`."""
        return self.sweep(seconds).more

    def sweep(self, seconds: float | None = None) -> Swept:
        """Removes the files whose leases have ended, as far as the index knows them.

        Args:
            seconds: How long it may take; None for as long as it takes.

        Raises:
            OSError: The file system refuses.
        """
        until = None if seconds is None else time.monotonic() + seconds
        objects = size = registrations = 0
        more = False
        for bucket in self._due():
            for entry in _names(bucket):
                if until is not None and time.monotonic() > until:
                    more = True
                    break
                name, _, _ = entry.rpartition("~")
                sizes = self._settle(f"{bucket}/{entry}", name)
                if sizes[0] is not None:
                    objects, size = objects + 1, size + sizes[0]
                if sizes[1] is not None:
                    registrations += 1
                    wake_here(self._directory.path, name)
            else:
                with suppress(OSError):
                    os.rmdir(bucket)
            if more:
                break
        return Swept(objects=objects, size=size, registrations=registrations, more=more)

    def _due(self) -> list[str]:
        """The directories of the index whose time has come."""
        folder = f"{self._directory.path}/{LEASES}"
        now = time.time()
        due = []
        for name in _names(folder):
            if name.startswith(_PASSING):
                self._end_passing(f"{folder}/{name}")
            elif name.isdecimal() and int(name) <= now:
                due.append((int(name), f"{folder}/{name}"))
        return [path for _, path in sorted(due)]

    def _settle(self, entry: str, name: str) -> tuple[int | None, int | None]:
        """Removes what an entry names if its lease has ended, and the entry if it is of no use."""
        paths = f"{self._directory.path}/{name}", f"{self._directory.path}/{PENDING}/{name}"
        try:
            sizes = self.remove_ended(paths[0]), self.remove_ended(paths[1])
        except PermissionError:
            return None, None  # another user's, who sweeps it
        for path in paths:
            try:
                left = os.lstat(path)
            except OSError:
                continue
            if is_leased(left):
                proper = self._entry(name, left.st_mtime_ns)
                if proper != entry:
                    self._enter(name, left.st_mtime_ns)
                    continue
                return sizes  # it could not be removed just now
        with suppress(FileNotFoundError):
            os.unlink(entry)
        return sizes

    def sweep_all(self) -> Swept:
        """As `sweep`, and looks at every file, also those that the index does not know.

        A copy of a directory may have come without its index.
        """
        swept = self.sweep()
        objects, size, registrations = swept.objects, swept.size, swept.registrations
        for name in _names(self._directory.path):
            path = f"{self._directory.path}/{name}"
            if _has_ended(path) and (freed := self.remove_ended(path)) is not None:
                objects, size = objects + 1, size + freed
        for name in _names(f"{self._directory.path}/{PENDING}"):
            path = f"{self._directory.path}/{PENDING}/{name}"
            if _has_ended(path) and self.remove_ended(path) is not None:
                registrations += 1
                wake_here(self._directory.path, name)
        return Swept(objects=objects, size=size, registrations=registrations)

    # -- steps -----------------------------------------------------------------------------------

    def _write(self, fd: int, found: os.stat_result, ends: int) -> None:
        os.utime(fd, ns=(found.st_atime_ns, ends))
        if not is_leased(found):
            # After the time: until then it would be one that ended when the file was written.
            os.fchmod(fd, stat.S_IMODE(found.st_mode) | _BIT)
            if self._directory.remote and not is_leased(os.fstat(fd)):
                raise OSError(errno.EOPNOTSUPP, "the file system does not keep the sticky bit")

    def _entry(self, name: str, ends: int) -> str:
        second = (ends // 10**9 // _BUCKET_SECONDS + 1) * _BUCKET_SECONDS
        return f"{self._directory.path}/{LEASES}/{second}/{name}~{ends % _TAGS:06d}"

    def _enter(self, name: str, ends: int) -> tuple[str, bool]:
        """Makes the entry of a lease; also returns whether it was not there before."""
        entry = self._entry(name, ends)
        while True:
            try:
                os.close(os.open(entry, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                return entry, True
            except FileExistsError:
                return entry, False
            except FileNotFoundError:
                self._make_folder(os.path.dirname(entry))

    def _move(self, name: str, found: os.stat_result, ends: int) -> None:
        """Has the index tell the new end of a lease."""
        after = self._entry(name, ends)
        if is_leased(found):
            before = self._entry(name, found.st_mtime_ns)
            if before == after:
                return
            for _ in range(2):
                try:
                    os.rename(before, after)
                    return
                except FileNotFoundError:
                    self._make_folder(os.path.dirname(after))
        self._enter(name, ends)

    def _make_folder(self, bucket: str) -> None:
        for folder in (os.path.dirname(bucket), bucket):
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700)
                self._directory.share(folder)

    def _take(self, path: str, found: os.stat_result) -> bool:
        """Removes the file that was found, and no other that may have come in its place.

        While it is locked none does, for whoever removes or replaces it takes the lock too. But
        nobody waits for that for ever, and some file systems have no locks. So the file is taken
        away under a name that tells where it was, and put back if it is another one.
        """
        try:
            if os.lstat(path).st_ino != found.st_ino:
                return False
        except FileNotFoundError:
            return False
        folder, _, name = path.rpartition("/")
        back = f"{_BACK}{name}" if folder == self._directory.path else ""
        passing = f"{self._directory.path}/{LEASES}/{_PASSING}{secrets.token_hex(8)}{back}"
        try:
            os.rename(path, passing)
        except FileNotFoundError:
            if os.path.isdir(os.path.dirname(passing)):
                return False
            self._make_folder(f"{os.path.dirname(passing)}/0")
            return self._take(path, found)
        try:
            mine = os.lstat(passing).st_ino == found.st_ino
        except FileNotFoundError:
            return True  # another sweep took it for left behind
        if not mine:
            with suppress(FileExistsError):
                os.link(passing, path)
        with suppress(FileNotFoundError):
            os.unlink(passing)
        return mine

    def _end_passing(self, path: str) -> None:
        """Removes what a sweep that died had taken away, or puts it back."""
        with suppress(OSError):
            if not has_ended(os.lstat(path)):
                _, back, name = os.path.basename(path).partition(_BACK)
                if not back:
                    return
                with suppress(FileExistsError):
                    os.link(path, f"{self._directory.path}/{name}")
            os.unlink(path)


@contextmanager
def kept(path: str, *, wait: bool) -> Iterator[None]:
    """Has nobody else remove or replace a file with a lease, in the block.

    Raises:
        WouldStallError: It is locked, and `wait` is not allowed.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # there is none, or nobody here may sweep it
            while is_leased(os.lstat(path)):
                fd = unshared.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                stack.callback(unshared.close, fd)
                lock_or_stall(fd, wait=wait)
                if os.fstat(fd).st_nlink:
                    break
        yield


def lock_or_stall(fd: int, *, wait: bool) -> None:
    """As `lock`; raises WouldStallError for a file that is locked, unless one may `wait`."""
    if lock(fd, _LOCK_SECONDS if wait else 0) == _BUSY and not wait:
        raise WouldStallError


def lock(fd: int, seconds: float) -> int:
    """Locks a file until its descriptor is closed, or is not able to in so many seconds."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _FREE
        except BlockingIOError:
            if time.monotonic() >= until:
                return _BUSY
            time.sleep(0.001)
        except OSError:
            return _NO_LOCKS


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _has_ended(path: str) -> bool:
    try:
        return has_ended(os.lstat(path))
    except OSError:
        return False
