"""Descriptions of stores as TOML: both ways, and what is said of mistakes."""

from __future__ import annotations

import pickle
import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyplane import FileConnector, MultiConnector, Store, StoreConfig
from proxyplane.connectors.multi import Policy
from proxyplane.exceptions import ConfigError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(
    name=TEXT,
    connector=st.sampled_from(["file:", "redis://u@[::1]:6379/0?password_env=P", "unix:///a b"]),
    serializer=st.none() | TEXT,
    checksum=st.sampled_from([True, False, "crc32", "xxh3"]),
    on_blocking=st.sampled_from([None, "warn", "raise", "allow"]),
    eager=st.booleans(),
    metrics=st.booleans(),
    cache_size=st.none() | st.integers(0),
    cache_bytes=st.none() | st.integers(0),
    signing_key=st.sampled_from([(), "env:A", ("call:a.b", "file:/x,y;z#/é")]),
    allow=st.none() | st.lists(TEXT),
)
def test_round_trip(**values):
    """TOML gives back everything, and the line everything that travels, whatever its characters."""
    original = StoreConfig(**values)
    assert original == StoreConfig.from_toml(original.to_toml())
    assert original == pickle.loads(pickle.dumps(original))
    travels = replace(original, cache_size=None, cache_bytes=None, allow=None, metrics=False)
    assert travels == StoreConfig.from_url(original.to_url())
    assert hash(original) == hash(StoreConfig.from_toml(original.to_toml()))


def test_file(tmp_path):
    """A file is named by a path or its text; a table in it by its name with dots."""
    path = tmp_path / "stores.toml"
    path.write_text(
        '[tool.stores.one]\nname = "first"\nconnector = "file:"\n'
        '[tool.stores.two]\nname = "second"\nconnector = "file:"\nchecksum = "xxh3"\n'
    )
    for source in (path, str(path), path.read_text()):
        assert "first" == StoreConfig.from_toml(source, table="tool.stores.one").name
    assert "xxh3" == StoreConfig.from_toml(path, table="tool.stores.two").checksum
    with pytest.raises(ConfigError, match="'tool.stores.three' of the file .* is not there"):
        StoreConfig.from_toml(path, table="tool.stores.three")
    with pytest.raises(ConfigError, match=r"none.toml' cannot be read: No such file"):
        StoreConfig.from_toml(tmp_path / "none.toml")
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        StoreConfig.from_toml(path)


async def test_multi_connector(tmp_path):
    """The connectors of a multi-connector are tables, and a store is made from them."""
    multi = MultiConnector(
        {
            "small": (f"file://{tmp_path}/small", Policy(max_bytes=100, superset_tags={"a", "b"})),
            "large": FileConnector(tmp_path / "large"),
        }
    )
    text = StoreConfig("both", multi.url).to_toml()
    assert ["small", "large"] == list(tomllib.loads(text)["connector"])
    assert ["a", "b"] == tomllib.loads(text)["connector"]["small"]["superset_tags"]
    config = StoreConfig.from_toml(text)
    assert multi.url == config.connector
    async with Store.from_config(config) as store:
        assert "object" == await store.get(await store.put("object"))
    await multi.aclose()


GOOD = 'name = "a"\nconnector = "file:"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('connector = "file:"', ["no 'name'"]),
        ('name = "a"', ["no 'connector'", "connector = ..."]),
        (GOOD + "cach_size = 3", ["'cach_size', which is unknown", "did you mean 'cache_size'?"]),
        (GOOD + "colour = 3", ["'colour', which is unknown", "known are: name, connector"]),
        (GOOD + 'cache_size = "3"', ["cache_size='3'", "a whole number, 0 or more"]),
        (GOOD + "eager = 1", ["eager=1", "True or False"]),
        (GOOD + 'checksum = "md5"', ["checksum='md5'", "crc32, xxh3"]),
        (GOOD + "checksum = []", ["checksum=[]"]),
        (GOOD + 'on_blocking = "never"', ["on_blocking='never'", "warn, raise, allow"]),
        (GOOD + 'allow = "numpy"', ["allow='numpy'", "ids of serializers"]),
        (GOOD + "allow = [3]", ["allow=[3]"]),
        (GOOD + 'signing_key = "hunter2"', ["signing_key", "env:NAME"]),
        (GOOD + 'signing_key = ["env:A", "hunter2"]', ["signing_key", "env:NAME"]),
        (GOOD + "signing_key = 7", ["signing_key", "env:NAME"]),
        ('name = 3\nconnector = "file:"', ["name=3"]),
        ('name = "a"\nconnector = "redis://me:hunter2@h"', ["redis://me:***@h"]),
        ('name = "a"\n[connector.x]\nurl = "redis://me:hunter2@h"', ["'x'", "redis://me:***@h"]),
        ('name = "a"\n[connector.x]\nurl = "file:"\nsize = 3', ["'x'", "'size'", "max_bytes"]),
        ('name = "a"\nconnector = {}', ["connectors={}"]),
        ("name = hunter2", ["is no TOML", "line 1"]),
        ("a = 1\na = 2", ["is no TOML"]),
        (GOOD + 'password = "hunter2"', ["'password', which is unknown"]),
    ],
)
def test_mistakes(text, words):
    """A mistake is told with the field, what was given unless it may be secret, and a way out."""
    with pytest.raises(ConfigError) as caught:
        StoreConfig.from_toml(text)
    told = str(caught.value)
    assert [] == [word for word in words if word not in told]
    assert "hunter2" not in told
    error = caught.value
    while error is not None:
        assert "hunter2" not in repr(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("local:#a;cheksum=1", "did you mean 'checksum'?"),
        ("local:#a;checksum=md5", "or one of crc32, xxh3"),
        ("local:#a;signing_key=hunter2", "env:NAME"),
        ("local:#a;signing_kee=hunter2", "did you mean 'signing_key'?"),
        ("local:#a;secret=hunter2", "unknown"),
    ],
)
def test_mistakes_in_a_line(url, words):
    """The same for the one line of a store."""
    with pytest.raises(ConfigError) as caught:
        StoreConfig.from_url(url)
    assert words in str(caught.value)
    if "kee" not in url:
        assert "hunter2" not in str(caught.value)


def test_what_cannot_be_written():
    """A lone surrogate has no place in TOML, which is UTF-8."""
    with pytest.raises(ConfigError, match="lone surrogate"):
        StoreConfig("\ud800", "file:").to_toml()


def test_relative_file_of_a_key(tmp_path, monkeypatch):
    """A relative path is made absolute where it is written: the reader may stand elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert (f"file:{tmp_path}/key",) == StoreConfig(
        "a", "file:", signing_key="file:key"
    ).signing_key


def test_source_of_another_type():
    """What is neither text nor a path is refused."""
    with pytest.raises(ConfigError, match="source="):
        StoreConfig.from_toml(b"name = 3")
