"""Eight background resolves of 100 ms each: whether they take place together.

Redis stands behind a proxy that delays each request by 100 ms. Eight proxies arrive pickled, are
told to resolve in the background, and are then used one after another by a plain thread.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import proxyplane
from benchmarks._report import Report
from benchmarks.delay import run_delay
from benchmarks.harness import has_reference, peer, redis_server, reference_store
from proxyplane.sync import Store

COUNT = 8
DELAY = 0.1
BODY = b"x" * 1024


def timed(
    make: Callable[[], list[Any]], resolve_async: Callable[[Any], object], fresh: bytes
) -> float:
    """Seconds from the arrival of the proxies to the use of the last."""
    pickled = pickle.dumps(make())
    began = time.perf_counter()
    proxies = pickle.loads(pickled)
    for proxy in proxies:
        resolve_async(proxy)
    assert all(proxy.startswith(fresh) for proxy in proxies)
    return time.perf_counter() - began


def run(report: Report) -> None:
    """Runs it with ours, and with the reference's."""
    with redis_server(report) as server, peer(run_delay, server.port, DELAY) as connection:
        url = f"redis://127.0.0.1:{connection.recv()}/0"
        store = Store("together", url, cache_size=0, register=True)
        bodies = [BODY] * COUNT

        def ours() -> list[Any]:
            return store.proxy_batch(bodies, populate_target=False)

        variants: dict[str, tuple[Callable[[], list[Any]], Callable[[Any], object]]] = {
            "proxyplane": (ours, proxyplane.resolve_async)
        }
        if has_reference():
            from proxystore.store.utils import resolve_async

            theirs = reference_store("together", url)
            variants["ProxyStore"] = (lambda: theirs.proxy_batch(bodies), resolve_async)
        first: dict[str, float] = {}
        found: dict[str, list[float]] = {name: [] for name in variants}
        for name, (make, resolve_async) in variants.items():
            first[name] = timed(make, resolve_async, b"x")
        for _ in range(report.settings.rounds):
            for name, (make, resolve_async) in variants.items():
                found[name].append(timed(make, resolve_async, b"x"))
        store.close()
    experiment = f"{COUNT} background resolves of {DELAY * 1e3:.0f} ms each"
    for name, values in found.items():
        ours_ = name == "proxyplane"
        report.add(experiment, name, "s", values, target=("<=", 0.15) if ours_ else None)
    for name, value in first.items():
        report.add(experiment, f"{name}, the first time, with connecting", "s", [value])
