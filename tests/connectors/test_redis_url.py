"""What a Redis URL may say, and what is refused with which words."""

from __future__ import annotations

import os
import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyplane.connectors.redis import RedisConnector
from proxyplane.connectors.redis.url import DEFAULT_URL, parse_url
from proxyplane.exceptions import ConfigError


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        (DEFAULT_URL, "redis://localhost:6379/0"),
        ("redis://localhost", "redis://localhost:6379/0"),
        ("redis://LOCALHOST:6379/", "redis://localhost:6379/0"),
        ("redis://h:1/3", "redis://h:1/3"),
        ("redis://h:1?db=3", "redis://h:1/3"),
        ("redis://h/0?timeout=30&namespace=proxyplane", "redis://h:6379/0"),
        ("redis://h/0?timeout=2.50&namespace=a", "redis://h:6379/0?namespace=a&timeout=2.5"),
        ("redis://me@h", "redis://me@h:6379/0"),
        ("redis://a%40b@h", "redis://a%40b@h:6379/0"),
        ("redis://[::1]:7/1", "redis://[::1]:7/1"),
        ("rediss://h", "rediss://h:6379/0"),
        ("rediss://h?ssl_check_hostname=0", "rediss://h:6379/0?ssl_check_hostname=false"),
        ("unix:///run/r.sock", "unix:///run/r.sock"),
        ("unix:///run//x/../r.sock?db=2", "unix:///run/r.sock?db=2"),
        ("unix://me@/run/a%20b.sock", "unix://me@/run/a%20b.sock"),
    ],
)
def test_equal_options_have_one_url(url, canonical):
    """The URL of a connector is canonical, and describes the same connector."""
    connector = RedisConnector(url)
    assert canonical == connector.url
    assert canonical == RedisConnector.from_url(connector.url).url


@given(
    st.builds(
        dict,
        username=st.none() | st.text(min_size=1),
        db=st.integers(0, 99),
        namespace=st.from_regex(r"[A-Za-z0-9_./-]{1,64}", fullmatch=True),
        max_connections=st.integers(1, 1000),
        timeout=st.floats(1e-3, 1e6),
        connect_timeout=st.floats(1e-3, 1e6),
        password_env=st.none() | st.from_regex(r"[A-Z_][A-Z0-9_]*", fullmatch=True),
    ),
    st.sampled_from(["redis://h:7", "redis://[fe80::1]", "rediss://x.example", "unix:///a/b%23c"]),
)
def test_every_option_survives_the_url(options, base):
    """What is given as arguments is in the URL, and read back from it unchanged."""
    first = parse_url(base, **options)
    assert first == parse_url(first.url)
    assert first.url == parse_url(first.url).url


def test_an_argument_beats_the_url():
    """Arguments take the place of what the URL says."""
    connector = RedisConnector("redis://h/1?namespace=a&timeout=3", db=2, namespace="b")
    assert "redis://h:6379/2?namespace=b&timeout=3" == connector.url


def test_certificate_paths_become_absolute():
    """A relative path would mean another file in a process with another directory."""
    connector = RedisConnector("rediss://h", ssl_ca_certs="ca.pem")
    assert f"ssl_ca_certs={os.getcwd()}/ca.pem" in connector.url


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3kr1t-value@h:6379/0",
        "redis://user:s3kr1t-value@h",
        "rediss://user:s3kr1t-value@h",
        "unix://user:s3kr1t-value@/run/r.sock",
        "redis://h/0?password=s3kr1t-value",
        "redis://user:s3kr1t/value@h",
        "redis://:s3kr1t/val?ue@h",
        "redis://user:12/s3kr1t@h",
        "redis://s3kr1t?value@h",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url):
    """The error names password_env= and holds no piece of the password."""
    with pytest.raises(ValueError, match="password_env=") as caught:
        RedisConnector(url)
    assert isinstance(caught.value, ConfigError)
    shown = "".join(traceback.format_exception_only(caught.value))
    assert "s3kr1t" not in shown
    assert "value" not in shown.replace("ValueError", "")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h", "redis://, rediss:// or unix://"),
        ("localhost:6379", "redis://, rediss:// or unix://"),
        ("redis://", "names no host"),
        ("redis:///0", "names no host"),
        ("redis://:6379/0", "names no host"),
        ("redis://h:port", "port"),
        ("redis://h:0", "port"),
        ("redis://h:70000", "port"),
        ("redis://h/zero", "database.*'zero'"),
        ("redis://h/-1", "database"),
        ("redis://h/1?db=2", "twice"),
        ("redis://h?db=x", "option db.*'x'"),
        ("redis://h?timeout=1&timeout=2", "option timeout stands twice"),
        ("redis://h?timeout=soon", "timeout.*'soon'"),
        ("redis://h?timeout=0", "timeout"),
        ("redis://h?timeout=nan", "timeout"),
        ("redis://h?max_connections=0", "max_connections"),
        ("redis://h?max_connections=many", "max_connections.*'many'"),
        ("redis://h?namespace=a:b", "namespace 'a:b'"),
        ("redis://h?namespace=*", "namespace"),
        ("redis://h?ssl_ca_certs=/x.pem", "ssl_ca_certs is for TLS"),
        ("rediss://h?ssl_keyfile=/x.pem", "ssl_certfile"),
        ("rediss://h?ssl_check_hostname=maybe", "ssl_check_hostname.*'maybe'"),
        ("redis://h#0", "#"),
        ("redis://[::1", "cannot be parsed"),
        ("unix://run/r.sock", "absolute"),
        ("unix://", "names no socket"),
    ],
)
def test_a_mistake_is_named(url, words):
    """The message says which part of the URL is wrong."""
    with pytest.raises(ConfigError, match=words):
        RedisConnector(url)


def test_an_unknown_option_is_named_with_the_known_ones():
    """A mistyped option does not pass silently."""
    with pytest.raises(ConfigError, match="'namespce'.*\n.*known are .*namespace, password_env"):
        RedisConnector("redis://h?namespce=x")


def test_a_password_given_as_its_variable_name_is_not_repeated():
    """Who passes the password as password_env= does not find it in the log."""
    with pytest.raises(ConfigError) as caught:
        RedisConnector(password_env="s3kr1t-value!")
    assert "s3kr1t" not in str(caught.value)


def test_repr_and_pickle_hold_the_url_and_no_secret(monkeypatch):
    """The password stays in the environment."""
    monkeypatch.setenv("TEST_REDIS_PASSWORD", "s3kr1t-value")
    connector = RedisConnector("redis://me@h", password_env="TEST_REDIS_PASSWORD")
    assert f"RedisConnector({connector.url!r})" == repr(connector)
    pickled = pickle.dumps(connector)
    assert b"s3kr1t" not in pickled
    assert connector.url == pickle.loads(pickled).url
    assert "s3kr1t" not in repr(connector) + connector.url


def test_all_schemes_are_its_own():
    """The registry finds the connector under each of its schemes."""
    one, cluster = ("redis", "rediss", "unix"), ("redis+cluster", "rediss+cluster")
    assert (*one, *cluster) == RedisConnector.schemes
