"""Mixed work for a long time: nothing is wrong, nothing is said to nobody, and nothing grows."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from support.mixed import flat
from support.mixed.leaks import LEAKS
from support.mixed.media import media
from support.soak import MIXED_SECONDS, SOAK, tally, times

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is held is read in /proc")

TESTS = Path(__file__).parent.parent
ROUNDS = 12
# All at once in the ordinary run, for each takes a process.
PLANTED = [[leak] for leak in LEAKS] if SOAK else [list(LEAKS)]


def work(job, environment, directory):
    """Does a job in a process of its own; returns what it said after each round, and at the end."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    # Kept beside the other files of a test that failed, and to be watched while it runs.
    with (directory / "stderr").open("wb+") as errors, (directory / "rounds").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "support.mixed.run", json.dumps(job)],
            env={**environment, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            said = []
            for line in process.stdout:
                print(line, end="", file=log, flush=True)
                said.append(json.loads(line))
            code = process.wait(60)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        complaints = errors.read().decode()
    assert (code, complaints) == (0, "")
    *rounds, last = said
    assert rounds[-1]["said"] == []
    return rounds, last["more"]


def rises(rounds, room):
    """What is not flat, and of which process."""
    return {
        (who, name): how
        for who in rounds[0]["held"]
        for name, how in flat.grown([one["held"][who] for one in rounds], room).items()
    }


def levels(rounds, who):
    """The levels of a process at the end of its warm-up and at its end, for the table."""
    rest = [one["held"][who] for one in rounds[len(rounds) // 3 :]]
    part = max(len(rest) // 5, 1)
    pairs = {
        name: [statistics.median(one[name] for one in few) for few in (rest[:part], rest[-part:])]
        for name in ("MiB", "descriptors", "tasks", "threads")
        if name in rest[0]
    }
    return ", ".join(f"{name} {old:.0f} to {new:.0f}" for name, (old, new) in pairs.items())


@pytest.mark.row("mixed work")
@pytest.mark.timeout(MIXED_SECONDS + 600 if SOAK else 180)
def test_mixed_work(redis_server, make_site, tmp_path):
    """A process that does a bit of everything, on all media at once, holds no more in the end."""
    site = make_site("mixed")
    site.start()
    worlds = media(tmp_path, redis_server.url, site)
    tasks = 3 if SOAK else 2
    job = {
        "media": worlds,
        "seconds": MIXED_SECONDS if SOAK else 0,
        "rounds": ROUNDS,
        "tasks": tasks,
        "each": 60 if SOAK else times("mixed work") // (ROUNDS * len(worlds) * tasks),
        "leaks": [],
        "daemon": site.process.pid,
    }
    rounds, more = work(job, site.environment, tmp_path)
    assert rises(rounds, flat.ROOM if SOAK else flat.WARMING) == {}, more
    tally.tries = sum(one["done"] for one in rounds)
    if SOAK:
        tally.notes += [f"{who}: {levels(rounds, who)}" for who in rounds[0]["held"]]


@pytest.mark.row("mixed work")
@pytest.mark.undefended
@pytest.mark.timeout(180)
@pytest.mark.parametrize("planted", PLANTED, ids=", ".join)
def test_mixed_work_that_leaks(tmp_path, planted):
    """Were something to leak, of whatever kind, it would be seen."""
    job = {
        "media": {"local": ""},
        "seconds": 0,
        "rounds": ROUNDS,
        "tasks": 2,
        "each": 10,
        "leaks": planted,
        "daemon": 0,
    }
    rounds, _ = work(job, os.environ, tmp_path)
    assert {("here", one) for one in planted} <= set(rises(rounds, flat.WARMING))


@pytest.mark.parametrize("values", [[7] * 60, [40, 5] * 30, [*range(20), *[20] * 40]])
def test_flat(values):
    """What stays, what goes up and down, and what rises only while it warms up, is flat."""
    assert flat.grown([{"tasks": value} for value in values]) == {}


@pytest.mark.parametrize(
    "values",
    [range(60), [0] * 30 + [20] * 30, [number // 2 + number % 3 for number in range(60)]],
)
def test_not_flat(values):
    """What rises slowly, or once and stays, or under noise, is not."""
    assert "tasks" in flat.grown([{"tasks": value} for value in values])
