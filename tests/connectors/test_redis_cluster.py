"""The Redis connector with a cluster: three real servers, each with a third of the keys."""

from __future__ import annotations

import asyncio
import pickle
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import proxyplane as pp
from proxyplane import RedisConnector, Store, sync
from proxyplane.connectors.redis import parts, transfer, waiting
from proxyplane.connectors.redis.resp import command
from proxyplane.exceptions import (
    ConnectorClosedError,
    ConnectorUnavailableError,
    KeyExistsError,
    ObjectTooLargeError,
)
from proxyplane.testing import cancelled_at
from support.cluster import free_port
from support.servers import admin, connections
from support.waiting import until

MB = 1 << 20
LONG = 40.0


@pytest.fixture
async def connector(cluster_url):
    made = RedisConnector(cluster_url)
    yield made
    await made.aclose(clear=True)


def places(cluster, connector, keys):
    """At which nodes keys are."""
    return {cluster.place(connector._name(key)) for key in keys}


# Objects


async def test_objects_are_at_all_nodes(connector, redis_cluster):
    """Keys are spread over the cluster, each object whole at the node that serves its key."""
    bodies = {await connector.put([b"%d" % i]): b"%d" % i for i in range(60)}
    assert {0, 1, 2} == places(redis_cluster, connector, bodies)
    for key, body in bodies.items():
        name = connector._name(key)
        assert body == redis_cluster.at(name).get(name)
        assert body == await connector.get(key)


async def test_batches_across_slots(connector, redis_cluster):
    """A batch of small and large objects goes to all nodes, and comes back in its order."""
    sizes = [1 + i * i % 40_000 for i in range(300)] + [2 * MB, 5, 5 * MB, 70_000]
    bodies = [bytes([i % 251]) * size for i, size in enumerate(sizes)]
    keys = await connector.put_batch([[body[:3], body[3:]] for body in bodies])
    assert {0, 1, 2} == places(redis_cluster, connector, keys)
    for hints in (None, sizes, sizes[::-1], [None, *sizes[1:]]):
        assert bodies == await connector.get_batch(keys, sizes=hints)
    asked = [keys[5], "absent", keys[5], keys[301]]
    assert [bodies[5], None, bodies[5], bodies[301]] == await connector.get_batch(asked)
    there = await connector.evict_batch([*keys[::2], "absent", keys[0]])
    assert [True] * len(keys[::2]) + [False] * 2 == there
    assert [None, bodies[1]] == await connector.get_batch(keys[:2])
    assert [True] * len(keys[1::2]) == await connector.evict_batch(keys[1::2])


async def test_a_batch_is_pipelined(connector, redis_cluster):
    """A batch costs a few requests to each node, not one for each object."""
    keys = await connector.put_batch([[b"x"]] * 900)

    def reads():
        infos = [client.info("stats") for client in redis_cluster.clients]
        return sum(info["total_reads_processed"] for info in infos)

    before = await asyncio.to_thread(reads)
    assert [b"x"] * 900 == await connector.get_batch(keys)
    assert await asyncio.to_thread(reads) - before < 300


async def test_a_refused_batch_stores_nothing(cluster_url, redis_cluster, monkeypatch):
    """If a node has no room for its part of a batch, nothing of it is left at any."""
    connector = RedisConnector(cluster_url)
    node = (await connector._client()).topology

    def count():
        name = connector._name("*")
        return sum(len(client.keys(name)) for client in redis_cluster.clients)

    await connector.put_batch([[b"x"]] * 30)
    for client in node.clients.values():
        client._limit = 2 * MB  # as if read from the server
    before = count()
    with pytest.raises(ObjectTooLargeError, match="127.0.0.1"):
        await connector.put_batch([*[[b"x"]] * 30, [bytes(3 * MB)], *[[b"y"]] * 30])
    assert count() <= before
    await connector.aclose(clear=True)
    assert 0 == count()


async def test_large_objects_come_in_windows(connector):
    """Large objects go as they do with one server: whole, in windows, with any hint."""
    body = np.random.default_rng(3).bytes(2 * transfer.WINDOW + transfer.FIRST + 7)
    key = await connector.put([body])
    for hint in (None, len(body), 1, 2 * len(body)):
        assert body == await connector.get(key, size=hint)


@pytest.mark.parametrize("whole", [MB, 1], ids=["whole", "in parts"])
@pytest.mark.parametrize("key", ["{a}b", "a{b", "}{", "{}", "{}a}", "{", "a}b{c}", "}", "{later}"])
async def test_braces_in_keys(connector, monkeypatch, key, whole):
    """Braces, which choose the slot, are characters of a key like any other."""
    monkeypatch.setattr(parts, "WHOLE", whole)
    assert key == await connector.put([b"object"], key=key)
    with pytest.raises(KeyExistsError):
        await connector.put([b"another"], key=key)
    assert b"object" == await connector.get(key)
    assert [b"object", None] == await connector.get_batch([key, key + "?"])
    assert await connector.evict(key)


async def test_clear_is_for_all_nodes(cluster_url, redis_cluster):
    """`aclose(clear=True)` finds what was put at every node, and leaves what others put."""
    one, other = RedisConnector(cluster_url), RedisConnector(cluster_url)
    theirs = await other.put_batch([[b"x"]] * 30)
    await one.put_batch([[b"x"]] * 1500)
    [await one.new_key() for _ in range(30)]
    await one.put([b"x"], key="mine")
    await one.aclose(clear=True)
    assert [b"x"] * 30 == await other.get_batch(theirs)
    counts = [len(client.keys(one._name("*"))) for client in redis_cluster.clients]
    assert 30 == sum(counts)
    await other.aclose(clear=True)


# Waiting


async def test_two_hundred_waiters(connector, cluster_url, redis_cluster, monkeypatch):
    """All are woken by messages, wherever their objects are, over one connection."""
    monkeypatch.setattr(waiting, "BACKSTOP_SECONDS", 3600.0)
    other = RedisConnector(cluster_url)
    keys = await asyncio.gather(*(connector.new_key() for _ in range(200)))
    assert {0, 1, 2} == places(redis_cluster, connector, keys)
    tasks = [asyncio.create_task(connector.wait(key, LONG)) for key in keys]
    waiters = (await connector._client()).waiters
    await until(lambda: len(waiters._waiting) == 200)
    await until(lambda: all(one.asleep for one in waiters._waiting.values()))
    names = [connector._name(key) for key in keys]
    subscribed = [
        sum(count for _, count in client.pubsub_numsub(*names)) for client in redis_cluster.clients
    ]
    assert [0, 0, 200] == sorted(subscribed)
    await asyncio.gather(*(other.set(key, [b"object"]) for key in keys))
    assert [None] * 200 == await asyncio.gather(*tasks)
    assert [b"object"] * 200 == await connector.get_batch(keys)
    await other.aclose()


# Loops, threads, processes


def test_two_loops(cluster_url, redis_cluster):
    """One connector works in two loops at the same time, and what each opened ends with it."""
    connector = RedisConnector(cluster_url)

    def count():
        return sum(connections(client) for client in redis_cluster.clients)

    async def work():
        keys = await connector.put_batch([[b"%d" % i] for i in range(60)])
        assert [b"%d" % i for i in range(60)] == await connector.get_batch(keys)
        return keys

    before = count()
    found = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(work()))) for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count() <= before
    assert [b"0"] * 2 == asyncio.run(connector.get_batch([keys[0] for keys in found]))
    asyncio.run(connector.aclose(clear=True))


def test_blocking_facade(cluster_url):
    """The blocking store works with it, futures included."""
    with sync.Store("cluster of a script", cluster_url) as store:
        keys = store.put_batch([np.arange(n) for n in range(30)])
        assert list(range(30)) == [len(found) for found in store.get_batch(keys)]
        future = store.future()
        timer = threading.Timer(0.05, lambda: future.set_result("later"))
        timer.start()
        assert "later" == future.result(timeout=LONG)
        timer.join()
        assert [True] * 30 == store.evict_batch(keys)


SCRIPT = """
import pickle, sys
proxies, future = pickle.load(sys.stdin.buffer)
total = sum(int(proxy.sum()) for proxy in proxies)
future.set_result(total)
"""


async def test_proxies_in_another_process(cluster_url):
    """A process that gets proxies of all nodes reads them, and its result comes back."""
    async with Store("travelling in a cluster", cluster_url) as store:
        arrays = [np.arange(n * 1000) for n in range(1, 31)]
        proxies = await store.proxy_batch(arrays)
        future = await store.future()
        pickled = pickle.dumps((proxies, future))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SCRIPT, stdin=subprocess.PIPE
        )
        await process.communicate(pickled)
        assert 0 == process.returncode
        assert sum(int(array.sum()) for array in arrays) == await future
        await store.aclose(clear=True)


def test_an_array_comes_whole(cluster_url):
    """An array of many windows comes through a proxy as it was, into memory of its own."""
    with sync.Store("arrays of a cluster", cluster_url, cache_size=0) as store:
        array = np.random.default_rng(5).normal(size=2_000_000)
        proxy = pickle.loads(pickle.dumps(store.proxy(array)))
        assert np.array_equal(array, pp.extract(proxy))
        assert pp.extract(proxy).flags.writeable


# Secrets


async def test_secrets(own_redis_cluster, monkeypatch):
    """The password is named: it is in no URL, repr, pickle or message, and taken at each node."""
    cluster = await asyncio.to_thread(own_redis_cluster)
    monkeypatch.setenv("CLUSTER_PASSWORD", "s3kr1t")
    for client in cluster.clients:
        client.config_set("requirepass", "s3kr1t")
    connector = RedisConnector(cluster.url, password_env="CLUSTER_PASSWORD")
    keys = await connector.put_batch([[b"%d" % i] for i in range(60)])
    assert b"59" == await connector.get(keys[-1])
    await connector.aclose()
    assert "s3kr1t" not in repr(connector) + connector.url
    assert b"s3kr1t" not in pickle.dumps(connector)
    for wrong in (None, "another s3kr1t"):
        if wrong:
            monkeypatch.setenv("CLUSTER_PASSWORD", wrong)
        refused = RedisConnector(cluster.url, password_env=wrong and "CLUSTER_PASSWORD")
        for call in (refused.get(keys[0]), refused.wait(keys[0], LONG)):
            with pytest.raises(ConnectorUnavailableError, match="127.0.0.1") as caught:
                await call
            assert "s3kr1t" not in str(caught.value)
        await refused.aclose()


# Mistakes


async def test_a_typo_in_the_host():
    """An unknown host is named, with its port."""
    connector = RedisConnector("redis+cluster://no-such-host.invalid:7123")
    with pytest.raises(ConnectorUnavailableError, match=r"no-such-host\.invalid:7123.*unknown"):
        await connector.get("key")


async def test_every_node_that_fails_is_named():
    """If no node answers, the message says for each why not."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # a port on which nobody listens
        port = sock.getsockname()[1]
        url = f"redis+cluster://127.0.0.1:{port},no-such-host.invalid:7"
        connector = RedisConnector(url)
        for call in (
            connector.get("key"),
            connector.put_batch([[b"x"], [b"y"]]),
            connector.evict_batch(["key", "another"]),
            connector.new_key(),
        ):
            with pytest.raises(ConnectorUnavailableError) as caught:
                await call
            assert f"127.0.0.1:{port}: connection refused" in str(caught.value)
            assert "no-such-host.invalid:7: the host name is unknown" in str(caught.value)


async def test_one_node_that_answers_is_enough(redis_cluster):
    """The other nodes of the URL may be down, or wrong."""
    port = redis_cluster.nodes[1].port
    connector = RedisConnector(f"redis+cluster://no-such-host.invalid:7,127.0.0.1:{port}")
    keys = await connector.put_batch([[b"x"]] * 30)
    assert [b"x"] * 30 == await connector.get_batch(keys)
    await connector.aclose(clear=True)


async def test_a_server_that_is_no_cluster(redis_server):
    """Pointed at a single server, it says so, and how to write the URL."""
    where = f"127.0.0.1:{redis_server.port}"
    connector = RedisConnector(f"redis+cluster://{where}")
    for call in (connector.get("key"), connector.wait("key", LONG), connector.put([b"x"])):
        with pytest.raises(ConnectorUnavailableError, match="not in cluster mode") as caught:
            await call
        assert f"redis://{where}" in str(caught.value)
    await connector.aclose()


async def test_a_cluster_taken_for_one_server(redis_cluster):
    """A connector of one server says that it is a node of a cluster, and how to write the URL."""
    node = redis_cluster.nodes[0]
    connector = RedisConnector(node.url, namespace="taken")
    keys = (f"key {i}" for i in range(1000))
    key = next(key for key in keys if redis_cluster.place(connector._name(key)) != 0)
    for call in (
        connector.get(key),
        connector.put([b"x"], key=key),
        connector.exists(key),
        connector.evict(key),
        connector.get_batch([key, key]),
        connector.wait(key, LONG),
    ):
        with pytest.raises(ConnectorUnavailableError, match="node of a cluster") as caught:
            await call
        assert f"redis+cluster://127.0.0.1:{node.port}" in str(caught.value)
    await connector.aclose()


async def test_a_cluster_that_was_not_made(own_redis_server):
    """A server in cluster mode that serves no slots says what is to be done."""
    args = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    server = await asyncio.to_thread(own_redis_server, args=args)
    connector = RedisConnector(f"redis+cluster://127.0.0.1:{server.port}")
    with pytest.raises(ConnectorUnavailableError, match="serves anything.*\n.*create"):
        await connector.get("key")
    await connector.aclose()


# Cancellation


OPERATIONS = {
    "put": lambda c: c.put([b"a", b"b"]),
    "get": lambda c: c.get("large"),
    "exists": lambda c: c.exists("large"),
    "evict": lambda c: c.evict("missing"),
    "put_batch": lambda c: c.put_batch([[b"x"]] * 20),
    "get_batch": lambda c: c.get_batch([*map(str, range(20)), "large"]),
    "evict_batch": lambda c: c.evict_batch([*map(str, range(20))]),
    "new_key": lambda c: c.new_key(),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_cancelled_while_the_nodes_are_learnt(cluster_url, redis_cluster, name):
    """Wherever the first call is cancelled, the next one works, and no connection is left."""
    setup = RedisConnector(cluster_url)
    large = bytes(range(256)) * (3 * MB // 256)
    await setup.put([large], key="large")
    before = sum(connections(client) for client in redis_cluster.clients)
    nth, reached = 1, True
    while reached:
        connector = RedisConnector(cluster_url, max_connections=1)
        reached = await cancelled_at(OPERATIONS[name](connector), nth)
        assert large == await connector.get("large")
        assert [None, large] == await connector.get_batch(["missing", "large"])
        await connector.aclose(clear=True)
        nth += 1 + nth // 8
    await until(
        lambda: before >= sum(connections(client) for client in redis_cluster.clients),
    )
    await setup.aclose(clear=True)
    with pytest.raises(ConnectorClosedError):
        await setup.get("large")


async def test_a_closed_client_makes_no_more_connections(connector, redis_cluster):
    """Nor to a node that was not used before, for a caller who was on the way to it."""
    client = await connector._client()
    used = connector._name("used")
    await client.exists(used)
    used_at = redis_cluster.place(used)
    names = (connector._name(f"unused {i}") for i in range(1000))
    unused = next(name for name in names if redis_cluster.place(name) != used_at)
    owner = await client.topology.owner(unused)
    asked = client.topology.clients.pop(owner, None)  # it may have been asked for the nodes
    if asked is not None:
        await asked.aclose()
    await client.aclose()
    with pytest.raises(ConnectorClosedError):
        await client.exists(unused)
    assert owner not in client.topology.clients


async def test_a_node_that_leaves_while_it_is_connected_to(connector, own_redis_server):
    """The connection is closed with the connector, though the node serves nothing any more."""
    client = await connector._client()
    await client.topology.owners()
    gone = await asyncio.to_thread(own_redis_server)
    with admin(gone) as watching:
        await asyncio.to_thread(gone.pause)
        node = client.topology.client(("127.0.0.1", gone.port))
        asked = asyncio.create_task(node.pool.request(command("PING")))
        await asyncio.sleep(0)
        await client.topology.learn()
        await asyncio.to_thread(gone.resume)
        assert await asked == b"PONG"
        assert connections(watching) == 1
        await connector.aclose()
        await until(lambda: connections(watching) == 0)
