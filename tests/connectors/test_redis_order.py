"""What a cancelled caller has sent takes effect before what it asks for next, on any connection."""

from __future__ import annotations

import asyncio

import pytest

from proxyplane import RedisConnector
from proxyplane.connectors.redis.resp import SMALL
from proxyplane.testing import cancelled_at
from support.servers import admin
from support.tcp_proxy import TCPProxy

LARGE = b"large" * SMALL


@pytest.fixture
async def slow_shared(redis_server, redis_url):
    """A connector, and what cancels a call whose command is then still on its way for a while."""
    namespace = redis_url.partition("=")[2]
    async with TCPProxy(redis_server.port) as proxy:
        connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        # Both kinds of connections are there.
        await connector.evict(await connector.put([b"small"]))
        await connector.evict(await connector.put([LARGE]))

        async def cancel(call, nth=1):
            proxy.delay = 0.5
            assert await cancelled_at(call, nth)
            await asyncio.sleep(0.05)  # so it has been sent, as far as the slow link
            proxy.delay = 0

        yield connector, cancel, proxy
        await connector.aclose(clear=True)


async def same_later(connector, key, found):
    """Whether that is still what a key holds when all has arrived."""
    await asyncio.sleep(0.6)
    return found == await connector.get(key)


async def test_a_small_put_then_a_batch_of_reads(slow_shared):
    """What the reads find does not change afterwards."""
    connector, cancel, _ = slow_shared
    await cancel(connector.put([b"small"], key="key"))
    (found,) = await connector.get_batch(["key"])
    assert await same_later(connector, "key", found)
    await connector.evict("key")


async def test_a_small_swap_then_a_large_one(slow_shared):
    """The large one is not replaced by what came before it."""
    connector, cancel, _ = slow_shared
    await cancel(connector.swap("key", [b"small"]))
    assert await connector.swap("key", [LARGE]) in (None, b"small")
    assert await same_later(connector, "key", LARGE)
    await connector.evict("key")


async def test_an_evict_then_a_large_put(slow_shared):
    """What was put is not evicted."""
    connector, cancel, _ = slow_shared
    await connector.put([b"small"], key="key")
    await cancel(connector.evict("key"))
    await connector.put([LARGE], key="key")
    assert await same_later(connector, "key", LARGE)
    await connector.evict("key")


async def test_a_lease_then_many_leases(slow_shared, redis_server):
    """The last one counts."""
    connector, cancel, _ = slow_shared
    await connector.put([b"small"], key="key")
    await cancel(connector.extend(["key"], 600), nth=2)
    held = await connector.extend(["key", *(f"absent {i}" for i in range(20))], None)
    assert held == [True] + [False] * 20
    assert await same_later(connector, "key", b"small")
    with admin(redis_server) as client:
        assert client.pttl(connector._name("key")) == -1
    await connector.evict("key")


async def test_one_more_while_others_wait_for_the_first(slow_shared):
    """Who waited for what was sent before does not take the later one for done."""
    connector, cancel, _ = slow_shared
    pool = (await connector._client()).pool
    await cancel(connector.put([b"small"], key="key"))
    waiting = asyncio.create_task(pool._settle())
    await asyncio.sleep(0)
    pool.hold()
    first, second = pool._unsettled
    await waiting
    await connector.evict("key")
    assert first.done() and second.done()
    assert not pool._unsettled


async def test_one_who_waits_for_replies_sends_nothing_into_the_put_of_another(slow_shared):
    """A connection with replies outstanding may be in use again: what is put there stays whole."""
    connector, cancel, _ = slow_shared
    body = bytes(64 << 20)
    pool = (await connector._client()).pool
    first = asyncio.create_task(connector.put([LARGE], key="first"))
    await cancel(connector.put([b"small"], key="second"))
    large = asyncio.create_task(connector.put([body], key="large"))
    await asyncio.sleep(0)  # it waits for the second
    first.cancel()  # whose connection it will use
    await asyncio.wait({first})
    while not pool._busy:
        await asyncio.sleep(0)
    await asyncio.gather(*(connector.exists("second") for _ in range(4)))
    await large
    assert await connector.get("large") == body
    await connector.evict_batch(["first", "second", "large"])


async def test_a_batch_that_is_cancelled_when_its_last_word_was_sent(slow_shared, redis_server):
    """What takes it back comes after that, and nothing of it is left."""
    connector, _, proxy = slow_shared
    (key,) = await connector.put_batch([[b"one"]])
    await connector.evict(key)
    pool = (await connector._client()).pool
    proxy.delay = 0.3
    putting = asyncio.create_task(connector.put_batch([[b"one"], [b"two"]]))
    while not pool._busy:
        await asyncio.sleep(0.001)
    (wire,) = pool._busy
    while wire.owed != 1:  # until all but the end of the transaction was replied to
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    proxy.delay = 0
    putting.cancel()
    await asyncio.wait({putting})
    assert putting.cancelled()
    await asyncio.sleep(0.4)
    with admin(redis_server) as client:
        assert [] == client.keys(f"{connector._options.namespace}:*")
