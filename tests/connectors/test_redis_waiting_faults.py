"""Waiting in Redis when the server, the network or a message is lost.

Where a test has a variant that is not defended, the one defence that it is about is switched off,
and waiters stay asleep: so the fault does happen.
"""

from __future__ import annotations

import asyncio
import logging
import random

import pytest

from proxyplane.connectors.redis import RedisConnector, waiting
from proxyplane.connectors.redis.later import WAS_SET
from proxyplane.exceptions import (
    ConnectorLostError,
    ConnectorUnavailableError,
    KeyExistsError,
    ObjectLostError,
    StoreFullError,
)
from support.redis_waiting import all_woken, asleep, blind, register, set_at_once, start_waiting
from support.servers import admin
from support.soak import WAITERS, defended_or_not, recovering, times
from support.tcp_proxy import TCPProxy
from support.waiting import until

NEVER = 3600.0
AOF = ["--appendonly", "yes", "--appendfsync", "always"]


@pytest.fixture(autouse=True)
def _times(monkeypatch):
    """Nothing is woken by the backstop, unless the test is about it."""
    monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", NEVER)
    monkeypatch.setattr(waiting, "LONGEST_PAUSE", 0.1)


@pytest.mark.row("set racing wait")
@defended_or_not
async def test_set_racing_wait(redis_url, monkeypatch, defended):
    """However a set and the beginning of a wait meet, the wait ends: it looks after subscribing."""
    if not defended:
        blind(monkeypatch)
    one, two = RedisConnector(redis_url), RedisConnector(redis_url)
    dice = random.Random(7)

    async def late(call, turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        await call()

    for _ in range(0, times("set racing wait") if defended else 100, 50):
        names = await register(one, 50)
        tasks = [
            asyncio.create_task(late(lambda n=n: two.wait(n), dice.randrange(40))) for n in names
        ]
        await asyncio.gather(
            *(late(lambda n=n: one.set(n, [b"x"]), dice.randrange(40)) for n in names)
        )
        await all_woken(tasks, defended)
    await two.aclose()
    await one.aclose(clear=True)


@pytest.mark.slow
@pytest.mark.row("server killed")
@defended_or_not
async def test_server_killed_and_restarted_with_its_data(own_redis_server, monkeypatch, defended):
    """5,000 waiters: what was set while they were away is found, what is set later wakes them."""
    server = await asyncio.to_thread(own_redis_server, args=AOF)
    async with TCPProxy(server.port) as proxy:
        connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}")
        for _ in range(times("server killed") if defended else 1):
            names = await register(connector, WAITERS)
            tasks = await start_waiting(connector, names)
            waiters = (await connector._client()).waiters
            target, proxy._target = proxy._target, ("127.0.0.1", 1)  # nobody listens there
            await asyncio.to_thread(server.kill)
            await until(lambda: waiters._trouble is not None)
            await asyncio.to_thread(server.start)
            await asyncio.to_thread(set_at_once, server, connector, names[::2])
            if not defended:
                blind(monkeypatch)
            proxy._target = target
            await until(lambda: waiters._trouble is None)
            await all_woken(tasks[::2], defended)
            await asleep(connector)
            await asyncio.to_thread(set_at_once, server, connector, names[1::2])
            await all_woken(tasks[1::2], True)
        await connector.aclose()


@pytest.mark.slow
@pytest.mark.row("server killed")
@defended_or_not
async def test_server_killed_and_restarted_empty(own_redis_server, monkeypatch, defended):
    """5,000 waiters learn that their objects are lost, and so does who would set one."""
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.url)
    for _ in range(times("server killed") if defended else 1):
        names = await register(connector, WAITERS)
        tasks = await start_waiting(connector, names)
        if not defended:
            blind(monkeypatch)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        if defended:
            with recovering():
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert {ObjectLostError} == {type(one) for one in outcomes}
            with pytest.raises(ObjectLostError, match="knows no key"):
                await connector.set(names[0], [b"x"])
        else:
            await all_woken(tasks, False)
    await connector.aclose()


@pytest.mark.parametrize("silent", [False, True], ids=["evicted", "deleted"])
async def test_a_registration_that_vanishes(own_redis_server, monkeypatch, silent):
    """A waiter whose record is gone does not wait for ever, whoever took it."""
    if silent:
        monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 0.05)
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.url)
    names = await register(connector, 300)
    tasks = await start_waiting(connector, names)
    if silent:
        with admin(server) as client:
            client.flushall()
    else:
        assert [False] * 300 == await connector.evict_batch(names)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {ObjectLostError} == {type(one) for one in outcomes}
    await connector.aclose()


@pytest.mark.row("subscription killed")
@defended_or_not
async def test_subscription_killed(own_redis_server, monkeypatch, defended):
    """The subscription dies at the moment of each set, again and again; every waiter is woken."""
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.url)
    with admin(server) as client:
        for _ in range(times("subscription killed") if defended else 1):
            names = await register(connector, 50)
            tasks = await start_waiting(connector, names)
            if not defended:
                blind(monkeypatch)
            assert 1 == client.client_kill_filter(_type="pubsub")
            set_at_once(server, connector, names)
            await all_woken(tasks, defended)
            assert 1 >= len(client.client_list(_type="pubsub"))
    await connector.aclose()


def subscribers(client):
    """The ids of the connections that listen."""
    return [one["id"] for one in client.client_list(_type="pubsub")]


@pytest.mark.row("output buffer overrun")
@defended_or_not
async def test_subscriber_dropped_for_its_output_buffer(own_redis_server, monkeypatch, defended):
    """A server that drops the subscriber, with the messages it had for it, loses no wake-up."""
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.url)
    with admin(server) as client:
        client.config_set("client-output-buffer-limit", "pubsub 32768 0 0")
        for _ in range(times("output buffer overrun") if defended else 1):
            names = await register(connector, 2000)
            tasks = await start_waiting(connector, names)
            (first,) = subscribers(client)
            if not defended:
                blind(monkeypatch)
            set_at_once(server, connector, names)
            await until(lambda first=first: first not in subscribers(client))
            await all_woken(tasks, defended)
    await connector.aclose()


@pytest.mark.row("connection silently dead")
@defended_or_not
@pytest.mark.parametrize("which", ["subscription", "all"])
async def test_a_connection_that_is_silently_dead(own_redis_server, monkeypatch, which, defended):
    """Messages that never arrive, over a connection that seems alive, are made up for."""
    server = await asyncio.to_thread(own_redis_server)
    if defended:
        monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 0.2)
    async with TCPProxy(server.port) as proxy:
        connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}")
        direct = RedisConnector(server.url)
        names = await register(connector, 20)
        tasks = await start_waiting(connector, names)
        proxy.cut("down", 0, "stall")
        if which == "all":
            proxy.stall_all()
        await direct.set(names[0], [b"x"])
        await all_woken(tasks[:1], defended)
        if defended:
            # And it was replaced: messages wake again.
            with admin(server) as client:
                channel = f"proxyplane:{names[1]}"
                await until(lambda: client.pubsub_numsub(channel)[0][1] == 2)
            await asleep(connector)
            monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", NEVER)
            await asyncio.gather(*(direct.set(name, [b"x"]) for name in names[1:]))
            await all_woken(tasks[1:], True)
        await connector.aclose()
        await direct.aclose()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_message_nobody_published_wakes_nobody_for_good(redis_url, redis_server):
    """A message for a key that was not looked at yet is only a reason to look."""
    connector = RedisConnector(redis_url)
    name = await connector.new_key()
    (task,) = await start_waiting(connector, [name])
    waiters = (await connector._client()).waiters
    waiters._waiting[connector._name(name)].asleep = False
    with admin(redis_server) as client:
        client.publish(connector._name(name), WAS_SET)
    await asleep(connector)
    assert not task.done()
    await connector.set(name, [b"x"])
    await task
    await connector.aclose(clear=True)


@pytest.mark.row("server stopped")
async def test_server_stopped_and_continued(own_redis_server):
    """While the server stands still, time-outs are kept; then everything goes on."""
    server = await asyncio.to_thread(own_redis_server)
    connector = RedisConnector(server.url)
    names = await register(connector, 10)
    tasks = await start_waiting(connector, names)
    server.pause()
    late = asyncio.create_task(connector.wait(names[0]))
    for name in (names[0], names[0][:-1] + "f"):
        with pytest.raises(TimeoutError, match="did not come"):
            await connector.wait(name, 0.05)
    with pytest.raises(TimeoutError, match="did not come"):
        await connector.wait(names[0], 0)
    setting = [asyncio.create_task(connector.set(name, [b"x"])) for name in names]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in [*tasks, *setting, late])
    server.resume()
    await asyncio.gather(*setting, *tasks, late)
    await connector.aclose()


async def test_waiting_goes_on_while_the_server_is_down(own_redis_server, caplog):
    """With a time-out it ends in time and tells why; without, when the server is back; it logs
    only that the server was lost and found."""
    caplog.set_level(logging.INFO, logger="proxyplane")
    server = await asyncio.to_thread(own_redis_server, args=AOF)
    connector = RedisConnector(server.unix_url)
    names = await register(connector, 2)
    tasks = await start_waiting(connector, names)
    await asyncio.to_thread(server.kill)
    tasks.append(asyncio.create_task(connector.wait(names[0])))
    with pytest.raises(TimeoutError, match="did not come") as caught:
        await connector.wait(names[0], 0.5)
    assert ConnectorUnavailableError is type(caught.value.__cause__)
    with pytest.raises(ConnectorUnavailableError):
        await connector.wait(names[0], 0)  # there is no time to try again
    await asyncio.to_thread(server.start)
    waiters = (await connector._client()).waiters
    await until(lambda: waiters._trouble is None)
    await asyncio.gather(*(connector.set(name, [b"x"]) for name in names), *tasks)
    levels = [record.levelname for record in caplog.records if record.name == "proxyplane"]
    assert ["WARNING", "INFO"] == levels
    await connector.aclose()


async def test_a_refused_login_is_told_at_once(own_redis_server, monkeypatch):
    """What no patience mends is raised, and not tried again and again."""
    server = await asyncio.to_thread(own_redis_server, args=["--requirepass", "right"])
    monkeypatch.setenv("TEST_REDIS_PASSWORD", "wrong")
    for connector, words in (
        (RedisConnector(server.url), "refused the login"),
        (RedisConnector(server.url, password_env="TEST_REDIS_PASSWORD"), "refused the login"),
        (RedisConnector(server.url, password_env="TEST_REDIS_NO_PASSWORD"), "is not set"),
    ):
        tasks = [asyncio.create_task(connector.wait("x" * 32)) for _ in range(3)]
        raised = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(words in str(one) for one in raised), raised
        assert 3 == len({id(one) for one in raised}), "one exception was raised in many tasks"
        monkeypatch.setenv("TEST_REDIS_PASSWORD", "right")
        await connector.aclose()
        monkeypatch.setenv("TEST_REDIS_PASSWORD", "wrong")


async def test_the_documented_permissions_suffice(own_redis_server, monkeypatch):
    """With what the class documents futures work; without the channels the error helps."""
    server = await asyncio.to_thread(own_redis_server)
    documented = RedisConnector.__doc__.partition("needs the commands")[2].partition("channels")[0]
    commands = {
        word for word in documented.replace("`", " ").replace(",", " ").split() if word.isupper()
    }
    assert {"GETRANGE", "RENAMENX", "SUBSCRIBE", "UNSUBSCRIBE", "PUBLISH"} <= commands
    monkeypatch.setenv("TEST_REDIS_PASSWORD", "secret")
    monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 0.1)

    def allow(channels):
        with admin(server) as client:
            client.acl_setuser(
                "worker",
                enabled=True,
                reset=True,
                passwords=["+secret"],
                keys=["team:*", "{team:*"],
                channels=channels,
                commands=[f"+{command}" for command in commands],
            )

    allow(["team:*"])
    connector = RedisConnector(
        server.url, username="worker", password_env="TEST_REDIS_PASSWORD", namespace="team"
    )
    names = await register(connector, 3)
    tasks = await start_waiting(connector, names)
    await connector.set(names[0], [b"x"])
    await asyncio.sleep(0.15)  # a backstop, which gives back a channel
    assert not await connector.evict(names[1])
    await tasks[0]
    with pytest.raises(ObjectLostError):
        await tasks[1]
    allow(["other:*"])
    with pytest.raises(ConnectorUnavailableError, match="does not permit") as caught:
        await tasks[2]
    assert "ACL SETUSER" in caught.value.hint
    for call in (connector.set(names[2], [b"x"]), connector.wait(names[2])):
        with pytest.raises(ConnectorUnavailableError, match="does not permit"):
            await call
    assert not await connector.exists(names[2])
    await connector.aclose(clear=True)
    with admin(server) as client:
        assert 0 == client.dbsize()


@pytest.mark.parametrize("fault", ["close", "reset"])
@pytest.mark.parametrize("size", [5, 3 << 20])
async def test_a_connection_lost_in_the_middle_of_a_set(redis_server, redis_url, fault, size):
    """A lost set is done again if it did not happen; if it did, or nobody can know, it says so."""
    async with TCPProxy(redis_server.port) as proxy:
        namespace = redis_url.partition("=")[2]
        through = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        direct = RedisConnector(redis_url)
        warm = [bytes(1 << 20)]  # one that has a connection for itself
        # Lost on its way to the server: nothing happened, and the second try succeeds.
        for after in (0, 40, size // 2 + 60):
            name = await through.new_key()
            task = (await start_waiting(direct, [name]))[0]
            await through.put(warm)
            proxy.cut("up", after, fault)
            await through.set(name, [bytes(size)])
            await task
            assert size == len(await direct.get(name))
        # The reply is lost: it did happen, and nobody is told that somebody else was faster.
        name = await through.new_key()
        await through.put(warm)
        proxy.cut("down", len("+OK\r\n" + 4 * "+QUEUED\r\n") + 1, fault)
        with pytest.raises(ConnectorLostError):
            await through.set(name, [bytes(size)])
        assert await direct.exists(name)
        # The same, and somebody else really was faster.
        name = await through.new_key()
        await direct.set(name, [b"theirs"])
        proxy.cut("up", 0, fault)
        with pytest.raises(ConnectorLostError):
            await through.set(name, [bytes(size)])
        with pytest.raises(KeyExistsError):
            await through.set(name, [bytes(size)])
        assert b"theirs" == await direct.get(name)
        await through.aclose(clear=True)
        await direct.aclose(clear=True)


async def test_a_server_without_room_keeps_the_registration(own_redis_server):
    """A set that the server has no memory for can be done again when there is room."""
    server = await asyncio.to_thread(own_redis_server, args=["--maxmemory-policy", "noeviction"])
    connector = RedisConnector(server.url)
    await connector.put([b"x"])  # it knows of no limit then
    name = await connector.new_key()
    (task,) = await start_waiting(connector, [name])
    with admin(server) as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreFullError, match="out of memory"):
            await connector.set(name, [b"x" * 1000])
        assert not await connector.exists(name)
        assert not task.done()
        client.config_set("maxmemory", 0)
    await connector.set(name, [b"x" * 1000])
    await task
    await connector.aclose()
