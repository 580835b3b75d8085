"""A strict reader gets the latest object, and transfers what changed."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import numpy as np
import pytest

import proxyplane as pp
from proxyplane.connectors._keys import is_made
from proxyplane.testing import Recorder, Wrapper
from support.names import body


class TestStrictProxies:
    """A strict proxy gets the latest object when it is used."""

    @pytest.mark.usefixtures("lazy")
    async def test_first_use_gets_the_latest(self, store, other):
        """A strict proxy and its copies get what the key holds when they are first used."""
        proxy = await store.proxy([1], key="name", strict=True)
        assert not pp.is_resolved(proxy)
        copy = pickle.loads(pickle.dumps(proxy))
        await other.put([2], key="name")
        assert await proxy == [2]
        await other.put([3], key="name")
        assert await copy == [3]
        assert proxy == [2]

    @pytest.mark.usefixtures("lazy")
    async def test_a_touch_gets_the_latest(self, store, other):
        """A touch looks as an await does."""
        proxy = await store.proxy([1], key="name", strict=True)
        await other.put([2], key="name")
        assert await asyncio.to_thread(lambda: proxy == [2])

    async def test_hints_do_not_lie(self, store, other):
        """The hash of an object that can be replaced is not told before it is fetched."""
        proxy = pickle.loads(pickle.dumps(await store.proxy(7, key="name", populate_target=False)))
        await other.put(8, key="name")
        await store.get("name", strict=True)
        assert await asyncio.to_thread(hash, proxy) == hash(await proxy)

    async def test_pickled_size(self, store):
        """A strict proxy is as small as any other."""
        one = pickle.dumps(await store.proxy([1], key="name"))
        other = pickle.dumps(await store.proxy([1], key="name", strict=True))
        assert len(one) == len(other)

    def test_to_proxy(self, tmp_path):
        """`to_proxy` takes a key, and whether to be strict, as the older guide has it."""
        with pp.sync.Store("guide", pp.FileConnector(tmp_path / "objects")) as store:
            p = pp.to_proxy([1], key="custom-key", strict=True, store=store)
            pp.to_proxy([2], key="custom-key", store=store)
            assert p == [2]


async def _until_ahead(proxy: Any) -> None:
    factory = pp.get_factory(proxy)
    async with asyncio.timeout(60):
        while factory.ahead is None:
            await asyncio.sleep(0.001)


class TestTransfers:
    """The object goes over the wire only when it is another one."""

    @pytest.fixture
    def recorder(self, tmp_path):
        """What writes down the calls."""
        return Recorder(pp.FileConnector(tmp_path / "objects"))

    def read(self, recorder: Recorder) -> int:
        """How many large objects were got since the last call."""
        count = sum(call.operation == "get" and is_made(call.args[0]) for call in recorder.calls)
        recorder.calls.clear()
        return count

    async def test_get_transfers_what_changed(self, recorder):
        """A strict get of what is in the cache gets the record, and no object."""
        async with pp.Store("transfers", recorder) as store:
            await store.put(body(1), key="name")
            first = await store.get("name", strict=True)
            assert self.read(recorder) == 1
            for _ in range(3):
                assert await store.get("name", strict=True) is first
            assert await store.get_batch(["name"], strict=True) == [first]
            assert self.read(recorder) == 0
            await pp.Store("elsewhere", recorder).put(body(2), key="name")
            assert await store.get("name", strict=True) == body(2)
            assert self.read(recorder) == 1

    @pytest.mark.parametrize("how", ["prefetch", "resolve_async", "arrival"])
    async def test_a_proxy_fetched_ahead_looks_again(self, recorder, how):
        """What was fetched ahead serves the first use, unless it was replaced meanwhile."""
        async with pp.Store("ahead", recorder, cache_size=0) as store:
            proxy = await store.proxy(body(1), key="name", strict=True)
            for replaced in (False, True):
                copy = pickle.loads(pickle.dumps(proxy))
                if how == "prefetch":
                    pp.prefetch([copy])
                elif how == "resolve_async":
                    pp.resolve_async(copy)
                await _until_ahead(copy)
                assert self.read(recorder) == 1
                assert not pp.is_resolved(copy)
                if replaced:
                    await store.put(body(2), key="name")
                assert await copy == body(2 if replaced else 1)
                assert self.read(recorder) == replaced
                assert pp.get_factory(copy).ahead is None

    @pytest.mark.parametrize("how", ["await", "touch"])
    @pytest.mark.parametrize("replaced", [False, True])
    async def test_a_proxy_used_while_it_is_fetched_ahead(self, recorder, how, replaced):
        """It waits for that, and looks; the object is transferred once, unless it was replaced."""
        begun, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        class Gate(Wrapper):
            async def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
                reply = await super().call(operation, *args, **kwargs)
                if operation == "get" and is_made(args[0]):
                    loop.call_soon_threadsafe(begun.set)
                    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), loop))
                return reply

        async with pp.Store("ahead", Gate(recorder), cache_size=0) as store:
            proxy = await store.proxy(body(1), key="name", strict=True)
            pp.prefetch([proxy])
            await begun.wait()
            recorder.calls.clear()
            if replaced:
                await pp.Store("elsewhere", recorder).put(body(2), key="name")
            use = asyncio.to_thread(pp.extract, proxy) if how == "touch" else pp.aresolve(proxy)
            using = asyncio.ensure_future(use)
            done, _ = await asyncio.wait([using], timeout=0.1)
            assert not done
            go_on.set()
            assert await using == body(2 if replaced else 1)
            assert self.read(recorder) == replaced

    async def test_made_keys_take_no_more_calls(self, recorder):
        """Objects under the library's keys are put and got with one call, as ever."""
        async with pp.Store("made", recorder, cache_size=0) as store:
            key = await store.put(b"x")
            await store.get(key)
            await store.evict(key)
            assert [call.operation for call in recorder.calls] == ["put", "get", "evict"]

    async def test_small_objects_take_one_call(self, recorder):
        """A small object is replaced, and read, in one step."""
        async with pp.Store("small", recorder, cache_size=0) as store:
            await store.put(b"x", key="name")
            await store.put(b"y", key="name")
            await store.get("name")
            assert [call.operation for call in recorder.calls] == ["swap", "swap", "get"]

    async def test_arrays_are_aligned(self, recorder):
        """An array in a record is as good as any other: aligned, and writable."""
        async with pp.Store("arrays", recorder, cache_size=0) as store:
            array = np.arange(100, dtype=np.float64)
            await store.put(array, key="name")
            found = await store.get("name")
            assert found.flags.aligned and found.flags.writeable
            assert (found == array).all()
