"""Objects that are put under one name again and again."""

from __future__ import annotations

import errno
import os
from typing import Any

from proxyplane.connectors.file import swap as file_swap

LARGE = 100_000
"""Bytes of an object that is not in its record."""


def body(number: int, size: int = LARGE) -> bytes:
    """An object that is not like any other."""
    return bytes([number % 256]) * size


def no_exchange(monkeypatch: Any) -> None:
    """As on a file system that cannot exchange two names, like many network file systems."""

    def refuse(one: str, other: str) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(file_swap, "_exchange", refuse)
    # There is nobody who could have just begun to.
    monkeypatch.setattr(file_swap, "UNSEEN_SECONDS", 0.0)
