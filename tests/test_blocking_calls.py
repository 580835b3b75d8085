"""The detector of blocking calls detects them, and lets through what it must."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from blockbuster import BlockingError

from proxyplane._runtime.workers import run_in_worker


def _in_the_package(source: str, **names: object) -> None:
    """Runs code that looks, on the stack, like a function of the package."""
    import proxyplane

    filename = str(proxyplane.__path__[0]) + "/imaginary.py"
    exec(compile(source, filename, "exec"), names)


async def test_sleep_is_detected():
    """A call of the package that blocks the loop raises."""
    with pytest.raises(BlockingError, match="time.sleep"):
        _in_the_package("import time; time.sleep(0)")


async def test_waiting_for_a_thread_is_detected():
    """So does waiting for another thread."""
    with pytest.raises(BlockingError, match="lock.acquire"):
        _in_the_package("event.wait(0.01)", event=threading.Event())


async def test_the_test_itself_may_block():
    """What a test does, with nothing of the package on the stack, is not judged."""
    time.sleep(0)


async def test_workers_may_block():
    """A worker thread has no loop that could stall."""
    await run_in_worker(time.sleep, 0)
    await asyncio.to_thread(_in_the_package, "import time; time.sleep(0)")


async def test_short_guards_may_be_taken():
    """A lock that guards a few instructions is not a blocking call."""
    _in_the_package("with lock: pass", lock=threading.Lock())


@pytest.mark.allow_blocking
async def test_marker_lets_a_test_block():
    """The marker turns the detector off."""
    _in_the_package("import time; time.sleep(0)")


def test_outside_a_loop_anything_may_block():
    """A plain test is not watched."""
    _in_the_package("import time; time.sleep(0)")
