"""The endpoint connector passes the public suite, over the endpoint of this machine."""

from __future__ import annotations

import json

import pytest

from proxyplane.connectors.endpoint import EndpointConnector
from proxyplane.testing import ConnectorTests
from support.endpoints import path_of


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
