"""Proxies that arrive resolve in the background, before anybody touches them.

::

    arrived ──grace──► queued ──window──► flying ──► resolved
       │                 │                  │
       └─────────────────┴──────────────────┴──► touched, awaited, pickled onwards, dead: no more
                                                 is done for it, and a flight that nobody else
                                                 wants is cancelled

A proxy that was unpickled is noted down, and one thread of the library's, the starter, waits until
a batch has been quiet for a moment: who only passes proxies on pays for a note each and fetches
nothing. What is left starts in order, as flights on the I/O loop, as many at a time as the window
allows. Whoever touches or awaits a proxy does not ask the window.

Nothing here holds a proxy. What happens to one (it arrives, dies, is passed on) is told by plain
appends, at any time and from finalisers too; the rest is done by the starter alone, without a lock.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.io_thread import Outcome, io_thread
from proxyplane._runtime.source import decoding
from proxyplane._runtime.window import Interest, Window
from proxyplane.config import default_eager, eager_window
from proxyplane.exceptions import IOThreadError

logger = logging.getLogger("proxyplane")

# How long arrivals have to be quiet before they start, and how long that is waited for, in seconds.
GRACE = 0.001
GRACE_LIMIT = 0.02


def _over(interest: Interest, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
    """The proxy is dead, or was passed on. May run anywhere, as finalisers do."""
    interest.source = None
    # Read after that was written: see `Window._start`.
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
        self.window: Window | None = None
        self._activity: tuple[int, int] | None = None
        self._since = self._changed = 0.0

    def begin(self) -> bool:
        """Whether proxies that arrive in this process are to start."""
        if self.on is None:
            wanted = default_eager()
            if not wanted or self.run_starter():
                self.on = wanted
        return bool(self.on)

    def run_starter(self) -> bool:
        """Starts the starter if it does not run yet; does not wait for it, as a `Thread` would."""
        try:
            self._unstarted.pop()
        except IndexError:
            return True
        try:
            self.window = Window(*eager_window(), self.notices.put)
            _thread.start_new_thread(self._main, (self.window,))
            return True
        except RuntimeError:  # the interpreter is exiting, or there are too many threads
            self._unstarted.append(None)
            return False
        except BaseException:
            self._unstarted.append(None)
            raise

    # -- the starter ----------------------------------------------------------------------------

    def _main(self, window: Window) -> None:
        threading.current_thread().name = "proxyplane-eager"
        while True:
            try:
                self._read_notices()
                if self.alert and self._is_quiet():
                    self.alert = False  # first: who comes now and still sees it set is in the batch
                    for _ in range(len(self.arrived)):
                        self.begin_with(self.arrived.popleft())
                window.admit()
            except Exception:  # a thread that ended here would end this for the whole process
                logger.exception("a proxy could not be resolved in the background")

    def _read_notices(self) -> None:
        with contextlib.suppress(queue.Empty):
            notice = self.notices.get(timeout=GRACE if self.alert else None)
            while True:
                if notice is not None:
                    notice()
                notice = self.notices.get_nowait()

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

    def begin_with(self, interest: Interest) -> None:
        """Has a proxy resolve when it is its turn."""
        source = interest.source
        if getattr(source, "deferred", False):
            self._wait(interest, source)
        elif source is not None:
            self._enqueue(interest)

    def _enqueue(self, interest: Interest) -> None:
        assert self.window is not None
        self.window.add(interest)

    # -- objects that come later ----------------------------------------------------------------

    def _wait(self, interest: Interest, source: Any) -> None:
        """Waits for a future's object, which takes no place: its producer may need one."""

        def done(outcome: Outcome[None]) -> None:  # on the I/O thread
            self.notices.put(partial(self._waited, interest, outcome.error is None))

        with contextlib.suppress(IOThreadError):  # the interpreter is exiting
            io = io_thread()
            spawned = io.spawn(source.arrival(), done)
            # First this, then a look at the source: as in `Window._start`.
            interest.flying = partial(io.loop.call_soon_threadsafe, spawned.cancel)
            if interest.source is None:
                interest.leave()

    def _waited(self, interest: Interest, there: bool) -> None:
        interest.flying = None
        if there and interest.source is not None:
            self._enqueue(interest)


_process = _Process()


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
        _process.notices.put(partial(_process.begin_with, interest))
    return interest


def pass_on(interest: Interest) -> None:
    """Notes that a proxy was pickled, to be used elsewhere."""
    if not interest.asked:
        _process.passed_on += 1
        _over(interest)
