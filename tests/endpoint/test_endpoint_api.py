"""The API of an endpoint, as any HTTP client sees it."""

from __future__ import annotations

import http.client
import json
import os
import re
import stat

import pytest

from proxyplane.connectors.endpoint import EndpointConnector
from proxyplane.exceptions import ConnectorUnavailableError
from support.endpoints import free_port, path_of


def test_the_socket_is_its_owners(site):
    """Nobody but its owner can open the socket, the settings, the key and the token."""
    base = site.directory / site.name
    for name in ("api.sock", "settings.toml", "identity.pem", "token", "lock"):
        assert stat.S_IMODE(os.stat(base / name).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(base).st_mode) == 0o700


@pytest.mark.parametrize(
    ("wanted", "status", "body"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=4-", 206, b"456789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=8-100", 206, b"89"),
        ("bytes=10-", 416, b""),
        ("bytes=5-2", 416, b""),
        ("bytes=-", 416, b""),
        ("bytes=a-b", 416, b""),
        ("lines=1-2", 416, b""),
        (f"bytes={'9' * 5000}-", 416, b""),
    ],
)
def test_ranges(site, wanted, status, body):
    """A part of an object can be read."""
    site.ask("PUT", path_of("digits"), b"0123456789")
    assert (status, body) == site.ask("GET", path_of("digits"), Range=wanted)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", b"", 404),
        ("GET", "/v1/nothing", b"", 404),
        ("GET", "/v3/objects/eA", b"", 404),
        ("PATCH", "/v1/objects/eA", b"", 404),
        ("GET", "/v1/objects/!!", b"", 400),
        ("GET", "/v1/objects/../../etc/passwd", b"", 400),
        ("PUT", "/v1/objects/eA", b"", 400),
        ("POST", "/v1/evict", b"[]", 400),
        ("POST", "/v1/evict", b'{"keys": 7}', 400),
        ("POST", "/v1/evict", b"nonsense", 400),
        ("POST", "/v1/evict", b"[" * 100_000, 400),
        ("POST", "/v1/clear", b"{}", 400),
        ("POST", "/v1/read", b"{}", 400),
        ("POST", "/v1/write", b"x", 400),
        ("POST", "/v1/write", b"\0\0\0\2{}", 400),
        ("POST", "/v1/write", b"\xff\xff\xff\xff{}", 400),
        ("POST", "/v1/watch/unknown", b'{"add": [], "drop": []}', 404),
        ("POST", "/v1/watch/unknown", b'{"add": [1]}', 400),
    ],
)
def test_nonsense_is_refused(site, method, path, body, status):
    """What makes no sense gets an answer that says so, and harms nothing."""
    told, text = site.ask(method, path, body)
    assert status == told
    assert json.loads(text)["message"]
    assert site.ask("GET", "/healthz")[0] == 200


def test_another_endpoint(site):
    """A request for an endpoint that this one does not know is refused, not served."""
    site.ask("PUT", path_of("key"), b"object")
    status, text = site.ask("GET", path_of("key"), Endpoint="a" * 52)
    assert status == 421
    assert "does not have it as a peer" in json.loads(text)["message"]


def test_metrics(site):
    """The metrics are in the text format of Prometheus, and count what was done."""
    site.ask("PUT", path_of("one"), b"object")
    site.ask("GET", path_of("one"))
    status, text = site.ask("GET", "/metrics")
    assert status == 200
    lines = text.decode().splitlines()
    sample = re.compile(r'[a-z_]+(\{([a-z]+="[^"\\]*",?)+\})? [0-9.e+-]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)
    assert "proxyplane_endpoint_objects 1" in lines
    assert any('operation="PUT objects",status="201"' in line for line in lines)


def test_health(site):
    """An endpoint that serves says so."""
    assert site.ask("GET", "/healthz") == (200, b"ok\n")


async def test_a_port_needs_the_token(make_site, monkeypatch):
    """On a port of the loopback interface only those who have the token get anything."""
    port = free_port()
    site = make_site("port", "--port", str(port))
    monkeypatch.setenv("PROXYPLANE_ENDPOINTS", str(site.directory))
    monkeypatch.setenv("PROXYPLANE_ENDPOINT", site.name)
    site.start()
    connector = EndpointConnector()
    key = await connector.put([b"object"])
    assert bytes(await connector.get(key)) == b"object"
    await connector.aclose()

    def ask(path, **fields):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path, headers=fields)
        try:
            return connection.getresponse().status
        finally:
            connection.close()

    token = (site.directory / site.name / "token").read_text().strip()
    assert 200 == ask("/healthz")
    assert 401 == ask(path_of(key))
    assert 401 == ask("/metrics", Authorization="Bearer wrong")
    assert 401 == ask("/v1/status", Authorization=token)
    assert 200 == ask("/metrics", Authorization=f"Bearer {token}")
    (site.directory / site.name / "token").write_text("another\n")
    connector = EndpointConnector()
    with pytest.raises(ConnectorUnavailableError, match="token"):
        await connector.get(key)
    await connector.aclose()
    assert token not in site.log
