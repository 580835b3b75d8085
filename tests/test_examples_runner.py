"""The task runner and its timeline, run as their readers run them: real processes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import math
import os
import re
import signal
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import psutil
import pytest
from sklearn.datasets import load_sample_images

from proxyplane import FileConnector, Store
from proxyplane.connectors.file.leases import is_leased
from support import examples
from support.examples import EXAMPLES, ending, objects, start

# Six processes that import numpy and scipy take their time on a busy machine.
SECONDS = 240
pytestmark = pytest.mark.timeout(SECONDS + 60)

environment = examples.environment
store_options = examples.store_options


# -- the task runner ----------------------------------------------------------------------------


@pytest.fixture
def task_runner(monkeypatch):
    """The example as a module, for its functions."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "task_runner", raising=False)
    return importlib.import_module("task_runner")


@pytest.fixture
def timeline(monkeypatch):
    """What draws, as a module."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "timeline", raising=False)
    return importlib.import_module("timeline")


class Unreadable:
    """What can be pickled and not be unpickled."""

    def __reduce__(self):
        return int, ("no number",)


def workers_of(process):
    """The worker processes of a running example that have started their work."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children()
        return [c for c in children if "resource_tracker" not in " ".join(c.cmdline())]
    return []


def wait_for(condition):
    """Waits until something is so."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestTaskRunner:
    def test_table(self, environment, store_options, task_runner):
        """Its figures are those of a direct computation, and the pipe saw references only."""
        command = (EXAMPLES / "task_runner.py", "--scales", "5", "--workers", "2", *store_options)
        with ending(start(environment, *command)) as process:
            stdout, stderr = process.communicate(timeout=SECONDS)
        assert (0, "") == (process.returncode, stderr)

        lines = stdout.splitlines()
        printed = np.loadtxt(io.StringIO("\n".join(lines[1:5]).replace("-", " ")))
        images = [image / 255 for image in load_sample_images().images]
        sigmas = [0.5 * 2 ** (i / 3) for i in range(5)]
        assert printed[:, 0] == pytest.approx(sigmas[:-1], abs=0.006)
        for column, image in enumerate(images):
            blurs = [task_runner.blur(image, sigma) for sigma in sigmas]
            direct = [
                task_runner.strength(task_runner.edges(fine, coarse))
                for fine, coarse in zip(blurs, blurs[1:], strict=False)
            ]
            assert printed[:, 2 + column] == pytest.approx(direct, abs=0.000006)

        tasks, piped, stored = re.match(r"\s*(\d+)\s+([\d.]+) kB\s+([\d.]+) MB", lines[-1]).groups()
        blurring, differing = 2 * 5, 2 * 4
        assert blurring + 2 * differing == int(tasks)
        # A blur reads and writes an image; a difference reads two and writes a grey one, of a
        # third of the size, which the last task of each pair reads.
        moved = images[0].nbytes * (blurring * 2 + differing * (2 + 1 / 3 + 1 / 3))
        assert moved / 1e6 == pytest.approx(float(stored), abs=0.1)
        assert float(piped) * 1e3 < 600 * int(tasks)
        assert objects(environment) == []

    async def test_errors_and_answers_stay_with_their_tasks(self, task_runner):
        """What fails, in a function or on arrival, fails its own call, whatever came ahead."""
        numbers = [Unreadable(), 4.0, -1.0, 9.0, Unreadable(), 16.0, 25.0]
        async with Store("errors", FileConnector()) as store:
            async with task_runner.start_runner(store, 1) as runner:
                answers = await asyncio.gather(
                    *(runner.value(math.sqrt, number) for number in numbers),
                    return_exceptions=True,
                )
                # A worker that had nothing to do goes on.
                assert await runner.value(math.sqrt, 36.0) == 6.0
        assert isinstance(answers[2], ValueError)
        assert "no number" in str(answers[0])
        unreadable, negative = str(answers[0]), str(answers[2])
        assert [unreadable, 2.0, negative, 3.0, unreadable, 4.0, 5.0] == [
            str(answer) if isinstance(answer, ValueError) else answer for answer in answers
        ]

    @pytest.mark.parametrize("moment", ["starting", "working"])
    def test_interrupted(self, environment, moment):
        """Ctrl-C leaves one sentence, no process and no object."""
        command = (EXAMPLES / "task_runner.py", "--scales", "40", "--workers", "2")
        with ending(start(environment, *command)) as process:
            enough = {"starting": lambda: True, "working": lambda: len(objects(environment)) > 6}
            wait_for(lambda: len(workers_of(process)) == 2 and enough[moment]())
            workers = workers_of(process)
            os.killpg(process.pid, signal.SIGINT)
            stdout, stderr = process.communicate(timeout=SECONDS)
        assert (1, "") == (process.returncode, stdout)
        assert "interrupted: the workers have ended and the store is clean\n" == stderr
        assert not any(worker.is_running() for worker in workers)
        assert objects(environment) == []

    def test_worker_killed(self, environment):
        """A worker that is killed ends the run with an error, and leaves nothing but for a minute.

        For it may have been killed when it had stored something, and had not told of it.
        """
        command = (EXAMPLES / "task_runner.py", "--scales", "40", "--workers", "2")
        with ending(start(environment, *command)) as process:
            wait_for(lambda: len(objects(environment)) > 6)
            workers = workers_of(process)
            workers[0].kill()
            _, stderr = process.communicate(timeout=SECONDS)
        assert process.returncode == 1
        assert "BrokenProcessPool" in stderr
        assert not any(worker.is_running() for worker in workers)
        assert after_a_minute(environment) == []

    def test_runner_killed(self, environment):
        """Nobody is left then who could remove anything; and nothing is left for long."""
        command = (EXAMPLES / "task_runner.py", "--scales", "40", "--workers", "2")
        with ending(start(environment, *command)) as process:
            wait_for(lambda: len(objects(environment)) > 6)
            workers = workers_of(process)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            wait_for(lambda: not any(worker.is_running() for worker in workers))
        assert after_a_minute(environment) == []


def after_a_minute(environment):
    """What is left of the objects when leases have ended, and somebody sweeps."""
    connector = FileConnector(environment["PROXYPLANE_DIR"])
    for name in objects(environment):
        path = os.path.join(environment["PROXYPLANE_DIR"], name)
        if is_leased(os.lstat(path)):
            assert os.lstat(path).st_mtime < time.time() + 120
            os.utime(path, (0, 0))
    asyncio.run(connector.sweep())
    # What is not published is none, and may take longer.
    return [name for name in objects(environment) if not name.startswith(".")]


# -- the picture --------------------------------------------------------------------------------


def drawn(path):
    """What a picture tells: its title, and from each run its bars as (worker, lane, from, to)."""
    svg = "{http://www.w3.org/2000/svg}"
    root = ET.parse(path).getroot()
    runs = []
    for part in root.iter():
        text = "".join(part.itertext())
        if part.tag == f"{svg}text" and (part.get("class") or "").startswith("title"):
            runs.append([])
        elif part.tag == f"{svg}text" and text.startswith("worker "):
            worker = text
        elif part.tag == f"{svg}rect" and part.get("class") in {"fetch", "compute"}:
            start, width = float(part.get("x")), float(part.get("width"))
            runs[-1].append((worker, part.get("class"), start, start + width))
    return root.find(f"{svg}title").text, runs


def hides(bars):
    """Whether in any worker a fetch is beside computing; 0.1 pixels are less than a millisecond."""
    return any(
        min(to, other_to) - max(start, other_start) > 0.1
        for worker, lane, start, to in bars
        for other_worker, other_lane, other_start, other_to in bars
        if (worker, lane, other_lane) == (other_worker, "fetch", "compute")
    )


class TestOverlap:
    def test_picture(self, environment, store_options, tmp_path):
        """Each object is fetched once; only with overlap, a fetch is beside computing."""
        picture = tmp_path / "overlap.svg"
        options = ("--frames", "6", "--workers", "2", "--link", "125", *store_options)
        command = (EXAMPLES / "overlap.py", picture, *options)
        with ending(start(environment, *command)) as process:
            stdout, stderr = process.communicate(timeout=SECONDS)
        assert (0, "") == (process.returncode, stderr)
        assert objects(environment) == []

        title, runs = drawn(picture)
        assert ["Without overlap", "With overlap"] == [t.split(":")[0] for t in title.split("; ")]
        printed = re.findall(r"(\w+ overlap) +([\d.]+ s) .* (\d+%)$", stdout, re.MULTILINE)
        assert title == "; ".join(
            f"{name}: {took} \u00b7 {hidden} of fetching hidden" for name, took, hidden in printed
        )
        for bars in runs:
            assert {"fetch": 6, "compute": 6} == Counter(lane for _, lane, _, _ in bars)
            assert {"worker 1", "worker 2"} == {worker for worker, *_ in bars}
        assert [False, True] == [hides(bars) for bars in runs]
        assert printed[0][2] == "0%" != printed[1][2]

    def test_hidden(self, timeline):
        """What is hidden is the part of all fetches in which the same worker computed."""
        spans = [
            timeline.Span(1, "fetch", 10.0, 11.0),
            timeline.Span(1, "compute", 11.0, 14.0),
            timeline.Span(1, "fetch", 13.0, 15.0),  # half of it, for one of 4 seconds
            timeline.Span(1, "compute", 15.0, 16.0),
            timeline.Span(2, "fetch", 12.0, 13.0),  # only the other worker computes
        ]
        run = timeline.Run("", "", spans)
        assert (6.0, 0.25, [1, 2]) == (run.seconds, run.hidden(), run.workers)
        assert (4.0, 4.0) == (run.total("fetch"), run.total("compute"))

    def test_committed(self):
        """The picture in the docs is one of the example's, and the docs tell its figures."""
        docs = EXAMPLES.parent / "docs"
        title, runs = drawn(docs / "pictures" / "overlap.svg")
        assert [False, True] == [hides(bars) for bars in runs]
        page = (docs / "overlap.md").read_text("utf-8")
        took = re.findall(r"([\d.]+ s) \u00b7 (\d+%)", title)
        assert f"{took[0][0]} when each input is fetched as it is used" in page
        assert f"{took[1][0]} when it arrives while the task before it computes" in page
        assert f"{took[1][1]} of the time of fetching" in page
        assert "pictures/overlap.svg" in page
