"""Futures: consumers that start before their data exists, over every medium."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import proxyplane as pp
from proxyplane import sync
from proxyplane._store_base import DEFERRABLE
from proxyplane.abc import Buffer, Connector, Frames
from proxyplane.exceptions import (
    FutureAlreadySet,
    FutureCancelled,
    ObjectLostError,
    ProducerError,
    ProxyResolveError,
)
from proxyplane.failures import RemoteTraceback


@pytest.fixture(params=["local", "file", "redis"])
def connector(request: pytest.FixtureRequest, tmp_path: Path) -> Connector:
    if request.param == "local":
        return pp.LocalConnector()
    if request.param == "file":
        return pp.FileConnector(tmp_path)
    return pp.RedisConnector(request.getfixturevalue("redis_url"))


@pytest.fixture
async def store(connector: Connector) -> AsyncIterator[pp.Store]:
    async with pp.Store("futures", connector) as store:
        yield store


@pytest.fixture
def blocking(connector: Connector) -> Iterator[sync.Store]:
    with sync.Store("futures", connector) as store:
        yield store


def elsewhere(thing: Any) -> Any:
    """What arrives in another process."""
    return pickle.loads(pickle.dumps(thing))


async def until_waiting() -> None:
    """Lets tasks go as far as they come; where exactly they are must not matter."""
    for _ in range(20):
        await asyncio.sleep(0.001)


class TestResult:
    async def test_set_before(self, store: pp.Store) -> None:
        """A result that was set before is there at once."""
        future: pp.ProxyFuture[str] = await store.future()
        await future.aset_result("value")
        assert await elsewhere(future) == "value"
        assert await elsewhere(future.proxy()) == "value"
        assert await elsewhere(future).adone()

    async def test_set_after(self, store: pp.Store) -> None:
        """Whoever waits is woken by the set: futures, their proxies and their copies."""
        future = await store.future()
        waiting = [
            asyncio.ensure_future(one)
            for one in (future, elsewhere(future), future.proxy(), elsewhere(future.proxy()))
        ]
        await until_waiting()
        assert not any(one.done() for one in waiting)
        assert not await future.adone()
        await elsewhere(future).aset_result([1])
        assert [[1]] * 4 == await asyncio.gather(*waiting)

    async def test_absent_until_set(self, store: pp.Store) -> None:
        """A future that is not done is no object: its key holds nothing."""
        future = await store.future()
        key = pp.get_key(future.proxy())
        assert not await store.exists(key)
        assert await store.get(key) is None
        await future.aset_result([1])
        assert await store.get(key) == [1]

    async def test_none_and_bool(self, store: pp.Store) -> None:
        """A result may be what cannot be behind a proxy."""
        for value in (None, False):
            future = await store.future()
            await future.aset_result(value)
            assert await elsewhere(future) is value

    async def test_timeout(self, store: pp.Store) -> None:
        """Waiting past the deadline is a TimeoutError, and the future is as it was."""
        future = await store.future()
        with pytest.raises(TimeoutError):
            await future.aresult(0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.01)
        await future.aset_result(1)
        assert await future.aresult(10) == 1

    async def test_second_set(self, store: pp.Store) -> None:
        """A second set is refused, whatever it is, and changes nothing."""
        future = await store.future()
        await future.aset_result("first")
        for again in (future.aset_result("second"), future.aset_exception(ValueError())):
            with pytest.raises(FutureAlreadySet, match="once"):
                await again
        assert not await future.acancel()
        assert await elsewhere(future) == "first"

    async def test_set_at_once(self, store: pp.Store) -> None:
        """Of many sets at once exactly one succeeds, and its result is the one."""
        future = await store.future()
        sets = [elsewhere(future).aset_result(i) for i in range(10)]
        outcomes = await asyncio.gather(*sets, return_exceptions=True)
        assert 9 == sum(isinstance(one, FutureAlreadySet) for one in outcomes)
        assert await future == outcomes.index(None)

    async def test_cannot_be_encoded(self, store: pp.Store) -> None:
        """A result that cannot be stored leaves the future open."""
        future = await store.future()
        with pytest.raises(pp.exceptions.SerializationError):
            await future.aset_result(i for i in "no")
        await future.aset_result("yes")
        assert await future == "yes"

    async def test_evict(self, store: pp.Store) -> None:
        """With `evict` the first use removes the result, and it stays with who used it."""
        future = await store.future(evict=True)
        await future.aset_result([1])
        other = elsewhere(future.proxy())
        assert await future == [1]
        assert await future.proxy() == [1]
        assert await future.aresult() is await future
        assert not await store.exists(pp.get_key(future.proxy()))
        with pytest.raises(ProxyResolveError):
            await asyncio.wait_for(other, 30)

    async def test_lost(self, store: pp.Store) -> None:
        """Whoever waits for a future that was removed is told, and does not wait for ever."""
        future = await store.future()
        waiting = asyncio.ensure_future(elsewhere(future))
        proxy = asyncio.ensure_future(elsewhere(future.proxy()))
        await until_waiting()
        await pp.aevict(future.proxy())
        with pytest.raises(ObjectLostError):
            await waiting
        with pytest.raises(ProxyResolveError) as caught:
            await proxy
        assert isinstance(caught.value.cause, ObjectLostError)
        with pytest.raises(ObjectLostError):
            await future.aset_result(1)

    async def test_cancelled_waiter(self, store: pp.Store) -> None:
        """A waiter that is cancelled takes nothing from the others."""
        future = await store.future()
        one, other = (asyncio.ensure_future(elsewhere(future.proxy())) for _ in range(2))
        await until_waiting()
        one.cancel()
        await until_waiting()
        await future.aset_result("x")
        assert await other == "x"
        assert one.cancelled()


class TestExceptions:
    async def test_crosses_with_its_traceback(self, store: pp.Store) -> None:
        """The producer's exception is raised in consumers, with its traceback as text."""
        future = await store.future()
        try:
            raise_deep()
        except ValueError as error:
            await future.aset_exception(error)
        with pytest.raises(ValueError, match="deep") as caught:
            await elsewhere(future)
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert "raise_deep" in str(caught.value.__cause__)
        assert isinstance(await elsewhere(future).aexception(), ValueError)
        assert await future.adone()

    async def test_proxy_of_a_failure(self, store: pp.Store) -> None:
        """A proxy of a failed future cannot be resolved, because of what the producer raised."""
        future = await store.future()
        await future.aset_exception(KeyError("x"))
        proxy = elsewhere(future.proxy())
        for _ in range(2):
            with pytest.raises(ProxyResolveError) as caught:
                await proxy
            assert isinstance(caught.value.cause, KeyError)

    async def test_no_exception(self, store: pp.Store) -> None:
        """A future with a result has no exception."""
        future = await store.future()
        await future.aset_result(1)
        assert await future.aexception() is None

    async def test_cannot_be_rebuilt(self, store: pp.Store) -> None:
        """An exception that cannot cross as it is crosses as its text."""

        class LocalError(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__(f"{one} and {two}")

        future = await store.future()
        await future.aset_exception(LocalError(1, 2))
        with pytest.raises(ProducerError, match=r"LocalError: 1 and 2"):
            await elsewhere(future)

    async def test_not_an_exception(self, store: pp.Store) -> None:
        """Only exceptions that a consumer could handle can be set."""
        future = await store.future()
        for no in (KeyboardInterrupt(), "text"):
            with pytest.raises(TypeError, match="Exception"):
                await future.aset_exception(no)  # type: ignore[arg-type]
        assert not await future.adone()

    async def test_give_up(self, store: pp.Store) -> None:
        """A producer that gives up says so, and why."""
        future = await store.future()
        waiting = asyncio.ensure_future(elsewhere(future))
        await until_waiting()
        assert await future.acancel("the input was empty")
        with pytest.raises(FutureCancelled, match="the input was empty"):
            await waiting


def raise_deep() -> None:
    raise ValueError("deep")


class TestMany:
    async def test_as_completed(self, store: pp.Store) -> None:
        """Futures come in the order in which they are done."""
        futures = [await store.future() for _ in range(5)]
        order = [3, 0, 4, 1, 2]

        async def produce() -> None:
            for i in order:
                await until_waiting()
                await elsewhere(futures[i]).aset_result(i)

        producer = asyncio.create_task(produce())
        assert order == [await one async for one in pp.as_completed(futures, timeout=30)]
        await producer

    async def test_as_completed_too_late(self, store: pp.Store) -> None:
        """What is done is given before the deadline ends the rest."""
        done, never = await store.future(), await store.future()
        await done.aset_result(1)
        await done  # it is done without a question to the medium
        given = []
        with pytest.raises(TimeoutError, match="1 of 2"):
            async for one in pp.as_completed([done, never], timeout=0.2):
                given.append(one)
        assert [done] == given

    async def test_wait(self, store: pp.Store) -> None:
        """`wait` tells the done from the others; a failed one is done."""
        futures = [await store.future() for _ in range(3)]
        await futures[0].aset_result(1)
        await futures[1].aset_exception(ValueError())
        assert ({*futures[:2]}, set()) == await pp.wait(futures[:2])
        assert (set(), {futures[2]}) == await pp.wait(futures[2:], timeout=0.01)
        done, rest = await pp.wait(futures, return_when="FIRST_EXCEPTION", timeout=30)
        assert futures[1] in done
        assert futures[2] in rest
        assert (set(), set()) == await pp.wait([])

    async def test_callbacks(self, store: pp.Store) -> None:
        """A callback runs on the loop that registered it, with the future."""
        future, here = await store.future(), threading.get_ident()
        called: list[Any] = []
        future.add_done_callback(lambda one: called.append((one, threading.get_ident())))
        await until_waiting()
        assert [] == called
        await future.aset_result(1)
        async with asyncio.timeout(30):
            while not called:
                await asyncio.sleep(0.001)
        assert [(future, here)] == called


class TestBlocking:
    def test_result(self, blocking: sync.Store) -> None:
        """Blocking code waits for a result that another thread sets."""
        future: pp.ProxyFuture[list[int]] = blocking.future()
        with pytest.raises(TimeoutError):
            future.result(timeout=0.01)
        producer = threading.Timer(0.05, elsewhere(future).set_result, [[1]])
        producer.start()
        assert future.result(timeout=30) == [1]
        assert future.done()
        producer.join()

    def test_touch(self, blocking: sync.Store) -> None:
        """A touch of a future's proxy waits."""
        future = blocking.future()
        proxy = elsewhere(future.proxy())
        producer = threading.Timer(0.05, future.set_result, [[1, 2]])
        producer.start()
        assert len(proxy) == 2
        producer.join()

    def test_many(self, blocking: sync.Store) -> None:
        """`wait` and `as_completed` have blocking twins."""
        futures = [blocking.future() for _ in range(3)]
        producers = [threading.Timer(0.02, one.set_result, [i]) for i, one in enumerate(futures)]
        for producer in producers:
            producer.start()
        assert {0, 1, 2} == {one.result() for one in sync.as_completed(futures, timeout=30)}
        assert ({*futures}, set()) == sync.wait(futures)
        never = blocking.future()
        assert (set(), {never}) == sync.wait([never], timeout=0.01)
        with pytest.raises(TimeoutError):
            list(sync.as_completed([never], timeout=0.01))
        for producer in producers:
            producer.join()

    def test_exception_and_cancel(self, blocking: sync.Store) -> None:
        """Failures and cancellation are the same without a loop."""
        future = blocking.future()
        future.set_exception(ValueError("no"))
        assert isinstance(elsewhere(future).exception(), ValueError)
        with pytest.raises(ValueError, match="no"):
            elsewhere(future).result()
        future = blocking.future()
        assert future.cancel()
        assert not future.cancel()
        with pytest.raises(FutureCancelled):
            elsewhere(future).result()

    def test_callback(self, blocking: sync.Store) -> None:
        """Without a loop a callback runs on a worker, never on the library's loop."""
        future = blocking.future()
        called: list[str] = []
        ran = threading.Event()

        def callback(one: pp.ProxyFuture[Any]) -> None:
            called.append(threading.current_thread().name)
            ran.set()

        future.add_done_callback(callback)
        future.set_result(1)
        assert ran.wait(30)
        assert "proxyplane-io" not in called


class TestShape:
    async def test_size(self, store: pp.Store) -> None:
        """A future pickles to less than 250 bytes, and so does its proxy."""
        future = await store.future(type=np.ndarray)
        assert len(pickle.dumps(future)) < 250
        assert len(pickle.dumps(future.proxy())) < 250

    async def test_type(self, store: pp.Store) -> None:
        """With a type, the proxy answers probes as that type; without, as a plain proxy."""
        typed = elsewhere((await store.future(type=np.ndarray)).proxy())
        plain = elsewhere((await store.future()).proxy())
        assert isinstance(typed, np.ndarray)
        assert not callable(typed)
        assert not isinstance(plain, np.ndarray)
        assert not asyncio.isfuture(plain)
        assert "unresolved" in repr(plain)
        assert not pp.is_resolved(typed)
        assert not pp.is_resolved(plain)

    async def test_equality(self, store: pp.Store) -> None:
        """Copies of a future are equal to it, and others are not."""
        one, other = await store.future(), await store.future()
        assert one == elsewhere(one)
        assert hash(one) == hash(elsewhere(one))
        assert one != other

    async def test_connector_that_cannot_defer(self) -> None:
        """A connector that cannot defer says so, and names those that can."""
        store = pp.Store("no futures", NotDeferrable())
        with pytest.raises(NotImplementedError, match=", ".join(DEFERRABLE)):
            await store.future()


class NotDeferrable(Connector):
    """A dictionary."""

    scheme = "not-deferrable"
    url = "not-deferrable:"

    @classmethod
    def from_url(cls, url: str) -> NotDeferrable:
        return cls()

    async def put(self, frames: Frames, *, key: str | None = None) -> str:
        raise NotImplementedError

    async def get(self, key: str, *, size: int | None = None) -> Buffer | None:
        raise NotImplementedError

    async def exists(self, key: str) -> bool:
        raise NotImplementedError

    async def evict(self, key: str) -> bool:
        raise NotImplementedError

    async def aclose(self, *, clear: bool = False) -> None:
        raise NotImplementedError


PRODUCER = """
    import pickle, sys
    future = pickle.load(sys.stdin.buffer)
    {action}
"""


@pytest.mark.parametrize("medium", ["file", "redis"])
class TestProcesses:
    """Producer and consumer in processes of their own."""

    @pytest.fixture
    def connector(self, medium: str, tmp_path: Path, request: pytest.FixtureRequest) -> Connector:
        if medium == "file":
            return pp.FileConnector(tmp_path)
        return pp.RedisConnector(request.getfixturevalue("redis_url"))

    def start(self, future: Any, action: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(PRODUCER.format(action=action))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(future))
        process.stdin.close()
        process.stdin = None
        return process

    def end(self, process: subprocess.Popen[bytes]) -> str:
        out, err = process.communicate(timeout=60)
        assert (0, b"") == (process.returncode, err)
        return out.decode()

    def test_produced_elsewhere(self, blocking: sync.Store) -> None:
        """A result set in another process arrives here."""
        future = blocking.future()
        process = self.start(future, "future.set_result(list(range(1000)))")
        assert future.result(timeout=60) == list(range(1000))
        self.end(process)

    def test_consumed_elsewhere(self, blocking: sync.Store) -> None:
        """A process that touches a proxy of a future waits for what is set here."""
        future = blocking.future()
        process = self.start(future.proxy(), "print(sum(future))")
        future.set_result([1, 2, 3])
        assert "6" == self.end(process).strip()

    def test_failure_elsewhere(self, blocking: sync.Store) -> None:
        """A producer's exception arrives with the traceback of its process."""
        future = blocking.future()
        process = self.start(
            future,
            "try: 1 / 0\n    except ZeroDivisionError as error: future.set_exception(error)",
        )
        with pytest.raises(ZeroDivisionError) as caught:
            future.result(timeout=60)
        assert 'File "<string>"' in str(caught.value.__cause__)
        self.end(process)

    def test_two_producers(self, blocking: sync.Store) -> None:
        """Of two processes that set one future exactly one succeeds."""
        future = blocking.future()
        action = (
            "import os; from proxyplane.exceptions import FutureAlreadySet\n"
            "    try: future.set_result(os.getpid()); print('set')\n"
            "    except FutureAlreadySet: print('late')"
        )
        processes = [self.start(future, action) for _ in range(2)]
        said = [self.end(process).strip() for process in processes]
        assert ["late", "set"] == sorted(said)
        assert future.result(timeout=60) == processes[said.index("set")].pid
