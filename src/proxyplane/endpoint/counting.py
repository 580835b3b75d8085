"""What an endpoint counts, for its operator: requests, bytes, how long they took."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator

__all__ = ["Counts", "exposition"]


class Counts:
    """Counters since the endpoint began."""

    def __init__(self) -> None:
        self.begun = time.time()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: Counter[str] = Counter()
        self.serving_now = 0
        self.bytes_in = self.bytes_out = self.bytes_forwarded = 0

    @contextlib.contextmanager
    def serving(self, operation: str) -> Iterator[Callable[[int], None]]:
        """Counts a request; call what it gives with the status."""
        self.serving_now += 1
        since = time.perf_counter()

        def count(status: int) -> None:
            self.requests[operation, status] += 1

        try:
            yield count
        finally:
            self.serving_now -= 1
            self.seconds[operation] += time.perf_counter() - since  # type: ignore[assignment]


def exposition(counts: Counts, gauges: dict[str, tuple[str, float]]) -> str:
    """The text that Prometheus reads.

    Args:
        counts: What was counted.
        gauges: More values, by name: what it is, and how much.
    """
    lines = [
        "# HELP proxyplane_endpoint_requests_total Requests answered.",
        "# TYPE proxyplane_endpoint_requests_total counter",
    ]
    for (operation, status), number in sorted(counts.requests.items()):
        labels = f'operation="{operation}",status="{status}"'
        lines.append(f"proxyplane_endpoint_requests_total{{{labels}}} {number}")
    lines += [
        "# HELP proxyplane_endpoint_request_seconds_total Seconds until an answer began.",
        "# TYPE proxyplane_endpoint_request_seconds_total counter",
    ]
    for operation, seconds in sorted(counts.seconds.items()):
        lines.append(
            f'proxyplane_endpoint_request_seconds_total{{operation="{operation}"}} {seconds:.6f}'
        )
    for name, what, value in (
        ("received_bytes_total", "Bytes of objects stored.", counts.bytes_in),
        ("sent_bytes_total", "Bytes of objects read.", counts.bytes_out),
        ("forwarded_bytes_total", "Bytes of objects that went through.", counts.bytes_forwarded),
    ):
        lines += [
            f"# HELP proxyplane_endpoint_{name} {what}",
            f"# TYPE proxyplane_endpoint_{name} counter",
            f"proxyplane_endpoint_{name} {value}",
        ]
    for name, (what, level) in {
        "serving": ("Requests under way.", float(counts.serving_now)),
        "start_seconds": ("When it began, in seconds since 1970.", counts.begun),
        **gauges,
    }.items():
        lines += [
            f"# HELP proxyplane_endpoint_{name} {what}",
            f"# TYPE proxyplane_endpoint_{name} gauge",
            f"proxyplane_endpoint_{name} {level:g}",
        ]
    return "\n".join(lines) + "\n"
