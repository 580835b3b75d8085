"""Ten thousand futures that one process waits for: what they take, and whether all are woken.

They are awaited in one event loop of a process of their own, in which nothing else happens. Then
another process sets them all.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from multiprocessing.connection import Connection
from typing import Any

from benchmarks._report import Report
from benchmarks.harness import object_directory, peer, processor_seconds, redis_server
from proxyplane import Store


def hold(connection: Connection) -> None:
    """The process that waits."""
    asyncio.run(_hold(connection))


async def _hold(connection: Connection) -> None:
    while (order := await asyncio.to_thread(connection.recv)) is not None:
        pickled, idle = order
        futures = pickle.loads(pickled)
        tasks = [asyncio.ensure_future(future.aresult()) for future in futures]
        await asyncio.sleep(idle / 4)  # to get all of them registered is not what is measured
        connection.send("waiting")
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(idle)
        share = (time.process_time() - cpu) / (time.perf_counter() - began)
        connection.send((share, _inotify_instances(), sum(task.done() for task in tasks)))
        results = await asyncio.gather(*tasks)
        connection.send((time.perf_counter(), results == list(range(len(futures)))))


def _inotify_instances() -> int:
    count = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{entry}") == "anon_inode:inotify"
        except OSError:
            pass  # it was the one that listed them
    return count


async def measure(report: Report, medium: str, place: str, server_pid: int) -> None:
    """One medium."""
    count = 50 if report.settings.quick else 10_000
    idle = 0.4 if report.settings.quick else 10.0
    shares, server, holders, woken, took = [], [], [], [], []
    store = Store("pending", place, cache_size=0)
    with peer(hold) as connection:
        for _ in range(min(report.settings.rounds, 2)):
            futures: list[Any] = []
            while len(futures) < count:
                wave = (store.future() for _ in range(min(50, count - len(futures))))
                futures += await asyncio.gather(*wave)
            connection.send((pickle.dumps(futures), idle))
            await asyncio.to_thread(connection.recv)
            before = processor_seconds(server_pid)
            await asyncio.sleep(idle)
            server.append((processor_seconds(server_pid) - before) / idle * 100)
            subscriptions = await _subscribed_clients(place)
            share, instances, early = await asyncio.to_thread(connection.recv)
            shares.append(share * 100)
            holders.append(float(instances if subscriptions is None else subscriptions))
            began = time.perf_counter()
            for start in range(0, count, 50):
                some = range(start, min(start + 50, count))
                await asyncio.gather(*(futures[i].aset_result(i) for i in some))
            ended, right = await asyncio.to_thread(connection.recv)
            took.append(ended - began)
            woken.append(100.0 if right and not early else 0.0)
    await store.aclose(clear=True)
    experiment = f"{count:,} pending futures over {medium}"
    what = "connections that subscribe" if place.startswith("redis") else "inotify instances"
    report.add(experiment, what, "", holders, target=("==", 1))
    report.add(experiment, "a core, while nothing happens", "%", shares, target=("<=", 1))
    if server_pid:
        report.add(experiment, "the server's, meanwhile", "%", server)
    report.add(experiment, "woken with their value", "%", woken, target=(">=", 100))
    report.add(experiment, "from the first set to the last value", "s", took)


async def _subscribed_clients(place: str) -> int | None:
    if not place.startswith("redis"):
        return None
    import redis.asyncio

    async with redis.asyncio.Redis.from_url(place) as client:
        return sum(int(one["sub"]) > 0 for one in await client.client_list())


def run(report: Report) -> None:
    """Runs it over Redis and over files."""
    with redis_server(report) as server:
        asyncio.run(measure(report, "Redis", server.url, server.pid))
    with object_directory() as path:
        asyncio.run(measure(report, "files", f"file://{path}", 0))
