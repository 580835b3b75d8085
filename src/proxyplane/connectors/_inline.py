"""For connectors with plain calls: when one may run on the loop, what a cancelled one leaves.

A coroutine that wraps a plain call runs it in place while it is short, and on a worker thread when
it would stall the loop. There a cancellation arrives in the middle, and the worker cannot be
stopped: `put_in_worker` settles which came first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from proxyplane._runtime.workers import run_in_worker
from proxyplane.abc import Frames

T = TypeVar("T")

# Copying this many bytes takes 0.1 to 0.3 ms, the hop to a worker and back as much.
INLINE_BYTES = 1 << 20
"""Bodies above this many bytes are moved on a worker thread, not on the event loop."""


class WouldStallError(Exception):
    """It would take longer than the caller allows on this thread; nothing was done."""


class AbandonedError(Exception):
    """The caller of a put was cancelled; nothing may be published any more."""


class Claim(Generic[T]):
    """Settles, between two threads, whether a put ended or its caller was cancelled first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._abandoned = False
        self._result: T | None = None

    def check(self) -> None:
        """Worker: call before publishing.

        Raises:
            AbandonedError: The caller was cancelled.
        """
        if self._abandoned:
            raise AbandonedError

    def settle(self, result: T) -> bool:
        """Worker: it is published. False when the caller was cancelled, and will not undo it."""
        with self._lock:
            if not self._abandoned:
                self._result = result
            return not self._abandoned

    def abandon(self) -> T | None:
        """Caller: it was cancelled. Returns what was published, which the caller must undo."""
        with self._lock:
            self._abandoned = True
            return self._result


async def put_in_worker(put: Callable[[Claim[T]], T], undo: Callable[[T], object]) -> T:
    """Runs ``put(claim)`` on a worker thread; a cancelled caller leaves nothing published.

    Args:
        put: Stores and returns what names the result; calls ``claim.check()`` before publishing.
        undo: Removes what `put` published, from either thread.
    """
    claim: Claim[T] = Claim()

    def call() -> T:
        result = put(claim)
        if not claim.settle(result):
            undo(result)
        return result

    try:
        return await run_in_worker(call)
    except BaseException:
        result = claim.abandon()
        if result is not None:
            undo(result)
        raise


async def swap_in_worker(swap: Callable[[Claim[tuple[T]]], T]) -> T:
    """Runs ``swap(claim)`` on a worker thread; that of a cancelled caller is done whole, or not.

    Args:
        swap: Replaces an object; calls ``claim.check()`` before that.
    """
    (was,) = await put_in_worker(lambda claim: (swap(claim),), lambda _: None)
    return was


def views(frames: Frames) -> list[memoryview]:
    """The frames as flat views of bytes, without a copy and without the empty ones.

    Raises:
        BufferError: A frame is not contiguous.
    """
    flat = []
    for frame in frames:
        view = memoryview(frame)
        if not view.nbytes:
            continue  # a view with a zero in its shape cannot be cast
        if type(frame) is not bytes:  # of which nothing else can be true
            if not view.c_contiguous:
                raise BufferError("a frame must be contiguous memory")
            if view.ndim != 1 or view.itemsize != 1 or view.format != "B":
                view = view.cast("B")
        flat.append(view)
    return flat


def total(bodies: list[memoryview]) -> int:
    """Bytes in all of them."""
    return sum([body.nbytes for body in bodies])
