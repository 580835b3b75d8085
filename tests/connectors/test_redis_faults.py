"""The Redis connector when the server, the network or the caller goes away in the middle."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from redis import exceptions as redis_errors

from proxyplane.connectors.redis import RedisConnector
from proxyplane.connectors.redis.errors import map_errors
from proxyplane.connectors.redis.url import parse_url
from proxyplane.connectors.redis.wire import Wire
from proxyplane.exceptions import (
    ConnectorClosedError,
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    KeyExistsError,
    ObjectLostError,
    StoreFullError,
)
from proxyplane.testing import cancelled_at
from support.in_threads import InThreads
from support.servers import admin, connections
from support.soak import recovering
from support.tcp_proxy import TCPProxy

MB = 1 << 20


async def until(condition):
    """Waits for a condition; the test's own time-out ends what never comes."""
    while not condition():
        await asyncio.sleep(0.001)


WAYS = {
    "direct": RedisConnector,
    "redis-py": partial(RedisConnector, wire="redis-py"),
    "threads": lambda *args, **kwargs: InThreads(RedisConnector(*args, **kwargs)),
}


@pytest.fixture(params=WAYS)
def way(request):
    """Makes a connector whose replies are read by us, or by redis-py, or in blocked threads."""
    return WAYS[request.param]


@pytest.fixture
async def proxied(redis_server, redis_url, way):
    """A proxy before the shared server, a connector through it and one past it."""
    async with TCPProxy(redis_server.port) as proxy:
        namespace = redis_url.partition("=")[2]
        through = way(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        direct = RedisConnector(redis_url)
        await through.put([b"warm"])
        yield proxy, through, direct
        await through.aclose()
        await direct.aclose(clear=True)


OPERATIONS = {
    "put small": lambda c, key: c.put([b"a", b"b"]),
    "put large": lambda c, key: c.put([bytes(3 * MB), b"tail"]),
    "put named": lambda c, key: c.put([bytes(3 * MB)], key="named"),
    "get small": lambda c, key: c.get("small"),
    "get large": lambda c, key: c.get("large"),
    "get large hinted": lambda c, key: c.get("large", size=9 * MB),
    "exists": lambda c, key: c.exists("small"),
    "evict": lambda c, key: c.evict(key),
    "put_batch": lambda c, key: c.put_batch([[b"x"], [bytes(2 * MB)], [b"y"]]),
    "put_batch of groups": lambda c, key: c.put_batch([[b"x"]] * 1001 + [[b"y"]]),
    "get_batch": lambda c, key: c.get_batch(["small", "large", "missing", "small"]),
    "evict_batch": lambda c, key: c.evict_batch([key, "missing"]),
}


@pytest.mark.row("cancellation at every await")
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("way", ["direct", "redis-py"], indirect=True)
async def test_cancelled_at_each_await(redis_url, redis_server, operation, cold, way):
    """Wherever a call is cancelled, no other caller gets its reply and no connection leaks.

    On a pool of two: a reply left behind would reach one of the calls that follow, and two leaked
    connections would leave them waiting for ever.
    """
    setup = RedisConnector(redis_url)
    large = bytes(range(256)) * (9 * MB // 256)
    await setup.put([b"small one"], key="small")
    await setup.put([large], key="large")
    others = await setup.put_batch([[b"%d" % i] for i in range(20)])
    with admin(redis_server) as client:
        before = connections(client)
        connector = way(redis_url, max_connections=2)
        n, hit = 0, True
        while hit:
            n += 1
            if cold:
                await connector.aclose(clear=True)
                connector = way(redis_url, max_connections=2)
            key = await setup.put([b"to be evicted"])
            known = set(client.keys(f"{setup._options.namespace}:*"))
            hit = await cancelled_at(operation(connector, key), n)
            if hit and operation is not OPERATIONS["evict"]:
                new = set(client.keys(f"{setup._options.namespace}:*")) - known
                lengths = {client.strlen(one) for one in new}
                assert len(new) <= 1, "a cancelled batch left objects behind"
                assert lengths <= {2, 3 * MB, 3 * MB + 4}, "half an object was stored"
            found = await asyncio.gather(*(connector.get(other) for other in others))
            assert [b"%d" % i for i in range(20)] == found
            assert [True, False] == [await connector.exists("small"), await connector.exists("no")]
            await setup.evict_batch([key, "named"])
        assert n > 1, "it was never cancelled"
        await connector.aclose(clear=True)
        await until(lambda: connections(client) <= before)
    await setup.aclose(clear=True)


async def test_cancelled_while_waiting_for_a_connection(redis_url):
    """Callers cancelled in the queue of a full pool take no connection with them."""
    connector = RedisConnector(redis_url, max_connections=1)
    key = await connector.put([bytes(5 * MB)])
    for _ in range(20):
        tasks = [asyncio.create_task(connector.get(key)) for _ in range(6)]
        await asyncio.sleep(0.001)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(len(body) == 5 * MB for body in results[1::2])
    await connector.aclose(clear=True)


@pytest.mark.parametrize("way", ["direct", "redis-py"], indirect=True)
async def test_a_cancelled_put_sends_nothing_more(proxied):
    """What is cancelled before its last byte went out is never stored, even when it is mutated."""
    proxy, through, direct = proxied
    buffer = bytearray(b"a" * 32 * MB)
    proxy.delay = 0.005
    task = asyncio.create_task(through.put([buffer], key="cancelled"))
    sent = proxy.forwarded["up"]
    await until(lambda: proxy.forwarded["up"] > sent + 2 * MB)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    buffer[:] = b"b" * len(buffer)
    proxy.delay = 0
    assert b"warm" == await through.get(await through.put([b"warm"]))
    assert not await direct.exists("cancelled")


async def test_a_cancelled_put_does_not_go_on_by_itself(own_redis_server):
    """Nor does the last slice go out later, when the transport has it and the server wakes up.

    Over a Unix socket, which takes less than a slice from the sender while nobody reads.
    """
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.unix_url)
    await connector.put([b"warm"])
    server.pause()
    buffer = bytearray(b"a" * (MB - 200))
    task = asyncio.create_task(connector.put([memoryview(buffer)], key="cancelled"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    buffer[:] = b"b" * len(buffer)
    server.resume()
    for _ in range(20):
        await connector.put([b"others"])
        await asyncio.sleep(0.001)
    assert not await connector.exists("cancelled")
    await connector.aclose()


@pytest.mark.parametrize("fault", ["close", "reset"])
@pytest.mark.parametrize("after", [0, 1, 300_000, 5 * MB])
async def test_a_get_that_is_cut_is_tried_again(proxied, fault, after):
    """A connection lost in the middle of a read costs a second read, never bytes."""
    proxy, through, direct = proxied
    data = bytes(range(256)) * (9 * MB // 256)
    key = await direct.put([data])
    await through.get(key)  # all its connections are there
    proxy.cut("down", after, fault)
    assert data == await through.get(key)
    await through.get(key)
    proxy.cut("down", after // 100, fault)
    assert [data, b"s"] == await through.get_batch([key, await direct.put([b"s"])])
    await through.exists(key)
    proxy.cut("down", 0, fault)
    assert await through.exists(key)


@pytest.mark.parametrize("fault", ["close", "reset"])
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_put_under_a_made_key_is_tried_again(proxied, fault, direction):
    """Lost before or after it was stored: the second try stores it, or finds it its own."""
    proxy, through, direct = proxied
    for cut in (0, 1, 1000) if direction == "up" else (0, 1):
        await through.put([b"x"])
        proxy.cut(direction, cut, fault)
        key = await through.put([b"x" * 5000])
        assert b"x" * 5000 == await direct.get(key)
        await through.put_batch([[b"1"], [b"2"]])
        proxy.cut(direction, cut, fault)
        keys = await through.put_batch([[b"1" * 1000], [b"2"]])
        assert [b"1" * 1000, b"2"] == await direct.get_batch(keys)


async def test_a_put_under_a_named_key_is_never_repeated(proxied):
    """The error says that it may have happened; a second try by hand tells."""
    proxy, through, direct = proxied
    proxy.cut("down", 0, "reset")  # stored, but the reply is lost
    with pytest.raises(ConnectorLostError, match="may or may not have happened"):
        await through.put([b"x"], key="stored")
    assert b"x" == await direct.get("stored")
    with pytest.raises(KeyExistsError):
        await through.put([b"x"], key="stored")
    proxy.cut("up", 5000, "reset")  # not stored
    with pytest.raises(ConnectorLostError):
        await through.put([b"x" * MB], key="not stored")
    assert not await direct.exists("not stored")
    await direct.evict("stored")


@pytest.mark.parametrize("way", ["direct", "redis-py"], indirect=True)
async def test_an_evict_is_never_repeated(proxied):
    """Whether it was there cannot be known after a lost reply, so nothing is claimed."""
    proxy, through, direct = proxied
    for call in (through.evict, lambda key: through.evict_batch([key])):
        key = await direct.put([b"x"])
        assert await through.exists(key)  # so that it is connected
        proxy.cut("down", 0, "reset")
        with pytest.raises(ConnectorLostError):
            await call(key)
        assert not await direct.exists(key)


@pytest.mark.parametrize("hint", [None, 9 * MB])
@pytest.mark.parametrize("way", ["direct", "redis-py"], indirect=True)
async def test_a_read_never_mixes_two_objects(proxied, hint):
    """A named key that is evicted and put again between two windows yields the new object."""
    proxy, through, direct = proxied
    await direct.put([b"a" * 9 * MB], key="named")
    proxy.delay = 0.002
    seen = proxy.forwarded["down"]
    task = asyncio.create_task(through.get("named", size=hint))
    await until(lambda: proxy.forwarded["down"] > seen + 3 * MB)
    assert await direct.evict("named")
    await direct.put([b"b" * 9 * MB], key="named")
    proxy.delay = 0
    assert b"b" * 9 * MB == await task
    await direct.evict("named")


@pytest.mark.parametrize("hint", [None, 9 * MB])
@pytest.mark.parametrize("way", ["direct", "redis-py"], indirect=True)
async def test_an_object_that_vanishes_while_it_is_read_is_lost(proxied, hint):
    """Half an object is an error, and never None, which would mean there was none."""
    proxy, through, direct = proxied
    key = await direct.put([b"a" * 9 * MB])
    proxy.delay = 0.002
    seen = proxy.forwarded["down"]
    task = asyncio.create_task(through.get(key, size=hint))
    await until(lambda: proxy.forwarded["down"] > seen + 3 * MB)
    assert await direct.evict(key)
    proxy.delay = 0
    with pytest.raises(ObjectLostError, match="evicted while"):
        await task
    assert await through.get(key) is None


@pytest.mark.row("half-open link")
@pytest.mark.parametrize("way", ["direct", "redis-py"], indirect=True)
async def test_a_half_open_connection_is_given_up(redis_server, redis_url, way):
    """A peer that is silent for the time-out is lost, not waited for, and not asked again."""
    async with TCPProxy(redis_server.port) as proxy:
        connector = way(f"redis://127.0.0.1:{proxy.port}", timeout=0.5)
        key = await connector.put([bytes(9 * MB)])
        for direction, after, call in (
            ("down", 0, lambda: connector.exists(key)),
            ("down", 3 * MB, lambda: connector.get(key)),
            ("up", 3 * MB, lambda: connector.put([bytes(64 * MB)])),
            ("up", 0, lambda: connector.evict("x")),
        ):
            await connector.get(key)  # all its connections are there
            before = proxy.accepted
            proxy.cut(direction, after, "stall")
            with pytest.raises(ConnectorLostError, match=r"no progress for 0\.5 s"):
                await call()
            assert before == proxy.accepted
        assert bytes(9 * MB) == await connector.get(key)
        await connector.aclose(clear=True)


@pytest.mark.row("half-open link")
async def test_a_server_that_accepts_and_is_silent_is_unavailable(own_redis_server, way):
    """Making a connection has a time-out of its own, and a late reply reaches nobody."""
    server = await asyncio.to_thread(own_redis_server)
    connector = way(server.url, timeout=0.2, connect_timeout=0.2, max_connections=1)
    key = await connector.put([b"first"])
    other = await connector.put([b"second"])
    server.pause()
    with pytest.raises(ConnectorLostError, match="no progress"):
        await connector.get(key)
    with pytest.raises(ConnectorUnavailableError, match=r"no answer in 0\.2 s"):
        await connector.get(key)
    server.resume()
    assert b"second" == await connector.get(other)
    await connector.aclose()


async def test_a_server_that_was_silent_from_the_start(own_redis_server):
    """The message names the time-out that ended it, and with TLS the likely reason."""
    server = await asyncio.to_thread(own_redis_server)
    server.pause()
    for url, words in [(server.url, "check host"), (server.url.replace(":", "s:", 1), "TLS")]:
        connector = RedisConnector(url, connect_timeout=0.2, timeout=0.1)
        with pytest.raises(ConnectorUnavailableError, match=r"no answer in 0\.2 s") as caught:
            await connector.get("any")
        assert words in caught.value.hint and "raise connect_timeout=" in caught.value.hint
        await connector.aclose()
    server.resume()


@pytest.mark.row("server killed in a transfer")
@pytest.mark.parametrize("operation", ["get", "put", "put named", "put_batch", "get_batch"])
async def test_server_killed_in_the_middle(own_redis_server, operation, way):
    """SIGKILL during a transfer is a lost connection; the connector works with the next server."""
    server = await asyncio.to_thread(own_redis_server)
    async with TCPProxy(server.port) as proxy:
        connector = way(f"redis://127.0.0.1:{proxy.port}")
        body = bytes(32 * MB)
        key = await connector.put([body])
        proxy.delay = 0.002
        calls = {
            "get": lambda: connector.get(key),
            "get_batch": lambda: connector.get_batch([key, key]),
            "put": lambda: connector.put([body]),
            "put named": lambda: connector.put([body], key="named"),
            "put_batch": lambda: connector.put_batch([[body], [body]]),
        }
        direction = "down" if operation.startswith("get") else "up"
        seen = proxy.forwarded[direction]
        task = asyncio.create_task(calls[operation]())
        await until(lambda: proxy.forwarded[direction] > seen + 3 * MB)
        await asyncio.to_thread(server.kill)
        proxy.delay = 0
        with pytest.raises(ConnectorLostError):
            await task
        await asyncio.to_thread(server.start)
        with recovering():
            assert b"again" == await connector.get(await connector.put([b"again"]))
        assert await connector.get(key) is None
        await connector.aclose(clear=True)


@pytest.mark.row("server killed in a transfer")
@pytest.mark.undefended
async def test_server_killed_and_nobody_is_told(own_redis_server, monkeypatch):
    """Where the end of a connection is not passed on, whoever reads from it waits for ever."""
    monkeypatch.setattr(Wire, "connection_lost", lambda self, exc: None)
    server = await asyncio.to_thread(own_redis_server)
    async with TCPProxy(server.port) as proxy:
        connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}", timeout=3600)
        key = await connector.put([bytes(32 * MB)])
        proxy.delay = 0.002
        seen = proxy.forwarded["down"]
        task = asyncio.create_task(connector.get(key))
        await until(lambda: proxy.forwarded["down"] > seen + 3 * MB)
        await asyncio.to_thread(server.kill)
        proxy.delay = 0
        await asyncio.wait([task], timeout=1)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        monkeypatch.undo()
        await connector.aclose()


async def test_refused_then_restarted(own_redis_server, way):
    """A server that is down is unavailable, with a hint; when it is back, calls work again."""
    server = await asyncio.to_thread(own_redis_server)
    for url in (server.url, server.unix_url):
        connector = way(url)
        named = await connector.put([b"x"], key="named")
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(0.01)  # the loop sees that its idle connection is closed
        for call in (
            lambda: connector.put([b"x"], key="other"),
            lambda: connector.put([b"x"]),
            lambda: connector.get(named),
            lambda: connector.evict(named),
            lambda: connector.put_batch([[b"x"], [b"y"]]),
        ):
            with pytest.raises(ConnectorUnavailableError) as caught:
                await call()
            assert connector._options.where in str(caught.value)
            assert "is the server running?" in caught.value.hint
        await asyncio.to_thread(server.start)
        assert await connector.get(named) is None
        assert named == await connector.put([b"y"], key=named)
        await connector.aclose(clear=True)


async def test_idle_connections_that_the_server_dropped_are_not_used(
    redis_url, own_redis_server, way
):
    """A named put, which is never repeated, does not fail on a connection closed long ago."""
    server = await asyncio.to_thread(own_redis_server)
    connector = way(server.url)
    key = await connector.put([b"x"])
    await asyncio.gather(*(connector.get(key) for _ in range(5)))
    with admin(server) as client:
        client.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: connections(client) == 0)
    await asyncio.sleep(0.01)
    assert "named" == await connector.put([b"x"], key="named")
    assert await connector.evict("named")
    await connector.aclose()


async def test_close_while_calls_are_under_way(proxied):
    """Closing ends what is under way with "you closed it", not with "it was lost"."""
    proxy, through, direct = proxied
    key = await direct.put([bytes(9 * MB)])
    connector = RedisConnector(through.url, max_connections=2)
    proxy.delay = 0.005
    seen = proxy.forwarded["down"]
    tasks = [asyncio.create_task(connector.get(key)) for _ in range(5)]
    await until(lambda: proxy.forwarded["down"] > seen + MB)
    await connector.aclose()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [ConnectorClosedError] * 5 == [type(result) for result in results]


@pytest.mark.parametrize(
    ("reply", "expected", "words"),
    [
        (redis_errors.BusyLoadingError("x"), ConnectorUnavailableError, "loading.*\n.*moment"),
        (redis_errors.ReadOnlyError("x"), ConnectorUnavailableError, "replica.*\n.*primary"),
        (redis_errors.ResponseError("MISCONF x"), ConnectorUnavailableError, "disk"),
        (redis_errors.OutOfMemoryError("x"), StoreFullError, "memory.*\n.*maxmemory"),
        (redis_errors.MovedError("1 h:7"), ConnectorUnavailableError, "cluster"),
        (redis_errors.ResponseError("WRONGTYPE x"), ConnectorError, "refused.*WRONGTYPE"),
        (redis_errors.ConnectionError("x"), ConnectorLostError, "was lost"),
        (redis_errors.InvalidResponse("x"), ConnectorLostError, "was lost"),
        (OSError("x"), ConnectorLostError, "was lost"),
    ],
)
def test_every_reply_has_an_error(reply, expected, words):
    """Nothing of the driver leaves the border, and each message names the server."""
    options = parse_url("redis://some.host:77")
    with pytest.raises(ConnectorError, match=words) as caught, map_errors(options):
        raise reply
    assert expected is type(caught.value)
    assert "some.host:77" in str(caught.value)
    assert reply is caught.value.__cause__


def test_an_unrelated_error_is_not_taken_for_the_reason():
    """What the user was handling when they called does not explain a lost handshake."""
    options = parse_url("redis://some.host:77")
    with (
        pytest.raises(ConnectorUnavailableError, match="closed the connection"),
        map_errors(options, connecting=True),
    ):
        try:
            raise redis_errors.ConnectionError("Connection closed by server.")
        except redis_errors.ConnectionError as exc:
            raise exc from None


@pytest.mark.allow_blocking
async def test_a_cancelled_close_leaves_no_connection(own_redis_server):
    """Wherever it is cancelled, all connections are closed."""
    server = await asyncio.to_thread(own_redis_server)
    nth, reached = 1, True
    with admin(server) as client:
        while reached:
            connector = RedisConnector(server.url)
            await asyncio.gather(*(connector.get("any", size=2 * MB) for _ in range(5)))
            assert connections(client) > 1
            reached = await cancelled_at(connector.aclose(), nth)
            await until(lambda: not connections(client))
            nth += 1
    assert nth > 2
