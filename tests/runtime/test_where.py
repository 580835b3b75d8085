"""Where the library is used from, and where it runs what."""

from __future__ import annotations

import pathlib

import pytest

import proxyplane
from proxyplane.exceptions import IOThreadError


def test_plain_script(run, url):
    """Nothing but a ``with``."""
    run(
        """
        with sync.Store("s", URL) as store:
            p = store.proxy({"a": 1}, populate_target=False)
            assert fresh(p)["a"] == 1
            assert store.get_batch(store.put_batch([1, 2])) == [1, 2]
        """,
        url,
    )


@pytest.mark.row("loops and threads")
def test_fifty_threads(run, url):
    """Fifty threads at once, on one store and on one proxy."""
    run(
        """
        calls = []
        def factory():
            calls.append(1)
            time.sleep(0.05)
            return {"a": 1}
        with sync.Store("s", URL, cache_size=0) as store:
            one = Proxy(factory)
            p = store.proxy({"a": 1}, populate_target=False)
            failures = []
            def work(i):
                try:
                    assert store.get_batch([store.put(i)]) == [i]
                    assert one["a"] == 1 and p["a"] == 1 and fresh(p)["a"] == 1
                except BaseException:
                    failures.append(traceback.format_exc())
            for t in [thread(work, i) for i in range(50)]:
                t.join()
            assert not failures, failures[0]
            assert len(calls) == 1
        """,
        url,
    )


@pytest.mark.parametrize("policy", ["warn", "raise", "allow"])
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_running_loop(run, url, policy, how):
    """Inside a running loop a blocking call warns, raises, or is let through."""
    run(
        f"""
        argument = {policy!r} if {how!r} == "argument" else None
        store = sync.Store("s", URL, on_blocking=argument, cache_size=0)
        key = store.put([1])
        p = store.proxy([1], populate_target=False)
        calls = [lambda: store.get(key), lambda: list(fresh(p)), lambda: store.get_batch([key])]
        async def main():
            for call in calls:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    try:
                        call()
                        refused = False
                    except BlockingCallError as error:
                        refused = True
                        assert "await" in str(error)
                assert refused == ({policy!r} == "raise")
                assert bool(caught) == ({policy!r} == "warn"), caught
                for one in caught:
                    assert one.category is BlockingResolveWarning
                    assert one.filename == __file__, one.filename
        asyncio.run(main())
        store.close()
        """,
        url,
        env={
            "PROXYPLANE_EAGER": "0",  # else it may be there before it is touched
            **({"PROXYPLANE_ON_BLOCKING": policy} if how == "environment" else {}),
        },
    )


def test_notebook(tmp_path, url, monkeypatch):
    """In the cell of a real Jupyter kernel calls block, without a warning."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    cells = [
        f"""
import asyncio, warnings
warnings.simplefilter("error")
asyncio.get_running_loop()
from proxyplane.sync import Store
import pickle
store = Store("notebook", {url!r}, cache_size=0)
p = store.proxy({{"a": 1}}, populate_target=False)
assert pickle.loads(pickle.dumps(p))["a"] == 1
assert store.get_batch([store.put(2)]) == [2]
""",
        'assert await pickle.loads(pickle.dumps(p)) == {"a": 1}\nstore.close()\nprint("done")',
    ]
    package = pathlib.Path(proxyplane.__path__[0]).parent
    monkeypatch.setenv("PYTHONPATH", str(package))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(
        notebook, timeout=40, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    assert [output["text"] for output in notebook.cells[1].outputs] == ["done\n"]


@pytest.mark.parametrize("call", ["store.get(key)", "p[0]", "io_thread().run(nothing())"])
def test_from_the_loop_thread(run, url, call):
    """A connector, or a Factory.acall, that blocks gets an error that says so, not a deadlock."""
    run(
        f"""
        async def nothing():
            pass
        def check():
            try:
                {call}
            except BlockingCallError as error:
                assert "would wait for itself" in str(error), error
                return 7
        with sync.Store("s", URL, cache_size=0) as store:
            key = store.put([1])
            p = store.proxy([1], populate_target=False)
            class Blocks(Factory):
                def __call__(self):
                    raise AssertionError
                async def acall(self):
                    return check()
            async def main():
                return await Proxy(Blocks())
            assert asyncio.run(main()) == 7
            class Connector(Slow):
                async def exists(self, key):
                    return check() == 7
            with sync.Store("t", Connector()) as other:
                assert other.exists("x") is True
        """,
        url,
    )


def test_user_code_stays_off_the_loop_thread(run, url):
    """Encoders, decoders, factories and finalisers never run on the library's loop."""
    run(
        """
        os.environ["PROXYPLANE_ON_BLOCKING"] = "allow"
        threads = []
        def factory():
            threads.append(threading.current_thread().name)
            return Decoded()
        def failing():
            threads.append(threading.current_thread().name)
            raise ValueError
        for payload in (None, [0] * 300_000):
            with sync.Store("s", URL, cache_size=0) as store:
                a = store._store
                p = store.proxy(Decoded(payload), populate_target=False)
                q = store.proxy(Decoded(payload), populate_target=False, evict=True)
                fresh(p).payload
                fresh(q).payload
                store.get(store.put(Decoded(payload)))
                store.get_batch(store.put_batch([Decoded(payload)]))
                for behind in (fresh(p), Proxy(factory)):
                    resolve_async(behind)
                    wait_until(lambda: is_resolved(behind))
                del behind
                async def main():
                    await fresh(p)
                    await Proxy(factory)
                    await asyncio.gather(a.get(await a.put(Decoded(payload))))
                    await a.get_batch(await a.put_batch([Decoded(payload)]))
                    try:
                        await Proxy(failing)
                    except ProxyResolveError:
                        pass
                asyncio.run(main())
                gc.collect()
                del p, q
        seen = Decoded.encoded_in + Decoded.decoded_in + Decoded.dropped_in + threads
        assert len(Decoded.decoded_in) >= 16 and len(threads) == 6, (Decoded.decoded_in, threads)
        assert "proxyplane-io" not in seen, set(seen)
        heavy = [name for name in Decoded.decoded_in if name.startswith("proxyplane-")]
        assert heavy, set(Decoded.decoded_in)
        """,
        url,
    )


def test_heavy_work_leaves_the_callers_loop(run, url):
    """What takes long to encode or decode does so on a worker, and not on the awaiting loop."""
    run(
        """
        async def main():
            async with proxyplane.Store("s", URL, cache_size=0) as store:
                light = await store.put(Decoded(1))
                assert set(Decoded.encoded_in) == {"MainThread"}
                await store.get(light)
                assert set(Decoded.decoded_in) == {"MainThread"}
                Decoded.encoded_in.clear()
                Decoded.decoded_in.clear()
                heavy = await store.put([Decoded(1) for _ in range(20_000)])
                await store.get(heavy)
                await fresh(await store.proxy([Decoded(1)] * 20_000, populate_target=False))
                assert "MainThread" not in Decoded.decoded_in
        asyncio.run(main())
        """,
        url,
    )


def test_context(run):
    """A coroutine sees the context variables of the caller, on every way to the loop."""
    run(
        """
        import contextvars
        who = contextvars.ContextVar("who", default="nobody")
        class Asks(Factory):
            def __call__(self):
                raise AssertionError
            async def acall(self):
                return who.get()
        class Connector(Slow):
            async def exists(self, key):
                return who.get()
        who.set("me")
        with sync.Store("s", Connector()) as store:
            assert store.exists("x") == "me"
        async def main():
            assert await Proxy(Asks()) == "me"
            assert await Proxy(lambda: who.get()) == "me"
        asyncio.run(main())
        """
    )


def test_no_reference_cycles(run, url):
    """An exception that reaches the caller, and is dropped, is gone at once."""
    run(
        """
        class Fails(Slow):
            async def get(self, key, *, size=None):
                raise ValueError("mine")
        import weakref
        failing = sync.Store("t", Fails())
        failing_key = failing.put(1)
        def bad():
            raise ValueError("mine")
        with sync.Store("s", URL) as store:
            gone = store.proxy_from_key("nothing there" )
            store.put(1)
            calls = [
                lambda: failing.get(failing_key),
                lambda: list(failing.proxy([1], populate_target=False)),
                lambda: list(Proxy(bad)),
                lambda: list(gone),
            ]
            for call in calls:
                gc.collect()
                gc.disable()
                try:
                    call()
                except (ValueError, ProxyResolveError) as error:
                    error.marker = type("Marker", (), {})()
                    alive = weakref.ref(error.marker)
                gc.enable()
                assert alive() is None, calls.index(call)
            async def main():
                for p in (Proxy(bad), fresh(gone)):
                    gc.collect()
                    gc.disable()
                    try:
                        await p
                    except ProxyResolveError as error:
                        error.marker = type("Marker", (), {})()
                        alive = weakref.ref(error.marker)
                    await asyncio.sleep(0)
                    gc.enable()
                    assert alive() is None, p
            asyncio.run(main())
        failing.close()
        """,
        url,
    )


def test_death_of_the_thread_is_noticed(run):
    """Who waits for a loop that dies gets an IOThreadError, and the next call starts another."""
    out = run(
        """
        import logging
        logging.getLogger("proxyplane").addHandler(logging.NullHandler())
        Slow.delay = FOR_EVER
        store = sync.Store("s", Slow())
        key = store.put(1)
        p = store.proxy([1], populate_target=False)
        errors = []
        def call():
            try:
                store.get(key)
            except IOThreadError:
                errors.append(1)
        def touch():
            try:
                p[0]
            except ProxyResolveError as error:
                assert isinstance(error.cause, IOThreadError), error.cause
                errors.append(1)
        async def main():
            try:
                await p
            except ProxyResolveError as error:
                assert isinstance(error.cause, IOThreadError), error.cause
                errors.append(1)
        threads = [thread(call), thread(touch), thread(lambda: asyncio.run(main()))]
        wait_until(lambda: Slow.events == ["get", "get"] and flights._process.waits)
        before = io_thread()
        before.loop.call_soon_threadsafe(before.loop.stop)
        for t in threads:
            t.join()
        assert len(errors) == 3, errors
        wait_until(lambda: not before.is_alive)
        Slow.delay = 0
        assert store.get(key) == 1
        assert io_thread() is not before
        store.close()
        """
    )
    assert out == ""


def test_finaliser_in_a_critical_section(run):
    """A finaliser that makes a blocking call while its thread holds the lock of the flights ends.

    The library's loop has a flight to land at that moment.
    """
    run(
        """
        with sync.Store("s", Slow(), cache_size=0) as store:
            key = store.put(1)
            p = store.proxy([1], populate_target=False)
            Slow.delay = 0.2
            resolve_async(p)
            wait_until(lambda: Slow.events)
            with flights._process.lock:  # the collector may run a finaliser here
                wait_until(lambda: "ended" in Slow.events)
                assert store.get(key) == 1
            wait_until(lambda: is_resolved(p))
        """
    )


def test_cancelled_claim_is_not_lost(run):
    """A consumer that is cancelled after it claimed the object has it all the same."""
    run(
        """
        class Late(Slow):
            async def evict(self, key):
                there = self._entries().pop(key, None) is not None
                self.events.append("evicted")
                await asyncio.sleep(0.05)
                return there
        with sync.Store("s", Late(), cache_size=0) as store:
            p = fresh(store.proxy([1], populate_target=False, evict=True))
            async def main():
                task = asyncio.ensure_future(aresolve(p))
                while "evicted" not in Slow.events:
                    await asyncio.sleep(0.001)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    pass
                assert await p == [1]
            asyncio.run(main())
        """
    )


def test_abandoned_flight_delivers_nothing(run):
    """A proxy has one target for good, also when a wait for it was cancelled in the middle."""
    run(
        """
        release = threading.Event()
        calls = []
        blockers = []
        def factory():
            calls.append(1)
            return object()
        flights._process.factories._free.clear()  # no worker takes it yet
        p = Proxy(factory)
        async def main():
            task = asyncio.ensure_future(aresolve(p))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
        asyncio.run(main())
        target = proxyplane.extract(p)
        flights._process.factories._drain()  # now one does
        assert proxyplane.extract(p) is target and len(calls) == 1
        """
    )


def test_error_is_one_of_ours():
    """The error of a loop that is gone says what to do."""
    from proxyplane._runtime.io_thread import loop_gone

    assert isinstance(loop_gone(), IOThreadError)
    assert loop_gone().hint


@pytest.mark.parametrize("awaited", [False, True])
def test_flight_that_ends_before_one_joins(run, url, awaited):
    """Who misses the cache, and then the flight that fills it, does not fetch a second time."""
    run(
        f"""
        os.environ["PROXYPLANE_ON_BLOCKING"] = "allow"
        with sync.Store("s", URL) as store:
            inner = store._store
            p = store.proxy([1], populate_target=False)
            first, second = fresh(p), fresh(p)
            look, decode, decoded = inner.cached, inner._decode, []
            def look_too_early(key):
                found = look(key)
                inner.cached = look
                assert first[0] == 1  # as another thread does at this moment
                return found
            def counting(*args):
                decoded.append(1)
                return decode(*args)
            inner.cached, inner._decode = look_too_early, counting
            async def main():
                return await second
            target = asyncio.run(main()) if {awaited} else proxyplane.extract(second)
            assert target is proxyplane.extract(first)
            assert len(decoded) == 1
        """,
        url,
        {"PROXYPLANE_EAGER": "0"},
    )


def test_waiter_that_works_is_not_a_cycle(run):
    """A thread that waited, woke up and decodes is no cycle to those who come then."""
    run(
        """
        with sync.Store("s", Slow(), cache_size=0) as store:
            p = store.proxy(Decoded([1]), populate_target=False)
            decodes, go_on = threading.Event(), threading.Event()
            def decode():
                decodes.set()
                go_on.wait()
            Decoded.on_decode = decode
            Slow.delay = 0.05
            first = thread(lambda: p.payload)
            decodes.wait()
            second = thread(lambda: p.payload)
            wait_until(lambda: second.ident in flights._process.waits)
            go_on.set()
            first.join()
            second.join()
        """
    )
