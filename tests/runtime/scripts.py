# ruff: noqa: F401 - the scripts import everything from here
"""Imported by the scripts that the tests run."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import linecache
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from typing import ClassVar

import proxyplane
from proxyplane import (
    Factory,
    LocalConnector,
    Proxy,
    aresolve,
    is_resolved,
    register_connector,
    resolve,
    resolve_async,
    sync,
)
from proxyplane._runtime import flights
from proxyplane._runtime.io_thread import io_thread
from proxyplane.exceptions import (
    BlockingCallError,
    BlockingResolveWarning,
    IOThreadError,
    ProxyResolveCycleError,
    ProxyResolveError,
    ProxyResolveMissingKeyError,
)

FOR_EVER = 600  # seconds: longer than any deadline


class Slow(LocalConnector):
    """Memory without a shortcut, that answers when it is told to.

    Attributes:
        events: What happened, in order.
    """

    scheme: ClassVar[str] = "slow"
    put_sync = get_sync = exists_sync = evict_sync = None

    delay: ClassVar[float] = 0.0
    events: ClassVar[list[str]] = []

    async def get(self, key, *, size=None):
        self.events.append("get")
        try:
            await asyncio.sleep(self.delay)
            return self._entries()[key].body if key in self._entries() else None
        except asyncio.CancelledError:
            self.events.append("cancelled")
            await asyncio.sleep(0.05)
            self.events.append("cleaned up")
            raise
        finally:
            self.events.append("ended")

    async def exists(self, key):
        return key in self._entries()

    async def evict(self, key):
        return self._entries().pop(key, None) is not None


register_connector("slow", Slow)


def say(line):
    """Tells the test."""
    print(line, flush=True)


def fresh(proxy):
    """The proxy as another process gets it."""
    return pickle.loads(pickle.dumps(proxy))


def wait_until(condition):
    """Waits; the deadline of the script is the limit."""
    while not condition():
        time.sleep(0.005)


def thread(function, *args, daemon=False):
    """Starts a thread."""
    started = threading.Thread(target=function, args=args, daemon=daemon)
    started.start()
    return started


def in_child(function, *args):
    """Runs a function in a forked child; returns its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            function(*args)
        except SystemExit:
            raise
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def no_signal_comes(frame):
    """Whether a line is one at which the interpreter does not look for signals.

    A ``with`` is traced again before it calls ``__exit__``; signals are looked for after that. A
    ``try`` is an instruction that does nothing, outside of what it guards.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.lstrip().startswith(("with ", "try:"))


def open_store(url, **kwargs):
    """A blocking store on the medium of a URL, or in memory, and its connector."""
    store = sync.Store("s", LocalConnector() if url == "local" else url, register=True, **kwargs)
    return store, store._store.connector


def waited_for(connector):
    """How many keys this process waits for through a connector, asleep."""
    if hasattr(connector, "_medium"):
        return len(connector._medium.waiters.names())
    if hasattr(connector, "_waiting"):
        place = connector._waiting._place
        return len(place.waiters.names()) if place is not None and place.watched else 0
    entries = list(connector._clients._entries.values())
    interests = [one for client, _ in entries for one in list(client.waiters._waiting.values())]
    return sum(interest.asleep for interest in interests)


def descriptors():
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


class Decoded:
    """Says in which threads it was encoded and decoded."""

    encoded_in: ClassVar[list[str]] = []
    decoded_in: ClassVar[list[str]] = []
    dropped_in: ClassVar[list[str]] = []
    on_decode: ClassVar = staticmethod(lambda: None)

    def __init__(self, payload=None):
        self.payload = payload

    def __reduce__(self):
        self.encoded_in.append(threading.current_thread().name)
        return _decode, (self.payload,)

    def __del__(self):
        self.dropped_in.append(threading.current_thread().name)


def _decode(payload):
    Decoded.decoded_in.append(threading.current_thread().name)
    Decoded.on_decode()
    return Decoded(payload)
