"""Leases in seconds: what is one, and how long the longest is."""

from __future__ import annotations

import math

MOST_SECONDS = 10 * 365 * 86_400
"""Ten years. Some file systems cannot write down a time after 2038."""


def require_ttl(ttl: object) -> float:
    """The seconds of a lease.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above 0, or above `MOST_SECONDS`.
    """
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise TypeError(f"a ttl is a number of seconds, not {ttl!r}")
    if not 0 < ttl <= MOST_SECONDS:  # also not a number
        raise ValueError(
            f"a ttl is more than 0 seconds and at most {MOST_SECONDS} (ten years), not {ttl!r}"
        )
    return float(ttl)


def milliseconds(ttl: float) -> int:
    """A lease in whole milliseconds, at least one.

    Raises:
        As `require_ttl`.
    """
    return math.ceil(require_ttl(ttl) * 1000)
