"""Each promise of docs/guarantees.md names a test that there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from support.soak import ROWS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
TABLE = ROOT / "docs" / "faults.md"
TEST = re.compile(r"`(tests/[\w/]+\.py::[\w:]+)`")


def test_every_promise_has_its_test():
    """A row without a test, or with one that is not there, is no promise."""
    tables = [
        line
        for line in PAGE.read_text("utf-8").splitlines()
        if line.startswith("|") and not re.match(r"\| (---|promise|what happens)", line)
    ]
    assert len(tables) > 40
    assert [] == [line for line in tables if not TEST.search(line)]
    named = sorted({name for line in tables for name in TEST.findall(line)})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *named],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=55,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_table_has_every_row():
    """The table of the last run has a figure for each fault, and none that was lost or hung."""
    lines = [line for line in TABLE.read_text("utf-8").splitlines() if line.startswith("| ")]
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines[2:]}
    assert set(ROWS) == set(cells)
    for name, row in cells.items():
        assert re.match(r"[\d,]+ ", row[1]), name
        assert {cell.strip() for cell in row[2:6]} <= {"0", ""}, name
