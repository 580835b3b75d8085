"""Operations whose progress is told, and a bar that shows it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from proxyplane._operations import Known, Operation
from proxyplane._runtime.blocking import about_to_block
from proxyplane._runtime.io_thread import io_thread
from proxyplane._runtime.progress import Meter, Progress, metered
from proxyplane._runtime.workers import run_in_worker
from proxyplane._store_names import Found
from proxyplane.config import OnBlocking
from proxyplane.exceptions import ProxyPlaneError

__all__ = ["Told", "progress_bar"]

R = TypeVar("R")

EVERY_SECONDS = 0.05
"""How often the progress is looked at."""


class Told(Operation[R]):
    """An operation that calls a function of the user's, in the user's own thread and loop.

    Args:
        operation: The operation.
        progress: The function.
        undo: Makes the operation that takes back what was done, from the reply to its I/O; for
            when it has succeeded, but its caller was cancelled, or the function failed.
        undo_later: Has the same done behind the caller's back, if he cannot wait for it.
    """

    __slots__ = ("_last", "_meter", "_of", "_progress", "_undo", "_undo_later")

    def __init__(
        self,
        operation: Operation[R],
        progress: Progress,
        undo: Callable[[Any], Operation[Any]] | None = None,
        undo_later: Callable[[Any], object] | None = None,
    ) -> None:
        if not callable(progress):
            raise TypeError(f"progress= is a function of two numbers, not {progress!r}")
        self._of = operation
        self._progress = progress
        self._undo = undo
        self._undo_later = undo_later
        self._meter = Meter()
        self._last = (-1, -1)

    async def perform(self) -> R:
        """Performs it on the running loop, without stalling it."""
        operation: Operation[R] = self._of
        if isinstance(operation, Known):
            self._progress(0, 0)
            known: R = await operation.perform()
            return known
        if operation.prepare_stalls():
            request = await run_in_worker(operation.prepare)
        else:
            request = operation.prepare()
        self._begin(request)
        reply = await self._followed(request)
        try:
            if operation.finish_stalls(reply):
                result: R = await run_in_worker(operation.finish, reply)
            else:
                result = operation.finish(reply)
            self._end(reply)
        except BaseException:
            await self._take_back(reply)
            raise
        return result

    async def _followed(self, request: Any) -> Any:
        with metered(self._meter):
            task = asyncio.ensure_future(self._of.io(request))
        task.add_done_callback(_taken)
        try:
            while not (await asyncio.wait({task}, timeout=EVERY_SECONDS))[0]:
                self._look()
        except BaseException:
            task.cancel()
            try:
                await asyncio.wait({task})
            except BaseException:  # cancelled once more, and it may still succeed
                task.add_done_callback(self._ended_in_vain)
                raise
            if not task.cancelled() and task.exception() is None:  # it had succeeded at that moment
                await self._take_back(task.result())
            raise
        return task.result()

    def _ended_in_vain(self, task: asyncio.Future[Any]) -> None:
        if self._undo_later is not None and not task.cancelled() and task.exception() is None:
            self._undo_later(task.result())

    async def _take_back(self, reply: Any) -> None:
        if self._undo is not None:
            with self._later_unless_done(reply):
                await self._undo(reply).perform()

    @contextlib.contextmanager
    def _later_unless_done(self, reply: Any) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if self._undo_later is not None:
                self._undo_later(reply)
            if not isinstance(error, ProxyPlaneError):  # what the function raised says more
                raise

    def perform_blocking(self, policy: OnBlocking | None) -> R:
        """Performs it and blocks the calling thread until it is done."""
        about_to_block(self._of.describe, policy)
        return self.work()

    def work(self) -> R:
        """Performs it, with its I/O on the library's loop, so that this thread is free to tell."""
        operation: Operation[R] = self._of
        if isinstance(operation, Known):
            self._progress(0, 0)
            known: R = operation.work()
            return known
        request = operation.prepare()
        self._begin(request)
        replies: list[Any] = []

        async def io() -> None:
            with metered(self._meter):
                replies.append(await operation.io(request))

        try:
            io_thread().run(io(), meanwhile=self._look, every=EVERY_SECONDS)
            result: R = operation.finish(replies[0])
            self._end(replies[0])
        except BaseException:
            if replies and self._undo is not None:
                with self._later_unless_done(replies[0]):
                    self._undo(replies[0]).work()
            raise
        return result

    # -- what is told -----------------------------------------------------------------------------

    def _begin(self, request: Any) -> None:
        total = nbytes(request)
        if total:
            self._tell(0, total)

    def _look(self) -> None:
        latest = self._meter.latest
        if latest is None:
            return
        done, total = latest
        # All is done when the medium has said so, and not when it was sent.
        done = min(done, total - 1)
        if total == self._last[1]:
            done = max(done, self._last[0])  # a second try begins anew
        if (done, total) != self._last:
            self._tell(done, total)

    def _end(self, reply: Any) -> None:
        if isinstance(reply, Found):
            reply = b"" if reply.same else reply.buffer
        if reply is None:
            return  # there was no object
        total = max(self._last[1], nbytes(reply))
        if total >= 0:
            self._tell(total, total)

    def _tell(self, done: int, total: int) -> None:
        self._last = (done, total)
        self._progress(done, total)


def _taken(task: asyncio.Future[Any]) -> None:
    """Takes an exception, so that asyncio does not log it where nobody waits any more."""
    if not task.cancelled():
        task.exception()


def nbytes(found: Any) -> int:
    """Bytes of a buffer, or of all in a list or tuple; 0 for anything else."""
    if isinstance(found, list | tuple):
        return sum(map(nbytes, found))
    try:
        with memoryview(found) as view:
            return view.nbytes
    except TypeError:  # a key, None, whether it was there
        return 0


@contextlib.contextmanager
def progress_bar(description: str | None = None, **options: Any) -> Iterator[Progress]:
    """A bar that shows how a put or a get comes on, in a terminal or a notebook.

    What it gives is for ``progress=``; one bar is for one operation, or for several one after
    another. Needs tqdm: ``pip install "proxyplane[progress]"``.

    Args:
        description: Text before the bar.
        options: More arguments for `tqdm.auto.tqdm`.

    Raises:
        ImportError: tqdm is not installed.
    """
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            'a progress bar needs tqdm: pip install "proxyplane[progress]", '
            "or give progress= a function of your own"
        ) from error
    options = {"desc": description, "unit": "B", "unit_scale": True, "unit_divisor": 1024} | options
    with tqdm(**options) as bar:

        def show(done: int, total: int) -> None:
            if bar.total != total or done < bar.n:
                bar.reset(total)
            bar.update(done - bar.n)

        yield show
