"""Tells an instrument of a store's operations, by wrapping those of that one store.

Nothing here runs for a store without an instrument: its operations are not touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any

from proxyplane._operations import Known, Operation
from proxyplane.cache import MISSING
from proxyplane.metrics import Event, Instrument

_log = logging.getLogger("proxyplane.metrics")

# What makes an operation, and what that is called in an event. All of them take the key, or the
# keys, as their first argument, except those that say otherwise: they make it.
READ_OR_CHANGE = {
    "getting": "get",
    "getting_batch": "get_batch",
    "resolving": "resolve",
    "looking": "exists",
    "evicting": "evict",
    "evicting_batch": "evict_batch",
    "setting": "set",
    "awaiting": "wait",
    "reading_set": "result",
}
MAKE = {
    "putting": "put",
    "putting_batch": "put_batch",
    "proxying": "proxy",
    "proxying_batch": "proxy_batch",
    "promising": "future",
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

    for method, name in (READ_OR_CHANGE | MAKE).items():
        setattr(store, method, _observed(store.name, name, getattr(store, method), tell))
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
    make: Callable[..., Operation[Any]],
    tell: Callable[[Event], None],
) -> Callable[..., Operation[Any]]:
    def made(*args: Any, **kwargs: Any) -> Operation[Any]:
        keys: tuple[str, ...] = ()
        if name in READ_OR_CHANGE.values():
            keys = (args[0],) if isinstance(args[0], str) else tuple(args[0])
        operation = make(*args, **kwargs)
        if isinstance(operation, Known):
            if keys:  # else it is no object that a store takes, such as None
                tell(Event(store, name, keys, cached=True))
            return operation
        return _Watch(store, name, keys, tell).over(operation)

    return made


class _Watch:
    """Takes the times of one operation."""

    def __init__(
        self, store: str, name: str, keys: tuple[str, ...], tell: Callable[[Event], None]
    ) -> None:
        self.store, self.name, self.keys, self.tell = store, name, keys, tell
        self.start = 0.0
        self.seconds = [0.0, 0.0, 0.0]
        self.size = 0

    def over(self, operation: Operation[Any]) -> Operation[Any]:
        """The operation, watched."""
        prepare, io, io_here = operation.prepare, operation.io, operation.io_here
        finish = operation.finish

        def watched_prepare() -> Any:
            request = self.step(ENCODE, prepare)
            self.size += _nbytes(request)
            return request

        async def watched_io(request: Any) -> Any:
            return self.came(await self.astep(IO, io(request)))

        def watched_io_here(request: Any) -> Any:
            return self.came(self.step(IO, io_here, request))

        def watched_finish(reply: Any) -> Any:
            result = self.step(DECODE, finish, reply)
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
        if self.name in MAKE.values():
            self.keys = (reply,) if isinstance(reply, str) else tuple(reply)
        else:
            self.size += _nbytes(reply)
        return reply

    def step(self, which: int, function: Any, *args: Any) -> Any:
        """Calls a step of the operation."""
        begin = self.begin()
        try:
            result = function(*args)
        except BaseException as error:
            self.took(which, begin)
            self.end(error)
            raise
        self.took(which, begin)
        return result

    async def astep(self, which: int, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Awaits a step of the operation."""
        begin = self.begin()
        try:
            result = await coroutine
        except BaseException as error:
            self.took(which, begin)
            self.end(error)
            raise
        self.took(which, begin)
        return result

    def begin(self) -> float:
        """Starts the clock of a step, and at the first one that of the operation."""
        now = perf_counter()
        self.start = self.start or now
        return now

    def took(self, which: int, begin: float) -> None:
        """Stops the clock of a step."""
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


def _nbytes(found: Any) -> int:
    """Bytes of a buffer, or of all buffers in lists of them."""
    if isinstance(found, (list, tuple)):
        return sum(map(_nbytes, found))
    try:
        with memoryview(found) as view:
            return view.nbytes
    except TypeError:  # a key, None, whether it was there
        return 0
