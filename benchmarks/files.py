"""Objects as files, and small ones in the memory of a process, beside the bare system calls."""

from __future__ import annotations

from benchmarks._large import carry, stall, weigh
from benchmarks._media import Limits, directories, memory
from benchmarks._report import Report
from benchmarks._small import call

LIMITS: Limits = {
    "usable": (0.20, 0.20),
    "read": (0.25, 0.25),
    "open": (0.01, None),
    "get 1 KB": (1.0, None),
    "stall": (None, 5.0),
    "put": (0.1, 0.1),
    "get": (1.1, 1.1),
}


def run(report: Report) -> None:
    """Runs it on the disk of temporary files, and in memory if there is such a file system."""
    media = directories({**LIMITS, "put 1 KB": (1.5, None)}, LIMITS)
    for medium in media:
        carry(report, medium)
        call(report, medium)
    call(report, memory({"get 1 KB": (1.0, None)}))
    for part in (stall, weigh):
        part(report, media[0])
