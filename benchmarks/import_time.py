"""What ``import proxyplane`` costs, beside ``import asyncio``: wall time of whole interpreters.

Usage: ``python benchmarks/import_time.py [ROUNDS]``. The candidates take turns, so that a busy
moment of the machine meets all of them; a ratio is taken within each round.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time

BASELINE = "import asyncio"
CANDIDATES = ["pass", BASELINE, "import proxyplane", "import proxyplane.sync"]


def seconds(statement: str, environment: dict[str, str]) -> float:
    """Wall time of an interpreter that runs one statement, in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
    return time.perf_counter() - start


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    candidates = list(CANDIDATES)
    if importlib.util.find_spec("proxystore") is not None:  # a comparison, where it is installed
        candidates.append("import proxystore.store")
    times: dict[str, list[float]] = {statement: [] for statement in candidates}
    with tempfile.TemporaryDirectory() as directory:
        # Compiled code is kept, as it is on a user's machine, whatever this shell says.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": directory}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for statement in candidates:  # compiles, and warms the page cache
            seconds(statement, environment)
        for turn in range(rounds):
            shift = turn % len(candidates)
            for statement in candidates[shift:] + candidates[:shift]:
                times[statement].append(seconds(statement, environment))

    print(f"Python {sys.version.split()[0]}, {rounds} rounds; median (quartiles)")
    print(f"{'statement':28} {'milliseconds':>22} {'ratio to ' + repr(BASELINE):>28}")
    for statement, own in times.items():
        ratios = [one / base for one, base in zip(own, times[BASELINE], strict=True)]
        print(f"{statement:28} {spread(own, 1000, 1):>22} {spread(ratios, 1, 2):>28}")


def spread(values: list[float], factor: float, digits: int) -> str:
    """Median and quartiles, as text."""
    low, middle, high = (factor * one for one in statistics.quantiles(values, n=4))
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


if __name__ == "__main__":
    main()
