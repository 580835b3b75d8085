"""What it costs that proxies which arrive resolve in the background.

    python benchmarks/arrivals.py [--number N] [--repeat N]

Compares proxies that do so with proxies made with `eager=False`, in rounds that take turns. Prints
the fastest and the median of the rounds.
"""

from __future__ import annotations

import argparse
import gc
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from proxyplane import FileConnector, LocalConnector
from proxyplane._runtime import eager
from proxyplane.sync import Store
from proxyplane.testing import SlowConnector

SLOW = 0.1


def settle() -> None:
    """Returns when nothing is under way in the background."""
    process = eager._process
    while process.alert or (process.window and (process.window.queue or process.window.flights)):
        time.sleep(0.001)


def unpickle(data: bytes) -> float:
    """Seconds to unpickle, of which the proxies are dropped at once."""
    start = time.perf_counter()
    proxies = pickle.loads(data)
    took = time.perf_counter() - start
    del proxies
    return took


def forward(data: bytes) -> float:
    """Seconds of processor time, of all threads, to unpickle and pickle again."""
    start = time.process_time()
    pickle.dumps(pickle.loads(data))
    settle()
    return time.process_time() - start


def use(data: bytes) -> float:
    """Seconds to unpickle and touch each at once."""
    start = time.perf_counter()
    for proxy in pickle.loads(data):
        len(proxy)
    return time.perf_counter() - start


def use_later(data: bytes) -> float:
    """Seconds to touch each after something else was waited for."""
    proxies = pickle.loads(data)
    settle()
    start = time.perf_counter()
    for proxy in proxies:
        len(proxy)
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=1000, help="proxies per round")
    parser.add_argument("--repeat", type=int, default=15, help="rounds")
    args = parser.parse_args()
    cases: dict[str, Callable[[bytes], float]] = {
        "unpickle": unpickle,
        "unpickle and pickle onwards, processor time": forward,
        "unpickle and touch, 1 KB files": use,
        "touch when they have arrived, 1 KB files": use_later,
    }
    with (
        tempfile.TemporaryDirectory() as directory,
        Store("arrivals", FileConnector(directory), cache_size=0) as store,
    ):
        objs = [b"x" * 1024] * args.number
        pickled = {
            name: pickle.dumps(store.proxy_batch(objs, eager=on, populate_target=False))
            for name, on in (("eager", True), ("lazy", False))
        }
        gc.disable()
        for case, measure in cases.items():
            found: dict[str, list[float]] = {name: [] for name in pickled}
            for _ in range(args.repeat):
                for name, data in pickled.items():
                    found[name].append(measure(data) / args.number * 1e6)
                    settle()
            for name, values in found.items():
                print(
                    f"{case}, {name}: {min(values):.2f} us each, median "
                    f"{statistics.median(values):.2f}"
                )
    eight: Any = SlowConnector(LocalConnector(), SLOW, operations={"get"})
    with Store("slow", eight, cache_size=0) as store:
        data = pickle.dumps(store.proxy_batch([b"x"] * 8, populate_target=False))
        took = []
        for _ in range(args.repeat):
            start = time.perf_counter()
            proxies = pickle.loads(data)
            for proxy in proxies:
                assert proxy == b"x"
            took.append(time.perf_counter() - start)
        print(f"eight of {SLOW} s each, touched in turn: {statistics.median(took):.3f} s, median")


if __name__ == "__main__":
    main()
