"""What becomes of owned objects when processes, loops, forks and connections end."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane import _evictions, _stakes, borrow, get_key, mut_borrow, scopes
from proxyplane.exceptions import (
    ConnectorLostError,
    ReferenceInvalidError,
    ReferenceNotOwnedError,
)
from proxyplane.testing.steps import cancelled_at, in_forked_child
from support.owners import gone, unresolved, until

PREAMBLE = """
import asyncio, gc, os, pickle, sys, threading, time, warnings
warnings.filterwarnings("ignore", message=".*multi-threaded.*fork")
import proxyplane as pp
from proxyplane import borrow, mut_borrow, clone
from proxyplane.sync import Store
url = sys.argv[1]
store = Store("s", url)
"""


def run(code: str, url: str, *, status: int = 0) -> tuple[str, str]:
    """Runs a script, and returns what it printed; a traceback is a failure."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(code), url],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert status == done.returncode, done.stderr
    return done.stdout, done.stderr


def objects(path: Path) -> list[str]:
    """The files of objects below a directory."""
    return [name for _, _, names in os.walk(path) for name in names]


@pytest.fixture(params=["file", "redis"])
def url(request: Any, tmp_path: Path) -> str:
    if request.param == "redis":
        return request.getfixturevalue("redis_url")
    return f"file://{tmp_path}"


def left(url: str, keys: str) -> list[str]:
    """Which of the keys still hold something."""
    with pp.sync.Store("looks", url) as store:
        return [key for key in keys.split() if store.exists(key)]


class TestExit:
    def test_alive_at_exit(self, url: str) -> None:
        """What is owned when the process ends is evicted, and nothing is printed."""
        keys, err = run(
            """
            kept = [store.owned_proxy([i], populate_target=i % 2) for i in range(20)]
            lent = borrow(kept[0]), mut_borrow(kept[1])
            cycle = [store.owned_proxy([1])]
            cycle.append(cycle)
            print(*map(pp.get_key, (*kept, cycle[0])))
            """,
            url,
        )
        assert 21 == len(keys.split())
        assert ([], "") == (left(url, keys), err)

    def test_exception(self, url: str) -> None:
        """Also when an exception ends the process."""
        keys, err = run(
            """
            def main():
                owner = store.owned_proxy([1])
                ref = borrow(owner)
                print(pp.get_key(owner), flush=True)
                raise LookupError("the end")
            main()
            """,
            url,
            status=1,
        )
        assert [] == left(url, keys)
        assert 1 == err.count("Traceback")

    def test_async(self, url: str) -> None:
        """Also after the loop has ended that it was stored on."""
        keys, err = run(
            """
            kept = []
            async def main():
                async with pp.Store("a", url) as store:
                    kept.append(await store.owned_proxy([1]))
                    kept.append(await pp.aclone(kept[0]))
                    kept.append(borrow(await store.owned_proxy([2])))
            asyncio.run(main())
            print(*map(pp.get_key, kept))
            """,
            url,
        )
        assert 3 == len(keys.split())
        assert ([], "") == (left(url, keys), err)

    def test_dropped_just_before(self, url: str) -> None:
        """Also when the owners die in the last moment, on several threads."""
        keys, err = run(
            """
            owners = [store.owned_proxy([i]) for i in range(500)]
            print(*map(pp.get_key, owners), flush=True)
            threads = [threading.Thread(target=owners.clear) for _ in range(4)]
            for thread in threads:
                thread.start()
            """,
            url,
        )
        assert ([], "") == (left(url, keys), err)

    def test_moved(self, url: str) -> None:
        """What was moved is left to whoever it moved to."""
        keys, err = run(
            """
            owner = store.owned_proxy([1])
            print(pp.get_key(owner))
            print(pickle.dumps(owner).hex())
            """,
            url,
        )
        key, moved = keys.split()
        assert ([key], "") == (left(url, key), err)
        _, err = run(f"owner = pickle.loads(bytes.fromhex('{moved}')); store.close()", url)
        assert ([], "") == (left(url, key), err)

    def test_server_is_gone(self, own_redis_server: Any) -> None:
        """A server that does not answer holds the end up for a bounded time, without a word."""
        server = own_redis_server()
        code = """
        owner = store.owned_proxy([1])
        print("ready", flush=True)
        sys.stdin.read()
        """
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(code), server.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "ready\n" == process.stdout.readline()
        server.pause()
        try:
            _, err = process.communicate("", timeout=50)
        finally:
            server.resume()
        assert (0, "") == (process.returncode, err)


class TestFork:
    pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")

    @pytest.mark.parametrize("ending", ["sys.exit(0)", "os._exit(0)", "gc.collect()"])
    def test_child_owns_nothing(self, url: str, ending: str) -> None:
        """The end of a child evicts nothing of its parent's, and that of its own."""
        printed, err = run(
            f"""
            owner, lent = store.owned_proxy([1]), store.owned_proxy([2])
            ref, dead = borrow(lent), store.owned_proxy([3])
            pid = os.fork()
            if not pid:
                assert owner == [1] and ref == [2]
                for use in borrow, mut_borrow, clone, pp.drop, pp.update, pickle.dumps:
                    try:
                        use(owner)
                    except pp.exceptions.ReferenceNotOwnedError:
                        continue
                    os._exit(3)
                own = store.owned_proxy([4])
                print(pp.get_key(own), flush=True)
                assert own == [4] and borrow(own) == [4]
                del owner, lent, ref, dead, own
                gc.collect()
                {ending}
                sys.exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert pp.extract(store.proxy_from_key(pp.get_key(owner))) == [1]
            for one in owner, lent, dead:
                assert store.exists(pp.get_key(one))
            del dead
            print(*map(pp.get_key, (owner, lent)))
            """,
            url,
        )
        assert "" == err
        own, *others = printed.split()
        assert [] == left(url, " ".join(others))
        if "_exit" not in ending:
            assert [] == left(url, own)

    def test_in_the_middle_of_a_borrow(self, tmp_path: Path) -> None:
        """A lock that another thread holds at the fork is free in the child."""
        with pp.sync.Store("s", f"file://{tmp_path}") as store:
            held, leave = threading.Event(), threading.Event()

            def hold() -> None:
                with _stakes.lock():
                    held.set()
                    leave.wait()

            thread = threading.Thread(target=hold)
            thread.start()
            held.wait()

            def child() -> None:
                assert [1] == borrow(store.owned_proxy([1]))

            try:
                in_forked_child(child)
            finally:
                leave.set()
                thread.join()


def touch(x: Any) -> int:
    assert isinstance(x, pp.RefProxy)
    return int(x[0])


def append(x: Any, item: int) -> None:
    x.append(item)
    pp.update(x)


def make(url: str, value: Any) -> Any:
    return pp.sync.Store("made", url, register=False).owned_proxy(value)


_kept: list[Any] = []


def keep(url: str) -> str:
    _kept.append(make(url, [1]))
    return get_key(_kept[0])


def fail(x: Any) -> None:
    raise LookupError(len(x))


def die(x: Any) -> None:
    os._exit(1)


def use_again(x: Any) -> Any:
    return borrow(x)[0], x


@pytest.fixture(params=["spawn", "fork"])
def pool(request: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork")
        context = multiprocessing.get_context(request.param)
        with ProcessPoolExecutor(2, context) as pool:
            yield pool


class TestProcesses:
    def test_borrows_travel(self, pool: Any, url: str) -> None:
        """Readers in other processes: the object lives as long as their tasks."""
        with pp.sync.Store("s", url) as store:
            owner = unresolved(store, [7])
            key = get_key(owner)
            tasks = [scopes.submit(pool.submit, args=(touch, borrow(owner))) for _ in range(8)]
            del owner
            gc.collect()
            assert [7] * 8 == [task.result() for task in tasks]
            tasks.clear()
            gc.collect()
            gone(store, key)

    def test_a_writer_travels(self, pool: Any, url: str) -> None:
        """Writers in other processes, one after the other: what each stores the next one reads."""
        with pp.sync.Store("s", url) as store:
            owner = store.owned_proxy([0])
            for i in range(1, 6):
                scopes.submit(pool.submit, args=(append, mut_borrow(owner), i)).result()
                until(lambda: not owner_is_lent(owner))
                task = scopes.submit(pool.submit, args=(len, borrow(owner)))
                assert i + 1 == task.result()
                until(lambda: not owner_is_lent(owner))
            assert [*range(6)] == owner

    def test_a_task_fails(self, pool: Any, url: str) -> None:
        """A task that raises has ended as well."""
        with pp.sync.Store("s", url) as store:
            owner = store.owned_proxy([7])
            task = scopes.submit(pool.submit, args=(fail, mut_borrow(owner)))
            with pytest.raises(LookupError):
                task.result()
            until(lambda: not owner_is_lent(owner))
            assert [7] == mut_borrow(owner)

    def test_a_worker_dies(self, pool: Any, url: str) -> None:
        """So has one whose process died."""
        with pp.sync.Store("s", url) as store:
            owner = store.owned_proxy([7])
            task = scopes.submit(pool.submit, args=(die, borrow(owner)))
            assert task.exception() is not None
            until(lambda: not owner_is_lent(owner))
            assert [7] == mut_borrow(owner)

    def test_owners_travel(self, pool: Any, url: str) -> None:
        """An owner that a task returns is the caller's; one that is sent and returned too."""
        with pp.sync.Store("s", url) as store:
            owner = pool.submit(make, url, [7]).result()
            key = get_key(owner)
            assert [7] == owner
            first, again = pool.submit(use_again, owner).result()
            assert 7 == first
            with pytest.raises(ReferenceInvalidError):
                borrow(owner)
            assert [7] == again
            assert store.exists(key)
            del again
            gone(store, key)

    def test_a_worker_ends(self, pool: Any, url: str) -> None:
        """What a worker process owns goes with it, when the pool is shut down."""
        key = pool.submit(keep, url).result()
        assert [key] == left(url, key)
        pool.shutdown()
        assert [] == left(url, key)


def owner_is_lent(owner: Any) -> bool:
    return owner.__proxy_stake__.is_lent


class TestLoops:
    def test_two_loops(self, url: str) -> None:
        """Owners made on one loop are cloned, updated and dropped on another."""

        async def make() -> Any:
            return await store.owned_proxy([1])

        async def use(owner: Any) -> str:
            cloned = await pp.aclone(owner)
            assert [1] == await cloned
            cloned.append(2)
            await pp.aupdate(cloned)
            assert [1, 2] == await borrow(cloned, populate_target=False)
            await pp.adrop(owner)
            return get_key(cloned)

        store = pp.Store("s", url)
        owner = asyncio.run(make())
        keys = f"{get_key(owner)} {asyncio.run(use(owner))}"
        until(lambda: not left(url, keys))
        asyncio.run(store.aclose())

    @pytest.mark.parametrize("size", [10, 3_000_000])
    async def test_cancelled_anywhere(self, tmp_path: Path, size: int) -> None:
        """Who is cancelled, at whatever moment, leaves no object behind, and loses none."""
        async with pp.Store("s", f"file://{tmp_path}", cache_size=0) as store:
            value = b"a" * size

            async def put() -> None:
                _ = await store.owned_proxy(value)

            owner = await store.owned_proxy(bytearray(value))

            async def cloned() -> None:
                _ = await pp.aclone(owner)

            async def updated() -> None:
                await pp.aupdate(owner)

            for operation in (put, cloned, updated):
                nth = 1
                while await cancelled_at(operation(), nth):
                    nth += 1
                    # An update that was cancelled goes on.
                    await asyncio.to_thread(until, lambda: not owner_is_lent(owner))
                assert bytearray(value) == await store.get(get_key(owner))
            gc.collect()  # what steps a coroutine keeps its last error, and that the frames
            await asyncio.to_thread(until, lambda: len(objects(tmp_path)) <= 1)
            await pp.adrop(owner)
        assert [] == objects(tmp_path)

    async def test_a_cancelled_put_over_redis(self, redis_url: str, redis_server: Any) -> None:
        """The same with Redis, where a put may have happened when its caller is cancelled."""
        import redis.asyncio

        async with (
            pp.Store("s", redis_url) as store,
            redis.asyncio.from_url(redis_server.url) as client,
        ):
            namespace = redis_url.partition("namespace=")[2]
            nth = 1
            while await cancelled_at(store.owned_proxy(b"a" * 3_000_000), nth):
                nth += 1
            gc.collect()
            async with asyncio.timeout(30):
                while [key async for key in client.scan_iter(f"*{namespace}:*")]:
                    await asyncio.sleep(0.01)

    async def test_a_cancelled_drop(self, tmp_path: Path) -> None:
        """A drop that is cancelled is done behind the caller's back."""
        async with pp.Store("s", f"file://{tmp_path}") as store:
            nth, going_on = 1, True
            while going_on:
                owner = await store.owned_proxy([1])
                key = get_key(owner)
                going_on = await cancelled_at(pp.adrop(owner), nth)
                nth += 1
                del owner
                await asyncio.to_thread(until, lambda: not objects(tmp_path))
                assert not await store.exists(key)

    async def test_blocking_on_a_loop(self, tmp_path: Path) -> None:
        """What blocks warns on a running loop; what does no I/O does not."""
        async with pp.Store("s", f"file://{tmp_path}", on_blocking="raise") as store:
            owner = await store.owned_proxy([1])
            for function in (pp.clone, pp.update, pp.drop):
                with pytest.raises(pp.exceptions.BlockingCallError):
                    function(owner)
            assert [1] == borrow(owner)
            assert [1] == mut_borrow(owner)
            await pp.adrop(owner)


class TestMediumFails:
    def test_tried_again(self, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
        """What could not be evicted is tried again, until it is gone."""
        failures = []

        async def fails(self: Any, keys: Any) -> Any:
            if len(failures) < 3:
                failures.append(keys)
                raise ConnectorLostError("the medium is away")
            return await real(self, keys)

        real = pp.FileConnector.evict_batch
        monkeypatch.setattr(pp.FileConnector, "evict_batch", fails)
        monkeypatch.setattr(_evictions, "PAUSES", (0.01,))
        with pp.sync.Store("s", f"file://{tmp_path}") as store:
            owner = store.owned_proxy([1])
            del owner
            until(lambda: not objects(tmp_path))
        assert 3 == len(failures)
        assert 1 == caplog.text.count(f"yet from file://{tmp_path}#s: the medium is away")

    def test_one_store_of_two(self, tmp_path: Path, monkeypatch: Any, redis_url: str) -> None:
        """A medium that fails does not keep the objects of another one."""

        async def fails(self: Any, keys: Any) -> Any:
            raise ConnectorLostError("the medium is away")

        monkeypatch.setattr(_evictions, "PAUSES", (0.01,))
        with pp.sync.Store("f", f"file://{tmp_path}") as store, pp.sync.Store("r", redis_url) as r:
            owners = [store.owned_proxy([1]), r.owned_proxy([2])]
            key = get_key(owners[1])
            with monkeypatch.context() as patch:
                patch.setattr(pp.FileConnector, "evict_batch", fails)
                owners.clear()
                gone(r, key)
                assert objects(tmp_path)
            until(lambda: not objects(tmp_path))

    def test_not_owned_any_more(self, tmp_path: Path) -> None:
        """An owner that was deleted by hand owns nothing."""
        with pp.sync.Store("s", f"file://{tmp_path}") as store:
            owner = store.owned_proxy([1])
            owner.__del__()
            until(lambda: not objects(tmp_path))
            with pytest.raises(ReferenceNotOwnedError):
                borrow(owner)
