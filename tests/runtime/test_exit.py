"""The process ends promptly and quietly, whatever is under way."""

from __future__ import annotations

import subprocess

import pytest

pytestmark = pytest.mark.row("exit in any state")


@pytest.mark.parametrize("kind", ["plain", "Factory", "Factory.acall"])
def test_slow_factory(run, kind):
    """A factory that sleeps for ever, asked for in the background, holds nothing up."""
    run(
        f"""
        begun = threading.Event()
        class Sleep(Factory):
            def __call__(self):
                begun.set()
                time.sleep(FOR_EVER)
        class AsyncSleep(Sleep):
            async def acall(self):
                return await super().acall()
        factory = AsyncSleep() if {kind!r} == "Factory.acall" else Sleep()
        p = Proxy(factory.__call__ if {kind!r} == "plain" else factory)
        resolve_async(p)
        begun.wait()
        """
    )


@pytest.mark.undefended
def test_slow_factory_undefended(start):
    """If the threads of the library were ones that the interpreter waits for, it would not end."""
    script = start(
        """
        from proxyplane._runtime.workers import _Thread
        start = _Thread.start
        def start_no_daemon(self):
            self.daemon = False
            start(self)
        _Thread.start = start_no_daemon
        begun = threading.Event()
        def factory():
            begun.set()
            time.sleep(FOR_EVER)
        resolve_async(Proxy(factory))
        begun.wait()
        say("begun")
        """
    )
    script.expect("begun")
    with pytest.raises(subprocess.TimeoutExpired):
        script.process.wait(3)


def test_slow_decoder(run, url):
    """So with a decoder that sleeps for ever."""
    run(
        """
        begun = threading.Event()
        def sleep():
            begun.set()
            time.sleep(FOR_EVER)
        Decoded.on_decode = sleep
        store = sync.Store("s", URL)
        p = store.proxy(Decoded(), populate_target=False)
        resolve_async(p)
        begun.wait()
        """,
        url,
        stderr=None,  # the store was not closed
    )


def test_slow_decoder_of_a_cancelled_caller(run):
    """A decoder that nobody waits for any more does not hold the process up."""
    run(
        """
        begun = threading.Event()
        def sleep():
            begun.set()
            time.sleep(FOR_EVER)
        Decoded.on_decode = sleep
        async def main():
            async with proxyplane.Store("s", LocalConnector()) as store:
                key = await store.put(Decoded([0] * 1_000_000))
                getting = asyncio.ensure_future(store.get(key))
                await asyncio.to_thread(begun.wait)
                getting.cancel()
        asyncio.run(main())
        """
    )


@pytest.mark.parametrize("stubborn", [False, True])
def test_slow_connector(run, stubborn):
    """A connector that never answers is cancelled, and abandoned if it does not mind."""
    run(
        f"""
        begun = threading.Event()
        class Stuck(Slow):
            async def get(self, key, *, size=None):
                begun.set()
                while True:
                    try:
                        await asyncio.sleep(FOR_EVER)
                    except asyncio.CancelledError:
                        if not {stubborn}:
                            raise
        store = sync.Store("s", Stuck())
        p = store.proxy([1], populate_target=False)
        resolve_async(p)
        begun.wait()
        """
    )


def test_blocked_daemon_thread(run):
    """A daemon thread in a blocking call does not hold the process up."""
    run(
        """
        Slow.delay = FOR_EVER
        store = sync.Store("s", Slow())
        key = store.put(1)
        thread(store.get, key, daemon=True)
        wait_until(lambda: Slow.events)
        """
    )


def test_threads_that_main_did_not_join(run, url):
    """Threads of the user's finish their work when the main thread has ended."""
    out = run(
        """
        store = sync.Store("s", URL)
        store.put_batch([1])  # starts the library's thread: 3.12.1 starts none this late
        def work():
            store.put(2)
            threading.main_thread().join()
            p = store.proxy({"a": 1}, populate_target=False)
            assert fresh(p)["a"] == 1
            async def main():
                return await fresh(p)
            assert asyncio.run(main()) == {"a": 1}
            store.close()
            say("done")
        thread(work)
        """,
        url,
    )
    assert out == "done\n"


def test_pool_that_nobody_shut_down(run, url):
    """A pool's thread that comes too late gets a typed error, or its answer; nothing hangs."""
    out = run(
        """
        from concurrent.futures import ThreadPoolExecutor
        store = sync.Store("s", URL)
        key = store.put([1])
        def work():
            store.exists(key)
            wait_until(lambda: threading._SHUTTING_DOWN)
            try:
                say(store.get_batch([key]))
            except IOThreadError:
                say("IOThreadError")
        ThreadPoolExecutor(1).submit(work)
        """,
        url,
        stderr=None,  # the store was not closed
    )
    assert out in ("[[1]]\n", "IOThreadError\n")


def test_at_exit_handlers(run, url):
    """A handler of atexit gets its answer or a typed error."""
    out = run(
        """
        store = sync.Store("s", URL)
        key = store.put([1])
        p = store.proxy([2], populate_target=False)
        def ask(what):
            try:
                what()
                say("works")
            except (IOThreadError, ProxyResolveError):
                say("typed error")
        @atexit.register
        def handler():
            ask(lambda: store.get_batch([key]))
            ask(lambda: store.get(key))
            ask(lambda: p[0])
            async def main():
                await fresh(p)
            ask(lambda: asyncio.run(main()))
            ask(store.close)
        """,
        url,
        stderr=None,
    )
    assert len(out.splitlines()) == 5


def test_first_use_in_an_exit_handler(run, url):
    """Also when it is the very first use of the library."""
    out = run(
        """
        store = sync.Store("s", URL)
        @atexit.register
        def handler():
            try:
                store.get_batch([store.put(1)])
                store.close()
            except IOThreadError:
                pass
            say("done")
        """,
        url,
    )
    assert out == "done\n"


@pytest.mark.parametrize("uvloop", [True, False])
@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)", "raise ZeroDivisionError"])
def test_store_left_open(run, url, ending, uvloop):
    """A store that nobody closed costs no traceback of ours, however the script ends."""
    out = run(
        f"""
        if not {uvloop}:
            sys.modules["uvloop"] = None
        store = sync.Store("s", URL.replace("127.0.0.1", "localhost"), register=True)
        p = store.proxy([1], populate_target=False)
        assert fresh(p) == [1]
        store.get_batch([store.put(2)])
        say("done")
        {ending}
        """,
        url,
        status={"pass": 0, "sys.exit(3)": 3}.get(ending, 1),
        stderr="" if "raise" not in ending else None,
    )
    assert out == "done\n"


def test_async_store_left_open(run, url):
    """Nor does an async store that was not closed: its loop closes the connections."""
    run(
        """
        async def main():
            store = proxyplane.Store("s", URL)
            p = await store.proxy([1], populate_target=False)
            assert await fresh(p) == [1]
        asyncio.run(main())
        gc.collect()
        """,
        url,
    )


def test_exit_in_a_thread(run, url):
    """sys.exit in a thread ends that thread, and everything else goes on."""
    run(
        """
        with sync.Store("s", URL) as store:
            def work():
                store.put_batch([1])
                sys.exit(3)
            thread(work).join()
            assert store.get(store.put(2)) == 2
        """,
        url,
    )


def test_pending_coroutines_of_the_loop_are_cancelled(run):
    """A coroutine that waits on the library's loop sees the cancellation at exit."""
    out = run(
        """
        Slow.delay = FOR_EVER
        class Tells(Slow):
            async def get(self, key, *, size=None):
                try:
                    return await super().get(key)
                finally:
                    say("cleaned up")
        store = sync.Store("s", Tells())
        p = store.proxy([1], populate_target=False)
        resolve_async(p)
        wait_until(lambda: Slow.events)
        """
    )
    assert out == "cleaned up\n"
