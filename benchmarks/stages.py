"""What a long pipeline leaves in the medium: proxies as they are, evicted by hand, owned, leased.

Two worker processes take turns: each stage reads its input through a proxy and stores its output,
which is the next one's input. One policy runs after the other, and what leaks runs last.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import pickle
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import redis

from benchmarks._figures import size_name
from benchmarks._media import Medium, directories, servers
from benchmarks._report import Op, Point, Report
from benchmarks.harness import peer
from proxyplane.sync import Store, evict

STAGES = 200
SIZE = 1_000_000
LEASE = 1.0
"""Seconds; some forty stages."""
_PAUSE = 0.02
_SETTLED = 30.0

LEAK, BY_HAND, OWNED, LEASED = "as it comes", "evicted by hand", "owned", "leased"


def policies(lease: float) -> dict[str, Callable[[Store, Any], Any]]:
    """How an output is stored; what has no leases yet has no row for them."""
    found: dict[str, Callable[[Store, Any], Any]] = {
        OWNED: lambda store, obj: store.owned_proxy(obj, populate_target=False),
        BY_HAND: lambda store, obj: store.proxy(obj, populate_target=False),
    }
    if "ttl" in inspect.signature(Store.proxy).parameters:
        more: dict[str, Any] = {"ttl": lease}
        found[LEASED] = lambda store, obj: store.proxy(obj, populate_target=False, **more)
    found[LEAK] = found[BY_HAND]
    return found


def run_stages(connection: Connection, place: str, lease: float) -> None:
    """A worker: one stage for each input, until there is None."""
    ways = policies(lease)
    with Store("stages", place, cache_size=0) as store:
        connection.send(True)
        while (order := connection.recv()) is not None:
            policy, arrived = order
            given = pickle.loads(arrived)
            made = ways[policy](store, np.full(SIZE // 8, int(given[-1]) + 1))
            if policy == BY_HAND:
                evict(given)
            del given
            connection.send(pickle.dumps(made))


def held(place: str) -> int:
    """The bytes that the objects of a server, or of a directory, take."""
    if place.startswith("file:"):
        total = 0
        for folder, _, names in os.walk(place.removeprefix("file://")):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                    total += os.lstat(os.path.join(folder, name)).st_blocks * 512
        return total
    with redis.Redis.from_url(place) as client:
        asked = client.pipeline(transaction=False)
        for key in client.scan_iter(count=1000):
            asked.memory_usage(key)
        return sum(filter(None, asked.execute()))


def follow(
    policy: str,
    place: str,
    make_first: Callable[[], Any],
    workers: Sequence[Connection],
    stages: int,
) -> list[float]:
    """What is held after each stage, and in the end, in objects; over what was held before."""
    before = held(place)

    def now() -> float:
        return (held(place) - before) / SIZE

    passed = pickle.dumps(make_first())
    curve = [now()]
    for _, worker in zip(range(stages), itertools.cycle(workers), strict=False):
        worker.send((policy, passed))
        passed = worker.recv()
        curve.append(now())
        time.sleep(_PAUSE)
    last = pickle.loads(passed)
    assert int(last[-1]) == stages
    if policy == BY_HAND:
        evict(last)
    del last
    deadline = time.monotonic() + _SETTLED  # for what goes by itself
    while policy != LEAK and now() > 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    return [*curve, now()]


def measure(report: Report, medium: Medium) -> None:
    """All policies in one medium."""
    quick = report.settings.quick
    # A smoke run may be on a machine where a stage takes long.
    stages, lease = (6, 5 * LEASE) if quick else (STAGES, LEASE)
    name = f"a pipeline of {stages} stages, {size_name(SIZE)} between them, {medium.name}"
    with (
        medium.open() as place,
        peer(run_stages, place, lease) as even,
        peer(run_stages, place, lease) as odd,
        Store("stages", place, cache_size=0) as store,
    ):
        for worker in (even, odd):
            assert worker.recv()
        for policy, make in policies(lease).items():
            first = partial(make, store, np.zeros(SIZE // 8, int))
            curve = follow(policy, place, first, (even, odd), stages)
            report.add(name, f"{policy}, at most", "objects", [max(curve)])
            target: tuple[Op, float] | None = None if policy == LEAK else ("==", 0)
            report.add(name, f"{policy}, in the end", "objects", [curve[-1]], target=target)
            megabytes = [one * SIZE / 1e6 for one in curve]
            report.add_curve(Point("stages", medium.name, policy), range(len(curve)), megabytes)


def run(report: Report) -> None:
    """Runs it over the first server and over files."""
    for medium in (servers(report)[0], directories()[0]):
        measure(report, medium)
