"""Store descriptions, the environment, secrets in URLs, and where connectors are found."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyplane import _registry, config
from proxyplane.abc import Connector
from proxyplane.config import (
    StoreConfig,
    connector_class,
    connector_from_url,
    default_on_blocking,
    default_store_url,
    env_int,
    known_schemes,
    redact,
    register_connector,
)
from proxyplane.exceptions import ConfigError, ProxyPlaneError, UnknownSchemeError

# Lone surrogates too: os.fsdecode makes them of file names that are not UTF-8.
ANY_TEXT = st.text(st.characters(), min_size=1)


class Shelf(Connector):
    """A connector class that is never used for more than its name."""

    scheme = "shelf"

    def __init__(self, url):
        self._url = url

    @classmethod
    def from_url(cls, url):
        return cls(url)

    @property
    def url(self):
        return self._url

    async def put(self, frames, *, key=None):
        raise NotImplementedError

    async def get(self, key, *, size=None):
        raise NotImplementedError

    async def exists(self, key):
        raise NotImplementedError

    async def evict(self, key):
        raise NotImplementedError

    async def aclose(self, *, clear=False):
        pass


class OtherShelf(Shelf):
    """Another class than `Shelf`."""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Each test starts with an empty registry and environment."""
    monkeypatch.setattr(_registry, "_registered", {})
    monkeypatch.setattr(_registry, "_loaded", {})
    for variable in ("CACHE_SIZE", "CACHE_BYTES", "ON_BLOCKING", "STORE"):
        monkeypatch.delenv(f"PROXYPLANE_{variable}", raising=False)


# --- StoreConfig ---------------------------------------------------------------------------------


@given(
    name=ANY_TEXT,
    connector=st.sampled_from(
        ["file:", "file:///a%23b;c=d?e", "redis://u@[::1]:6379/0?password_env=P", "unix:///a b"]
    ),
    serializer=st.none() | ANY_TEXT,
    checksum=st.booleans(),
    on_blocking=st.sampled_from([None, "warn", "raise", "allow"]),
    cache_size=st.none() | st.integers(0),
    cache_bytes=st.none() | st.integers(0),
)
def test_url_round_trip(**values):
    """`from_url` gives back all that travels, whatever characters it has, in one canonical line."""
    original = StoreConfig(**values)
    url = original.to_url()
    read = StoreConfig.from_url(url)
    assert replace(original, cache_size=None, cache_bytes=None) == read
    assert url == read.to_url()
    assert original.identity == read.identity
    assert url.isascii() and url.isprintable()
    assert original == pickle.loads(pickle.dumps(original))


def test_url_of_a_plain_store_is_short():
    """Defaults and cache limits do not travel."""
    plain = StoreConfig("demo", "file:///dev/shm/x", cache_size=1, cache_bytes=2)
    assert "file:///dev/shm/x#demo" == plain.to_url()


def test_url_with_options():
    """Options come after the name, in a fixed order, import strings readable."""
    full = StoreConfig(
        "a;b#c", "local:", serializer="pkg.mod:attr", checksum=True, on_blocking="raise"
    )
    assert "local:#a%3Bb%23c;serializer=pkg.mod:attr;checksum=1;on_blocking=raise" == full.to_url()


def test_identity_tells_configurations_apart():
    """A namesake with another configuration is another store; cache limits make no difference."""
    one = StoreConfig("demo", "local:")
    assert one.identity != replace(one, checksum=True).identity
    assert one.identity != replace(one, connector="file:").identity
    assert one.identity == replace(one, cache_size=3).identity


def test_frozen():
    """A description cannot be changed."""
    with pytest.raises(FrozenInstanceError):
        StoreConfig("demo", "local:").name = "other"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", b"demo"),
        ("name", None),
        ("connector", ""),
        ("connector", "/dev/shm"),
        ("connector", "localhost:6379"),
        ("connector", "1x:"),
        ("connector", "file:///a#b"),
        ("connector", "file:///a\nb"),
        ("connector", None),
        ("serializer", ""),
        ("serializer", len),
        ("checksum", 1),
        ("checksum", None),
        ("on_blocking", "never"),
        ("cache_size", -1),
        ("cache_size", True),
        ("cache_size", 1.0),
        ("cache_size", "16"),
        ("cache_bytes", -1),
    ],
)
def test_wrong_values_are_named(field, value):
    """The error of a wrong value names the field and the value, and is a ValueError."""
    values = {"name": "demo", "connector": "local:", field: value}
    with pytest.raises(ConfigError) as caught:
        StoreConfig(**values)
    assert f"{field}={value!r}" in str(caught.value)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, ProxyPlaneError)


@pytest.mark.parametrize(
    ("text", "hint"),
    [("/dev/shm", "file:///dev/shm"), ("localhost:6379", "redis://localhost:6379")],
)
def test_hint_for_what_is_almost_a_url(text, hint):
    """A path and a host with a port are no URLs, and the error says which URL was meant."""
    with pytest.raises(ConfigError, match=f"hint: .*{hint}"):
        StoreConfig("demo", text)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:sesame@host:6379/0",
        "redis://:sesame@host",
        "redis://user:ses@me/sesame@host",
        "rediss://user@host?password=sesame",
        "sql://host/db?user=me&api_key=sesame",
        "blob://host/x?AccessKey=sesame;y=1",
    ],
)
def test_secrets_are_refused_and_not_shown(url):
    """A URL with a secret is refused, by an error that hides it and names `password_env`."""
    with pytest.raises(ConfigError) as caught:
        StoreConfig("demo", url)
    assert "sesame" not in str(caught.value)
    assert "password_env" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user@host:6379/0?password_env=REDIS_PASSWORD",
        "http://host:8080/a@b",
        "redis://[::1]:6379/0?client=a@b",
        "unix:///run/a:b@c.sock",
        "file:///home/me@work/a:b",
        "db://host/?partition_key=user&password_file=/run/secrets/x",
    ],
)
def test_urls_without_secrets_are_accepted(url):
    """An "@" or a parameter whose name only resembles a secret's is no secret."""
    assert url == StoreConfig("demo", url).connector


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("local:", "no name"),
        ("local:#", "no name"),
        ("local:#;checksum=1", "no name"),
        ("local:#a;colour=red", "'colour=red'"),
        ("local:#a;cache_size=3", "'cache_size=3'"),
        ("local:#a;checksum", "'checksum'"),
        ("local:#a;checksum=1;checksum=1", "twice"),
        ("local:#a;checksum=perhaps", "'perhaps'"),
        ("local:#a;on_blocking=never", "on_blocking='never'"),
        ("local:#a#b", "two '#'"),
        ("#a", "connector=''"),
        ("local:#%ff", "UTF-8"),
        (b"local:#a", "url="),
    ],
)
def test_wrong_store_urls(url, why):
    """A line that describes no store is refused by an error that says why."""
    with pytest.raises(ConfigError) as caught:
        StoreConfig.from_url(url)
    assert why in str(caught.value)


def test_store_url_without_name_takes_the_one_given():
    """A name given to `from_url` counts only when the line has none."""
    assert "mine" == StoreConfig.from_url("local:", name="mine").name
    assert "mine" == StoreConfig.from_url("local:#;checksum=true", name="mine").name
    assert "other" == StoreConfig.from_url("local:#other", name="mine").name


# --- The environment -----------------------------------------------------------------------------


def test_cache_limits_argument_beats_environment(monkeypatch):
    """Argument, then environment, then default; 0 is an argument like any other."""
    plain = StoreConfig("demo", "local:")
    assert (16, 2**30) == plain.cache_limits()
    monkeypatch.setenv("PROXYPLANE_CACHE_SIZE", "3")
    monkeypatch.setenv("PROXYPLANE_CACHE_BYTES", "1_000")
    assert (3, 1000) == plain.cache_limits()
    assert (0, 0) == replace(plain, cache_size=0, cache_bytes=0).cache_limits()


@pytest.mark.parametrize("text", ["many", "-1", "1.5", " "])
def test_env_int_garbage(monkeypatch, text):
    """A variable that is no whole number is an error that names it and what it holds."""
    monkeypatch.setenv("PROXYPLANE_CACHE_SIZE", text)
    with pytest.raises(ConfigError) as caught:
        env_int("PROXYPLANE_CACHE_SIZE", 16)
    assert "PROXYPLANE_CACHE_SIZE" in str(caught.value) and repr(text) in str(caught.value)


def test_empty_variable_counts_as_unset(monkeypatch):
    """`PROXYPLANE_X= command` is how a shell unsets a variable for one command."""
    monkeypatch.setenv("PROXYPLANE_CACHE_SIZE", "")
    monkeypatch.setenv("PROXYPLANE_STORE", "")
    monkeypatch.setenv("PROXYPLANE_ON_BLOCKING", "")
    assert 5 == env_int("PROXYPLANE_CACHE_SIZE", 5)
    assert default_store_url() is None
    assert "warn" == default_on_blocking()


def test_policy_and_store_of_the_environment(monkeypatch):
    """The other two variables are read each time, and a wrong policy is named."""
    monkeypatch.setenv("PROXYPLANE_ON_BLOCKING", "raise")
    monkeypatch.setenv("PROXYPLANE_STORE", "local:#default")
    assert ("raise", "local:#default") == (default_on_blocking(), default_store_url())
    monkeypatch.setenv("PROXYPLANE_ON_BLOCKING", "ignore")
    with pytest.raises(ConfigError, match=r"ON_BLOCKING is 'ignore'.*warn, raise, allow"):
        default_on_blocking()


# --- Secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://me:pw@host:6379/0", "redis://me:***@host:6379/0"),
        ("redis://:pw@host", "redis://:***@host"),
        ("redis://me:12/34@host", "redis://me:***@host"),
        ("redis://me:1#2@host", "redis://me:***@host"),
        ("redis://h?password=x&db=1", "redis://h?password=***&db=1"),
        ("redis://h?password_env=X", "redis://h?password_env=X"),
        ("redis://h?a=1;TOKEN=x#n", "redis://h?a=1;TOKEN=***#n"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_redact(url, expected):
    """Passwords and keys become ``***``; the rest stays."""
    assert expected == redact(url)


@given(password=st.text(min_size=1), user=st.text("abc", max_size=3))
def test_redact_any_password(password, user):
    """Whatever a password is made of, nothing of it is left."""
    assert f"redis://{user}:***@host:1/0" == redact(f"redis://{user}:{password}@host:1/0")


# --- Where a connector is found ------------------------------------------------------------------


def test_built_in_schemes_are_known():
    """The list of schemes needs no import of any driver."""
    assert {"local", "file", "redis", "rediss", "unix"} <= set(known_schemes())


@pytest.mark.parametrize("scheme", ["local", "file", "redis", "rediss", "unix"])
def test_built_in_classes(scheme):
    """Each built-in scheme leads to a connector class; its case does not matter."""
    cls = connector_class(scheme)
    assert issubclass(cls, Connector)
    assert cls is connector_class(scheme.upper())


def test_registered_class_is_found():
    """`register_connector` makes URLs of its scheme mean the class, and twice is fine."""
    register_connector("Shelf", Shelf)
    register_connector("shelf", Shelf)
    connector = connector_from_url("shelf://top?x=1")
    assert isinstance(connector, Shelf)
    assert "shelf://top?x=1" == connector.url
    assert "shelf" in known_schemes()


def test_taken_scheme_is_refused():
    """Another class for a scheme is an error that names both, and the first one stays."""
    register_connector("shelf", Shelf)
    with pytest.raises(ConfigError, match=r"'shelf' is taken by .*:Shelf, so .*:OtherShelf"):
        register_connector("shelf", OtherShelf)
    assert connector_class("shelf") is Shelf
    with pytest.raises(ConfigError, match="'redis' is taken by proxyplane.connectors.redis"):
        register_connector("redis", Shelf)


@pytest.mark.parametrize("scheme", ["local", "redis"])
def test_built_in_class_may_register_itself(scheme):
    """The class of a built-in scheme is no other class."""
    register_connector(scheme, connector_class(scheme))
    assert {} == _registry._registered


def test_new_version_of_a_class_replaces_it():
    """A notebook cell that runs again defines the same class anew; the last one counts."""
    again = type("Shelf", (Shelf,), {"__module__": Shelf.__module__, "__qualname__": "Shelf"})
    register_connector("shelf", Shelf)
    register_connector("shelf", again)
    assert connector_class("shelf") is again


@pytest.mark.parametrize("scheme", ["", "a b", "1a", "a:", "a/b", None])
def test_impossible_schemes(scheme):
    """What cannot stand before the colon of a URL cannot be registered."""
    with pytest.raises(ConfigError, match="scheme="):
        register_connector(scheme, Shelf)


@pytest.mark.parametrize("cls", [int, Shelf("x:"), None, "pkg:Shelf"])
def test_only_connectors_are_registered(cls):
    """An instance or another class is refused."""
    with pytest.raises(ConfigError, match="subclass of proxyplane.Connector"):
        register_connector("shelf", cls)


def test_unknown_scheme_lists_and_suggests():
    """The error lists the schemes that exist and guesses the one that was meant."""
    register_connector("shelf", Shelf)
    with pytest.raises(UnknownSchemeError) as caught:
        connector_from_url("rediz://localhost")
    message = str(caught.value)
    for scheme in ("local", "file", "redis", "rediss", "unix", "shelf"):
        assert scheme in message
    assert "did you mean 'redis'?" in message
    with pytest.raises(UnknownSchemeError, match="install or register"):
        connector_from_url("qqqqqqqq:")


def test_connector_url_with_a_fragment_is_refused():
    """A store's URL is no connector's URL."""
    with pytest.raises(ConfigError, match="fragment"):
        connector_from_url("local:#demo")


def _install(directory, package, points):
    """Makes a package with entry points, as an installer leaves it."""
    info = directory / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{scheme} = {value}\n" for scheme, value in points.items())
    (info / "entry_points.txt").write_text(f"[{config.ENTRY_POINT_GROUP}]\n{lines}")


def test_entry_points(tmp_path, monkeypatch):
    """A connector of an installed package is found by its scheme, and imported only then."""
    monkeypatch.syspath_prepend(tmp_path)
    _install(
        tmp_path,
        "shelves",
        {"Book": "book_shelf:Book", "gone": "no_such_module:X", "odd": "book_shelf:number"},
    )
    (tmp_path / "book_shelf.py").write_text(
        f"from {__name__} import Shelf\nclass Book(Shelf): pass\nnumber = 3\n"
    )
    assert {"book", "gone", "odd"} <= set(known_schemes())
    assert "book_shelf" not in sys.modules
    assert "Book" == type(connector_from_url("book://x")).__name__
    assert connector_class("book") is connector_class("BOOK")
    with pytest.raises(ConfigError, match=r"package shelves .*no_such_module:X.*ModuleNotFound"):
        connector_class("gone")
    with pytest.raises(ConfigError, match=r"package shelves .*not a subclass .*but 3"):
        connector_class("odd")


def test_two_packages_claim_one_scheme(tmp_path, monkeypatch):
    """Which of two packages is meant cannot be guessed; a registered class decides."""
    monkeypatch.syspath_prepend(tmp_path)
    _install(tmp_path, "one", {"shelf": f"{__name__}:Shelf"})
    _install(tmp_path, "two", {"shelf": f"{__name__}:OtherShelf"})
    with pytest.raises(ConfigError, match=r"several packages: (one|two) .*(one|two)"):
        connector_class("shelf")
    register_connector("shelf", OtherShelf)
    assert connector_class("shelf") is OtherShelf


def test_nothing_is_imported_before_it_is_needed():
    """Describing a store and naming its connector imports no driver and looks at no package."""
    script = """
        import sys
        import proxyplane.config as config
        config.StoreConfig("demo", "redis://localhost")
        config.register_connector
        loaded = {"redis", "importlib.metadata", "difflib"} & set(sys.modules)
        sys.exit(f"imported {loaded}" if loaded else 0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
