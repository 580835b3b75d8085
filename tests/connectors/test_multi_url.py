"""How a multi-connector is described: policies, its URL, its table, the marks in its keys."""

from __future__ import annotations

import pickle
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyplane import FileConnector, LocalConnector, MultiConnector, RedisConnector, Store
from proxyplane._policies import Described, Policy, multi_url, read_multi_url, read_table, table
from proxyplane.config import StoreConfig, connector_from_url
from proxyplane.connectors._keys import KeyMaker
from proxyplane.connectors._multi_keys import HERE, join, mark_of, pointer, read_record, split
from proxyplane.connectors.redis.later import for_later
from proxyplane.exceptions import ConfigError, PartialBatchError

LARGE = "file:///data/objects"

# What is in a URL that a connector accepts, and what is in a tag or a pattern.
_urls = st.text(st.characters(exclude_categories=["Cc"], exclude_characters="#"), max_size=30).map(
    "file:///{}".format
)
_texts = st.text(min_size=1, max_size=10) | st.sampled_from(["?token=x", "//u:p@h", "a&pwd=b"])
_policies = st.builds(
    Policy,
    priority=st.integers(),
    host_pattern=st.lists(st.sampled_from(["a.*", "[bc]", "n-\\d+", "x,y|z;&%#@"]), max_size=3),
    min_bytes=st.integers(0, 9),
    max_bytes=st.none() | st.integers(9),
    subset_tags=st.none() | st.sets(_texts, max_size=3),
    superset_tags=st.sets(_texts, max_size=3),
)
_names = st.from_regex(r"[A-Za-z0-9_.-]{1,32}", fullmatch=True).filter(
    lambda name: name not in {"secret", "token", "pwd"}
)


@given(st.dictionaries(_names, st.builds(Described, _urls, _policies), min_size=1, max_size=4))
@settings(max_examples=200)
def test_any_description_survives_its_url(described):
    """Whatever the names, URLs and policies are, the line and the table give them back."""
    try:
        url = multi_url(described)
    except ConfigError as error:
        assert "secret" in str(error)  # by chance, a path or a name looks like one
        return
    assert described == read_multi_url(url)
    assert list(described) == list(read_multi_url(url))
    assert described == read_table(table(described))
    assert url == multi_url(read_multi_url(url))
    config = StoreConfig("any; name#", url)
    assert config == StoreConfig.from_url(config.to_url())


def test_url_is_readable():
    """Defaults are left out, and plain URLs stand there as they are."""
    multi = MultiConnector(
        {
            "small": ("redis://localhost:6379/0?namespace=n", Policy(priority=1, max_bytes=1000)),
            "large": LARGE,
        }
    )
    assert multi.url == (
        "multi:small=redis://localhost:6379/0?namespace=n;priority=1;max_bytes=1000"
        "&large=file:///data/objects"
    )
    assert multi.url in repr(multi)


def test_a_url_written_by_hand():
    """Lists, empty lists and percent-encoded parts are read."""
    found = read_multi_url(
        "MULTI:a=redis://u%40h/0%3Fdb=1%26timeout=2;subset_tags=;superset_tags=x%2Cy,z"
        "&b=file:///d;host_pattern=n%5B12%5D,m.*;min_bytes=5;priority=-3"
    )
    assert found == {
        "a": Described(
            "redis://u@h/0?db=1&timeout=2",
            Policy(subset_tags=(), superset_tags=["x,y", "z"]),
        ),
        "b": Described(
            "file:///d", Policy(host_pattern=["n[12]", "m.*"], min_bytes=5, priority=-3)
        ),
    }


def test_the_table_of_a_toml_file():
    """A multi-connector is made from TOML, and gives back what was in it."""
    text = """
    [connectors.small]
    url = "redis://localhost:6379/0"
    priority = 1
    max_bytes = 100_000
    superset_tags = ["fast"]

    [connectors.large]
    url = "file:///data/objects"
    host_pattern = ["node-.*", "login"]
    """
    connectors = tomllib.loads(text)["connectors"]
    multi = MultiConnector.from_table(connectors)
    assert multi.table() == connectors
    assert connector_from_url(multi.url).table() == connectors


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("multi:", "describes none"),
        ("multi:a", "'a' in a multi-connector has no URL"),
        ("multi:a=", "connector 'a'"),
        ("multi:a=/data", "connector 'a'.*file:///data"),
        ("multi:a b=file:///d", "name of a connector"),
        ("multi:a=file:///d&a=file:///e", "named 'a'"),
        ("multi:a=file:///d;max_byte=3", "'max_byte'.*unknown(.|\n)*max_bytes"),
        ("multi:a=file:///d;max_bytes=3;max_bytes=4", "'max_bytes' twice"),
        ("multi:a=file:///d;url=x", "'url' twice"),
        ("multi:a=file:///d;max_bytes", "'max_bytes' without a value"),
        ("multi:a=file:///d;max_bytes=x", "a.max_bytes='x'"),
        ("multi:a=file:///d;priority=1.5", "a.priority='1.5'"),
        ("multi:a=file:///d;min_bytes=5;max_bytes=3", "'a'.*max_bytes=3"),
        ("multi:a=file:///d;host_pattern=(", r"'a'.*host_pattern='\('"),
        ("multi:a=file:///d;superset_tags=x,,y", "'a'.*superset_tags"),
        ("multi:a=file:///%FF%FE", "percent-encoded UTF-8"),
        ("multi:token=file:///d", "looks like a secret"),
    ],
)
def test_a_wrong_url_says_where(url, told):
    """The message names the connector and the field."""
    with pytest.raises(ConfigError, match=told):
        MultiConnector.from_url(url)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 1.5),
        ("priority", True),
        ("host_pattern", 7),
        ("host_pattern", [""]),
        ("host_pattern", "["),
        ("min_bytes", -1),
        ("max_bytes", "1 MB"),
        ("max_bytes", -1),
        ("subset_tags", "one"),
        ("subset_tags", [1]),
        ("superset_tags", None),
    ],
)
def test_a_wrong_policy_says_which_field(field, value):
    """What a policy cannot be is a ConfigError that names the field."""
    with pytest.raises(ConfigError, match=f"{field}="):
        Policy(**{field: value})


@pytest.mark.parametrize(
    "connectors",
    [{}, {"a b": LARGE}, {"": LARGE}, {1: LARGE}, {"a": 1}, {"a": (LARGE, 1)}, {"a": ()}, [LARGE]],
)
def test_a_wrong_multi_connector(connectors):
    """What describes no connectors is a ConfigError."""
    with pytest.raises(ConfigError):
        MultiConnector(connectors)


@pytest.mark.parametrize("table", [{}, [], {"a": LARGE}, {"a": {}}, {"a": {"url": 1}}])
def test_a_wrong_table(table):
    """So is a table without URLs."""
    with pytest.raises(ConfigError):
        MultiConnector.from_table(table)


PASSWORD = "hunter2"  # noqa: S105


@pytest.mark.parametrize(
    "make",
    [
        lambda url: MultiConnector({"a": LARGE, "b": url}),
        lambda url: MultiConnector({"a": LARGE, "b": (url, Policy(priority=2))}),
        lambda url: MultiConnector({"b": (url, {"priority": 2})}),
        lambda url: MultiConnector.from_table({"b": {"url": url}}),
        lambda url: MultiConnector.from_url(f"multi:a={LARGE}&b={url}"),
        lambda url: MultiConnector.from_url(f"multi:b={url.replace(':', '%3A')};priority=1"),
        lambda url: MultiConnector.from_url(f"multi:b={url.replace('@', '%40')};priority=1"),
        lambda url: Store("s", f"multi:a=redis://h:6379;priority=1&b={url}"),
    ],
)
@pytest.mark.parametrize(
    "url", [f"redis://user:{PASSWORD}@host:6379/0", f"redis://host/0?password={PASSWORD}"]
)
def test_a_password_is_refused_and_not_repeated(make, url):
    """A secret in the URL of an inner connector is a ConfigError that does not tell it."""
    with pytest.raises(ConfigError) as caught:
        make(url)
    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in repr(caught.value)


def test_no_secret_travels(monkeypatch, redis_url):
    """A pickled proxy names the variable of a password, and holds nothing of its value."""
    monkeypatch.setenv("MULTI_PASSWORD", PASSWORD)
    multi = MultiConnector(
        {
            "small": (RedisConnector(redis_url, username="u", password_env="MULTI_PASSWORD")),
            "large": ("redis://other:6379", Policy(priority=-1)),
        }
    )
    store = Store("secrets", multi)
    pickled = pickle.dumps([store.proxy_from_key("key"), store.config()])
    assert b"MULTI_PASSWORD" in pickled
    assert PASSWORD.encode() not in pickled
    assert PASSWORD not in repr(store) + repr(multi) + repr(store.config())
    assert StoreConfig.from_url(store.config().to_url()) == store.config()


async def test_a_proxy_is_as_small_as_any():
    """Beside its URL, a proxy needs no more bytes than one of a single connector."""

    async def sizes(connector):
        async with Store("demo", connector) as store:
            proxies = await store.proxy_batch([b"object"] * 2, populate_target=False)
        one, two = len(pickle.dumps(proxies[0])), len(pickle.dumps(proxies))
        return one - len(connector.url), two - one

    multi = MultiConnector({"small": (LocalConnector(), Policy(max_bytes=999)), "large": LARGE})
    assert await sizes(multi) == await sizes(LocalConnector())


def test_partial_batch_errors_are_picklable():
    """What they know crosses processes."""
    errors = {"a": ConfigError("why", hint="then")}
    error = PartialBatchError("half", errors=errors, there={"k": True}, hint="look")
    again = pickle.loads(pickle.dumps(error))
    assert (again.there, str(again)) == ({"k": True}, str(error))
    assert str(again.errors["a"]) == str(errors["a"])


# -- keys --------------------------------------------------------------------------------------


@given(st.text(), _texts)
@settings(max_examples=300)
def test_any_inner_key_is_found_again(key, name):
    """Whatever keys a connector makes, the mark comes off again, and can come on twice."""
    mark = mark_of(name)
    assert split(join(mark, key)) == (mark, key)
    assert split(join("abc", join(mark, key))) == ("abc", join(mark, key))


def test_keys_of_ours_stay_short():
    """A key that the library made stays 32 hexadecimal digits, also that of a future."""
    maker = KeyMaker()
    for inner in (maker.new(), for_later(maker.new())):
        key = join(mark_of("name"), inner)
        assert (len(key), bytes.fromhex(key).hex()) == (32, key)
        assert split(key) == (mark_of("name"), inner)


def test_keys_stay_unique_when_a_counter_is_high():
    """A counter that needs the digits of the mark gets the long form."""
    inner = f"{KeyMaker().prefix}{0x1000_0000_0:016x}"
    key = join("abc", inner)
    assert len(key) > 32
    assert split(key) == ("abc", inner)


# Derandomized, because one in a million is.
@given(st.binary(min_size=16, max_size=16))
@settings(max_examples=1000, derandomize=True)
def test_keys_of_users_are_not_taken_for_made_ones(raw):
    """Thirty-two digits of another source, and what begins like a made key, are chosen keys."""
    assert split(raw.hex()) is None
    assert split(f"{raw.hex()}~{raw.hex()[:8]}") is None


@pytest.mark.parametrize("key", ["", "0" * 32, "f" * 32, "key~", "~00000000", "a" * 32 + "~"])
def test_such_keys_are_chosen(key):
    """No check digits by chance."""
    assert split(key) is None


def test_a_key_has_one_form():
    """The long form of a key that has a short one is a chosen key, not another name of it."""
    inner = KeyMaker().new()
    short = join("abc", inner)
    assert split(f"{inner}~{short[17:25]}") is None


def test_records():
    """A record is the object or the key of it, in any characters; other bytes are no record."""
    assert bytes(read_record(b"object" + HERE).body) == b"object"
    for key in ("key", "\0\1", "\ud800é"):
        assert read_record(b"".join(pointer(key))) == (None, key)
    for foreign in (b"", b"object", b"\xff\x01"):
        assert read_record(foreign) is None


def test_names_whose_marks_are_equal_are_refused():
    """Keys could not tell them apart, and a ConfigError says so."""
    marks: dict[str, str] = {}
    number = 0
    while (other := marks.setdefault(mark_of(f"n{number}"), f"n{number}")) == f"n{number}":
        number += 1
    with pytest.raises(ConfigError, match="tell apart"):
        MultiConnector({other: LARGE, f"n{number}": LARGE})


def test_files_need_no_redis(tmp_path):
    """A multi-connector of files and a dormant server does not import the driver."""
    import subprocess
    import sys

    multi = MultiConnector({"a": FileConnector(tmp_path), "b": "redis://127.0.0.1:1"})
    script = (
        "import asyncio, sys; from proxyplane.config import connector_from_url;"
        f"multi = connector_from_url({multi.url!r});"
        "key = asyncio.run(multi.put([b'x']));"
        "assert asyncio.run(multi.get(key)) == b'x'; assert 'redis' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)
