"""The command line: what it accepts, what it prints, how it ends."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import proxyplane
from proxyplane import cli

SECONDS = 50


def run(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "proxyplane", *args],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        **kwargs,
    )


def test_version():
    """`--version` prints the version of the package."""
    done = run("--version")
    assert (0, f"proxyplane {proxyplane.__version__}\n") == (done.returncode, done.stdout)


def test_entry_point():
    """The installed command is `proxyplane.cli:main`."""
    try:
        importlib.metadata.version("proxyplane")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed, only on the path")
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="proxyplane")
    assert cli.main is entry.load()


def test_no_command():
    """Without a command it says what is missing, and exits with 2."""
    done = run()
    assert 2 == done.returncode
    assert "COMMAND" in done.stderr


def test_help_lists_commands():
    """The help names each command and what it does."""
    done = run("--help")
    assert 0 == done.returncode
    assert "demo " in done.stdout


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["demo", "--workers", "0"], "'0' is not a whole number of at least 1"),
        (["demo", "--rounds", "many"], "'many' is not a whole number of at least 1"),
        (["demo", "--size", "-5"], "'-5' is not a whole number of at least 1"),
        (["demo", "--frobnicate"], "--frobnicate"),
    ],
)
def test_wrong_arguments(args, told):
    """A wrong argument is named, with exit code 2."""
    done = run(*args)
    assert 2 == done.returncode
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_light_import():
    """The parser needs neither numpy nor redis nor the demo."""
    code = (
        "import sys, proxyplane.cli; proxyplane.cli.make_parser();"
        "print([m for m in ('numpy', 'redis', 'proxyplane.demo') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert "[]\n" == done.stdout


def test_closed_pipe(tmp_path):
    """A reader that stops reading, as `head` does, is no error worth a traceback."""
    (tmp_path / "file").write_bytes(b"abc" * 1000)
    process = subprocess.Popen(
        [sys.executable, "-m", "proxyplane", "demo", str(tmp_path), "--rounds=1", "--workers=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    with process:
        stderr = process.stderr.read()
    assert cli.EXIT_PIPE == process.returncode
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr
