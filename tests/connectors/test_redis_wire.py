"""The wire format, the shared connection, and large reads in worker threads."""

import asyncio
import os
import pickle
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions as redis_errors

import proxyplane
from proxyplane import RedisConnector
from proxyplane._runtime.io_thread import io_thread
from proxyplane.connectors.redis import behind
from proxyplane.connectors.redis.resp import ROOM, Parser, command, new_buffer
from proxyplane.connectors.redis.transfer import WINDOW
from proxyplane.exceptions import ConnectorError, ConnectorLostError, ObjectLostError
from proxyplane.sync import Store
from proxyplane.testing import cancelled_at
from support.servers import admin
from support.tcp_proxy import TCPProxy
from support.waiting import until

MB = 1 << 20


def parse(data: bytes, sizes, place=lambda size: None) -> list:
    """The replies in `data` when it arrives in pieces of these sizes, over and over."""
    replies = []
    parser = Parser(replies.append, place, redis_errors.ResponseError)
    sent = 0
    while sent < len(data):
        for size in sizes:
            room = parser.room()
            assert len(room) > 0
            piece = data[sent : sent + min(size, len(room))]
            room[: len(piece)] = piece
            if piece:
                parser.received(len(piece))
            sent += len(piece)
    return replies


def encode(reply) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, str):
        return b"+%b\r\n" % reply.encode()
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b"*%d\r\n%b" % (len(reply), b"".join(map(encode, reply)))


def same(reply):
    """A reply with strings of all kinds as bytes."""
    if isinstance(reply, str):
        return reply.encode()
    if isinstance(reply, bytearray | memoryview):
        return bytes(reply)
    return list(map(same, reply)) if isinstance(reply, list) else reply


long_strings = st.builds(
    lambda byte, size: byte * size,
    st.binary(min_size=1, max_size=1),
    st.sampled_from([4094, 4095, 4096, ROOM - 9, ROOM - 1, ROOM, ROOM + 1, 3 * ROOM]),
)
simple = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from(["", "OK", "QUEUED"])
    | st.binary(max_size=50)
    | long_strings
)
replies = st.recursive(simple, lambda one: st.lists(one, max_size=4), max_leaves=12)


@given(st.lists(replies, max_size=6), st.lists(st.integers(1, 40_000), min_size=1, max_size=5))
def test_replies_come_out_as_they_went_in(expected, sizes):
    """However the bytes are cut into pieces."""
    data = b"".join(map(encode, expected))
    assert list(map(same, expected)) == list(map(same, parse(data, sizes)))


@given(st.integers(0, 3 * ROOM), st.lists(st.integers(1, 40_000), min_size=1, max_size=3))
def test_a_long_string_goes_into_its_place(size, sizes):
    """The reply is the very view; a short one, for which there is no use in that, is bytes."""
    target = memoryview(bytearray(size))
    data = os.urandom(size)
    found, after = parse(encode(data) + b":7\r\n", sizes, lambda n: target if n == size else None)
    assert found is target or size < ROOM
    assert (data, 7) == (bytes(found), after)


class TestBuffersAgain:
    """Large buffers are used again once nobody has them."""

    @pytest.fixture
    def receive(self):
        replies = []
        parser = Parser(replies.append, lambda size: None, redis_errors.ResponseError)

        def receive(size: int, byte: bytes) -> bytearray:
            data = encode(byte * size)
            while data:
                room = parser.room()
                count = min(len(room), len(data))
                room[:count] = data[:count]
                del room
                parser.received(count)
                data = data[count:]
            return replies.pop()

        receive.parser = parser
        return receive

    @pytest.mark.parametrize("hold", [lambda one: one, memoryview, lambda one: memoryview(one)[9:]])
    def test_not_while_somebody_refers_to_one(self, receive, hold):
        """A buffer, or a view of a part of it, keeps what it holds."""
        held = [hold(receive(MB, b"%d" % i)) for i in range(4)]
        assert [b"%d" % i for i in range(4)] == [bytes(one[:1]) for one in held]
        assert all(bytes(one) == bytes(one[:1]) * len(one) for one in held)

    def test_when_nobody_does(self, receive):
        """It has what came last, in full, whatever its length was before."""
        first = receive(MB, b"0")
        before = id(first)
        del first
        for size in (MB, MB - 1, MB // 2 + 9, MB):
            body = receive(size, b"1")
            assert b"1" * size == body
            assert before == id(body)
            del body

    def test_not_for_another_size(self, receive):
        """Neither a small object nor a larger one has the memory of another size."""
        for size in (MB, 70_000, 5000, MB, 8 * MB, MB):
            body = receive(size, b"2")
            assert b"2" * size == body
            assert body.__alloc__() < 2 * size

    def test_none_is_kept_when_nothing_comes(self, receive):
        """A connection at rest holds no megabyte."""
        receive(MB, b"3")
        assert receive.parser._last is not None
        receive.parser.rest()
        assert receive.parser._last is None


@pytest.mark.parametrize("data", [b"?\r\n", b":x\r\n", b"$x\r\n", b"\r\n", b"HTTP/1.1 400 Bad\r\n"])
def test_what_is_not_the_protocol_is_refused(data):
    """With what came, as far as it fits in a message."""
    with pytest.raises(redis_errors.InvalidResponse, match="the server sent b"):
        parse(data, [1])
    with pytest.raises(redis_errors.InvalidResponse, match="without an end"):
        parse(b"+" + b"x" * 2 * ROOM, [1000])


def test_refusals_are_replies():
    """Also inside of a transaction."""
    one, (two, three) = parse(b"-ERR no\r\n*2\r\n:1\r\n-OOM full\r\n", [3])
    assert ("ERR no", 1, "OOM full") == (str(one), two, str(three))


def test_a_command_is_encoded():
    """As the protocol has it; a buffer of any size can be had."""
    assert command("SET", b"k", 12) == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n12\r\n"
    assert [len(new_buffer(n)) for n in (0, 1, 5 * MB)] == [0, 1, 5 * MB]


@pytest.fixture
async def redis(redis_url):
    connector = RedisConnector(redis_url)
    yield connector
    await connector.aclose(clear=True)


def connected(server) -> int:
    """Connections that the server has accepted so far."""
    with admin(server) as client:
        return client.info("stats")["total_connections_received"]


async def test_small_things_share_one_connection(redis, redis_server):
    """A thousand at once, and each gets its own."""
    await redis.put([b"x"])
    before = connected(redis_server)
    data = [b"%d " % i * (i % 3000 + 1) for i in range(1000)]
    keys = await asyncio.gather(*(redis.put([one]) for one in data))
    assert data == list(await asyncio.gather(*map(redis.get, keys)))
    assert [True] * 1000 == await asyncio.gather(*map(redis.evict, keys))
    assert before + 1 == connected(redis_server)  # the question itself


@pytest.mark.row("cancellation at random")
async def test_cancelled_callers_cost_no_connection(redis, redis_server):
    """Their replies are dropped in their places; everybody else gets the right ones."""
    keys = [await redis.put([b"%d" % i * 5000]) for i in range(40)]
    large = await redis.put([bytes(9 * MB)])
    await redis.get(large)
    before = connected(redis_server)
    for round_ in range(50):
        tasks = [asyncio.create_task(redis.get(key)) for key in keys]
        reader = asyncio.create_task(redis.get(large, size=9 * MB))
        for _ in range(round_ % 7):
            await asyncio.sleep(0)
        for task in (reader, *tasks[round_ % 3 :: 3]):
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for i, one in enumerate(found):
            assert isinstance(one, asyncio.CancelledError) or one == b"%d" % i * 5000
    assert bytes(9 * MB) == await redis.get(large)
    # Some 700 were cancelled. A few connections are given up, on which too much was left behind.
    assert before + 40 >= connected(redis_server)


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_cancelled_put_leaves_nothing(redis, redis_server, size):
    """Nobody can know its key, so what arrived all the same is removed."""
    nth, reached = 1, True
    await redis.put([bytes(size)], key="stays")
    while reached:
        reached = await cancelled_at(redis.put([bytes(size)]), nth)
        nth += 1
    assert nth > 2
    await redis.exists("any")
    with admin(redis_server) as client:
        name = redis._name("").decode()
        # The one that ended before it could be cancelled.
        await until(lambda: len(client.keys(f"{name}*")) == 2)


async def test_what_a_cancelled_caller_sent_comes_before_what_is_asked_next(own_redis_server):
    """For all who ask next, at once and on whatever connection; and none of them is forgotten."""
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.url)
    await connector.put([b"it knows the limits of the server then"])
    for i in range(5):
        await asyncio.gather(connector.get("any"), connector.get("any", size=3 * MB))
        server.pause()
        put = asyncio.create_task(connector.put([bytes(100_000)], key=f"key {i}"))
        await asyncio.sleep(0.05)  # all of it is on its way, and nobody takes it
        put.cancel()
        await asyncio.wait([put])
        asked = [
            asyncio.create_task(call(f"key {i}"))
            for call in (connector.exists, connector.get, lambda key: connector.get_batch([key]))
            for _ in range(4)
        ]
        await asyncio.sleep(0.01)
        server.resume()
        async with asyncio.timeout(20):
            found = await asyncio.gather(*asked)
        assert [True] * 4 == found[:4]
        assert [bytes(100_000)] * 4 == found[4:8]
        assert [[bytes(100_000)]] * 4 == found[8:]
    await connector.aclose(clear=True)


# -- behind: large reads on the library's loop --------------------------------------------------


def get_behind(connector, key, size):
    """Reads as the library's loop does for background resolution."""
    return io_thread().run(connector.get(key, size=size))


SIZES = [behind.LEAST, WINDOW - 1, WINDOW, WINDOW + 1, 8 * WINDOW, 45 * WINDOW + 3]


@pytest.fixture(params=["idle", "busy"])
def pace(request, monkeypatch):
    """Whether a read finds that another thread computes, and asks for more at a time."""
    monkeypatch.setattr(behind, "_BUSY_SECONDS", {"idle": 60, "busy": -1}[request.param])


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_read_whole_behind(redis_url, redis_server, size):
    """Whatever the caller believes about the size; the connection serves others afterwards."""
    connector = RedisConnector(redis_url)
    data = os.urandom(size)
    key = io_thread().run(connector.put([data]))
    get_behind(connector, key, size)
    before = connected(redis_server)
    for _ in range(3):
        assert data == get_behind(connector, key, size)
        assert io_thread().run(connector.exists(key))
    assert before + 1 == connected(redis_server)
    for hint in (size + 1, size - 1, size + 2 * WINDOW, 40 * WINDOW, behind.LEAST):
        assert data == get_behind(connector, key, hint)
    assert get_behind(connector, "absent", size) is None
    io_thread().run(connector.aclose(clear=True))


def test_a_refusal_behind_has_its_name(redis_url, redis_server):
    """As it has on the loop."""
    connector = RedisConnector(redis_url)
    with admin(redis_server) as client:
        client.lpush(connector._name("a list"), "x")
    with pytest.raises(ConnectorError, match="WRONGTYPE"):
        get_behind(connector, "a list", 2 * MB)
    with admin(redis_server) as client:
        client.delete(connector._name("a list"))
    io_thread().run(connector.aclose())


@pytest.mark.usefixtures("pace")
def test_an_object_replaced_meanwhile_is_never_mixed(redis_url):
    """Of two values under one key the reader gets the one or the other."""
    connector, writer = RedisConnector(redis_url), RedisConnector(redis_url)
    values = [b"a" * (24 * MB), b"b" * (24 * MB), b"c" * (17 * MB)]
    done = threading.Event()

    async def write():
        async with asyncio.timeout(120):
            while not done.is_set():
                for value in values:
                    await writer.evict("turning")
                    await writer.put([value], key="turning")
        await writer.aclose(clear=True)

    thread = threading.Thread(target=asyncio.run, args=(write(),))
    thread.start()
    try:
        for _ in range(12):
            try:
                found = get_behind(connector, "turning", 24 * MB)
            except ObjectLostError:
                continue
            if found is not None:
                assert found in values
    finally:
        done.set()
        thread.join()
    io_thread().run(connector.aclose())


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("after", [0, 3, 20, 10 * MB, 40 * MB - 1])
@pytest.mark.parametrize("fault", ["close", "reset"])
async def test_a_read_behind_that_is_cut_is_tried_again(redis_server, redis_url, fault, after):
    """On another connection, and no byte is wrong."""
    namespace = redis_url.partition("=")[2]
    data = os.urandom(40 * MB)
    async with TCPProxy(redis_server.port) as proxy:
        connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        key = await asyncio.to_thread(io_thread().run, connector.put([data]))
        proxy.cut("down", after, fault)
        found = await asyncio.to_thread(get_behind, connector, key, len(data))
        assert data == found
        await asyncio.to_thread(io_thread().run, connector.aclose(clear=True))


@pytest.mark.usefixtures("pace")
async def test_a_silent_server_ends_a_read_behind(redis_server, redis_url):
    """After the time without progress that the connector allows, and the thread is free."""
    namespace = redis_url.partition("=")[2]
    async with TCPProxy(redis_server.port) as proxy:
        connector = RedisConnector(
            f"redis://127.0.0.1:{proxy.port}", namespace=namespace, timeout=0.3
        )
        key = await asyncio.to_thread(io_thread().run, connector.put([bytes(20 * MB)]))
        proxy.cut("down", 5 * MB, "stall")
        with pytest.raises(ConnectorLostError, match=r"no progress for 0\.3 s"):
            await asyncio.to_thread(get_behind, connector, key, 20 * MB)
        assert bytes(20 * MB) == await asyncio.to_thread(get_behind, connector, key, 20 * MB)
        await asyncio.to_thread(io_thread().run, connector.aclose(clear=True))


@pytest.mark.parametrize("end", ["cancelled", "closed"])
async def test_a_read_behind_ends_with_its_caller(redis_server, redis_url, monkeypatch, end):
    """The thread that waits for the server is called back, and no descriptor is left."""
    inside = set()
    run = behind._Read.run

    def noted(self):
        inside.add(self)
        try:
            return run(self)
        finally:
            inside.discard(self)

    monkeypatch.setattr(behind._Read, "run", noted)
    namespace = redis_url.partition("=")[2]
    async with TCPProxy(redis_server.port) as proxy:
        connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        key = await asyncio.to_thread(io_thread().run, connector.put([bytes(20 * MB)]))
        proxy.cut("down", 5 * MB, "stall")
        asked = asyncio.run_coroutine_threadsafe(connector.get(key, size=20 * MB), io_thread().loop)
        await until(lambda: inside)
        await asyncio.sleep(0.05)
        assert inside
        if end == "cancelled":
            asked.cancel()
        else:
            await asyncio.to_thread(io_thread().run, connector.aclose())
            with pytest.raises(ConnectorError, match="closed"):
                await asyncio.wrap_future(asked)
        await until(lambda: not inside)
        await asyncio.to_thread(io_thread().run, connector.aclose())


def test_a_proxy_arrives_behind_a_busy_thread(redis_url):
    """The way it is used: the value is right, and nothing but the library's threads read it."""
    with Store("busy", redis_url, cache_size=0) as store:
        data = os.urandom(12 * MB)
        arrived = pickle.loads(pickle.dumps(store.proxy(data, populate_target=False)))
        proxyplane.resolve_async(arrived)
        deadline = time.monotonic() + 30
        while not proxyplane.is_resolved(arrived) and time.monotonic() < deadline:
            sum(range(1000))
        assert proxyplane.is_resolved(arrived)
        assert data == arrived
        store.evict(proxyplane.get_key(arrived))


def test_the_socket_serves_the_loop_again(redis_url):
    """Neither blocking nor with a time-out, whatever the read before did."""
    connector = RedisConnector(redis_url)
    key = io_thread().run(connector.put([bytes(2 * MB)]))
    get_behind(connector, key, 2 * MB)

    async def options():
        client = await connector._client()
        async with client.pool.wire() as wire:
            with wire.lent() as fileno:
                sock = socket.socket(fileno=os.dup(fileno))
            with sock:
                timeout = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
                return os.get_blocking(sock.fileno()), any(timeout)

    assert (False, False) == io_thread().run(options())
    io_thread().run(connector.aclose(clear=True))
