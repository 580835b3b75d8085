"""Figures: rows with their ratios and targets, a table as they come, and JSON in the end."""

from __future__ import annotations

import dataclasses
import json
import operator
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from benchmarks._machine import Busy, describe_machine

Op = Literal["<=", ">=", "=="]
_COMPARED = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much to run.

    Attributes:
        quick: A smoke run: every path is taken once, the figures mean nothing.
        full: The pipelining experiment in its published size.
        rounds: How often all variants of an experiment take their turn.
        servers: Paths of the Redis servers; what needs only one takes the first.
    """

    quick: bool = False
    full: bool = False
    rounds: int = 5
    servers: tuple[str, ...] = ()

    @property
    def few_rounds(self) -> int:
        """The rounds of what takes long, with hundreds of samples in each."""
        return min(self.rounds, 3)


@dataclasses.dataclass(frozen=True)
class Target:
    """A limit for the median of a row's ratios, or of its values."""

    op: Op
    limit: float
    of: Literal["ratio", "value"]

    def __str__(self) -> str:
        return f"{self.op} {self.limit:g}{'x' * (self.of == 'ratio')}"


@dataclasses.dataclass(frozen=True)
class Point:
    """Where in the pictures a figure stands: on a curve, or a bar if it has no `x`."""

    plot: str
    panel: str
    series: str
    x: float | None = None


@dataclasses.dataclass
class Row:
    """One figure, taken once in each round.

    Attributes:
        experiment: Where it belongs.
        what: What was measured.
        unit: Its unit.
        values: One value for each round.
        ratios: The same by a base that was measured in the same round; empty for none.
        base: What that base is.
        target: What is asked of it, if anything.
        point: Where it stands in the pictures, if it does.
    """

    experiment: str
    what: str
    unit: str
    values: Sequence[float]
    ratios: Sequence[float] = ()
    base: str = ""
    target: Target | None = None
    point: Point | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached by the median; None without a target."""
        if self.target is None:
            return None
        found = statistics.median(self.ratios if self.target.of == "ratio" else self.values)
        return _COMPARED[self.target.op](found, self.target.limit)


class Report:
    """The rows, printed as they come."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.machine = describe_machine(settings.servers)
        self.rows: list[Row] = []
        self.curves: list[dict[str, Any]] = []
        self._printed = ""
        self._busy = Busy()

    def begin(self) -> None:
        """Prints on what it runs."""
        for name, value in self.machine.items():
            print(f"{name + ':':18} {value}")
        print(f"{'rounds:':18} {self.settings.rounds}; each figure is the median of the rounds'")
        if self.settings.quick:
            print("a quick run: it shows that the experiments work; its figures mean nothing")

    def add(
        self,
        experiment: str,
        what: str,
        unit: str,
        values: Sequence[float],
        *,
        by: Sequence[float] | None = None,
        base: str = "",
        target: tuple[Op, float] | None = None,
        point: Point | None = None,
    ) -> None:
        """Adds a figure, with a target for its ratio if there is one, else for itself."""
        ratios = [one / other for one, other in zip(values, by, strict=True)] if by else []
        limit = target and Target(*target, "ratio" if by else "value")
        row = Row(experiment, what, unit, [*map(float, values)], ratios, base, limit, point)
        self.rows.append(row)
        if self._printed != experiment:
            self._printed = experiment
            print(f"\n{experiment}")
            print(f"  {'':48} {'median':>9} {'lowest - highest':>19}  {'ratio':22} target")
        print(_line(row), flush=True)

    def add_curve(self, place: Point, xs: Sequence[float], ys: Sequence[float]) -> None:
        """Adds a curve for the pictures that was taken once, and is not in the table."""
        self.curves.append({**dataclasses.asdict(place), "x": [*xs], "y": [*ys]})

    def note(self, text: str) -> None:
        """Prints a remark below the rows."""
        print(f"  {text}", flush=True)

    def end(self) -> bool:
        """Prints what was not reached; returns whether everything was."""
        print(f"\nof the cores, others used {self._busy.others()} meanwhile")
        asked = [row for row in self.rows if row.target is not None]
        missed = [row for row in asked if not row.reached]
        print(f"{len(asked) - len(missed)} of {len(asked)} targets reached")
        for row in missed:
            print(f"NOT REACHED: {row.experiment}: {row.what}: {_verdict(row)}")
        return not missed

    def as_json(self) -> str:
        """Everything so far, a figure on each line."""
        self.machine["used by others"] = self._busy.others()
        rows = [{**dataclasses.asdict(row), "reached": row.reached} for row in self.rows]
        settings = dataclasses.asdict(self.settings)
        del settings["servers"]  # paths; the machine's description has their names
        parts = [
            f'"machine": {json.dumps(self.machine, indent=1)}',
            f'"settings": {json.dumps(settings)}',
            *(
                f'"{name}": [\n' + ",\n".join(json.dumps(_rounded(one)) for one in found) + "\n]"
                for name, found in (("rows", rows), ("curves", self.curves))
            ),
        ]
        return "{" + ",\n".join(parts) + "}\n"


def _rounded(found: Any) -> Any:
    """The same with as many digits as the figures deserve."""
    if isinstance(found, float):
        return float(f"{found:.5g}")
    if isinstance(found, dict):
        return {name: _rounded(one) for name, one in found.items()}
    return [*map(_rounded, found)] if isinstance(found, list | tuple) else found


def _line(row: Row) -> str:
    low, high = min(row.values), max(row.values)
    spread = f"{short(low)} - {short(high)}"
    ratio = ""
    if row.ratios:
        low, high = min(row.ratios), max(row.ratios)
        ratio = f"{statistics.median(row.ratios):.2f} ({low:.2f} - {high:.2f})"
    value = f"{short(statistics.median(row.values))} {row.unit}"
    return f"  {row.what:48} {value:>9} {spread:>19}  {ratio:22} {_verdict(row)}".rstrip()


def _verdict(row: Row) -> str:
    if row.target is None:
        return row.base and f"by {row.base}"
    verdict = "reached" if row.reached else "NOT REACHED"
    return f"{row.target}{f' {row.base}' if row.base else ''}: {verdict}"


def short(value: float) -> str:
    """Three digits of a figure, or all before its point."""
    if abs(value) < 0.0005:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
