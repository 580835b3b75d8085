"""Replacing a file in one step, so that exactly one caller gets what was there.

Linux exchanges the names of two files in one call (``renameat2``): what was published comes out
under a temporary name, where it is read and removed. Nothing is locked but a file with a lease,
against sweeps and for a second at most, so no process that is stopped or killed holds up another
one. Where the system or the file system cannot, all who change what stands under chosen keys take
a lock on one file, which the kernel frees with its holder; also those who can, from when that file
is there, if one directory has users of both kinds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator

from proxyplane.abc import RECORD_BYTES
from proxyplane.connectors._inline import WouldStallError
from proxyplane.connectors.file.directory import LOCK, SWAPPING, Directory
from proxyplane.connectors.file.leases import Leases, has_ended, is_leased, kept
from proxyplane.connectors.file.publish import NO_LINKS, identity, write_all
from proxyplane.connectors.file.unshared import unshared

_AT_FDCWD = -100
_EXCHANGE = 2
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}
# What a swap leaves behind in between belongs, after this many seconds, to one that was killed.
_STALE_SECONDS = 3600.0

# How long an exchange of names may take that began when nobody had a lock.
UNSEEN_SECONDS = 0.1

_renameat2: Callable[[int, bytes, int, bytes, int], int] | None = None


class Swapper:
    """Replaces files of one directory.

    Args:
        directory: The directory.
        leases: The leases of the files in it.

    Attributes:
        exchanges: Whether names can be exchanged there, for all that is known.
    """

    def __init__(self, directory: Directory, leases: Leases) -> None:
        self._directory = directory
        self._leases = leases
        # One for each user, who may not write to that of another one.
        self._folder = os.path.join(directory.path, f"{SWAPPING}-{os.geteuid()}")
        self.exchanges = sys.platform == "linux"

    def replace(
        self,
        name: str,
        bodies: list[memoryview],
        check: Callable[[], int | None],
        *,
        wait: bool = True,
    ) -> tuple[bytes | None, tuple[int, int]]:
        """Publishes a file in the place of another one.

        Args:
            name: Its name.
            bodies: What it holds.
            check: Called when all is written; an error from it changes nothing. Returns when the
                lease of the file ends, as `file.leases.deadline` says; None for no lease.
            wait: Whether one may wait for the lock of somebody else.

        Returns:
            The beginning of what was there, or None, and what tells the new file from a later one.

        Raises:
            WouldStallError: Somebody else has a lock, and `wait` is not allowed.
            OSError: It could not be done; nothing is changed.
        """
        target = f"{self._directory.path}/{name}"
        fd, temporary = self._open()
        try:
            write_all(fd, bodies)
            with self._leases.publishing(fd, name, check()):
                was = self._publish(name, temporary, target, wait)
            return was, identity(os.fstat(fd))
        finally:
            unshared.close(fd)
            with contextlib.suppress(OSError):  # what cannot be removed now is for a sweep
                os.unlink(temporary)

    def _publish(self, name: str, temporary: str, target: str, wait: bool) -> bytes | None:
        while self.exchanges:
            try:
                with self.alone(wait=wait), kept(target, wait=wait):
                    _exchange(temporary, target)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in _NO_EXCHANGE:
                    raise
                self.exchanges = False
                break
            else:
                return self._had(name, temporary)
            try:
                with self.alone(wait=wait):
                    os.link(temporary, target)
                return None
            except FileExistsError:
                pass  # somebody else was first: now there is something to exchange
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                self.exchanges = False
        with self.alone(wait=wait):
            was = self._had(name, target)
            with kept(target, wait=wait):
                os.rename(temporary, target)
            return was

    def take(self, name: str, *, wait: bool = True) -> bytes | None:
        """Removes a file and returns its beginning; None if there is none.

        Raises:
            WouldStallError: Somebody else has a lock, and `wait` is not allowed.
        """
        target = f"{self._directory.path}/{name}"
        temporary = self._new_name()
        with self.alone(wait=wait):
            while True:
                try:
                    with kept(target, wait=wait):
                        os.rename(target, temporary)
                    break
                except FileNotFoundError:
                    if os.path.isdir(self._folder) or not os.path.lexists(target):
                        return None
                    self._make_folder()
        try:
            return self._had(name, temporary)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    @contextlib.contextmanager
    def alone(self, *, wait: bool = True) -> Iterator[None]:
        """Keeps others from changing what chosen keys hold, in the block.

        Who exchanges names needs that only beside those who cannot, of whom the file that is locked
        tells. They share the lock: one exchange does not disturb another.

        Raises:
            WouldStallError: Somebody else does so now, and `wait` is not allowed.
        """
        path = os.path.join(self._directory.path, LOCK)
        if self.exchanges and not os.path.lexists(path):
            yield
            return
        fd = self._open_lock(path)
        try:
            kind = fcntl.LOCK_SH if self.exchanges else fcntl.LOCK_EX
            try:
                fcntl.flock(fd, kind | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise WouldStallError from None
            except OSError:
                pass  # where there are no locks there is nothing better than this
            if not self.exchanges:
                _let_others_see(fd, wait)
            yield
        finally:
            unshared.close(fd)

    def _open_lock(self, path: str) -> int:
        mode = self._directory.file_mode
        mode |= (mode & 0o040) >> 1  # who may read may lock
        with contextlib.suppress(FileExistsError):
            fd = unshared.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            os.fchmod(fd, mode)  # whatever the umask of this user
            return fd
        try:
            return unshared.open(path, os.O_RDWR)  # some network file systems want that
        except PermissionError:
            return unshared.open(path, os.O_RDONLY)

    def _had(self, name: str, path: str) -> bytes | None:
        """The beginning of a file that is replaced or removed; None if its lease had ended."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(fd)
            if is_leased(found):
                self._leases.forget(name, found)
            return None if has_ended(found) else os.read(fd, RECORD_BYTES)
        finally:
            os.close(fd)

    def sweep(self) -> None:
        """Removes what swaps left behind that were killed half way."""
        try:
            with os.scandir(self._folder) as entries:
                old = [
                    entry.path
                    for entry in entries
                    if time.time() - entry.stat(follow_symlinks=False).st_ctime > _STALE_SECONDS
                ]
        except OSError:
            return
        for path in old:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _open(self) -> tuple[int, str]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        while True:
            path = self._new_name()
            try:
                return unshared.open(path, flags, self._directory.file_mode), path
            except FileNotFoundError:
                self._make_folder()

    def _make_folder(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)

    def _new_name(self) -> str:
        return os.path.join(self._folder, secrets.token_hex(12))


def _let_others_see(fd: int, wait: bool) -> None:
    """Waits until a file has been there for a moment: somebody may just have found it missing."""
    age = time.time() - os.fstat(fd).st_mtime
    if 0 <= age < UNSEEN_SECONDS:
        if not wait:
            raise WouldStallError
        time.sleep(UNSEEN_SECONDS - age)


def _exchange(one: str, other: str) -> None:
    global _renameat2
    if _renameat2 is None:
        _renameat2 = _load()
    # Raises by itself; an audit hook of Python's sees no difference to `os.rename` but its name.
    _renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE)


def _load() -> Callable[[int, bytes, int, bytes, int], int]:
    # Imported on first use: it takes milliseconds, and few processes come to this.
    import ctypes

    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError) as error:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    ]

    def call(*arguments: object) -> int:
        while function(*arguments):
            code = ctypes.get_errno()
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        return 0

    return call
