"""Every fault of the table is brought about by some test, and shown to matter by another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.soak import ROWS, counted

TESTS = Path(__file__).parent


def test_every_row_is_covered():
    """Each row has tests in the ordinary run, and one in which the defence is switched off."""
    files = [str(path) for path in TESTS.rglob("test_*.py") if 'mark.row("' in path.read_text()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "row", "--collect-only", "-q", *files],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        timeout=55,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = {}
    for line in done.stdout.splitlines():
        if line.startswith("row: "):
            _, name, counts = line.split(": ")
            tests, without = (int(count.split()[0]) for count in counts.split(", "))
            told[name] = tests > 0, without > 0
    assert told == dict.fromkeys(ROWS, (True, True))


def test_counts_read_well():
    """One of a thing is told in the singular, more of it in the plural."""
    assert counted("peer killed", 1) == "1 kill under puts"
    assert counted("peer killed", 2_000) == "2,000 kills under puts"
