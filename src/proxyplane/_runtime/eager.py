"""Proxies that arrive resolve in the background, before anybody touches them.

::

    arrived ──grace──► queued ──window──► flying ──► resolved
       │                 │                  │
       └─────────────────┴──────────────────┴──► touched, awaited, pickled onwards, dead: no more
                                                 is done for it, and a flight that nobody else
                                                 wants is cancelled

A proxy that was unpickled is noted down, and one thread of the library's, the starter, waits until
a batch has been quiet for a moment: who only passes proxies on pays for a note each and fetches
nothing. What is left then starts in order, as flights on the I/O loop, as many at a time as the
window allows. Whoever touches or awaits a proxy does not ask the window.

Nothing here holds a proxy. What happens to one (it arrives, dies, is passed on) is told by plain
appends, at any time and from finalisers too; everything else is done by the starter alone, so
there is no lock. It never drops a user's object, and the I/O loop never waits for it.
"""

from __future__ import annotations

import _thread
import contextlib
import queue
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from proxyplane._runtime import flights
from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.io_thread import Outcome, io_thread
from proxyplane.config import default_eager, eager_window
from proxyplane.exceptions import IOThreadError

# How long arrivals have to be quiet before they start, and how long that is waited for, in seconds.
GRACE = 0.001
GRACE_LIMIT = 0.02
# What an object of unknown size counts for in the window, in bytes.
UNKNOWN_SIZE = 1 << 20
# Interests in the queue, at least, before it is looked through for those that are over.
PURGE_AT = 1000


class Interest(weakref.ref[Any]):
    """That a proxy is to be resolved in the background; does not keep it alive.

    Attributes:
        source: Where its object comes from; None when there is nothing to start any more.
        flying: Takes back what was started; None when nothing is.
        asked: Whether somebody asked for it, so that passing it on changes nothing.
    """

    __slots__ = ("asked", "flying", "source")

    source: Any
    flying: Callable[[], object] | None
    asked: bool

    # Those of a weak reference are its referent's, and could fetch it.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def is_wanted(self) -> bool:
        return self.source is not None

    def deliver(self, target: Any) -> Any:
        """Resolves the proxy, and returns it so that it is dropped where that does no harm."""
        self.source = self.flying = None
        proxy = self()
        if proxy is not None:
            proxy.__proxy_accept__(target)
        return proxy

    def leave(self) -> None:
        """Takes back what was started."""
        flying, self.flying = self.flying, None
        if flying is not None:
            with contextlib.suppress(RuntimeError):  # the I/O loop is closed
                flying()


def _over(interest: Interest, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
    """The proxy is dead, or was passed on. May run anywhere, as finalisers do."""
    interest.source = None
    # Read after that was written: see `_Process._start`.
    if interest.flying is not None and not is_finalizing():
        _process.notices.put(interest.leave)


class _Process:
    """What is under way in this process."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        """What the parent was about to resolve is the parent's affair."""
        self.on: bool | None = None  # whether arriving proxies start; None until the first one
        self.alert = False  # whether the starter looks at what arrives
        self.arrived: deque[Interest] = deque()
        self.passed_on = 0
        # What the starter is to do; its `put` may be called by finalisers.
        self.notices: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._unstarted = deque([None])
        # The rest belongs to the starter.
        self._queue: deque[Interest] = deque()
        self._purge_at = PURGE_AT
        self._flights = self._bytes = 0
        self._activity: tuple[int, int] | None = None
        self._since = self._changed = 0.0

    def begin(self) -> bool:
        """Whether proxies that arrive in this process are to start."""
        if self.on is None and default_eager() and self.run_starter():
            self.on = True
        elif self.on is None:
            self.on = False
        return self.on

    def run_starter(self) -> bool:
        """Starts the starter if it does not run yet; does not wait for it, as a `Thread` would."""
        try:
            self._unstarted.pop()
        except IndexError:
            return True
        try:
            limits = eager_window()
            _thread.start_new_thread(self._main, limits)
        except BaseException as error:
            self._unstarted.append(None)
            if isinstance(error, RuntimeError):  # the interpreter is exiting
                return False
            raise
        return True

    # -- the starter ----------------------------------------------------------------------------

    def _main(self, max_flights: int, max_bytes: int) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                notice = self.notices.get(timeout=GRACE if self.alert else None)
                while True:
                    if notice is not None:
                        notice()
                    notice = self.notices.get_nowait()
            if self.alert and self._is_quiet():
                self.alert = False  # first: who comes now and still sees it set is in the batch
                for _ in range(len(self.arrived)):
                    self.enqueue(self.arrived.popleft())
            self._admit(max_flights, max_bytes)

    def _is_quiet(self) -> bool:
        now = time.monotonic()
        activity = len(self.arrived), self.passed_on
        if self._activity is None:
            self._since = now
        if activity != self._activity and now - self._since < GRACE_LIMIT:
            self._activity, self._changed = activity, now
        if now - self._changed < GRACE:
            return False
        self._activity = None
        return True

    def enqueue(self, interest: Interest) -> None:
        """Has an interest start when it is its turn."""
        if interest.source is None:
            return
        if getattr(interest.source, "deferred", False):
            self._wait(interest)
            return
        self._queue.append(interest)
        if len(self._queue) > self._purge_at:
            self._queue = deque(filter(Interest.is_wanted, self._queue))
            self._purge_at = 2 * len(self._queue) + PURGE_AT

    def _admit(self, max_flights: int, max_bytes: int) -> None:
        if self._queue and _exiting():
            self._queue.clear()
        while self._queue:
            interest = self._queue[0]
            source = interest.source
            if source is not None:
                size = source.size or UNKNOWN_SIZE
                # One that is larger than the window goes alone.
                full = self._flights >= max_flights or self._bytes + size > max_bytes
                if full and self._flights:
                    return
                self._start(interest, source, size)
            self._queue.popleft()

    def _start(self, interest: Interest, source: Any, size: int) -> None:
        key = source.flight_key
        # Set before `is_wanted` is asked, as `_over` clears the source before it looks at this: so
        # one of the two sees the other.
        interest.flying = partial(flights.leave_behind, key, interest.deliver)
        ended = partial(self.notices.put, partial(self._release, size))
        new = flights.join_behind(key, source, interest.is_wanted, interest.deliver, ended)
        if new:
            self._flights += 1
            self._bytes += size
        elif new is None:
            interest.flying = None

    def _release(self, size: int) -> None:
        self._flights -= 1
        self._bytes -= size

    # -- objects that come later ----------------------------------------------------------------

    def _wait(self, interest: Interest) -> None:
        """Waits for a future's object, which takes no place: its producer may need one."""

        def done(outcome: Outcome[None]) -> None:  # on the I/O thread
            self.notices.put(partial(self._waited, interest, outcome.error is None))

        source = interest.source
        with contextlib.suppress(IOThreadError):  # the interpreter is exiting
            io = io_thread()
            spawned = io.spawn(source.arrival(), done)
            interest.flying = partial(io.loop.call_soon_threadsafe, spawned.cancel)
            if interest.source is None:
                interest.leave()

    def _waited(self, interest: Interest, there: bool) -> None:
        interest.flying = None
        if there and interest.source is not None:
            self._queue.append(interest)


_process = _Process()


def _exiting() -> bool:
    try:
        return io_thread().ending
    except IOThreadError:
        return True


class _Decoding(threading.local):
    """Entered while a stored object is decoded in this thread: proxies inside of it stay lazy."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *exc_info: object) -> None:
        self.depth -= 1


decoding = _Decoding()


def arrive(proxy: Any, source: Any) -> Interest | None:
    """Notes that an unresolved proxy has come to this process; it starts soon.

    Raises:
        ConfigError: An environment variable is wrong.
    """
    process = _process
    if not (process.on or process.begin()) or decoding.depth:
        return None
    interest = Interest(proxy, _over)
    interest.source = source
    interest.flying = None
    interest.asked = False
    process.arrived.append(interest)
    if not process.alert:
        process.alert = True
        process.notices.put(None)
    return interest


def ask(proxy: Any, source: Any) -> Interest:
    """Has a proxy start as soon as the window has a place, because somebody asked for it."""
    interest = Interest(proxy, _over)
    interest.source = source
    interest.flying = None
    interest.asked = True
    if _process.run_starter():
        _process.notices.put(partial(_process.enqueue, interest))
    return interest


def pass_on(interest: Interest) -> None:
    """Notes that a proxy was pickled, to be used elsewhere."""
    if not interest.asked:
        _process.passed_on += 1
        _over(interest)
