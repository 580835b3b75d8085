"""The pictures of a run, drawn from its JSON: ``python -m benchmarks plot FILE``."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._figures import size_name
from benchmarks._svg import Axis, Mark, Number, Panel, Picture

Document = dict[str, Any]

_STYLES = {
    "proxyplane": "c0",
    "proxyplane, awaited": "c0 d1",
    "proxyplane, awaited, uvloop": "c0 d2",
    "ProxyStore": "c1",
    "redis-py": "c2",
    "redis-py, uvloop": "c2 d2",
    "owned": "c0",
    "evicted by hand": "c2 d1",
    "leased": "c3",
    "as it comes": "c1",
}


def style_of(series: str) -> str:
    """One colour for a library, dashes for its ways; what has none is the medium itself."""
    return _STYLES.get(series, "c3")


def milliseconds(value: float) -> str:
    """As people say it."""
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms" if value >= 1 else f"{value * 1000:.3g} us"


def microseconds(value: float) -> str:
    """As people say it."""
    return milliseconds(value / 1000)


def megabytes(value: float) -> str:
    """As people say it."""
    return size_name(value * 1e6) if value else "0"


class Plot(NamedTuple):
    """A picture: its title, what is in it, its axes."""

    title: str
    about: str
    y: Number
    log: bool
    x: Number | None = None
    x_log: bool = True


PLOTS = {
    "latency": Plot(
        "Latency by size",
        "of a put, and of a get with one full read of the array; the shade is the spread of rounds",
        milliseconds,
        True,
        size_name,
    ),
    "throughput": Plot(
        "Throughput by size",
        "of the same calls, one after another: size by time",
        lambda value: f"{size_name(value * 1e6)}/s",
        True,
        size_name,
    ),
    "memory": Plot(
        "Peak memory for an array of 100 MB",
        "in a fresh process, over what it had before, by the size of the array",
        lambda value: f"{value:.2f} x",
        False,
    ),
    "stall": Plot(
        "Longest stall of an event loop that awaits 100 MB",
        "ProxyStore has blocking calls only: a loop stands still for the whole of them",
        milliseconds,
        False,
    ),
    "growth": Plot(
        "Latency by the number of stored objects",
        "of 128 bytes each; the shade is the spread of rounds",
        microseconds,
        True,
        lambda value: f"{value:,.0f}",
    ),
    "stages": Plot(
        "What a pipeline of 200 stages holds in its medium",
        "1 MB between two stages; along the stages, and in the end",
        megabytes,
        False,
        lambda value: f"{value:.0f}",
        False,
    ),
}
_COLUMNS = 4
_LEAST = 100_000
"""Below this many bytes a throughput is a latency."""


def panels_of(document: Document, plot: str) -> list[Panel]:
    """The panels of a picture, from rows and curves."""
    found: dict[str, Panel] = {}

    def marks(point: dict[str, Any]) -> list[Mark]:
        panel = found.setdefault(point["panel"], Panel(point["panel"]))
        return panel.series.setdefault(point["series"], [])

    for row in document["rows"]:
        point, values = row["point"], row["values"]
        if point and point["plot"] == plot:
            middle = statistics.median(values)
            marks(point).append(Mark(point["x"] or 0, middle, min(values), max(values)))
    for curve in document["curves"]:
        if curve["plot"] == plot:
            pairs = zip(curve["x"], curve["y"], strict=True)
            marks(curve).extend(Mark(x, y, y, y) for x, y in pairs)
    return list(found.values())


def throughput(panels: list[Panel]) -> list[Panel]:
    """MB/s of what was measured in milliseconds."""

    def turned(mark: Mark) -> Mark:
        size = mark.x / 1e3
        return Mark(mark.x, size / mark.y, size / mark.high, size / mark.low)

    found = []
    for panel in panels:
        series = {
            name: [turned(mark) for mark in marks if mark.x >= _LEAST]
            for name, marks in panel.series.items()
        }
        found.append(Panel(panel.title, series))
    return found


def in_rows(panels: list[Panel]) -> tuple[list[Panel], int]:
    """Sorted so that a row has one operation and a column one medium; and the columns."""
    operations = list(dict.fromkeys(panel.title.split(",")[0] for panel in panels))
    media = list(dict.fromkeys(panel.title.partition(", ")[2] for panel in panels))
    if not all(media):
        return panels, min(_COLUMNS, len(panels))

    def place(panel: Panel) -> tuple[int, int]:
        operation, _, medium = panel.title.partition(", ")
        return operations.index(operation), media.index(medium)

    return sorted(panels, key=place), len(media)


def draw(document: Document, name: str) -> str:
    """One picture; empty if nothing of it was measured."""
    plot = PLOTS[name]
    source = "latency" if name == "throughput" else name
    panels, columns = in_rows(panels_of(document, source))
    if not panels:
        return ""
    if name == "throughput":
        panels = throughput(panels)
    picture = Picture(plot.title, plot.about, style_of)
    marks = [mark for panel in panels for series in panel.series.values() for mark in series]
    y = Axis.over([value for mark in marks for value in (mark.low, mark.high)], plot.log, plot.y)
    if plot.x is None:
        picture.bars(panels, columns, y)
        return picture.svg()
    xs = [mark.x for mark in marks]
    picture.legend(list(dict.fromkeys(one for panel in panels for one in panel.series)))
    if plot.x_log:
        picture.curves(panels, columns, Axis(min(xs), max(*xs, 10 * min(xs)), True, plot.x), y)
    else:
        picture.curves(panels, columns, Axis(0, max(xs), False, plot.x), y)
    return picture.svg()


def draw_all(document: Document, folder: Path) -> list[Path]:
    """Writes every picture that the document has figures for; gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in PLOTS:
        if svg := draw(document, name):
            path = folder / f"bench-{name}.svg"
            path.write_text(svg, encoding="utf-8")
            found.append(path)
    return found
