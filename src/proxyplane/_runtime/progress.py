"""How far a put or a get has come: told by connectors, from any thread, to whoever asked for it.

The one who asks leaves a `Meter` in the context of the call. A connector that can tell looks for
it, and only a transfer of some length does: nothing is passed down, and without a meter nothing is
done. A connector writes two numbers into the meter; the caller reads them now and then, in its own
thread, so the user's function never runs on the library's loop and never inside of a connector.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], object]
"""Told how many bytes are done, and of how many."""

_meter: ContextVar[Meter | None] = ContextVar("proxyplane progress", default=None)


class Meter:
    """How far one operation has come.

    Attributes:
        latest: Bytes done and all bytes, as told last.
    """

    __slots__ = ("latest",)

    def __init__(self) -> None:
        self.latest: tuple[int, int] | None = None

    def tell(self, total: int, done: int) -> None:
        """Takes note, from any thread."""
        self.latest = (done, total)


@contextlib.contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """What is called in the block, and what it spawns, tells the meter."""
    token = _meter.set(meter)
    try:
        yield
    finally:
        _meter.reset(token)


def telling(total: int) -> Callable[[int], object] | None:
    """For a connector: what to tell how many of so many bytes are done; None if nobody asked.

    It is quick, never raises, and may be called from any thread.
    """
    meter = _meter.get()
    return None if meter is None else partial(meter.tell, total)
