"""Tasks whose arguments and results travel as proxies."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import threading
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane import (
    OwnedProxy,
    Proxy,
    ProxyAlways,
    ProxyType,
    RefProxy,
    StoreExecutor,
    StoreTaskGroup,
    borrow,
    mut_borrow,
)
from proxyplane.exceptions import BlockingCallError, StoreFullError
from proxyplane.testing.steps import cancelled_at
from support.owners import until


def objects(path: Path) -> list[str]:
    """The files of objects below a directory."""
    return [name for _, _, names in os.walk(path) for name in names]


def kinds(*args: Any, **kwargs: Any) -> list[str]:
    return [type(one).__name__ for one in (*args, *kwargs.values())]


def join(a: str, *, b: str) -> str:
    return f"{a}-{b}"


def same(x: Any) -> Any:
    return x


def fail(x: Any) -> None:
    raise LookupError(f"{x!s}")


def die(x: Any) -> None:
    os._exit(1)


def append(x: list[int]) -> list[int]:
    assert isinstance(x, RefProxy)
    return [*x, len(x)]


@pytest.fixture(params=["threads", "spawn", "fork"])
def pool(request: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork")
        if request.param == "threads":
            with ThreadPoolExecutor(2) as pool:
                yield pool
        else:
            context = multiprocessing.get_context(request.param)
            with ProcessPoolExecutor(2, context) as pool:
                yield pool


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with pp.sync.Store("s", f"file://{tmp_path}") as store:
        yield store


def empty(path: Path) -> None:
    """Returns when nothing is stored any more."""

    def is_empty() -> bool:
        gc.collect()
        return not objects(path)

    until(is_empty)


class TestStoreExecutor:
    def test_nothing_chosen(self, pool: Any, store: pp.sync.Store, tmp_path: Path) -> None:
        """Without a policy everything travels as it is."""
        with StoreExecutor(pool, store) as executor:
            assert ["int", "list"] == executor.submit(kinds, 1, b=[1]).result()
            assert not isinstance(executor.submit(join, "a", b="b").result(), Proxy)
        assert [] == objects(tmp_path)

    def test_what_a_task_gets(self, pool: Any, store: pp.sync.Store, tmp_path: Path) -> None:
        """A task gets borrows of what was chosen, and its caller owns the result."""
        with StoreExecutor(pool, store, ProxyType(str)) as executor:
            assert ["RefProxy[str]", "int"] == executor.submit(kinds, "a", b=1).result()
            result = executor.submit(join, "a", b="b").result()
            assert isinstance(result, OwnedProxy)
            assert isinstance(result, str)
            assert "a-b" == result
            until(lambda: len(objects(tmp_path)) == 1)
            del result
            empty(tmp_path)

    def test_without_ownership(self, pool: Any, store: pp.sync.Store, tmp_path: Path) -> None:
        """Results may come as plain proxies, which are for the caller to evict."""
        with StoreExecutor(pool, store, ProxyType(str), ownership=False) as executor:
            result = executor.submit(join, "a", b="b").result()
            assert type(result).__name__.startswith("Proxy")
            assert "a-b" == result
            pp.evict(result)
            empty(tmp_path)

    def test_map(self, pool: Any, store: pp.sync.Store, tmp_path: Path) -> None:
        """Each item is chosen for itself, and results come in order."""
        with StoreExecutor(pool, store, ProxyType(list)) as executor:
            results = list(executor.map(append, [[i] * i for i in range(5)]))
            assert all(isinstance(one, OwnedProxy) for one in results)
            assert [[i] * i + [i] for i in range(5)] == results
            del results
            empty(tmp_path)

    def test_not_proxiable(self, pool: Any, store: pp.sync.Store) -> None:
        """What cannot be behind a proxy travels as it is, whatever the policy."""
        with StoreExecutor(pool, store, ProxyAlways()) as executor:
            assert executor.submit(same, None).result() is None
            assert executor.submit(same, True).result() is True

    def test_an_argument_comes_back(self, pool: Any, store: pp.sync.Store) -> None:
        """A task that returns its argument returns the object, which outlives the task."""
        with StoreExecutor(pool, store, ProxyType(str)) as executor:
            result = executor.submit(same, "value").result()
            assert isinstance(result, OwnedProxy)
            assert "value" == result

    def test_pipeline(self, pool: Any, store: pp.sync.Store, tmp_path: Path) -> None:
        """Results go into the next task, and what is not needed any more is gone."""
        with StoreExecutor(pool, store, ProxyType(list)) as executor:
            value: Any = executor.submit(append, [0]).result()
            for _ in range(10):
                value = executor.submit(append, borrow(value)).result()
            assert [0, *range(1, 12)] == value
            until(lambda: gc.collect() >= 0 and len(objects(tmp_path)) == 1)
            del value
            empty(tmp_path)

    def test_owner_is_passed(self, pool: Any, store: pp.sync.Store) -> None:
        """An owner that is passed is returned as one."""
        owner = store.owned_proxy([1], populate_target=False)
        with StoreExecutor(pool, store, ProxyType(list)) as executor:
            again = executor.submit(same, owner).result()
            assert isinstance(again, OwnedProxy)
            assert [1] == again

    def test_a_task_fails(self, pool: Any, store: pp.sync.Store, tmp_path: Path) -> None:
        """Arguments go with a task that raises."""
        with StoreExecutor(pool, store, ProxyAlways()) as executor:
            with pytest.raises(LookupError, match="why"):
                executor.submit(fail, "why").result()
            empty(tmp_path)

    def test_a_worker_dies(self, store: pp.sync.Store, tmp_path: Path) -> None:
        """And with a worker that dies."""
        context = multiprocessing.get_context("spawn")
        with StoreExecutor(ProcessPoolExecutor(1, context), store, ProxyAlways()) as executor:
            futures = [executor.submit(die, [1]) for _ in range(4)]
            assert all(future.exception() for future in futures)
            empty(tmp_path)

    def test_cancelled(self, store: pp.sync.Store, tmp_path: Path) -> None:
        """And with one that is cancelled before it begins."""
        leave = threading.Event()
        with StoreExecutor(ThreadPoolExecutor(1), store, ProxyType(list)) as executor:
            running = executor.submit(leave.wait)
            waiting = [executor.submit(append, [i]) for i in range(5)]
            assert 5 == len(objects(tmp_path))
            assert all(future.cancel() for future in waiting)
            empty(tmp_path)
            leave.set()
            assert running.result()

    def test_cannot_be_submitted(
        self, store: pp.sync.Store, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """What was stored for a task that does not come to be is evicted."""

        class Refuses(Executor):
            def submit(self, *args: Any, **kwargs: Any) -> Any:
                raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            StoreExecutor(Refuses(), store, ProxyAlways()).submit(kinds, [1], [2])
        empty(tmp_path)

        class FullLater(ProxyAlways):
            def __call__(self, item: Any) -> bool:
                if item == 2:
                    raise StoreFullError("no room")
                return True

        with StoreExecutor(ThreadPoolExecutor(1), store, FullLater()) as executor:
            with pytest.raises(StoreFullError):
                executor.submit(kinds, 1, 2)
        empty(tmp_path)

    def test_borrows_of_the_caller(self, pool: Any, store: pp.sync.Store) -> None:
        """A borrow that the caller passes ends with the task."""
        owner = store.owned_proxy([1])
        with StoreExecutor(pool, store) as executor:
            assert ["RefMutProxy[list]"] == executor.submit(kinds, mut_borrow(owner)).result()
        assert [1] == mut_borrow(owner)

    def test_close(self, store: pp.sync.Store) -> None:
        """The store stays open unless it is to be closed; the executor is shut down."""
        inner = ThreadPoolExecutor(1)
        with StoreExecutor(inner, store):
            pass
        with pytest.raises(RuntimeError, match="shutdown"):
            inner.submit(len, "a")
        assert not store.closed
        with StoreExecutor(ThreadPoolExecutor(1), store, close_store=True):
            pass
        assert store.closed

    def test_a_client(self, store: pp.sync.Store) -> None:
        """What is no executor but has its method, and a close, will do."""

        class Client:
            closed = False

            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
                future: Future[Any] = Future()
                future.set_result(fn(*args, **kwargs))
                return future

            def close(self) -> None:
                self.closed = True

        client = Client()
        with StoreExecutor(client, store.asynchronous, ProxyType(str)) as executor:
            assert "a-b" == executor.submit(join, "a", b="b").result()
        assert client.closed

    async def test_on_a_loop(self, tmp_path: Path) -> None:
        """To store an argument blocks, which a running loop does not allow."""
        async with pp.Store("s", f"file://{tmp_path}", on_blocking="raise") as store:
            with StoreExecutor(ThreadPoolExecutor(1), store, ProxyAlways()) as executor:
                with pytest.raises(BlockingCallError):
                    executor.submit(same, [1])


async def aappend(x: Any) -> list[int]:
    assert isinstance(x, RefProxy)
    return [*await x, len(x)]


class TestStoreTaskGroup:
    async def test_coroutines(self, tmp_path: Path) -> None:
        """Coroutine functions get borrows, and their results are owned by the caller."""
        async with pp.Store("s", f"file://{tmp_path}", on_blocking="raise") as store:
            async with StoreTaskGroup(store, ProxyType(list)) as group:
                tasks = [group.submit(aappend, [i] * i) for i in range(5)]
            results = [task.result() for task in tasks]
            assert all(isinstance(one, OwnedProxy) for one in results)
            assert [[i] * i + [i] for i in range(5)] == [await one for one in results]
            del tasks, results
            await asyncio.to_thread(empty, tmp_path)

    async def test_functions(self, tmp_path: Path) -> None:
        """Plain functions run beside the loop."""
        async with pp.Store("s", f"file://{tmp_path}", on_blocking="raise") as store:
            async with StoreTaskGroup(store, ProxyType(list)) as group:
                task = group.submit(append, [1])
                same_one = group.submit(same, [2])
                thread = group.submit(threading.get_ident)
            assert [1, 1] == await task.result()
            assert [2] == await same_one.result()
            assert threading.get_ident() != thread.result()

    @pytest.mark.allow_blocking  # the pool starts a process
    async def test_in_an_executor(self, pool: Any, tmp_path: Path) -> None:
        """An executor runs the functions."""
        async with pp.Store("s", f"file://{tmp_path}", on_blocking="raise") as store:
            async with StoreTaskGroup(store, ProxyType(list), executor=pool) as group:
                tasks = [group.submit(append, [i] * i) for i in range(5)]
            results = [task.result() for task in tasks]
            assert [[i] * i + [i] for i in range(5)] == [await one for one in results]
            del tasks, results
            await asyncio.to_thread(empty, tmp_path)

    async def test_a_task_fails(self, tmp_path: Path) -> None:
        """One that fails cancels the others, and nothing stays behind."""
        async with pp.Store("s", f"file://{tmp_path}") as store:
            with pytest.raises(ExceptionGroup) as caught:
                async with StoreTaskGroup(store, ProxyType(str)) as group:
                    group.submit(asyncio.sleep, 60)
                    group.submit(fail, "why")
            assert isinstance(caught.value.exceptions[0], LookupError)
            del caught, group
            await asyncio.to_thread(empty, tmp_path)

    async def test_a_call_goes_on(self, tmp_path: Path) -> None:
        """What a call in an executor was lent lives until that has ended, cancelled or not."""
        begun, leave = threading.Event(), threading.Event()
        seen = []

        def work(x: Any) -> None:
            begun.set()
            leave.wait()
            seen.append(list(x))

        async with pp.Store("s", f"file://{tmp_path}") as store:
            with ThreadPoolExecutor(1) as pool:
                async with StoreTaskGroup(store, ProxyType(list), executor=pool) as group:
                    task = group.submit(work, [1])
                    await asyncio.to_thread(begun.wait)
                    task.cancel()
                assert 1 == len(objects(tmp_path))
                leave.set()
            assert [[1]] == seen
            await asyncio.to_thread(empty, tmp_path)

    @pytest.mark.parametrize("function", [aappend, append])
    async def test_cancelled_anywhere(self, tmp_path: Path, function: Any) -> None:
        """Who is cancelled, at whatever moment, leaves nothing behind."""
        async with pp.Store("s", f"file://{tmp_path}") as store:

            async def work() -> None:
                async with StoreTaskGroup(store, ProxyType(list)) as group:
                    task = group._run(function, ([1],), {})
                    with contextlib.suppress(LookupError):
                        await task

            nth = 1
            while await cancelled_at(work(), nth):
                nth += 1
            assert nth > 1
            await asyncio.to_thread(empty, tmp_path)
