"""The faults that the tests go through, and how often: in the ordinary run, and in a soak.

Each row is a fault, named in ``@pytest.mark.row("...")`` by every test that brings it about. The
soak (``nox -s soak``, or PROXYPLANE_SOAK=1) is the same tests, each fault many times. Both that and
``nox -s faults`` end with the table of the rows (`plugins.rows`), which docs/faults.md shows.
``pytest -m row --collect-only`` tells which test covers which row.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

SOAK = os.environ.get("PROXYPLANE_SOAK", "0") not in ("", "0")

MIXED_SECONDS = 1_800
"""How long the mixed work of the soak takes; as many operations as can be done in that time."""

WAITERS = 5_000
"""Those who wait when the medium is lost."""


class Row(NamedTuple):
    """One fault.

    Attributes:
        ordinary: How often it is brought about in the ordinary run, by each test.
        soak: How often in the soak.
        unit: What is counted, for one; its first word gets an "s" for more (`counted`).
        looks: Which of "lost", "wrong", "hung" and "leaked" its tests look for.
        anchor: What others promise or do there.
    """

    ordinary: int
    soak: int
    unit: str
    looks: str
    anchor: str


# What others do: seen with redis-py 8.1 and ProxyStore 1.1, or said in their documentation.
_POLLS = "ProxyStore asks once a second; redis-py's pub/sub promises at most once"
_CANCELS = "redis-py gives up one connection for each cancelled command (372 of 389 seen)"
_FORKS = "zarr and fsspec: the child waits for ever; Dask and Ray start new interpreters"
_TORN = "ProxyStore marks a file when it is whole; what a dead writer left stays"
_CHECKS = "ProxyStore's pickles carry no checksum"
_LOST = "Ray and Dask run the task again if they can; else Ray: ObjectLostError"

ROWS: dict[str, Row] = {
    "server killed": Row(
        1,
        10,
        "restart under 5,000 waiters",
        "lost hung",
        "redis-py subscribes again in silence: 16 of 16 messages lost",
    ),
    "server killed in a transfer": Row(
        1,
        10,
        "kill",
        "lost wrong hung",
        "redis-py may send a command twice (10 retries)",
    ),
    "server killed, its log kept": Row(
        2,
        30,
        "kill under puts",
        "lost wrong hung",
        _LOST,
    ),
    "server stopped": Row(
        1,
        5,
        "SIGSTOP under 5,000 waiters, for 6 s in the soak",
        "lost wrong hung",
        "redis-py 8.1: TimeoutError after 5 s",
    ),
    "reset at each byte": Row(
        1,
        1,
        "reset of a handshake, a request or a reply",
        "lost wrong hung leaked",
        "redis-py repeats whatever it sent, also what it must not",
    ),
    "half-open link": Row(
        1,
        5,
        "link",
        "lost wrong hung",
        "redis-py 8.1: TimeoutError after 5 s",
    ),
    "slow link": Row(
        1,
        3,
        "link",
        "lost wrong hung",
        "redis-py's socket_timeout is for each step, as ours",
    ),
    "maxmemory": Row(
        1,
        3,
        "filling under one of 8 policies",
        "lost wrong hung",
        "redis-py tells nothing: 7 of 20 acknowledged values dropped under allkeys-lru",
    ),
    "cluster node killed": Row(1, 3, "kill", "lost wrong hung", _LOST),
    "subscription killed": Row(20, 500, "kill", "lost hung", _POLLS),
    "output buffer overrun": Row(
        1,
        20,
        "overrun under 2,000 waiters",
        "lost hung",
        "redis-py: 44 of 200 messages came, and no error",
    ),
    "connection silently dead": Row(1, 1, "connection", "lost hung", _POLLS),
    "set racing wait": Row(
        2_000,
        50_000,
        "race",
        "lost hung",
        "a look before subscribing with redis-py lost 4 of 60; ProxyStore asks once a second",
    ),
    "set racing set": Row(
        300,
        5_000,
        "race",
        "wrong",
        "ProxyStore's second result replaces the first",
    ),
    "set racing evict": Row(
        300,
        10_000,
        "race",
        "wrong hung",
        "–",
    ),
    "setter killed": Row(
        1, 20, "kill", "lost hung", "Ray: OwnerDiedError; ProxyStore asks once a second, on and on"
    ),
    "writer killed": Row(6, 500, "SIGKILL under puts of files", "wrong leaked", _TORN),
    "disk full": Row(
        1,
        10,
        "filling",
        "wrong leaked",
        "proxystore#704: 2.1 GB of a larger object were stored, without an error",
    ),
    "input/output error": Row(
        1, 10, "error injected", "wrong leaked", "ProxyStore: a bare OSError, and the file stays"
    ),
    "bytes damaged": Row(
        1,
        1,
        "change at any byte: one flipped, cut off there, more added",
        "wrong",
        _CHECKS,
    ),
    "hostile pickle": Row(
        1,
        1,
        "way in",
        "wrong",
        "Ray, Dask and ProxyStore run it: trust the network",
    ),
    "directory replaced": Row(
        1,
        20,
        "replacement under 5,000 waiters",
        "lost hung",
        "ProxyStore asks once a second",
    ),
    "directory gone": Row(
        1,
        10,
        "removal by rm or umount",
        "hung",
        "ProxyStore asks once a second",
    ),
    "inotify overflow": Row(
        1,
        20,
        "overflow under 5,000 waiters",
        "lost hung",
        "inotify itself delivers 16,385 of 27,000 events and one mark",
    ),
    "inotify limits": Row(1, 5, "limit met", "lost hung", "ProxyStore asks once a second"),
    "fork while fetching": Row(15, 300, "fork", "hung wrong", _FORKS),
    "fork while waiting": Row(2, 50, "fork", "hung wrong", _FORKS),
    "fork in any state": Row(1, 5, "fork", "hung wrong leaked", _FORKS),
    "exit while waiting": Row(1, 10, "exit", "hung", "Dask's and Ray's clients are closed at exit"),
    "exit in any state": Row(1, 5, "exit", "hung", "Dask's and Ray's clients are closed at exit"),
    "interrupt while waiting": Row(
        1,
        20,
        "interrupt",
        "hung leaked",
        "fsspec returns None from what was cancelled",
    ),
    "loop closed under a client": Row(
        1,
        20,
        "loop",
        "hung leaked",
        "redis-py: the second asyncio.run on one client fails",
    ),
    "store closed under waiters": Row(
        1,
        20,
        "close under up to 5,000 waiters",
        "hung leaked",
        "–",
    ),
    "loops and threads": Row(
        1,
        5,
        "run of up to 50 threads with a loop each",
        "wrong hung leaked",
        "a client of redis-py belongs to one loop",
    ),
    "peer link cut": Row(
        1,
        10,
        "cut under 1,000 waiters",
        "lost hung",
        "–",
    ),
    "peer link half open": Row(1, 5, "link", "hung", "–"),
    "peer of a wrong identity": Row(
        1,
        3,
        "attempt to get in",
        "wrong",
        "–",
    ),
    "peer killed": Row(
        1,
        10,
        "kill under puts",
        "lost wrong hung",
        _LOST,
    ),
    "cancellation at every await": Row(
        100,
        5_000,
        "cancellation, at random and after each await in turn",
        "lost wrong hung leaked",
        _CANCELS,
    ),
    "cancellation at random": Row(
        400,
        50_000,
        "command cancelled over a slow link",
        "wrong hung leaked",
        _CANCELS,
    ),
    "mixed work": Row(
        720,
        500_000,
        "operation on six media at once, for half an hour in the soak",
        "lost wrong hung leaked",
        "–",
    ),
}


def counted(row: str, count: int) -> str:
    """A count of what a row counts, in words."""
    first, rest = re.match(r"(\w+)(.*)", ROWS[row].unit).groups()
    return f"{count:,} {first}{'' if count == 1 else 's'}{rest}"


def times(row: str) -> int:
    """How often to bring a fault about."""
    return ROWS[row].soak if SOAK else ROWS[row].ordinary


class Tally:
    """What the test that runs now tells of itself; emptied before each.

    Attributes:
        tries: How often it brought its fault about; None for `times` of its row.
        recovered: Seconds from the end of each fault to when all was well again.
        notes: Short remarks for the table.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets what the last test told."""
        self.tries: int | None = None
        self.recovered: list[float] = []
        self.notes: list[str] = []


tally = Tally()


@contextlib.contextmanager
def recovering() -> Iterator[None]:
    """Measures the block, which begins when a fault ends and ends when all is well again."""
    began = time.perf_counter()
    yield
    tally.recovered.append(time.perf_counter() - began)


defended_or_not = pytest.mark.parametrize("defended", [True, False], ids=["", "undefended"])
"""With the defence that a test is about, and with it switched off: then the fault must show."""
