"""After a fork the child starts with nothing of the library's: no thread, no lock held, no client.

A lock that another thread held at the moment of the fork stays held for ever in the child, and a
socket would be shared with the parent. So whatever owns either registers itself here.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """An object with state that must not survive a fork."""

    def after_fork_in_child(self) -> None:
        """Replaces locks, drops threads, loops and clients; must not block or raise."""
        ...


# Strong references would keep every cache and connector alive; order of registration is kept by
# the insertion order of a dict, which a WeakSet does not promise.
_aware: dict[int, weakref.ref[ForkAware]] = {}


def on_fork(obj: ForkAware) -> None:
    """Calls ``obj.after_fork_in_child()`` in every forked child, for as long as `obj` lives."""
    token = id(obj)
    _aware[token] = weakref.ref(obj, lambda _: _aware.pop(token, None))


def keep_for_ever(*objects: object) -> None:
    """Sees to it that objects of the parent's are never destroyed in this process.

    Connections that are destroyed unregister themselves, and that from an epoll set which is still
    the parent's: its loop would never hear of them again. A reference from a module is not enough,
    because the interpreter clears modules when it ends.
    """
    import ctypes  # imported by `prepare_to_keep` before the fork

    for one in objects:
        _kept.append(one)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def prepare_to_keep() -> None:
    """Imports what `keep_for_ever` needs: a forked child should not import."""
    import ctypes  # noqa: F401


_kept: list[object] = []


def _reset() -> None:
    for ref in list(_aware.values()):
        obj = ref()
        if obj is not None:
            obj.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_reset)
