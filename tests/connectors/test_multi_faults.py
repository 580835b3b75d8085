"""Connectors of a multi-connector fail, and its callers are cancelled."""

from __future__ import annotations

import asyncio

import pytest

from proxyplane import LocalConnector, MultiConnector
from proxyplane.connectors import _tasks
from proxyplane.connectors._tasks import all_or_raise, to_the_end
from proxyplane.connectors.multi import Policy
from proxyplane.exceptions import (
    ConnectorLostError,
    ConnectorUnavailableError,
    KeyExistsError,
    PartialBatchError,
    StoreFullError,
)
from proxyplane.testing import FailingConnector, SlowConnector, Wrapper, cancelled_at

SMALL = Policy(max_bytes=100)
LARGE_BODY = bytes(5000)
LOST = ConnectorLostError("the cable")


class Gated(Wrapper):
    """Stops before some operations until it is told to go on."""

    def __init__(self, connector, *operations):
        super().__init__(connector)
        self.operations = operations
        self.entered, self.go_on = asyncio.Event(), asyncio.Event()

    async def call(self, operation, *args, **kwargs):
        if operation in self.operations:
            self.entered.set()
            await self.go_on.wait()
        return await super().call(operation, *args, **kwargs)


class LateReply(Wrapper):
    """Does what it is asked at once, and tells so a moment later."""

    async def call(self, operation, *args, **kwargs):
        result = await super().call(operation, *args, **kwargs)
        await asyncio.sleep(0)
        return result


def two(small=lambda one: one, large=lambda one: one):
    """A multi-connector of two, each wrapped, and what each of them holds."""
    media = LocalConnector(), LocalConnector()
    multi = MultiConnector({"small": (small(media[0]), SMALL), "large": large(media[1])})
    return multi, media[0]._medium.entries, media[1]._medium.entries


def failing(operation, nth=1, error=LOST, **kwargs):
    return lambda one: FailingConnector(one, nth, error, operations=[operation], **kwargs)


def slow(one):
    return SlowConnector(one, 0)


async def settled():
    """Returns when no call goes on behind its caller's back."""
    while _tasks._going_on:
        await asyncio.wait(_tasks._going_on)


# -- batches -----------------------------------------------------------------------------------

BATCH = [[b"one"], [LARGE_BODY], [b"two"], [LARGE_BODY]]


@pytest.mark.parametrize("where", ["small", "large"])
async def test_a_batch_that_fails_is_taken_back(where):
    """If one connector fails, nothing of the batch stays in the other, and its error is raised."""
    full = StoreFullError("no room")
    multi, small, large = two(**{where: failing("put_batch", error=full)})
    with pytest.raises(StoreFullError) as caught:
        await multi.put_batch(BATCH)
    assert caught.value is full
    assert (len(small), len(large)) == (0, 0)
    assert len(await multi.put_batch(BATCH)) == 4


async def test_a_failure_ends_what_is_under_way():
    """A connector that has not stored its part yet does not do so any more."""
    gated = []

    def gate(one):
        gated.append(Gated(one, "put_batch"))
        return gated[0]

    multi, small, large = two(small=gate, large=failing("put_batch"))
    with pytest.raises(ConnectorLostError):
        await multi.put_batch(BATCH)
    gated[0].go_on.set()
    await asyncio.sleep(0)
    assert (len(small), len(large)) == (0, 0)


async def test_a_batch_that_cannot_be_taken_back():
    """Then the error names the keys that stayed, and each connector that failed."""
    gone = ConnectorUnavailableError("gone")
    multi, small, large = two(small=failing("evict_batch", error=gone), large=failing("put_batch"))
    with pytest.raises(PartialBatchError, match="large: the cable.*small: gone") as caught:
        await multi.put_batch(BATCH)
    error = caught.value
    assert error.errors == {"large": LOST, "small": gone}
    assert error.__cause__ is LOST
    assert (len(small), len(large)) == (2, 0)
    assert await multi.get_batch(list(error.there)) == [b"one", b"two"]
    assert set(error.there.values()) == {True}


async def test_a_mistake_is_no_partial_failure():
    """What is no buffer is a TypeError before anything is stored."""
    multi, small, large = two()
    with pytest.raises(TypeError):
        await multi.put_batch([*BATCH, [object()]])
    assert (len(small), len(large)) == (0, 0)


async def test_eviction_in_part():
    """What is known of other connectors is told; the keys of the failed ones can be tried again."""
    multi, small, large = two(large=failing("evict_batch"))
    keys = await multi.put_batch(BATCH)
    await multi.put([b"named"], key="name")
    await multi.evict(keys[2])
    with pytest.raises(PartialBatchError, match="large: the cable") as caught:
        await multi.evict_batch([*keys, "name", "absent", keys[0]])
    assert caught.value.errors == {"large": LOST}
    assert caught.value.there == {keys[0]: True, keys[2]: False, "name": True, "absent": False}
    assert (len(small), len(large)) == (0, 2)
    assert await multi.evict_batch(keys) == [False, True, False, True]


async def test_eviction_that_fails_everywhere():
    """If nothing else is known, the error of the first is raised as it is."""
    multi, *_ = two(small=failing("evict_batch"), large=failing("evict_batch"))
    keys = await multi.put_batch(BATCH)
    with pytest.raises(ConnectorLostError) as caught:
        await multi.evict_batch(keys)
    assert caught.value is LOST
    assert await multi.evict_batch(keys) == [True] * 4


async def test_a_read_that_fails():
    """The error of the connector is raised as it is, and no other reads on."""
    gated = []

    def gate(one):
        gated.append(Gated(one, "get_batch"))
        return gated[0]

    multi, *_ = two(small=failing("get_batch"), large=gate)
    keys = await multi.put_batch(BATCH)
    with pytest.raises(ConnectorLostError) as caught:
        await multi.get_batch(keys)
    assert caught.value is LOST
    gated[0].go_on.set()
    assert await multi.get_batch(keys) == [b"one", LARGE_BODY, b"two", LARGE_BODY]


# -- chosen keys -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StoreFullError("no room"), ConnectorUnavailableError("gone")])
async def test_a_record_that_cannot_be_put(error):
    """Then the object is evicted again, and the key is free."""
    multi, small, large = two(small=failing("put", error=error))
    with pytest.raises(type(error)) as caught:
        await multi.put([LARGE_BODY], key="key")
    assert caught.value is error
    assert (len(small), len(large)) == (0, 0)
    assert await multi.put([LARGE_BODY], key="key") == "key"


@pytest.mark.parametrize("too_late", [False, True])
async def test_a_record_that_may_be_there(too_late):
    """When the connection breaks over the record, the key holds the whole object or nothing."""
    multi, *_ = two(small=failing("put", too_late=too_late))
    with pytest.raises(ConnectorLostError):
        await multi.put([LARGE_BODY], key="key")
    assert await multi.exists("key") is too_late
    assert await multi.get("key") == (LARGE_BODY if too_late else None)


async def test_a_key_that_is_taken_meanwhile():
    """Who comes second takes its object back, also when the look before found nothing."""
    gated = []

    def gate(one):
        gated.append(Gated(one, "put"))
        return gated[0]

    multi, small, large = two(large=gate)
    putting = asyncio.ensure_future(multi.put([LARGE_BODY], key="key"))
    await gated[0].entered.wait()
    await multi.put([b"first"], key="key")
    gated[0].go_on.set()
    with pytest.raises(KeyExistsError):
        await putting
    assert await multi.get("key") == b"first"
    assert (len(small), len(large)) == (1, 0)


# -- cancellation ------------------------------------------------------------------------------


async def every_step(operation):
    """Cancels an operation at its 1st, 2nd, ... suspension; yields after each try."""
    nth, reached = 1, True
    while reached:
        reached = await cancelled_at(operation(nth), nth)
        await settled()
        yield nth
        nth += 1
    assert nth > 2


@pytest.mark.parametrize("record", [slow, LateReply])
async def test_cancelled_put_under_a_chosen_key(record):
    """Cancelled at any moment, the object and its record are both there, or neither."""
    multi, small, large = two(small=record, large=slow)
    found = set()
    async for nth in every_step(lambda nth: multi.put([LARGE_BODY], key=f"{nth}")):
        assert len(small) == len(large)
        assert await multi.get(f"{nth}") == (LARGE_BODY if large else None)
        found.add(len(large))
        await multi.evict(f"{nth}")
        assert (len(small), len(large)) == (0, 0)
    assert found == {0, 1}


@pytest.mark.parametrize("batch", [False, True])
async def test_cancelled_evict_of_a_chosen_key(batch):
    """Cancelled at any moment, the object and its record are both gone, or neither."""
    multi, small, large = two(small=slow, large=slow)

    async def evict(nth):
        await multi.evict_batch(["key", "other"]) if batch else await multi.evict("key")

    await multi.put([LARGE_BODY], key="key")
    async for _ in every_step(evict):
        assert len(small) == len(large)
        if not large:
            await multi.put([LARGE_BODY], key="key")


async def test_cancelled_put_batch():
    """Cancelled at any moment, all of a batch is there or nothing."""
    multi, small, large = two(small=slow, large=slow)
    kept = []

    async def put(nth):
        kept.append(await multi.put_batch(BATCH))

    async for _ in every_step(put):
        assert (len(small), len(large)) == (2 * len(kept), 2 * len(kept))
    assert len(kept) == 1


async def test_cancelled_reads():
    """Cancelled at any moment, they leave nothing under way and the next is answered right."""
    multi, *_ = two(small=slow, large=slow)
    keys = [*await multi.put_batch(BATCH), "name"]
    await multi.put([LARGE_BODY], key="name")
    bodies = [b"".join(frames) for frames in [*BATCH, [LARGE_BODY]]]

    async def read(nth):
        assert await multi.get_batch(keys) == bodies
        await multi.exists("name")
        await multi.get("name")

    async for _ in every_step(read):
        assert await multi.get_batch(keys[::-1]) == bodies[::-1]
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelled_while_a_connector_is_made(tmp_path):
    """Whoever needs the dormant connector next gets it."""
    for nth in range(1, 4):
        multi = MultiConnector({"files": f"file://{tmp_path}/{nth}"})
        await cancelled_at(multi.put([b"x"], key="key"), nth)
        assert await multi.exists("key") in (False, True) if nth > 1 else True
        key = await multi.put([b"object"])
        assert await multi.get(key) == b"object"


async def test_cancelled_twice():
    """A caller who is cancelled once more does not wait, and the work is done all the same."""
    gated = []

    def gate(one):
        gated.append(Gated(one, "evict_batch"))
        return gated[0]

    multi, small, large = two(large=gate)
    await multi.put([LARGE_BODY], key="key")
    evicting = asyncio.ensure_future(multi.evict("key"))
    await gated[0].entered.wait()
    evicting.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not evicting.done()
    evicting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await evicting
    gated[0].go_on.set()
    await settled()
    assert (len(small), len(large)) == (0, 0)


async def test_to_the_end_has_patience_for_so_long(monkeypatch):
    """A cancelled caller does not wait for ever; what fails later is nobody's warning."""
    monkeypatch.setattr(_tasks, "PATIENCE_SECONDS", 0.001)
    go_on, entered = asyncio.Event(), asyncio.Event()

    async def call():
        entered.set()
        await go_on.wait()
        raise LOST

    calling = asyncio.ensure_future(to_the_end(call()))
    await entered.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    go_on.set()
    await settled()


async def test_all_or_raise():
    """Results come in order; the first error ends the others, and carries its own cause."""

    async def give(value):
        await asyncio.sleep(0)
        return value

    async def fail():
        raise LOST from ValueError("cause")

    ended = []

    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    assert await all_or_raise([]) == []
    assert await all_or_raise([give(1)]) == [1]
    assert await all_or_raise([give(1), give(2)]) == [1, 2]
    with pytest.raises(ConnectorLostError) as caught:
        await all_or_raise([forever(), fail(), forever()])
    assert caught.value is LOST
    assert str(caught.value.__cause__) == "cause"
    assert len(ended) == 2


# -- closing -----------------------------------------------------------------------------------


async def test_closing_in_spite_of_a_failure():
    """All are closed, then the error of the one that failed is raised."""
    multi, *_ = two(small=failing("aclose"))
    await multi.put_batch(BATCH)
    with pytest.raises(ConnectorLostError):
        await multi.aclose(clear=True)
    inner = multi._parts._made["large"]
    assert inner._closed
    await multi.aclose(clear=True)  # repeats what failed
    assert multi._parts._made["small"].inner._closed
