"""The benchmarks run, from end to end; what they measure is not asserted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
EXPERIMENTS = [
    *("sizes", "growth", "bulk", "files", "stages", "wakeup", "pending", "together", "overlap"),
    *("pipeline", "proxies", "endpoint"),
]
# What each draws. Peak memory needs a file that not every system lets one write.
PICTURES = {
    "sizes": {"latency", "throughput"},
    "growth": {"growth"},
    "bulk": {"stall"},
    "files": {"stall"},
    "stages": {"stages"},
}
WITHOUT_TARGETS = {"sizes", "growth"}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="they read /proc and use inotify"),
    pytest.mark.timeout(180),
]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def drawn(folder: Path) -> dict[str, str]:
    """The pictures in a folder, each of which is sound XML with something in it."""
    found = {}
    for path in folder.glob("bench-*.svg"):
        text = path.read_text("utf-8")
        root = ET.fromstring(text)
        assert float(root.get("height")) > 100
        assert "nan" not in text.lower()
        assert 'class="curve' in text or 'class="bar' in text
        found[path.stem.removeprefix("bench-")] = text
    return found


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_quick(experiment: str, tmp_path: Path) -> None:
    """Each experiment ends, prints, writes and draws its figures, with targets for ours alone."""
    file = tmp_path / "figures.json"
    done = run(experiment, "--quick", "--json", file)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["machine"]["servers"] in done.stdout
    assert found["machine"]["used by others"].endswith("%")
    assert found["settings"]["quick"] is True
    rows = found["rows"]
    assert any(row["target"] for row in rows) == (experiment not in WITHOUT_TARGETS)
    assert not any(row["target"] for row in rows if "ProxyStore" in row["what"])
    for row in rows:
        assert row["what"] in done.stdout
        assert len(row["values"]) >= 1
        assert (row["reached"] is None) == (row["target"] is None)
    missed = sum(row["reached"] is False for row in rows)
    assert done.stdout.count("\nNOT REACHED: ") == missed

    pictures = drawn(tmp_path)
    assert PICTURES.get(experiment, set()) == set(pictures) - {"memory"}
    again = run("plot", file, tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert pictures == drawn(tmp_path / "again")
    if experiment == "stages":
        check_what_stays(found["curves"])


def check_what_stays(curves: list[dict[str, Any]]) -> None:
    """Nothing, if outputs are evicted, owned or leased; else all of them."""
    assert len({curve["panel"] for curve in curves}) == 2
    for curve in curves:
        if curve["series"] == "as it comes":
            assert curve["y"][-1] >= 7  # six outputs, and the first input
        else:
            assert curve["y"][-1] == 0


def test_docs_command(tmp_path: Path) -> None:
    """`docs` puts a run's tables, pictures and JSON beside the page, and says what they are."""
    file = tmp_path / "figures.json"
    assert run("proxies", "--quick", "--json", file).returncode == 0
    shutil.copy(DOCS / "benchmarks.md", tmp_path)
    for _ in range(2):  # the second time changes nothing
        done = run("docs", file, tmp_path)
        assert done.returncode == 0, done.stderr
        page = (tmp_path / "benchmarks.md").read_text("utf-8")
        assert page.count("A smoke run: these figures mean nothing.") == 1
        assert page.count("pickled size") == 1
        assert file.read_text() == (tmp_path / "benchmarks.json").read_text()


def test_docs_show_what_was_measured(tmp_path: Path) -> None:
    """The tables and the pictures in the docs are those of the figures beside them."""
    shutil.copy(DOCS / "benchmarks.md", tmp_path)
    done = run("docs", DOCS / "benchmarks.json", tmp_path)
    assert done.returncode == 0, done.stderr
    page = (DOCS / "benchmarks.md").read_text("utf-8")
    assert page == (tmp_path / "benchmarks.md").read_text("utf-8")
    pictures = drawn(DOCS / "pictures")
    assert pictures == drawn(tmp_path / "pictures")
    assert pictures
    assert all(f"](pictures/bench-{name}.svg)" in page for name in pictures)


def test_strict() -> None:
    """Missed targets are a failure for those who ask; a process that is quick to start misses."""
    done = run("pending", "--quick", "--strict")
    assert done.returncode == int("\nNOT REACHED: " in done.stdout)


def test_unknown() -> None:
    """A name that is no experiment is refused, with the name."""
    done = run("speed", "--quick")
    assert done.returncode == 2
    assert "speed" in done.stderr
