"""The published pipelining experiment: a chain of tasks, each of which starts before its input.

Eight tasks take t seconds each. The first part of a task, a fraction f, is overhead that needs no
input (starting up, loading a library); the rest needs the 10 MB that the task before it makes at
its end. All are handed to a pool of eight processes at once, with futures between them. When each
waits for its input only at the end of its overhead, and data takes no time, the chain takes
``t (1 + 7 (1 - f))``; one after another they take ``8 t``. Both parts are slept, so that eight
processes fit on two cores.

Scaled down by default: time and bytes are divided by the same number.
"""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from benchmarks._report import Report
from benchmarks.harness import has_reference, object_directory, redis_server, reference_store
from proxyplane import ProxyFuture
from proxyplane.sync import Store

TASKS = 8
SECONDS = 1.0
BYTES = 10_000_000
SCALE = 0.25
FRACTIONS = (0.2, 0.5, 0.9)


def task(data: Any, output: Any, before: float, after: float, size: int) -> int:
    """One task: overhead, its input, work, its output."""
    time.sleep(before)
    seen = int(data[-1])
    time.sleep(after)
    output.set_result(np.full(size, seen + 1, np.uint8))
    return seen


def chain(
    pool: ProcessPoolExecutor, tasks: int, store: Any, seconds: float, size: int, fraction: float
) -> float:
    """Seconds from handing all tasks to the pool to the result of the last."""
    options = {} if isinstance(store, Store) else {"polling_interval": 0.001}
    futures = [store.future(**options) for _ in range(tasks)]
    inputs = [np.zeros(size, np.uint8), *(future.proxy() for future in futures)]
    before, after = seconds * fraction, seconds * (1 - fraction)
    first = store.proxy(inputs[0])
    began = time.perf_counter()
    done = [
        pool.submit(task, first if i == 0 else inputs[i], futures[i], before, after, size)
        for i in range(tasks)
    ]
    result = futures[-1].result()
    took = time.perf_counter() - began
    assert [one.result() for one in done] == list(range(tasks))
    assert int(result[-1]) == tasks
    # Nothing piles up: a medium that grows gets slower.
    for future in futures:
        store.evict(_key(future))
    return took


def _key(future: Any) -> Any:
    return future._key if isinstance(future, ProxyFuture) else future._factory.key


def measure(report: Report, medium: str, stores: dict[str, Any]) -> None:
    """All fractions over one medium."""
    tasks = 3 if report.settings.quick else TASKS
    scale = 0.02 if report.settings.quick else 1.0 if report.settings.full else SCALE
    seconds, size = SECONDS * scale, int(BYTES * scale)
    rounds = report.settings.few_rounds
    found: dict[tuple[float, str], list[float]] = {}
    with ProcessPoolExecutor(tasks, get_context("spawn")) as pool:
        for store in stores.values():
            chain(pool, tasks, store, 0.1 if report.settings.quick else 0.5, size, 0.9)  # warms up
            chain(pool, tasks, store, 0.05, size, 0.5)
        for _ in range(rounds):
            for fraction in FRACTIONS:
                for name, store in stores.items():
                    took = chain(pool, tasks, store, seconds, size, fraction)
                    found.setdefault((fraction, name), []).append(took)
        for store in stores.values():
            store.close()
    experiment = (
        f"a chain of {tasks} tasks of {seconds:g} s, {size / 1e6:g} MB between them, {medium}"
    )
    for (fraction, name), values in found.items():
        ideal = seconds * (1 + (tasks - 1) * (1 - fraction))
        report.add(
            experiment,
            f"{name}, f = {fraction:g}",
            "s",
            values,
            by=[ideal] * len(values),
            base=f"the ideal {ideal:.3f} s",
            target=("<=", 1.05) if name == "proxyplane" else None,
        )


def run(report: Report) -> None:
    """Runs it over Redis and over files."""
    with redis_server(report) as server:
        measure(report, "Redis", _stores(server.url))
    with object_directory() as path:
        measure(report, "files", _stores(f"file://{path}"))


def _stores(place: str) -> dict[str, Any]:
    name = f"pipeline-{uuid.uuid4().hex}"
    stores: dict[str, Any] = {"proxyplane": Store(name, place, cache_size=0, register=True)}
    if has_reference():
        path = place.removeprefix("file://")
        theirs = path if path == place else f"{path}/reference"
        stores["ProxyStore, 1 ms polling"] = reference_store("pipeline", theirs)
    return stores
