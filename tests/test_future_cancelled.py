"""Whatever one does with a future can be cancelled wherever it waits, on every medium.

No wrong value comes of it, and no task, waiter, connection or descriptor is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import random

import pytest

import proxyplane as pp
from proxyplane.exceptions import FutureAlreadySet
from proxyplane.testing import cancelled_at
from support.soak import defended_or_not, times
from support.waiting import until

pytestmark = [pytest.mark.row("cancellation at every await"), pytest.mark.usefixtures("lazy")]


@pytest.fixture
async def store(medium):
    async with pp.Store("cancelled", medium.connector(), cache_size=0) as store:
        yield store


def elsewhere(thing):
    """What arrives in another process."""
    return pickle.loads(pickle.dumps(thing))


async def consume_all(future):
    async for one in pp.as_completed([elsewhere(future)]):
        await one


CONSUMERS = {
    "result": lambda future: elsewhere(future).aresult(),
    "result in time": lambda future: elsewhere(future).aresult(60),
    "exception": lambda future: elsewhere(future).aexception(),
    "proxy": lambda future: pp.aresolve(elsewhere(future.proxy())),
    "two proxies": lambda future: pp.gather(*elsewhere([future.proxy()] * 2)),
    "wait": lambda future: pp.wait([elsewhere(future), elsewhere(future)]),
    "as_completed": consume_all,
    "done": lambda future: elsewhere(future).adone(),
}
PRODUCERS = {
    "set_result": lambda future: future.aset_result("value"),
    "set_large": lambda future: future.aset_result(LARGE),
    "set_exception": lambda future: future.aset_exception(ValueError("value")),
    "cancel": lambda future: future.acancel(),
}
LARGE = list(range(300_000))  # encoded on a worker


async def nothing_left(medium, store, tasks):
    """Returns when nobody waits any more and nothing runs."""
    await until(lambda: asyncio.all_tasks() <= tasks or medium.name in ("redis", "cluster"))
    await until(lambda: medium.waiters(store.connector) == 0)


@pytest.mark.parametrize("name", CONSUMERS)
async def test_consumers(medium, store, name):
    """A consumer that is cancelled leaves nothing, and takes nothing from the one who waits on."""

    async def one_step(store, nth):
        tasks = asyncio.all_tasks()
        future = await store.future()
        other = asyncio.ensure_future(elsewhere(future).aresult())
        await medium.waiting(store.connector, pp.get_key(future.proxy()))

        async def produce():
            await asyncio.sleep(0.01)
            await future.aset_result([nth])

        producer = asyncio.ensure_future(produce())
        reached = await cancelled_at(CONSUMERS[name](future), nth)
        await producer
        assert await other == [nth]
        assert await elsewhere(future) == [nth]
        await nothing_left(medium, store, tasks | {other, producer})
        return reached

    async with pp.Store("first", medium.connector(), cache_size=0) as first:
        await one_step(first, 1_000)  # what is made once in a process is made
    await medium.rest()
    before = medium.held()
    nth = 1
    while await one_step(store, nth):
        nth += 1
    assert nth > 1 or name == "done"  # some media need not wait to tell
    await store.aclose()
    await medium.rest()
    await until(lambda: medium.holds_no_more(before))


@pytest.mark.parametrize("name", PRODUCERS)
async def test_producers(medium, store, name):
    """A producer that is cancelled has set the future or not, and then another one can."""

    async def one_step(nth):
        tasks = asyncio.all_tasks()
        future = await store.future()
        other = asyncio.ensure_future(elsewhere(future).aexception())
        reached = await cancelled_at(PRODUCERS[name](future), nth)
        with contextlib.suppress(FutureAlreadySet):
            await PRODUCERS[name](future)
        error = await other
        assert (error is None) is name.startswith(("set_result", "set_large"))
        if error is None:
            assert await elsewhere(future) == (LARGE if name == "set_large" else "value")
        await nothing_left(medium, store, tasks | {other})
        return reached

    nth = 1
    while await one_step(nth):
        nth += 1
    # Where the whole of it is done at once there is nothing to cancel.
    assert nth > 1 or medium.name != "redis"


async def test_at_random(medium, store):
    """Consumers are cancelled at random, in crowds: who is not gets the value, and nobody hangs."""
    dice = random.Random(11)
    tasks = asyncio.all_tasks()
    for number in range(0, times("cancellation at every await"), 10):
        future = await store.future()
        crowd = [
            asyncio.ensure_future(CONSUMERS[dice.choice(["result", "proxy"])](future))
            for _ in range(20)
        ]
        doomed = dice.sample(crowd, 10)
        producer = asyncio.ensure_future(future.aset_result([number]))
        for task in doomed:
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
        await producer
        found = await asyncio.gather(*crowd, return_exceptions=True)
        for task, value in zip(crowd, found, strict=True):
            ended = value == [number]
            assert ended or (task in doomed and isinstance(value, asyncio.CancelledError)), value
    await nothing_left(medium, store, tasks)


@defended_or_not
async def test_a_wait_that_goes_on(medium, store, monkeypatch, defended):
    """A wait that did not end with its caller would be noticed: it is there."""
    connector = store.connector
    if not defended:
        real = connector.wait
        monkeypatch.setattr(
            connector, "wait", lambda *args: asyncio.shield(asyncio.ensure_future(real(*args)))
        )
    future = await store.future()
    task = asyncio.ensure_future(future.aresult())
    await medium.waiting(connector, pp.get_key(future.proxy()))
    task.cancel()
    await asyncio.wait([task])
    if defended:
        await until(lambda: medium.waiters(connector) == 0)
    else:
        await asyncio.sleep(0.1)
        assert medium.waiters(connector) == 1
        await future.aset_result(1)
        await until(lambda: medium.waiters(connector) == 0)
