"""Loops, threads, and waiters whose store somebody closes."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

import proxyplane as pp
from proxyplane.connectors._waiters import Waiters
from proxyplane.connectors.local import LocalConnector
from proxyplane.connectors.redis import RedisConnector
from proxyplane.exceptions import ConnectorClosedError, ObjectLostError
from support.soak import WAITERS, defended_or_not, recovering, times

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
