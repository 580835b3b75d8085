"""The endpoint connector passes the public suite, over its own endpoint and over a peer."""

from __future__ import annotations

import json

import pytest

from plugins.endpoints import here
from proxyplane.connectors.endpoint import EndpointConnector
from proxyplane.testing import ConnectorTests
from support.endpoints import free_port, introduce, path_of


class Endpoint(ConnectorTests):
    """Reaches the medium over the socket of the endpoint, `self.site`, that has the objects."""

    def read_raw(self, key):
        status, body = self.site.ask("GET", path_of(key))
        return body if status == 200 else None

    def write_raw(self, key, data):
        assert self.site.ask("PUT", path_of(key), data)[0] == 201

    def delete_raw(self, key):
        assert self.site.ask("DELETE", path_of(key))[0] == 200

    def count_raw(self):
        return json.loads(self.site.ask("GET", "/v1/status")[1])["objects"]

    def break_medium(self):
        self.site.end(9)


class TestEndpoint(Endpoint):
    @pytest.fixture
    def connector(self, request, monkeypatch):
        if request.node.name == "test_a_broken_medium_is_a_connector_error":
            self.site = request.getfixturevalue("make_site")("broken")
            monkeypatch.setenv("PROXYPLANE_ENDPOINTS", str(self.site.directory))
            monkeypatch.setenv("PROXYPLANE_ENDPOINT", self.site.name)
            self.site.start()
        else:
            self.site = request.getfixturevalue("site")
        return EndpointConnector()


class TestPeer(Endpoint):
    """All objects are at a peer of the endpoint that this process talks to."""

    @pytest.fixture
    def connector(self, request, monkeypatch):
        if request.node.name == "test_a_broken_medium_is_a_connector_error":
            make = request.getfixturevalue("make_site")
            pair = [make(name, listen=f"127.0.0.1:{free_port()}") for name in ("here", "there")]
            introduce(*pair)
            for one in pair:
                one.start()
            here(monkeypatch, pair[0])
            self.site = pair[1]
        else:
            _, self.site = request.getfixturevalue("sites")
        return EndpointConnector(f"endpoint://{self.site.id}")
