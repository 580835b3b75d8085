"""Publishing whole files: a reader sees all of an object or nothing of it.

A body is written to a file that has no name yet and then linked to its name; `link` fails if the
name exists, so one call publishes and keeps names write-once. With ``O_TMPFILE`` the file never
has another name, and the kernel frees it when its writer dies. Where that is missing, a named
temporary in a sub-directory takes its place; its writer holds a lock on it for as long as it
lives, and `sweep` removes those whose lock is free.

A published file is never truncated and never written again: a reader may have it mapped.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, overload

from proxyplane._runtime.progress import telling
from proxyplane.connectors._inline import total
from proxyplane.connectors.file.directory import UNPUBLISHED, Directory
from proxyplane.connectors.file.leases import Leases
from proxyplane.connectors.file.unshared import unshared
from proxyplane.exceptions import ConnectorError

# A body of this many bytes is not begun when there is no room for it: a disk that is filled to the
# brim for a moment fails other programs as well. posix_fallocate would notice too, but then every
# put and evict allocates and frees real blocks, which takes milliseconds on a busy ext4.
_CHECK_BYTES = 1 << 20
# Whoever asked for the progress of a put is told it after so many bytes.
_TOLD_BYTES = 8 << 20
_IOV_MAX = max(os.sysconf("SC_IOV_MAX"), 16)
_LIBRARY_KEY = re.compile(r"[0-9a-f]{32}")
_UNSAFE = re.compile(rb"[^a-z0-9_.-]")
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
"""What a file system says that has no hard links."""
_UNSUPPORTED = {
    errno.EOPNOTSUPP, errno.ENOTSUP, errno.EISDIR, errno.EINVAL, errno.ENOSYS, errno.EXDEV,
    errno.EPERM, errno.ENOENT,
}  # fmt: skip


def file_name(key: str) -> str:
    """The name of the file of a key; different keys have different names on any file system.

    The library's keys are names as they are. Any other is escaped, so that no character of it has
    a meaning, capitals included: some file systems ignore case.
    """
    if _LIBRARY_KEY.fullmatch(key):
        return key
    raw = key.encode("utf-8", "surrogatepass")
    name = "k-" + _UNSAFE.sub(lambda match: b"%%%02x" % match[0][0], raw).decode("ascii")
    if len(name) <= 200:  # a name may have 255 bytes
        return name
    import hashlib  # loads OpenSSL

    return "h-" + hashlib.sha256(raw).hexdigest()


def is_library_key(key: str) -> bool:
    """Whether the key has the form of those that the library makes."""
    return _LIBRARY_KEY.fullmatch(key) is not None


class Publisher:
    """Writes files of one directory, each whole or not at all.

    Args:
        directory: The directory.

    Attributes:
        anonymous: Whether the directory takes files without a name (``O_TMPFILE``).
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._leases = Leases(directory)
        self.anonymous = hasattr(os, "O_TMPFILE")
        self._links = True

    @overload
    def publish(
        self,
        name: str,
        bodies: list[memoryview],
        *,
        unique: Literal[False],
        check: Callable[[], int | None],
    ) -> tuple[int, int]: ...
    @overload
    def publish(
        self,
        name: str,
        bodies: list[memoryview],
        *,
        unique: Literal[True],
        check: Callable[[], int | None],
    ) -> None: ...

    def publish(
        self,
        name: str,
        bodies: list[memoryview],
        *,
        unique: bool,
        check: Callable[[], int | None],
    ) -> tuple[int, int] | None:
        """Publishes one file.

        Args:
            name: Its name.
            bodies: What to write.
            unique: Whether nobody else can publish under this name.
            check: Called when all is written; an error from it publishes nothing. Returns when the
                lease of the file ends, as `file.leases.deadline` says; None for no lease.

        Returns:
            What tells this file from a later one of the same name: `identity`. None if the name is
            unique, for there is no later one.

        Raises:
            FileExistsError: The name is taken.
            OSError: It could not be written; nothing is left behind.
        """
        if self.anonymous:
            try:
                return self._publish_anonymous(name, bodies, unique, check)
            except FileExistsError:
                raise
            except OSError as exc:
                # ENOENT also when /proc is not mounted; then the directory itself is there.
                if exc.errno not in _UNSUPPORTED or not os.path.isdir(self._directory.path):
                    raise
                self.anonymous = False
        return self._publish_named(name, bodies, unique, check)

    def _publish_anonymous(
        self,
        name: str,
        bodies: list[memoryview],
        unique: bool,
        check: Callable[[], int | None],
    ) -> tuple[int, int] | None:
        flags = os.O_WRONLY | os.O_TMPFILE
        fd = unshared.open(self._directory.path, flags, self._directory.file_mode)
        try:
            self._write(fd, bodies)
            ends = check()
            if ends is None:
                self._link_anonymous(fd, name)
            else:
                with self._leases.publishing(fd, name, ends):
                    self._link_anonymous(fd, name)
            return None if unique else identity(os.fstat(fd))
        finally:
            unshared.close(fd)

    def _publish_named(
        self,
        name: str,
        bodies: list[memoryview],
        unique: bool,
        check: Callable[[], int | None],
    ) -> tuple[int, int] | None:
        fd, temporary = self._open_named()
        try:
            self._write(fd, bodies)
            with self._leases.publishing(fd, name, check()):
                self._link_named(temporary, f"{self._directory.path}/{name}", unique)
            return None if unique else identity(os.fstat(fd))
        finally:
            # It was published or not: a temporary that cannot be removed now is for a sweep.
            with suppress(OSError):
                os.unlink(temporary)
            unshared.close(fd)  # and with it the lock

    def _link_anonymous(self, fd: int, name: str) -> None:
        # Without a directory descriptor CPython calls link(), which does not follow the
        # symbolic link in /proc. The path is absolute, so any descriptor does.
        target = f"{self._directory.path}/{name}"
        os.link(f"/proc/self/fd/{fd}", target, src_dir_fd=fd, follow_symlinks=True)

    def _link_named(self, temporary: str, target: str, unique: bool) -> None:
        if self._links:
            try:
                os.link(temporary, target)
                return
            except OSError as exc:
                if exc.errno not in NO_LINKS:
                    raise
                self._links = False
        if not unique:
            raise ConnectorError(
                f"the file system of {self._directory.path} has no hard links, without which "
                "a key of your choice, or of a future, cannot be write-once",
                hint="let put() make the key, or use a directory on another file system",
            )
        os.rename(temporary, target)

    def _open_named(self) -> tuple[int, str]:
        folder = os.path.join(self._directory.path, UNPUBLISHED)
        while True:
            # The host is in the name because some network file systems lock for one host only.
            path = os.path.join(folder, f"{os.uname().nodename}.{secrets.token_hex(8)}")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            try:
                fd = unshared.open(path, flags, self._directory.file_mode)
            except FileNotFoundError:
                try:
                    os.mkdir(folder, 0o700)
                except FileExistsError:
                    pass
                continue
            try:
                with suppress(OSError):  # no locks here: then no sweep can take one either
                    fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink:
                    return fd, path
            except BaseException:
                with suppress(OSError):
                    os.unlink(path)
                unshared.close(fd)
                raise
            # A sweep came between the open and the lock.
            unshared.close(fd)

    def _write(self, fd: int, bodies: list[memoryview]) -> None:
        size = total(bodies)
        if size >= _CHECK_BYTES and self._directory.firm:
            room = os.fstatvfs(fd)
            # A tmpfs without a limit reports no blocks at all.
            if room.f_blocks and room.f_bavail * room.f_frsize < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(fd, bodies)


def write_all(fd: int, bodies: list[memoryview]) -> None:
    """Writes all bytes of all bodies, however few of them one call takes."""
    size = total(bodies)
    report = telling(size) if size > _TOLD_BYTES else None
    if report is not None:
        _write_and_tell(fd, bodies, report)
        return
    written = 0
    if len(bodies) <= _IOV_MAX:
        written = os.writev(fd, bodies)
        if written == size:
            return
    left = _without(bodies[::-1], written)
    while left:
        left = _without(left, os.writev(fd, left[-1 : -_IOV_MAX - 1 : -1]))


def _write_and_tell(fd: int, bodies: list[memoryview], report: Callable[[int], object]) -> None:
    done = 0
    for body in bodies:
        for start in range(0, body.nbytes, _TOLD_BYTES):
            piece = body[start : start + _TOLD_BYTES]
            while piece.nbytes:
                written = os.write(fd, piece)
                piece = piece[written:]
                done += written
            report(done)


def _without(left: list[memoryview], written: int) -> list[memoryview]:
    """Takes what was written from the end of the list, where the next to be written is."""
    while left and written >= left[-1].nbytes:
        written -= left.pop().nbytes
    if written:
        left[-1] = left[-1][written:]
    return left


def identity(found: os.stat_result) -> tuple[int, int]:
    """Tells a file from a later one of the same name; see `file.leases.same_file`."""
    return found.st_ino, found.st_mtime_ns


def sweep(directory: Directory) -> int:
    """Removes temporaries whose writer is dead, and returns how many.

    The evidence is their lock, which the kernel frees with the writer. On a network file system,
    whose locks may hold for one host only, those of other hosts are left alone.
    """
    try:
        entries = list(os.scandir(os.path.join(directory.path, UNPUBLISHED)))
    except OSError:
        return 0
    removed = 0
    for entry in entries:
        if directory.remote and not entry.name.startswith(f"{os.uname().nodename}."):
            continue
        try:
            fd = os.open(entry.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(entry.path)
            removed += 1
        except OSError:
            pass  # its writer lives, or someone else swept it
        finally:
            os.close(fd)
    return removed
