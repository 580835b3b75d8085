"""The rounds of mixed work; run as a program.

A round is a new event loop with some tasks for each medium. After each the process says what it
holds, and what the other process does with which it shares its objects.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypedDict

from proxyplane.abc import SupportsSweep
from support.mixed import flat, leaks, lives, objects  # noqa: F401  they add operations
from support.mixed.media import left_in
from support.mixed.world import PATIENCE, World

REST = 0.1
"""Seconds in which what happens behind everybody's back may end, before it is looked at."""


class Complaints(logging.Handler):
    """What was said to nobody: warnings in logs, errors in threads and in finalisers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger().addHandler(self)
        sys.unraisablehook = lambda one: self.said.append(f"{one.err_msg}: {one.exc_value!r}")
        threading.excepthook = lambda one: self.said.append(f"in a thread: {one.exc_value!r}")

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


class Job(TypedDict):
    """What is to be done.

    Attributes:
        media: The URL of each by name, as `support.mixed.media.media` gives them.
        seconds: How long at least.
        rounds: How many at least.
        tasks: For each medium.
        each: Operations of each task in a round.
        leaks: What is leaked on purpose, of `support.mixed.leaks`.
        daemon: Process id of an endpoint.
    """

    media: dict[str, str]
    seconds: float
    rounds: int
    tasks: int
    each: int
    leaks: list[str]
    daemon: int


async def work(worlds: list[World], job: Job) -> int:
    """One round; gives the number of operations."""

    async def some(world: World) -> None:
        for _ in range(job["each"]):
            one = world.next_operation()
            try:
                async with asyncio.timeout(PATIENCE):
                    await one(world)
            except BaseException as error:
                error.add_note(f"in {one.__name__}, {world.name}")
                raise
            for leak in job["leaks"]:
                await leaks.plant(leak, world.store)

    async with asyncio.TaskGroup() as group:
        for world in worlds * job["tasks"]:
            group.create_task(some(world))
    for world in worlds:
        if isinstance(world.store.connector, SupportsSweep):
            await world.store.connector.sweep()
    return len(worlds) * job["tasks"] * job["each"]


def sample(worlds: list[World], job: Job) -> dict[str, dict[str, float]]:
    """What is held now, by whom."""
    time.sleep(REST)
    left = sum(left_in(world.store.connector) for world in worlds)
    held = {"here": {**flat.held(), "left": left}}
    if any(world.reaches_others for world in worlds):
        held["elsewhere"] = worlds[0].process.submit(flat.held).result()
        held["endpoint"] = flat.of_process(job["daemon"])
    return held


def main() -> None:
    """Works as the JSON in the first argument says, and prints a line after each round."""
    job: Job = json.loads(sys.argv[1])
    complaints = Complaints()
    process = ProcessPoolExecutor(1, get_context("spawn"))
    worlds = [World(name, url, process) for name, url in job["media"].items()]
    until = time.monotonic() + job["seconds"]
    before: Counter[str] = Counter()
    for number in itertools.count(1):
        done = asyncio.run(work(worlds, job))
        held = sample(worlds, job)
        print(json.dumps({"done": done, "held": held, "said": complaints.said}), flush=True)
        if number == job["rounds"] // 3:
            before = flat.census()
        if number >= job["rounds"] and time.monotonic() >= until:
            break
    more = flat.census() - before
    print(json.dumps({"more": more.most_common(30)}), flush=True)
    process.shutdown()
    os._exit(0)  # whatever was leaked


if __name__ == "__main__":
    main()
