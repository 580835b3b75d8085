"""FileConnector: waits that outlive something: forks, exits, loops that are closed or die."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from proxyplane._runtime.io_thread import io_thread
from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file import watch as file_watch
from proxyplane.testing import in_forked_child
from support.waiting import (
    inotify_watches,
    looking_every,
    nobody_waits,
    run_code,
    set_elsewhere,
    until,
    waiting,
)


@pytest.fixture(autouse=True)
def events_only():
    """What wakes is events, unless the test says otherwise; nobody waits when it is over."""
    with looking_every(1000):
        yield
        assert all(nobody_waits(place.waiters) for place in file_watch._places.values())
    assert inotify_watches() == []


@pytest.fixture
def connector(tmp_path):
    made = FileConnector(tmp_path / "objects")
    made._registrations._make_folder()
    return made


@pytest.mark.row("fork while waiting")
def test_fork(connector):
    """A forked child begins with no watch and no waiter, can wait itself, and disturbs nobody."""

    async def parent():
        keys = [await connector.new_key() for _ in range(2)]
        tasks = [await waiting(connector, key) for key in keys]

        def child():
            at_first = inotify_watches(), connector._waiting._place.waiters.names()

            async def wait():
                task = await waiting(connector, keys[0])
                mine = inotify_watches()
                set_elsewhere(connector, keys[0])
                await task
                return mine

            return *at_first, asyncio.run(wait())

        assert await asyncio.to_thread(in_forked_child, child) == ([], [], [1])
        await tasks[0]
        assert inotify_watches() == [1]
        await asyncio.to_thread(set_elsewhere, connector, keys[1])
        await tasks[1]

    asyncio.run(parent())


@pytest.mark.row("exit while waiting")
@pytest.mark.parametrize("where", ["loop", "thread", "library"])
def test_exit_while_waiting(tmp_path, where):
    """A process that ends while somebody waits ends quietly."""
    code = """
        import asyncio, sys, threading, time
        from proxyplane._runtime.io_thread import io_thread
        from proxyplane.connectors.file import watch as file_watch
        from proxyplane.connectors.file import FileConnector
        connector = FileConnector(sys.argv[1])
        key = asyncio.run(connector.new_key())
        async def wait():
            await connector.wait(key)
        async def main():
            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0.2)
        if sys.argv[2] == "loop":
            asyncio.run(main())
        else:
            target = (lambda: asyncio.run(wait())) if sys.argv[2] == "thread" else (
                lambda: io_thread().run(wait()))
            threading.Thread(target=target, daemon=True).start()
            while not (connector._waiting._place and connector._waiting._place.watched):
                time.sleep(0.01)
    """
    done = run_code(code, tmp_path / "objects", where)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_library_loop_dies(connector):
    """When the library's loop dies under who waits, another one takes over."""

    async def main():
        key = await connector.new_key()
        task = await waiting(connector, key)
        first = io_thread()
        first.loop.call_soon_threadsafe(first._end)
        await until(lambda: not first.is_alive)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(asyncio.shield(task), 0.2)
        if task.done():  # it was told so, and may wait again
            assert "event-loop thread" in str(task.exception())
            task = await waiting(connector, key)
        await asyncio.to_thread(set_elsewhere, connector, key)
        await task

    asyncio.run(main())
