"""The media on which one can wait, each with its own way to look behind the connector's back.

And `looks_often`, for those who wait for what never comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os

import pytest

from proxyplane.connectors import _sweeping
from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file import leases as file_leases
from proxyplane.connectors.file import watch as file_watch
from proxyplane.connectors.file.directory import PENDING
from proxyplane.connectors.local import LocalConnector
from proxyplane.connectors.redis import RedisConnector
from proxyplane.connectors.redis import waiting as redis_waiting
from proxyplane.connectors.redis.client import Client
from proxyplane.connectors.redis.cluster import ClusterClient
from support.servers import admin, connections
from support.waiting import (
    drop_watches,
    inotify_watches,
    looking_every,
    nobody_waits,
    settled,
    until,
)

NEVER = 3600.0


class Medium:
    """What the tests of waiting need to know of a medium.

    Attributes:
        name: What it is called.
        crosses: Whether it reaches other processes.
    """

    name: str
    crosses = True

    def connector(self):
        """A new connector on it."""
        raise NotImplementedError

    def waiting_for(self, connector, key: str) -> int:
        """How many wait for a key, those of one connector on one loop as one."""
        raise NotImplementedError

    def waiters(self, connector) -> int:
        """How many keys are waited for in this process through `connector`, or ones like it."""
        raise NotImplementedError

    def blind(self, monkeypatch, connector) -> None:
        """Switches off the defence: whoever begins to wait does not look whether it is there."""
        raise NotImplementedError

    async def settled(self) -> None:
        """Returns when whoever is to be told of what was done has been told."""

    async def warm(self, connector) -> None:
        """Lets a connector make what it keeps."""

    async def rest(self) -> None:
        """Returns when nothing is kept for those who may wait again."""

    def held(self) -> dict[str, int]:
        """What this process holds that could leak."""
        gc.collect()  # what other tests left
        return {"descriptors": len(os.listdir("/proc/self/fd"))}

    def holds_no_more(self, before: dict[str, int]) -> bool:
        """Whether this process holds no more than it did; what other tests left may go any time."""
        now = self.held()
        return all(now[name] <= before[name] for name in before)

    async def waiting(self, connector, key: str, count: int = 1) -> None:
        """Returns when so many wait for a key, and sleep."""
        await until(lambda: self.waiting_for(connector, key) >= count)


class LocalMedium(Medium):
    name = "local"
    crosses = False

    def __init__(self) -> None:
        self.first = LocalConnector()

    def connector(self):
        return LocalConnector.from_url(self.first.url)

    def waiting_for(self, connector, key):
        return _count(self.first._medium.waiters, key)

    def waiters(self, connector):
        return len(self.first._medium.waiters.names())

    def blind(self, monkeypatch, connector):
        monkeypatch.setattr(connector, "_is_set", _blind_for(1, connector._is_set))


class FileMedium(Medium):
    name = "file"

    def __init__(self, path) -> None:
        self.path = path

    def connector(self):
        made = FileConnector(self.path)
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(self.path, PENDING), 0o700)
        return made

    def waiting_for(self, connector, key):
        place = file_watch._places.get(connector.directory)
        if place is None or not (place.watched or place.polled):
            return 0
        return _count(place.waiters, key)

    async def waiting(self, connector, key, count=1):
        await super().waiting(connector, key, count)
        await settled()

    async def settled(self):
        for _ in range(3):
            await settled()

    def waiters(self, connector):
        place = file_watch._places.get(connector.directory)
        return 0 if place is None else len(place.waiters.names())

    def blind(self, monkeypatch, connector):
        # The looks before it joins the waiters, and after.
        waiting = connector._waiting
        monkeypatch.setattr(waiting, "_look_sync", _blind_for(2, waiting._look_sync))

    async def rest(self):
        await asyncio.to_thread(drop_watches)

    def held(self):
        return {**super().held(), "watches": len(inotify_watches())}


class RedisMedium(Medium):
    name = "redis"

    def __init__(self, url, client) -> None:
        self.url = url
        self.client = client

    def connector(self):
        return RedisConnector(self.url)

    def waiting_for(self, connector, key):
        return self.client.pubsub_numsub(connector._name(key))[0][1]

    def waiters(self, connector):
        entries = list(connector._clients._entries.values())
        return sum(len(client.waiters._waiting) for client, _ in entries)

    def blind(self, monkeypatch, connector):
        async def look_up(client, names):
            return [(False, True)] * len(names)

        monkeypatch.setattr(Client, "look_up", look_up)

    async def rest(self):
        await until(lambda: not self.client.client_list(_type="pubsub"))

    def held(self):
        return {**super().held(), "connections": connections(self.client)}


class ClusterMedium(RedisMedium):
    name = "cluster"

    def __init__(self, url, cluster) -> None:
        self.url = url
        self.clients = cluster.clients

    def waiting_for(self, connector, key):
        # The subscription is at any node.
        name = connector._name(key)
        return sum(client.pubsub_numsub(name)[0][1] for client in self.clients)

    def blind(self, monkeypatch, connector):
        async def look_up(client, names):
            return [(False, True)] * len(names)

        monkeypatch.setattr(ClusterClient, "look_up", look_up)

    async def warm(self, connector):
        # To each node, where these keys are by thirds: all of its kinds of connections.
        keys = [await connector.new_key() for _ in range(60)]
        assert await connector.evict_batch(keys) == [False] * len(keys)

    async def rest(self):
        for client in self.clients:
            await until(lambda client=client: not client.client_list(_type="pubsub"))

    def held(self):
        held = sum(connections(client) for client in self.clients)
        return {**Medium.held(self), "connections": held}


def _count(waiters, key) -> int:
    return sum(
        len({waiter.owner for waiter in list(table.get(key, ()))})
        for table in waiters._tables.copy().values()
    )


def _blind_for(looks, real):
    left = [None] * looks

    def look(key):
        if left:
            left.pop()
            return False
        return real(key)

    return look


@contextlib.contextmanager
def _medium(request):
    """The medium that a fixture is asked for. What wakes is events alone."""
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if request.param == "local":
            yield LocalMedium()
        elif request.param == "file":
            stack.enter_context(looking_every(1000))
            yield FileMedium(request.getfixturevalue("tmp_path") / "objects")
            assert all(nobody_waits(place.waiters) for place in file_watch._places.values())
        else:
            patch.setattr(redis_waiting, "BACKSTOP_SECONDS", NEVER)
            patch.setattr(redis_waiting, "IDLE_SECONDS", 0.01)
            if request.param == "cluster":
                cluster = request.getfixturevalue("redis_cluster")
                yield ClusterMedium(request.getfixturevalue("cluster_url"), cluster)
            else:
                client = stack.enter_context(admin(request.getfixturevalue("redis_server")))
                yield RedisMedium(request.getfixturevalue("redis_url"), client)


@pytest.fixture(params=["local", "file", "redis", "cluster"])
def medium(request):
    """Each medium on which one can wait."""
    with _medium(request) as medium:
        yield medium


@pytest.fixture(params=["file", "redis", "cluster"])
def crossing(request):
    """Each of those that reach other processes."""
    with _medium(request) as medium:
        yield medium


@pytest.fixture(scope="module")
def swept_often():
    """What leases left is swept soon. For the whole module: a sweeper that sleeps sleeps on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sweeping, "INTERVAL_SECONDS", 0.2)
        yield


@pytest.fixture
def looks_often(swept_often, monkeypatch):
    """Who waits for what its lease has ended for learns that soon, and not after seconds.

    Only for tests of that: where something does come, nobody may owe it to a look.
    """
    monkeypatch.setattr(redis_waiting, "BACKSTOP_SECONDS", 0.2)
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(file_leases, "_BUCKET_SECONDS", 1)


@pytest.fixture
def soon_in_vain(swept_often, request):
    """The same, for that test of the public suite that needs it."""
    if request.node.originalname == "test_a_registration_ends_with_its_lease":
        request.getfixturevalue("looks_often")
