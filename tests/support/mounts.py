"""File systems of their own, for tests that run as root."""

from __future__ import annotations

import contextlib
import os
import shutil
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


@contextlib.contextmanager
def small_disk(path: Path, size: int):
    """Makes the directory and mounts an ext4 file system of `size` bytes on it."""
    need_root()
    if not shutil.which("mkfs.ext4"):
        pytest.skip("no mkfs.ext4")
    image = path.with_suffix(".image")
    image.touch()
    os.truncate(image, size)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mounted(path, "-o", "loop", str(image)):
        yield path
