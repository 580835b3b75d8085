"""Flights: one fetch and one decoding of an object, whoever asks, from any thread and any loop.

A flight goes through at most four states::

    NEW ──► FETCHING ──► FETCHED ──► WORKING ──► DONE
      │     on the I/O               in a thread ▲
      │     loop                     that asked  │
      └──────────────────────────────────────────┘
        fetched and decoded at once in the thread that asked, where that needs no loop

Bytes are fetched on the I/O loop; the object is decoded by the first waiter that finds the bytes
there: a blocked thread decodes itself, a waiting loop decodes small things inline and sends the
rest to a worker thread. Every waiter is woken at each change of state and looks again. A flight
whose last waiter leaves is cancelled, unless it is wanted in the background too (`join_behind`);
one that failed is forgotten, so a later touch tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import queue
import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.io_thread import (
    LIVENESS_INTERVAL,
    IOThread,
    Outcome,
    Spawned,
    io_thread,
    linger_at_exit,
    loop_gone,
    on_io_thread,
)
from proxyplane._runtime.source import Source, as_raised
from proxyplane._runtime.workers import Workers
from proxyplane.cache import MISSING
from proxyplane.exceptions import IOThreadError, ProxyResolveCycleError


class State(enum.Enum):
    """How far a flight is."""

    NEW = enum.auto()
    FETCHING = enum.auto()
    FETCHED = enum.auto()
    WORKING = enum.auto()
    DONE = enum.auto()


class _Process:
    """The flights of this process."""

    def __init__(self) -> None:
        # For decoders and for factories, which may block for as long as they like: so neither
        # takes the threads of the other, nor those of the library's I/O.
        self.decoders = Workers(32, "proxyplane-decode")
        self.factories = Workers(256, "proxyplane-factory")
        self.helpers = Workers(1)
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        # Re-entrant: a finaliser that the collector runs inside of a critical section may touch
        # a proxy. The sections are short and never call out. The I/O thread does not wait for the
        # lock: such a finaliser may be waiting for the I/O thread.
        self.lock = threading.RLock()
        self.flights: dict[Hashable, Flight] = {}
        # Which flight a blocked thread waits for: the edges along which a cycle is found.
        self.waits: dict[int, Flight] = {}


_process = _Process()


class Flight:
    """One fetch and decoding; made by `join` only."""

    def __init__(self, key: Hashable, source: Source) -> None:
        self.key = key
        self.source = source
        self.state = State.NEW
        self.deliveries: dict[Callable[[Any], object], None] = {}
        self.interest = 0
        # Whether it goes on without a waiter; and the deliveries for which it does, for as long as
        # they want it. Those hold their proxies weakly.
        self.background = False
        self.behind: set[Callable[[Any], object]] = set()
        self.ended: Callable[[], object] | None = None
        self._wakers: dict[Callable[[], object], None] = {}
        # Whether the next step is on its way to some other thread. Until it starts there, a
        # blocked thread may still take it: the one on its way could need this very thread's loop.
        self._dispatched = False
        self._worker: int | None = None
        self._io: IOThread | None = None
        self._spawned: Spawned | None = None
        self._fetched: Any = MISSING
        self._outcome: Outcome[Any] | None = None

    # -- waiting ----------------------------------------------------------------------------

    def wait_blocking(self) -> Any:
        """Blocks this thread until the object is there; works itself where it can."""
        me = threading.get_ident()
        # A queue, because waking somebody twice does no harm; see `_wake`.
        woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        wake = partial(woken.put, None)
        outer = _process.waits.get(me)  # a signal handler or a finaliser may wait inside of a wait
        try:
            while True:
                self._work()
                if self.state is State.NEW:
                    self._launch()
                with _process.lock:
                    if self.state is State.DONE:
                        break
                    if self.state is State.FETCHED:  # it came this moment
                        continue
                    self._refuse_cycle(me)
                    self._wakers[wake] = None
                    _process.waits[me] = self
                self._sleep(woken)
                _process.waits.pop(me, None)  # awake, it may work on this very flight
        finally:
            self._wakers.pop(wake, None)
            if outer is None:
                _process.waits.pop(me, None)
            else:
                _process.waits[me] = outer
        if self._outcome is not None and isinstance(self._outcome.error, IOThreadError):
            linger_at_exit()
        return self._unwrap()

    def _sleep(self, woken: queue.SimpleQueue[None]) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                return woken.get(timeout=LIVENESS_INTERVAL)
            if self._io is not None and not self._io.is_alive:
                self._settle(Outcome(None, loop_gone()))

    async def wait(self) -> Any:
        """Waits, on the running loop and without stalling it, until the object is there."""
        loop = asyncio.get_running_loop()
        while True:
            if self.state is State.NEW:
                self._launch()
            with _process.lock:
                if self.state is State.DONE:
                    break
                ready = self.state is State.FETCHED and not self._dispatched
                if ready and (on_io_thread() or self.source.decoding_stalls(self._fetched)):
                    with contextlib.suppress(IOThreadError):  # no threads any more: do it here
                        self._dispatch(_process.decoders)
                        ready = False
                if not ready:
                    woken = loop.create_future()
                    wake = partial(_wake_loop, loop, woken)
                    self._wakers[wake] = None
            if ready:
                self._work()
                continue
            try:
                await woken
            finally:
                self._wakers.pop(wake, None)
        return self._unwrap()

    def start(self) -> None:
        """Lets the flight go on in the background, up to the decoded object."""
        with _process.lock:
            self.background = True
        self._launch()

    def leave(self) -> None:
        """Takes back the interest of one waiter; the last one cancels what nobody wants."""
        with _process.lock:
            self.interest -= 1
        self._let_go()

    def _let_go(self) -> None:
        """Cancels the flight if nobody wants it; sees to it that it goes on if only some do."""
        with _process.lock:
            if self.interest or self.state in (State.WORKING, State.DONE):
                return
            # What was fetched may be gone from where it was, if to fetch it was a claim on it.
            self.background |= self.source.claims and self.state is not State.NEW
            if self.background:
                self._go_on_behind()
                return
            dropped: object = self.deliveries  # which hold the proxies of those who left
            self.deliveries = {one: None for one in self.deliveries if one in self.behind}
            new = self.state is State.NEW
            spawned, io = self._spawned, self._io
            if self.behind:
                self._go_on_behind()
            else:
                # A step that is on its way to some thread finds that there is nothing to do.
                dropped = dropped, self._end()
            wanted = bool(self.behind)
        del dropped  # user code may run here
        if wanted:
            if new:
                self._launch()
        elif spawned is not None and io is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                io.loop.call_soon_threadsafe(spawned.cancel)

    # -- progress ---------------------------------------------------------------------------

    def _launch(self) -> None:
        """Sets a new flight going."""
        try:
            io = None if self.source.works_anywhere else io_thread()
            with _process.lock:
                if self.state is not State.NEW or self._dispatched:
                    return
                if io is None:
                    self._dispatch(_process.factories)
                    return
                try:
                    self._io = io
                    self.state = State.FETCHING
                    self._spawned = io.spawn(self.source.fetch(), self._on_fetched)
                except BaseException:
                    self.state = State.NEW
                    self._wake()  # another waiter goes on
                    raise
        except IOThreadError as error:
            self._settle(Outcome(None, error))

    def _dispatch(self, workers: Workers) -> None:
        """Has a worker do the next step."""
        try:
            self._dispatched = True
            workers.submit(partial(contextvars.copy_context().run, self._work))
        except BaseException:
            self._dispatched = False
            self._wake()  # another waiter goes on
            raise

    def _on_fetched(self, outcome: Outcome[Any]) -> None:
        """Runs on the I/O thread, which waits for nobody and drops nothing of the user's."""
        if outcome.error is None and _process.lock.acquire(blocking=False):
            try:
                self._land(outcome)
            finally:
                _process.lock.release()
        else:
            try:
                _process.helpers.submit(partial(self._land, outcome))
            except IOThreadError:  # the interpreter is exiting
                self._land(outcome)

    def _land(self, outcome: Outcome[Any]) -> None:
        with _process.lock:
            if self.state not in (State.NEW, State.FETCHING):
                return  # nobody wants it any more
            if outcome.error is None:
                self._fetched = outcome.result
                self.state = State.FETCHED
                self._wake()
                self._go_on_behind()
                return
        self._settle(outcome)

    def _go_on_behind(self) -> None:
        """Has a flight in the background decoded when nobody waits who would do that."""
        if (
            (self.background or self.behind)
            and not self.interest
            and self.state is State.FETCHED
            and not self._dispatched
        ):
            with contextlib.suppress(IOThreadError):  # exiting: nobody will ask
                self._dispatch(_process.decoders)

    def _work(self) -> None:
        """Does in this thread what a thread can do now, if there is anything."""
        outcome: Outcome[Any] | None = None
        me = threading.get_ident()
        try:
            with _process.lock:
                if self.state is State.NEW and self.source.works_here:
                    job = self.source.work
                elif self.state is State.FETCHED:
                    job = partial(self.source.decode, self._fetched)
                else:
                    return
                self._worker = me
                self.state = State.WORKING
            try:
                outcome = Outcome(job(), None)
            except BaseException as error:
                if not isinstance(error, Exception) and _in_main_thread():
                    raise
                outcome = Outcome(None, error)
            self._settle(outcome)
        except BaseException:
            # Ctrl-C, or a signal handler that raises: that says nothing about the object.
            if outcome is not None:
                self._settle(outcome)
            else:
                self._give_back(me)
            raise
        finally:
            del outcome  # an exception refers to this frame: break the cycle

    def _give_back(self, me: int) -> None:
        """Another waiter goes on."""
        with _process.lock:
            if self.state is State.WORKING and self._worker == me:
                self.state = State.NEW if self._fetched is MISSING else State.FETCHED
                self._worker = None
                self._dispatched = False
                self._wake()

    def _settle(self, outcome: Outcome[Any]) -> None:
        """Ends the flight. Interrupted, it can be called again and does the rest."""
        with _process.lock:
            if self.state is State.DONE:
                self._wake()
                return
            self._outcome = outcome
            kept: list[object] = []
            if outcome.error is None:
                # Before anyone can find the flight gone: nobody fetches a second time.
                for deliver in self.deliveries:
                    kept.append(deliver(outcome.result))
            dropped = kept, self._end()
            self._wake()
        del dropped  # user code may run here

    def _end(self) -> object:
        """The last state; what it returns is to be dropped outside of the lock."""
        dropped = self.deliveries, self._fetched
        self._spawned = None  # it refers to this flight, and so to the object
        if _process.flights.get(self.key) is self:
            del _process.flights[self.key]
        self.state = State.DONE
        ended, self.ended = self.ended, None
        if ended is not None:
            ended()
        self.deliveries = {}
        self.behind = set()
        self._fetched = MISSING
        return dropped

    def _wake(self) -> None:
        # Interrupted between any two lines, the next call wakes those that are left.
        while self._wakers:
            wake = next(iter(self._wakers))
            wake()
            self._wakers.pop(wake, None)

    # -- outcome ----------------------------------------------------------------------------

    def _unwrap(self) -> Any:
        outcome = self._outcome
        assert outcome is not None
        if outcome.error is None:
            return outcome.result
        try:
            raise as_raised(outcome.error, self.source)
        finally:
            del outcome, self  # an exception refers to this frame: break the cycle

    def _refuse_cycle(self, me: int) -> None:
        """Raises if a thread on whose work this flight depends is the calling one."""
        flight: Flight | None = self
        seen: set[Flight] = set()
        while flight is not None and flight._worker is not None and flight not in seen:
            if flight.state is State.DONE:
                return
            if flight._worker == me:
                raise ProxyResolveCycleError(
                    f"resolving {self.source} needs its own result",
                    hint="an object's decoder or factory touches a proxy of that same object",
                )
            seen.add(flight)
            flight = _process.waits.get(flight._worker)


def join(
    key: Hashable,
    source: Source,
    is_resolved: Callable[[], bool],
    deliver: Callable[[Any], object],
) -> Flight | None:
    """The flight of `key`, a new one if there is none; None if the object is there by now.

    Args:
        key: What is fetched; whoever asks for an equal key at one time shares one flight.
        source: Where from, if this is the first to ask.
        is_resolved: Whether the caller has the object; asked again under the lock, because a
            flight may have ended since the caller looked.
        deliver: Called with the object before any waiter returns; must not call out.
    """
    with _process.lock:
        if is_resolved():
            return None
        flight = _process.flights.get(key)
        new = flight is None
        if flight is None:
            flight = _process.flights[key] = Flight(key, source)
        flight.deliveries[deliver] = None
        flight.interest += 1
    if new:
        # Another flight may have ended, and left the object in the cache, since the caller looked
        # there; and not under the lock, because a cache has a lock of its own.
        target = source.cached()
        if target is not MISSING:
            flight._settle(Outcome(target, None))
    return flight


def in_flight(key: Hashable) -> bool:
    """Whether there is a flight of `key` now."""
    return key in _process.flights


def join_behind(
    key: Hashable,
    source: Source,
    is_wanted: Callable[[], bool],
    deliver: Callable[[Any], object],
    ended: Callable[[], object],
) -> bool | None:
    """Has an object fetched and decoded in the background, as long as nobody takes that back.

    Args:
        key: As for `join`.
        source: As for `join`.
        is_wanted: Asked under the lock; if not, nothing happens.
        deliver: As for `join`. If the object's proxy dies, give it to `leave_behind`. What it
            returns is dropped where user code may run.
        ended: Called once, when the flight that this starts has ended; must not call out.

    Returns:
        Whether this started a flight, or just joined one; None if it did neither.
    """
    with _process.lock:
        if not is_wanted():
            return None
        flight = _process.flights.get(key)
        new = flight is None
        if flight is None:
            flight = _process.flights[key] = Flight(key, source)
            flight.ended = ended
        flight.deliveries[deliver] = None
        flight.behind.add(deliver)
    if new:
        target = source.cached()
        if target is not MISSING:
            flight._settle(Outcome(target, None))
        else:
            flight._launch()
    return new


def leave_behind(key: Hashable, deliver: Callable[[Any], object]) -> None:
    """Takes back a `join_behind`; a flight that nobody else wants is cancelled."""
    with _process.lock:
        flight = _process.flights.get(key)
        if flight is None or deliver not in flight.behind:
            return
        flight.behind.remove(deliver)
        del flight.deliveries[deliver]
    flight._let_go()


def hand_over(deliver: Callable[[Any], object], target: Any) -> None:
    """Delivers what was there without a flight; not at the same time as a flight does."""
    with _process.lock:
        kept = deliver(target)
    del kept


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _wake_loop(loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # that loop was closed while it waited
        loop.call_soon_threadsafe(_set, woken)


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
