"""What checksums and signatures cost: for each byte, and for an object through a store.

    python benchmarks/trust.py [--megabytes N] [--rounds N]

Prints milliseconds: the fastest and the median of the rounds, which take turns so that a
disturbance meets all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import xxhash

from proxyplane import FileConnector
from proxyplane.serialization import decode, encode, get_serializer
from proxyplane.sync import Store

Cases = dict[str, Callable[[], object]]

WAYS: dict[str, dict[str, str]] = {
    "as it is": {},
    "checksum='crc32'": {"checksum": "crc32"},
    "checksum='xxh3'": {"checksum": "xxh3"},
    "signing_key=": {"signing_key": "env:BENCHMARK_SIGNING_KEY"},
}


def hashes(data: np.ndarray) -> Cases:
    """One pass over the bytes."""
    target = np.empty_like(data)
    key = b"k" * 64
    return {
        "memcpy, into memory in use": lambda: np.copyto(target, data),
        "memcpy, into fresh memory": lambda: bytearray(data),
        "zlib.crc32": lambda: zlib.crc32(data),
        "xxhash.xxh3_64": lambda: xxhash.xxh3_64_intdigest(data),
        "xxhash.xxh3_128": lambda: xxhash.xxh3_128_digest(data),
        "BLAKE2b, keyed": lambda: hashlib.blake2b(data, key=key).digest(),
        "BLAKE2s, keyed": lambda: hashlib.blake2s(data, key=key[:32]).digest(),
        "SHA-256": lambda: hashlib.sha256(data).digest(),
    }


def stores(data: object, directory: str) -> tuple[Cases, list[Store]]:
    """An object put, read, used and evicted, in files."""
    opened = []
    cases: Cases = {}
    for name, options in WAYS.items():
        path = os.path.join(directory, str(len(opened)))
        store = Store(name, FileConnector(path), cache_size=0, **options)  # type: ignore[arg-type]
        opened.append(store)

        def there_and_back(store: Store = store) -> None:
            key = store.put(data)
            store.get(key)
            store.evict(key)

        cases[name] = there_and_back
    return cases, opened


def codecs(data: object) -> Cases:
    """Encoding and decoding, without a store."""

    def there_and_back(id: str) -> None:
        decode(bytearray(b"".join(encode(data, serializer=get_serializer(id)))))

    return {f"encode and decode, {id}": partial(there_and_back, id) for id in ("pickle", "numpy")}


def measure(cases: Cases, rounds: int, number: int) -> dict[str, list[float]]:
    """Milliseconds of each case, in each round."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for call in cases.values():
        call()
    for _ in range(rounds):
        for name, call in cases.items():
            start = time.perf_counter()
            for _ in range(number):
                call()
            taken[name].append((time.perf_counter() - start) / number * 1e3)
    return taken


def show(title: str, taken: dict[str, list[float]]) -> None:
    """Prints a table."""
    print(f"\n{title:44} {'fastest':>10} {'median':>10}")
    for name, values in taken.items():
        print(f"  {name:42} {min(values):10.4f} {statistics.median(values):10.4f}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100, help="size of the large object")
    parser.add_argument("--rounds", type=int, default=9, help="rounds")
    args = parser.parse_args()
    os.environ["BENCHMARK_SIGNING_KEY"] = os.urandom(32).hex()
    data = np.random.default_rng(1).integers(0, 255, args.megabytes * 1_000_000, "u1")
    small = data[:1000].copy()
    show(f"one pass over {args.megabytes} MB, ms", measure(hashes(data), args.rounds, 1))
    with tempfile.TemporaryDirectory() as directory:
        for what, obj, number in ((f"{args.megabytes} MB", data, 1), ("1 KB", small, 100)):
            cases, opened = stores(obj, directory)
            show(f"put, get, evict of {what} in files, ms", measure(cases, args.rounds, number))
            for store in opened:
                store.close(clear=True)
    show("an array of 1 KB, ms", measure(codecs(small), args.rounds, 500))


if __name__ == "__main__":
    main()
