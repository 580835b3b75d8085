"""What a blocking call costs, on its several ways to an event loop and without one.

    python benchmarks/hop.py [--number N] [--repeat N]

Prints microseconds per call: the fastest and the median of the rounds, which take turns so that a
disturbance meets all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Callable

from anyio.from_thread import start_blocking_portal

from proxyplane import FileConnector
from proxyplane._runtime.io_thread import io_thread
from proxyplane.sync import Store


class NoShortcut(FileConnector):
    """Files, with nothing but coroutines."""

    put_sync = get_sync = exists_sync = evict_sync = None  # type: ignore[assignment]


async def nothing() -> None:
    """A coroutine that need not wait."""


async def one_turn() -> None:
    """A coroutine that waits for one turn of the loop."""
    await asyncio.sleep(0)


def measure(function: Callable[[], object], number: int) -> float:
    """Microseconds per call."""
    start = time.perf_counter()
    for _ in range(number):
        function()
    return (time.perf_counter() - start) / number * 1e6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=2000, help="calls per round")
    parser.add_argument("--repeat", type=int, default=7, help="rounds")
    args = parser.parse_args()

    hop = io_thread()
    plain = asyncio.new_event_loop()
    threading.Thread(target=plain.run_forever, daemon=True).start()
    body = b"x" * 1024
    with tempfile.TemporaryDirectory() as directory, start_blocking_portal() as portal:
        direct = Store("direct", FileConnector(directory), cache_size=0)
        hopping = Store("hopping", _hide(FileConnector(directory)), cache_size=0)
        key = direct.put(body)
        cases: dict[str, Callable[[], object]] = {
            "IOThread.run(nothing)": lambda: hop.run(nothing()),
            "run_coroutine_threadsafe(nothing), same loop": lambda: (
                asyncio.run_coroutine_threadsafe(nothing(), hop.loop).result()
            ),
            "run_coroutine_threadsafe(nothing), asyncio's loop": lambda: (
                asyncio.run_coroutine_threadsafe(nothing(), plain).result()
            ),
            "anyio portal.call(nothing)": lambda: portal.call(nothing),
            "IOThread.run(one turn)": lambda: hop.run(one_turn()),
            "get 1 KB of a file, shortcut": lambda: direct.get(key),
            "get 1 KB of a file, hop": lambda: hopping.get(key),
            "put 1 KB into a file, shortcut": lambda: direct.put(body),
            "put 1 KB into a file, hop": lambda: hopping.put(body),
        }
        results: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(args.repeat):
            for name, function in cases.items():
                results[name].append(measure(function, args.number))
        stop = threading.Event()
        threading.Thread(target=_compute, args=(stop,), daemon=True).start()
        time.sleep(0.1)
        for name in ("get 1 KB of a file, shortcut", "get 1 KB of a file, hop"):
            busy = results[f"{name}, beside a busy thread"] = []
            for _ in range(args.repeat):
                busy.append(measure(cases[name], args.number // 4))
        stop.set()
        for name, values in results.items():
            print(f"{name:52} {min(values):9.1f} {statistics.median(values):9.1f}")
        direct.close()
        hopping.close()
    plain.call_soon_threadsafe(plain.stop)


def _compute(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))


def _hide(connector: FileConnector) -> FileConnector:
    connector.__class__ = NoShortcut
    return connector


if __name__ == "__main__":
    main()
