"""The files of an endpoint: what is in them, and what an earlier run left.

A file begins with what it is of: a key, the size of its object, a tag. Then come the bytes of the
object, and at the end perhaps a lease, which can be written again in its place. The name is a hash
of the key and a number that grows, so no key gets into a path, and of two files of one key the
later one is known: between the two steps of a swap both are there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from proxyplane.endpoint.leases import NO_LEASE, RECORD, Lease, unpack
from proxyplane.endpoint.objects import Entry, Registration

__all__ = ["Files", "read_head", "recover", "remove", "write_file", "write_head", "write_lease"]

log = logging.getLogger("proxyplane.endpoint")

_MAGIC: Final = b"PPEO1\n"
_LENGTH: Final = struct.Struct(">I")
_LONGEST_HEAD: Final = 1 << 20
_LATER: Final = -1  # in the place of the size, for a key whose object has not come


class FoundFile(NamedTuple):
    """A file that an earlier run left.

    Attributes:
        key: The key of its object.
        size: Its bytes; below 0 for a key whose object has not come.
        offset: Where they begin.
        tag: What tells the object from others; empty if the file does not say.
        lease: When it ends, or has ended.
    """

    key: str
    size: int
    offset: int
    tag: str
    lease: Lease | None


def file_name(key: str) -> str:
    """The name of the file of a key: nothing of the key itself gets into a path."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def write_head(key: str, size: int = _LATER, tag: str = "") -> bytes:
    """What precedes the bytes in a file; by default, of a key whose object has not come."""
    said = json.dumps({"key": key, "size": size, "tag": tag}).encode()
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
            key, size, tag = str(said["key"]), int(said["size"]), str(said.get("tag", ""))
        except (ValueError, KeyError, TypeError):
            return None
        offset = file.tell()
        end = offset + max(size, 0)
        more = os.fstat(file.fileno()).st_size - end
        if not 0 <= more <= RECORD.size:
            return None
        file.seek(end)
        raw = file.read(RECORD.size)
    # One that is cut off was never acknowledged.
    lease = unpack(raw) if len(raw) == RECORD.size else None
    return FoundFile(key, size, offset, tag, lease)


def write_lease(path: str, at: int, raw: bytes) -> None:
    """Writes a lease at the end of a file, in the place of another one.

    Args:
        path: The file; if it is not there any more, nothing is done.
        at: Where the bytes of its object end.
        raw: The lease.

    Raises:
        OSError: It may or may not be written.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if raw == NO_LEASE and os.fstat(file).st_size == at:
            return
        if os.pwrite(file, raw, at) != len(raw):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


def _files_in(directory: str) -> Iterator[str]:
    """The paths of all files of a directory."""
    with os.scandir(directory) as found:
        for one in found:
            if one.is_file(follow_symlinks=False):
                yield one.path


def write_file(path: str, *parts: bytes | memoryview) -> None:
    """Writes a new file, or none.

    Raises:
        OSError: There is none.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for part in parts:
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


def remove(paths: Sequence[str]) -> None:
    """Removes files, as far as they are there."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


class Files:
    """The names of files in the directory of an endpoint.

    Args:
        directory: Where they are.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._next = time.time_ns()

    def begin_after(self, path: str) -> int:
        """The number of a file that an earlier run left; new ones will be higher."""
        number = _number_of(path)
        self._next = max(self._next, number + 1)
        return number

    def new(self, key: str | None = None, what: str = "object") -> str:
        """A name that no file had before; without a key that of one that is not whole yet."""
        self._next += 1
        beginning = "upload" if key is None else file_name(key)
        end = "" if key is None else f".{what}"
        return os.path.join(self.directory, f"{beginning}-{self._next:x}{end}")


def _number_of(path: str) -> int:
    name = os.path.basename(path).partition(".")[0]
    with contextlib.suppress(ValueError, IndexError):
        return int(name.split("-")[1], 16)
    return 0


def recover(files: Files, *, persist: bool) -> tuple[dict[str, Entry], dict[str, Registration]]:
    """What an earlier run left and is still valid; everything else is removed. Blocking.

    Args:
        files: Whose directory it is.
        persist: Whether anything is to stay.
    """
    os.makedirs(files.directory, mode=0o700, exist_ok=True)
    entries: dict[str, Entry] = {}
    later: dict[str, Registration] = {}
    for path in sorted(_files_in(files.directory), key=files.begin_after):
        name = os.path.basename(path)
        found = read_head(path) if persist else None
        if found is None or not name.startswith(file_name(found.key)):
            if persist and not name.startswith("upload-"):
                log.warning("removed %s, which is not whole", path)
            os.unlink(path)
        elif found.lease is not None and found.lease.ended:
            # Also if an older one of the key is there: that would have been removed next.
            os.unlink(path)
            _forget(entries if found.size >= 0 else later, found.key)
        elif found.size < 0:
            _forget(later, found.key)
            later[found.key] = Registration(path, found.offset, found.lease)
        else:
            _forget(entries, found.key)
            tag = found.tag or os.urandom(8).hex()
            entries[found.key] = Entry(
                found.key, found.size, None, path, found.offset, tag, found.lease
            )
    for key in later.keys() & entries.keys():
        _forget(later, key)  # it ended between the two steps of a `set`
    return entries, later


def _forget(table: dict[str, Entry] | dict[str, Registration], key: str) -> None:
    one = table.pop(key, None)
    if one is not None and one.path is not None:
        os.unlink(one.path)
