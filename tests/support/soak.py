"""The faults that the tests go through, and how often: in the ordinary run, and in a soak.

Each row is a fault, named in ``@pytest.mark.row("...")`` by every test that brings it about. The
soak (``nox -s soak``, or PROXYPLANE_SOAK=1) is the same tests, each fault many times.
``pytest -m row --collect-only`` tells which test covers which row.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest

SOAK = os.environ.get("PROXYPLANE_SOAK", "0") not in ("", "0")

WAITERS = 5_000
"""Those who wait when the medium is lost."""


class Row(NamedTuple):
    """One fault.

    Attributes:
        ordinary: How often it is brought about in the ordinary run, by each test.
        soak: How often in the soak.
        unit: What is counted.
    """

    ordinary: int
    soak: int
    unit: str


ROWS: dict[str, Row] = {
    "server killed": Row(1, 10, "restarts under 5,000 waiters"),
    "subscription killed": Row(20, 500, "kills"),
    "output buffer overrun": Row(1, 20, "overruns under 2,000 waiters"),
    "connection silently dead": Row(1, 1, "connection"),
    "set racing wait": Row(2_000, 50_000, "races"),
    "set racing set": Row(300, 5_000, "races"),
    "set racing evict": Row(300, 10_000, "races"),
    "setter killed": Row(1, 20, "kills"),
    "directory replaced": Row(1, 20, "replacements under 5,000 waiters"),
    "inotify overflow": Row(1, 20, "overflows under 5,000 waiters"),
    "fork while fetching": Row(15, 300, "forks"),
    "fork while waiting": Row(2, 50, "forks"),
    "exit while waiting": Row(1, 10, "exits"),
    "interrupt while waiting": Row(1, 20, "interrupts"),
    "peer link cut": Row(1, 10, "cuts under 1,000 waiters"),
    "peer link half open": Row(1, 5, "times"),
    "peer killed": Row(1, 10, "kills under puts"),
    "cancellation at every await": Row(100, 5_000, "at random, after each in turn"),
}


def times(row: str) -> int:
    """How often to bring a fault about."""
    return ROWS[row].soak if SOAK else ROWS[row].ordinary


defended_or_not = pytest.mark.parametrize("defended", [True, False], ids=["", "undefended"])
"""With the defence that a test is about, and with it switched off: then the fault must show."""
