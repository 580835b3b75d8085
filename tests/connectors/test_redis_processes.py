"""One Redis connector in many loops, threads and processes."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import warnings

import pytest

from proxyplane.connectors.redis import RedisConnector
from proxyplane.exceptions import ConnectorClosedError
from support.servers import admin, connections


def run_in_threads(count, target):
    """Runs `target(i)` in threads and raises what any of them raised."""
    failures = []

    def run(i):
        try:
            target(i)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    if failures:
        raise failures[0]


def test_two_runs_in_sequence(redis_url, redis_server):
    """A connector outlives the loop it was used in; each loop's connections end with it."""
    connector = RedisConnector(redis_url)
    with admin(redis_server) as client:
        before = connections(client)
        key = asyncio.run(connector.put([b"x"]))
        assert connections(client) <= before
        for _ in range(3):
            assert b"x" == asyncio.run(connector.get(key))
        assert connections(client) <= before
    asyncio.run(connector.aclose(clear=True))


@pytest.mark.row("loops and threads")
def test_fifty_threads_with_a_loop_each(redis_url, redis_server):
    """Fifty loops at once share one connector, and nobody gets another's object."""
    connector = RedisConnector(redis_url)

    async def work(i):
        bodies = [b"%d:%d" % (i, j) * (1 + 20_000 * (j % 3)) for j in range(10)]
        keys = [await connector.put([body]) for body in bodies]
        assert bodies == await asyncio.gather(*(connector.get(key) for key in keys))
        assert bodies == await connector.get_batch(keys)
        assert [True] * 10 == await connector.evict_batch(keys)

    with admin(redis_server) as client:
        before = connections(client)
        run_in_threads(50, lambda i: asyncio.run(work(i)))
        assert connections(client) <= before
    asyncio.run(connector.aclose())


def test_closing_in_one_loop_closes_in_all(redis_url, redis_server):
    """The connections of another loop end on that loop, and its calls learn who closed them."""
    connector = RedisConnector(redis_url)
    ready, closed = threading.Event(), threading.Event()

    async def use():
        key = await connector.put([b"x"])
        assert b"x" == await connector.get(key)
        ready.set()
        await asyncio.to_thread(closed.wait)
        with pytest.raises(ConnectorClosedError):
            await connector.get(key)
        with admin(redis_server) as client:
            while connections(client) > before:
                await asyncio.sleep(0.001)

    with admin(redis_server) as client:
        before = connections(client)

    def target(i):
        if i == 0:
            asyncio.run(use())
        else:
            ready.wait(20)
            asyncio.run(connector.aclose(clear=True))
            closed.set()

    run_in_threads(2, target)


def test_with_uvloop(redis_url):
    """The transports of uvloop behave alike."""
    uvloop = pytest.importorskip("uvloop")
    connector = RedisConnector(redis_url)

    async def work():
        body = bytearray(range(256)) * (40 << 10)
        key = await connector.put([memoryview(body)[:5], memoryview(body)[5:]])
        keys = await connector.put_batch([[body], [b"x"]])
        assert [body, body, b"x"] == await connector.get_batch([key, *keys])
        task = asyncio.create_task(connector.put([body * 4], key="cancelled"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert body == await connector.get(key)
        assert not await connector.exists("cancelled")
        await connector.aclose(clear=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


def test_a_forgotten_connector_closes_its_connections(own_redis_server):
    """Dropping the last reference without aclose warns, as for a file, and leaks no connection."""

    server = own_redis_server()

    async def work():
        with admin(server) as client:
            connector = RedisConnector(server.url)
            await connector.evict(await connector.put([b"x"]))
            assert connections(client) == 1
            del connector
            while connections(client):
                gc.collect()
                await asyncio.sleep(0.001)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(work())


FORK = """
import asyncio, os, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)  # fork beside threads
from proxyplane.connectors.redis import RedisConnector

url = sys.argv[1]
connector = RedisConnector(url)
body = os.urandom(3 << 20)

async def child(key, named):
    assert body == await connector.get(key)
    mine = await connector.put([b"child"])
    assert mine[:16] != key[:16]
    await connector.put([b"child"], key="named by child")
    await connector.aclose(clear=True)
    other = RedisConnector(url)
    assert not await other.exists(mine)
    assert not await other.exists("named by child")
    assert [True, True] == [await other.exists(key), await other.exists(named)]
    await other.aclose()

async def parent():
    key = await connector.put([body])
    named = await connector.put([b"parent"], key="named by parent")
    reads = [asyncio.create_task(connector.get(key)) for _ in range(4)]  # forked in the middle
    await asyncio.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(child(key, named))
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    found = await asyncio.gather(*reads)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        assert body == await connector.get(key)
        await asyncio.sleep(0)
    assert 0 == status, status
    assert all(body == one for one in found)
    assert [body, b"parent"] == await connector.get_batch([key, named])
    await connector.aclose(clear=True)

asyncio.run(parent())
print("done")
"""


def test_a_forked_child_uses_its_own_connections_and_owns_nothing(redis_url, redis_server):
    """Forked while reads are under way: neither process disturbs the other."""
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", FORK, redis_url],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ("done\n", "", 0) == (result.stdout, result.stderr, result.returncode)
    with admin(redis_server) as client:
        assert [] == client.keys(f"{redis_url.partition('=')[2]}:*")


def test_another_process_builds_it_from_its_url(redis_url, monkeypatch):
    """The URL is all that another process needs, besides the secret in its environment."""
    connector = RedisConnector(redis_url, timeout=7, max_connections=3)
    key = asyncio.run(connector.put([b"from ", b"here"]))
    code = (
        "import asyncio, sys\n"
        "from proxyplane.connectors.redis import RedisConnector\n"
        "connector = RedisConnector.from_url(sys.argv[1])\n"
        "async def main():\n"
        "    body = await connector.get(sys.argv[2])\n"
        "    await connector.aclose()\n"
        "    return bytes(body).decode(), connector.url == sys.argv[1]\n"
        "print(*asyncio.run(main()))\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, connector.url, key],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ("from here True\n", "") == (result.stdout, result.stderr)
    asyncio.run(connector.aclose(clear=True))
