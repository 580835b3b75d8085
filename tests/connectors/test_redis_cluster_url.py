"""URLs of Redis clusters: what they say, and what is wrong with those that do not work."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from proxyplane import RedisConnector, Store
from proxyplane.config import connector_class, connector_from_url
from proxyplane.connectors.redis.url import parse_url
from proxyplane.exceptions import ConfigError

URL = "redis+cluster://10.0.0.1:7000,10.0.0.2:7001"


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        (URL, URL),
        (f"{URL}/", URL),
        (f"{URL}/0", URL),
        ("redis+cluster://10.0.0.2:7001,10.0.0.1:7000,10.0.0.2:7001", URL),
        ("redis+cluster://h", "redis+cluster://h:6379"),
        ("rediss+cluster://h,i:1?timeout=5", "rediss+cluster://h:6379,i:1?timeout=5"),
        ("redis+cluster://me@h,[::1]:7", "redis+cluster://me@[::1]:7,h:6379"),
        ("redis+cluster://me@h?password_env=P", "redis+cluster://me@h:6379?password_env=P"),
    ],
)
def test_canonical_url(url, canonical):
    """One spelling for all that mean the same, in whatever order the nodes are named."""
    connector = RedisConnector(url)
    assert canonical == connector.url
    assert canonical == connector_from_url(connector.url).url
    assert canonical == pickle.loads(pickle.dumps(connector)).url
    assert f"RedisConnector({canonical!r})" == repr(connector)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis+cluster://", "names no host"),
        ("redis+cluster://h,,i", "names no host"),
        ("redis+cluster://h:x,i", "the port of"),
        ("redis+cluster://h:70000", "the port of"),
        ("redis+cluster://h,[::1", "cannot be parsed"),
        ("redis+cluster://h,i]:1", "cannot be parsed|names nodes"),
        ("redis+cluster://h/3", "one database"),
        ("redis+cluster://h?db=3", "one database"),
        ("redis+cluster://h?ssl_check_hostname=false", r"write rediss\+cluster://"),
        ("redis://h:1,i:2", r"write redis\+cluster://"),
        ("rediss://h,i", r"write redis\+cluster://"),
    ],
)
def test_a_mistake_is_named(url, words):
    """The message says which part of the URL is wrong."""
    with pytest.raises(ConfigError, match=words):
        RedisConnector(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://me:hunter2@h:1,i:2",
        "redis+cluster://:hunter2@h:1,i:2",
        "redis+cluster://h:1,me:hunter2@i:2",
        "redis+cluster://me:hun/hunter2@h:1,i:2",
        "redis+cluster://h:1?password=hunter2",
    ],
)
def test_a_password_is_refused_and_not_shown(url):
    """A URL travels inside proxies, so it never holds a secret, and no message repeats one."""
    for make in (RedisConnector, lambda url: Store("s", url)):
        with pytest.raises(ConfigError) as caught:
            make(url)
        assert "hunter2" not in str(caught.value)


def test_schemes():
    """Stores and proxies find the connector by the scheme of its URL."""
    for scheme in ("redis+cluster", "rediss+cluster"):
        assert RedisConnector is connector_class(scheme)
    store = Store("of a cluster", URL)
    assert URL == store.connector.url
    asyncio.run(store.aclose())


def test_tls_and_the_node():
    """Options of a cluster are those of each of its nodes."""
    options = parse_url("rediss+cluster://u@h,i?timeout=3&namespace=n")
    assert (True, True) == (options.cluster, options.tls)
    node = options.node("x", 7)
    assert ("x:7", "h:6379,i:6379") == (node.where, options.where)
    assert ("u", 3.0, "n", True) == (node.username, node.timeout, node.namespace, node.tls)
