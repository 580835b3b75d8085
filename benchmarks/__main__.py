"""Runs the experiments and prints their table: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
from pathlib import Path

from benchmarks.harness import REFERENCE, Report, Settings, has_reference

EXPERIMENTS = ("wakeup", "pending", "together", "overlap", "pipeline", "files", "bulk", "proxies")


def main() -> int:
    """Runs what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--quick", action="store_true", help="a smoke run, in seconds")
    parser.add_argument("--full", action="store_true", help="the pipeline in its published size")
    parser.add_argument("--rounds", type=int, help="rounds of each experiment (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--strict", action="store_true", help="fail if a target is not reached")
    args = parser.parse_args()
    if unknown := set(args.experiments) - {*EXPERIMENTS}:
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}")
    rounds = args.rounds or (1 if args.quick else 5)
    report = Report(Settings(args.quick, args.full, rounds))
    logging.getLogger("proxyplane").setLevel(logging.WARNING)
    report.begin()
    if not has_reference():
        print(f"ProxyStore {REFERENCE} is not installed, so its figures are left out")
    for name in args.experiments or EXPERIMENTS:
        importlib.import_module(f"benchmarks.{name}").run(report)
    reached = report.end()
    if args.json:
        args.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    return 0 if reached or not args.strict else 1


if __name__ == "__main__":
    sys.exit(main())
