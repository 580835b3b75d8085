"""Files mapped privately; few of the maps hold a descriptor."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import sys
import weakref
from collections.abc import Callable
from typing import Any

_LINUX = sys.platform == "linux"
# The kernel then asks for no memory in advance for pages that may be written some day: an object
# that is larger than the memory can be mapped.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000) if _LINUX else 0
_FIXED = 0x10  # the mmap module does not name it
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}
_REFUSED = {*_NO_DESCRIPTORS, errno.ENOMEM, errno.ENODEV}


class _Maps:
    """The live maps of this process, and what they may take from the rest of the program.

    From Python 3.13 on `mmap.mmap` gives its descriptor back (``trackfd=False``). Before, it keeps
    a duplicate as long as the map lives. A few such maps do no harm. Further ones are made on Linux
    by mapping the file over an anonymous map, which has no descriptor, with ``MAP_FIXED``: POSIX
    has it replace what was mapped there, and `mmap.mmap` unmaps the addresses in the end, as it
    would have done anyway. (A map that is made by ctypes alone would have nobody to unmap it: a
    weakref's callback comes too early in a cycle, whose finalisers may still use the memory.)

    Past the limit there are no maps, and bodies are read.

    Attributes:
        live: All maps.
        holding: Those of them with a descriptor.
    """

    def __init__(self) -> None:
        self.live: set[weakref.ref[mmap.mmap]] = set()
        self.holding: set[weakref.ref[mmap.mmap]] = set()

    def map(self, fd: int, size: int) -> memoryview | None:
        """A private map of the file; None when the system, or the limit, allows no more."""
        if len(self.live) >= _most_maps():
            return None
        try:
            made = self._make(fd, size)
        except OSError as exc:
            if exc.errno in _REFUSED:
                return None
            raise
        if made is None:
            return None
        self.live.add(weakref.ref(made, self.live.discard))
        # A map itself is never equal to bytes, and copies what is sliced off it.
        return memoryview(made)

    def _make(self, fd: int, size: int) -> mmap.mmap | None:
        if sys.version_info >= (3, 13):
            return _by_module(fd, size, trackfd=False)
        if len(self.holding) < _most_descriptors():
            try:
                made = _by_module(fd, size)
            except OSError as exc:
                if not _LINUX or exc.errno not in _NO_DESCRIPTORS:
                    raise
            else:
                self.holding.add(weakref.ref(made, self.holding.discard))
                return made
        try:
            return _over_anonymous(fd, size) if _LINUX else None
        except ImportError:
            return None  # there is no ctypes, or no descriptor left to import it with


maps = _Maps()
_map_limit: int | None = None
_c_mmap: Callable[..., int | None] | None = None
_never_unmapped: list[mmap.mmap] = []


def _most_maps() -> int:
    """Four fifths of the maps that a process may have; 65,530 on a default Linux.

    Its thread stacks, its libraries and its allocator need the rest.
    """
    global _map_limit
    if _map_limit is None:
        try:
            with open("/proc/sys/vm/max_map_count", encoding="ascii") as limit:
                _map_limit = int(limit.read()) * 4 // 5
        except (OSError, ValueError):
            _map_limit = 16_000
    return _map_limit


def _most_descriptors() -> int:
    """An eighth of the descriptors, which may change; half where there is no other way to map."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return _most_maps()
    return limit // (8 if _LINUX else 2)


def _by_module(fd: int, size: int, **options: Any) -> mmap.mmap:
    return mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE | _NO_RESERVE, **options)


def _over_anonymous(fd: int, size: int) -> mmap.mmap:
    # Imported on first use: it takes milliseconds, and few processes come to this.
    import ctypes

    global _c_mmap
    if _c_mmap is None:
        function = ctypes.CDLL(None, use_errno=True).mmap
        function.restype = ctypes.c_void_p
        function.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_ssize_t
        ]  # fmt: skip
        _c_mmap = function
    flags = mmap.MAP_PRIVATE | _NO_RESERVE
    made = mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS)
    first = ctypes.c_char.from_buffer(made)
    address = ctypes.addressof(first)
    del first  # it keeps the map from being closed
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if _c_mmap(address, size, access, flags | _FIXED, fd, 0) != address:
        # What is mapped there now is not certain, so it is not unmapped either.
        _never_unmapped.append(made)
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return made
