"""inotify, through `asyncinotify`, as directories are watched here: for what is removed from them.

One instance serves any number of directories. It reads events in bulk, and gives up an instance
with the last watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from asyncinotify import Event, Inotify, Watch

K = TypeVar("K")
K_contra = TypeVar("K_contra", contravariant=True)

# Events taken in one go before other work of the loop has its turn; and read in one call, counted
# in events with names of 255 bytes.
_BATCH = 256
_READ = 64


def load() -> Any:
    """The library, or the exception that says why there is none; for a worker thread.

    It looks for the C library by running other programs.
    """
    try:
        import asyncinotify
    except Exception as error:  # noqa: BLE001  # not installed, another system, no inotify in it
        return error
    return asyncinotify


class Listener(Protocol[K_contra]):
    """Who is told."""

    def on_removed(self, who: K_contra, name: str) -> None:
        """A file of this name was removed from a directory that `who` watches."""
        ...

    def on_lost(self, everyone: Sequence[K_contra]) -> None:
        """The kernel gave up events, or the watch, of all these, who must `unwatch`.

        The queue overflowed, or the directory was removed, moved or unmounted.
        """
        ...


class Removals(Generic[K]):
    """Tells what is removed from directories; on one loop only.

    Args:
        library: What `load` returned.
        listener: Is told.
    """

    def __init__(self, library: Any, listener: Listener[K]) -> None:
        self.loop = asyncio.get_running_loop()
        self._library = library
        self._listener = listener
        self._instance: Inotify | None = None
        self._by_number: dict[int, set[K]] = {}

    def watch(self, folder: str, who: K) -> Watch:
        """Watches a directory. Two paths to one directory share a watch.

        Raises:
            ImportError: inotify is not usable here.
            OSError: The directory cannot be watched, or a limit is reached.
        """
        if isinstance(self._library, Exception):
            raise ImportError(f"inotify is not usable: {self._library}") from self._library
        if self._instance is None:
            self._instance = self._library.Inotify(cache_size=_READ, sync_timeout=0)
            # At exit the library would close it under the running loop, and libuv, which is about
            # to wait for it, aborts the process then. The kernel closes it as well.
            self._instance._finalizer.atexit = False
            os.set_blocking(self._instance.fd, False)  # its flag for this, in 4.4, is another one
            self.loop.add_reader(self._instance.fd, self._read)
        mask = self._library.Mask
        watch: Watch = self._instance.add_watch(
            folder, mask.DELETE | mask.MOVED_FROM | mask.DELETE_SELF | mask.MOVE_SELF | mask.ONLYDIR
        )
        self._by_number.setdefault(watch.wd, set()).add(who)
        return watch

    def unwatch(self, watch: Watch, who: K) -> None:
        """Ends what `watch` began, whether or not the kernel has ended it."""
        sharing = self._by_number.get(watch.wd, set())
        sharing.discard(who)
        if not sharing and self._by_number.pop(watch.wd, None) is not None:
            assert self._instance is not None
            with contextlib.suppress(OSError, ValueError):  # it ended with its directory
                self._instance.rm_watch(watch)

    def close(self) -> None:
        """Gives up the instance; the next `watch` makes another."""
        if self._instance is not None:
            with contextlib.suppress(ValueError):  # at exit the library closes it by itself
                self.loop.remove_reader(self._instance.fd)
            self._instance.close()
            self._instance = None

    def abandon(self) -> None:
        """In a forked child: closes the copy of the instance, which is the parent's."""
        if self._instance is not None:
            with contextlib.suppress(OSError):
                self._instance.close()

    def _read(self) -> None:
        for _ in range(_BATCH):
            event = self._next()
            if event is None:
                return
            self._handle(event)
        self.loop.call_soon(self._read)  # events that were read do not make the loop call again

    def _next(self) -> Event | None:
        """The next event; None if there is none now, or never will be."""
        instance = self._instance
        if instance is None or _is_closed(instance):
            return None
        try:
            event: Event | None = instance.sync_get()
        except (OSError, ValueError):
            if not _is_closed(instance):  # by another thread, this moment
                raise
            return None
        return event

    def _handle(self, event: Event) -> None:
        mask = self._library.Mask
        if event.mask & mask.Q_OVERFLOW:
            # Also the end of a watch may have been lost.
            self._listener.on_lost([who for sharing in self._by_number.values() for who in sharing])
        elif event.watch is not None:
            sharing = self._by_number.get(event.watch.wd, set())
            if event.name is not None:
                for who in sharing:
                    self._listener.on_removed(who, str(event.name))
            elif event.mask & (mask.IGNORED | mask.DELETE_SELF | mask.MOVE_SELF | mask.UNMOUNT):
                self._listener.on_lost(list(sharing))


def _is_closed(instance: Inotify) -> bool:
    """Whether the library closed it: at exit it does so by itself, while the loop still runs."""
    try:
        return instance.fd < 0
    except ValueError:
        return True
