"""Objects that Redis holds in parts: whole or not at all, and nothing is left of a failed one.

The sizes are those of gigabytes divided by a thousand; `tests/large` has the real ones.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from proxyplane import RedisConnector
from proxyplane._runtime.io_thread import io_thread
from proxyplane.connectors.redis import parts
from proxyplane.connectors.redis.parts import RECORD_SIZE, Layout
from proxyplane.exceptions import (
    KeyExistsError,
    ObjectLostError,
)
from support.redis_parts import PART, WHOLE, Medium
from support.servers import admin
from support.waiting import until


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "WHOLE", WHOLE)
    monkeypatch.setattr(parts, "PART", PART)


@pytest.fixture
def namespace(redis_url):
    return redis_url.partition("=")[2]


@pytest.fixture
async def redis(redis_url):
    connector = RedisConnector(redis_url)
    yield connector
    await connector.aclose(clear=True)


@pytest.fixture
def medium(redis_server, namespace):
    with admin(redis_server) as client:
        yield Medium(client, namespace)


def get_behind(connector, key, size=None):
    return io_thread().run(connector.get(key, size=size))


# -- what comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [WHOLE, WHOLE + 1, 2 * PART, 2 * PART + 1, 5 * PART - 1])
@pytest.mark.parametrize("hint", ["none", "right", "small", "large"])
async def test_every_size_comes_back_whatever_the_hint(redis, medium, size, hint):
    """Up to the limit as one string, above it in parts; awaited, and behind the caller's back."""
    data = os.urandom(size)
    key = await redis.put([data[:5], data[5 : PART + 1], data[PART + 1 :]])
    assert (size > WHOLE) == (medium.layout(key) is not None)
    assert -(-size // PART) * (size > WHOLE) == len(medium.parts())
    expected = {"none": None, "right": size, "small": 7, "large": size + 3 * PART}[hint]
    found = await redis.get(key, size=expected)
    assert isinstance(found, bytearray)
    assert data == found
    assert data == await asyncio.to_thread(get_behind, redis, key, expected)
    assert [data, None] == await redis.get_batch([key, "none"], sizes=[expected, expected])
    assert [-1] * len(medium()) == [medium.client.pttl(name) for name in medium()]


async def test_what_looks_like_a_record_is_an_object(redis, medium):
    """Bytes that could be taken for the record of another object come back as they are."""
    key = await redis.put([bytes(WHOLE + 1)])
    record = medium.client.get(medium.name(key))
    assert RECORD_SIZE == len(record)
    forged = Layout(10**15, 1 << 20, bytes(16)).encode()
    for one in (record, forged):
        assert one == await redis.get(await redis.put([one[:10], one[10:]]))
        (other, small) = await redis.put_batch([[one], [b"small"]])
        assert [one, b"small"] == await redis.get_batch([other, small])
        future = await redis.new_key()
        await redis.set(future, [one])
        assert one == await redis.get(future)


async def test_a_damaged_record_is_an_object(redis, medium):
    """Bytes that only begin like a record are nothing special."""
    bytes_ = bytearray(Layout(10, 1, bytes(16)).encode())
    bytes_[12] ^= 1
    key = await redis.put([bytes(bytes_)])
    assert medium.parts() == set()
    assert bytes_ == await redis.get(key)
    for view in (bytes_[:-1], b"\0" * RECORD_SIZE):
        assert view == await redis.get(await redis.put([view]))


# -- all the operations ---------------------------------------------------------------------------


async def test_operations_cover_the_parts(redis, medium):
    """After evict nothing is left, whoever made the key, alone or in a batch."""
    data = os.urandom(2 * PART + 1)
    mine = await redis.put([data])
    assert "mine" == await redis.put([data], key="mine")
    batch = await redis.put_batch([[data], [b"small"], [b"tiny"], [data], [data]])
    assert [data, b"small", b"tiny", data, data] == await redis.get_batch(batch)
    later = await redis.new_key()
    await redis.set(later, [data])
    for key in (mine, "mine", later):
        assert await redis.exists(key)
        assert await redis.evict(key)
        assert not await redis.exists(key)
        assert not await redis.evict(key)
        assert await redis.get(key) is None
    assert [True] * 5 + [False] == await redis.evict_batch([*batch, "none"])
    assert set() == medium()


@pytest.mark.parametrize("made", [True, False])
async def test_clearing_covers_the_parts(redis_url, medium, made):
    """`aclose(clear=True)` removes the parts of what this connector put, and of nothing else."""
    one, other = RedisConnector(redis_url), RedisConnector(redis_url)
    key = "kept" if not made else None
    kept = await other.put([bytes(WHOLE + 1)], key=key)
    await one.put([bytes(WHOLE + 1)], key=None if made else "gone")
    future = await one.new_key()
    await one.set(future, [bytes(WHOLE + 1)])
    await one.aclose(clear=True)
    assert {medium.name(kept), *medium.layout(kept).names(medium.name(kept))} == medium()
    await other.aclose(clear=True)
    assert set() == medium()


async def test_a_key_is_set_once(redis, medium):
    """The second put under a key is refused before it has sent anything large."""
    await redis.put([b"small"], key="small")
    await redis.put([b"x" * (WHOLE + 1)], key="large")
    before = medium()
    for key in ("small", "large"):
        sent = medium.client.info("stats")["total_net_input_bytes"]
        with pytest.raises(KeyExistsError):
            await redis.put([bytes(5 * PART)], key=key)
        assert PART > medium.client.info("stats")["total_net_input_bytes"] - sent
        with pytest.raises(KeyExistsError):
            await redis.put([b"other"], key=key)
    assert before == medium()
    assert b"small" == await redis.get("small")
    assert b"x" * (WHOLE + 1) == await redis.get("large")


async def test_of_many_writers_one_succeeds(redis, medium):
    """They write their parts together; of those that lose nothing is left."""
    results = await asyncio.gather(
        *(redis.put([bytes([i]) * (WHOLE + 1)], key="key") for i in range(8)),
        return_exceptions=True,
    )
    (winner,) = [i for i, result in enumerate(results) if result == "key"]
    assert 7 == sum(isinstance(result, KeyExistsError) for result in results)
    assert bytes([winner]) * (WHOLE + 1) == await redis.get("key")
    assert {*medium.layout("key").names(medium.name("key"))} == medium.parts()


async def test_futures(redis, medium):
    """A large object wakes those who wait, is set once, and not when nobody can have it."""
    key = await redis.new_key()
    waiting = asyncio.create_task(redis.wait(key))
    await asyncio.sleep(0.05)
    data = os.urandom(2 * PART)
    await redis.set(key, [data])
    await waiting
    assert data == await redis.get(key)
    before = medium()
    with pytest.raises(KeyExistsError):
        await redis.set(key, [bytes(2 * PART)])
    assert before == medium()
    assert await redis.evict(key)
    with pytest.raises(ObjectLostError):
        await redis.set(key, [bytes(2 * PART)])
    with pytest.raises(ObjectLostError):
        await redis.wait(key, 5)
    await until(lambda: medium() == set())


# -- one who reads --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("fate", ["gone", "shorter", "longer"])
async def test_a_missing_part_is_an_error(redis, medium, place, fate):
    """Whatever happened to it, the reader is told, and gets no wrong bytes."""
    key = await redis.put([bytes(2 * PART + PART // 2)])
    name = medium.layout(key).names(medium.name(key))[place]
    if fate == "gone":
        medium.client.delete(name)
    elif fate == "shorter":
        medium.client.set(name, bytes(10))
    else:
        medium.client.append(name, b"1")
    for get in (
        redis.get(key),
        redis.get_batch([key]),
        asyncio.to_thread(get_behind, redis, key),
    ):
        with pytest.raises(ObjectLostError, match="a part of an object of 5242880 bytes is gone"):
            await get
    assert await redis.evict(key)
    assert set() == medium()


@pytest.mark.parametrize("behind", [False, True])
async def test_a_reader_never_mixes_two_objects(redis_url, medium, behind):
    """While a key is evicted and put again, a get finds one of the objects, none, or an error."""
    redis, other = RedisConnector(redis_url), RedisConnector(redis_url)
    over = False

    async def replace():
        i = 0
        while not over:
            i += 1
            size = (WHOLE + 1, 4 * PART, 100, 2 * PART + 1)[i % 4]
            await other.put([bytes([i % 256]) * size], key="key")
            await asyncio.sleep(0.002)
            await other.evict("key")

    writing = asyncio.create_task(replace())
    found = 0
    for _ in range(200):
        try:
            data = await (
                asyncio.to_thread(get_behind, redis, "key") if behind else redis.get("key")
            )
        except ObjectLostError:
            continue
        if data is not None:
            found += 1
            assert data.count(data[0]) == len(data)
            assert len(data) in (WHOLE + 1, 4 * PART, 100, 2 * PART + 1)
    over = True
    await writing
    assert found
    assert set() == medium()
    await other.aclose()
    if behind:
        await asyncio.to_thread(io_thread().run, redis.aclose())
    else:
        await redis.aclose()


# -- what replaces it ----------------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, b"small", bytes(WHOLE)], ids=["none", "small", "large"])
async def test_what_is_replaced_takes_its_parts_along(redis, medium, body):
    """A swap of an object in parts leaves none of them, and says that there was one."""
    await redis.put([bytes(WHOLE + 1)], key="name")
    assert medium.parts()
    assert await redis.swap("name", None if body is None else [body]) == b""
    assert medium.parts() == set()
    assert await redis.get("name") == body


async def test_what_would_go_in_parts_replaces_nothing(redis, medium):
    """An object in parts cannot replace another in one step, and nothing is changed."""
    await redis.put([b"small"], key="name")
    with pytest.raises(NotImplementedError, match="one step"):
        await redis.swap("name", [bytes(WHOLE + 1)])
    assert medium.parts() == set()
    assert await redis.get("name") == b"small"
