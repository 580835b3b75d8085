"""Memory of an object that processes of this machine can map: nobody copies it for them.

A large object lies in a file that is in memory alone and has no name (memfd). Whoever may open the
files of this process, which is its own user, opens it under ``/proc`` and maps it privately. When
the object is evicted the memory stays for those who have it mapped, and for nobody else. Where
there is no such thing, objects lie in ordinary memory and go through the socket.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import sys
from collections.abc import Iterator

from proxyplane.connectors.endpoint.wire import new_buffer

__all__ = ["Memory", "allow_many"]

LEAST = 1 << 20
"""Bytes of an object that is worth the trouble."""

_descriptors = 0  # of such files
_most = 100


def allow_many() -> None:
    """Lets this process have as many open files as it may; half of them for objects."""
    global _most
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    _most = (1 << 20 if soft == resource.RLIM_INFINITY else soft) // 2


class Memory:
    """The bytes of one object, written once from the beginning to the end.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        global _descriptors
        self.size = size
        self._file = -1
        self._at = 0
        self._buffer: bytearray | mmap.mmap | None = None
        if size >= LEAST and sys.platform == "linux" and _descriptors < _most:
            with contextlib.suppress(OSError):
                self._file = os.memfd_create("proxyplane-object")
                _descriptors += 1
        if self._file < 0:
            self._buffer = new_buffer(size)

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes.

        Raises:
            OSError: The system has no memory left.
        """
        if self._file >= 0:
            done = 0
            with memoryview(piece) as view:
                while done < len(view):
                    done += os.pwrite(self._file, view[done:], self._at + done)
        else:
            assert self._buffer is not None
            self._buffer[self._at : self._at + len(piece)] = bytes(piece)
        self._at += len(piece)

    @contextlib.contextmanager
    def view(self) -> Iterator[memoryview]:
        """All of the bytes."""
        if self._buffer is None:
            self._buffer = mmap.mmap(self._file, self.size, prot=mmap.PROT_READ)
        with memoryview(self._buffer) as view:
            yield view

    @property
    def place(self) -> str:
        """Where to open it, and by what to know that it is this one; empty if it cannot be."""
        if self._file < 0:
            return ""
        return f"{os.getpid()} {self._file} {os.fstat(self._file).st_ino}"

    def __del__(self) -> None:
        global _descriptors
        if self._file >= 0:
            os.close(self._file)
            _descriptors -= 1
