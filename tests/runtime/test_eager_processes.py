"""Background resolution and the life of a process: forks, exits, threads, noise."""

from __future__ import annotations

import sys

import pytest

from support.soak import times


def test_switched_off_starts_no_thread(run, url):
    """A dispatcher that is told so unpickles proxies and starts no thread for them."""
    run(
        """
        with sync.Store("s", URL) as store:
            before = len(os.listdir("/proc/self/task"))
            copies = fresh([store.proxy_from_key(str(i)) for i in range(1000)])
            time.sleep(0.1)
            assert len(os.listdir("/proc/self/task")) == before
            assert not any(map(is_resolved, copies))
        """,
        url,
        {"PROXYPLANE_EAGER": "0"},
    )


def test_decodes_on_workers(run, url):
    """What resolves in the background is decoded, and dropped, on threads that may be stalled."""
    run(
        """
        import gc
        gc.disable()  # it would drop garbage in whatever thread it happens to run
        with sync.Store("s", URL, cache_size=0) as store:
            for payload in (1, [0] * 300_000):
                p = store.proxy(Decoded(payload), populate_target=False)
                copies = [fresh(p) for _ in range(3)]
                wait_until(lambda: all(map(is_resolved, copies)))
                del copies, p
        assert len(Decoded.decoded_in) == 2, Decoded.decoded_in
        assert all(name.startswith("proxyplane-decode") for name in Decoded.decoded_in)
        assert "proxyplane-io" not in Decoded.dropped_in, Decoded.dropped_in
        """,
        url,
    )


@pytest.mark.parametrize("state", ["just arrived", "in the air"])
def test_exit(run, state):
    """A process that ends with hundreds of proxies under way starts no more of them, and ends
    without a word."""
    out = run(
        f"""
        @atexit.register  # before the library's: so it is called after that
        def count():
            assert Slow.events.count("get") <= 32, Slow.events
            print("ended")
        class Leaving(Slow):
            async def get(self, key, *, size=None):
                self.events.append("get")
                mine = len(self.events) % 8
                try:
                    await asyncio.sleep(FOR_EVER)
                finally:
                    await asyncio.sleep(0.05 * mine)  # one after the other
        store = sync.Store("s", Leaving(), register=True)
        copies = fresh(store.proxy_batch(list(range(500)), populate_target=False))
        if {state!r} == "in the air":
            wait_until(lambda: Slow.events.count("get") == 32)
        """
    )
    assert out == "ended\n"


@pytest.mark.parametrize("how", ["sys.exit(0)", "raise KeyboardInterrupt"])
def test_exit_while_they_resolve(run, url, how):
    """So does one that ends in the middle of quick fetches."""
    out = """
        try:
            with sync.Store("s", URL, cache_size=0) as store:
                batch = store.proxy_batch([[i] for i in range(300)], populate_target=False)
                copies = fresh(batch)
                wait_until(lambda: any(map(is_resolved, copies)))
                {how}
        except KeyboardInterrupt:
            pass
        """.replace("{how}", how)
    run(out, url)


def test_errors_are_silent(run):
    """Failures that nobody meets are not reported on standard error, by asyncio either."""
    run(
        """
        import logging
        logging.basicConfig(level=logging.DEBUG)
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        class Failing(Slow):
            async def get(self, key, *, size=None):
                self.events.append("get")
                raise OSError("broken")
        with sync.Store("s", Failing(), register=True) as store:
            copies = fresh([store.proxy_from_key(str(i)) for i in range(100)])
            wait_until(lambda: Slow.events.count("get") == 100)
            time.sleep(0.05)
            gc.collect()
            copies = None
            gc.collect()
        """,
        env={"PYTHONASYNCIODEBUG": "1"},
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
class TestFork:
    def test_child_starts_empty(self, run, url):
        """What a parent had under way is none of its child's business, where all works anew."""
        run(
            """
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork")
            from proxyplane._runtime import eager
            from proxyplane.config import connector_from_url
            from proxyplane.testing.faults import Recorder, SlowConnector
            slow = SlowConnector(connector_from_url(URL), FOR_EVER, operations={"get"})
            seen = Recorder(slow)
            store = sync.Store("s", seen, register=True, cache_size=0)
            keys = store.put_batch(list(range(40)))
            copies = fresh([store.proxy_from_key(key) for key in keys])
            wait_until(lambda: seen.count("get") == 32)
            late = fresh([store.proxy_from_key(key) for key in keys])
            def child():
                process = eager._process
                assert not process.arrived and process.window is None
                slow.seconds = 0.0
                seen.calls.clear()
                assert copies[3] + 0 == 3 and late[39] + 0 == 39
                copies.clear()
                late.clear()
                gc.collect()
                again = fresh([store.proxy_from_key(key) for key in keys])
                wait_until(lambda: all(map(is_resolved, again)))
                assert seen.count("get") == 42, seen.calls
            for _ in range(2):
                assert in_child(child) == 0
            copies.clear()
            late.clear()
            gc.collect()
            wait_until(lambda: not eager._process.window.flights)
            slow.seconds = 0.0
            assert fresh(store.proxy_from_key(keys[7])) + 0 == 7
            store.close(clear=True)
            """,
            url,
        )

    @pytest.mark.row("fork while fetching")
    def test_fork_while_they_resolve(self, run, url):
        """A fork at any moment leaves both with proxies that work."""
        run(
            f"""
            TIMES = {times("fork while fetching")}
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork")
            with sync.Store("s", URL, cache_size=0) as store:
                batch = store.proxy_batch([[i] for i in range(20)], populate_target=False)
                data = pickle.dumps(batch)
                def child():
                    assert pickle.loads(data) == [[i] for i in range(20)]
                    again = pickle.loads(data)
                    wait_until(lambda: all(map(is_resolved, again)))
                    assert copies == [[i] for i in range(20)]
                for n in range(TIMES):
                    copies = pickle.loads(data)
                    time.sleep(n % 15 * 0.0004)
                    assert in_child(child) == 0
                    assert copies == [[i] for i in range(20)]
            """,
            url,
        )
