"""Reading whole files: a large one is mapped, privately, and a small one is read."""

from __future__ import annotations

import errno
import os
import stat

from proxyplane.connectors._inline import WouldStallError
from proxyplane.connectors._maps import maps
from proxyplane.connectors.file.leases import has_ended

MAP_BYTES = 64 << 10
"""Bodies of at least this many bytes are mapped, smaller ones are read.

Crossover, see the decision note: into fresh memory a map wins from 16 KB, into memory that was just
freed a read wins up to 1 MB.
"""


def read(path: str, limit: int | None = None) -> bytearray | memoryview:
    """The bytes of a file, private and writable: mapped when it is large, else read.

    Args:
        path: The file.
        limit: Bytes to read at most, when it cannot be mapped.

    Raises:
        WouldStallError: It is larger than `limit` and cannot be mapped.
        FileNotFoundError: There is none, or its lease has ended.
        OSError: It cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
        if has_ended(found):
            raise FileNotFoundError(errno.ENOENT, "its lease has ended")
        size = found.st_size
        if size >= MAP_BYTES:
            if not stat.S_ISREG(found.st_mode):  # a directory has a size too
                raise OSError(errno.EISDIR, "not a file")
            mapped = maps.map(fd, size)
            if mapped is not None:
                return mapped
            if limit is not None and size > limit:
                raise WouldStallError
        buffer = bytearray(size)
        done = os.preadv(fd, [buffer], 0)
        while done < size:
            with memoryview(buffer) as whole:
                got = os.preadv(fd, [whole[done:]], done)
            if not got:
                raise OSError(errno.EIO, f"the file ended after {done} of {size} bytes")
            done += got
        return buffer
    finally:
        os.close(fd)
