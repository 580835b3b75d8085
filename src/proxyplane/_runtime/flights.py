"""The flights of this process: one for each object that is being fetched, whoever asks for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from proxyplane._runtime.flight import Flight
from proxyplane._runtime.flight_table import process as _process
from proxyplane._runtime.io_thread import Outcome
from proxyplane._runtime.source import Source
from proxyplane.cache import MISSING


def join(
    key: Hashable,
    source: Source,
    is_resolved: Callable[[], bool],
    deliver: Callable[[Any], object],
) -> Flight | None:
    """The flight of `key`, a new one if there is none; None if the object is there by now.

    Args:
        key: What is fetched; whoever asks for an equal key at one time shares one flight.
        source: Where from, if this is the first to ask.
        is_resolved: Whether the caller has the object; asked again under the lock, because a
            flight may have ended since the caller looked.
        deliver: Called with the object before any waiter returns; must not call out.
    """
    with _process.lock:
        if is_resolved():
            return None
        flight = _process.flights.get(key)
        new = flight is None
        if flight is None:
            flight = _process.flights[key] = Flight(key, source)
        flight.deliveries[deliver] = None
        flight.interest += 1
    if new:
        # Another flight may have ended, and left the object in the cache, since the caller looked
        # there; and not under the lock, because a cache has a lock of its own.
        target = source.cached()
        if target is not MISSING:
            flight.settle(Outcome(target, None))
    return flight


def join_under_way(key: Hashable, deliver: Callable[[Any], object]) -> Flight | None:
    """The flight of `key`, as `join` gives it; None if there is none."""
    with _process.lock:
        flight = _process.flights.get(key)
        if flight is not None:
            flight.deliveries[deliver] = None
            flight.interest += 1
    return flight


def in_flight(key: Hashable) -> bool:
    """Whether there is a flight of `key` now."""
    return key in _process.flights


def join_behind(
    key: Hashable,
    source: Source,
    is_wanted: Callable[[], bool],
    deliver: Callable[[Any], object],
    ended: Callable[[], object],
) -> bool | None:
    """Has an object fetched and decoded in the background, as long as nobody takes that back.

    Args:
        key: As for `join`.
        source: As for `join`.
        is_wanted: Asked under the lock; if not, nothing happens.
        deliver: As for `join`. If the object's proxy dies, give it to `leave_behind`. What it
            returns is dropped where user code may run.
        ended: Called once, when the flight that this starts has ended; must not call out.

    Returns:
        Whether this started a flight, or just joined one; None if it did neither.
    """
    with _process.lock:
        if not is_wanted():
            return None
        flight = _process.flights.get(key)
        new = flight is None
        if flight is None:
            flight = _process.flights[key] = Flight(key, source)
            flight.ended = ended
        flight.deliveries[deliver] = None
        flight.behind.add(deliver)
    if new:
        target = source.cached()
        if target is not MISSING:
            flight.settle(Outcome(target, None))
        else:
            flight.launch()
    return new


def leave_behind(key: Hashable, deliver: Callable[[Any], object]) -> None:
    """Takes back a `join_behind`; a flight that nobody else wants is cancelled."""
    with _process.lock:
        flight = _process.flights.get(key)
        if flight is None or deliver not in flight.behind:
            return
        flight.behind.remove(deliver)
        del flight.deliveries[deliver]
    flight.let_go()


def hand_over(deliver: Callable[[Any], object], target: Any) -> None:
    """Delivers what was there without a flight; not at the same time as a flight does."""
    with _process.lock:
        kept = deliver(target)
    del kept
