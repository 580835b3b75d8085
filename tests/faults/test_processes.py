"""Loops, threads and waiters that somebody closes, and what mixed work leaves behind."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
import threading

import pytest

import proxyplane as pp
from proxyplane.connectors._waiters import Waiters
from proxyplane.connectors.local import LocalConnector
from proxyplane.connectors.redis import RedisConnector
from proxyplane.exceptions import ConnectorClosedError, ObjectLostError
from support.soak import SOAK, WAITERS, defended_or_not, recovering, tally, times

ONE_CLIENT = """
import asyncio, sys, threading
from proxyplane.connectors.redis import RedisConnector
connector = RedisConnector(sys.argv[1])
if sys.argv[2] == "undefended":
    real, made = connector._clients.get, []
    async def get():
        if not made:
            made.append(await real())
        return made[0]
    connector._clients.get = get
bad = []
async def work(number):
    for _ in range(20):
        body = b"%d" % number * 1000
        key = await connector.put([body])
        assert await connector.get(key) == body
        assert await connector.evict(key)
def run(number):
    try:
        asyncio.run(asyncio.wait_for(work(number), 3))
    except BaseException as error:
        bad.append(error)
threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(10)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(8)
print("bad" if bad or any(thread.is_alive() for thread in threads) else "good", flush=True)
import os; os._exit(0)
"""


@pytest.mark.row("loops and threads")
@defended_or_not
def test_threads_with_a_loop_each(redis_url, defended):
    """Each loop has a client of its own; were one client used by all, calls would fail or hang."""
    how = "defended" if defended else "undefended"
    done = subprocess.run(
        [sys.executable, "-c", ONE_CLIENT, redis_url, how],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.stdout == ("good\n" if defended else "bad\n"), done.stderr


@pytest.mark.row("store closed under waiters")
@pytest.mark.parametrize("kind", ["local", "redis"])
async def test_closed_under_waiters(redis_server, kind):
    """5,000 who wait through a store that is closed learn it at once."""
    for number in range(times("store closed under waiters")):
        url = f"{redis_server.url}?namespace=closed-{number}"
        connector = LocalConnector() if kind == "local" else RedisConnector(url)
        keys = [await connector.new_key() for _ in range(WAITERS)]
        tasks = [asyncio.create_task(connector.wait(key)) for key in keys]
        await asyncio.sleep(0.2)  # most of them wait, some only begin to
        assert not any(task.done() for task in tasks)
        store = pp.Store(f"closed {kind} {number}", connector)
        with recovering():
            await store.aclose(clear=number % 2 == 1)
            raised = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in raised} <= {ConnectorClosedError, ObjectLostError}


@pytest.mark.row("store closed under waiters")
@pytest.mark.undefended
async def test_closed_under_waiters_undefended(monkeypatch):
    """If a close told nobody, they would wait for ever."""
    monkeypatch.setattr(Waiters, "wake_owned", lambda self, owner: None)
    connector = LocalConnector()
    other = LocalConnector.from_url(connector.url)
    task = asyncio.create_task(connector.wait(await other.new_key()))
    await asyncio.sleep(0.05)
    await connector.aclose()
    await asyncio.wait([task], timeout=1)
    assert not task.done()
    task.cancel()
    with pytest.raises((asyncio.CancelledError, ConnectorClosedError)):
        await task


def held() -> dict[str, int]:
    """What this process holds that could grow."""
    gc.collect()
    with open("/proc/self/statm") as numbers:
        pages = int(numbers.read().split()[1])
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
        "MiB": pages * os.sysconf("SC_PAGE_SIZE") >> 20,
    }


ROOM = {"descriptors": 24, "threads": 40, "tasks": 2, "MiB": 60}
"""What may be more after much work: connections and worker threads that the first round spared."""


@pytest.mark.row("mixed work")
@defended_or_not
@pytest.mark.parametrize("kind", ["file", "redis"])
async def test_mixed_work(redis_url, tmp_path, kind, defended):
    """Twenty tasks put, get, replace, wait, cancel and evict; nothing grows, nothing is wrong."""
    url = redis_url if kind == "redis" else (tmp_path / "objects").as_uri()
    dice = random.Random(7)
    kept = []

    async def one(store, number):
        body = os.urandom(dice.choice((10, 1_000, 100_000, 300_000)))
        which = dice.randrange(5)
        if which == 0:
            future = await store.future()
            waiting = asyncio.create_task(future.aresult())
            await future.aset_result(body)
            assert await waiting == body
            await store.evict(pp.get_key(future.proxy()))
        elif which == 1:
            key = f"name {number}"
            await store.put(body, key=key)
            assert await store.get(key, strict=True) == body
            await store.evict(key)
        elif which == 2:
            task = asyncio.create_task(store.put(body))
            await asyncio.sleep(dice.random() / 1000)
            if not task.cancel():
                await store.evict(await task)
            else:
                await asyncio.wait([task])
                if not task.cancelled():
                    await store.evict(task.result())
        else:
            proxy = await store.proxy(body, populate_target=False)
            key = pp.get_key(proxy)
            assert await proxy == body
            found = await store.get(key)
            assert found == body
            assert await store.evict(key)
            if not defended:
                kept.append((proxy, [body] * 2, os.open("/dev/null", os.O_RDONLY)))

    async with pp.Store(f"mixed {kind} {defended}", url, cache_size=4) as store:

        async def some(number, count):
            for _ in range(count):
                await one(store, number)

        async def work(count):
            await asyncio.gather(*(some(number, count // 20) for number in range(20)))

        await work(200)
        before = held()
        await work(times("mixed work") if defended else 300)
        now = held()
        grown = {name: now[name] - before[name] for name in now}
        flat = all(grown[name] <= ROOM[name] for name in grown)
        for *_, descriptor in kept:
            os.close(descriptor)
        assert flat is defended, grown
        if defended and SOAK:
            tally.notes.append(f"{kind}: {grown}")
