"""`proxyplane endpoint`, as an operator types it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from proxyplane import cli
from proxyplane.connectors.endpoint.keys import is_id
from support.endpoints import Site


@pytest.fixture
def new(make_site):
    """A site with a configured endpoint that does not run in front."""
    return make_site("lab")


def test_life_of_an_endpoint(new):
    """It is configured, started in the background, tried, stopped and removed."""
    assert is_id(new.id)
    assert b"does not run" in new.run("list").stdout
    assert b"its log is" in new.run("start", "lab").stdout
    try:
        assert b"runs (process" in new.run("list").stdout
        assert 2 == new.run("start", "lab", check=False).returncode
        assert 2 == new.run("remove", "lab", check=False).returncode
        key = new.run("test", "put", "lab", "--data", "hello").stdout.decode().strip()
        assert b"hello" == new.run("test", "get", "lab", key).stdout
        assert b"1, and 0 to come" in new.run("status", "lab").stdout
        assert b'"objects": 1' in new.run("status", "lab", "--json").stdout
        assert b"yes\n" == new.run("test", "exists", "lab", key).stdout
        assert b"yes\n" == new.run("test", "evict", "lab", key).stdout
        for operation in ("exists", "evict", "get"):
            assert 1 == new.run("test", operation, "lab", key, check=False).returncode
        data = os.urandom(100_000)
        new.run("test", "put", "lab", "mine", input=data)
        assert data == new.run("test", "get", "lab", "mine").stdout
    finally:
        assert b"stopped" in new.run("stop", "lab").stdout
    assert b"does not run" in new.run("stop", "lab").stdout
    assert b"stopped" in (new.directory / "lab" / "log").read_bytes()
    new.run("remove", "lab")
    assert b"" == new.run("list").stdout


def test_settings_are_kept(new):
    """What is configured stays until it is configured otherwise."""
    peer = f"far={'b' * 52}@far.example.org:7117"
    before = new.id
    new.configure("--memory", "2GiB", "--persist", "--listen", "127.0.0.1:7117", "--peer", peer)
    new.configure("--allow", "far=read,wait")
    assert new.configure("--disk", "1.5TB") == before
    text = (new.directory / "lab" / "settings.toml").read_text()
    for line in (
        "memory = 2147483648",
        "disk = 1500000000000",
        "persist = true",
        'listen = "127.0.0.1:7117"',
        'address = "far.example.org:7117"',
        'allow = ["read", "wait"]',
    ):
        assert line in text
    new.configure("--no-persist", "--forget", "far")
    text = (new.directory / "lab" / "settings.toml").read_text()
    assert "persist = false" in text
    assert "far" not in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["configure", "../x"], "cannot be called"),
        (["configure", "lab", "--memory", "much"], "'much' is not a size"),
        (["configure", "lab", "--listen", "7117"], "HOST:PORT"),
        (["configure", "lab", "--port", "99999"], "not a port"),
        (["configure", "lab", "--peer", "far=short@a:1"], "not the id"),
        (["configure", "lab", "--allow", "far=read"], "no peer 'far'"),
        (["configure", "lab", "--forget", "far"], "no peer 'far'"),
        (["start", "nowhere"], "no endpoint 'nowhere'"),
        (["stop", "nowhere"], "no endpoint 'nowhere'"),
        (["status", "nowhere"], "no endpoint 'nowhere'"),
        (["remove", "nowhere"], "no endpoint 'nowhere'"),
        (["test", "get", "nowhere", "key"], "neither an endpoint of this machine nor a peer"),
        (["test", "get", "lab"], "needs a key"),
        (["frobnicate"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_mistakes(shared_site, monkeypatch, capsys, words, told):
    """A mistake is named, with exit code 2, and changes nothing."""
    monkeypatch.setenv("PROXYPLANE_ENDPOINTS", str(shared_site.directory))
    words = ["shared" if word == "lab" else word for word in words]
    settings = shared_site.directory / "shared" / "settings.toml"
    before = settings.read_bytes()
    try:
        code = cli.main(["endpoint", *words])
    except SystemExit as error:
        code = error.code
    assert 2 == code
    assert told in capsys.readouterr().err
    assert before == settings.read_bytes()


def test_an_endpoint_that_cannot_start_says_why(new):
    """What keeps it from starting is printed, in the background too."""
    (new.directory / "lab" / "identity.pem").chmod(0o644)
    done = new.run("start", "lab", check=False)
    assert done.returncode != 0
    assert b"others can read it" in done.stderr
    assert b"Traceback" not in done.stderr


def test_not_running(new):
    """What needs a running endpoint says how to start it."""
    for words in (("status", "lab"), ("test", "put", "lab", "--data", "x")):
        done = new.run(*words, check=False)
        assert 1 == done.returncode
        assert b"proxyplane endpoint start lab" in done.stderr


def test_missing_packages(tmp_path):
    """Without the packages of the daemon, the command says what to install."""
    for package, words in (
        ("cryptography", ["configure", "lab"]),
        ("aiohttp", ["start", "lab"]),
    ):
        site = Site(tmp_path, "lab")
        code = (
            f"import sys; sys.modules[{package!r}] = None; from proxyplane.cli import main; "
            f"sys.exit(main(['endpoint', *{words!r}]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=site.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert 2 == done.returncode, done.stderr
        assert "pip install 'proxyplane[endpoint]'" in done.stderr
        site.configure()


def test_the_connector_needs_no_extra(new):
    """A client of an endpoint imports neither aiohttp nor cryptography."""
    code = (
        "import sys; from proxyplane import EndpointConnector; EndpointConnector();"
        "print([m for m in ('aiohttp', 'cryptography', 'redis') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=new.environment, capture_output=True, check=True
    )
    assert b"[]\n" == done.stdout
