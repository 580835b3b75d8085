"""What a store counts of its operations, and what an instrument is told."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import pickle
import threading

import numpy as np
import pytest

from proxyplane import FileConnector, LocalConnector, Store, StoreConfig, aresolve, get_key, sync
from proxyplane import metrics as metrics_module
from proxyplane.exceptions import ConfigError, ProxyResolveMissingKeyError, SerializationError
from proxyplane.metrics import BYTES, SECONDS, Event, Histogram, Metrics
from proxyplane.ownership import aupdate

pytestmark = pytest.mark.usefixtures("lazy")


class Listener:
    """An instrument that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        """Keeps it."""
        self.events.append(event)

    def of(self, operation: str) -> list[Event]:
        """What was told of one kind."""
        return [event for event in self.events if event.operation == operation]


async def test_counts_operations_bytes_and_times():
    """Each operation is counted once, with its bytes and the times of its steps."""
    async with Store("counted", LocalConnector(), metrics=True, cache_size=0) as store:
        key = await store.put(np.zeros(100_000))
        await store.get(key)
        await store.get(key)
        assert await store.exists(key)
        assert await store.evict(key)
        assert await store.get(key, default=7) == 7
        counted = store.metrics.operations
    assert {kind: one.count for kind, one in counted.items()} == {
        "put": 1,
        "get": 3,
        "exists": 1,
        "evict": 1,
    }
    put, get = counted["put"], counted["get"]
    assert 800_000 < put.size_bytes.total < 801_000
    assert get.size_bytes.total == 2 * put.size_bytes.total
    assert get.size_bytes.count == 2  # the third found nothing
    for one in (put.encode_seconds, put.io_seconds, get.io_seconds, get.decode_seconds):
        assert one.total > 0
    assert get.seconds.total >= get.io_seconds.total + get.decode_seconds.total
    assert not get.encode_seconds.total or get.encode_seconds.total < get.seconds.total


async def test_counts_each_object():
    """An object has numbers of its own, also from batches; unknown ones have none."""
    async with Store("each", LocalConnector(), metrics=True) as store:
        first, second = await store.put_batch(["a", "b"])
        await store.get_batch([first, second])
        await store.get(first)
        numbers = store.metrics.of_key(first)
        assert {kind: one.count for kind, one in numbers.items()} == {
            "put_batch": 1,
            "get_batch": 1,
            "get": 1,
        }
        assert numbers["get"].cached == 1
        assert store.metrics.operations["put_batch"].objects == 2
        assert store.metrics.of_key("unknown") == {}


async def test_numbers_of_objects_are_bounded():
    """Of the objects only those used last have numbers; the sums are of all."""
    metrics = Metrics(max_keys=10)
    async with Store("bounded", LocalConnector(), instrument=metrics) as store:
        keys = [await store.put(i) for i in range(30)]
    assert [bool(metrics.of_key(key)) for key in keys] == [False] * 20 + [True] * 10
    assert metrics.operations["put"].count == 30


async def test_proxies_and_futures_are_counted():
    """The fetch of a target, and the making, setting and result of a future, are operations."""
    listener = Listener()
    async with Store("several", FileConnector(), instrument=listener, register=True) as store:
        proxy = await store.proxy([1, 2])
        proxies = await store.proxy_batch(["a", "b"])
        future = await store.future()
        await future.aset_result({"x": 1})
        assert await future == {"x": 1}
        store._cache.clear()
        arrived = pickle.loads(pickle.dumps(proxy))
        assert await aresolve(arrived) == [1, 2]
        assert await aresolve(pickle.loads(pickle.dumps(proxy))) == [1, 2]
        assert len(proxies) == 2
    kinds = [event.operation for event in listener.events]
    for kind in ("proxy", "proxy_batch", "future", "set"):
        assert kinds.count(kind) == 1
    assert [event.cached for event in listener.of("resolve")] == [False, True]
    assert all(event.store == "several" and event.error is None for event in listener.events)
    assert all(event.keys for event in listener.events)


def test_blocking_calls_are_counted():
    """The facade counts what it does, with and without the shortcut of a medium."""
    with sync.Store("plain", FileConnector(), metrics=True) as store:
        key = store.put(b"x" * 1000)
        assert store.get(key) == b"x" * 1000
        assert store.metrics.operations["put"].count == 1
        assert store.metrics.operations["get"].io_seconds.total > 0


async def test_what_fails_is_counted():
    """An operation that fails, or is cancelled, counts as an error and keeps its exception."""
    listener = Listener()
    async with Store("failing", LocalConnector(), instrument=listener, metrics=True) as store:
        with pytest.raises(ProxyResolveMissingKeyError):
            await store.proxy_from_key("nothing")
        future = await store.future()
        task = asyncio.create_task(store.awaiting(get_key(future.proxy()), None).perform())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        with pytest.raises(SerializationError):
            await store.put(threading.Lock())
        errors = {kind: one.errors for kind, one in store.metrics.operations.items()}
    assert isinstance(listener.of("resolve")[0].error, ProxyResolveMissingKeyError)
    assert isinstance(listener.of("wait")[0].error, asyncio.CancelledError)
    assert errors == {"resolve": 1, "wait": 1, "put": 1, "future": 0}


async def test_an_instrument_that_fails_changes_nothing(caplog):
    """What an instrument raises is logged, and the operation has its result."""

    class Broken:
        def record(self, event: Event) -> None:
            raise RuntimeError("broken on purpose")

    async with Store("broken", LocalConnector(), instrument=Broken(), metrics=True) as store:
        with caplog.at_level(logging.ERROR, "proxyplane.metrics"):
            key = await store.put(1)
            assert await store.get(key) == 1
        assert store.metrics.operations["get"].count == 1
    assert "broken on purpose" in caplog.text


async def test_without_listeners_nothing_is_wrapped():
    """A store that nobody listens to has the operations of its class, and no metrics."""
    async with Store("unheard", LocalConnector()) as store:
        assert store.metrics is None
        assert not {"getting", "putting", "resolving", "cached"} & vars(store).keys()


def test_fifty_threads_count_together():
    """What many threads do at once is counted in full."""
    with sync.Store("threads", LocalConnector(), metrics=True, cache_size=0) as store:
        key = store.put(1)
        threads = [
            threading.Thread(target=lambda: [store.get(key) for _ in range(40)]) for _ in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.metrics.operations["get"].count == 2000
        assert sum(store.metrics.operations["get"].seconds.counts) == 2000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_count():
    """A child forked while another thread records does not meet its lock."""
    metrics = Metrics()
    with metrics._lock:
        pid = os.fork()
        if not pid:
            done = threading.Event()
            threading.Thread(
                target=lambda: (metrics.record(Event("s", "get", ("k",))), done.set()), daemon=True
            ).start()
            os._exit(0 if done.wait(30) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_reset_and_json():
    """The numbers go through JSON, and counting starts anew."""
    metrics = Metrics()
    metrics.record(Event("s", "get", ("k",), size=100, seconds=0.5, io_seconds=0.25))
    metrics.record(Event("s", "get", ("k",), seconds=1000.0))
    read = json.loads(json.dumps(metrics.as_dict()))["get"]
    assert read["count"] == 2
    assert read["seconds"]["total"] == 1000.5
    assert read["seconds"]["buckets"][-1] == [None, 1]
    assert read["io_seconds"]["count"] == 1
    assert read["size_bytes"]["smallest"] == 100
    assert "get" in str(metrics)
    assert "2 get" in repr(metrics)
    metrics.reset()
    assert metrics.as_dict() == {}
    assert metrics.of_key("k") == {}
    assert "nothing" in repr(metrics)
    assert "operation" in str(metrics)


def test_quantiles_bound_from_above():
    """A quantile is never below the true one, and within the width of a bucket."""
    values = [1e-5 * 1.07**i for i in range(200)]
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.add(value)
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        true = values[max(0, math.ceil(share * 200) - 1)]
        assert true <= histogram.quantile(share) <= 2 * true
    assert histogram.quantile(1) == histogram.largest == values[-1]
    assert histogram.smallest == values[0]
    assert Histogram(BYTES).quantile(0.5) == 0
    assert Histogram(BYTES).mean == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        histogram.quantile(2)


async def test_a_configuration_says_whether_to_count():
    """A store made from a configuration counts if that says so; its proxies do not carry it on."""
    config = StoreConfig("configured", FileConnector().url, metrics=True)
    assert StoreConfig.from_toml(config.to_toml()).metrics
    assert not StoreConfig.from_url(config.to_url()).metrics
    async with Store.from_config(config) as store:
        await store.put(1)
        assert store.metrics.operations["put"].count == 1
        assert store.config().metrics
    with pytest.raises(ConfigError, match="metrics"):
        StoreConfig("configured", config.connector, metrics=1)


async def test_keys_that_can_be_read_once_are_read_once():
    """With somebody listening, keys may come out of a generator as they may without."""
    async with Store("once", LocalConnector(), metrics=True, cache_size=0) as store:
        keys = await store.put_batch(["a", "b"])
        assert await store.get_batch(key for key in keys) == ["a", "b"]
        assert await store.evict_batch(key for key in keys) == [True, True]
        with pytest.raises(TypeError, match="a key is a string"):
            await store.get(None)
        counted = store.metrics.operations
    assert counted["get_batch"].objects == counted["evict_batch"].objects == 2


async def test_an_operation_made_of_others_is_one():
    """What a batch of chosen keys, or a strict read, does inside is no operation of its own."""
    listener = Listener()
    async with Store("one", LocalConnector(), instrument=listener) as store:
        made = await store.put("made")
        await store.put("named", key="name")
        listener.events.clear()
        assert await store.get_batch([made, "name"]) == ["made", "named"]
        assert await store.get(made, strict=True) == "made"
        assert await store.get("name", strict=True) == "named"
    assert [event.operation for event in listener.events] == ["get_batch", "get", "get"]
    assert listener.events[0].keys == (made, "name")


async def test_leases_and_updates_are_counted():
    """So are the lease that is given to objects, and the update of one that is owned."""
    listener = Listener()
    async with Store("changed", LocalConnector(), instrument=listener) as store:
        key = await store.put([1])
        assert await store.extend([key], 60) == [True]
        owned = await store.owned_proxy([2])
        owned.append(3)
        await aupdate(owned)
        owned_key = get_key(owned)
    (extend,) = listener.of("extend")
    (update,) = listener.of("update")
    assert extend.keys == (key,)
    assert update.keys == (owned_key,) and update.size > 0 and update.error is None


def test_a_large_batch_stays_within_the_bound(monkeypatch):
    """Numbers of single objects are never kept, nor made, for more of them than was asked for."""
    made = []
    plain = metrics_module.OperationMetrics.__init__
    monkeypatch.setattr(
        metrics_module.OperationMetrics,
        "__init__",
        lambda self: (made.append(self), plain(self))[1],
    )
    for most in (0, 10):
        made.clear()
        metrics = Metrics(max_keys=most)
        metrics.record(Event("s", "put_batch", tuple(map(str, range(1000)))))
        assert len(made) == most + 1
        assert metrics.operations["put_batch"].objects == 1000
        assert [bool(metrics.of_key(str(i))) for i in range(1000)] == [False] * (1000 - most) + [
            True
        ] * most
