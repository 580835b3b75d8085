"""A forked child starts afresh, whatever the parent was doing, and does the parent no harm."""

from __future__ import annotations

import sys

import pytest

# What the child does with everything that it inherited: the store, a client, a proxy, a thread.
USE = """
def use(store, p=None):
    key = store.put([1])
    assert store.get_batch([key]) == [[1]]
    assert store.evict(key)
    assert fresh(store.proxy({"a": 1}, populate_target=False))["a"] == 1
    if p is not None:
        assert p["b"] == 2
    async def main():
        a = store._store
        assert await a.get(await a.put([2])) == [2]
        assert await fresh(await a.proxy([3], populate_target=False)) == [3]
    asyncio.run(main())
def child(*args):
    assert in_child(use, *args) == 0
def child_that_exits(*args):
    pid = os.fork()
    if not pid:
        use(*args)
        gc.collect()
        sys.exit(0)  # through the whole of the interpreter's end
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
pytestmark = [
    pytest.mark.row("fork in any state"),
    pytest.mark.skipif(sys.platform == "win32", reason="there is no fork"),
]


@pytest.fixture
def fork(run, url):
    def fork(source, **kwargs):
        # Since 3.12 a fork of a process with threads warns, which is what these are about.
        ignore = 'warnings.filterwarnings("ignore", message=".*multi-threaded.*fork")\n'
        return run(ignore + USE + source, url, **kwargs)

    return fork


@pytest.mark.parametrize("child", ["child", "child_that_exits"])
@pytest.mark.parametrize("started", [False, True])
def test_idle(fork, started, child):
    """Before the first use, and with an idle library loop."""
    fork(
        f"""
with sync.Store("s", URL, cache_size=0) as store:
    p = store.proxy({{"b": 2}}, populate_target=False)
    if {started}:
        use(store)
    {child}(store, fresh(p))
    use(store, fresh(p))
    {child}(store, fresh(p))
    use(store, fresh(p))
"""
    )


@pytest.mark.undefended
def test_undefended(fork, url):
    """A child that inherited a lock that another thread held would wait for it for ever."""
    fork(
        """
from proxyplane._runtime import fork as forks
from proxyplane._runtime import io_thread as module
with sync.Store("s", URL, cache_size=0) as store:
    use(store)
    forks._aware.clear()
    def child():
        signal.alarm(2)
        use(store)
    taken, release = threading.Event(), threading.Event()
    def hold():
        with module._process.lock:
            taken.set()
            release.wait()
    holder = thread(hold)
    taken.wait()
    assert in_child(child) == -signal.SIGALRM
    release.set()
    holder.join()
"""
    )


def test_grandchild(fork):
    """A child of a child."""
    fork(
        """
with sync.Store("s", URL, cache_size=0) as store:
    use(store)
    def and_again():
        use(store)
        child_that_exits(store)
        use(store)
    for _ in range(2):
        assert in_child(and_again) == 0
        use(store)
"""
    )


@pytest.mark.parametrize("uvloop", [True, False])
def test_child_does_not_touch_the_parents_loops(fork, uvloop):
    """Connections of the parent's loops still deliver after the child collected its copies."""
    fork(
        f"""
if not {uvloop}:
    sys.modules["uvloop"] = None
def work():
    with sync.Store("s", URL, cache_size=0) as store:
        key = store.put([1])
        store.get_batch([key])
        pid = os.fork()
        if not pid:
            store.get_batch([key])
            del store
            gc.collect()
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for _ in range(3):
            assert store.get_batch([key]) == [[1]]
work()
"""
    )


@pytest.mark.parametrize("runner", ["asyncio", "uvloop"])
def test_inside_a_running_loop(fork, runner):
    """The parent's own loop, and its clients, go on after a fork inside of a coroutine."""
    if runner == "uvloop":
        pytest.importorskip("uvloop")
    fork(
        f"""
os.environ["PROXYPLANE_ON_BLOCKING"] = "allow"
import {runner} as runner
with sync.Store("s", URL, cache_size=0) as store:
    async def main():
        a = store._store
        key = await a.put([1])
        p = await a.proxy({{"b": 2}}, populate_target=False)
        assert await fresh(p) == {{"b": 2}}
        for _ in range(2):
            child(store, fresh(p))
            await asyncio.sleep(0.01)
            assert await a.get(key) == [1]
            assert await fresh(p) == {{"b": 2}}
    runner.run(main())
    use(store)
"""
    )


def test_during_a_blocking_call(fork):
    """While another thread waits in a blocking call."""
    fork(
        """
slow = sync.Store("slow", Slow())
slow_key = slow.put(5)
Slow.delay = 0.5
with sync.Store("s", URL) as store:
    got = []
    t = thread(lambda: got.append(slow.get(slow_key)))
    wait_until(lambda: Slow.events)
    child(store)
    child_that_exits(store)
    t.join()
    assert got == [5]
slow.close()
"""
    )


def test_while_a_flight_is_in_the_air(fork):
    """A proxy whose fetch is under way in the parent is fetched anew in the child."""
    fork(
        """
released = threading.Event()
def factory():
    if os.getpid() == parent:
        released.wait()
    return {"b": 2}
parent = os.getpid()
p = Proxy(factory)
got = []
with sync.Store("s", URL) as store:
    threads = [thread(lambda: got.append(p["b"])) for _ in range(3)]
    wait_until(lambda: len(flights._process.waits) == 2)
    q = store.proxy({"b": 2}, populate_target=False)
    child(store, p)
    child_that_exits(store, fresh(q))
    released.set()
    for t in threads:
        t.join()
    assert got == [2, 2, 2], got
"""
    )


def test_while_locks_are_held(fork):
    """Whatever lock another thread holds is free in the child."""
    fork(
        """
from proxyplane import _stores
from proxyplane._runtime import io_thread as module
with sync.Store("s", URL, cache_size=4) as store:
    use(store)
    p = store.proxy({"b": 2}, populate_target=False)
    per_loops = [o for o in gc.get_objects() if type(o).__name__ == "PerLoop"]
    held = [module._process.lock, flights._process.lock, _stores._process.lock,
            store._store._cache._lock, *[one._lock for one in per_loops]]
    taken, release = threading.Event(), threading.Event()
    def hold():
        for lock in held:
            lock.acquire()
        taken.set()
        release.wait()
        for lock in reversed(held):
            lock.release()
    t = thread(hold)
    taken.wait()
    child(store, fresh(p))
    child_that_exits(store, fresh(p))
    release.set()
    t.join()
    use(store, fresh(p))
"""
    )


def test_workers_are_not_inherited(fork):
    """Idle worker threads of the parent are not handed work in the child."""
    fork(
        """
os.environ["PROXYPLANE_ON_BLOCKING"] = "allow"
with sync.Store("s", URL, cache_size=0) as store:
    p = store.proxy([0] * 300_000, populate_target=False)
    async def main():
        await fresh(p)
        await store._store.get(await store._store.put([0] * 300_000))
        assert await Proxy(lambda: 7) == 7
    asyncio.run(main())
    def again():
        asyncio.run(main())
    assert in_child(again) == 0
    again()
"""
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(run, url, method, tmp_path):
    """Proxies work in a pool of processes however they are started."""
    (tmp_path / "tasks.py").write_text(
        """
import asyncio
async def wait(p):
    return await p
def task(p, q):
    return p["b"] + asyncio.run(wait(q))
"""
    )
    run(
        f"""
        if __name__ == "__main__":
            import tasks
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork")
            with sync.Store("s", URL) as store:
                p = store.proxy({{"b": 2}}, populate_target=False)
                q = store.proxy(3, populate_target=False)
                assert fresh(p)["b"] == 2
                context = multiprocessing.get_context({method!r})
                with context.Pool(2) as pool:
                    assert pool.starmap(tasks.task, [(p, q)] * 6) == [5] * 6
                    pool.close()
                    pool.join()
                process = context.Process(target=tasks.task, args=(p, q))
                process.start()
                process.join()
                assert process.exitcode == 0
                assert fresh(p)["b"] == 2
        """,
        url,
    )
