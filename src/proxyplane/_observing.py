"""Tells an instrument of a store's operations, by wrapping those of that one store.

Nothing here runs for a store without an instrument: its operations are not touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, cast

from proxyplane._operations import Known, Operation
from proxyplane._progress import nbytes
from proxyplane.cache import MISSING
from proxyplane.metrics import Event, Instrument

_log = logging.getLogger("proxyplane.metrics")

# What makes an operation; what that is called in an event; and which of its arguments is the key,
# or the keys. None: it makes them.
OPERATIONS: dict[str, tuple[str, int | None]] = {
    "getting": ("get", 0),
    "getting_batch": ("get_batch", 0),
    "resolving": ("resolve", 0),
    "looking": ("exists", 0),
    "evicting": ("evict", 0),
    "evicting_batch": ("evict_batch", 0),
    "extending": ("extend", 0),
    "setting": ("set", 0),
    "awaiting": ("wait", 0),
    "reading_set": ("result", 0),
    "replacing": ("update", 1),
    "putting": ("put", None),
    "putting_batch": ("put_batch", None),
    "proxying": ("proxy", None),
    "proxying_batch": ("proxy_batch", None),
    "promising": ("future", None),
}

ENCODE, IO, DECODE = range(3)  # the steps of an operation


def observe(store: Any, instruments: Sequence[Instrument]) -> None:
    """Has every operation of `store` end with a word to the instruments."""

    def tell(event: Event) -> None:
        for instrument in instruments:
            try:
                instrument.record(event)
            except Exception:  # noqa: BLE001  any code; it must not fail the operation
                _log.exception("%r failed to record %r", instrument, event)

    for method, (name, place) in OPERATIONS.items():
        setattr(store, method, _observed(store.name, name, place, getattr(store, method), tell))
    # The short ways go past what is watched.
    store.read = lambda key, default: store.getting(key, default).perform()
    store.read_here = lambda key, default: store.getting(key, default).perform_blocking(
        store.on_blocking
    )
    cached = store.cached

    def seen(key: str) -> Any:
        found = cached(key)
        if found is not MISSING:
            tell(Event(store.name, "resolve", (key,), cached=True))
        return found

    store.cached = seen


def _observed(
    store: str,
    name: str,
    place: int | None,
    make: Callable[..., Operation[Any]],
    tell: Callable[[Event], None],
) -> Callable[..., Operation[Any]]:
    def made(*args: Any, **kwargs: Any) -> Operation[Any]:
        keys: tuple[str, ...] = ()
        if place is not None:
            given = args[place]
            if isinstance(given, str):
                keys = (given,)
            elif isinstance(given, Iterable):  # what can be read only once is read here
                keys = tuple(given)
                args = (*args[:place], keys, *args[place + 1 :])
        operation = make(*args, **kwargs)
        if isinstance(operation, Known):
            if keys:  # else it is no object that a store takes, such as None
                tell(Event(store, name, keys, cached=True))
            return operation
        return _Watch(store, name, keys, place is None, tell).over(operation)

    return made


class _Watch:
    """Takes the times of one operation."""

    def __init__(
        self,
        store: str,
        name: str,
        keys: tuple[str, ...],
        makes_keys: bool,
        tell: Callable[[Event], None],
    ) -> None:
        self.store, self.name, self.keys, self.tell = store, name, keys, tell
        self.makes_keys = makes_keys
        self.start = 0.0
        self.seconds = [0.0, 0.0, 0.0]
        self.size = 0

    def over(self, operation: Operation[Any]) -> Operation[Any]:
        """The operation, watched."""
        prepare, io, io_here = operation.prepare, operation.io, operation.io_here
        finish = operation.finish

        def watched_prepare() -> Any:
            with self.step(ENCODE):
                request = prepare()
            self.size += nbytes(request)
            return request

        async def watched_io(request: Any) -> Any:
            with self.step(IO):
                reply = await io(request)
            return self.came(reply)

        def watched_io_here(request: Any) -> Any:
            with self.step(IO):
                reply = cast(Any, io_here)(request)
            return self.came(reply)

        def watched_finish(reply: Any) -> Any:
            with self.step(DECODE):
                result = finish(reply)
            self.end(None)
            return result

        operation.prepare, operation.io, operation.finish = (
            watched_prepare,
            watched_io,
            watched_finish,
        )
        operation.io_here = io_here and watched_io_here
        return operation

    def came(self, reply: Any) -> Any:
        """Takes note of what the connector gave: keys or bytes."""
        if self.makes_keys:
            self.keys = (reply,) if isinstance(reply, str) else tuple(reply)
        else:
            self.size += nbytes(reply)
        return reply

    @contextmanager
    def step(self, which: int) -> Iterator[None]:
        """Takes the time of a step; one that fails is the last."""
        begin = perf_counter()
        self.start = self.start or begin
        try:
            yield
        except BaseException as error:
            self.seconds[which] = perf_counter() - begin
            self.end(error)
            raise
        self.seconds[which] = perf_counter() - begin

    def end(self, error: BaseException | None) -> None:
        """Tells what happened."""
        whole = perf_counter() - self.start
        encode, io, decode = self.seconds
        self.tell(
            Event(
                self.store,
                self.name,
                self.keys,
                size=self.size,
                seconds=whole,
                encode_seconds=encode,
                io_seconds=io,
                decode_seconds=decode,
                error=error,
            )
        )
