"""What the system says of a file, as one of the package's errors."""

from __future__ import annotations

import errno
import os

from proxyplane.connectors.file.directory import Directory, free_bytes
from proxyplane.exceptions import (
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    ObjectTooLargeError,
    StoreFullError,
)

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_LOST = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO}
_UNAVAILABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ELOOP,
    errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.EISDIR,
}  # fmt: skip


def translate(exc: OSError, directory: Directory, size: int = 0) -> ConnectorError:
    """The package's error for one of the system.

    Args:
        exc: What the system said.
        directory: Where.
        size: Bytes that were to be written.
    """
    path, code = directory.path, exc.errno
    reason = exc.strerror or str(exc)
    if code in _NO_ROOM:
        return _full(path, size, reason)
    if code == errno.EFBIG:
        return ObjectTooLargeError(
            f"{size} bytes are more than a file in {path} may have, by its file system or by the "
            "limit of this process (ulimit -f)",
            hint="split the object, or raise the limit",
        )
    if code in {errno.EMFILE, errno.ENFILE}:
        return ConnectorUnavailableError(
            f"cannot open a file in {path}: {reason}",
            hint="raise the limit of open files (ulimit -n)",
        )
    if code == errno.ENOENT and not os.path.isdir(path):
        return directory.gone()
    if code in _UNAVAILABLE:
        return ConnectorUnavailableError(f"the directory {path} cannot be used: {reason}")
    if code in _LOST:
        return ConnectorLostError(f"the file system of {path} failed: {reason}")
    return ConnectorError(f"a system call in {path} failed: {reason}")


def _full(path: str, size: int, reason: str) -> StoreFullError:
    try:
        room = f"{free_bytes(path)} bytes are free"
        found = os.statvfs(path)
        # A named temporary counts twice while it is linked. Some systems do not count: f_files 0.
        if found.f_files and found.f_favail < 2:
            room = "no more files fit on its file system"
    except OSError:
        room = reason
    return StoreFullError(
        f"no room for {size} bytes in {path}: {room} ({reason})",
        hint="evict objects, or choose a directory with more room: FileConnector(directory) or "
        "PROXYPLANE_DIR",
    )
