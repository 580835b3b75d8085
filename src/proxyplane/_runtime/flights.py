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
whose last waiter leaves is cancelled; one that failed is forgotten, so a later touch tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import enum
import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol

from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.io_thread import LIVENESS_INTERVAL, IOThread, Outcome, io_thread, loop_gone
from proxyplane._runtime.workers import run_in_worker
from proxyplane.cache import MISSING
from proxyplane.exceptions import ProxyResolveCycleError, ProxyResolveError


class Source(Protocol):
    """Where a flight gets its object from."""

    @property
    def works_here(self) -> bool:
        """Whether `work` can be called in the thread that asks, with no need of a loop."""
        ...

    def work(self) -> Any:
        """Fetches and decodes in this thread; may block."""
        ...

    @property
    def works_anywhere(self) -> bool:
        """Whether there is nothing but `work`: no `fetch`, so a loop calls it on a thread."""
        ...

    async def fetch(self) -> Any:
        """Fetches, on the I/O loop; what it returns goes to `decode`."""
        ...

    def decode(self, fetched: Any) -> Any:
        """Makes the object, in a thread that may be stalled."""
        ...

    def decoding_stalls(self, fetched: Any) -> bool:
        """Whether decoding takes too long for the thread of a running loop."""
        ...


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
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        # Re-entrant: a finaliser that the collector runs inside of a critical section may touch
        # a proxy. The sections are short and never call out.
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
        self.deliveries: list[Callable[[Any], object]] = []
        self.interest = 0
        self.background = False
        self._wakers: list[Callable[[], object]] = []
        # Whether the next step is on its way to some other thread. Until it starts there, a
        # blocked thread may still take it: the one on its way could need this very thread's loop.
        self._dispatched = False
        self._worker: int | None = None
        self._io: IOThread | None = None
        self._cancel: Callable[[], object] = lambda: None
        self._fetched: Any = MISSING
        self._outcome: Outcome[Any] | None = None

    # -- waiting ----------------------------------------------------------------------------

    def wait_blocking(self) -> Any:
        """Blocks this thread until the object is there; works itself where it can."""
        me = threading.get_ident()
        while True:
            self._work()
            with _process.lock:
                if self.state is State.DONE:
                    return self._unwrap()
                if self.state is State.FETCHED:  # it came this moment
                    continue
                if self.state is State.NEW:
                    self._launch()
                self._refuse_cycle(me)
                woken = threading.Lock()
                woken.acquire()
                self._wakers.append(woken.release)
                _process.waits[me] = self
            try:
                while not woken.acquire(timeout=LIVENESS_INTERVAL):
                    if self._io is not None and not self._io.is_alive:
                        self._settle(Outcome(None, loop_gone()))
            finally:
                _process.waits.pop(me, None)

    async def wait(self) -> Any:
        """Waits, on the running loop and without stalling it, until the object is there."""
        loop = asyncio.get_running_loop()
        while True:
            decode = stalls = False
            with _process.lock:
                if self.state is State.DONE:
                    return self._unwrap()
                if self.state is State.NEW:
                    self._launch()
                if self.state is State.FETCHED and not self._dispatched:
                    decode = self._dispatched = True
                    stalls = self.source.decoding_stalls(self._fetched)
                else:
                    woken = loop.create_future()
                    self._wakers.append(partial(_wake_loop, loop, woken))
            if not decode:
                await woken
            elif not stalls:
                self._work()
            else:
                await self._work_in_worker()

    def start(self) -> None:
        """Lets the flight go on in the background, up to the decoded object."""
        with _process.lock:
            self.background = True
            if self.state is State.NEW:
                self._launch()

    # -- progress ---------------------------------------------------------------------------

    def _launch(self) -> None:
        if self._dispatched:
            return
        if self.source.works_anywhere:
            # A thread of its own: user code may block for as long as it likes, and a daemon
            # thread does not keep the process from ending.
            context = contextvars.copy_context()
            threading.Thread(
                target=context.run, args=(self._work,), name="proxyplane-factory", daemon=True
            ).start()
        else:
            self._io = io_thread()
            spawned = self._io.spawn(self.source.fetch(), self._on_fetched)
            self._cancel = partial(self._io.loop.call_soon_threadsafe, spawned.cancel)
            self.state = State.FETCHING
        self._dispatched = True

    def _on_fetched(self, outcome: Outcome[Any]) -> None:
        if outcome.error is not None:
            if isinstance(outcome.error, asyncio.CancelledError):
                outcome = Outcome(None, loop_gone())
            self._settle(outcome)
            return
        with _process.lock:
            self._fetched = outcome.result
            self.state = State.FETCHED
            self._dispatched = in_background = self.background and self.interest == 0
            self._wake()
        if in_background and self._io is not None:
            self._io.spawn(self._work_in_worker(), lambda _: None)

    async def _work_in_worker(self) -> None:
        try:
            await run_in_worker(self._work)
        finally:
            # Cancelled before a thread took it: somebody else must.
            with _process.lock:
                if self.state is State.FETCHED:
                    self._dispatched = False
                    self._wake()

    def _work(self) -> None:
        """Does in this thread what a thread can do now, if there is anything."""
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
                outcome: Outcome[Any] = Outcome(job(), None)
            except Exception as error:
                outcome = Outcome(None, error)
            self._settle(outcome)
        except BaseException:
            # Ctrl-C in this thread says nothing about the object: another waiter goes on.
            with _process.lock:
                if self.state is State.WORKING and self._worker == me:
                    self.state = State.NEW if self._fetched is MISSING else State.FETCHED
                    self._worker = None
                    self._dispatched = False
                    self._wake()
            raise

    def _settle(self, outcome: Outcome[Any]) -> None:
        with _process.lock:
            if self.state is State.DONE:
                return
            self.state = State.DONE
            self._outcome = outcome
            self._fetched = MISSING
            if _process.flights.get(self.key) is self:
                del _process.flights[self.key]
            if outcome.error is None:
                # Before anyone can find the flight gone: nobody fetches a second time.
                for deliver in self.deliveries:
                    deliver(outcome.result)
            self.deliveries.clear()
            self._wake()

    def _wake(self) -> None:
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def leave(self) -> None:
        """Takes back the interest of one waiter; the last one cancels what nobody wants."""
        with _process.lock:
            self.interest -= 1
            if self.interest or self.background or self.state in (State.WORKING, State.DONE):
                return
            if _process.flights.get(self.key) is self:
                del _process.flights[self.key]
            cancel = self._cancel
        with contextlib.suppress(RuntimeError):  # its loop is closed
            cancel()

    # -- outcome ----------------------------------------------------------------------------

    def _unwrap(self) -> Any:
        assert self._outcome is not None
        error = self._outcome.error
        if error is None:
            return self._outcome.result
        if isinstance(error, ProxyResolveError):
            # A copy for each waiter: a shared exception would collect everybody's traceback.
            again = copy.copy(error)
            again.__cause__ = error.__cause__
            raise again
        if isinstance(error, Exception):
            raise ProxyResolveError(
                f"could not resolve {self.source}: {type(error).__name__}: {error}", cause=error
            ) from error
        raise error

    def _refuse_cycle(self, me: int) -> None:
        """Raises if a thread on whose work this flight depends is the calling one."""
        flight: Flight | None = self
        while flight is not None and flight._worker is not None:
            if flight.state is State.DONE:
                return
            if flight._worker == me:
                raise ProxyResolveCycleError(
                    f"resolving {self.source} needs its own result",
                    hint="an object's decoder or factory touches a proxy of that same object",
                )
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
        if flight is None:
            flight = _process.flights[key] = Flight(key, source)
        flight.deliveries.append(deliver)
        flight.interest += 1
        return flight


def _wake_loop(loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # that loop was closed while it waited
        loop.call_soon_threadsafe(_set, woken)


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
