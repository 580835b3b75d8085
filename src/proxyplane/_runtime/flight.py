"""One fetch and one decoding of an object, whoever asks, from any thread and any loop.

A flight goes through at most four states::

    NEW ──► FETCHING ──► FETCHED ──► WORKING ──► DONE
      │     on the I/O               in a thread ▲
      │     loop                     that asked  │
      └──────────────────────────────────────────┘
        fetched and decoded at once in the thread that asked, where that needs no loop

Bytes are fetched on the I/O loop; the object is decoded by the first waiter that finds the bytes
there: a blocked thread decodes itself, a waiting loop decodes small things inline and sends the
rest to a worker thread. Every waiter is woken at each change of state and looks again. A flight
whose last waiter leaves is cancelled, unless it is wanted in the background too
(`flights.join_behind`); one that failed is forgotten, so a later touch tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import queue
import threading
import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, cast

from proxyplane._runtime.cycles import inside, refuse_cycle
from proxyplane._runtime.flight_table import process
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
from proxyplane.exceptions import IOThreadError


class State(enum.Enum):
    """How far a flight is."""

    NEW = enum.auto()
    FETCHING = enum.auto()
    FETCHED = enum.auto()
    WORKING = enum.auto()
    DONE = enum.auto()


class Flight:
    """One fetch and decoding; made by `flights` only."""

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
        # What is waited for inside of its fetch or its work, by the wakers of those who wait.
        self.awaits: dict[object, Flight] = {}
        # Whether the next step is on its way to some other thread. Until it starts there, a
        # blocked thread may still take it: the one on its way could need this very thread's loop.
        self._dispatched = False
        self.worker: int | None = None  # the thread that is at it now
        self._io: IOThread | None = None
        self._spawned: Spawned | None = None
        self._fetched: Any = MISSING
        self._outcome: Outcome[Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.state is State.DONE

    # -- waiting ----------------------------------------------------------------------------

    def wait_blocking(self) -> Any:
        """Blocks this thread until the object is there; works itself where it can."""
        me = threading.get_ident()
        # A queue, because waking somebody twice does no harm; see `_wake`.
        woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        wake = partial(woken.put, None)
        caller, edges = _caller()
        outer = process.waits.get(me)  # a signal handler or a finaliser may wait inside of a wait
        try:
            edges[wake] = self  # also while this thread works on it
            while True:
                self._work()
                if self.state is State.NEW:
                    self.launch()
                with process.lock:
                    if self.state is State.DONE:
                        break
                    if self.state is State.FETCHED:  # it came this moment
                        continue
                    refuse_cycle(self, caller, me, process.waits)
                    self._wakers[wake] = None
                    process.waits[me] = self
                self._sleep(woken)
                process.waits.pop(me, None)  # awake, it may work on this very flight
        finally:
            self._wakers.pop(wake, None)
            edges.pop(wake, None)
            if outer is None:
                process.waits.pop(me, None)
            else:
                process.waits[me] = outer
        if self._outcome is not None and isinstance(self._outcome.error, IOThreadError):
            linger_at_exit()
        return self._unwrap()

    def _sleep(self, woken: queue.SimpleQueue[None]) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                return woken.get(timeout=LIVENESS_INTERVAL)
            if self._io is not None and not self._io.is_alive:
                self.settle(Outcome(None, loop_gone()))

    async def wait(self) -> Any:
        """Waits, on the running loop and without stalling it, until the object is there."""
        caller, edges = _caller()
        this_wait = object()
        try:
            edges[this_wait] = self
            await self._wait(caller)
        finally:
            edges.pop(this_wait, None)
        return self._unwrap()

    async def _wait(self, caller: Flight | None) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self.state is State.NEW:
                self.launch()
            with process.lock:
                if self.state is State.DONE:
                    return
                ready = self.state is State.FETCHED and not self._dispatched
                if ready and (on_io_thread() or self.source.decoding_stalls(self._fetched)):
                    with contextlib.suppress(IOThreadError):  # no threads any more: do it here
                        self._dispatch(process.decoders)
                        ready = False
                if not ready:
                    refuse_cycle(self, caller, None, process.waits)
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

    def start(self) -> None:
        """Lets the flight go on in the background, up to the decoded object."""
        with process.lock:
            self.background = True
        self.launch()

    def leave(self) -> None:
        """Takes back the interest of one waiter; the last one cancels what nobody wants."""
        with process.lock:
            self.interest -= 1
        self.let_go()

    def let_go(self) -> None:
        """Cancels the flight if nobody wants it; sees to it that it goes on if only some do."""
        with process.lock:
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
                self.launch()
        elif spawned is not None and io is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                io.loop.call_soon_threadsafe(spawned.cancel)

    # -- progress ---------------------------------------------------------------------------

    def launch(self) -> None:
        """Sets a new flight going."""
        try:
            io = None if self.source.works_anywhere else io_thread()
            with process.lock:
                if self.state is not State.NEW or self._dispatched:
                    return
                if io is None:
                    self._dispatch(process.factories)
                    return
                outer = inside.get()
                try:
                    self._io = io
                    self.state = State.FETCHING
                    inside.set(weakref.ref(self))  # the task has a copy of this context
                    self._spawned = io.spawn(self.source.fetch(), self._on_fetched)
                except BaseException:
                    self.state = State.NEW
                    self._wake()  # another waiter goes on
                    raise
                finally:
                    inside.set(outer)
        except IOThreadError as error:
            self.settle(Outcome(None, error))

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
        if outcome.error is None and process.lock.acquire(blocking=False):
            try:
                self._land(outcome)
            finally:
                process.lock.release()
        else:
            try:
                process.helpers.submit(partial(self._land, outcome))
            except IOThreadError:  # the interpreter is exiting
                self._land(outcome)

    def _land(self, outcome: Outcome[Any]) -> None:
        with process.lock:
            if self.state not in (State.NEW, State.FETCHING):
                return  # nobody wants it any more
            if outcome.error is None:
                self._fetched = outcome.result
                self.state = State.FETCHED
                self._wake()
                self._go_on_behind()
                return
        self.settle(outcome)

    def _go_on_behind(self) -> None:
        """Has a flight in the background decoded when nobody waits who would do that."""
        if (
            (self.background or self.behind)
            and not self.interest
            and self.state is State.FETCHED
            and not self._dispatched
        ):
            with contextlib.suppress(IOThreadError):  # exiting: nobody will ask
                self._dispatch(process.decoders)

    def _work(self) -> None:
        """Does in this thread what a thread can do now, if there is anything."""
        outcome: Outcome[Any] | None = None
        me = threading.get_ident()
        try:
            with process.lock:
                if self.state is State.NEW and self.source.works_here:
                    job = self.source.work
                elif self.state is State.FETCHED:
                    job = partial(self.source.decode, self._fetched)
                else:
                    return
                self.worker = me
                self.state = State.WORKING
            outer = inside.get()
            try:
                inside.set(weakref.ref(self))
                outcome = Outcome(job(), None)
            except BaseException as error:
                if not isinstance(error, Exception) and _in_main_thread():
                    raise
                outcome = Outcome(None, error)
            finally:
                inside.set(outer)
            self.settle(outcome)
        except BaseException:
            # Ctrl-C, or a signal handler that raises: that says nothing about the object.
            if outcome is not None:
                self.settle(outcome)
            else:
                self._give_back(me)
            raise
        finally:
            del outcome  # an exception refers to this frame: break the cycle

    def _give_back(self, me: int) -> None:
        """Another waiter goes on."""
        with process.lock:
            if self.state is State.WORKING and self.worker == me:
                self.state = State.NEW if self._fetched is MISSING else State.FETCHED
                self.worker = None
                self._dispatched = False
                self.awaits.clear()
                self._wake()

    def settle(self, outcome: Outcome[Any]) -> None:
        """Ends the flight. Interrupted, it can be called again and does the rest."""
        with process.lock:
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
        if process.flights.get(self.key) is self:
            del process.flights[self.key]
        self.state = State.DONE
        self.worker = None
        self.awaits.clear()
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


def _caller() -> tuple[Flight | None, dict[object, Flight]]:
    """The flight in which the running code is, and where that notes what it waits for."""
    ref = inside.get()
    flight = None if ref is None else ref()
    return (None, {}) if flight is None else (cast(Flight, flight), cast(Flight, flight).awaits)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _wake_loop(loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # that loop was closed while it waited
        loop.call_soon_threadsafe(_set, woken)


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
