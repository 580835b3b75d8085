"""Redis: the server is killed, stands still, or is full."""

from __future__ import annotations

import asyncio
import warnings

import pytest

from proxyplane.connectors.redis import RedisConnector, waiting
from proxyplane.exceptions import ConnectorError, ConnectorLostError, StoreFullError
from support.servers import POLICIES, admin
from support.soak import SOAK, WAITERS, defended_or_not, recovering, tally, times
from support.waiting import until

LOG = ("--appendonly", "yes", "--appendfsync", "always")


def body_of(key: str) -> bytes:
    """What is stored under a key: a torn or foreign object is told from it."""
    return key.encode() * (1 + hash(key) % 7 * 3_000)


@pytest.mark.row("server killed, its log kept")
@defended_or_not
async def test_killed_with_its_log(own_redis_server, defended):
    """What was acknowledged is there after a SIGKILL, when the server syncs its log; all is whole.

    Without the log (the default) it is lost.
    """
    server = await asyncio.to_thread(own_redis_server, args=LOG if defended else ())
    connector = RedisConnector(server.url)
    stored, doubtful, ended = set(), set(), False

    async def store(number):
        nth = 0
        while not ended:
            key = f"{number} {(nth := nth + 1)} {len(stored)}"
            try:
                await connector.put([body_of(key)], key=key)
                stored.add(key)
            except ConnectorError:
                doubtful.add(key)
                await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(store(number)) for number in range(20)]
    for _ in range(times("server killed, its log kept") if defended else 1):
        before = len(stored)
        await until(lambda before=before: len(stored) > before + 100)
        await asyncio.to_thread(server.kill)
        before = len(stored)
        await asyncio.to_thread(server.start)
        with recovering():
            await until(lambda before=before: len(stored) > before)
    ended = True
    await asyncio.gather(*tasks)
    lost = []
    for key in [*stored, *doubtful]:
        found = await connector.get(key)
        if found is None:
            lost.append(key)
        else:
            assert found == body_of(key)
    assert doubtful, "it was not killed under puts"
    assert bool(stored.intersection(lost)) is not defended
    await connector.aclose()


@pytest.mark.row("server stopped")
@defended_or_not
async def test_stopped_under_waiters(own_redis_server, defended):
    """A server that stands still for seconds costs time and nothing else.

    Unless the patience of the connector (``timeout=``) is shorter than that.
    """
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.url, **({} if defended else {"timeout": 0.1}))
    other = RedisConnector(server.url)
    data = {await other.put([b"%d" % i * 5000]): b"%d" % i * 5000 for i in range(50)}
    for _ in range(times("server stopped") if defended else 1):
        names = await asyncio.gather(*(other.new_key() for _ in range(WAITERS if defended else 50)))
        waiting = [asyncio.create_task(connector.wait(name)) for name in names]
        await asyncio.gather(*(connector.get(key) for key in data))
        server.pause()
        reading = [asyncio.create_task(connector.get(key)) for key in data]
        setting = [asyncio.create_task(other.set(name, [b"x"])) for name in names]
        await asyncio.sleep(6 if SOAK else 0.5)
        server.resume()
        with recovering():
            await asyncio.gather(*setting)
            await asyncio.gather(*waiting)
            found = await asyncio.gather(*reading, return_exceptions=True)
        if defended:
            assert found == [*data.values()]
        else:
            assert {ConnectorLostError} == {type(one) for one in found}
        await other.evict_batch(names)
    await connector.aclose()
    await other.aclose()


@pytest.mark.row("server stopped")
async def test_stopped_when_a_wait_begins(own_redis_server, monkeypatch, caplog):
    """Who begins to wait at a server that stands still for longer than one is patient, waits on."""
    monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 0.1)
    monkeypatch.setattr(waiting, "LONGEST_PAUSE", 0.1)
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.url)
    names = [await connector.new_key() for _ in range(50)]
    server.pause()
    tasks = [asyncio.create_task(connector.wait(name)) for name in names]
    await until(lambda: "trying again" in caplog.text or any(task.done() for task in tasks))
    server.resume()
    with recovering():
        for name in names:
            await connector.set(name, [b"x"])
        await asyncio.gather(*tasks)
    await connector.aclose()


@pytest.mark.row("maxmemory")
@defended_or_not
@pytest.mark.parametrize("leased", [False, True], ids=["", "leased"])
async def test_full_under_each_policy(own_redis_server, monkeypatch, leased, defended):
    """What does not fit is refused; where the server drops objects instead, it was told before."""
    server = await asyncio.to_thread(own_redis_server)
    if not defended:
        monkeypatch.setattr(warnings, "warn", lambda *args, **kwargs: None)
    ttl = 3600 if leased else None
    dropped = 0
    policies = POLICIES * (times("maxmemory") if defended else 1)
    with admin(server) as client:
        for policy in policies:
            client.config_set("maxmemory-policy", policy)
            client.config_set("maxmemory", 8 << 20)
            connector = RedisConnector(server.url)
            stored, refused = {}, False
            drops = policy.startswith("allkeys") or (leased and policy.startswith("volatile"))
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                for number in range(200):
                    body = b"%d" % number * 30_000
                    try:
                        stored[await connector.put([body], ttl=ttl)] = body
                    except StoreFullError:
                        refused = True
            gone = 0
            for key, body in stored.items():
                found = await connector.get(key)
                assert found in (None, body)
                gone += found is None
            silent = gone and not told
            assert gone if drops else refused and not gone, policy
            assert not (defended and silent), policy
            dropped += bool(silent)
            client.config_set("maxmemory", 0)
            await connector.aclose(clear=True)
    assert defended or dropped
    tally.tries = len(policies)
