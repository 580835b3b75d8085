"""Waiting for objects in a real Redis server: who is woken, by whom, and what it takes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading

import pytest

from proxyplane._runtime.io_thread import io_thread
from proxyplane.connectors.redis import RedisConnector, waiting
from proxyplane.exceptions import ConnectorClosedError, KeyExistsError, ObjectLostError
from proxyplane.testing import cancelled_at
from support.servers import admin, connections
from support.waiting import until

NEVER = 3600.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(autouse=True)
def _times(monkeypatch):
    """Nothing is woken by the backstop, and connections end soon after the last waiter left."""
    monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", NEVER)
    monkeypatch.setattr(waiting, "IDLE_SECONDS", 0.01)


@pytest.fixture
async def redis(redis_url):
    connector = RedisConnector(redis_url)
    yield connector
    await connector.aclose(clear=True)


@pytest.fixture
def server(redis_server):
    with admin(redis_server) as client:
        yield client


def subscribers(server) -> int:
    """How many connections wait for messages, without those of other tests that are just ending."""
    return len(server.client_list(_type="pubsub"))


def channels(server, connector) -> int:
    return len(server.pubsub_channels(f"{connector._options.namespace}:*"))


def keys(server, connector) -> list[bytes]:
    return sorted(server.keys(f"*{connector._options.namespace}:*"))


async def start_waiting(connector, server, names, **kwargs):
    """Tasks that wait, when all of them are asleep."""
    before = channels(server, connector)
    tasks = [asyncio.create_task(connector.wait(name, **kwargs)) for name in names]
    await until(lambda: channels(server, connector) == before + len({*names}))
    client = await connector._client()
    await until(lambda: all(one.asleep for one in client.waiters._waiting.values()))
    return tasks


async def nothing_left(connector, server):
    """Returns when no waiter, task or subscription of the connector is left."""
    waiters = (await connector._client()).waiters
    await until(lambda: not waiters._waiting and waiters._task is None)
    await until(lambda: channels(server, connector) == 0)


async def test_a_registered_key_is_a_record_until_it_is_set(redis, server):
    """The server holds a record that no key of a user's can name, then the object and no record."""
    key = await redis.new_key()
    namespace = redis._options.namespace
    record = f"{{{namespace}:{key}}}later".encode()
    assert [record] == keys(server, redis)
    assert (None, False) == (await redis.get(key), await redis.exists(key))
    assert [None] == await redis.get_batch([key])
    await redis.set(key, [b"head", b"body"])
    assert [f"{namespace}:{key}".encode()] == keys(server, redis)
    assert b"headbody" == await redis.get(key)
    assert await redis.evict(key)
    assert [] == keys(server, redis)


@pytest.mark.parametrize("size", [1, 300_000, 9 << 20])
async def test_any_size_is_set(redis, size):
    """Large objects are stored in the same transaction as small ones."""
    key = await redis.new_key()
    body = os.urandom(size)
    waiter = asyncio.create_task(redis.wait(key))
    await redis.set(key, [body[:1], body[1:]])
    await waiter
    assert body == await redis.get(key)


async def test_the_message_is_part_of_the_transaction(redis, server):
    """Between set and publish nobody gets in: the server is told both in one MULTI."""
    key = await redis.new_key()
    with server.monitor() as monitor:
        await redis.set(key, [b"x"])
        seen = []
        while "EXEC" not in seen:
            seen.append(monitor.next_command()["command"].split()[0].upper())
    first = seen.index("MULTI")
    assert ["MULTI", "SET", "RENAMENX", "EXISTS", "PUBLISH", "EXEC"] == seen[first:]


async def test_a_failed_set_changes_nothing(redis):
    """Whoever comes second, or too late, leaves everything as it is."""
    key = await redis.new_key()
    await redis.set(key, [b"first"])
    with pytest.raises(KeyExistsError, match="taken"):
        await redis.set(key, [b"second"])
    assert b"first" == await redis.get(key)
    await redis.evict(key)
    with pytest.raises(ObjectLostError, match="neither set nor still to be set") as caught:
        await redis.set(key, [b"third"])
    assert "restarted empty" in caught.value.hint
    assert not await redis.exists(key)


async def test_ten_thousand_waiters_share_one_connection(redis, redis_url, server):
    """One subscription serves all waiters of a loop, and each is woken by its own message."""
    names = await asyncio.gather(*(redis.new_key() for _ in range(10_000)))
    before = connections(server)
    tasks = await start_waiting(redis, server, names)
    await until(lambda: subscribers(server) == 1)
    assert before + 1 >= connections(server)
    looks = calls(server, "exists")
    other = RedisConnector(redis_url)
    await asyncio.gather(*(other.set(name, [b"x"]) for name in names))
    await asyncio.gather(*tasks)
    # Woken by messages: nobody looked any more. (Each set asks once.)
    assert looks + 10_000 == calls(server, "exists")
    await nothing_left(redis, server)
    await until(lambda: subscribers(server) == 0)
    await other.aclose()


def calls(server, *commands) -> int:
    stats = server.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in commands)


def all_calls(server) -> int:
    stats = server.info("commandstats")
    return sum(one["calls"] for name, one in stats.items() if name != "cmdstat_info")


async def test_nothing_polls(redis, server):
    """While nothing happens the server is asked nothing."""
    names = [await redis.new_key() for _ in range(300)]
    tasks = await start_waiting(redis, server, names)
    before = all_calls(server)
    await asyncio.sleep(0.5)
    assert before == all_calls(server)
    for name in names:
        await redis.set(name, [b"x"])
    await asyncio.gather(*tasks)


async def test_the_backstop_costs_a_command_for_a_batch(redis, server, monkeypatch):
    """300 waiters are looked at in two commands, and the connection shows that it is alive."""
    monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 0.05)
    names = [await redis.new_key() for _ in range(300)]
    tasks = await start_waiting(redis, server, names)
    before, subscribed = calls(server, "exists"), calls(server, "subscribe")
    await until(lambda: calls(server, "exists") >= before + 6)
    assert calls(server, "subscribe") - subscribed <= (calls(server, "exists") - before) // 2 + 1
    assert 1 == subscribers(server)
    await asyncio.gather(*(redis.set(name, [b"x"]) for name in names), *tasks)


async def test_channels_are_given_back(redis, server, monkeypatch):
    """One who waits for ever does not keep the channels of all who waited before."""
    monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 0.05)
    forever = asyncio.create_task(redis.wait(await redis.new_key()))
    names = [await redis.new_key() for _ in range(50)]
    await asyncio.gather(
        *(redis.wait(name) for name in names), *(redis.set(n, [b"x"]) for n in names)
    )
    await until(lambda: channels(server, redis) == 1)
    again = asyncio.create_task(redis.wait(key := await redis.new_key()))
    await asyncio.sleep(0.06)
    await redis.set(key, [b"x"])
    await again
    forever.cancel()


async def test_what_is_there_needs_no_subscription(redis, server):
    """To wait for an object that is there, or gone, makes no connection."""
    key = await redis.new_key()
    await redis.set(key, [b"x"])
    before = calls(server, "subscribe")
    await redis.wait(key)
    await redis.wait(await redis.put([b"an ordinary object"]))
    await redis.evict(key)
    with pytest.raises(ObjectLostError):
        await redis.wait(key)
    assert before == calls(server, "subscribe")


async def test_evicting_wakes_those_who_wait(redis, redis_url, server):
    """An evicted future is gone for all: who waits learns it at once, who sets it later too."""
    names = [await redis.new_key() for _ in range(3)]
    other = RedisConnector(redis_url)
    tasks = await start_waiting(redis, server, names)
    ordinary = await redis.put([b"x"])
    assert not await other.evict(names[0])
    assert [False, True, False] == await other.evict_batch([names[1], ordinary, names[2]])
    for task in tasks:
        with pytest.raises(ObjectLostError, match="neither set"):
            await task
    with pytest.raises(ObjectLostError):
        await redis.set(names[0], [b"x"])
    assert [] == keys(server, redis)
    await other.aclose()


async def test_closing_ends_every_wait(redis_url, server):
    """Those who wait on a connector that is closed learn who closed it; nothing is left."""
    connector = RedisConnector(redis_url)
    name = await connector.new_key()
    tasks = await start_waiting(connector, server, [name] * 5)
    new = asyncio.create_task(connector.wait(name))  # not even begun
    await connector.aclose(clear=True)
    for task in [*tasks, new]:
        with pytest.raises(ConnectorClosedError):
            await task
    with pytest.raises(ConnectorClosedError):
        await connector.wait(name)
    await until(lambda: channels(server, connector) == 0)
    assert [] == keys(server, connector)
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_clearing_takes_what_this_instance_made(redis, redis_url, server):
    """Keys registered here go, set or not, by whomever; those of other instances stay."""
    connector = RedisConnector(redis_url)
    mine = [await connector.new_key() for _ in range(3)]
    theirs = await redis.new_key()
    await redis.set(mine[0], [b"x"])
    await connector.set(theirs, [b"theirs"])
    await connector.aclose(clear=True)
    assert [f"{redis._options.namespace}:{theirs}".encode()] == keys(server, redis)
    with pytest.raises(ObjectLostError):
        await redis.wait(mine[1])


async def test_a_wait_that_is_over_leaves_nothing(redis, server):
    """After a time-out, or without any wait, no waiter, task or connection is left."""
    name = await redis.new_key()
    with pytest.raises(TimeoutError, match=f"'{name}'.* within 0.05 s"):
        await redis.wait(name, 0.05)
    for timeout in (0, -1):
        with pytest.raises(TimeoutError):
            await redis.wait(name, timeout)
    await nothing_left(redis, server)
    assert {asyncio.current_task()} == asyncio.all_tasks()


@pytest.mark.row("cancellation at every await")
@pytest.mark.parametrize("others", [0, 1])
async def test_a_wait_cancelled_at_each_suspension(redis_url, server, others):
    """Wherever it is cancelled it leaves nothing, and takes no wake-up from anybody else."""
    before = connections(server)
    n, hit = 0, True
    while hit:
        n += 1
        connector = RedisConnector(redis_url)
        name = await connector.new_key()
        waiting_too = [asyncio.create_task(connector.wait(name)) for _ in range(others)]

        async def set_later(connector=connector, name=name):
            for _ in range(3):
                await asyncio.sleep(0)
            await connector.set(name, [b"x"])

        setting = asyncio.create_task(set_later())
        hit = await cancelled_at(connector.wait(name), n)
        await asyncio.gather(setting, *waiting_too)
        await nothing_left(connector, server)
        await connector.aclose(clear=True)
        assert {asyncio.current_task()} == asyncio.all_tasks()
        await until(lambda: connections(server) <= before)
    assert n > 1, "it was never cancelled"


@pytest.mark.row("cancellation at every await")
async def test_a_set_cancelled_at_each_suspension(redis_url, server):
    """A cancelled set has stored all or nothing: there is the object or the record, never both."""
    body = bytes(32 << 20)  # more than a socket takes at once
    for cold in (False, True):
        n, hit, seen = 0, True, set()
        while hit:
            n += 1
            connector = RedisConnector(redis_url)
            name = await connector.new_key()
            if not cold:
                await connector.put([b"warm"])
            hit = await cancelled_at(connector.set(name, [body]), n)
            try:  # what was sent may take effect a little later
                await connector.set(name, [b"again"])
            except KeyExistsError:
                assert body == await connector.get(name)
                seen.add(True)
            else:
                assert b"again" == await connector.get(name)
                seen.add(False)
            await connector.aclose(clear=True)
            assert [] == keys(server, connector)
        assert {True, False} == seen


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_waits_on_many_loops(redis_url, server, loop):
    """Loops share nothing: each of eight, and the library's own, has a subscription of its own."""
    factory = None
    if loop == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    connector = RedisConnector(redis_url)
    name = asyncio.run(connector.new_key())
    ended = []

    async def wait():
        await connector.wait(name)
        return bytes(await connector.get(name))

    def run():
        with asyncio.Runner(loop_factory=factory) as runner:
            ended.append(runner.run(wait()))

    threads = [threading.Thread(target=run) for _ in range(8)]
    threads.append(threading.Thread(target=lambda: ended.append(io_thread().run(wait()))))
    for thread in threads:
        thread.start()
    channel = f"{connector._options.namespace}:{name}"
    while server.pubsub_numsub(channel)[0][1] < 9:
        pass
    asyncio.run(connector.set(name, [b"x"]))
    for thread in threads:
        thread.join(50)
    assert [b"x"] * 9 == ended
    asyncio.run(connector.aclose(clear=True))
    while server.pubsub_numsub(channel)[0][1]:
        pass


def test_a_loop_that_ends_takes_its_waits_with_it(redis_url, server):
    """asyncio.run ends while somebody waits: no warning, no task, no connection."""
    connector = RedisConnector(redis_url)
    before = connections(server)

    async def main():
        name = await connector.new_key()
        main.tasks = await start_waiting(connector, server, [name] * 3)

    asyncio.run(main())
    assert all(task.cancelled() for task in main.tasks)
    while connections(server) > before:
        pass
    asyncio.run(connector.aclose(clear=True))


def test_a_task_cancelled_by_a_stranger_lets_nobody_hang(redis_url, server):
    """Who cancels all tasks of a loop but their own gets an error, not a wait without end."""
    connector = RedisConnector(redis_url)

    async def main():
        name = await connector.new_key()
        (task,) = await start_waiting(connector, server, [name])
        (await connector._client()).waiters._task.cancel()
        with pytest.raises(Exception, match="listens to Redis was ended"):
            await task
        task = asyncio.create_task(connector.wait(name))  # works again
        await connector.set(name, [b"x"])
        await task

    asyncio.run(main())
    asyncio.run(connector.aclose(clear=True))


SET = """
import asyncio, sys
from proxyplane.connectors.redis import RedisConnector
from proxyplane.exceptions import KeyExistsError
url, go, me, *names = sys.argv[1:]
async def main():
    connector = RedisConnector(url)
    print("ready", flush=True)
    await connector.wait(go, 40)
    async def set_one(name):
        try:
            await connector.set(name, [me.encode()])
            return name
        except KeyExistsError:
            return None
    won = await asyncio.gather(*map(set_one, names))
    print(*filter(None, won))
    await connector.aclose()
asyncio.run(main())
"""


@contextlib.contextmanager
def python(*args):
    """A process that has said it is ready."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", *args],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert "ready\n" == process.stdout.readline()
        yield process


@pytest.mark.allow_blocking
async def test_of_two_processes_exactly_one_sets(redis, server):
    """Each of 500 keys is set by one of two processes, and holds what that one wrote."""
    go = await redis.new_key()
    names = [await redis.new_key() for _ in range(500)]
    tasks = await start_waiting(redis, server, names)
    args = (redis.url, go)
    with python(SET, *args, "a", *names) as a, python(SET, *args, "b", *reversed(names)) as b:
        await redis.set(go, [b"go"])
        await asyncio.gather(*tasks)
        won = {}
        for me, process in (("a", a), ("b", b)):
            out, _ = await asyncio.to_thread(process.communicate)
            assert 0 == process.returncode
            for name in out.split():
                assert name not in won
                won[name] = me.encode()
    assert set(names) == set(won)
    found = await redis.get_batch(names)
    assert won == {name: bytes(one) for name, one in zip(names, found, strict=True)}


FORK = """
import asyncio, os, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)  # fork beside threads
from proxyplane.connectors.redis import RedisConnector
connector = RedisConnector(sys.argv[1])

async def child(one, two):
    waiting = [asyncio.create_task(connector.wait(key, 30)) for key in (one, two)]
    await asyncio.sleep(0.05)
    await connector.set(one, [b"from the child"])
    await asyncio.gather(*waiting)
    mine = await connector.new_key()
    await connector.aclose(clear=True)

async def parent():
    one, two = await connector.new_key(), await connector.new_key()
    waiting = [asyncio.create_task(connector.wait(key, 30)) for key in (one, two)]
    await asyncio.sleep(0.05)
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(child(one, two))
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    await waiting[0]
    await connector.set(two, [b"from the parent"])
    await waiting[1]
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert 0 == status, status
    assert [b"from the child", b"from the parent"] == await connector.get_batch([one, two])
    await connector.aclose(clear=True)

asyncio.run(parent())
print("done")
"""


@pytest.mark.row("fork while waiting")
def test_forked_while_waiting(redis_url, server):
    """A child has waiters of its own, and leaves those of its parent, and their keys, alone."""
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", FORK, redis_url],
        capture_output=True,
        text=True,
        timeout=50,
        env=ENVIRONMENT,
    )
    assert ("done\n", "", 0) == (result.stdout, result.stderr, result.returncode)
    assert [] == server.keys(f"*{redis_url.partition('=')[2]}:*")
