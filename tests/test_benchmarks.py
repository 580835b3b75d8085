"""The benchmarks run, from end to end; what they measure is not asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ["wakeup", "pending", "together", "overlap", "pipeline", "files", "bulk", "proxies"]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="they read /proc and use inotify"),
    pytest.mark.timeout(180),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_quick(experiment: str, tmp_path: Path) -> None:
    """Each experiment ends, prints its rows and writes them, with targets for ours alone."""
    file = tmp_path / "figures.json"
    done = run(experiment, "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(file.read_text())
    assert "Valkey" in found["machine"]["server"]
    assert found["settings"]["quick"] is True
    rows = found["rows"]
    assert any(row["target"] for row in rows)
    assert not any(row["target"] for row in rows if "ProxyStore" in row["what"])
    for row in rows:
        assert row["what"] in done.stdout
        assert len(row["values"]) >= 1
        assert (row["reached"] is None) == (row["target"] is None)
    missed = sum(row["reached"] is False for row in rows)
    assert done.stdout.count("\nNOT REACHED: ") == missed


def test_strict() -> None:
    """Missed targets are a failure for those who ask; a process that is quick to start misses."""
    done = run("pending", "--quick", "--strict")
    assert done.returncode == int("\nNOT REACHED: " in done.stdout)


def test_unknown() -> None:
    """A name that is no experiment is refused, with the name."""
    done = run("speed", "--quick")
    assert done.returncode == 2
    assert "speed" in done.stderr
