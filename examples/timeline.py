"""What workers did when, as an SVG picture that suits light pages and dark ones.

Each worker has a lane for fetching and one for computing. It is used by another example:

    python examples/overlap.py overlap.svg --link 125
"""

from __future__ import annotations

from html import escape
from typing import NamedTuple

FETCH, COMPUTE = LANES = ("fetch", "compute")

# -- what there is to draw ----------------------------------------------------------------------


class Span(NamedTuple):
    """What a worker did, and from when to when by a clock that all processes of a machine share."""

    worker: int
    lane: str
    start: float
    end: float


class Run:
    """What the workers did from the first fetch to the last answer.

    Args:
        title: What it is called.
        remark: What is special about it.
        spans: All that was taken down.
    """

    def __init__(self, title: str, remark: str, spans: list[Span]) -> None:
        self.title = title
        self.remark = remark
        self.spans = sorted(spans, key=lambda span: span.start)
        self.began = self.spans[0].start
        self.seconds = max(span.end for span in spans) - self.began
        # In the order of their work, for process ids say nothing.
        self.workers = list(dict.fromkeys(span.worker for span in self.spans))

    def lane(self, lane: str, worker: int) -> list[Span]:
        """What one worker did in one lane."""
        return [span for span in self.spans if span.lane == lane and span.worker == worker]

    def total(self, lane: str) -> float:
        """Seconds that all workers spent in one lane, together."""
        return sum(span.end - span.start for span in self.spans if span.lane == lane)

    def hidden(self) -> float:
        """The part of the time of fetches, from 0 to 1, in which the same worker computed."""
        both = sum(
            max(0.0, min(fetch.end, compute.end) - max(fetch.start, compute.start))
            for worker in self.workers
            for fetch in self.lane(FETCH, worker)
            for compute in self.lane(COMPUTE, worker)
        )
        return both / self.total(FETCH)


# -- the picture --------------------------------------------------------------------------------

LIGHT = """
  .page { fill: #fff; stroke: #d1d9e0; } text { fill: #59636e; } .title { fill: #1f2328; }
  .track { fill: #f4f6f8; } .grid { stroke: #e1e6eb; } .done { stroke: #59636e; }
  .fetch { fill: #2f81c9; } .compute { fill: #e8973a; }"""
DARK = """
  .page { fill: #0d1117; stroke: #3d444d; } text { fill: #9198a1; } .title { fill: #f0f6fc; }
  .track { fill: #171d25; } .grid { stroke: #2a313b; } .done { stroke: #9198a1; }
  .fetch { fill: #4c9fe6; } .compute { fill: #dd9440; }"""
STYLE = f"""
  text {{ font: 13px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; }}
  .title {{ font-size: 16px; font-weight: 600; }} .small {{ font-size: 11.5px; }}
  .end {{ text-anchor: end; }} .middle {{ text-anchor: middle; }}
  .done {{ stroke-dasharray: 3 3; }}{LIGHT}
  @media (prefers-color-scheme: dark) {{{DARK}
  }}
"""

WIDTH, MARGIN, LEFT, RIGHT = 960, 24, 148, 24  # pixels, as all that follow
HEAD, BAR, BETWEEN_LANES, BETWEEN_WORKERS, BETWEEN_RUNS, AXIS = 34, 18, 3, 13, 30, 25


def draw(runs: list[Run], caption: str) -> str:
    """An SVG picture of runs, one above another on the same scale."""
    seconds = max(run.seconds for run in runs)
    scale = (WIDTH - LEFT - RIGHT) / seconds
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9) if seconds / s <= 9)
    ticks = [(LEFT + i * step * scale, f"{i * step:g} s") for i in range(int(seconds / step) + 1)]

    parts: list[str] = []
    y = float(MARGIN)
    for run in runs:
        y = _draw_run(parts, run, scale, [x for x, _ in ticks], y) + BETWEEN_RUNS
    y += AXIS - BETWEEN_RUNS
    parts += [_text(x, y, label, "small middle") for x, label in ticks]
    y += AXIS + 4
    parts.append(_text(MARGIN, y, caption, "small"))
    height = y + MARGIN - 8

    about = "; ".join(f"{run.title}: {_figures(run)}" for run in runs)
    size = f'width="{WIDTH}" height="{height:g}"'
    edge = f'x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:g}" rx="6"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" {size}>',
        f"<title>{escape(about)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" {edge}/>',
    ]
    return "\n".join([*head, *parts, "</svg>\n"])


def _draw_run(parts: list[str], run: Run, scale: float, ticks: list[float], y: float) -> float:
    """Adds one run below `y`, and returns where it ends."""
    parts.append(
        f'<text x="{MARGIN}" y="{y + 14}"><tspan class="title">{escape(run.title)}</tspan>'
        f'<tspan dx="12">{escape(run.remark)}</tspan></text>'
    )
    parts.append(_text(WIDTH - RIGHT, y + 14, _figures(run), "title end"))
    y += HEAD
    worker_height = 2 * BAR + BETWEEN_LANES
    bottom = y + len(run.workers) * (worker_height + BETWEEN_WORKERS) - BETWEEN_WORKERS
    parts += [_line(x, y, bottom, "grid") for x in ticks]
    top = y
    for number, worker in enumerate(run.workers, 1):
        parts.append(_text(MARGIN, y + worker_height / 2 + 4.5, f"worker {number}"))
        for lane in LANES:
            parts.append(_text(LEFT - 10, y + BAR / 2 + 4, lane, "small end"))
            parts.append(_bar(LEFT, y, WIDTH - LEFT - RIGHT, "track"))
            for span in run.lane(lane, worker):
                x = LEFT + (span.start - run.began) * scale
                parts.append(_bar(x, y, (span.end - span.start) * scale, lane))
            y += BAR + BETWEEN_LANES
        y += BETWEEN_WORKERS - BETWEEN_LANES
    parts.append(_line(LEFT + run.seconds * scale, top, bottom, "done"))
    return bottom


def _figures(run: Run) -> str:
    return f"{run.seconds:.2f} s \u00b7 {run.hidden():.0%} of fetching hidden"


def _line(x: float, top: float, bottom: float, style: str) -> str:
    return f'<path class="{style}" d="M{x:.1f} {top - 6:g}V{bottom + 6:g}"/>'


def _bar(x: float, y: float, width: float, style: str) -> str:
    return (
        f'<rect class="{style}" x="{x:.2f}" y="{y:g}" width="{width:.2f}" height="{BAR}" rx="2.5"/>'
    )


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
