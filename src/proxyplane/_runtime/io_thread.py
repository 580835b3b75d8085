"""The library's own event loop: one daemon thread per process, started when first needed.

Whatever happens behind the user's back (resolving proxies, serving the blocking facade) runs on
this loop and never on the user's: a blocked thread whose loop had to finish the fetch would wait
for itself. The thread runs coroutines of the library and of connectors; objects are decoded, and
plain callables called, elsewhere.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import logging
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

from proxyplane._runtime.fork import keep_for_ever, on_fork, prepare_to_keep
from proxyplane._runtime.workers import WORKERS_PER_LOOP
from proxyplane.exceptions import BlockingCallError, IOThreadError

T = TypeVar("T")
logger = logging.getLogger("proxyplane")

# How often a blocked thread looks whether the loop it waits for is still alive, in seconds.
LIVENESS_INTERVAL = 1.0
# How long leaving the process, or an interrupted call, waits for clean-up, in seconds.
CLEANUP_TIMEOUT = 2.0
# How long a daemon thread sleeps, at exit, before it is told that its call will never end: longer
# than an exit takes, which ends such threads without a word.
DAEMON_GRACE = 5.0


class IOThread:
    """An event loop running on a daemon thread.

    Raises:
        IOThreadError: No thread can be started: the interpreter is exiting, or the system's limit
            is reached.
    """

    def __init__(self) -> None:
        self.loop = _new_event_loop()
        self._stop: asyncio.Future[None] = self.loop.create_future()
        self._spawned: set[Spawned] = set()
        self.ending = False
        # A plain daemon thread: a non-daemon one would keep the process from ending.
        self._thread = threading.Thread(target=self._main, name="proxyplane-io", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self.loop.close()
            raise loop_gone() from error

    @property
    def is_alive(self) -> bool:
        """Whether the loop can still finish what waits for it."""
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on this thread."""
        # The id of a thread that has ended is given to another one.
        return threading.get_ident() == self._thread.ident and self._thread.is_alive()

    # -- work -------------------------------------------------------------------------------------

    def spawn(self, coro: Coroutine[Any, Any, T], done: Callable[[Outcome[T]], object]) -> Spawned:
        """Runs `coro` as a task on the loop and calls ``done(outcome)`` on its thread, once.

        Also when the loop ends: the outcome is an IOThreadError then.

        Raises:
            IOThreadError: The loop has ended.
        """
        spawned = Spawned(self, coro, done)
        self._schedule(spawned)
        return spawned

    def _schedule(self, spawned: Spawned) -> None:
        self._spawned.add(spawned)
        try:
            self.loop.call_soon_threadsafe(spawned.start)
        except RuntimeError as error:  # the loop is closed
            self._spawned.discard(spawned)
            spawned.coro.close()
            raise loop_gone() from error

    def run(
        self,
        coro: Coroutine[Any, Any, T],
        *,
        meanwhile: Callable[[], object] | None = None,
        every: float = LIVENESS_INTERVAL,
    ) -> T:
        """Runs `coro` on the loop, blocks until it ended and returns its result.

        Whatever it raises is raised here. When the wait is interrupted (Ctrl-C), the coroutine
        is cancelled and its clean-up awaited before the interrupt goes on.

        Args:
            coro: What to run.
            meanwhile: Called in this thread while it waits; what it raises interrupts the wait.
            every: Seconds between two calls.

        Raises:
            BlockingCallError: Called on the loop's own thread, which would wait for itself.
            IOThreadError: The loop has ended.
        """
        if self.is_current:
            coro.close()
            raise BlockingCallError(
                "a blocking call on proxyplane's own event-loop thread would wait for itself",
                hint="code that runs there (a connector, Factory.acall) must await instead",
            )
        finished = threading.Lock()
        finished.acquire()
        outcomes: list[Outcome[T]] = []

        def done(outcome: Outcome[T]) -> None:
            outcomes.append(outcome)
            finished.release()

        spawned = Spawned(self, coro, done)
        try:
            self._schedule(spawned)
            # A wait without end on a thread that died would hang for ever.
            while not finished.acquire(timeout=every):
                if not self.is_alive:
                    raise loop_gone()
                if meanwhile is not None:
                    meanwhile()
        except IOThreadError:
            linger_at_exit()
            raise
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(spawned.cancel)
                if not outcomes:
                    finished.acquire(timeout=CLEANUP_TIMEOUT)
            outcomes.clear()
            raise
        if isinstance(outcomes[0].error, IOThreadError):
            linger_at_exit()
        return outcomes.pop().unwrap()

    # -- end --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Cancels what runs, closes clients and ends the thread; waits for a bounded time."""
        self.ending = True
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._end)
        self._thread.join(CLEANUP_TIMEOUT)

    def _end(self) -> None:
        if not self._stop.done():
            self._stop.set_result(None)

    def _main(self) -> None:
        try:
            self.loop.run_until_complete(self._stop)
        except BaseException:
            logger.exception("proxyplane's event-loop thread died")
        self.ending = True
        try:
            self.loop.run_until_complete(self._clean_up())
            self.loop.close()
        except BaseException:
            logger.exception("proxyplane's event loop did not close")
        finally:
            for spawned in list(self._spawned):
                spawned.finish(Outcome(None, loop_gone()))
                spawned.coro.close()

    async def _clean_up(self) -> None:
        loop, me = self.loop, asyncio.current_task()
        give_up = loop.time() + CLEANUP_TIMEOUT / 2
        # More than once: a task may have been on its way to the loop, or make another one.
        while tasks := asyncio.all_tasks() - {me}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=max(0.0, give_up - loop.time()))
            if loop.time() >= give_up:
                break
        for task in tasks:  # those that refuse to end; asyncio would complain of them on stderr
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLEANUP_TIMEOUT / 4):
                await loop.shutdown_asyncgens()


class Outcome(Generic[T]):
    """What a coroutine ended with: a result, or whatever it raised."""

    __slots__ = ("error", "result")

    def __init__(self, result: T | None, error: BaseException | None) -> None:
        self.result = result
        self.error = error

    def unwrap(self) -> T:
        """Returns the result or raises; once."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame: break the cycle
        return cast(T, self.result)


class Spawned:
    """A coroutine on its way to, or running on, the loop of an `IOThread`."""

    __slots__ = ("_context", "_done", "_task", "_thread", "coro")

    def __init__(
        self,
        thread: IOThread,
        coro: Coroutine[Any, Any, T],
        done: Callable[[Outcome[T]], object],
    ) -> None:
        self.coro = coro
        self._thread = thread
        self._done = done
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[None] | None = None  # the strong reference that loops do not keep

    # Each of these runs on the loop's thread.

    def start(self) -> None:
        """Makes the task."""
        if self in self._thread._spawned:
            self._task = _make_task(self._run(), self._thread.loop, self._context)

    def cancel(self) -> None:
        """Cancels the task."""
        if self._task is not None:
            self._task.add_done_callback(self._ended)
            self._task.cancel()
        else:  # the one who spawned it was interrupted before it was on its way
            self._thread._spawned.add(self)
            self._ended()

    def _ended(self, task: object = None) -> None:
        # A task that is cancelled before its first step never enters its coroutine.
        self.finish(Outcome(None, asyncio.CancelledError()))
        self.coro.close()

    def finish(self, outcome: Outcome[Any]) -> None:
        """Tells the outcome; not a second time."""
        try:
            self._thread._spawned.remove(self)
        except KeyError:
            return
        if self._thread.ending and isinstance(outcome.error, asyncio.CancelledError):
            outcome = Outcome(None, loop_gone())
        self._done(outcome)

    async def _run(self) -> None:
        # Whatever ends the coroutine is carried, KeyboardInterrupt and SystemExit of user code
        # included: asyncio would let those two end the loop, and with it everybody's work.
        try:
            outcome = Outcome[Any](await self.coro, None)
        except BaseException as error:  # noqa: BLE001 - carried
            outcome = Outcome[Any](None, error)
        try:
            self.finish(outcome)
        finally:
            del outcome  # an exception refers to this frame: break the cycle


def _new_event_loop() -> asyncio.AbstractEventLoop:
    # An executor cannot be imported, nor uvloop which imports it, when the interpreter exits.
    try:
        import uvloop  # optional: faster, where it is installed

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except (ImportError, RuntimeError):
        loop = asyncio.new_event_loop()
    with contextlib.suppress(RuntimeError):
        from proxyplane._runtime.executor import DaemonExecutor

        loop.set_default_executor(DaemonExecutor(WORKERS_PER_LOOP))
    return loop


def _make_task(
    coro: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop, context: contextvars.Context
) -> asyncio.Task[None]:
    if sys.version_info >= (3, 12):
        # The first step runs at once, so a call that need not wait costs no turn of the loop.
        return asyncio.Task(coro, loop=loop, context=context, eager_start=True)
    return loop.create_task(coro, context=context)


def loop_gone() -> IOThreadError:
    """The error of whoever waits for a loop that has ended."""
    return IOThreadError(
        "proxyplane's event-loop thread has ended",
        hint="the interpreter is exiting; close stores and finish blocking calls before that",
    )


def linger_at_exit() -> None:
    """Lets a daemon thread, whose call will not end because the process exits, do so quietly.

    Raising would print a traceback; never to return would hang whoever joins the thread.
    """
    if _process.exiting and threading.current_thread().daemon:
        time.sleep(DAEMON_GRACE)


class _Process:
    """The I/O thread of this process, if it was needed yet."""

    def __init__(self) -> None:
        self.thread: IOThread | None = None
        self.exiting = False
        self._hooked = False
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        # Re-entrant: the collector may run a finaliser in the middle that comes here too.
        self.lock = threading.RLock()
        if self.thread is not None:
            # Kept, not closed: closing the copy of a loop would unregister its descriptors from
            # the epoll set that is still the parent's.
            keep_for_ever(self.thread)
            self.thread = None

    def get(self) -> IOThread:
        thread = self.thread
        if thread is not None and thread.is_alive:
            return thread
        with self.lock:
            before = self.thread
            if before is not None and before.is_alive:
                return before
            if self.exiting:
                raise loop_gone()
            if not self._hooked:
                # Run after the interpreter has waited for the user's threads, which may need the
                # loop until they end, and before what was registered earlier, which may not.
                atexit.register(self._at_exit)
                self._hooked = True
            if before is not None:
                logger.error("proxyplane's event-loop thread died; starting another")
            prepare_to_keep()
            made = IOThread()
            if self.thread is before:
                self.thread = made
                return made
        made.stop()  # a finaliser was here first
        return self.get()

    def _at_exit(self) -> None:
        self.exiting = True
        if self.thread is not None:
            self.thread.stop()


_process = _Process()


def io_thread() -> IOThread:
    """The I/O thread of this process; starts it when it is needed for the first time.

    Raises:
        IOThreadError: The interpreter is exiting.
    """
    return _process.get()


def on_io_thread() -> bool:
    """Whether the caller runs on the library's event-loop thread."""
    thread = _process.thread
    return thread is not None and thread.is_current
