"""File systems of their own, for tests that run as root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(path: Path, *options: str):
    """Makes the directory and mounts a file system on it; `options` are those of mount."""
    path.mkdir()
    done = subprocess.run(["mount", *options, str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], capture_output=True)


def need_root() -> None:
    """Skips the test when it does not run as root."""
    if os.geteuid():
        pytest.skip("only root can mount")
