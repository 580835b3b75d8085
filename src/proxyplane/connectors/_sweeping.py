"""Sweeps in the background: what ended leases leave behind goes, a little at a time.

One thread serves all media of the process that need it. It is no task on the library's loop, which
many a process that uses files does without: to start that takes a hundred times as long as a thread
that sleeps.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from typing import Protocol

from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.workers import Workers
from proxyplane.exceptions import IOThreadError

logger = logging.getLogger("proxyplane")

INTERVAL_SECONDS = 3.0
"""About how often a medium is swept."""
ROUND_SECONDS = 0.1
"""How long one round may take; if more is left, the next one follows after as long a pause."""


class Medium(Protocol):
    """A medium that is swept."""

    @property
    def place(self) -> object:
        """What it is; of several with the same one is swept."""
        ...

    @property
    def idle(self) -> bool:
        """Whether there is nothing to sweep, as far as can be told without a look."""
        ...

    def sweep_some(self, seconds: float) -> bool:
        """Sweeps for some seconds at most; returns whether there is more to do."""
        ...


class _Process:
    """The media of this process, and whether a thread sweeps them."""

    def __init__(self) -> None:
        self._workers = Workers(1, "proxyplane-sweeper")
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        # By id, since a WeakSet does not bear being changed by other threads and finalisers.
        self.media: dict[int, weakref.ref[Medium]] = {}
        self.runs = False

    def add(self, medium: Medium) -> None:
        token, media = id(medium), self.media
        media[token] = weakref.ref(medium, lambda _: media.pop(token, None))
        self._begin()

    def _begin(self) -> None:
        if not self.runs:
            self.runs = True
            with contextlib.suppress(
                IOThreadError
            ):  # the interpreter exits, or has no threads left
                self._workers.submit(self._main)

    def _main(self) -> None:
        told: set[object] = set()
        while self.media:
            # Not all processes at the same moment.
            time.sleep(INTERVAL_SECONDS * (1 - 0.3 * os.urandom(1)[0] / 255))
            self._round(told)
        self.runs = False
        if self.media:  # one came meanwhile
            self._begin()

    def _round(self, told: set[object]) -> None:
        places: dict[object, Medium] = {}
        for ref in list(self.media.values()):
            medium = ref()
            if medium is not None and not medium.idle:
                places.setdefault(medium.place, medium)
        for place, medium in places.items():
            try:
                while medium.sweep_some(ROUND_SECONDS):
                    time.sleep(ROUND_SECONDS)
                told.discard(place)
            except Exception as error:  # noqa: BLE001  the next medium wants its turn
                if place not in told:
                    logger.warning("ended leases cannot be swept at %s: %s", place, error)
                told.add(place)


_process = _Process()


def sweep_in_background(medium: Medium) -> None:
    """Has a medium swept from time to time, for as long as it lives in this process."""
    _process.add(medium)
