"""What a store does, apart from how one waits for it.

An operation is prepared (objects are encoded), does its I/O, and is finished (bytes are decoded).
Only the I/O is asynchronous. Async code performs it on its own loop; blocking code performs it
with its I/O on the library's loop, or in its own thread where the medium has that shortcut. In
both, objects are encoded and decoded in the thread that asked, or on a worker thread, and never
on the library's loop.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from proxyplane._runtime.blocking import about_to_block
from proxyplane._runtime.io_thread import io_thread
from proxyplane._runtime.workers import run_in_worker
from proxyplane.config import OnBlocking

R = TypeVar("R")
S = TypeVar("S")


def _nothing() -> None:
    return None


def _same(reply: Any) -> Any:
    return reply


def _never(*_: Any) -> bool:
    return False


@dataclass(slots=True)
class Operation(Generic[R]):
    """One operation of a store.

    Attributes:
        what: What it does, for messages; or what makes that text, where most calls need none.
        io: Does the I/O with what `prepare` returned.
        io_here: Does the same in the calling thread, where the medium can; else None.
        prepare: Makes the request for `io`.
        prepare_stalls: Whether that takes too long for the thread of a running loop.
        finish: Makes the result from the reply of `io`.
        finish_stalls: Whether that takes too long for the thread of a running loop.
    """

    what: str | Callable[[], str]
    io: Callable[[Any], Coroutine[Any, Any, Any]]
    io_here: Callable[[Any], Any] | None = None
    prepare: Callable[[], Any] = _nothing
    prepare_stalls: Callable[[], bool] = _never
    finish: Callable[[Any], R] = _same
    finish_stalls: Callable[[Any], bool] = _never

    def then(self, function: Callable[[R], S]) -> Operation[S]:
        """The operation that gives ``function(result)`` in place of the result."""
        finish = self.finish
        made = cast("Operation[S]", self)
        made.finish = lambda reply: function(finish(reply))
        return made

    async def perform(self) -> R:
        """Performs it on the running loop, without stalling it."""
        request = None
        if self.prepare is not _nothing:
            if self.prepare_stalls():
                request = await run_in_worker(self.prepare)
            else:
                request = self.prepare()
        reply = await self.io(request)
        if self.finish_stalls(reply):
            return await run_in_worker(self.finish, reply)
        return self.finish(reply)

    def perform_blocking(self, policy: OnBlocking | None) -> R:
        """Performs it and blocks the calling thread until it is done.

        Args:
            policy: What to do on a thread with a running loop.

        Raises:
            BlockingCallError: The policy forbids it, or this is the library's own loop thread.
        """
        about_to_block(self.describe, policy)
        return self.work()

    def describe(self) -> str:
        """What it does."""
        return self.what if isinstance(self.what, str) else self.what()

    def work(self) -> R:
        """Performs it in this thread, whatever the policy."""
        request = self.prepare()
        if self.io_here is not None:
            reply = self.io_here(request)
        else:
            reply = io_thread().run(self.io(request))
        return self.finish(reply)


class Known(Operation[R]):
    """An operation whose result is known before it starts."""

    __slots__ = ("_result",)

    def __init__(self, result: R) -> None:
        self._result = result

    async def perform(self) -> R:
        """The result."""
        return self._result

    def perform_blocking(self, policy: OnBlocking | None) -> R:
        """The result."""
        return self._result

    def work(self) -> R:
        """The result."""
        return self._result
