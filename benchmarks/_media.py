"""Where objects are kept, and all the ways to keep them there."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks._bare import BareFiles, BareSockets, RedisPy
from benchmarks._machine import server_name
from benchmarks._report import Report
from benchmarks._way import Awaited, InLoop, Ours, Reference, Way
from benchmarks.harness import has_reference, object_directory, redis_server

OURS, AWAITED, UVLOOP, BASE = "proxyplane", "proxyplane, awaited", ", uvloop", "ProxyStore"

Limits = dict[str, tuple[float | None, float | None]]
"""What is asked of ours, blocking and awaited, for each thing that is measured."""


@dataclasses.dataclass(frozen=True)
class Medium:
    """One medium.

    Attributes:
        name: As in tables.
        open: Gives a place for the ways, for as long as it is entered.
        limits: What is asked of ours there.
    """

    name: str
    open: Callable[[], contextlib.AbstractContextManager[str]]
    limits: Limits = dataclasses.field(default_factory=dict)

    def limit(self, what: str, way: str) -> float | None:
        """What is asked of a way, if anything."""
        if not way.startswith(OURS):
            return None
        return self.limits.get(what, (None, None))[way != OURS]


def servers(report: Report, limits: Limits | None = None) -> list[Medium]:
    """Every server; each opening starts a new one."""

    def opening(binary: str) -> Callable[[], contextlib.AbstractContextManager[str]]:
        @contextlib.contextmanager
        def open_() -> Iterator[str]:
            with redis_server(report, binary) as server:
                yield server.url

        return open_

    return [Medium(server_name(one), opening(one), limits or {}) for one in report.settings.servers]


def directories(disk: Limits | None = None, memory: Limits | None = None) -> list[Medium]:
    """The disk of temporary files, and a file system in memory if there is one."""

    def opening(parent: str | None) -> Callable[[], contextlib.AbstractContextManager[str]]:
        @contextlib.contextmanager
        def open_() -> Iterator[str]:
            with object_directory(parent) as path:
                yield f"file://{path}"

        return open_

    found = [Medium("disk", opening(None), disk or {})]
    if os.path.isdir("/dev/shm"):
        found.append(Medium("/dev/shm", opening("/dev/shm"), memory or {}))
    return found


def memory(limits: Limits) -> Medium:
    """The memory of this process."""
    return Medium("memory of the process", lambda: contextlib.nullcontext(""), limits)


def ways(place: str) -> dict[str, type[Way]]:
    """All ways that there are at a place, by the name of their rows."""
    found: dict[str, type[Way]] = {OURS: Ours, **_with_uvloop(AWAITED, Awaited)}
    if has_reference():
        found[BASE] = Reference
    if place.startswith("redis:"):
        return {**found, **_with_uvloop("redis-py", RedisPy), "bare sockets": BareSockets}
    return {**found, "bare system calls": BareFiles} if place else found


def _with_uvloop(name: str, way: type[InLoop]) -> dict[str, type[Way]]:
    """A way in asyncio's loop, and in one of uvloop if that is installed."""
    found: dict[str, type[Way]] = {name: way}
    if importlib.util.find_spec("uvloop"):
        import uvloop

        made: Any = type(way.__name__, (way,), {"new_loop": uvloop.new_event_loop})
        found[name + UVLOOP] = made
    return found


@contextlib.contextmanager
def opened(place: str, *names: str) -> Iterator[dict[str, Way]]:
    """All ways at a place, or some, ready to be used."""
    made: dict[str, Way] = {}
    try:
        for name, way in ways(place).items():
            if name in names or not names:
                made[name] = way(place)
        yield made
    finally:
        for one in made.values():
            one.close()
