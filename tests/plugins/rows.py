"""Which test covers which row of `support.soak`, and what the rows came to."""

from __future__ import annotations

from collections import Counter

import pytest

from support.soak import ROWS, SOAK, times

SLOWEST = "slowest, seconds"
"""The property in which a test records how long the slowest of what it tried took."""


def pytest_configure(config):
    config.addinivalue_line("markers", "row(name): brings about a fault of support/soak.py")


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("row"):
            (name,) = mark.args
            if name not in ROWS:
                raise pytest.UsageError(f"{item.nodeid}: there is no row {name!r}")
            item.user_properties.append(("row", name))
            item.user_properties.append(("defended", _is_defended(item)))


def _is_defended(item) -> bool:
    return not hasattr(item, "callspec") or item.callspec.params.get("defended", True)


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


def pytest_terminal_summary(terminalreporter):
    if not SOAK:
        return
    lines = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            told = dict(report.user_properties)
            if "row" in told and (report.when == "call" or outcome == "error"):
                line = lines.setdefault(told["row"], Counter())
                line["tests"] += 1
                line["undefended"] += not told["defended"]
                line["failed"] += outcome != "passed"
                line["seconds"] += report.duration
                line[SLOWEST] = max(line[SLOWEST], told.get(SLOWEST, 0))
    if not lines:
        return
    terminalreporter.section("faults")
    head = f"{'fault':28} {'of each test':>42} {'tests':>6} {'failed':>6} {'seconds':>8}"
    terminalreporter.write_line(head)
    for name in ROWS:
        if name in lines:
            line = lines[name]
            size = f"{times(name):,} {ROWS[name].unit}"
            terminalreporter.write_line(
                f"{name:28} {size:>42} {line['tests']:6} {line['failed']:6} {line['seconds']:8.1f}"
                + (f"  slowest {line[SLOWEST]:.2f} s" if line[SLOWEST] else "")
            )
