"""Two ways to interrupt: a cancellation at a chosen suspension, and a fork."""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import traceback
import warnings
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn, TypeVar

__all__ = ["cancelled_at", "in_forked_child"]

T = TypeVar("T")


async def cancelled_at(coroutine: Coroutine[Any, Any, object], nth: int, *, times: int = 1) -> bool:
    """Runs a coroutine in a task of its own and cancels it when it suspends for the nth time.

    To try every suspension, begin with 1 and go on until it returns False.

    Args:
        coroutine: What to run.
        nth: Which suspension; the first is 1.
        times: At how many suspensions, from that one on, it is cancelled: two interrupt the
            clean-up, and a number that is large enough does so again and again, as the cancel
            scopes of anyio and Trio do.

    Returns:
        Whether it suspended that often; if not, it has run to its end.

    Raises:
        Whatever the coroutine raises, except the cancellation itself.
    """
    stepper = _Stepper(coroutine, nth, times)

    async def run() -> None:
        await stepper

    try:
        await asyncio.ensure_future(run())
    except asyncio.CancelledError:
        if not stepper.reached:
            raise  # it was not this function but its caller who was cancelled
    return stepper.reached


class _Stepper:
    """Awaits a coroutine step by step."""

    def __init__(self, coroutine: Coroutine[Any, Any, object], nth: int, times: int) -> None:
        self._coroutine = coroutine
        self._left = nth
        self._times = times
        self.reached = False

    def __await__(self) -> Generator[Any, Any, object]:
        steps = self._coroutine.__await__()
        resume: Callable[[Any], Any] = steps.send
        argument: Any = None
        while True:
            try:
                waits_for = resume(argument)
            except StopIteration as stop:
                return stop.value
            self._left -= 1
            if -self._times < self._left <= 0:
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                argument = yield waits_for
                resume = steps.send
            except BaseException as error:  # noqa: BLE001  # goes on in the coroutine
                resume, argument = steps.throw, error


def in_forked_child(function: Callable[[], T], *, timeout: float = 30) -> T:
    """Calls a function in a forked child of this process and returns what it returns.

    Args:
        function: What to call; its result must be picklable.
        timeout: Seconds after which the child is killed.

    Raises:
        AssertionError: The function raised, died or took too long; with its traceback.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of every fork beside threads, which is what is tried here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _be_the_child(function, writer)
    os.close(writer)
    reply = b""
    ended = False
    try:
        while not ended and select.select([reader], [], [], timeout)[0]:
            piece = os.read(reader, 1 << 16)
            reply += piece
            ended = not piece
    finally:
        os.close(reader)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if not ended:
        raise AssertionError(f"the forked child was not done after {timeout} s")
    if not reply:
        raise AssertionError(f"the forked child died (status {status})")
    result, trace = pickle.loads(reply)
    if trace:
        raise AssertionError(f"in the forked child:\n{trace}")
    return result  # type: ignore[no-any-return]  # what the function returned


def _be_the_child(function: Callable[[], object], writer: int) -> NoReturn:
    try:
        try:
            reply = pickle.dumps((function(), ""))
        except BaseException:  # noqa: BLE001  # goes to the parent
            reply = pickle.dumps((None, traceback.format_exc()))
        while reply:
            reply = reply[os.write(writer, reply) :]
    finally:
        # Nothing of the parent's is cleaned up here, neither by pytest nor at exit.
        os._exit(0)
