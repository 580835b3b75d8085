"""Objects that are put under one name again and again."""

from __future__ import annotations

LARGE = 100_000
"""Bytes of an object that is not in its record."""


def body(number: int, size: int = LARGE) -> bytes:
    """An object that is not like any other."""
    return bytes([number % 256]) * size
