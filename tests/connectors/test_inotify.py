"""What is removed from directories, told by inotify itself."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from proxyplane.connectors.file import inotify as inotify
from proxyplane.connectors.file.inotify import Removals, load
from support.waiting import drop_watches, inotify_watches, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is of Linux")


@pytest.fixture(autouse=True)
def no_others():
    """What other tests left is kept for some seconds."""
    drop_watches()


class Listener:
    """Remembers what it was told."""

    def __init__(self):
        self.removed = []
        self.lost = []
        self.on_first = lambda: None

    def on_removed(self, who, name):
        self.removed.append((who, name))
        self.on_first()

    def on_lost(self, everyone):
        self.lost += everyone


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
async def removals(listener):
    """On the loop of the test, which must not complain of a callback."""
    loop, complaints = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    made = Removals(load(), listener)
    yield made
    made.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert complaints == []


def remove_some(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / str(number)
        path.touch()
        path.unlink()


async def test_in_order(removals, listener, tmp_path):
    """Each removal is told, in its order; more than one reading of them lets the loop go on."""
    removals.watch(str(tmp_path), "me")
    remove_some(tmp_path, 3 * inotify._BATCH)
    await until(lambda: len(listener.removed) == 3 * inotify._BATCH)
    assert listener.removed == [("me", str(number)) for number in range(3 * inotify._BATCH)]


@pytest.mark.parametrize("by", ["us", "the library"])
async def test_closed_while_events_are_read(removals, listener, tmp_path, by):
    """An instance that is closed in the middle of its events ends them without a word."""
    removals.watch(str(tmp_path), "me")
    # The library closes it by itself when the interpreter exits.
    listener.on_first = removals.close if by == "us" else removals._instance.close
    remove_some(tmp_path, 3 * inotify._BATCH)
    await until(lambda: listener.removed)
    removals._read()  # as one that was called for before it was closed
    await asyncio.sleep(0)
    assert len(listener.removed) == 1


async def test_closed_and_opened_again(removals, listener, tmp_path):
    """What was still to be read of one instance is nobody's, and the next one is read."""
    watch = removals.watch(str(tmp_path), "me")
    remove_some(tmp_path, 2 * inotify._BATCH)
    await until(lambda: listener.removed)
    removals.unwatch(watch, "me")
    removals.close()
    (tmp_path / "new").mkdir()
    told = len(listener.removed)
    removals.watch(str(tmp_path / "new"), "you")
    remove_some(tmp_path / "new", 1)
    await until(lambda: len(listener.removed) > told)
    assert listener.removed[told:] == [("you", "0")]
    assert inotify_watches() == [1]
