"""What the demo shows: a table for people, JSON for programs, progress meanwhile."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

from proxyplane.demo.compare import Comparison, Way
from proxyplane.demo.data import MEGABYTE, Dataset

_BAR_CELLS = 24
_REDRAW_SECONDS = 0.05
# Within this, two medians of a few rounds tell nothing.
_NOISE = 1.05
_SHOWN_ERRORS = 5


class Progress:
    """What is going on, on one line of a terminal; elsewhere a line for each new thing.

    Args:
        stream: Where to write; the standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._tty = _is_terminal(self._stream)
        self._label = ""
        self._drawn = 0.0

    def __call__(self, label: str, done: int, total: int) -> None:
        """Shows that `done` of `total` are done; no numbers if `total` is 0."""
        if not self._tty:
            if label != self._label:
                print(f"{label} ...", file=self._stream, flush=True)
            self._label = label
            return
        now = time.monotonic()
        if label == self._label and done != total and now - self._drawn < _REDRAW_SECONDS:
            return
        self._label, self._drawn = label, now
        bar = ""
        if total:
            cells = _BAR_CELLS * done // total
            bar = f"[{'#' * cells}{'.' * (_BAR_CELLS - cells)}] {done:,}/{total:,}  "
        self._stream.write(f"\r\x1b[K{bar}{label}")
        self._stream.flush()

    def clear(self) -> None:
        """Leaves no trace on a terminal."""
        if self._tty and self._label:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


class Paint:
    """Colours, on a terminal that wants them."""

    def __init__(self, stream: TextIO) -> None:
        self._on = _is_terminal(stream) and not os.environ.get("NO_COLOR")

    def __call__(self, text: str, style: str) -> str:
        """The text in a style: bold, dim, green or red."""
        code = {"bold": 1, "dim": 2, "green": 32, "red": 31}[style]
        return f"\x1b[{code}m{text}\x1b[0m" if self._on else text


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def show(dataset: Dataset, found: Comparison, *, workers: int, where: str) -> None:
    """Prints the table and what belongs to it."""
    paint = Paint(sys.stdout)
    count = len(dataset.items)
    print(
        f"{paint('proxyplane demo', 'bold')}: {_objects(count)}, "
        f"{dataset.nbytes / MEGABYTE:,.1f} MB, to {_plural(workers, 'worker process', 'es')}"
    )
    print(paint(f"  {dataset.origin}", "dim"))
    if dataset.left_out:
        print(paint(f"  {dataset.left_out}", "dim"))
    if found.wrong:
        _show_wrong(found.wrong, paint)
        return
    print()
    _show_table(_rows(found), paint)
    print()
    for line in _notes(found, dataset, where):
        print(f"  {line}")
    print()
    good = f"  All {found.checked:,} results match those computed in the producer."
    print(paint(good, "green"))


def _show_wrong(wrong: list[str], paint: Paint) -> None:
    print()
    print(paint(f"  WRONG: {_plural(len(wrong), 'result')}", "red"))
    for line in wrong[:_SHOWN_ERRORS]:
        print(f"  {line}")
    if len(wrong) > _SHOWN_ERRORS:
        print(f"  and {len(wrong) - _SHOWN_ERRORS:,} more")


Row = tuple[str, str, str, str, str]  # label, objects, proxies, verdict, style of the verdict


def _rows(found: Comparison) -> list[Row]:
    plain, proxied = found.objects, found.proxies
    rounds = len(plain.seconds)
    rows: list[Row] = [
        ("", "objects", "proxies", "", "dim"),
        (
            "bytes through the task queue",
            f"{plain.queue_bytes:,}",
            f"{proxied.queue_bytes:,}",
            *_verdict(plain.queue_bytes, proxied.queue_bytes, "fewer", "more", "as many"),
        ),
        (
            f"seconds, median of {rounds}" if rounds > 1 else "seconds, one round",
            f"{plain.median:.3f}",
            f"{proxied.median:.3f}",
            *_verdict(plain.median, proxied.median, "faster", "slower", "no clear difference"),
        ),
    ]
    if rounds > 1:
        rows.append(("  fastest to slowest", _span(plain), _span(proxied), "rounds in turn", "dim"))
    if plain.sender_copies is not None:
        rows.append(
            (
                "copies in memory, sender + worker",
                _copies(plain),
                _copies(proxied),
                "and 1 in the store",
                "dim",
            )
        )
    return rows


def _verdict(plain: float, proxied: float, better: str, worse: str, equal: str) -> tuple[str, str]:
    ratio = plain / proxied
    if 1 / _NOISE < ratio < _NOISE:
        return equal, "dim"
    word, style = (better, "green") if ratio > 1 else (worse, "red")
    ratio = max(ratio, 1 / ratio)
    times = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return f"{times} x {word}", style


def _span(way: Way) -> str:
    return f"{min(way.seconds):.3f} - {max(way.seconds):.3f}"


def _copies(way: Way) -> str:
    return f"{way.sender_copies or 0:.1f} + {way.worker_copies or 0:.1f}"


def _show_table(rows: list[Row], paint: Paint) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for label, plain, proxied, verdict, style in rows:
        line = f"  {label:<{widths[0]}}   {plain:>{widths[1]}}   {proxied:>{widths[2]}}"
        line = paint(line, "bold") if not label else line
        print(f"{line}   {paint(verdict, style)}" if verdict else line)


def _notes(found: Comparison, dataset: Dataset, where: str) -> list[str]:
    lines = [
        f"Proxied objects lived in {where}.",
        f"The same work in the producer alone, nothing sent: {found.direct_seconds:.3f} s.",
    ]
    if found.proxies.median > found.objects.median * _NOISE:
        size = dataset.nbytes / len(dataset.items)
        lines.append(f"Proxies lost time here, with objects of {_size(size)} on average.")
    if found.awaited:
        lines.append(
            f"Async: `await gather(*proxies)` took {found.awaited.seconds * 1e3:.1f} ms "
            f"and held the event loop for {found.awaited.stall * 1e3:.1f} ms at most."
        )
    return lines


def _objects(count: int) -> str:
    return _plural(count, "array")


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def _size(count: float) -> str:
    return f"{count / MEGABYTE:,.1f} MB" if count >= MEGABYTE / 10 else f"{count / 1000:,.1f} kB"


def as_json(dataset: Dataset, found: Comparison, *, workers: int, url: str) -> str:
    """Everything as JSON, in bytes and seconds."""
    document: dict[str, Any] = {
        "ok": not found.wrong,
        "checked": found.checked,
        "wrong": found.wrong,
        "data": {
            "origin": dataset.origin,
            "left_out": dataset.left_out,
            "objects": len(dataset.items),
            "bytes": dataset.nbytes,
        },
        "workers": workers,
        "url": url,
        "ways": {way.name: _way(way) for way in (found.objects, found.proxies)},
        "direct_seconds": found.direct_seconds,
        "awaited": vars(found.awaited) if found.awaited else None,
    }
    return json.dumps(document, indent=2)


def _way(way: Way) -> dict[str, Any]:
    return {
        "queue_bytes": way.queue_bytes,
        "median_seconds": way.median if way.seconds else None,
        "seconds": way.seconds,
        "sender_copies": way.sender_copies,
        "worker_copies": way.worker_copies,
    }
