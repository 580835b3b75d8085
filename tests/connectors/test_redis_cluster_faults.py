"""A Redis cluster whose nodes go away, and whose slots move, while it is used."""

from __future__ import annotations

import asyncio
import random

import pytest
from redis.crc import key_slot

from proxyplane import RedisConnector
from proxyplane.connectors.redis import behind, parts, waiting
from proxyplane.connectors.redis.cluster import ClusterClient
from proxyplane.exceptions import (
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    KeyExistsError,
    ObjectLostError,
)
from proxyplane.testing import cancelled_at
from support.redis_waiting import all_woken
from support.soak import defended_or_not
from support.waiting import until

MB = 1 << 20
LONG = 50.0
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
# Else all nodes refuse to serve anything, some time after one has gone.
PARTIAL = ("--cluster-require-full-coverage", "no")


@pytest.fixture
async def cluster(own_redis_cluster):
    """A cluster whose nodes keep what they have when they are killed."""
    return await asyncio.to_thread(own_redis_cluster, *DURABLE, *PARTIAL)


@pytest.fixture
async def connector(cluster):
    made = RedisConnector(cluster.url, namespace="n")
    yield made
    await made.aclose()


async def at_places(cluster, connector, make, count=60):
    """Makes keys, and tells at which node each is."""
    keys = [await make() for _ in range(count)]
    return {key: await asyncio.to_thread(cluster.place, connector._name(key)) for key in keys}


async def asleep(connector, count):
    waiters = (await connector._client()).waiters
    await until(lambda: len(waiters._waiting) == count)
    await until(lambda: all(one.asleep for one in waiters._waiting.values()))


# A node that is killed


@pytest.mark.row("cluster node killed")
@pytest.mark.parametrize("victim", range(3))
async def test_a_node_is_killed_and_comes_back(cluster, connector, victim):
    """What the others have can be used meanwhile; the rest raises, and is there again later."""
    objects = await at_places(cluster, connector, lambda: connector.put([b"object"]))
    futures = await at_places(cluster, connector, connector.new_key)
    tasks = {key: asyncio.create_task(connector.wait(key, LONG)) for key in futures}
    await asleep(connector, len(futures))
    await asyncio.to_thread(cluster.nodes[victim].kill)

    for key, place in objects.items():
        if place != victim:
            assert b"object" == await connector.get(key)
            assert await connector.exists(key)
            continue
        for call in (connector.get(key), connector.exists(key), connector.evict(key)):
            with pytest.raises((ConnectorLostError, ConnectorUnavailableError), match="127.0.0.1"):
                await call
    for call in (
        connector.get_batch([*objects]),
        connector.put_batch([[b"batch"]] * 60),
        connector.put_batch([[bytes(100_000)]] * 60),
    ):
        with pytest.raises(ConnectorError):
            await call
    for key, place in futures.items():
        if place != victim:
            await connector.set(key, [b"now"])
            await tasks[key]
    assert not any(tasks[key].done() for key, place in futures.items() if place == victim)

    await asyncio.to_thread(cluster.nodes[victim].start)
    await asyncio.to_thread(cluster.settle)
    assert [b"object"] * 60 == await connector.get_batch([*objects])
    for key, place in futures.items():
        if place == victim:
            await connector.set(key, [b"later"])
    assert [None] * 60 == await asyncio.gather(*tasks.values())
    assert [True] * 60 == await connector.evict_batch([*objects])
    assert [True] * 60 == await connector.evict_batch([*futures])
    # Of the batches that failed nothing is left, not at the living nodes either.
    assert [0, 0, 0] == [len(client.keys("*")) for client in cluster.clients]


@pytest.mark.row("cluster node killed")
@defended_or_not
async def test_a_node_comes_back_empty(own_redis_cluster, monkeypatch, defended):
    """Who waits for an object whose node has forgotten everything is told so.

    Nobody else tells: it is found by looking from time to time.
    """
    monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 0.2)
    cluster = await asyncio.to_thread(own_redis_cluster, *PARTIAL)
    connector = RedisConnector(cluster.url, namespace="n")
    futures = await at_places(cluster, connector, connector.new_key, 30)
    tasks = {key: asyncio.create_task(connector.wait(key, LONG)) for key in futures}
    await asleep(connector, 30)
    if not defended:

        async def look_up(self, names):
            return [(False, True)] * len(names)

        monkeypatch.setattr(ClusterClient, "look_up", look_up)
    await asyncio.to_thread(cluster.nodes[1].restart)
    await asyncio.to_thread(cluster.settle)
    if not defended:
        await all_woken([tasks[key] for key, place in futures.items() if place == 1], False)
        await connector.aclose()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return
    for key, place in futures.items():
        if place == 1:
            with pytest.raises(ObjectLostError):
                await tasks[key]
            with pytest.raises(ObjectLostError):
                await connector.set(key, [b"x"])
        else:
            assert not tasks[key].done()
            await connector.set(key, [b"x"])
            await tasks[key]
    await connector.aclose()


@pytest.mark.row("cluster node killed")
async def test_all_nodes_are_killed(cluster, connector):
    """Whoever waits goes on waiting until the cluster is back, and is woken then."""
    keys = [await connector.new_key() for _ in range(30)]
    tasks = [asyncio.create_task(connector.wait(key, LONG)) for key in keys]
    await asleep(connector, 30)
    for node in cluster.nodes:
        await asyncio.to_thread(node.kill)
    for call in (connector.get("x"), connector.put_batch([[b"x"]] * 9), connector.new_key()):
        with pytest.raises((ConnectorLostError, ConnectorUnavailableError)):
            await call
    assert not any(task.done() for task in tasks)
    for node in cluster.nodes:
        await asyncio.to_thread(node.start)
    await asyncio.to_thread(cluster.settle)
    for key in keys:
        await connector.set(key, [b"x"])
    assert [None] * 30 == await asyncio.gather(*tasks)


async def test_a_slot_that_nobody_serves(cluster, connector):
    """Its keys raise an error that says so, those who wait for one do not, and it may come back."""
    key = await connector.new_key()
    name = connector._name(key)
    place, slot = cluster.place(name), key_slot(name)
    task = asyncio.create_task(connector.wait(key, LONG))
    await asleep(connector, 1)
    cluster.clients[place].execute_command("CLUSTER DELSLOTS", slot)
    for call in (
        connector.get(key),
        connector.evict_batch([key, key]),
        connector.set(key, [b"x"]),
    ):
        with pytest.raises(ConnectorUnavailableError, match="127.0.0.1"):
            await call
    fresh = RedisConnector(cluster.url, namespace="n", timeout=1)
    waiting_too = asyncio.create_task(fresh.wait(key, LONG))
    with pytest.raises(ConnectorUnavailableError, match="127.0.0.1"):
        await fresh.get(key)
    cluster.clients[place].execute_command("CLUSTER ADDSLOTS", slot)
    await asyncio.to_thread(cluster.settle)
    await connector.set(key, [b"x"])
    await asyncio.gather(task, waiting_too)
    await fresh.aclose()


# A slot that moves


@pytest.fixture
def slot(connector):
    """The slot of all keys that hold {tag}."""
    return key_slot(connector._name("{tag}"))


async def test_a_slot_between_two_nodes(cluster, connector, slot):
    """With half of its keys here and half of them there, every operation finds them all."""
    source = cluster.place(connector._name("{tag}"))
    target = (source + 1) % 3
    bodies = {f"{{tag}}{i}": bytes([i]) * (1 + i * 60_000) for i in range(40)}
    for key, body in bodies.items():
        await connector.put([body], key=key)
    elsewhere = await connector.put_batch([[b"elsewhere"]] * 20)
    await asyncio.to_thread(cluster.begin_move, slot, source, target)
    for _ in range(4):
        await asyncio.to_thread(cluster.move_keys, slot, source, target, count=5)
    size = [cluster.clients[i].execute_command("CLUSTER COUNTKEYSINSLOT", slot) for i in range(3)]
    assert 20 == size[source] == size[target]

    for key, body in bodies.items():
        assert body == await connector.get(key)
        assert body == await connector.get(key, size=len(body))
        assert await connector.exists(key)
        with pytest.raises(KeyExistsError):
            await connector.put([b"another"], key=key)
    assert None is await connector.get("{tag}absent")
    assert not await connector.exists("{tag}absent")
    leased = await connector.extend([*bodies, "{tag}absent"], LONG)
    assert [True] * 40 + [False] == leased
    assert [True] * 40 == await connector.extend([*bodies], None)
    assert "{tag}brief" == await connector.put([b"x"], key="{tag}brief", ttl=0.01)
    await asyncio.sleep(0.05)
    assert None is await connector.get("{tag}brief")
    mixed = [*bodies, *elsewhere, "{tag}absent"]
    found = await connector.get_batch(mixed)
    assert [*bodies.values(), *[b"elsewhere"] * 20, None] == found
    hints = [*map(len, bodies.values()), *[None] * 21]
    assert found == await connector.get_batch(mixed, sizes=hints)
    for size in (5, 3 * MB):
        assert "{tag}new" == await connector.put([bytes(size)], key="{tag}new")
        assert bytes(size) == await connector.get("{tag}new")
        assert await connector.evict("{tag}new")
    evicted = [*bodies][::2]
    asked = [*evicted, "{tag}absent", evicted[0]]
    assert [True] * 20 + [False] * 2 == await connector.evict_batch(asked)
    assert [None] * 20 == await connector.get_batch(evicted)

    while await asyncio.to_thread(cluster.move_keys, slot, source, target):
        pass
    await asyncio.to_thread(cluster.end_move, slot, source, target)
    for key in [*bodies][1::2]:
        assert bodies[key] == await connector.get(key)
        assert await connector.evict(key)
    fresh = RedisConnector(cluster.url, namespace="n")
    assert await fresh.put([b"x"], key="{tag}0") and b"x" == await connector.get("{tag}0")
    await fresh.aclose(clear=True)
    assert [b"elsewhere"] * 20 == await connector.get_batch(elsewhere)


async def test_an_object_in_parts_between_two_nodes(cluster, connector, slot, monkeypatch):
    """What is cut is found whole while its parts are at two nodes, and nothing of it is left."""
    monkeypatch.setattr(parts, "WHOLE", MB)
    monkeypatch.setattr(parts, "PART", MB // 2)
    source = cluster.place(connector._name("{tag}"))
    target = (source + 1) % 3
    body = random.Random(3).randbytes(3 * MB)
    await connector.put([body], key="{tag}stays")
    await connector.put([body], key="{tag}goes")
    await asyncio.to_thread(cluster.begin_move, slot, source, target)
    assert 7 == await asyncio.to_thread(cluster.move_keys, slot, source, target, count=7)
    assert body == await connector.get("{tag}stays")
    assert [body, body] == await connector.get_batch(["{tag}stays", "{tag}goes"])
    assert await connector.evict("{tag}goes")
    assert None is await connector.get("{tag}goes")
    putting = asyncio.create_task(connector.put([body], key="{tag}comes"))
    await asyncio.sleep(0.05)
    while await asyncio.to_thread(cluster.move_keys, slot, source, target):
        pass
    await asyncio.to_thread(cluster.end_move, slot, source, target)
    await putting
    assert [body, body] == await connector.get_batch(["{tag}stays", "{tag}comes"])
    assert [True, True] == await connector.evict_batch(["{tag}stays", "{tag}comes"])
    for client in cluster.clients:
        assert [] == [name for name in client.keys("*") if client.pttl(name) == -1]


@pytest.mark.parametrize("how", ["evict", "swap"])
async def test_what_is_cancelled_leaves_no_parts(cluster, connector, monkeypatch, how):
    """Of an object in parts that is evicted or replaced, all is there or nothing is."""
    monkeypatch.setattr(parts, "WHOLE", MB)
    monkeypatch.setattr(parts, "PART", MB // 2)

    def left():
        return {name for client in cluster.clients for name in client.keys("*part:*")}

    nth = 1
    while True:
        key = await connector.put([bytes(MB + 1)], key=f"key {nth}")
        call = connector.evict(key) if how == "evict" else connector.swap(key, None)
        reached = await cancelled_at(call, nth)
        if await connector.exists(key):
            await connector.evict(key)
        await until(lambda: not left())
        if not reached:
            break
        nth += 1
    assert nth > 1


@pytest.mark.parametrize("behind_threads", [False, True])
async def test_a_slot_moves_under_readers_and_writers(
    cluster, connector, slot, monkeypatch, behind_threads
):
    """While a slot goes round the nodes nothing is lost, nothing is wrong, nobody sees an error."""
    monkeypatch.setattr(behind, "POSSIBLE", behind_threads)
    monkeypatch.setattr("proxyplane.connectors.redis.client.on_io_thread", lambda: True)
    sizes = [1, 1000, 70_000, 5 * MB]
    fixed = {f"{{tag}}{i}": bytes([i]) * sizes[i % 4] for i in range(24)}
    for key, body in fixed.items():
        await connector.put([body], key=key)
    elsewhere = await connector.put_batch([[b"elsewhere"]] * 12)
    over = asyncio.Event()
    done = {"read": 0, "batch": 0, "write": 0}

    async def read():
        while not over.is_set():
            key = random.choice([*fixed])
            assert fixed[key] == await connector.get(key)
            assert await connector.exists(key)
            done["read"] += 1

    async def read_batches():
        small = [key for key, body in fixed.items() if len(body) < MB]
        while not over.is_set():
            found = await connector.get_batch([*small, *elsewhere])
            assert [fixed[key] for key in small] + [b"elsewhere"] * 12 == found
            done["batch"] += 1

    async def write(who):
        while not over.is_set():
            key = f"{{tag}}{who} {done['write']}"
            body = bytes([who]) * random.choice(sizes)
            assert key == await connector.put([body], key=key)
            with pytest.raises(KeyExistsError):
                await connector.put([b"another"], key=key)
            assert body == await connector.get(key)
            assert [True, False] == await connector.evict_batch([key, f"{{tag}}{who} absent"])
            assert not await connector.exists(key)
            done["write"] += 1

    async def move():
        at = cluster.place(connector._name("{tag}"))
        for to in [(at + step) % 3 for step in (1, 2, 3, 4)]:
            await asyncio.to_thread(cluster.begin_move, slot, at, to)
            while await asyncio.to_thread(cluster.move_keys, slot, at, to, count=2):
                so_far = dict(done)
                # Something of each kind is done between two steps.
                await until(lambda so_far=so_far: all(done[k] > so_far[k] for k in done))
            await asyncio.to_thread(cluster.end_move, slot, at, to)
            at = to
        over.set()

    async with asyncio.TaskGroup() as group:
        for work in (read(), read(), read_batches(), write(1), write(2), move()):
            group.create_task(work)
    assert [*fixed.values()] == await connector.get_batch([*fixed])
    assert [True] * 24 == await connector.evict_batch([*fixed])


@pytest.mark.parametrize("whole", [MB, 1], ids=["whole", "in parts"])
async def test_a_future_whose_slot_moves(cluster, connector, monkeypatch, whole):
    """It is set when its slot has arrived, and whoever waits for it is woken."""
    monkeypatch.setattr(parts, "WHOLE", whole)
    for moved_first in (False, True):
        key = await connector.new_key()
        name = connector._name(key)
        slot, source = key_slot(name), cluster.place(name)
        target = (source + 1) % 3
        early = asyncio.create_task(connector.wait(key, LONG))
        await asleep(connector, 1)
        await asyncio.to_thread(cluster.begin_move, slot, source, target)
        if moved_first:
            assert 1 == await asyncio.to_thread(cluster.move_keys, slot, source, target)
        late = asyncio.create_task(RedisConnector(cluster.url, namespace="n").wait(key, LONG))
        assert None is await connector.get(key)
        impatient = RedisConnector(cluster.url, namespace="n", timeout=0.2)
        with pytest.raises(ConnectorUnavailableError, match="TryAgain|Ask"):
            await impatient.set(key, [b"x"])
        await impatient.aclose()
        setting = asyncio.create_task(connector.set(key, [b"object"]))
        await asyncio.sleep(0.05)
        assert not (setting.done() or early.done() or late.done())
        while await asyncio.to_thread(cluster.move_keys, slot, source, target):
            pass
        await asyncio.to_thread(cluster.end_move, slot, source, target)
        await asyncio.gather(setting, early, late)
        assert b"object" == await connector.get(key)
        with pytest.raises(KeyExistsError):
            await connector.set(key, [b"again"])


async def test_a_future_evicted_while_its_slot_moves(cluster, connector, monkeypatch):
    """Whoever waits for it is told, also when the registration was at the new node by then."""
    monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 3600.0)
    for moved_first in (False, True):
        key = await connector.new_key()
        name = connector._name(key)
        slot, source = key_slot(name), cluster.place(name)
        target = (source + 1) % 3
        task = asyncio.create_task(connector.wait(key, LONG))
        await asleep(connector, 1)
        await asyncio.to_thread(cluster.begin_move, slot, source, target)
        if moved_first:
            assert 1 == await asyncio.to_thread(cluster.move_keys, slot, source, target)
        assert not await connector.evict(key)
        with pytest.raises(ObjectLostError):
            await task
        await asyncio.to_thread(cluster.end_move, slot, source, target)
