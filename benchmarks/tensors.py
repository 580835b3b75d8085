"""What it costs to move tensors and arrays of JAX, beside an array of NumPy.

    python benchmarks/tensors.py [--megabytes N] [--rounds N]

Needs PyTorch and JAX, and Linux. Prints milliseconds, the fastest of the rounds, and how much the
memory of the process grew meanwhile, in MB. A put and a get are of files; a get ends when all
numbers were added.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from proxyplane import FileConnector
from proxyplane.serialization import decode, encode
from proxyplane.sync import Store


def objects(numbers: int) -> dict[str, Any]:
    """What is moved; the numbers of each have 4 bytes."""
    array = np.arange(numbers, dtype=np.float32)
    tensor = torch.from_numpy(array.copy())
    return {
        "array of NumPy": array,
        "tensor": tensor,
        "tensor of bfloat16": tensor.to(torch.bfloat16).repeat(2),
        "state of a model": {"weight": tensor.reshape(-1, 100)},
        "half of a larger tensor": tensor.repeat(2)[:numbers],
        "every second number": tensor.repeat(2)[::2],
        "array of JAX": jnp.asarray(array) + 0,
    }


def add(obj: Any) -> Any:
    """Reads all numbers."""
    return add(obj["weight"]) if isinstance(obj, dict) else float(obj.sum())


def memory(field: str) -> float:
    """What this process has (VmRSS) or had at most (VmHWM), in MB."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(field))


def measured(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, growth in MB at most, and the result."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as reset:
        reset.write("5")
    before, start = memory("VmRSS"), time.perf_counter()
    result = function()
    return time.perf_counter() - start, memory("VmHWM") - before, result


def steps(store: Store, obj: Any) -> list[tuple[float, float]]:
    """One round: encode, decode, put, get."""
    encoded, encoded_growth, frames = measured(lambda: encode(obj))
    buffer = bytearray(b"".join(frames))
    decoded, decoded_growth, back = measured(lambda: decode(buffer))
    del frames, back
    put, put_growth, key = measured(lambda: store.put(obj))
    got, got_growth, _ = measured(lambda: add(store.get(key)))
    store.evict(key)
    return [
        (encoded, encoded_growth),
        (decoded, decoded_growth),
        (put, put_growth),
        (got, got_growth),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{'ms, MB':24}" + "".join(f"{step:>16}" for step in ("encode", "decode", "put", "get")))
    with (
        tempfile.TemporaryDirectory(prefix="proxyplane-bench-") as directory,
        Store("tensors", FileConnector(directory), cache_size=0, eager=False) as store,
    ):
        for name, obj in objects(options.megabytes * 250_000).items():
            rounds = [steps(store, obj) for _ in range(options.rounds)]
            best = [min(column) for column in zip(*rounds, strict=True)]
            figures = (f"{1000 * seconds:9.1f} {growth:6.0f}" for seconds, growth in best)
            print(f"{name:24}" + "".join(figures))


if __name__ == "__main__":
    main()
