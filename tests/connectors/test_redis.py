"""The Redis connector against a real server: what it stores, and how."""

from __future__ import annotations

import asyncio
import mmap
import tracemalloc
import warnings

import pytest

from proxyplane.connectors.redis import RedisConnector
from proxyplane.connectors.redis.errors import map_errors
from proxyplane.connectors.redis.transfer import FIRST, WINDOW
from proxyplane.connectors.redis.wire import SLICE
from proxyplane.exceptions import (
    ConnectorClosedError,
    KeyExistsError,
    ObjectTooLargeError,
    StoreFullError,
)
from support.servers import admin, connections

EDGES = [1, FIRST - 1, FIRST, FIRST + 1, WINDOW - 1, WINDOW, WINDOW + 1, 5 * WINDOW + 7]


def pattern(size: int) -> bytes:
    """Bytes in which no window equals another."""
    return b"".join(i.to_bytes(4, "big") for i in range(size // 4 + 1))[:size]


@pytest.fixture
async def redis(redis_url):
    connector = RedisConnector(redis_url)
    yield connector
    await connector.aclose(clear=True)


def name(connector, key):
    return f"{connector._options.namespace}:{key}"


async def test_frames_come_back_joined(redis):
    """`get` returns the bytes of all the frames, in order, in a private writable buffer."""
    key = await redis.put([b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3], b""])
    first, second = await redis.get(key), await redis.get(key)
    assert b"abcdef" == first
    first[0] = 0
    assert b"abcdef" == second == await redis.get(key)


async def test_the_medium_holds_the_bytes_and_nothing_else(redis, redis_server):
    """What another client finds under the namespaced key is the object."""
    key = await redis.put([b"head", b"body"])
    with admin(redis_server) as client:
        assert b"headbody" == client.get(name(redis, key))
        client.set(name(redis, "foreign"), b"written by others")
    assert b"written by others" == await redis.get("foreign")
    await redis.evict("foreign")


async def test_any_buffer_is_a_frame(redis):
    """Frames of other item types and shapes are taken as their bytes."""
    frame = memoryview(bytes(range(12))).cast("B", (3, 4))
    wide = memoryview(bytes(8)).cast("d")
    assert bytes(range(12)) + bytes(8) == await redis.get(await redis.put([frame, wide]))


async def test_an_object_has_at_least_one_byte(redis):
    """Redis cannot tell an empty string from none, so none is stored."""
    with pytest.raises(ValueError, match="at least one byte"):
        await redis.put([b"", b""])


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("hint", ["none", "right", "small", "large"])
async def test_every_size_is_read_whole_whatever_the_hint(redis, size, hint):
    """The size hint is never trusted, and no size at the edge of a window is cut."""
    data = pattern(size)
    key = await redis.put([data[:3], data[3:]])
    hints = {"none": None, "right": size, "small": 1, "large": size + 3 * WINDOW}
    assert data == await redis.get(key, size=hints[hint])


@pytest.mark.parametrize("hint", [None, 10, FIRST + 1, 3 * WINDOW])
async def test_a_missing_key_is_none(redis, hint):
    """No object, no error."""
    assert await redis.get("missing", size=hint) is None
    assert not await redis.exists("missing")
    assert not await redis.evict("missing")


@pytest.mark.parametrize("sizes", [[SLICE], [SLICE, SLICE], [SLICE - 1, 2, 0, SLICE], [1] * 3000])
async def test_slices_lose_nothing(redis, sizes):
    """However the frames fall on the slices that are sent, all arrive once."""
    data = pattern(sum(sizes))
    frames, start = [], 0
    for size in sizes:
        frames.append(data[start : start + size])
        start += size
    assert data == await redis.get(await redis.put(frames))


async def test_keys_are_unique_and_exists_tells(redis):
    """Each put has a key of its own, and evict removes one object only."""
    first, second = await redis.put([b"1"]), await redis.put([b"1"])
    assert first != second
    assert await redis.exists(first)
    assert await redis.evict(first)
    assert not await redis.evict(first)
    assert not await redis.exists(first)
    assert await redis.exists(second)


@pytest.mark.parametrize(
    "key", ["name", "with space: and\r\nline * ? [x]", "ключ", "\ud800", "x" * 999]
)
async def test_a_key_of_the_user_is_write_once(redis, key):
    """A taken key is an error, and what it holds is unchanged."""
    assert key == await redis.put([b"first"], key=key)
    with pytest.raises(KeyExistsError, match="taken"):
        await redis.put([b"second"], key=key)
    assert b"first" == await redis.get(key)
    assert await redis.evict(key)
    assert key == await redis.put([b"third"], key=key)
    assert b"third" == await redis.get(key)


async def test_of_many_evictions_one_wins(redis, redis_url):
    """Exactly one of many callers learns that the object was there."""
    other = RedisConnector(redis_url)
    for _ in range(20):
        key = await redis.put([b"x"])
        results = await asyncio.gather(*(one.evict(key) for one in [redis, other] * 10))
        assert 1 == sum(results)
    await other.aclose()


async def test_what_the_producer_does_later_is_invisible(redis):
    """After put returns, the caller's buffers are its own again."""
    for size in (10, 3 * SLICE + 1):
        buffer = bytearray(pattern(size))
        key = await redis.put([memoryview(buffer)])
        buffer[:] = bytes(size)
        buffer.clear()  # would fail if a view were still held
        assert pattern(size) == await redis.get(key)


async def test_a_map_can_be_closed_after_put(redis):
    """No view of a frame outlives the put, also when it fails."""
    with mmap.mmap(-1, 2 * SLICE) as one:
        await redis.put([one], key="mapped")
        with pytest.raises(KeyExistsError):
            await redis.put([one], key="mapped")


async def test_frames_are_not_joined(redis):
    """Putting needs a few slices of memory more than the object, and reading one copy."""
    size = 64 << 20
    body = memoryview(bytes(size))
    await redis.put([b"warm"])
    tracemalloc.start()
    try:
        key = await redis.put([b"head", body[: size // 2], body[size // 2 :]])
        _, put_peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        data = await redis.get(key)
        _, get_peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(data) == size + 4
    assert put_peak < 8 * SLICE
    # A bytearray that grows reserves an eighth more, which it never touches.
    assert get_peak < size * 9 / 8 + 8 * WINDOW


async def test_full_and_too_large_for_the_server_are_told_apart(own_redis_server):
    """Beyond maxmemory: never fits. Within, but no room: full, and the rest stays readable."""
    server = await asyncio.to_thread(
        own_redis_server, args=["--maxmemory", "24mb", "--maxmemory-policy", "noeviction"]
    )
    connector = RedisConnector(server.url)
    with pytest.raises(ObjectTooLargeError, match="maxmemory"):
        await connector.put([bytes(30 << 20)])
    keys = []
    with pytest.raises(StoreFullError, match="out of memory"):
        while True:
            keys.append(await connector.put([bytes(3 << 20)]))
    assert keys
    with pytest.raises(StoreFullError):
        await connector.put_batch([[bytes(1 << 20)]] * 40)
    with admin(server) as client:
        assert len(keys) == client.dbsize()
        assert 2 == connections(client), "a refusal is no reason to drop a connection"
    assert all(3 << 20 == len(body) for body in await connector.get_batch(keys))
    await connector.aclose(clear=True)
    with admin(server) as client:
        assert 0 == client.dbsize()


def test_full_at_the_end_of_a_transaction(own_redis_server):
    """A server that has no room any more when it comes to EXEC is full, too."""
    server = own_redis_server(args=["--maxmemory-policy", "noeviction"])
    with admin(server) as client, admin(server) as other:
        transaction = client.client()
        for words in (["MULTI"], ["SET", "key", "x"]):
            transaction.execute_command(*words)
        other.config_set("maxmemory", 1)
        with pytest.raises(StoreFullError, match="out of memory"):
            with map_errors(RedisConnector(server.url)._options):
                transaction.execute_command("EXEC")
        transaction.close()


@pytest.mark.parametrize(("policy", "told"), [("allkeys-lru", 1), ("volatile-lru", 0)])
async def test_a_policy_that_drops_objects_is_told_once(own_redis_server, policy, told):
    """Under allkeys-* the server loses objects silently: a warning says so, once."""
    server = await asyncio.to_thread(
        own_redis_server, args=["--maxmemory", "50mb", "--maxmemory-policy", policy]
    )
    connector = RedisConnector(server.url)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            await connector.put([b"x"])
    messages = [str(one.message) for one in caught]
    assert told == len(messages)
    assert all(policy in message and "noeviction" in message for message in messages)
    await connector.aclose()


async def test_batches_keep_the_order(redis):
    """Batches mix sizes, missing keys and repeated keys, and answer in the order of the keys."""
    bodies = [pattern(size) for size in (1, FIRST + 1, 10, 3 * WINDOW, FIRST, FIRST - 1)] * 2
    keys = await redis.put_batch([[body[:1], body[1:]] for body in bodies])
    assert len(bodies) == len(set(keys))
    for sizes in (None, [len(body) for body in bodies], [None, 5 * WINDOW] * 6):
        assert bodies == await redis.get_batch(keys, sizes=sizes)
    assert [bodies[2], None, bodies[0], bodies[2]] == await redis.get_batch(
        [keys[2], "missing", keys[0], keys[2]], sizes=[None, WINDOW, 1, None]
    )
    evicted = await redis.evict_batch([keys[0], "missing", keys[0], *keys[1:]])
    assert [True, False, False, *[True] * (len(keys) - 1)] == evicted
    assert [] == await redis.put_batch([]) == await redis.get_batch([])
    assert [] == await redis.evict_batch([])


async def test_long_batches(redis):
    """Thousands of objects go through the pipelines, which hold a bounded number at a time."""
    keys = await redis.put_batch([[b"%d" % i] for i in range(2500)])
    assert [b"%d" % i for i in range(2500)] == await redis.get_batch(keys)
    assert [True] * 2500 == await redis.evict_batch(keys)


async def test_a_batch_is_stored_whole_or_not(own_redis_server):
    """When a later transaction fails, what the earlier ones stored is taken back."""
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.url)
    with mmap.mmap(-1, 40 << 20) as big, admin(server) as client:
        client.config_set("maxmemory", 100 << 20)
        with pytest.raises(TypeError):
            await connector.put_batch([[b"x"], [big], [big], [object()]])
        with pytest.raises(StoreFullError):
            await connector.put_batch([[b"x"], [big], [big], [big], [b"x"]])
        assert client.info("commandstats")["cmdstat_exec"]["calls"] >= 1
        assert 0 == client.dbsize()
    await connector.aclose()


async def test_a_full_pool_waits(redis_url, redis_server):
    """200 concurrent gets on a pool of 4 all succeed, on at most 4 connections."""
    connector = RedisConnector(redis_url, max_connections=4)
    keys = await connector.put_batch([[pattern(i + 1)] for i in range(200)])
    with admin(redis_server) as client:
        before = client.info("stats")["total_connections_received"]
        bodies = await asyncio.gather(*(connector.get(key) for key in keys))
        assert [pattern(i + 1) for i in range(200)] == bodies
        assert client.info("stats")["total_connections_received"] - before <= 3
    await connector.aclose(clear=True)


async def test_databases_and_namespaces_are_apart(redis_server):
    """The same key in another database or namespace is another object."""
    base = redis_server.url
    connectors = [
        RedisConnector(base, db=db, namespace=namespace)
        for db in (0, 3)
        for namespace in ("apart", "apart.b")
    ]
    for i, connector in enumerate(connectors):
        await connector.put([b"%d" % i], key="shared")
    for i, connector in enumerate(connectors):
        assert b"%d" % i == await connector.get("shared")
        await connector.aclose(clear=True)
        for other in connectors[i + 1 :]:
            assert await other.exists("shared")


async def test_unix_socket(redis_server, redis_url):
    """unix:// reaches the same objects as redis://."""
    over_tcp = RedisConnector(redis_url)
    over_unix = RedisConnector(redis_server.unix_url, namespace=over_tcp._options.namespace)
    data = pattern(3 * WINDOW)
    key = await over_unix.put([data])
    assert data == await over_tcp.get(key)
    await over_unix.aclose(clear=True)
    assert await over_tcp.get(key) is None
    await over_tcp.aclose()


async def test_clear_removes_only_its_own(redis_url, redis_server):
    """aclose(clear=True) leaves what other instances and other clients stored."""
    one, two = RedisConnector(redis_url), RedisConnector(redis_url)
    kept = [await two.put([b"x"]), await two.put([b"x"], key="named by two")]
    mine = await one.put_batch([[b"x"]] * 1500)
    mine += [await one.put([b"x"]), await one.put([b"x"], key="named by one")]
    with pytest.raises(KeyExistsError):
        await one.put([b"x"], key="named by two")
    with admin(redis_server) as client:
        client.set(name(one, "f" * 32), b"foreign")
    await one.aclose(clear=True)
    assert [b"x", b"x"] == await two.get_batch(kept)
    assert await two.exists("f" * 32)
    assert not any(await two.get_batch(mine))
    await two.evict("f" * 32)
    await two.aclose(clear=True)


async def test_close_keeps_the_objects(redis_url):
    """Without clear, other processes may still read what was put."""
    one, two = RedisConnector(redis_url), RedisConnector(redis_url)
    key = await one.put([b"x"])
    await one.aclose()
    assert b"x" == await two.get(key)
    await two.evict(key)
    await two.aclose()


async def test_a_closed_connector_says_so(own_redis_server):
    """Closing twice is fine, using it afterwards is a typed error, and nothing stays open."""
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.url)
    with admin(server) as client:
        key = await connector.put([b"x"])
        await asyncio.gather(*(connector.get(key) for _ in range(8)))
        assert connections(client)
        await connector.aclose(clear=True)
        await connector.aclose(clear=True)
        assert not connections(client)
    for call in (
        connector.put([b"x"]),
        connector.get(key),
        connector.exists(key),
        connector.evict(key),
        connector.put_batch([[b"x"], [b"y"]]),
        connector.get_batch([key]),
        connector.evict_batch([key]),
    ):
        with pytest.raises(ConnectorClosedError, match="was closed"):
            await call
