"""Connections to Redis that are slow, stuck, nonsensical, cancelled, forked or forgotten."""

import asyncio
import contextlib
import gc
import os
import socket
import weakref

import pytest

from proxyplane import RedisConnector
from proxyplane._runtime.io_thread import io_thread
from proxyplane.connectors.redis import pool as pool_module
from proxyplane.connectors.redis import transfer
from proxyplane.connectors.redis.wire import Wire
from proxyplane.exceptions import ConnectorError, ConnectorLostError, ConnectorUnavailableError
from proxyplane.testing import cancelled_at, in_forked_child
from support.servers import admin
from support.tcp_proxy import TCPProxy
from support.tls_proxy import Authority, TLSProxy
from support.waiting import run_code, until

MB = 1 << 20


@pytest.fixture
def namespace(redis_url):
    return redis_url.partition("=")[2]


# -- slow and silent ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def slow_link(port):
    """Gives the port of a link that takes some 400 KB in a second, and holds little itself."""

    async def forward(reader, writer, pause):
        with contextlib.suppress(OSError):
            while chunk := await reader.read(8 << 10):
                await asyncio.sleep(pause)
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def accept(reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", port)
        tasks.extend(
            asyncio.ensure_future(forward(*ends))
            for ends in ((reader, back, 0.02), (there, writer, 0))
        )

    tasks = []
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        listening.bind(("127.0.0.1", 0))
        server = await asyncio.start_server(accept, sock=listening, limit=8 << 10)
        async with server:
            yield listening.getsockname()[1]
        await asyncio.gather(*tasks)


@pytest.mark.row("slow link")
async def test_a_slow_link_is_not_taken_for_a_silent_one(redis_server, namespace):
    """To send this takes longer than the connector waits for progress, which there is all the time.

    The kernel takes all of it at once, so nothing but the kernel knows.
    """
    async with slow_link(redis_server.port) as port:
        connector = RedisConnector(f"redis://127.0.0.1:{port}", namespace=namespace, timeout=2)
        key = await connector.put([bytes(1_600_000)])
        assert await connector.exists(key)
        await connector.aclose(clear=True)


async def test_a_server_that_cannot_be_reached_is_tried_once_for_all():
    """Not by one caller after the other, of whom the last would wait for ever."""
    accepted, ended = [], []

    async def accept(reader, writer):
        accepted.append(writer)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        ended.append(writer)

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connector = RedisConnector(f"redis://127.0.0.1:{port}", connect_timeout=0.5)
        errors = await asyncio.gather(
            *(connector.exists("x") for _ in range(50)), return_exceptions=True
        )
        assert {ConnectorUnavailableError} == {type(error) for error in errors}
        assert len(errors) == len({id(error) for error in errors})
        assert 1 == len(accepted)
        with pytest.raises(ConnectorUnavailableError):
            await connector.exists("x")
        assert 2 == len(accepted)
        await connector.aclose()
        await until(lambda: len(ended) == 2)


async def test_replies_that_nobody_wants_are_limited(own_redis_server):
    """Callers who give up while the server is stuck leave it no more to do than others may ask."""
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.url)
    key = await connector.put([bytes(100)])
    server.pause()
    for _ in range(20):
        tasks = [asyncio.create_task(connector.get(key)) for _ in range(100)]
        await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    server.resume()
    assert bytes(100) == await connector.get(key)
    with admin(server) as client:
        assert 3 * pool_module.TOGETHER > client.info("commandstats")["cmdstat_getrange"]["calls"]
    found = await asyncio.gather(*(connector.get(key) for _ in range(500)))
    assert [bytes(100)] * 500 == found
    await connector.aclose()


NONSENSE = [b"<html>\r\n", b"+" + b"x" * 40_000, b"$%d\r\n" % 10**18, b"*1\r\n$%d\r\nx" % 10**30]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=["html", "endless", "huge", "absurd"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_server_that_talks_nonsense_is_told(nonsense, tls, tmp_path, caplog):
    """Whatever it sends once a connection is made; nobody waits for it, and nothing is logged."""
    over = asyncio.Event()

    async def talk(reader, writer):
        await reader.readuntil(b"PING\r\n")
        writer.write(b"+PONG\r\n")
        await reader.read(100)
        writer.write(nonsense)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.transport.abort()
        over.set()

    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(await asyncio.start_server(talk, "127.0.0.1", 0))
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        if tls:
            authority = Authority(tmp_path)
            port = server.sockets[0].getsockname()[1]
            proxy = await stack.enter_async_context(TLSProxy(port, authority))
            url = f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={authority.ca_file}"
        connector = RedisConnector(url)
        with pytest.raises(ConnectorLostError) as caught:
            await connector.evict("x")
        assert "the server sent" in str(caught.value.__cause__)
        await connector.aclose()
        await over.wait()
    assert [] == caplog.records


# -- cancelled ------------------------------------------------------------------------------------


async def test_a_put_cancelled_when_all_of_it_is_sent_leaves_nothing(
    redis_url, redis_server, monkeypatch
):
    """Between the last byte and the reply it is too late to drop the connection."""
    connector = RedisConnector(redis_url, max_connections=1)
    resume = Wire.resume_writing
    to_go, task = 0, None

    def resume_and_cancel(wire):
        nonlocal to_go
        resume(wire)
        to_go -= 1
        if to_go == 0:
            task.cancel()

    monkeypatch.setattr(Wire, "resume_writing", resume_and_cancel)
    # Each time one moment later; the last of these is after the last byte.
    for moment in range(1, 4):
        await connector.get_batch(["absent"])  # makes a connection if need be
        (wire,) = (await connector._client()).pool._idle
        # Whoever waits for room is woken when all is gone.
        wire._transport.set_write_buffer_limits(high=1, low=0)
        sock = wire._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 10)
        task = asyncio.create_task(connector.put([bytes(3 * MB - MB // 2)]))
        to_go = moment
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        to_go = 0
    with admin(redis_server) as client:
        name = connector._name("").decode()
        await until(lambda: not client.keys(f"{name}*"))
    await connector.aclose(clear=True)


async def test_a_watch_ends_without_further_permission(own_redis_server, monkeypatch):
    """A read that is cancelled leaves nothing at the server that spoils the next transaction."""
    server = await asyncio.to_thread(own_redis_server)
    monkeypatch.setenv("THE_PASSWORD", "secret")
    with admin(server) as client:
        client.execute_command(*"ACL SETUSER some on >secret ~* &* +@all -unwatch".split())
    connector = RedisConnector(
        server.url, username="some", password_env="THE_PASSWORD", max_connections=1
    )
    nth, reached = 1, True
    while reached:
        await connector.put([bytes(9 * MB)], key="large")
        reached = await cancelled_at(connector.get("large", size=9 * MB), nth)
        await connector.evict("large")
        keys = await connector.put_batch([[b"one"], [b"two"]])
        assert [b"one", b"two"] == await connector.get_batch(keys)
        nth += 1
    assert nth > 5
    await connector.aclose()


class Traced(bytearray):
    """A bytearray that can be referred to weakly."""


@pytest.mark.parametrize("end", ["cancelled", "lost"])
async def test_a_read_that_ends_early_holds_no_memory(redis_server, namespace, monkeypatch, end):
    """Neither until the rest of its replies has come, nor until rubbish is collected."""
    made = []

    def new_buffer(size):
        buffer = Traced(size)
        made.append(weakref.ref(buffer))
        return buffer

    gc.collect()
    async with TCPProxy(redis_server.port) as proxy:
        connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        key = await connector.put([bytes(20 * MB)])
        assert 20 * MB == len(await connector.get(key, size=20 * MB))
        monkeypatch.setattr(transfer, "new_buffer", new_buffer)
        start = proxy.forwarded["down"]
        gc.disable()
        try:
            proxy.cut("down", 5 * MB, "stall" if end == "cancelled" else "close")
            task = asyncio.create_task(connector.get(key, size=20 * MB))
            await until(lambda: proxy.forwarded["down"] >= start + 5 * MB)
            if end == "cancelled":
                await asyncio.sleep(0.05)
                task.cancel()
            await asyncio.wait([task])
            del task  # its result, and the frames of its error
            await until(lambda: made and made[0]() is None)
        finally:
            gc.enable()
        await connector.aclose()
    direct = RedisConnector(redis_server.url, namespace=namespace)
    assert await direct.evict(key)
    await direct.aclose()


# -- closed, forked, ended ------------------------------------------------------------------------


async def test_a_close_waits_for_all_at_once(redis_server, namespace, tmp_path, monkeypatch):
    """With TLS a server is asked to agree; one that is stuck holds up the close once."""
    monkeypatch.setattr(pool_module, "_CLOSE_SECONDS", 60)
    authority = Authority(tmp_path)
    async with TLSProxy(redis_server.port, authority) as tls, TCPProxy(tls.port) as proxy:
        connector = RedisConnector(
            f"rediss://127.0.0.1:{proxy.port}", namespace=namespace, ssl_ca_certs=authority.ca_file
        )
        key = await connector.put([bytes(3 * MB)])
        await asyncio.gather(*(connector.get(key, size=3 * MB) for _ in range(4)))
        wires = list((await connector._client()).pool._idle)
        assert len(wires) > 1
        await connector.evict(key)
        proxy.delay = 1000
        closing = asyncio.create_task(connector.aclose())
        await until(lambda: all(wire._transport.is_closing() for wire in wires))
        closing.cancel()
        await asyncio.wait([closing])
        assert all(wire.lost for wire in wires)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
async def test_closing_amid_reads_behind_leaks_nothing(redis_server, namespace):
    """Of eight that wait for the server each one is told, and every descriptor is given back."""
    run = asyncio.to_thread
    async with TCPProxy(redis_server.port) as proxy:
        connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        key = await run(io_thread().run, connector.put([bytes(20 * MB)]))
        await run(io_thread().run, connector.aclose())
        before = descriptors()
        for _ in range(3):
            connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
            loop = io_thread().loop
            proxy.cut("down", 5 * MB, "stall")
            asked = [
                asyncio.run_coroutine_threadsafe(connector.get(key, size=20 * MB), loop)
                for _ in range(8)
            ]
            await until(lambda: proxy._cut is None)
            proxy.stall_all()
            await asyncio.sleep(0.05)
            await run(io_thread().run, connector.aclose())
            results = await asyncio.gather(*map(asyncio.wrap_future, asked), return_exceptions=True)
            assert all(isinstance(one, ConnectorError | bytearray) for one in results)
            proxy.reset_all()
        await until(lambda: descriptors() <= before)
    direct = RedisConnector(redis_server.url, namespace=namespace)
    await direct.evict(key)
    await direct.aclose()


@pytest.mark.parametrize("size", [100, 20 * MB], ids=["shared", "behind"])
async def test_forked_while_a_reply_is_on_its_way(redis_server, namespace, size):
    """The child reads on connections of its own; the parent's go on as if nothing had been."""
    async with TCPProxy(redis_server.port) as proxy:
        connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        data = os.urandom(size)
        key = await asyncio.to_thread(io_thread().run, connector.put([data]))
        await asyncio.to_thread(io_thread().run, connector.get(key, size=size))
        proxy.cut("down", size // 3, "stall")
        asked = asyncio.run_coroutine_threadsafe(connector.get(key, size=size), io_thread().loop)
        await until(lambda: proxy._cut is None)

        def in_child():
            one = io_thread().run(connector.get(key, size=size)) == data
            return one, io_thread().run(connector.exists("absent"))

        assert (True, False) == await asyncio.to_thread(in_forked_child, in_child)
        assert not asked.done()
        proxy.reset_all()
        assert data == await asyncio.wrap_future(asked)
        await asyncio.to_thread(io_thread().run, connector.aclose())
    direct = RedisConnector(redis_server.url, namespace=namespace)
    assert await direct.evict(key)
    await direct.aclose()


EXIT = """
import sys, warnings
warnings.simplefilter("error")
from proxyplane import RedisConnector
from proxyplane._runtime.io_thread import io_thread
import asyncio, os, signal, time
url, pid, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connector = RedisConnector(url)
key = io_thread().run(connector.put([bytes(size)]))
io_thread().run(connector.get(key, size=size))
os.kill(pid, signal.SIGSTOP)
asked = asyncio.run_coroutine_threadsafe(connector.get(key, size=size), io_thread().loop)
time.sleep(0.2)
assert not asked.done()
print("ends")
"""


@pytest.mark.parametrize("size", [100, 20 * MB], ids=["shared", "behind"])
async def test_a_process_ends_while_a_reply_is_on_its_way(own_redis_server, size):
    """Without a word, though the server is stuck."""
    server = await asyncio.to_thread(own_redis_server)
    try:
        done = await asyncio.to_thread(run_code, EXIT, server.url, server.pid, size)
    finally:
        server.resume()
    assert ("ends\n", "") == (done.stdout, done.stderr)
