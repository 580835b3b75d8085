"""What a store did: how often, how much and how long, for all objects and for each of the last.

``Store(metrics=True)`` counts into `Store.metrics`. An `Instrument` of your own is told of every
operation as it ends, for instance to hand it on to a tracing or monitoring system. A store with
neither pays nothing for it.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from proxyplane._runtime.fork import on_fork

__all__ = ["Event", "Histogram", "Instrument", "Metrics", "OperationMetrics"]

SECONDS = tuple(1e-6 * 2**power for power in range(28))
"""Upper bounds of the buckets of times, in seconds: 1 us to 134 s, each twice the one before."""

BYTES = tuple(float(4**power) for power in range(3, 21))
"""Upper bounds of the buckets of sizes, in bytes: 64 B to 1 TiB, each four times the one before."""


@dataclass(frozen=True, slots=True)
class Event:
    """One operation of a store that has ended.

    Attributes:
        store: Name of the store.
        operation: ``"put"``, ``"put_batch"``, ``"proxy"``, ``"proxy_batch"``, ``"get"``,
            ``"get_batch"``, ``"resolve"`` (the target of a proxy), ``"exists"``, ``"evict"``,
            ``"evict_batch"``, ``"extend"``, ``"update"`` (of an owned object), ``"future"``,
            ``"set"``, ``"wait"`` or ``"result"``.
        keys: The keys of the objects, as far as they are known: a put that failed has none.
        size: Encoded bytes that went to the medium or came from it.
        seconds: From the first step to the end of the last, in seconds.
        encode_seconds: Of these, making bytes of objects.
        io_seconds: Of these, the connector's work.
        decode_seconds: Of these, making objects of bytes.
        cached: Whether the store's cache answered, without the medium.
        error: What it raised; None if it succeeded.
    """

    store: str
    operation: str
    keys: tuple[str, ...]
    size: int = 0
    seconds: float = 0.0
    encode_seconds: float = 0.0
    io_seconds: float = 0.0
    decode_seconds: float = 0.0
    cached: bool = False
    error: BaseException | None = None


class Instrument(Protocol):
    """What is told of every operation of a store."""

    def record(self, event: Event) -> None:
        """Takes note of an operation that has ended.

        Called in the thread that ended it, which may be the one of a running loop or the library's
        own: it must return at once, and may not use the store. What it raises is logged, and
        changes nothing for the operation.
        """
        ...


class Histogram:
    """How values are spread, in fixed buckets.

    Attributes:
        bounds: Upper bounds of the buckets; what is above the last counts in one more.
        counts: Values in each bucket.
        count: All values.
        total: Their sum.
        smallest: The least of them; infinite when there are none.
        largest: The greatest of them; 0 when there are none.
        last: The one recorded last; 0 when there are none.
    """

    __slots__ = ("bounds", "count", "counts", "largest", "last", "smallest", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = 0.0
        self.smallest = math.inf
        self.largest = 0.0
        self.last = 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.count += 1
        self.total += value
        self.smallest = min(self.smallest, value)
        self.largest = max(self.largest, value)
        self.last = value

    @property
    def mean(self) -> float:
        """The mean of all values; 0 when there are none."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """A bound that at least `share` (0 to 1) of the values do not exceed; 0 without values.

        It is the upper bound of a bucket, so it may be too high by the width of one.

        Raises:
            ValueError: `share` is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a share lies between 0 and 1, not at {share!r}")
        wanted, seen = share * self.count, 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen >= wanted and seen:
                return min(bound, self.largest)
        return self.largest

    def as_dict(self) -> dict[str, Any]:
        """The numbers as what JSON can hold."""
        return {
            "count": self.count,
            "total": self.total,
            "mean": self.mean,
            "smallest": self.smallest if self.count else 0.0,
            "largest": self.largest,
            "last": self.last,
            "buckets": [
                [bound, count]
                for bound, count in zip((*self.bounds, None), self.counts, strict=True)
                if count
            ],
        }

    def __repr__(self) -> str:
        return f"<Histogram of {self.count}: mean {self.mean:.3g}, largest {self.largest:.3g}>"


class OperationMetrics:
    """What is counted of one kind of operation.

    Attributes:
        count: How often it was asked for.
        errors: How often it failed or was cancelled.
        cached: How often the cache answered.
        objects: How many objects that were, the batches' counted one by one.
        seconds: Whole times, in seconds.
        encode_seconds: Times of making bytes of objects.
        io_seconds: Times of the connector.
        decode_seconds: Times of making objects of bytes.
        size_bytes: Bytes that went to the medium or came from it, where any did.
    """

    __slots__ = (
        "cached",
        "count",
        "decode_seconds",
        "encode_seconds",
        "errors",
        "io_seconds",
        "objects",
        "seconds",
        "size_bytes",
    )

    def __init__(self) -> None:
        self.count = self.errors = self.cached = self.objects = 0
        self.seconds = Histogram(SECONDS)
        self.encode_seconds = Histogram(SECONDS)
        self.io_seconds = Histogram(SECONDS)
        self.decode_seconds = Histogram(SECONDS)
        self.size_bytes = Histogram(BYTES)

    def add(self, event: Event) -> None:
        """Counts one operation."""
        self.count += 1
        self.errors += event.error is not None
        self.cached += event.cached
        self.objects += len(event.keys)
        self.seconds.add(event.seconds)
        for histogram, seconds in (
            (self.encode_seconds, event.encode_seconds),
            (self.io_seconds, event.io_seconds),
            (self.decode_seconds, event.decode_seconds),
        ):
            if seconds:  # that step was made
                histogram.add(seconds)
        if event.size:
            self.size_bytes.add(event.size)

    def as_dict(self) -> dict[str, Any]:
        """The numbers as what JSON can hold."""
        return {
            name: value.as_dict() if isinstance(value, Histogram) else value
            for name, value in ((name, getattr(self, name)) for name in self.__slots__)
        }

    def __repr__(self) -> str:
        return (
            f"<OperationMetrics: {self.count} times, {self.errors} errors, {self.cached} cached, "
            f"mean {self.seconds.mean:.3g} s>"
        )


class Metrics:
    """Counts the operations of a store; an `Instrument`.

    May be read while other threads record. A forked child starts from what its parent had counted.

    Args:
        max_keys: For how many keys, those used last, numbers of their own are kept.
    """

    def __init__(self, max_keys: int = 1000) -> None:
        self.max_keys = max_keys
        self._operations: dict[str, OperationMetrics] = {}
        self._keys: OrderedDict[str, dict[str, OperationMetrics]] = OrderedDict()
        self._lock = threading.RLock()  # a finaliser that ends an operation may come back here
        on_fork(self)

    def after_fork_in_child(self) -> None:
        """Replaces the lock, which another thread may have held."""
        self._lock = threading.RLock()

    def record(self, event: Event) -> None:
        """Counts one operation."""
        with self._lock:
            _of(self._operations, event.operation).add(event)
            # Of a large batch the last ones: the others would only be made to be dropped.
            for key in event.keys[max(0, len(event.keys) - self.max_keys) :]:
                kinds = self._keys.get(key)
                if kinds is None:
                    kinds = self._keys[key] = {}
                else:
                    self._keys.move_to_end(key)
                _of(kinds, event.operation).add(event)
            while len(self._keys) > self.max_keys:
                self._keys.popitem(last=False)

    @property
    def operations(self) -> dict[str, OperationMetrics]:
        """Numbers of all objects together, by the kind of operation."""
        with self._lock:
            return dict(self._operations)

    def of_key(self, key: str) -> dict[str, OperationMetrics]:
        """Numbers of one object, by the kind of operation; empty if none are kept.

        One that was in a batch has the time and the size of that whole batch.
        """
        with self._lock:
            return dict(self._keys.get(key, {}))

    def reset(self) -> None:
        """Starts to count from nothing."""
        with self._lock:
            self._operations = {}
            self._keys = OrderedDict()

    def as_dict(self) -> dict[str, Any]:
        """The numbers of all objects together as what JSON can hold; seconds and bytes."""
        with self._lock:
            return {kind: numbers.as_dict() for kind, numbers in self._operations.items()}

    def __str__(self) -> str:
        """A table of the numbers of all objects together."""
        head = ("operation", "count", "errors", "cached", "mean", "p50", "p99", "bytes")
        rows = [
            (
                kind,
                *map(str, (one.count, one.errors, one.cached)),
                *(
                    f"{seconds * 1e3:.3f} ms"
                    for seconds in (
                        one.seconds.mean,
                        one.seconds.quantile(0.5),
                        one.seconds.quantile(0.99),
                    )
                ),
                f"{one.size_bytes.total:.0f}",
            )
            for kind, one in sorted(self.operations.items())
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in (head, *rows)
        )

    def __repr__(self) -> str:
        counts = ", ".join(f"{one.count} {kind}" for kind, one in self.operations.items())
        return f"<Metrics: {counts or 'nothing yet'}>"


def _of(kinds: dict[str, OperationMetrics], kind: str) -> OperationMetrics:
    numbers = kinds.get(kind)
    if numbers is None:
        numbers = kinds[kind] = OperationMetrics()
    return numbers
