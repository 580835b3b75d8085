"""LocalConnector: objects that come later."""

from __future__ import annotations

import asyncio
import threading

import pytest

from proxyplane._runtime.io_thread import io_thread
from proxyplane.abc import DeferrableConnector
from proxyplane.connectors._inline import INLINE_BYTES
from proxyplane.connectors._waiters import Waiters
from proxyplane.connectors.local import LocalConnector
from proxyplane.exceptions import (
    ConnectorClosedError,
    KeyExistsError,
    ObjectLostError,
    WrongProcessError,
)
from proxyplane.testing import cancelled_at, in_forked_child
from support.waiting import LONG, SHORT, nobody_waits, on_thread, rounds, until

SIZES = [1, INLINE_BYTES + 1]


@pytest.fixture
def connector():
    made = LocalConnector()
    yield made
    assert made._medium is None or nobody_waits(made._medium.waiters)


def is_waited_for(connector: LocalConnector, key: str, count: int = 1) -> bool:
    return connector._medium.waiters.names().count(key) >= count


def test_can_defer(connector):
    """It fulfils the contract of those on which one can wait."""
    assert isinstance(connector, DeferrableConnector)


@pytest.mark.parametrize("size", SIZES)
async def test_wakes_other_threads_and_loops(connector, size):
    """Twenty loops on threads of their own, the library's loop and this one wake to one set."""
    key = await connector.new_key()

    async def wait():
        other = LocalConnector.from_url(connector.url)
        await asyncio.gather(*(other.wait(key, LONG) for _ in range(5)))
        return bytes(await other.get(key))

    waiting = [asyncio.wrap_future(on_thread(wait)) for _ in range(20)]
    waiting.append(asyncio.ensure_future(wait()))
    blocked = asyncio.to_thread(io_thread().run, connector.wait(key, LONG))
    waiting.append(asyncio.ensure_future(blocked))
    await until(lambda: is_waited_for(connector, key, 22))
    await connector.set(key, [b"x" * size])
    *found, nothing = await asyncio.gather(*waiting)
    assert found == [b"x" * size] * 21
    assert nothing is None


async def test_a_set_from_another_thread_wakes(connector):
    """The set may be on any loop."""
    key = await connector.new_key()
    waiting = asyncio.ensure_future(connector.wait(key, LONG))
    await until(lambda: is_waited_for(connector, key))
    await asyncio.wrap_future(on_thread(lambda: connector.set(key, [b"x"])))
    await waiting


def test_set_racing_wait(connector):
    """However a set and the begin of a wait meet, the wait ends."""
    count = rounds(2_000, 50_000)
    keys = [asyncio.run(connector.new_key()) for _ in range(count)]
    meet = threading.Barrier(2)

    async def set_all():
        for number, key in enumerate(keys):
            await asyncio.to_thread(meet.wait, LONG) if number % 100 == 0 else None
            await connector.set(key, [b"x"])

    async def wait_all():
        for number, key in enumerate(keys):
            await asyncio.to_thread(meet.wait, LONG) if number % 100 == 0 else None
            await connector.wait(key, LONG)

    setting, waiting = on_thread(set_all), on_thread(wait_all)
    setting.result(LONG)
    waiting.result(LONG)


@pytest.mark.parametrize("size", SIZES)
async def test_of_many_sets_one_succeeds(connector, size):
    """Of sets on eight threads at once one stores its object, and the others raise."""
    for _ in range(rounds(30, 1000)):
        key = await connector.new_key()
        tried = await asyncio.gather(
            *(
                asyncio.wrap_future(on_thread(lambda n=n: connector.set(key, [b"%d" % n * size])))
                for n in range(8)
            ),
            return_exceptions=True,
        )
        (winner,) = [number for number, raised in enumerate(tried) if raised is None]
        assert {type(raised) for raised in tried} == {type(None), KeyExistsError}
        assert await connector.get(key) == b"%d" % winner * size
        await connector.evict(key)


async def test_set_racing_evict(connector):
    """A set and an evict at once: one of them was first, and the key is gone after both."""
    for _ in range(rounds(300, 20_000)):
        key = await connector.new_key()
        setting = asyncio.wrap_future(on_thread(lambda key=key: connector.set(key, [b"x"])))
        evicted = await connector.evict(key)
        (raised,) = await asyncio.gather(setting, return_exceptions=True)
        there = await connector.evict(key)
        assert (raised, evicted or there) in [(None, True), (raised, False)]
        assert raised is None or isinstance(raised, ObjectLostError)
        assert await connector.get(key) is None
        with pytest.raises(ObjectLostError):
            await connector.set(key, [b"y"])


async def test_a_put_is_a_set(connector):
    """Who puts an object under a registered key wakes its waiters, and ends the registration."""
    key = await connector.new_key()
    waiting = asyncio.ensure_future(connector.wait(key, LONG))
    await until(lambda: is_waited_for(connector, key))
    await connector.put([b"x"], key=key)
    await waiting
    with pytest.raises(KeyExistsError):
        await connector.set(key, [b"y"])


async def test_evict_ends_the_wait(connector):
    """Without object and registration there is nothing to wait for, nor to set."""
    key = await connector.new_key()
    waiting = asyncio.ensure_future(connector.wait(key, LONG))
    await until(lambda: is_waited_for(connector, key))
    assert await connector.evict(key) is False
    with pytest.raises(ObjectLostError, match=key):
        await waiting
    for call in (connector.wait(key, LONG), connector.set(key, [b"x"])):
        with pytest.raises(ObjectLostError, match="evicted"):
            await call


@pytest.mark.parametrize("timeout", [-1, 0, 0.01])
async def test_timeouts(connector, timeout):
    """A wait says how long it waited; what is there is found in no time."""
    key = await connector.new_key()
    with pytest.raises(TimeoutError, match=f"{key}.* {timeout} s"):
        await connector.wait(key, timeout)
    await connector.set(key, [b"x"])
    await connector.wait(key, timeout)


async def test_a_timeout_around_it(connector):
    """The caller's own timeout is not taken for the wait's."""
    key = await connector.new_key()
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.01):
            await connector.wait(key, LONG)
    assert str(caught.value) == ""


async def test_cancellation_at_each_suspension(connector):
    """A wait or a set that is cancelled leaves nobody waiting, and the object whole or not."""
    nth, reached = 1, True
    while reached:
        key = await connector.new_key()
        setting = asyncio.get_running_loop().call_later(
            0.01, lambda key=key: connector.put_sync([b"x"], key=key)
        )
        reached = await cancelled_at(connector.wait(key, LONG), nth)
        setting.cancel()
        assert nobody_waits(connector._medium.waiters)
        nth += 1
    assert nth == 3
    for size in SIZES:
        nth, reached = 1, True
        while reached:
            key = await connector.new_key()
            reached = await cancelled_at(connector.set(key, [b"x" * size]), nth)
            nth += 1
            body = await connector.get(key)
            if body is None:
                await connector.set(key, [b"x" * size])
            assert await connector.get(key) == b"x" * size


async def test_close_ends_the_waits(connector):
    """Who waits through a connector that is closed gets an error at once, others go on waiting."""
    other = LocalConnector.from_url(connector.url)
    key = await connector.new_key()
    waiting = [asyncio.ensure_future(one.wait(key, LONG)) for one in (connector, other)]
    elsewhere = asyncio.wrap_future(on_thread(lambda: connector.wait(key, LONG)))
    await until(lambda: is_waited_for(connector, key, 2))
    await connector.aclose()
    with pytest.raises(ConnectorClosedError):
        await waiting[0]
    with pytest.raises(ConnectorClosedError):
        await elsewhere
    await other.set(key, [b"x"])
    await waiting[1]
    for call in (connector.wait(key), connector.set(key, [b"x"]), connector.new_key()):
        with pytest.raises(ConnectorClosedError):
            await call


async def test_clear_ends_registrations(connector):
    """Clearing ends what this connector registered, and nothing else."""
    other = LocalConnector.from_url(connector.url)
    mine, theirs = await connector.new_key(), await other.new_key()
    waiting = asyncio.ensure_future(other.wait(mine, LONG))
    await asyncio.sleep(0)
    await connector.aclose(clear=True)
    with pytest.raises(ObjectLostError):
        await waiting
    await other.set(theirs, [b"x"])


def test_a_loop_closed_under_a_waiter(connector):
    """A loop that is closed while somebody waits on it is forgotten, and disturbs nobody."""
    key = asyncio.run(connector.new_key())
    loops = [asyncio.new_event_loop() for _ in range(3)]
    tasks = []
    for loop in loops:
        tasks.append(loop.create_task(connector.wait(key, LONG)))
        loop.run_until_complete(asyncio.sleep(0))
    loops[0].close()
    loops[1].close()
    try:
        asyncio.run(connector.set(key, [b"x"]))
        loops[2].run_until_complete(tasks[2])
    finally:
        for loop, task in zip(loops, tasks, strict=True):
            loop.close()
            task._log_destroy_pending = False  # asyncio complains of tasks that nobody ended
            task.get_coro().close()


def test_another_process(connector):
    """In a forked child nobody waits, every call is refused, and the parent is not disturbed."""

    async def parent():
        key = await connector.new_key()
        waiting = asyncio.ensure_future(connector.wait(key, LONG))
        await asyncio.sleep(0)

        def child():
            raised = []
            for call in (connector.new_key(), connector.set(key, [b"x"]), connector.wait(key, 1)):
                try:
                    call.send(None)
                except WrongProcessError as error:
                    raised.append(type(error).__name__)
            waiters = connector._medium.waiters
            try:
                connector.aclose(clear=True).send(None)
            except StopIteration:
                pass
            return raised, waiters.names()

        assert in_forked_child(child) == (["WrongProcessError"] * 3, [])
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await connector.set(key, [b"x"])
        await waiting

    asyncio.run(parent())


# The same without a defence: then it must fail.


def test_without_looking_after_the_join(connector, monkeypatch):
    """A set between a look and the join would be lost, if nobody looked after the join."""

    async def main():
        key = await connector.new_key()
        looks = iter([False])  # what a look before the join would have found
        monkeypatch.setattr(connector, "_is_set", lambda key: next(looks, True))
        await connector.set(key, [b"x"])
        with pytest.raises(TimeoutError):
            await connector.wait(key, SHORT)
        monkeypatch.undo()
        await connector.wait(key, SHORT)

    asyncio.run(main())


def test_without_forgetting_closed_loops(connector, monkeypatch):
    """A set would fail because somebody's loop is gone."""

    def call(self, loop, function, table, argument):
        loop.call_soon_threadsafe(function, table, argument)

    monkeypatch.setattr(Waiters, "_call", call)
    with pytest.raises(RuntimeError, match="closed"):
        test_a_loop_closed_under_a_waiter(connector)
    connector._medium.waiters._tables.clear()
