"""The connector of docs/connectors.md is complete, short and sound, and other processes find it."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

import proxyplane
from proxyplane import sync
from proxyplane._registry import _loaded, known_schemes

pytest_plugins = ["pytester"]

PAGE = (Path(__file__).parents[1] / "docs" / "connectors.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def named(file: str) -> str:
    """The block of the page that is written to a file."""
    (text,) = [text for _, text in BLOCKS if text.startswith(f"# {file}\n")]
    return text


@pytest.fixture
def installed(pytester, monkeypatch):
    """A directory that holds the connector as an installed package would, for new processes too."""
    pytester.makepyfile(
        sqlite_connector=named("sqlite_connector.py"), test_sqlite=named("test_sqlite.py")
    )
    ((_, toml),) = [block for block in BLOCKS if block[0] == "toml"]
    ((group, points),) = tomllib.loads(toml)["project"]["entry-points"].items()
    info = pytester.mkdir("sqlite_connector-1.0.dist-info")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sqlite-connector\nVersion: 1.0\n")
    paths = [pytester.path, Path(proxyplane.__file__).parents[1]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.syspath_prepend(pytester.path)
    yield pytester.path
    _loaded.pop("sqlite", None)
    sys.modules.pop("sqlite_connector", None)


def test_the_connector_is_short():
    """The page promises a connector in less than sixty lines."""
    assert "less than sixty lines" in PAGE
    assert len(named("sqlite_connector.py").splitlines()) < 60


@pytest.fixture
def quick_folder(tmp_path):
    """A folder in memory where there is one: SQLite waits for the disk after each change."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("installed")
def test_the_connector_passes_the_suite(pytester, quick_folder):
    """The test of the page, as it stands there, passes, and skips only what does not apply."""
    pytester.makeini(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    done = pytester.runpytest_subprocess(
        *("-q", "-rs", "test_sqlite.py", f"--basetemp={os.path.join(quick_folder, 'base')}")
    )
    outcomes = done.parseoutcomes()
    assert set(outcomes) == {"passed", "skipped"}
    assert outcomes["passed"] > 70
    reasons = [line for line in done.outlines if line.startswith("SKIPPED")]
    lacking = "cannot defer", "shortcut", "cannot replace", "no leases"
    assert [] == [line for line in reasons if not any(what in line for what in lacking)]


def test_a_proxy_finds_the_connector_in_another_process(installed):
    """A process that imports nothing but pickle resolves a proxy over the third-party connector."""
    assert "sqlite" in known_schemes()
    code = (
        "import pickle, sys; proxy = pickle.load(sys.stdin.buffer);"
        "assert not {'sqlite3', 'sqlite_connector'} & set(sys.modules);"
        "print(proxy['any'])"
    )
    with sync.Store("shelf", f"sqlite://{installed}/objects.db") as store:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            input=pickle.dumps(store.proxy({"any": "object"})),
            capture_output=True,
            timeout=50,
        )
    assert (b"object", b"") == (done.stdout.strip(), done.stderr)
