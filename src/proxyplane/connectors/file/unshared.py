"""Descriptors of files that a forked child must not keep: locks last until every copy is closed.

A file that is being written is locked, which tells a sweep that the writer lives, and its space is
free only when nobody has it open; whoever changes a lease, or what a name stands for, has a lock.
"""

from __future__ import annotations

import contextlib
import os

from proxyplane._runtime.fork import on_fork


class Unshared:
    """Opens files for this process alone."""

    def __init__(self) -> None:
        self._descriptors: set[int] = set()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        """Closes the copies."""
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._descriptors = set()

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """As `os.open`, for a descriptor that `close` closes and no child inherits."""
        fd = os.open(path, flags | os.O_CLOEXEC, mode)
        self._descriptors.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """Closes what `open` opened."""
        self._descriptors.discard(fd)
        os.close(fd)


unshared = Unshared()
