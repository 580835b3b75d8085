"""Examples as processes of their own, as their readers start them.

The two fixtures are taken over by the modules that use them, by name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 50


@pytest.fixture
def environment(tmp_path):
    """A home of its own for the objects, and no blocking touch of a running loop."""
    changed = {
        "PROXYPLANE_DIR": str(tmp_path / "objects"),
        "PROXYPLANE_ON_BLOCKING": "raise",
        "PYTHONUNBUFFERED": "1",
    }
    return {k: v for k, v in os.environ.items() if not k.startswith("TABLES_")} | changed


def objects(environment):
    """The names of what lies in the directory of the objects; not of empty rooms for its work."""
    with contextlib.suppress(FileNotFoundError):
        folder = environment["PROXYPLANE_DIR"]
        return sorted(
            name for name in os.listdir(folder) if not _is_empty(os.path.join(folder, name))
        )
    return []


def _is_empty(path):
    return os.path.isdir(path) and not any(files for _, _, files in os.walk(path))


def start(environment, *command):
    """Starts an example in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        # A test run in the background of a shell ignores it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@contextlib.contextmanager
def ending(process):
    """Leaves no process of the example behind, whatever the test finds."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture(params=["file", "redis"])
def store_options(request):
    """Command-line options that choose the store."""
    return [] if request.param == "file" else ["--store", request.getfixturevalue("redis_url")]
