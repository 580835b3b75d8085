"""Objects that come later, alike on every medium: who is woken, and by what a wait ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading

import pytest

from proxyplane._runtime.io_thread import io_thread
from proxyplane.abc import DeferrableConnector
from proxyplane.config import connector_from_url
from proxyplane.connectors._inline import INLINE_BYTES
from proxyplane.connectors._waiters import Waiters
from proxyplane.exceptions import ConnectorClosedError, KeyExistsError, ObjectLostError
from proxyplane.testing import cancelled_at
from support.soak import defended_or_not, times
from support.waiting import LONG, SHORT, on_thread, set_in_process, until

SIZES = [1, INLINE_BYTES + 1]


@pytest.fixture
async def connector(medium):
    made = medium.connector()
    assert isinstance(made, DeferrableConnector)
    yield made
    await made.aclose(clear=True)
    await until(lambda: medium.waiters(made) == 0)


@pytest.fixture
async def another(medium):
    made = medium.connector()
    yield made
    await made.aclose()


async def waiting(medium, connector, key):
    """A wait that has begun, and is watched for."""
    before = medium.waiting_for(connector, key)
    task = asyncio.ensure_future(connector.wait(key, LONG))
    await medium.waiting(connector, key, before + 1)
    return task


# Who is woken


@pytest.mark.parametrize("size", [1, 100_000])  # an argument of a process may not be longer
async def test_wakes_other_threads_and_loops(medium, connector, another, size):
    """Twenty loops on threads of their own, the library's loop and this one wake to one set."""
    key = await connector.new_key()

    async def wait():
        other = connector_from_url(connector.url)
        await asyncio.gather(*(other.wait(key, LONG) for _ in range(5)))
        found = bytes(await other.get(key))
        await other.aclose()
        return found

    tasks = [asyncio.wrap_future(on_thread(wait)) for _ in range(20)]
    tasks.append(asyncio.ensure_future(wait()))
    tasks.append(asyncio.ensure_future(asyncio.to_thread(io_thread().run, wait())))
    await medium.waiting(connector, key, 22)
    if medium.crosses:
        other = set_in_process(connector.url, key, body="x" * size)
        await asyncio.to_thread(other.communicate, "\n")
    else:
        await asyncio.wrap_future(on_thread(lambda: another.set(key, [b"x" * size])))
    assert await asyncio.gather(*tasks) == [b"x" * size] * 22


async def test_a_put_is_a_set(medium, connector, another):
    """Who puts an object under a registered key wakes its waiters, and ends the registration."""
    if medium.name in ("redis", "cluster"):
        pytest.skip("a put under a key of a future's does not wake there")
    key = await connector.new_key()
    task = await waiting(medium, connector, key)
    await another.put([b"x"], key=key)
    await task
    with pytest.raises(KeyExistsError):
        await connector.set(key, [b"y"])


# Races


@pytest.mark.row("set racing wait")
def test_set_racing_wait(medium):
    """However a set, in another process if that can be, and the begin of a wait meet, it ends."""

    async def wait_all(keys, about_to, after):
        connector = medium.connector()
        for key in keys:
            about_to(key)
            for _ in range(random.randrange(3)):
                await asyncio.sleep(0)
            await connector.wait(key, LONG)
            after()
        await connector.aclose()

    async def main():
        first = medium.connector()
        keys = [await first.new_key() for _ in range(times("set racing wait"))]
        if medium.crosses:
            other = set_in_process(first.url)
            # What it answers is read, else the pipe fills up and it stands still.
            await wait_all(
                keys,
                lambda key: other.stdin.write(f"\n{key}\n"),
                other.stdout.readline,
            )
            other.communicate()
        else:
            meet = threading.Barrier(2)

            async def set_all():
                for number, key in enumerate(keys):
                    if number % 100 == 0:
                        await asyncio.to_thread(meet.wait, LONG)
                    await first.set(key, [b"x"])

            setting = on_thread(set_all)
            count = iter(range(len(keys)))
            await wait_all(
                keys, lambda _: meet.wait(LONG) if next(count) % 100 == 0 else None, lambda: None
            )
            setting.result(LONG)
        await first.aclose(clear=True)

    asyncio.run(main())


@pytest.mark.row("set racing wait")
@defended_or_not
async def test_a_set_just_before_the_wait(medium, connector, another, monkeypatch, defended):
    """A set that came before the wait began tells nobody: it is the look that finds it."""
    keeper = await waiting(medium, another, await another.new_key())  # all is being watched
    key = await connector.new_key()
    await connector.set(key, [b"x"])
    await medium.settled()  # what it told was told before
    if defended:
        await connector.wait(key, LONG)
    else:
        medium.blind(monkeypatch, connector)
        with pytest.raises(TimeoutError):
            await connector.wait(key, SHORT)
    keeper.cancel()


@pytest.mark.row("set racing set")
@pytest.mark.parametrize("size", SIZES)
async def test_of_many_sets_one_succeeds(medium, connector, size):
    """Of sets on eight threads at once one stores its object, and the others raise."""
    for _ in range(max(times("set racing set") // 20, 1)):
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


@pytest.mark.row("set racing set")
def test_of_two_processes_one_succeeds(crossing):
    """Of two processes that set one key at once one succeeds, and its object stays."""

    async def main():
        connector = crossing.connector()
        others = [set_in_process(connector.url, body=body) for body in "ab"]
        for number in range(times("set racing set")):
            key = await connector.new_key()
            for other in others:
                other.stdin.write(f"\n{key}\n")
            ended = [other.stdout.readline().strip() for other in others]
            assert sorted(ended) == ["KeyExistsError", "set"], number
            assert await connector.get(key) == b"ab"[ended.index("set") :][:1], number
        for other in others:
            other.communicate()
        await connector.aclose(clear=True)

    asyncio.run(main())


@pytest.mark.row("set racing evict")
async def test_set_racing_evict(connector):
    """A set and an evict at once: one of them was first, and the key is gone after both."""
    for _ in range(times("set racing evict")):
        key = await connector.new_key()
        setting = asyncio.wrap_future(on_thread(lambda key=key: connector.set(key, [b"x"])))
        evicted = await connector.evict(key)
        (raised,) = await asyncio.gather(setting, return_exceptions=True)
        assert (raised is None) is evicted
        assert raised is None or isinstance(raised, ObjectLostError)
        assert await connector.evict(key) is False
        assert await connector.get(key) is None
        with pytest.raises(ObjectLostError):
            await connector.set(key, [b"y"])


# How a wait ends


async def test_evict_ends_the_wait(medium, connector, another):
    """Without object and registration there is nothing to wait for, nor to set."""
    key = await connector.new_key()
    task = await waiting(medium, connector, key)
    assert await another.evict(key) is False
    with pytest.raises(ObjectLostError, match=key):
        await task
    for call in (connector.wait(key, LONG), connector.set(key, [b"x"])):
        with pytest.raises(ObjectLostError, match="evicted"):
            await call


@pytest.mark.parametrize("timeout", [-1, 0, 0.01])
async def test_timeouts(connector, timeout):
    """A wait says how long it waited; what is there is found in no time."""
    key = await connector.new_key()
    with pytest.raises(TimeoutError, match=rf"{key}.* {max(timeout, 0)} s|{key}.* {timeout} s"):
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


@pytest.mark.row("store closed under waiters")
async def test_close_ends_the_waits_of_loops_that_end(medium, connector, another):
    """A loop that ends, because its wait was ended by another loop, leaves no connection."""

    async def close_under_loops():
        key = await another.new_key()
        one = connector_from_url(connector.url)
        tasks = [asyncio.wrap_future(on_thread(lambda: one.wait(key))) for _ in range(4)]
        await medium.waiting(connector, key, 4)
        await one.aclose()
        for task in tasks:
            with pytest.raises(ConnectorClosedError):
                await task
        await another.evict(key)
        await medium.rest()

    await medium.warm(another)
    await close_under_loops()  # what is made once in a process is made
    before = medium.held()
    for _ in range(5):
        await close_under_loops()
    await until(lambda: medium.holds_no_more(before))


@pytest.mark.row("store closed under waiters")
async def test_close_ends_the_waits(medium, connector, another):
    """Who waits through a connector that is closed gets an error at once, others go on waiting."""
    key = await another.new_key()
    tasks = [await waiting(medium, one, key) for one in (connector, another)]
    elsewhere = asyncio.wrap_future(on_thread(lambda: connector.wait(key, LONG)))
    await medium.waiting(connector, key, 3)
    await connector.aclose()
    with pytest.raises(ConnectorClosedError):
        await tasks[0]
    with pytest.raises(ConnectorClosedError):
        await elsewhere
    await another.set(key, [b"x"])
    await tasks[1]
    for call in (connector.wait(key), connector.set(key, [b"x"]), connector.new_key()):
        with pytest.raises(ConnectorClosedError):
            await call


async def test_clear(medium, connector, another):
    """Clearing ends what this connector registered, set or not, and nothing else."""
    mine = [await another.new_key() for _ in range(2)]
    theirs = await connector.new_key()
    task = await waiting(medium, connector, mine[0])
    await connector.set(mine[1], [b"x"])
    await another.aclose(clear=True)
    if medium.name in (
        "redis",
        "cluster",
    ):  # which finds what it registered by a scan, and tells nobody
        task.cancel()
        for key in mine:
            with pytest.raises(ObjectLostError):
                await connector.wait(key, 0)
    else:
        with pytest.raises(ObjectLostError):
            await task
    await connector.set(theirs, [b"x"])
    assert await connector.exists(theirs)


@pytest.mark.row("loop closed under a client")
@pytest.mark.parametrize("medium", ["local", "file"], indirect=True)
@defended_or_not
def test_a_loop_closed_under_a_waiter(medium, monkeypatch, defended):
    """A loop that is closed while somebody waits on it is forgotten, and disturbs nobody.

    Connections cannot be closed without their loop, and complain: so not with those.
    """
    connector = medium.connector()
    key = asyncio.run(connector.new_key())
    loops = [asyncio.new_event_loop() for _ in range(3)]
    tasks = []
    for loop in loops:
        tasks.append(loop.create_task(connector.wait(key, LONG)))
        loop.run_until_complete(asyncio.sleep(0.05))
    loops[0].close()
    loops[1].close()
    try:
        if not defended:
            with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="closed"):
                patch.setattr(Waiters, "_call", _call_anyhow)
                asyncio.run(connector.set(key, [b"x"]))
            tasks[2].cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loops[2].run_until_complete(tasks[2])
        else:
            asyncio.run(connector.set(key, [b"x"]))
            loops[2].run_until_complete(tasks[2])
    finally:
        for loop, task in zip(loops, tasks, strict=True):
            loop.close()
            task._log_destroy_pending = False  # asyncio complains of tasks that nobody ended
            task.get_coro().close()
    asyncio.run(medium.rest())
    assert medium.waiters(connector) == 0


def _call_anyhow(self, loop, function, table, argument):
    loop.call_soon_threadsafe(function, table, argument)


# Cancellation


@pytest.mark.row("cancellation at every await")
@pytest.mark.parametrize("others", [0, 1])
async def test_cancelled_waits(medium, connector, others):
    """A wait that is cancelled, wherever, leaves nobody waiting, and takes no one's wake-up."""
    nth, reached = 1, True
    while reached:
        key = await connector.new_key()
        tasks = [await waiting(medium, connector, key) for _ in range(others)]

        async def set_soon(key=key):
            await asyncio.sleep(0.01)
            with contextlib.suppress(KeyExistsError):
                await connector.set(key, [b"x"])

        setting = asyncio.ensure_future(set_soon())
        reached = await cancelled_at(connector.wait(key, LONG), nth)
        await asyncio.gather(setting, *tasks)
        await until(lambda: medium.waiters(connector) == 0)
        nth += 1
    assert nth >= 3


@pytest.mark.row("cancellation at every await")
@pytest.mark.parametrize("size", [*SIZES, 5 << 20])
async def test_cancelled_sets(connector, size):
    """A set that is cancelled has published the whole object or nothing, and can be repeated."""
    nth, reached = 1, True
    while reached:
        key = await connector.new_key()
        reached = await cancelled_at(connector.set(key, [b"x" * size]), nth)
        nth += 1
        with contextlib.suppress(KeyExistsError):
            await connector.set(key, [b"x" * size])
        await connector.wait(key, 0)
        assert await connector.get(key) == b"x" * size
        await connector.evict(key)
