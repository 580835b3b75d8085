"""Memory of the endpoint's process, mapped, not received; see `proxyplane.endpoint.memory`."""

from __future__ import annotations

import os
import sys

from proxyplane.abc import Buffer
from proxyplane.connectors._maps import maps

__all__ = ["POSSIBLE", "map_memory"]

POSSIBLE = sys.platform == "linux"


def map_memory(place: str) -> Buffer | None:
    """A private, writable map of an object.

    Args:
        place: What the endpoint said: its process, a descriptor there, the number of the inode,
            and the size.

    Returns:
        None if it cannot be had: another PID namespace or user, no more maps; or it was evicted,
        and the descriptor is perhaps that of another object.
    """
    try:
        process, file, inode, size = map(int, place.split(" "))
        opened = os.open(f"/proc/{process}/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        found = os.fstat(opened)
        if (found.st_ino, found.st_size) != (inode, size):
            return None
        return maps.map(opened, size)
    except OSError:
        return None
    finally:
        os.close(opened)
