"""The figures in the docs: tables between markers, written from the JSON of a run."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks._report import short
from benchmarks.plots import draw_all

Document = dict[str, Any]
Row = dict[str, Any]

_WAYS = ("proxyplane", "proxyplane, awaited", "proxyplane, awaited, uvloop")
_BARE = ("bare sockets", "bare system calls")
_OF_A_WAY = re.compile(r"^(?P<what>.*), (?P<way>proxyplane(?:, awaited(?:, uvloop)?)?)$")
_QUIET = 5
"""Percent of the cores that others may use for figures to be relied on."""


def refresh(page: str, document: Document) -> str:
    """The page with its blocks ``<!-- name -->`` … ``<!-- end -->`` written anew.

    Raises:
        ValueError: A block is not in the page, or not ended.
    """
    for name, write in (("machine", machine), ("transfers", transfers), ("others", others)):
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"the page has no block {begin!r}")
        page = f"{before}{begin}{write(document)}\n{end}{after}"
    return page


def machine(document: Document) -> str:
    """On what the figures were taken, and how far they can be relied on."""
    about = document["machine"]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in about.items())]
    rounds = document["settings"]["rounds"]
    lines.append(f"| rounds | {rounds}; of what takes long at most 3 |")
    used = about.get("used by others", "an unknown share")
    if document["settings"]["quick"]:
        lines += ["", "**A smoke run: these figures mean nothing.**"]
    elif not used.rstrip("%").isdigit() or int(used.rstrip("%")) > _QUIET:
        lines += ["", f"**Others used {used} of the cores meanwhile: a preview, not the figures.**"]
    return "\n".join(lines)


def transfers(document: Document) -> str:
    """Targets of what was measured in several ways of ours: a line for each thing."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    bare: dict[tuple[str, str], Row] = {}
    for row in document["rows"]:
        match = _OF_A_WAY.match(row["what"])
        what, _, way = row["what"].rpartition(", ")
        if way in _BARE:
            bare[row["experiment"], what] = row
        if match and row["target"]:
            found.setdefault((row["experiment"], match["what"]), {})[match["way"]] = row
    lines = [
        "| | target | blocking | awaited | awaited, uvloop | the bare medium |",
        "|---|---|---|---|---|---|",
    ]
    for (experiment, what), ways in found.items():
        target = _target(next(iter(ways.values())))
        rows = [*map(ways.get, _WAYS), bare.get((experiment, what))]
        cells = [_figure(row) if row else "" for row in rows]
        lines.append(f"| {experiment}: {what} | {target} | {' | '.join(cells)} |")
    return "\n".join(lines)


def others(document: Document) -> str:
    """All other targets."""
    lines = ["| | target | |", "|---|---|---|"]
    for row in document["rows"]:
        if row["target"] and not _OF_A_WAY.match(row["what"]):
            lines.append(
                f"| {row['experiment']}: {row['what']} | {_target(row)} | {_figure(row)} |"
            )
    asked = [row for row in document["rows"] if row["target"]]
    reached = sum(row["reached"] for row in asked)
    return "\n".join([*lines, "", f"{reached} of {len(asked)} targets are reached."])


def _target(row: Row) -> str:
    limit, of = row["target"]["limit"], row["target"]["of"]
    sign = {"<=": "≤", ">=": "≥", "==": "="}[row["target"]["op"]]
    unit = f" x {row['base']}" if of == "ratio" else f" {row['unit']}"
    return f"{sign} {limit:g}{unit}".rstrip()


def _figure(row: Row) -> str:
    """The ratio, or the figure, with its spread; bold where it is not what was asked for."""
    values = row["ratios"] or row["values"]
    low, middle, high = map(short, (min(values), statistics.median(values), max(values)))
    text = f"**{middle}**" if row["reached"] is False else middle
    return text if low == high else f"{text} ({low} to {high})"


def write_docs(text: str, folder: Path) -> None:
    """Puts the JSON of a run and its pictures into the docs, and refreshes their page."""
    document = json.loads(text)
    page = folder / "benchmarks.md"
    page.write_text(refresh(page.read_text("utf-8"), document), encoding="utf-8")
    (folder / "benchmarks.json").write_text(text, encoding="utf-8")
    draw_all(document, folder / "pictures")
