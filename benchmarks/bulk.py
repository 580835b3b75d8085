"""Objects in Redis servers, beside ProxyStore, redis-py and bare sockets."""

from __future__ import annotations

from benchmarks._large import carry, share, stall, weigh
from benchmarks._media import Limits, servers
from benchmarks._report import Report
from benchmarks._small import call, call_many

LIMITS: Limits = {
    "usable": (0.25, 0.25),
    "read": (0.27, 0.27),
    "get 1 KB": (0.85, 0.35),
    "1 MB": (0.4, 0.4),
    "together": (None, 0.35),
    "stall": (None, 5.0),
    "share": (2.0, 2.0),
    "put": (0.1, 0.1),
    "get": (1.1, 1.1),
}


def run(report: Report) -> None:
    """Runs it on each server, a new one for each part."""
    for server in servers(report, LIMITS):
        for part in (carry, call, call_many, stall, share, weigh):
            part(report, server)
