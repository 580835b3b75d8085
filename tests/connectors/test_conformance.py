"""Every connector of the package passes the public suite, with its shortcut and without."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time

import pytest
from redis import Redis, RedisError

from proxyplane.abc import RECORD_BYTES
from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file.publish import file_name
from proxyplane.connectors.local import LocalConnector
from proxyplane.connectors.local.medium import Entry
from proxyplane.connectors.redis import RedisConnector, parts
from proxyplane.connectors.redis.parts import layout_of
from proxyplane.testing import ConnectorTests, CoroutinesOnly
from support.names import no_exchange
from support.waiting import LONG

pytestmark = pytest.mark.usefixtures("soon_in_vain")

_numbers = itertools.count()


@pytest.fixture(params=["shortcut", "coroutines"])
def dressed(request):
    """Gives a connector as it is, or with its shortcut hidden."""
    return CoroutinesOnly if request.param == "coroutines" else lambda connector: connector


class TestLocal(ConnectorTests):
    process_local = True

    @pytest.fixture
    def connector(self, dressed):
        made = LocalConnector()
        self.entries = made._medium.entries
        return dressed(made)

    def read_raw(self, key):
        entry = self.entries.get(key)
        return None if entry is None else bytes(entry.body)

    def write_raw(self, key, data):
        self.entries[key] = Entry(object(), memoryview(data))

    def delete_raw(self, key):
        del self.entries[key]

    def count_raw(self):
        return len(self.entries)


class TestFile(ConnectorTests):
    @pytest.fixture
    def connector(self, dressed, tmp_path):
        self.directory = tmp_path / "objects"
        return dressed(FileConnector(self.directory))

    def read_raw(self, key):
        try:
            return (self.directory / file_name(key)).read_bytes()
        except FileNotFoundError:
            return None

    def write_raw(self, key, data):
        (self.directory / file_name(key)).write_bytes(data)

    def delete_raw(self, key):
        (self.directory / file_name(key)).unlink()

    def count_raw(self):
        return len([name for name in os.listdir(self.directory) if name[0] != "."])

    def break_medium(self):
        shutil.rmtree(self.directory)
        self.directory.write_bytes(b"not a directory any more")


class TestFileUnderALock(TestFile):
    """Where names cannot be exchanged."""

    @pytest.fixture(autouse=True)
    def _no_exchange(self, monkeypatch):
        no_exchange(monkeypatch)


class TestRedis(ConnectorTests):
    @pytest.fixture
    def connector(self, request, dressed, redis_server):
        if request.node.originalname == "test_a_broken_medium_is_a_connector_error":
            redis_server = request.getfixturevalue("own_redis_server")()
        self.server = redis_server
        self.namespace = f"conformance-{next(_numbers)}"
        with Redis(unix_socket_path=redis_server.socket_path) as self.client:
            yield dressed(RedisConnector(redis_server.url, namespace=self.namespace))

    def name(self, key):
        return f"{self.namespace}:{key}".encode()

    def read_raw(self, key):
        return self.client.get(self.name(key))

    def write_raw(self, key, data):
        self.client.set(self.name(key), data)

    def delete_raw(self, key):
        self.client.delete(self.name(key))

    def count_raw(self):
        return len(self.client.keys(self.name("*")))

    def break_medium(self):
        self.server.kill()


class TestRedisReadByRedisPy(TestRedis):
    """What is told to leave the replies to redis-py does the same."""

    @pytest.fixture
    def dressed(self):
        return lambda connector: RedisConnector(connector.url, wire="redis-py")


class TestRedisCluster(ConnectorTests):
    @pytest.fixture
    def connector(self, request, redis_cluster):
        self.own = None
        if request.node.name == "test_a_broken_medium_is_a_connector_error":
            self.own = redis_cluster = request.getfixturevalue("own_redis_cluster")()
        self.cluster = redis_cluster
        self.namespace = f"conformance-{next(_numbers)}"
        return RedisConnector(redis_cluster.url, namespace=self.namespace)

    def name(self, key):
        return f"{self.namespace}:{key}".encode("utf-8", "surrogatepass")

    def read_raw(self, key):
        return self.cluster.at(self.name(key)).get(self.name(key))

    def write_raw(self, key, data):
        self.cluster.at(self.name(key)).set(self.name(key), data)

    def delete_raw(self, key):
        self.cluster.at(self.name(key)).delete(self.name(key))

    def count_raw(self):
        return sum(len(client.keys(self.name("*"))) for client in self.cluster.clients)

    def break_medium(self):
        for node in self.own.nodes:
            node.kill()


class InParts:
    """Nearly every object is larger than what one string is allowed to be."""

    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch):
        monkeypatch.setattr(parts, "WHOLE", 2)
        monkeypatch.setattr(parts, "PART", (1 << 20) + 1)

    @pytest.fixture
    def naming(self, connector, request):
        size = getattr(request.node, "callspec", None) and request.node.callspec.params.get("size")
        if (size or 0) >= RECORD_BYTES:
            pytest.skip("what goes in parts replaces nothing in one step")
        return connector

    def clients(self):
        return [self.client]

    def parts_left(self):
        """Those that neither belong to an object nor end by themselves."""
        left = set()
        for client in self.clients():
            found = client.keys(f"{{{self.namespace}:*part:*")
            left |= {name for name in found if client.pttl(name) == -1}
        for client in self.clients():
            for name in client.keys(self.name("*")):
                layout = layout_of(client.get(name))
                if layout is not None:
                    left -= {*layout.names(name)}
        return left

    def no_parts_are_left(self):
        give_up = time.monotonic() + LONG
        while (left := self.parts_left()) and time.monotonic() < give_up:
            time.sleep(0.01)
        return not left

    def read_raw(self, key):
        found = super().read_raw(key)
        layout = layout_of(found)
        if layout is None:
            return found
        # In a cluster they are where their record is.
        for client in self.clients():
            bodies = []
            with contextlib.suppress(RedisError):
                bodies = client.mget(layout.names(self.name(key)))
            if bodies and None not in bodies:
                return b"".join(bodies)
        return None

    def delete_raw(self, key):
        layout = layout_of(super().read_raw(key))
        super().delete_raw(key)
        for name in layout.names(self.name(key)) if layout else ():
            for client in self.clients():
                with contextlib.suppress(RedisError):
                    client.delete(name)


class TestRedisInParts(InParts, TestRedis):
    @pytest.fixture(autouse=True)
    def nothing_left(self, connector, request):
        yield
        if request.node.originalname != "test_a_broken_medium_is_a_connector_error":
            with Redis(unix_socket_path=self.server.socket_path) as self.client:
                assert self.no_parts_are_left()


class TestRedisClusterInParts(InParts, TestRedisCluster):
    def clients(self):
        return self.cluster.clients
