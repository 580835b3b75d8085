"""A multi-connector passes the public suite, whatever stands behind it."""

from __future__ import annotations

import itertools
import os
import shutil

import pytest
from redis import Redis

from proxyplane.connectors._multi_keys import HERE, read_record, split
from proxyplane.connectors.endpoint import EndpointConnector
from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file.publish import file_name
from proxyplane.connectors.local import LocalConnector
from proxyplane.connectors.local.medium import Entry
from proxyplane.connectors.multi import MultiConnector, Policy
from proxyplane.connectors.redis import RedisConnector
from proxyplane.testing import ConnectorTests
from proxyplane.testing._cancelling import CancellationTests
from proxyplane.testing._deferring import DeferrableTests
from proxyplane.testing._leases import LeaseTests
from proxyplane.testing._naming import NamesTests
from proxyplane.testing._objects import BatchTests, ObjectTests
from support.endpoints import path_of

pytestmark = pytest.mark.usefixtures("soon_in_vain")

SMALL = 1000
_numbers = itertools.count()


class Reaching:
    """Reaches the media: `small_` and `large_` are those of the two connectors.

    Subclasses say how to `get`, `write`, `delete` and `count` in each, by inner key.
    """

    home: str
    """The one that has the chosen keys."""

    def read_raw(self, key):
        found = split(key)
        if found is None:
            data = getattr(self, f"{self.home}_get")(key)
            record = None if data is None else read_record(data)
            if record is None or record.body is not None:
                return None if record is None else bytes(record.body)
            found = split(record.key)
        name = next(one for one in ("small", "large") if self.marks[one] == found[0])
        return getattr(self, f"{name}_get")(found[1])

    def write_raw(self, key, data):
        getattr(self, f"{self.home}_write")(key, data + HERE)

    def delete_raw(self, key):
        mark, inner = split(key)
        name = next(one for one in ("small", "large") if self.marks[one] == mark)
        getattr(self, f"{name}_delete")(inner)

    def count_raw(self):
        return self.small_count() + self.large_count()

    def make(self, small, large):
        made = MultiConnector({"small": (small, Policy(max_bytes=SMALL)), "large": large})
        self.marks = {part.name: part.mark for part in made._parts._ranked}
        return made


class Multi(Reaching, ConnectorTests):
    """Passes all of the suite."""


class _Files:
    """The large ones are files."""

    def open_files(self, tmp_path):
        self.directory = tmp_path / "objects"
        return FileConnector(self.directory)

    def large_get(self, key):
        try:
            return (self.directory / file_name(key)).read_bytes()
        except FileNotFoundError:
            return None

    def large_write(self, key, data):
        (self.directory / file_name(key)).write_bytes(data)

    def large_delete(self, key):
        (self.directory / file_name(key)).unlink()

    def large_count(self):
        return len([name for name in os.listdir(self.directory) if name[0] != "."])

    def spoil_files(self):
        shutil.rmtree(self.directory)
        self.directory.write_bytes(b"not a directory any more")


class TestLocalAndFile(_Files, Multi):
    process_local = True
    home = "large"

    @pytest.fixture
    def connector(self, tmp_path):
        made = LocalConnector()
        self.entries = made._medium.entries
        return self.make(made, self.open_files(tmp_path))

    def small_get(self, key):
        entry = self.entries.get(key)
        return None if entry is None else bytes(entry.body)

    def small_write(self, key, data):
        self.entries[key] = Entry(object(), memoryview(data))

    def small_delete(self, key):
        del self.entries[key]

    def small_count(self):
        return len(self.entries)


class TestRedisAndFile(_Files, Multi):
    home = "small"

    @pytest.fixture
    def connector(self, request, redis_server, tmp_path):
        if request.node.name == "test_a_broken_medium_is_a_connector_error":
            redis_server = request.getfixturevalue("own_redis_server")()
        self.server = redis_server
        self.namespace = f"multi-{next(_numbers)}"
        with Redis(unix_socket_path=redis_server.socket_path) as self.client:
            small = RedisConnector(redis_server.url, namespace=self.namespace)
            yield self.make(small, self.open_files(tmp_path))

    def name(self, key):
        return f"{self.namespace}:{key}".encode()

    def small_get(self, key):
        return self.client.get(self.name(key))

    def small_write(self, key, data):
        self.client.set(self.name(key), data)

    def small_delete(self, key):
        self.client.delete(self.name(key))

    def small_count(self):
        return len(self.client.keys(self.name("*")))

    def break_medium(self):
        self.server.kill()
        self.spoil_files()


class TestDormant(TestRedisAndFile):
    """As another process has it: no connector was made yet."""

    @pytest.fixture
    def connector(self, request, redis_server, tmp_path):
        if request.node.name == "test_a_broken_medium_is_a_connector_error":
            redis_server = request.getfixturevalue("own_redis_server")()
        self.server = redis_server
        self.namespace = f"multi-{next(_numbers)}"
        with Redis(unix_socket_path=redis_server.socket_path) as self.client:
            files = self.open_files(tmp_path)
            small = RedisConnector(redis_server.url, namespace=self.namespace)
            yield MultiConnector.from_url(self.make(small, files).url)


class TestEndpoints(
    Reaching, LeaseTests, NamesTests, DeferrableTests, CancellationTests, BatchTests, ObjectTests
):
    """Small ones at a peer, large ones at the endpoint of this machine."""

    home = "small"

    @pytest.fixture
    def connector(self, sites):
        self.near, self.far = sites
        return self.make(EndpointConnector(self.far.id), EndpointConnector(self.near.id))

    def small_get(self, key):
        return self.get(self.far, key)

    def large_get(self, key):
        return self.get(self.near, key)

    def get(self, site, key):
        status, body = site.ask("GET", path_of(key))
        return body if status == 200 else None

    def small_write(self, key, data):
        assert self.far.ask("PUT", path_of(key), data)[0] == 201

    def small_delete(self, key):
        assert self.far.ask("DELETE", path_of(key))[0] == 200

    def large_delete(self, key):
        assert self.near.ask("DELETE", path_of(key))[0] == 200

    def small_count(self):
        return self.far.status()["objects"]

    def large_count(self):
        return self.near.status()["objects"]
