"""What the flights of this process share: their table, their lock, and the threads they use."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING

from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.workers import Workers

if TYPE_CHECKING:
    from proxyplane._runtime.flight import Flight


class _Process:
    """The flights of this process."""

    def __init__(self) -> None:
        # For decoders and for factories, which may block for as long as they like: so neither
        # takes the threads of the other, nor those of the library's I/O.
        self.decoders = Workers(32, "proxyplane-decode")
        self.factories = Workers(256, "proxyplane-factory")
        self.helpers = Workers(1)
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        # Re-entrant: a finaliser that the collector runs inside of a critical section may touch
        # a proxy. The sections are short and never call out. The I/O thread does not wait for the
        # lock: such a finaliser may be waiting for the I/O thread.
        self.lock = threading.RLock()
        self.flights: dict[Hashable, Flight] = {}
        # Which flight a blocked thread waits for: the edges along which a cycle is found.
        self.waits: dict[int, Flight] = {}


process = _Process()
