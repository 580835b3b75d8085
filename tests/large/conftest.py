"""Tests that move gigabytes: ``nox -s large``. Elsewhere they are not even collected."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

GIB = 1 << 30

if not os.environ.get("PROXYPLANE_TEST_LARGE"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def need() -> Callable[..., None]:
    """Skips the test, and says why, when there is less free memory or disk than it needs."""

    def check(*, memory: int = 0, disk: int = 0, path: Path | None = None) -> None:
        if memory > (free := free_memory()):
            pytest.skip(f"{memory / GIB:.1f} GiB of memory needed, {free / GIB:.1f} available")
        if path is not None and disk > (free := shutil.disk_usage(path).free):
            pytest.skip(f"{disk / GIB:.1f} GiB of disk needed in {path}, {free / GIB:.1f} free")

    return check


def free_memory() -> int:
    """Bytes that programs can still have without swapping."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        line = next(line for line in lines if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024
