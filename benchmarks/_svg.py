"""Charts as SVG that suits light pages and dark ones: curves with their spread, and bars."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from html import escape

LIGHT = """
  .page { fill: #fff; stroke: #d1d9e0; } text { fill: #59636e; } .title { fill: #1f2328; }
  .grid { stroke: #e1e6eb; } .c0 { color: #2f81c9; } .c1 { color: #d9822b; }
  .c2 { color: #3f9a5a; } .c3 { color: #7d8590; }"""
DARK = """
  .page { fill: #0d1117; stroke: #3d444d; } text { fill: #9198a1; } .title { fill: #f0f6fc; }
  .grid { stroke: #2a313b; } .c0 { color: #4c9fe6; } .c1 { color: #e8973a; }
  .c2 { color: #57b870; } .c3 { color: #9198a1; }"""
STYLE = f"""
  text {{ font: 11.5px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; }}
  .title {{ font-size: 14px; font-weight: 600; }}
  .end {{ text-anchor: end; }} .middle {{ text-anchor: middle; }}
  .curve {{ fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }}
  .dot, .bar {{ fill: currentColor; }} .spread {{ fill: currentColor; opacity: .16; }}
  .d1 {{ stroke-dasharray: 6 3; }} .d2 {{ stroke-dasharray: 1.5 3; }}
  .whisker {{ stroke: currentColor; stroke-width: 1.2; }}{LIGHT}
  @media (prefers-color-scheme: dark) {{{DARK}
  }}
"""

WIDTH, MARGIN, AXIS, BETWEEN = 960, 24, 50, 18  # pixels, as all that follow
HEIGHT, HEAD, FOOT, BAR, EACH = 170, 24, 30, 8, 27

Number = Callable[[float], str]
Styles = Callable[[str], str]
"""The classes of a series: c0 to c3 for its colour, d1 and d2 for dashes."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """A figure and its spread; `x` counts only for a curve."""

    x: float
    y: float
    low: float
    high: float


@dataclasses.dataclass
class Panel:
    """One of the charts of a picture: a curve, or a bar, for each series."""

    title: str
    series: dict[str, list[Mark]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Axis:
    """From figures to pixels.

    Attributes:
        low: The figure at the beginning.
        high: The figure at the end.
        log: Whether each power of ten has the same room.
        number: How a figure is written.
    """

    low: float
    high: float
    log: bool
    number: Number

    @classmethod
    def over(cls, values: Sequence[float], log: bool, number: Number) -> Axis:
        """An axis that begins at zero, or at a power of ten below the values."""
        most = max([*values, 1e-9])
        if not log:
            return cls(0.0, most * 1.06, log, number)
        least = 10.0 ** math.floor(math.log10(max(min(values), 1e-9)) + 1e-9)
        return cls(least, max(most * 1.3, least * 10), log, number)

    def place(self, value: float) -> float:
        """Where a figure lies, from 0 to 1."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        value = max(value, self.low)
        return math.log10(value / self.low) / math.log10(self.high / self.low)

    def ticks(self, most: int) -> list[float]:
        """Round figures, a few."""
        if self.log:
            first, last = math.log10(self.low), math.log10(self.high)
            powers = range(round(first), math.floor(last + 1e-9) + 1)
            step = math.ceil(len(powers) / most)
            return [10.0**power for power in powers[::step]]
        step = 10.0 ** math.floor(math.log10(self.high))
        step = next(
            step * part for part in (0.1, 0.2, 0.5, 1, 2) if self.high / step / part <= most
        )
        return [step * i for i in range(int(self.high / step) + 1)]


class Picture:
    """An SVG picture that grows downwards."""

    def __init__(self, title: str, about: str, styles: Styles) -> None:
        self.parts: list[str] = []
        self.title = title
        self.styles = styles
        self.text(MARGIN, MARGIN + 14, title, "title")
        self.text(MARGIN, MARGIN + 32, about)
        self.bottom = MARGIN + 48.0

    def text(self, x: float, y: float, text: str, style: str = "") -> None:
        """A line of text."""
        self.parts.append(f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>')

    def path(self, style: str, points: Sequence[tuple[float, float]], close: str = "") -> None:
        """Straight lines."""
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path class="{style}" d="M{line}{close}"/>')

    def legend(self, names: Sequence[str]) -> None:
        """Which line is whose."""
        x = float(MARGIN)
        for name in names:
            if x + 36 + 6.3 * len(name) > WIDTH - MARGIN:
                x, self.bottom = float(MARGIN), self.bottom + 18
            y = self.bottom + 4
            self.path(f"curve {self.styles(name)}", [(x, y), (x + 22, y)])
            self.text(x + 28, y + 4, name)
            x += 46 + 6.1 * len(name)
        self.bottom += 26

    def curves(self, panels: Sequence[Panel], columns: int, x: Axis, y: Axis) -> None:
        """Panels with curves, in rows, on the same axes."""
        width = (WIDTH - 2 * MARGIN - AXIS - BETWEEN * (columns - 1)) / columns
        for start in range(0, len(panels), columns):
            for column, panel in enumerate(panels[start : start + columns]):
                left = MARGIN + AXIS + column * (width + BETWEEN)
                self._frame(panel.title, left, width, x, y, labels=column == 0)
                for name, marks in panel.series.items():
                    self._curve(name, marks, left, width, x, y)
            self.bottom += HEAD + HEIGHT + FOOT

    def _frame(
        self, title: str, left: float, width: float, x: Axis, y: Axis, *, labels: bool
    ) -> None:
        top = self.bottom + HEAD
        base = top + HEIGHT
        self.text(left, top - 9, title, "title")
        for value in y.ticks(6):
            at = base - y.place(value) * HEIGHT
            self.path("grid", [(left, at), (left + width, at)])
            if labels:
                self.text(left - 7, at + 4, y.number(value), "end")
        for value in x.ticks(max(2, int(width / 55))):
            at = left + x.place(value) * width
            self.path("grid", [(at, top), (at, base)])
            self.text(at, base + 16, x.number(value), "middle")

    def _curve(
        self, name: str, marks: Sequence[Mark], left: float, width: float, x: Axis, y: Axis
    ) -> None:
        base = self.bottom + HEAD + HEIGHT
        style = self.styles(name)
        across = [left + x.place(mark.x) * width for mark in marks]

        def line(values: Sequence[float]) -> list[tuple[float, float]]:
            heights = [base - y.place(value) * HEIGHT for value in values]
            return list(zip(across, heights, strict=True))

        if any(mark.low != mark.high for mark in marks):
            edge = [*line([m.low for m in marks]), *line([m.high for m in marks])[::-1]]
            self.path(f"spread {style}", edge, "Z")
        middle = line([mark.y for mark in marks])
        self.path(f"curve {style}", middle)
        if len(middle) < 20:
            for at, height in middle:
                self.parts.append(
                    f'<circle class="dot {style}" cx="{at:.1f}" cy="{height:.1f}" r="2.2"/>'
                )

    def bars(self, panels: Sequence[Panel], columns: int, y: Axis) -> None:
        """Panels with bars to the right, in rows, on the same axis."""
        width = (WIDTH - 2 * MARGIN - BETWEEN * (columns - 1)) / columns
        for start in range(0, len(panels), columns):
            row = panels[start : start + columns]
            for column, panel in enumerate(row):
                left = MARGIN + column * (width + BETWEEN)
                top = self.bottom + HEAD
                self.text(left, top - 9, panel.title, "title")
                for i, (name, (mark, *_)) in enumerate(panel.series.items()):
                    self._bar(name, mark, left, top + i * EACH, width, y)
            self.bottom += HEAD + EACH * max(len(panel.series) for panel in row) + 14

    def _bar(self, name: str, mark: Mark, left: float, top: float, width: float, y: Axis) -> None:
        style = self.styles(name)
        self.text(left, top + 11, name)
        self.text(left + width, top + 11, y.number(mark.y), "end")
        long = max(1.0, y.place(mark.y) * width)
        self.parts.append(
            f'<rect class="bar {style}" x="{left:.1f}" y="{top + 15:.1f}" width="{long:.1f}" '
            f'height="{BAR}" rx="2"/>'
        )
        if mark.low != mark.high:
            low, high = (left + y.place(value) * width for value in (mark.low, mark.high))
            middle = top + 15 + BAR / 2
            self.path(f"whisker {style}", [(low, middle), (high, middle)])

    def svg(self) -> str:
        """The whole."""
        height = self.bottom + MARGIN - 14
        edge = f'x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:g}" rx="6"'
        head = [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
                f'width="{WIDTH}" height="{height:g}">'
            ),
            f"<title>{escape(self.title)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" {edge}/>',
        ]
        return "\n".join([*head, *self.parts, "</svg>\n"])
