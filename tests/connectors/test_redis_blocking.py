"""Blocking calls of the Redis connector, on connections of the threads that call."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxyplane import sync
from proxyplane.connectors.redis import RedisConnector, parts
from proxyplane.connectors.redis import blocking as module
from proxyplane.exceptions import (
    ConnectorClosedError,
    ConnectorLostError,
    KeyExistsError,
    ObjectTooLargeError,
)
from support.servers import admin, connections
from support.tcp_proxy import TCPProxy
from support.tls_proxy import Authority, TLSProxy
from support.waiting import run_code, until

KB, MB = 1 << 10, 1 << 20


@pytest.fixture
def connector(redis_url):
    made = RedisConnector(redis_url)
    yield made
    asyncio.run(made.aclose(clear=True))


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def alive(connector):
    """The connections for threads that block."""
    return connector._blocking._alive()


# -- where the calls are made --------------------------------------------------------------------

NO_LOOP = """
import sys, threading
from proxyplane import sync
with sync.Store("s", sys.argv[1], cache_size=0) as store:
    key = store.put({"small": 1})
    assert store.get(key) == {"small": 1}
    assert store.exists(key) and not store.exists("absent")
    proxy = store.proxy([1, 2], populate_target=False)
    assert proxy[1] == 2
    large = store.put(b"x" * (1 << 20))
    assert store.get(large) == b"x" * (1 << 20)
    from proxyplane._runtime import io_thread
    assert io_thread._process.thread is None
    batch = store.put_batch([1, 2, 3])
    assert io_thread._process.thread is not None
    store.evict_batch([*batch, key, large])
    assert store.evict(store.put(1))
"""


def test_small_objects_need_no_loop(redis_url):
    """Neither a store's calls nor the touch of a proxy start the library's thread."""
    run_code(NO_LOOP, redis_url)


@pytest.mark.parametrize("size", [1, KB, 16 * KB, 16 * KB + 1, 70 * KB, MB, MB + 70 * KB, 5 * MB])
@pytest.mark.parametrize("hint", [False, True])
def test_any_size(connector, size, hint):
    """What is large goes the other way, and nobody notices."""
    body = os.urandom(size)
    key = connector.put_sync([body[: size // 3], memoryview(body)[size // 3 :]])
    found = connector.get_sync(key, size=size if hint else None)
    assert body == found and type(found) is bytearray
    assert connector.evict_sync(key)


def test_objects_in_parts(connector, redis_server, monkeypatch):
    """They are put, got and evicted whole, and so is what only looks like the record of one."""
    monkeypatch.setattr(parts, "WHOLE", 1000)
    monkeypatch.setattr(parts, "PART", 700)
    body = os.urandom(2000)
    key = connector.put_sync([body])
    assert body == connector.get_sync(key) == connector.get_sync(key, size=2000)
    with admin(redis_server) as client:
        (record,) = client.mget(connector._name(key))
        likeness = connector.put_sync([record])
        assert record == connector.get_sync(likeness)
        assert connector.evict_sync(key) and connector.evict_sync(likeness)
        assert [] == client.keys(f"*{connector._name('').decode()}*")


def test_a_lease_goes_with_the_object(connector, redis_server):
    """By either way."""
    with admin(redis_server) as client:
        for size in (KB, 3 * MB):
            key = connector.put_sync([bytes(size)], ttl=500)
            assert 400_000 < client.pttl(connector._name(key)) <= 500_000
            assert bytes(size) == connector.get_sync(key)


def test_one_connection_serves_one_thread(own_redis_server):
    """One after the other, threads share a connection, and it ends with the connector."""
    server = own_redis_server()
    connector = RedisConnector(server.url)
    with admin(server) as client:
        for _ in range(20):
            thread = threading.Thread(target=lambda: connector.get_sync("absent"))
            thread.start()
            thread.join()
        assert connections(client) == 1
        asyncio.run(connector.aclose())
        asyncio.run(until(lambda: connections(client) == 0))


def test_fifty_threads(own_redis_server):
    """Each gets what it put, over a few connections; what finds none free shares another."""
    server = own_redis_server()
    connector = RedisConnector(server.url)

    def work(number):
        for turn in range(40):
            body = b"%d %d" % (number, turn) * (1 + 700 * (turn % 7 == 0))
            key = connector.put_sync([body], key=f"{number}-{turn}" if turn % 2 else None)
            assert connector.get_sync(key) == body
            assert connector.exists_sync(key)
            with pytest.raises(KeyExistsError):
                connector.put_sync([b"other"], key=key)
            assert connector.evict_sync(key) and not connector.evict_sync(key)
            assert connector.get_sync(key) is None

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(work, range(50)))
    with admin(server) as client:
        assert len(alive(connector)) <= module.MOST
        assert not client.dbsize()
    asyncio.run(connector.aclose())


def test_without_a_free_connection(redis_url):
    """All calls go on, through the library's loop."""
    connector = RedisConnector(redis_url, max_connections=1)
    assert not connector.exists_sync("absent")
    taken = connector._blocking._take(False)
    assert connector._blocking._take(False) is None
    key = connector.put_sync([b"x"])
    assert b"x" == connector.get_sync(key)
    assert connector.exists_sync(key)
    assert connector.evict_sync(key)
    assert "named" == connector.put_sync([b"x"], key="named")
    with pytest.raises(KeyExistsError):
        connector.put_sync([b"y"], key="named")
    del taken
    assert b"x" == connector.get_sync("named")
    assert connector._blocking._take(False) is not None
    asyncio.run(connector.aclose(clear=True))


def test_a_lost_connection_is_replaced_at_once(redis_url):
    """Whatever became of a thread and its connection, its place is free again."""
    connector = RedisConnector(redis_url, max_connections=2)
    before = descriptors()
    for _ in range(5):
        assert connector._blocking._take(False) is not None  # and dropped
    assert descriptors() <= before
    asyncio.run(connector.aclose())


def test_a_forgotten_connector_gives_back_its_connections(redis_url):
    """It need not be closed for that."""
    gc.collect()
    before = descriptors()
    connector = RedisConnector(redis_url)
    assert not connector.exists_sync("absent")
    assert descriptors() > before
    del connector
    gc.collect()
    assert descriptors() <= before


def test_a_closed_connector_ends_the_calls_of_others(own_redis_server, monkeypatch):
    """They are told who closed it, and every connection is given back."""
    made = []

    class Noted(module.BlockingWire):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(module, "BlockingWire", Noted)
    server = own_redis_server()
    connector = RedisConnector(server.url)
    key = connector.put_sync([b"x"])
    server.pause()
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(call)
            for call in (
                lambda: connector.get_sync(key),
                lambda: connector.evict_sync("other"),
                lambda: connector.put_sync([b"x"]),
                lambda: connector.put_sync([b"x" * MB], key="named"),
            )
        ]
        try:
            # One has the connection that is there; the others cannot connect now.
            by_loop = connector._clients._entries
            asyncio.run(until(lambda: by_loop and not connector._blocking._idle))
            clients = [client for client, _ in by_loop.values()]
            asyncio.run(connector.aclose())
            # The library's loop is told, and not waited for.
            asyncio.run(until(lambda: all(client.pool._closed for client in clients)))
        finally:
            server.resume()
        for call in calls:
            with pytest.raises(ConnectorClosedError):
                call.result(30)
    assert made and all(wire.closed for wire in made)


# -- the server, the network, the size -------------------------------------------------------------


def test_after_a_restart_every_call_works_at_once(own_redis_server):
    """Also what is never tried twice: it is seen beforehand that the server is another one."""
    server = own_redis_server()
    connector = RedisConnector(server.url)
    calls = (
        lambda: connector.put_sync([b"x"], key="named"),
        lambda: connector.evict_sync("absent"),
        lambda: connector.get_sync("absent"),
        lambda: connector.put_sync([b"x"]),
        lambda: connector.exists_sync("absent"),
    )
    for call in calls:
        with ThreadPoolExecutor(3) as pool:  # more than one connection
            list(pool.map(lambda _: connector.exists_sync("absent"), range(30)))
        server.kill()
        server.start()
        call()
    asyncio.run(connector.aclose())


def test_a_server_that_is_stuck_is_given_up(own_redis_server):
    """After `timeout` seconds, and what is safe to repeat is not repeated."""
    server = own_redis_server()
    for url in (server.url, server.unix_url):
        connector = RedisConnector(url, timeout=0.2, connect_timeout=0.2)
        key = connector.put_sync([b"x"])
        for call in (
            lambda: connector.get_sync(key),
            lambda: connector.put_sync([b"x" * MB]),
            lambda: connector.exists_sync(key),
            lambda: connector.put_sync([b"x"]),
        ):
            connector.exists_sync(key)
            server.pause()
            try:
                with pytest.raises(ConnectorLostError, match=r"no progress for 0\.2 s"):
                    call()
            finally:
                server.resume()
        asyncio.run(connector.aclose())


async def test_a_slow_link_is_not_taken_for_a_silent_one(redis_server, redis_url):
    """To send this takes longer than the connector waits for progress, which there is all the time.

    The kernel takes all of it at once, so nothing but the kernel knows.
    """
    namespace = redis_url.partition("=")[2]
    with socket.socket() as listening:
        # What lies between holds little itself.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        listening.bind(("127.0.0.1", 0))

        async def accept(reader, writer):
            there, back = await asyncio.open_connection("127.0.0.1", redis_server.port)

            async def forward(reader, writer, pause):
                with contextlib.suppress(OSError):
                    while chunk := await reader.read(8 << 10):
                        await asyncio.sleep(pause)
                        writer.write(chunk)
                        await writer.drain()
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

            await asyncio.gather(forward(reader, back, 0.02), forward(there, writer, 0))

        async with await asyncio.start_server(accept, sock=listening, limit=8 << 10):
            port = listening.getsockname()[1]
            connector = RedisConnector(f"redis://127.0.0.1:{port}", namespace=namespace, timeout=2)
            key = await asyncio.to_thread(connector.put_sync, [bytes(1_000_000)])
            assert await asyncio.to_thread(connector.exists_sync, key)
            await connector.aclose(clear=True)


@pytest.mark.parametrize(
    "nonsense",
    [b"<html>\r\n", b"+" + b"x" * 40_000, b"$%d\r\n" % 10**18, b":1\r\n:1\r\n"],
    ids=["html", "endless", "huge", "two replies"],
)
async def test_a_server_that_talks_nonsense_is_told(nonsense, caplog):
    """Whatever it sends once a connection is made; nobody waits for it, and nothing is logged."""

    async def talk(reader, writer):
        await reader.readuntil(b"PING\r\n")
        writer.write(b"+PONG\r\n")
        await reader.read(100)
        writer.write(nonsense)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.transport.abort()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        connector = RedisConnector(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(ConnectorLostError) as caught:
            await asyncio.to_thread(connector.get_sync, "x")
        assert "the server sent" in str(caught.value.__cause__)
        await connector.aclose()
    assert [] == caplog.records


async def test_over_tls_and_a_slow_way(redis_server, redis_url, tmp_path):
    """Every size in any pieces."""
    authority = Authority(tmp_path)
    namespace = redis_url.partition("=")[2]
    async with TLSProxy(redis_server.port, authority) as tls, TCPProxy(tls.port) as proxy:
        connector = RedisConnector(
            f"rediss://127.0.0.1:{proxy.port}", namespace=namespace, ssl_ca_certs=authority.ca_file
        )
        for delay in (0, 0.001):
            proxy.delay = delay
            for size in (1, KB, 100 * KB, MB):
                body = os.urandom(size)
                key = await asyncio.to_thread(connector.put_sync, [body])
                assert body == await asyncio.to_thread(connector.get_sync, key)
                assert await asyncio.to_thread(connector.evict_sync, key)
        assert 1 == len(alive(connector))
        await connector.aclose()


def test_what_cannot_fit_is_not_sent(own_redis_server):
    """The server's limit is known here too, and asked for once."""
    server = own_redis_server(args=["--maxmemory", "8mb"])
    connector = RedisConnector(server.url)
    with pytest.raises(ObjectTooLargeError, match="maxmemory"):
        connector.put_sync([bytes(9 * MB)])
    connector._blocking.limit = 500 * KB
    with pytest.raises(ObjectTooLargeError, match="maxmemory"):
        connector.put_sync([bytes(MB)])
    with admin(server) as client:
        assert not client.dbsize()
    asyncio.run(connector.aclose())


# -- beside loops ----------------------------------------------------------------------------------


async def test_awaited_calls_take_no_blocking_connection(redis_url):
    """Nor do proxies that are awaited, and batches."""
    connector = RedisConnector(redis_url)
    store = sync.Store("beside loops", connector).asynchronous
    key = await store.put([1])
    assert [1] == await store.get(key)
    assert [1] == await (await store.proxy([1], populate_target=False))
    assert [[1]] == await store.get_batch([key])
    assert await store.exists(key) and await store.evict(key)
    assert [] == alive(connector)
    await store.aclose(clear=True)


async def test_one_fetch_serves_a_thread_and_a_loop(redis_server, redis_url):
    """A thread that touches a proxy and a loop that awaits it meanwhile ask the server once."""
    namespace = redis_url.partition("=")[2]
    async with TCPProxy(redis_server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}?namespace={namespace}"
        async with sync.Store(f"one {namespace}", url, cache_size=0).asynchronous as store:
            one = await store.proxy([1] * 20_000, populate_target=False)
            await asyncio.to_thread(store.connector.exists_sync, "absent")
            before = proxy.forwarded["down"]
            proxy.delay = 0.05
            touched = asyncio.ensure_future(asyncio.to_thread(lambda: one[0]))
            await until(lambda: proxy.forwarded["up"])
            await asyncio.sleep(0.02)
            assert 20_000 == len(await one)
            assert 1 == await touched
            assert proxy.forwarded["down"] - before < 60_000
            proxy.delay = 0
            await store.aclose(clear=True)
