"""Worker threads for what would stall an event loop: big pickles, big file bodies, user code.

They are daemon threads, unlike those of `concurrent.futures` and anyio: a decoder or a factory that
takes for ever, and that nobody waits for any more, must not keep the process from ending.

There is no lock here, only single calls of `collections.deque`, which are atomic. The library's
own loop hands out work too, and must never wait for a lock that some other thread may hold while a
finaliser of the user's runs in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from proxyplane._runtime.fork import on_fork
from proxyplane.exceptions import IOThreadError

T = TypeVar("T")
P = ParamSpec("P")
Job = Callable[[], object]

# Our own limit per loop, so that neither the user's executors can starve ours, nor ours theirs,
# and no loop another one.
WORKERS_PER_LOOP = 32
IDLE_SECONDS = 10.0


class Workers:
    """Calls jobs on daemon threads, at most `limit` at a time; the rest waits in order.

    Args:
        limit: The number of threads.
        name: What the threads are called while they work here.
    """

    def __init__(self, limit: int, name: str = "proxyplane-worker") -> None:
        self._limit = limit
        self._name = name
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        """The threads are gone, and what they did is the parent's affair."""
        self._pending: deque[Job] = deque()
        self._free = deque([None] * self._limit)

    def submit(self, job: Job) -> None:
        """Calls `job` soon; it must not raise.

        Raises:
            IOThreadError: No thread can be started: the interpreter is exiting, or the system's
                limit is reached.
        """
        self._pending.append(job)
        try:
            self._free.pop()
        except IndexError:
            return  # all are at work, and look again when they are done
        try:
            _start(self._drain)
        except RuntimeError as error:
            self._free.append(None)
            with contextlib.suppress(ValueError):  # another one took it meanwhile
                self._pending.remove(job)
                raise IOThreadError(
                    f"proxyplane could not start a worker thread: {error}",
                    hint="the interpreter is exiting, or the limit of threads is reached",
                ) from error

    def _drain(self) -> None:
        threading.current_thread().name = self._name
        while True:
            try:
                job = self._pending.popleft()
            except IndexError:
                self._free.append(None)
                # What came between these two lines saw no free thread.
                if not self._pending:
                    return
                try:
                    self._free.pop()
                except IndexError:
                    return
            else:
                job()
                del job


class _Thread(threading.Thread):
    """A thread that waits some seconds for more to do."""

    def __init__(self) -> None:
        super().__init__(name="proxyplane-worker", daemon=True)
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            try:
                job = self.jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                try:
                    _process.idle.remove(self)
                    return
                except ValueError:
                    continue  # it was taken at this moment: there is a job
            job()
            del job
            _process.idle.append(self)


class _Process:
    """The threads of this process that have nothing to do."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        self.idle: deque[_Thread] = deque()


_process = _Process()
_of_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Workers] = (
    weakref.WeakKeyDictionary()
)


def _start(job: Job) -> None:
    try:
        thread = _process.idle.pop()
    except IndexError:
        thread = _Thread()
        thread.jobs.put(job)
        # A Ctrl-C in here leaves a thread that runs, and has its job.
        thread.start()
    else:
        thread.jobs.put(job)


async def run_in_worker(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls ``func`` on a worker thread, in the caller's context, and returns what it returns.

    A cancelled caller does not wait: a call that has begun goes on, one that has not is dropped.

    Raises:
        IOThreadError: No thread can be started.
    """
    loop = asyncio.get_running_loop()
    workers = _of_loop.get(loop)
    if workers is None:
        workers = _of_loop[loop] = Workers(WORKERS_PER_LOOP)
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()
    workers.submit(partial(_call, loop, future, partial(context.run, func, *args, **kwargs)))
    try:
        return await future
    finally:
        del future  # an exception refers to this frame and the future to it: break the cycle


def _call(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], func: Callable[[], T]
) -> None:
    if future.cancelled():
        return
    try:
        report: tuple[Callable[[Any], None], object] = future.set_result, func()
    except BaseException as error:  # noqa: BLE001 - carried
        report = future.set_exception, _carried(error)
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(_report, future, *report)
    del report  # the same cycle


def _report(future: asyncio.Future[T], settle: Callable[[Any], None], value: object) -> None:
    if not future.done():
        settle(value)


def _carried(error: BaseException) -> BaseException:
    if not isinstance(error, StopIteration):
        return error
    carried = RuntimeError("a call on a worker thread raised StopIteration")
    carried.__cause__ = error
    return carried
