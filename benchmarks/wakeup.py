"""From the call that sets a result, in one process, to its value in the hands of another.

A consumer process waits in an event loop; the producer, in another process, sets the result some
milliseconds later. Both read the same clock. All variants take turns within a round.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from multiprocessing.connection import Connection

from benchmarks import _wakers
from benchmarks._report import Report
from benchmarks._wakers import Variant
from benchmarks.harness import has_reference, object_directory, peer, quantile, redis_server

# In a round each variant has its turn so often, and so many wake-ups in each.
BLOCKS, BLOCK = 5, 40


def consume(connection: Connection, variants: list[Variant]) -> None:
    """The consumer process."""
    asyncio.run(_consume(connection, variants))


async def _consume(connection: Connection, variants: list[Variant]) -> None:
    while (order := await asyncio.to_thread(connection.recv)) is not None:
        number, token = order
        variant = variants[number]
        await variant.prepare(token)
        connection.send("ready")
        began, cpu = time.perf_counter(), time.process_time()
        await variant.wait()
        arrived = time.perf_counter()
        connection.send((arrived, (time.process_time() - cpu) / (arrived - began)))
    for variant in variants:
        await variant.close()


async def sample(
    variant: Variant, number: int, connection: Connection, pause: float
) -> tuple[float, float]:
    """Microseconds from the call to the value, and percent of a core used while waiting."""
    connection.send((number, await variant.begin()))
    connection.recv()
    await asyncio.sleep(pause)
    called = time.perf_counter()
    await variant.fire()
    arrived, cpu = connection.recv()
    return (arrived - called) * 1e6, cpu * 100


async def measure(
    report: Report, medium: str, variants: dict[str, Variant], base: str, limit: float
) -> None:
    """All variants over one medium; the first is ours."""
    quick, rounds = report.settings.quick, report.settings.few_rounds
    found: dict[str, list[list[float]]] = {name: [] for name in variants}
    used: dict[str, list[float]] = {name: [] for name in variants}
    listed = list(variants.values())
    with peer(consume, listed) as connection:
        for variant in listed:
            for _ in range(1 if quick else 20 if type(variant) is not _wakers.Reference else 1):
                await sample(variant, listed.index(variant), connection, 0.01)
        for _ in range(rounds):
            for name in variants:
                found[name].append([])
            for _ in range(1 if quick else BLOCKS):
                for number, (name, variant) in enumerate(variants.items()):
                    slow = type(variant) is _wakers.Reference  # a second each
                    for _ in range(1 if slow or quick else BLOCK):
                        pause = random.uniform(0.005, 0.015)
                        pause += slow * (not quick) * random.random()
                        took, _ = await sample(variant, number, connection, pause)
                        found[name][-1].append(took)
            for number, (name, variant) in enumerate(variants.items()):
                if not isinstance(variant, (_wakers.Ours, _wakers.Reference)):
                    continue
                _, cpu = await sample(variant, number, connection, 0.05 if quick else 1.0)
                used[name].append(cpu)
    for variant in listed:
        await variant.close()
    experiment = f"wake-up over {medium}, 1 KB"
    halves = {name: [quantile(one, 0.5) for one in all_] for name, all_ in found.items()}
    for name in variants:
        ours = name == next(iter(variants))
        by = halves[base] if name != base else None
        report.add(
            experiment,
            f"{name}, p50",
            "us",
            halves[name],
            by=by,
            base=base if by else "",
            target=("<=", limit) if ours else None,
        )
        if ours and "redis-py pub/sub" in halves:
            report.add(
                experiment,
                f"{name}, p50, by redis-py",
                "us",
                halves[name],
                by=halves["redis-py pub/sub"],
                base="redis-py pub/sub",
                target=("<=", limit),
            )
        report.add(experiment, f"{name}, p99", "us", [quantile(one, 0.99) for one in found[name]])
        if used[name]:
            report.add(experiment, f"{name}, a core while waiting", "%", used[name])


def run(report: Report) -> None:
    """Runs it over Redis and over files."""
    with redis_server(report) as server:
        url = server.url
        variants: dict[str, Variant] = {
            "proxyplane": _wakers.Ours(url),
            "raw pub/sub": _wakers.RawPubSub(url),
            "redis-py pub/sub": _wakers.RedisPyPubSub(url),
            "raw SET and pub/sub, then GET": _wakers.RawSetAndGet(url),
        }
        if has_reference():
            variants["ProxyStore, 1 ms polling"] = _wakers.FastReference(url)
            variants["ProxyStore, as it comes"] = _wakers.Reference(url)
        asyncio.run(measure(report, "Redis", variants, "raw pub/sub", 1.75))
    media = {"files on disk": None, "files in /dev/shm": "/dev/shm"}
    for medium, parent in media.items():
        with object_directory(parent) as path:
            variants = {
                "proxyplane": _wakers.Ours(f"file://{path}/ours"),
                "raw inotify": _wakers.RawInotify(path),
                "raw inotify, and read": _wakers.InotifyAndRead(path),
            }
            os.mkdir(f"{path}/ours", 0o700)
            if has_reference():
                variants["ProxyStore, 1 ms polling"] = _wakers.FastReference(f"{path}/reference")
                variants["ProxyStore, as it comes"] = _wakers.Reference(f"{path}/reference")
            asyncio.run(measure(report, medium, variants, "raw inotify", 2.3))
