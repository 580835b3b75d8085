"""Tells the waiters of a directory when to look again: one inotify instance for the process.

What is watched is the sub-directory of the registrations. A set publishes the object and then
removes the registration, an evict removes it too, and so that one kind of event says all there is
to say, when it is true. The directory of the objects would tell every process that waits for one of
them about each object that anybody puts there.

inotify only speeds up a look. Its queue overflows, a watch ends with its directory, a setter may be
killed between its two calls: so every directory with waiters is looked through once in a while
(`LOOK_SECONDS`), and at once when the kernel says that events or the watch were lost. Where a
directory cannot be watched, it is looked through more often, which is the same with other delays.

All of this runs on the library's I/O loop. Waiters are on any loop, and ask for attention by
`Place.attend`, which does not wait: they are woken when they are watched for, and look again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import logging
import os
import weakref
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.io_thread import (
    IOThread,
    Outcome,
    io_thread,
    linger_at_exit,
    loop_gone,
    on_io_thread,
)
from proxyplane._runtime.workers import run_in_worker
from proxyplane.connectors._waiters import Waiters
from proxyplane.connectors.file.directory import PENDING, file_system, is_remote
from proxyplane.connectors.file.inotify import Removals, load
from proxyplane.exceptions import IOThreadError

if TYPE_CHECKING:
    from asyncinotify import Watch

T = TypeVar("T")
P = ParamSpec("P")
logger = logging.getLogger("proxyplane")

LOOK_SECONDS = 3.0
"""How often a directory that is watched is looked through, in seconds; less often if that takes
more than a two-hundredth of the time."""

POLL_SECONDS = 0.001, 1.0
"""The first and the longest delay between two looks where nothing can be watched, in seconds."""

_WATCHED_SHARE = 1 / 200
_POLLED_SHARE = 1 / 20


class Place:
    """A directory of objects, as all who wait in this process see it.

    Attributes:
        path: The directory.
        waiters: Who waits for which file name.
        watched: Device and inode of the folder of registrations that is watched; None if none is.
        polled: Whether it is looked through often instead.
        remote: Whether it is known to be on a network or in user space, where the kernel does not
            see what others do.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.remote = False
        self.folder = os.path.join(path, PENDING)
        self.waiters = Waiters()
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        """Nobody waits here yet."""
        self.watched: tuple[int, int] | None = None
        self.polled = False
        self._asked = False

    def attend(self, *, new: bool) -> None:
        """Sees to it that whoever has joined `waiters` is woken when there is something to see.

        If it is not so already when this returns, then everybody is woken when it is.

        Args:
            new: Whether the waiter that asks has only just come.

        Raises:
            IOThreadError: The interpreter is exiting.
        """
        if self._asked:
            return
        if self.polled:
            if not new:
                return  # who has just come is looked after at once, who waits for long is not
        elif self.watched is not None and self.watched == _identity(self.folder):
            return
        self._asked = True
        try:
            io = io_thread()
            if io.ending:
                raise loop_gone()
            _spawn(io, _attend(self), self._attended)
        except BaseException:
            self._asked = False
            if not on_io_thread():
                linger_at_exit()
            raise

    def _attended(self, outcome: Outcome[bool]) -> None:
        self._asked = False
        if outcome.error is not None and not isinstance(outcome.error, IOThreadError):
            logger.error("cannot watch %s", self.folder, exc_info=outcome.error)
        if outcome.error is not None or outcome.result:
            self.waiters.wake_all()


_places: weakref.WeakValueDictionary[str, Place] = weakref.WeakValueDictionary()


def place_of(path: str) -> Place:
    """The place for a directory. Should two threads make one each, both are served."""
    place = _places.get(path)
    if place is None:
        place = _places[path] = Place(path)
    return place


def wake_here(path: str, name: str) -> None:
    """Wakes who waits in this process for a file of a directory, with no need of the kernel."""
    place = _places.get(path)
    if place is not None:
        place.waiters.wake((name,))


class _Keeper:
    """What is known of a place while somebody waits there; on the I/O loop only."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.watch: Watch | None = None
        self.delay = POLL_SECONDS[0]
        self.retry_at = 0.0
        self.look_now = asyncio.Event()


class _Watcher:
    """The inotify instance of this process and what it watches; on the I/O loop only."""

    def __init__(self, library: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.keepers: dict[Place, _Keeper] = {}
        self.removals: Removals[_Keeper] = Removals(library, self)
        self._told: set[str] = set()

    # -- keeping ------------------------------------------------------------------------------

    async def attend(self, place: Place) -> bool:
        """Begins to keep the place; returns whether all who wait there must look again."""
        if place not in self.keepers and not place.remote:
            place.remote = await _in_worker(_is_remote, place.path)
        keeper = self.keepers.get(place)
        if keeper is None:
            keeper = self.keepers[place] = _Keeper(place)
            _spawn(io_thread(), self._keep(keeper), _report)
        self._arm(keeper)
        if place.polled:
            keeper.delay = POLL_SECONDS[0]
            keeper.look_now.set()
        return not place.polled

    async def _keep(self, keeper: _Keeper) -> None:
        place = keeper.place
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(keeper.delay):
                        await keeper.look_now.wait()
                keeper.look_now.clear()
                if not place.waiters.names():
                    place.watched, place.polled = None, False
                    if not place.waiters.names():  # nobody relied on it at the last moment
                        return
                self._arm(keeper)
                began = monotonic()
                # Who joins after this relies on the watch, who joined before is looked after.
                names = place.waiters.names()
                place.waiters.wake(await _in_worker(_changed, place.path, names))
                self._set_delay(keeper, monotonic() - began)
        finally:
            self._drop(keeper)

    @staticmethod
    def _set_delay(keeper: _Keeper, took: float) -> None:
        if keeper.watch is not None:
            keeper.delay = max(LOOK_SECONDS, took / _WATCHED_SHARE)
        else:
            keeper.delay = max(min(2 * keeper.delay, POLL_SECONDS[1]), took / _POLLED_SHARE)

    def _drop(self, keeper: _Keeper) -> None:
        place = keeper.place
        place.watched, place.polled = None, False
        self.keepers.pop(place, None)
        self._unwatch(keeper)
        if not self.keepers:
            self.removals.close()
        place.waiters.wake_all()  # nobody, unless the loop ends

    # -- watching -----------------------------------------------------------------------------

    def _arm(self, keeper: _Keeper) -> None:
        """Watches what is at the path now, or has it polled."""
        place = keeper.place
        why = "its file system is remote"
        level = logging.INFO
        if not place.remote:
            here = _identity(place.folder)
            if keeper.watch is not None and place.watched == here:
                return
            if place.polled and monotonic() < keeper.retry_at:
                return
            self._unwatch(keeper)
            try:
                keeper.watch = self.removals.watch(place.folder, keeper)
                # What was there before the call: if it was replaced meanwhile, that is noticed.
                place.watched, place.polled = here, False
                keeper.delay = LOOK_SECONDS
                return
            except FileNotFoundError:
                why = ""  # the waiters find out for themselves
            except ImportError as error:
                why = str(error)
            except (OSError, ValueError) as error:  # the latter at exit: it is closed
                why, level = _why_not(error), logging.WARNING
        if not place.polled:
            keeper.delay = POLL_SECONDS[0]
        keeper.retry_at = monotonic() + LOOK_SECONDS
        place.polled = True
        if why and place.path not in self._told:
            self._told.add(place.path)
            logger.log(
                level, "%s cannot be watched (%s): who waits there is served by polling, "
                "at most every %g s", place.path, why, POLL_SECONDS[1],
            )  # fmt: skip

    def _unwatch(self, keeper: _Keeper) -> None:
        watch, keeper.watch, keeper.place.watched = keeper.watch, None, None
        if watch is not None:
            self.removals.unwatch(watch, keeper)

    def on_removed(self, who: _Keeper, name: str) -> None:
        """Its object was set, or its key evicted."""
        who.place.waiters.wake((name,))

    def on_lost(self, everyone: Sequence[_Keeper]) -> None:
        """Watches and looks again."""
        for keeper in everyone:
            self._unwatch(keeper)
            keeper.look_now.set()


class _Process:
    """The watcher of this process, if there is one."""

    def __init__(self) -> None:
        self.watcher: _Watcher | None = None
        self._abandoned: list[_Watcher] = []
        on_fork(self)

    def after_fork_in_child(self) -> None:
        if self.watcher is not None:
            self.watcher.removals.abandon()
            self._abandoned.append(self.watcher)  # its events and tasks are of the parent's loop
            self.watcher = None


_process = _Process()


def _spawn(io: IOThread, coro: Coroutine[Any, Any, T], done: Callable[[Outcome[T]], None]) -> None:
    # Not in the context of whoever happens to be the first: it outlives the call.
    contextvars.Context().run(io.spawn, coro, done)


async def _attend(place: Place) -> bool:
    loop = asyncio.get_running_loop()
    watcher = _process.watcher
    if watcher is None or watcher.loop is not loop:
        library = await _in_worker(load)
        watcher = _process.watcher  # another one may have been quicker
        if watcher is None or watcher.loop is not loop:
            watcher = _process.watcher = _Watcher(library)
    return await watcher.attend(place)


async def _in_worker(func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await run_in_worker(func, *args, **kwargs)
    except IOThreadError:  # no thread can be started: late is better than never
        return func(*args, **kwargs)


def _report(outcome: Outcome[None]) -> None:
    if outcome.error is not None and not isinstance(outcome.error, IOThreadError):
        logger.error("the watch of a directory ended", exc_info=outcome.error)


def _is_remote(path: str) -> bool:
    try:
        return is_remote(file_system(os.stat(path).st_dev))
    except OSError:
        return False


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _changed(path: str, names: list[str]) -> list[str]:
    """The names whose object is there, or whose registration is not."""
    return [
        name
        for name in names
        if os.path.lexists(f"{path}/{name}") or not os.path.lexists(f"{path}/{PENDING}/{name}")
    ]


def _why_not(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error)
    if error.errno == errno.EMFILE:
        return f"{reason}; see fs.inotify.max_user_instances and ulimit -n"
    if error.errno == errno.ENOSPC:
        return f"{reason}; see fs.inotify.max_user_watches"
    return reason
