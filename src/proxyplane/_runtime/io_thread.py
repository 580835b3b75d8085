"""The library's own event loop: one daemon thread per process, started when first needed.

Whatever happens behind the user's back (resolving proxies, serving the blocking facade) runs on
this loop and never on the user's: a blocked thread whose loop had to finish the fetch would wait
for itself. The thread runs coroutines of the library and of connectors; objects are decoded, and
plain callables called, elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

from proxyplane._runtime.fork import on_fork
from proxyplane.exceptions import BlockingCallError, IOThreadError

T = TypeVar("T")
logger = logging.getLogger("proxyplane")

# How often a blocked thread looks whether the loop it waits for is still alive, in seconds.
LIVENESS_INTERVAL = 1.0
# How long leaving the process, or an interrupted call, waits for clean-up, in seconds.
CLEANUP_TIMEOUT = 2.0


class IOThread:
    """An event loop running on a daemon thread."""

    def __init__(self) -> None:
        # Made here and run there, so that nobody waits for the thread to get going: what is
        # scheduled before it does is run once it does, and the caller may be on a loop.
        self.loop = _new_event_loop()
        self._stop: asyncio.Future[None] = self.loop.create_future()
        self._stopping = False
        # A plain daemon thread: a non-daemon one would keep the process from ending.
        self._thread = threading.Thread(target=self._main, name="proxyplane-io", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread can be started while the interpreter exits
            self.loop.close()
            raise loop_gone() from error

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._serve())
            self._stopping = True

    async def _serve(self) -> None:
        await self._stop

    @property
    def is_alive(self) -> bool:
        """Whether the loop can still finish what waits for it."""
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on this thread."""
        return threading.get_ident() == self._thread.ident

    def spawn(
        self,
        coro: Coroutine[Any, Any, T],
        done: Callable[[Outcome[T]], None],
    ) -> Spawned:
        """Runs `coro` as a task on the loop and calls ``done(outcome)`` on its thread.

        Raises:
            IOThreadError: The loop has ended.
        """
        spawned = Spawned(coro, done)
        try:
            self.loop.call_soon_threadsafe(spawned.start, self.loop)
        except RuntimeError as error:  # the loop is closed
            coro.close()
            raise loop_gone() from error
        return spawned

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Runs `coro` on the loop, blocks until it ended and returns its result.

        Whatever it raises is raised here. When the wait is interrupted (Ctrl-C), the coroutine
        is cancelled and its clean-up awaited before the interrupt goes on.

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
        outcome: list[Outcome[T]] = []

        def done(result: Outcome[T]) -> None:
            outcome.append(result)
            finished.release()

        spawned = self.spawn(coro, done)
        try:
            self._wait(finished)
        except IOThreadError:
            spawned.abandon()
            raise
        except BaseException:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(spawned.cancel)
                finished.acquire(timeout=CLEANUP_TIMEOUT)
            raise
        try:
            return outcome[0].unwrap()
        except asyncio.CancelledError as error:
            if self._stopping or self._stop.done():
                raise loop_gone() from error
            raise
        finally:
            outcome.clear()  # an exception refers to this frame: break the cycle

    def _wait(self, finished: threading.Lock) -> None:
        # A wait without end on a thread that died would hang for ever.
        while not finished.acquire(timeout=LIVENESS_INTERVAL):
            if not self.is_alive:
                raise loop_gone()

    def stop(self) -> None:
        """Cancels what runs, closes clients and ends the thread; waits for a bounded time."""
        self._stopping = True
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._end)
        self._thread.join(CLEANUP_TIMEOUT)

    def _end(self) -> None:
        if not self._stop.done():
            self._stop.set_result(None)


class Outcome(Generic[T]):
    """What a coroutine ended with: a result, or whatever it raised."""

    __slots__ = ("error", "result")

    def __init__(self, result: T | None, error: BaseException | None) -> None:
        self.result = result
        self.error = error

    def unwrap(self) -> T:
        """Returns the result or raises."""
        if self.error is not None:
            raise self.error
        return cast(T, self.result)


class Spawned:
    """A coroutine on its way to, or running on, the loop of an `IOThread`."""

    __slots__ = ("_cancelled", "_context", "_coro", "_done", "_task")

    def __init__(self, coro: Coroutine[Any, Any, T], done: Callable[[Outcome[T]], None]) -> None:
        self._coro = coro
        self._done = done
        self._context = contextvars.copy_context()
        self._cancelled = False
        self._task: asyncio.Task[None] | None = None  # the strong reference that loops do not keep

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Makes the task; on the loop's thread."""
        self._task = _make_task(self._run(), loop, self._context)
        if self._cancelled:
            self._task.cancel()

    def cancel(self) -> None:
        """Cancels the task; on the loop's thread."""
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def abandon(self) -> None:
        """Closes a coroutine that never started because its loop has ended."""
        if self._task is None:
            self._coro.close()

    async def _run(self) -> None:
        # Whatever ends the coroutine is carried, KeyboardInterrupt and SystemExit of user code
        # included: asyncio would let those two end the loop, and with it everybody's work.
        try:
            outcome = Outcome[Any](await self._coro, None)
        except BaseException as error:
            outcome = Outcome[Any](None, error)
        self._done(outcome)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # optional: faster, where it is installed
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


if sys.version_info >= (3, 12):

    def _make_task(
        coro: Coroutine[Any, Any, None],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
    ) -> asyncio.Task[None]:
        # The first step runs at once, so a call that need not wait costs no turn of the loop.
        return asyncio.Task(coro, loop=loop, context=context, eager_start=True)

else:

    def _make_task(
        coro: Coroutine[Any, Any, None],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
    ) -> asyncio.Task[None]:
        return loop.create_task(coro, context=context)


def loop_gone() -> IOThreadError:
    """The error of whoever waits for a loop that has ended."""
    return IOThreadError(
        "proxyplane's event-loop thread has ended",
        hint="the interpreter is exiting; finish blocking calls before the main thread ends",
    )


class _Process:
    """The I/O thread of this process, if it was needed yet."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: IOThread | None = None
        self._abandoned: IOThread | None = None
        self._exit_hooked = False
        on_fork(self)

    def after_fork_in_child(self) -> None:
        self.lock = threading.Lock()
        if self.thread is not None:
            # Kept, not closed: closing the copy of a loop would unregister its descriptors from
            # the epoll set that is still the parent's.
            self._abandoned, self.thread = self.thread, None

    def get(self) -> IOThread:
        thread = self.thread
        if thread is not None and thread.is_alive:
            return thread
        with self.lock:
            if self.thread is None:
                self._hook_exit()
                self.thread = IOThread()
            elif not self.thread.is_alive:
                if self.thread._stopping:
                    raise loop_gone()
                logger.error("proxyplane's event-loop thread died; starting another")
                self.thread = IOThread()
            return self.thread

    def _hook_exit(self) -> None:
        if self._exit_hooked:
            return
        # Hooks of `threading` run before it joins threads and before `atexit`; those registered
        # later run first. Importing concurrent.futures.thread registers its own hook, which
        # forbids new work in executors, so it must come before ours to run after it.
        import concurrent.futures.thread  # noqa: F401

        try:
            threading._register_atexit(self._at_exit)  # type: ignore[attr-defined]
        except RuntimeError as error:  # shutdown has begun
            raise loop_gone() from error
        self._exit_hooked = True

    def _at_exit(self) -> None:
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
