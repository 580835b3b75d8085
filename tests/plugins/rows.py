"""Which test covers which row of `support.soak`, and the table of what the rows came to.

``--fault-table=FILE`` also writes the table into a Markdown file, between its two markers. With it,
or in a soak, a test of a row that is skipped while run as root has failed.
"""

from __future__ import annotations

import os
import platform
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from support.soak import ROWS, SOAK, counted, tally, times

SLOWEST = "slowest, seconds"
"""The property in which a test records how long the slowest of what it tried took."""
COLUMNS = ("lost", "wrong", "hung", "leaked")
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
HEAD = ("fault", "tries", *COLUMNS, "recovers p50 / p99, s", "without the defence", "others")


def pytest_addoption(parser):
    parser.addoption("--fault-table", metavar="FILE", help="print the table, and write it to FILE")


def pytest_configure(config):
    config.addinivalue_line("markers", "row(name): brings about a fault of support/soak.py")


def _wanted(config) -> bool:
    return SOAK or bool(config.getoption("--fault-table"))


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("row"):
            (name,) = mark.args
            if name not in ROWS:
                raise pytest.UsageError(f"{item.nodeid}: there is no row {name!r}")
            item.user_properties.append(("row", name))
            item.user_properties.append(("defended", _is_defended(item)))
    if SOAK:
        # What takes as long as all the rest is not to begin when the rest has ended.
        items.sort(key=_seconds, reverse=True)


def _seconds(item) -> float:
    limit = item.get_closest_marker("timeout")
    return limit.args[0] if limit and limit.args else 0


def _is_defended(item) -> bool:
    if item.get_closest_marker("undefended"):
        return False
    return not hasattr(item, "callspec") or item.callspec.params.get("defended", True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    tally.clear()
    try:
        return (yield)
    finally:
        told = {"tries": tally.tries, "recovered": tally.recovered[:], "notes": tally.notes[:]}
        item.user_properties.append(("tally", told))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and _wanted(item.config) and item.get_closest_marker("row"):
        if os.geteuid() == 0:
            report.outcome = "failed"
            report.longrepr = f"as root nothing of a fault is skipped: {report.longrepr}"
    return report


def pytest_report_collectionfinish(config, items):
    if not config.option.collectonly:
        return []
    count = Counter(
        (mark.args[0], _is_defended(item)) for item in items for mark in item.iter_markers("row")
    )
    return [
        f"row: {name}: {count[name, True]} tests, {count[name, False]} without the defence"
        for name in ROWS
        if count[name, True] or count[name, False]
    ]


class Line:
    """What the tests of one row came to."""

    def __init__(self) -> None:
        self.tries = 0
        self.failed: list[str] = []
        self.undefended = 0
        self.recovered: list[float] = []
        self.notes: list[str] = []
        self.seconds = 0.0

    def add(self, name, told, report, outcome):
        self.seconds += report.duration
        if outcome not in ("passed", "skipped"):
            self.failed.append(report.nodeid)
            return
        if not told["defended"]:
            self.undefended += 1
            return
        counted = told.get("tally") or {"tries": None, "recovered": [], "notes": []}
        self.tries += times(name) if counted["tries"] is None else counted["tries"]
        self.recovered += counted["recovered"]
        self.notes += counted["notes"]

    def cells(self, name):
        row = ROWS[name]
        looks = row.looks.split()
        # A test that finds one lost, wrong, hung or leaked fails, and says which of them.
        found = [("0" if not self.failed else "see below") if c in looks else "" for c in COLUMNS]
        fail = "fails, as it must" if self.undefended == 1 else "fail, as they must"
        without = f"{self.undefended} {fail}" if self.undefended else "–"
        notes = "; ".join(dict.fromkeys(self.notes))
        return (
            name,
            counted(name, self.tries),
            *found,
            _percentiles(self.recovered),
            "FAILED" if self.failed else without,
            f"{row.anchor}{f'. Here: {notes}' if notes else ''}",
        )


def _percentiles(seconds) -> str:
    if not seconds:
        return ""
    ordered = sorted(seconds)
    p50, p99 = (ordered[min(int(len(ordered) * part), len(ordered) - 1)] for part in (0.5, 0.99))
    return f"{p50:.2g} / {p99:.2g}"


def pytest_terminal_summary(terminalreporter, config):
    if not _wanted(config):
        return
    lines = defaultdict(Line)
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            told = dict(report.user_properties)
            if "row" in told and (report.when == "call" or outcome != "passed"):
                lines[told["row"]].add(told["row"], told, report, outcome)
    if not lines:
        return
    table = [HEAD, *(lines[name].cells(name) for name in ROWS if name in lines)]
    terminalreporter.section("faults")
    widths = [max(len(row[at]) for row in table) for at in range(len(HEAD))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())
    for name, line in lines.items():
        for failed in line.failed:
            terminalreporter.write_line(f"{name}: {failed} FAILED")
    if path := config.getoption("--fault-table"):
        _write(Path(path), table, lines, config)


def _write(path: Path, table, lines, config) -> None:
    """Puts the table between the markers of a page; what failed is not published."""
    before, begin, rest = path.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise pytest.UsageError(f"{path} lacks {BEGIN} and {END}")
    if any(line.failed for line in lines.values()) or set(lines) != set(ROWS):
        return
    rows = [f"| {' | '.join(row)} |" for row in table]
    rows.insert(1, f"|{' --- |' * len(HEAD)}")
    how = "soak" if SOAK else "short run"
    seconds = sum(line.seconds for line in lines.values())
    about = (
        f"{how.capitalize()}, {seconds:,.0f} s of tests on {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}."
    )
    text = "\n".join([begin, about, "", *rows, end])
    path.write_text(before + text + after, "utf-8")
