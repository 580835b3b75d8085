"""What the tests of the runtime share: scripts in processes of their own, each with a deadline."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

import proxyplane
from support.soak import SOAK

HERE = pathlib.Path(__file__).parent
# Seconds; a script that works takes one or two, unless it tries the same for long.
DEADLINE = 300 if SOAK else 25

PREAMBLE = """\
import faulthandler, sys
faulthandler.enable()  # at the deadline it gets a SIGABRT
URL = {url!r}
from scripts import *
"""


class Script:
    """A running script.

    Attributes:
        process: The process.
    """

    def __init__(self, path: pathlib.Path, env: dict[str, str]) -> None:
        self._path = path
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,  # so that a hang can be ended with all of its children
        )

    def expect(self, line: str) -> None:
        """Waits for a line on its standard output."""
        got = self.process.stdout.readline()
        if got.strip() != line:
            pytest.fail(f"expected {line!r}, got {got!r}\n{self.process.communicate(timeout=30)}")

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self, *, status: int = 0, stderr: str | None = "") -> str:
        """Waits for its end, checks how it ended, and returns its standard output.

        Args:
            status: The expected exit status.
            stderr: The expected standard error; None for anything.
        """
        try:
            out, err = self.process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGABRT)
            out, err = self.process.communicate(timeout=DEADLINE)
            pytest.fail(f"it hangs\n{out}\n{err}")
        assert self.process.returncode == status, f"status {self.process.returncode}\n{out}\n{err}"
        if stderr is not None:
            assert err == stderr, err
        return out


@pytest.fixture
def start(tmp_path):
    """Starts a script: ``start(source, url=None, env={})``; it sees ``scripts`` and ``URL``."""
    scripts = []

    def start(source: str, url: str | None = None, env: dict[str, str] | None = None) -> Script:
        path = tmp_path / f"script{len(scripts)}.py"
        path.write_text(PREAMBLE.format(url=url) + textwrap.dedent(source))
        package = pathlib.Path(proxyplane.__path__[0]).parent
        paths = os.pathsep.join([str(HERE), str(package), str(tmp_path)])
        environment = {**os.environ, "PYTHONPATH": paths, **(env or {})}
        environment.pop("PYTHONASYNCIODEBUG", None)
        script = Script(path, environment)
        scripts.append(script)
        return script

    yield start
    for script in scripts:
        if script.process.poll() is None:
            os.killpg(script.process.pid, signal.SIGKILL)
        script.process.communicate()


@pytest.fixture
def run(start):
    """Runs a script to its end; what it must print is up to the test."""

    def run(source, url=None, env=None, *, status=0, stderr=""):
        return start(source, url, env).end(status=status, stderr=stderr)

    return run


@pytest.fixture(params=["file", "redis"])
def url(request, tmp_path):
    """A connector that reaches other processes."""
    if request.param == "file":
        return (tmp_path / "objects").as_uri()
    return request.getfixturevalue("redis_url")
