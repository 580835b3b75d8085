"""Waits on loops and threads of their own, and what they leave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from proxyplane._runtime.io_thread import io_thread
from proxyplane.connectors.file import watch as file_watch

LONG = 20.0
"""Seconds that no wait takes, unless it was not woken."""

SHORT = 1.0
"""Seconds after which a wait that is not to be woken is given up."""


def on_thread(make: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
    """Runs a coroutine on a new loop of a new thread."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(asyncio.run(make()))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


async def until(condition: Callable[[], object]) -> None:
    """Returns when the condition holds; fails when it does not for long.

    The time limit of the test would end it too, but not if it strikes while garbage is collected.
    """
    until = time.monotonic() + 45
    while not condition():
        assert time.monotonic() < until, "it never came true"
        await asyncio.sleep(0.002)


def nobody_waits(waiters) -> bool:
    """Whether no table, and no row of one, is left."""
    return not waiters._tables


async def waiting(connector, key: str, timeout: float = LONG) -> asyncio.Task[None]:
    """A wait for a file that has begun, is watched for, and sleeps."""
    task = asyncio.ensure_future(connector.wait(key, timeout))
    place = await watched_place(connector)
    await until(lambda: key in place.waiters.names())
    await until(lambda: place.watched is not None or place.polled)
    await settled()
    return task


async def many_waiting(connector, count: int, timeout: float | None = None):
    """Keys, and waits for their files that have begun, are watched for, and sleep."""
    keys = [await connector.new_key() for _ in range(count)]
    tasks = [asyncio.ensure_future(connector.wait(key, timeout)) for key in keys]
    place = await watched_place(connector)
    await until(lambda: len(place.waiters.names()) >= count)
    await until(lambda: place.watched is not None or place.polled)
    await settled()
    return keys, tasks


async def watched_place(connector):
    """The place of a connector through which somebody has begun to wait for a file."""
    await until(lambda: connector._waiting._place is not None)
    return connector._waiting._place


async def settled() -> None:
    """Returns when those who were woken as a watch began sleep again."""
    # What was under way to them arrives before this.
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), io_thread().loop))
    for _ in range(5):
        await asyncio.sleep(0)


def set_in_process(url: str, *keys: str, body: str = "object") -> subprocess.Popen[str]:
    """Starts a process that sets each key in turn, as it reads a line for each on its stdin.

    For each it prints how that ended: "set" or the name of the error.
    """
    code = """
        import asyncio, sys
        from proxyplane.config import connector_from_url
        from proxyplane.exceptions import ConnectorError
        async def main():
            url, body, *keys = sys.argv[1:]
            connector = connector_from_url(url)
            for line, key in zip(sys.stdin, keys or sys.stdin):
                try:
                    await connector.set(key.strip(), [body.encode()])
                    print("set", flush=True)
                except ConnectorError as error:
                    print(type(error).__name__, flush=True)
        asyncio.run(main())
    """
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), url, body, *keys],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def inotify_watches() -> list[int]:
    """The number of watches of each inotify instance of this process."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:inotify":
                with open(f"/proc/self/fdinfo/{fd}") as lines:
                    found.append(sum(line.startswith("inotify ") for line in lines))
        except FileNotFoundError:
            pass  # closed meanwhile
    return found


@contextlib.contextmanager
def looking_every(seconds: float):
    """Sets how often watched directories are looked through; what is kept is dropped at the end.

    With a large number it is the events alone that wake, and a lost one is a failure. What other
    tests left is dropped first: it is kept for some seconds.
    """
    drop_watches()
    before, file_watch.LOOK_SECONDS = file_watch.LOOK_SECONDS, seconds
    try:
        yield
    finally:
        file_watch.LOOK_SECONDS = before
        drop_watches()


def drop_watches() -> None:
    """Returns when nothing is kept any more; nobody may be waiting."""
    watcher = file_watch._process.watcher
    if watcher is None:
        return
    io = io_thread()

    async def drop() -> None:
        while watcher.keepers:
            for keeper in watcher.keepers.values():
                keeper.look_now.set()
            await asyncio.sleep(0.001)

    if watcher.loop is io.loop:
        io.run(drop())


def set_elsewhere(connector, *keys: str) -> None:
    """Sets the keys in another process."""
    other = set_in_process(connector.url, *keys)
    printed, _ = other.communicate("\n" * len(keys))
    assert printed.split() == ["set"] * len(keys)


def run_code(
    code: str, *argv: object, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter, which must end well."""
    done = subprocess.run(
        [*prefix, sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    return done
