"""Redis: thousands who wait while their connection is reset at any byte, goes dead, or crawls."""

from __future__ import annotations

import asyncio
import random
from types import NoneType

import pytest

from proxyplane.connectors.redis import RedisConnector, waiting
from proxyplane.connectors.redis.later import record_name
from proxyplane.exceptions import ObjectLostError, StoreFullError
from support.redis_waiting import all_woken, asleep, blind, register, set_at_once, start_waiting
from support.servers import POLICIES, admin
from support.soak import SOAK, WAITERS, defended_or_not, recovering, tally, times
from support.tcp_proxy import TCPProxy
from support.waiting import until

NEVER = 3600.0
FEW = 3
PASSWORD = "TEST_REDIS_PASSWORD"
LOGIN = {"password": "right"}


@pytest.fixture(autouse=True)
def _times(monkeypatch):
    """Nothing is woken by the backstop, unless the test is about it."""
    monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", NEVER)
    monkeypatch.setattr(waiting, "LONGEST_PAUSE", 0.1)


@pytest.fixture
async def proxied(own_redis_server, monkeypatch):
    """A server that wants a login, a proxy before it, and connectors through it and past it."""
    monkeypatch.setenv(PASSWORD, LOGIN["password"])
    server = await asyncio.to_thread(own_redis_server, args=["--requirepass", LOGIN["password"]])
    async with TCPProxy(server.port) as proxy:
        through = RedisConnector(f"redis://127.0.0.1:{proxy.port}", password_env=PASSWORD)
        direct = RedisConnector(server.url, password_env=PASSWORD)
        yield server, proxy, through, direct
        await through.aclose()
        await direct.aclose()


async def end_subscription(server):
    """Ends the connection that listens."""
    with admin(server, **LOGIN) as client:
        await until(lambda: client.client_kill_filter(_type="pubsub"))


async def lengths(server, proxy, connector):
    """Bytes of a login, and of one with all subscriptions, in each direction."""
    async with (await connector._client()).extra():
        login = dict(proxy.newest)
    before = proxy.accepted
    await end_subscription(server)
    await until(lambda: proxy.accepted > before + 1)
    await asleep(connector)
    return login, proxy.newest


def spread(length, count):
    """So many places among the bytes of a stream, its first and its last."""
    return [length * number // (count - 1) for number in range(count)]


few_many_or_not = pytest.mark.parametrize(
    ("count", "defended"),
    [(FEW, True), (WAITERS, True), (FEW, False)],
    ids=["few", "many", "undefended"],
)


@pytest.mark.row("reset at each byte")
@pytest.mark.parametrize("direction", ["up", "down"])
@few_many_or_not
async def test_subscription_reset(proxied, monkeypatch, count, direction, defended):
    """Wherever the connection of 5,000 waiters is reset while it is made, all of them are woken.

    With a few it is reset at each byte of its login, its subscriptions, and the answers to them;
    with many, at each of its login and a sample of the others.
    """
    server, proxy, through, direct = proxied
    names = await register(direct, count)
    tasks = await start_waiting(through, names)
    login, total = (one[direction] for one in await lengths(server, proxy, through))
    if not defended:
        offsets = [login // 2]
        blind(monkeypatch)
    elif count == FEW:
        offsets = range(0, total, 1 if SOAK else 9)
    else:
        inside = range(login) if SOAK else spread(login, 5)
        offsets = [*inside, *spread(total, 200 if SOAK else 6)]
    # With the one that listens the connection for questions goes too, and is made again first.
    nth = 2 if defended else 1  # the blind ask no questions
    for after in offsets:
        fresh = await register(direct, 2)
        fresh_tasks = await start_waiting(through, fresh)
        accepted = proxy.accepted
        proxy.cut_later(nth, direction, after, "reset")
        await end_subscription(server)
        set_at_once(server, direct, fresh[:1], **LOGIN)
        await until(lambda accepted=accepted: proxy.accepted >= accepted + nth)
        await direct.set(fresh[1], [b"x"])
        await all_woken(fresh_tasks, defended)
        await asleep(through)
        names += fresh
    assert not any(task.done() for task in tasks)
    set_at_once(server, direct, names[:count], **LOGIN)
    await all_woken(tasks, True)
    assert await direct.get_batch(names) == [b"x"] * len(names)
    tally.tries = proxy.cuts
    assert proxy.cuts > len(offsets) * 3 // 4  # the last ones may not be come to
    if count == WAITERS:
        tally.notes.append("resets of the connection of 5,000 waiters too")


@pytest.mark.slow
@pytest.mark.row("reset at each byte")
@few_many_or_not
async def test_messages_reset(proxied, monkeypatch, count, defended):
    """Wherever the connection is reset among the messages of 5,000 sets, all waiters are woken.

    With a few it is reset at each byte of their messages.
    """
    server, proxy, through, direct = proxied
    names, after, step = [], 0, 9
    if count == WAITERS:
        step = 6_000 if SOAK else 150_000
    while True:
        names = await register(direct, count)
        tasks = await start_waiting(through, names)
        cuts = proxy.cuts
        proxy.cut("down", after, "reset")
        if not defended:
            blind(monkeypatch)
        await asyncio.to_thread(set_at_once, server, direct, names, **LOGIN)
        await all_woken(tasks, defended)
        assert await direct.get_batch(names) == [b"x"] * count
        if proxy.cuts == cuts or not defended:  # all messages had come before that byte
            break
        after += step
    assert proxy.cuts > 2 or not defended
    tally.tries = proxy.cuts


async def end_waits(tasks):
    """Gives up whoever still waits."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.row("half-open link")
@defended_or_not
async def test_half_open_under_waiters(proxied, monkeypatch, defended):
    """When every connection goes dead in silence, 5,000 waiters are woken over new ones.

    Without a look from time to time nobody finds out.
    """
    server, proxy, through, direct = proxied
    if defended:
        monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 1.0)
    for _ in range(times("half-open link") if defended else 1):
        names = await register(direct, WAITERS if defended else FEW)
        tasks = await start_waiting(through, names)
        proxy.stall_all()
        await asyncio.to_thread(set_at_once, server, direct, names[::2], **LOGIN)
        await all_woken(tasks[::2], defended)
        if not defended:
            await end_waits(tasks)
            break
        assert not any(task.done() for task in tasks[1::2])
        await asyncio.to_thread(set_at_once, server, direct, names[1::2], **LOGIN)
        await all_woken(tasks[1::2], True)
        assert await direct.get_batch(names) == [b"x"] * len(names)


@pytest.mark.slow
@pytest.mark.row("slow link")
@defended_or_not
async def test_slow_link_under_waiters(proxied, monkeypatch, defended):
    """Over a link that crawls, 5,000 waiters get subscribed and are woken.

    Not by one who takes for dead what does not answer at once.
    """
    server, proxy, through, direct = proxied
    monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 0.5 if defended else 0.005)
    await through.exists("nothing")
    proxy.delay, proxy.piece = 0.01, 4_000
    waiters = (await through._client()).waiters
    for _ in range(times("slow link") if defended else 1):
        names = await register(direct, WAITERS if defended else FEW)
        tasks = [asyncio.create_task(through.wait(name)) for name in names]
        await until(lambda: len(waiters._subscribed) > 1000 or not defended)
        await asyncio.to_thread(set_at_once, server, direct, names[::2], **LOGIN)
        await all_woken(tasks[::2], defended)
        if not defended:
            await end_waits(tasks)
            break
        await asleep(through)
        assert not any(task.done() for task in tasks[1::2])
        await asyncio.to_thread(set_at_once, server, direct, names[1::2], **LOGIN)
        await all_woken(tasks[1::2], True)
        assert await direct.get_batch(names) == [b"x"] * len(names)


async def fill(connector, bytes_):
    """Puts objects with a lease; returns whether one was refused."""
    refused = False
    for _ in range(bytes_ // 20_000):
        try:
            await connector.put([bytes(20_000)], ttl=3600)
        except StoreFullError:
            refused = True
    return refused


@pytest.mark.row("maxmemory")
@pytest.mark.parametrize(
    ("policy", "defended"),
    [*((policy, True) for policy in POLICIES), ("allkeys-random", False)],
    ids=[*POLICIES, "undefended"],
)
@pytest.mark.filterwarnings("ignore:Redis at:RuntimeWarning")
async def test_full_under_waiters(own_redis_server, monkeypatch, policy, defended):
    """When the server is full, each of 5,000 waiters gets the object, or learns that it is lost.

    Whoever would set it is told that there is no room, or that the key is lost. What the policy
    must not drop is there. Without a look from time to time, nobody learns of dropped keys.
    """
    if defended:
        monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 0.5)
    server = await asyncio.to_thread(own_redis_server, args=["--maxmemory-policy", policy])
    through, direct = RedisConnector(server.url), RedisConnector(server.url)
    half = WAITERS // 2 if defended else 500
    kept = await register(direct, half)
    leased = await asyncio.gather(*(direct.new_key(ttl=3600) for _ in range(half)))
    if policy.startswith("allkeys"):
        kept, leased = [], kept + leased
    tasks = dict(zip(kept + leased, await start_waiting(through, kept + leased), strict=True))
    with admin(server) as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + (1 << 20))
        assert await fill(direct, 4 << 20) is (policy == "noeviction")
        dropped = [key for key in tasks if not client.exists(record_name(direct._name(key)))]
        assert bool(dropped) is (policy != "noeviction")
        assert not {*dropped} & {*kept}
        if dropped:
            # Those who wait for what is set hear of that; of the others nobody else tells.
            alone = [tasks.pop(key) for key in dropped[: len(dropped) // 2]]
            if not defended:
                await all_woken(alone, False)
                await end_waits(tasks.values())
                return
            with recovering():
                outcomes = await asyncio.gather(*alone, return_exceptions=True)
            assert {*map(type, outcomes)} == {ObjectLostError}
        told = {}

        async def set_all(keys):
            for start in range(0, len(keys), 100):
                some = keys[start : start + 100]
                calls = (direct.set(key, [key.encode() * 10]) for key in some)
                for key, how in zip(
                    some, await asyncio.gather(*calls, return_exceptions=True), strict=True
                ):
                    told[key] = type(how)

        await set_all([*tasks])
        assert {*told.values()} <= {NoneType, StoreFullError, ObjectLostError}
        client.config_set("maxmemory", 0)
        await set_all([key for key, how in told.items() if how is StoreFullError])
    assert {*told.values()} <= {NoneType, ObjectLostError}
    ends = await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert {*map(type, ends)} <= {NoneType, ObjectLostError}
    found = dict(zip(tasks, await direct.get_batch([*tasks]), strict=True))
    for key, end in zip(tasks, ends, strict=True):
        assert found[key] in (None, key.encode() * 10)
        # Of what the server dropped before it was set, or after, nothing is found.
        assert found[key] is None or (told[key] is type(end) is NoneType)
    safe = [*tasks] if policy == "noeviction" else kept
    assert all(found[key] is not None for key in safe)
    assert all(told[key] is NoneType for key in safe)
    tally.notes.append("5,000 waiters under each policy")
    tally.tries = 1
    await through.aclose()
    await direct.aclose()


@pytest.mark.row("cancellation at random")
async def test_cancelled_among_waiters(proxied):
    """Of 5,000 who wait over a slow link half are cancelled, the rest is woken; nothing is left."""
    server, proxy, through, direct = proxied
    proxy.delay = 0.002
    dice = random.Random(7)
    for _ in range(10 if SOAK else 1):
        names = await register(direct, WAITERS)
        tasks = [asyncio.create_task(through.wait(name)) for name in names]
        accepted = proxy.accepted
        await until(lambda: (proxy.accepted > accepted) or any(task.done() for task in tasks))
        accepted = proxy.accepted
        cancelled = set(dice.sample(range(WAITERS), WAITERS // 2))
        order = dice.sample(range(WAITERS), WAITERS)

        async def set_all(names=names, order=order):
            for start in range(0, WAITERS, 200):
                some = order[start : start + 200]
                await asyncio.gather(*(direct.set(names[n], [b"x"]) for n in some))

        setting = asyncio.create_task(set_all())
        for number in dice.sample(sorted(cancelled), len(cancelled)):
            tasks[number].cancel()
            if number % 50 == 0:
                await asyncio.sleep(dice.random() / 100)
        await setting
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        for number, end in enumerate(ends):
            assert end is None or (number in cancelled and type(end) is asyncio.CancelledError)
        assert await direct.get_batch(names) == [b"x"] * WAITERS
        waiters = (await through._client()).waiters
        assert not waiters._waiting
        assert proxy.accepted <= accepted + 1
        await direct.evict_batch(names)
    with admin(server, **LOGIN) as client:
        await until(lambda: client.pubsub_channels() == [])
    tally.tries = len(cancelled) * (10 if SOAK else 1)
