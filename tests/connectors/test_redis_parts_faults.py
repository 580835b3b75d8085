"""Large objects whose writer, or whose server, does not get to the end: nothing is left."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap

import pytest

from proxyplane import RedisConnector
from proxyplane.connectors.redis import parts
from proxyplane.connectors.redis.parts import Upload
from proxyplane.connectors.redis.transfer import MULTI, Body
from proxyplane.connectors.redis.wire import Wire
from proxyplane.exceptions import (
    ConnectorLostError,
    KeyExistsError,
    ObjectTooLargeError,
    StoreFullError,
)
from proxyplane.testing import cancelled_at
from support.redis_parts import MB, PART, WHOLE, Medium
from support.servers import admin
from support.tcp_proxy import TCPProxy
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


# -- one who writes, and does not get to the end --------------------------------------------------


async def test_nobody_sees_half_of_an_object(redis_server, namespace, medium):
    """While the parts arrive, the key holds nothing."""
    async with TCPProxy(redis_server.port) as proxy:
        writer = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        reader = RedisConnector(redis_server.url, namespace=namespace)
        assert await writer.get("key") is None
        proxy.cut("up", 3 * PART + 1000, "stall")
        writing = asyncio.create_task(writer.put([bytes(4 * PART)], key="key"))
        await until(lambda: len(medium.parts()) == 3)
        assert await reader.get("key") is None
        assert not await reader.exists("key")
        assert not await reader.evict("key")
        assert all(0 < medium.client.pttl(name) <= 60_000 for name in medium.parts())
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await writer.aclose()
        await reader.aclose()
        for name in medium():
            medium.client.delete(name)


@pytest.mark.parametrize("kind", ["made", "named", "future"])
async def test_one_who_is_cancelled_leaves_nothing(redis_url, medium, kind):
    """At each moment where it waits; or else the object is there, whole."""
    redis = RedisConnector(redis_url)
    data = os.urandom(WHOLE + 1)
    nth = 1
    while True:
        if kind == "future":
            key = await redis.new_key()
            reached = await cancelled_at(redis.set(key, [data]), nth)
        else:
            key = f"key {nth}"
            put = redis.put([data], key=key if kind == "named" else None)
            reached = await cancelled_at(put, nth)
        if kind == "made":
            if reached:
                await until(lambda: medium() == set())
        else:
            found = await redis.get(key)
            assert found in (None, data)
            if found is None and kind == "named":
                await redis.put([b"works"], key=key)
            await redis.evict(key)
            await until(lambda: medium() == set())
        if not reached:
            break
        nth += 1 + nth // 16
    assert nth > 3
    await redis.aclose(clear=True)


async def test_an_evict_that_is_cancelled_leaves_no_parts(redis_url, medium):
    """The object is there whole, or all of it is gone."""
    redis = RedisConnector(redis_url)
    data = bytes(WHOLE + 1)
    nth = 1
    while True:
        key = await redis.put([data], key=f"key {nth}")
        reached = await cancelled_at(redis.evict_batch([key, "none"]), nth)
        if await redis.get(key) is not None:
            await redis.evict(key)
        await until(lambda: medium() == set())
        if not reached:
            break
        nth += 1
    await redis.aclose()


@pytest.mark.parametrize("body", [None, b"small", bytes(WHOLE)], ids=["none", "small", "large"])
async def test_a_swap_that_is_cancelled_leaves_no_parts(redis_url, medium, body):
    """What was in parts is there whole, or all of it is gone."""
    redis = RedisConnector(redis_url)
    frames = None if body is None else [body]
    nth = 1
    while True:
        key = await redis.put([bytes(WHOLE + 1)], key=f"key {nth}")
        reached = await cancelled_at(redis.swap(key, frames), nth)
        await until(lambda key=key: bool(medium.layout(key)) == bool(medium.parts()))
        await redis.evict(key)
        await until(lambda: medium() == set())
        if not reached:
            break
        nth += 1
    assert nth > 1
    await redis.aclose()


@pytest.mark.parametrize("lease", [None, 600])
async def test_an_object_that_ends_while_its_lease_is_changed(redis, medium, monkeypatch, lease):
    """Its parts do not stay for ever."""
    key = await redis.put([bytes(WHOLE + 1)], ttl=60)
    send = Wire.send
    ended = []

    async def too_late(self, pieces, replies, report=None):
        pieces = list(pieces)
        if pieces[0] == MULTI and not ended:
            ended.append(await asyncio.to_thread(medium.client.delete, medium.name(key)))
        await send(self, pieces, replies, report)

    monkeypatch.setattr(Wire, "send", too_late)
    assert [False] == await redis.extend([key], lease)
    assert [1] == ended
    assert medium.parts()
    assert all(0 < medium.client.pttl(name) <= 120_000 for name in medium())


async def test_an_object_that_is_put_anew_while_its_lease_is_changed(redis, medium, monkeypatch):
    """The new one has the lease then, with its parts or without any."""
    send = Wire.send
    for body in (bytes(WHOLE + 2), b"small"):
        await redis.put([bytes(WHOLE + 1)], key="key", ttl=60)
        changed = []

        async def change(self, pieces, replies, report=None):
            pieces = list(pieces)
            if pieces[0] == MULTI and not changed:  # noqa: B023
                changed.append(1)  # noqa: B023
                await redis.evict("key")
                await redis.put([body], key="key", ttl=60)  # noqa: B023
            await send(self, pieces, replies, report)

        monkeypatch.setattr(Wire, "send", change)
        assert [True] == await redis.extend(["key"], None)
        assert [1] == changed
        assert {-1} == {medium.client.pttl(name) for name in medium()}
        assert body == await redis.get("key")
        await redis.evict("key")


@pytest.mark.parametrize("lease", [None, 600])
async def test_all_of_an_object_or_nothing_gets_a_lease(redis_server, namespace, medium, lease):
    """Wherever one who extends it dies: record and parts stay as they were, or all are changed."""
    async with TCPProxy(redis_server.port) as proxy:
        before = 60_000
        maker = RedisConnector(f"redis://127.0.0.1:{redis_server.port}", namespace=namespace)
        key = await maker.put([bytes(WHOLE + 1)])

        async def cut(after):
            """What the leases are after one whose last byte is this one; False for none such."""
            for name in medium():
                medium.client.pexpire(name, before)
            redis = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
            await redis.extend([key], before / 1000)  # the connections are there now
            for name in medium():
                medium.client.pexpire(name, before)
            proxy.cut("up", after, "close")
            proxy.refuses = True  # else it would be done once more
            try:
                await redis.extend([key], lease)
            except ConnectorLostError:
                return True
            finally:
                proxy.refuses = False
                await redis.aclose()
            return False

        after = 1
        while await cut(after):
            leases = [medium.client.pttl(name) for name in medium()]
            assert len(leases) > 2
            assert len({-1 if one < 0 else one > before for one in leases}) == 1, (after, leases)
            after += 17
        assert after > 300
        await maker.aclose(clear=True)


WRITER = """
import asyncio, sys
from proxyplane import RedisConnector
from proxyplane.connectors.redis import parts

parts.WHOLE, parts.PART, parts.STAGED_SECONDS = 0, 1 << 20, float(sys.argv[2])

async def main():
    connector = RedisConnector(sys.argv[1])
    await connector.put([bytes(50 << 20)], key="key")

asyncio.run(main())
"""


async def test_of_a_writer_that_dies_nothing_is_left_for_long(redis_server, namespace, medium):
    """Its parts end by themselves."""
    async with TCPProxy(redis_server.port) as proxy:
        proxy.cut("up", 20 * MB, "stall")
        url = f"redis://127.0.0.1:{proxy.port}?namespace={namespace}"
        writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), url, "2"])
        try:
            await until(lambda: len(medium.parts()) >= 15)
        finally:
            writer.kill()
            await asyncio.to_thread(writer.wait)
        await until(lambda: medium() == set())


async def test_parts_live_as_long_as_their_writer(redis, medium, monkeypatch):
    """They are renewed until the object is published, and from then on they stay."""
    monkeypatch.setattr(parts, "_RENEWALS", 1000)
    client = await redis._client()
    with Body([bytes(2 * PART)]) as body:
        async with client.pool.wire() as wire, Upload(client.pool, wire, b"x", body) as upload:
            upload._name = medium.name("key")
            upload._names = upload._layout.names(upload._name)
            await upload.send()
            for name in medium.parts():
                medium.client.pexpire(name, 20_000)
            await until(lambda: all(medium.client.pttl(name) > 20_000 for name in medium.parts()))
            assert await upload.publish()
    assert [-1] * 3 == [medium.client.pttl(name) for name in medium()]
    assert bytes(2 * PART) == await redis.get("key")
    await redis.evict("key")


async def test_a_server_that_drops_a_part_is_noticed(redis, medium, monkeypatch):
    """The object is not published, and the rest of it goes."""
    publish = Upload.publish

    async def later(self):
        await asyncio.to_thread(medium.client.delete, self._names[0])
        return await publish(self)

    monkeypatch.setattr(Upload, "publish", later)
    with pytest.raises(StoreFullError, match="dropped a part"):
        await redis.put([bytes(2 * PART)], key="key")
    assert not await redis.exists("key")
    await until(lambda: medium() == set())


async def test_what_is_touched_meanwhile_is_looked_at_again(redis, medium, monkeypatch):
    """A key that is taken in the last moment is another's, and one that was left again is ours."""
    read_few = parts.Wire.read_few
    done = []

    async def meddled(self, count):
        found = await read_few(self, count)
        if self.midway and len(done) < 2:
            done.append(1)
            await asyncio.to_thread(medium.client.set, medium.name("key"), b"meddled")
            if left:
                await asyncio.to_thread(medium.client.delete, medium.name("key"))
        return found

    monkeypatch.setattr(parts.Wire, "read_few", meddled)
    left = True
    await redis.put([bytes(2 * PART)], key="key")
    assert 2 == len(done)
    assert bytes(2 * PART) == await redis.get("key")
    await redis.evict("key")
    left = False
    done.clear()
    with pytest.raises(KeyExistsError):
        await redis.put([bytes(2 * PART)], key="key")
    assert b"meddled" == await redis.get("key")
    await redis.evict("key")
    await until(lambda: medium() == set())


@pytest.mark.parametrize("after", [100, 1000, PART, 2 * PART + 500, 4 * PART, 4 * PART + 600])
async def test_a_lost_connection(redis_server, namespace, medium, after):
    """Under a key of its own the connector tries it again; what is left ends by itself."""
    data = os.urandom(4 * PART)
    async with TCPProxy(redis_server.port) as proxy:
        redis = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        await redis.exists("key")
        proxy.cut("up", after, "reset")
        key = await redis.put([data])
        assert data == await redis.get(key)
        whole = {medium.name(key), *medium.layout(key).names(medium.name(key))}
        assert all(medium.client.pttl(name) == -1 for name in whole)
        assert all(medium.client.pttl(name) > 0 for name in medium() - whole)
        proxy.cut("up", after, "reset")
        try:
            await redis.put([data], key="key")
        except ConnectorLostError:
            assert await redis.get("key") in (None, data)
        await redis.evict_batch([key, "key"])
        await redis.aclose()
        assert all(medium.client.pttl(name) > 0 for name in medium())
        for name in medium():
            medium.client.delete(name)


# -- a server without room ------------------------------------------------------------------------


async def test_what_never_fits_is_refused_before_anything_is_sent(own_redis_server):
    """Above maxmemory no byte of the object leaves, however it is put."""
    args = ["--maxmemory", "24mb", "--maxmemory-policy", "noeviction"]
    server = await asyncio.to_thread(own_redis_server, args=args)
    redis = RedisConnector(server.url)
    large = bytes(30 * MB)
    later = await redis.new_key()
    for put in (
        lambda: redis.put([large]),
        lambda: redis.put([large], key="key"),
        lambda: redis.put_batch([[b"small"], [large]]),
        lambda: redis.set(later, [large]),
    ):
        with pytest.raises(ObjectTooLargeError, match="31457280 bytes does not fit"):
            await put()
    with admin(server) as client:
        assert MB > client.info("stats")["total_net_input_bytes"]
        assert {f"{{proxyplane:{later}}}later".encode()} == {*client.keys("*")}
    await redis.aclose()


async def test_a_server_that_gets_full_has_its_room_back(own_redis_server):
    """Of an object for which there is no room now, and of its batch, nothing is left."""
    args = ["--maxmemory", "24mb", "--maxmemory-policy", "noeviction"]
    server = await asyncio.to_thread(own_redis_server, args=args)
    redis = RedisConnector(server.url)
    kept = await redis.put([bytes(8 * MB)])
    with admin(server) as client:
        before = {*client.keys("*")}
        for put in (
            lambda: redis.put([bytes(20 * MB)]),
            lambda: redis.put([bytes(20 * MB)], key="key"),
            lambda: redis.put_batch([[b"small"], [bytes(5 * MB)], [bytes(15 * MB)]]),
        ):
            with pytest.raises(StoreFullError):
                await put()
            await until(lambda: before == {*client.keys("*")})
    assert bytes(8 * MB) == await redis.get(kept)
    await redis.evict(await redis.put([bytes(8 * MB)]))
    await redis.aclose()


async def test_a_lease_whose_caller_is_cancelled_is_not_given_after_a_later_one(
    redis_server, namespace, medium
):
    """At each await: record and parts have the lease that was asked for last, all of them."""
    async with TCPProxy(redis_server.port) as proxy:
        redis = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        key = await redis.put([bytes(WHOLE + 1)])
        nth = 0
        cancelled = True
        while cancelled:
            nth += 1
            await asyncio.gather(redis.get(key), redis.get(key))  # two connections are there
            proxy.delay = 0.1
            cancelled = await cancelled_at(redis.extend([key], 600), nth)
            await asyncio.sleep(0.02)  # what was sent is on its slow way
            proxy.delay = 0
            assert [True] == await redis.extend([key], None)
            await asyncio.sleep(0.15)
            leases = {medium.client.pttl(name) for name in medium()}
            assert leases == {-1}, (nth, leases)
        assert nth > 3
        await redis.aclose(clear=True)
