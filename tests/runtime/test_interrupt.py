"""Ctrl-C in a blocking wait, and other exceptions that are not errors."""

from __future__ import annotations

import pytest


@pytest.mark.row("interrupt while waiting")
def test_in_a_blocking_call(start):
    """It raises KeyboardInterrupt when the coroutine was cancelled and has cleaned up."""
    script = start(
        """
        with sync.Store("s", Slow()) as store:
            key = store.put([1])
            Slow.delay = FOR_EVER
            thread(lambda: (wait_until(lambda: Slow.events), say("waits")))
            try:
                store.get(key)
            except KeyboardInterrupt:
                assert Slow.events == ["get", "cancelled", "cleaned up", "ended"], Slow.events
            else:
                raise AssertionError
            Slow.delay = 0
            assert store.get(key) == [1]
        say("done")
        """
    )
    script.expect("waits")
    script.interrupt()
    script.expect("done")
    script.end()


def test_during_the_clean_up(start):
    """A second one does not wait for the clean-up."""
    script = start(
        """
        class Stuck(Slow):
            async def get(self, key, *, size=None):
                say("waits")
                try:
                    await asyncio.sleep(self.delay)
                except asyncio.CancelledError:
                    say("cleans up")
                    await asyncio.sleep(FOR_EVER)
        from proxyplane._runtime import io_thread as module
        module.CLEANUP_TIMEOUT = FOR_EVER
        store = sync.Store("s", Stuck())
        key = store.put([1])
        Slow.delay = FOR_EVER
        try:
            store.get(key)
        except KeyboardInterrupt:
            say("interrupted")
        module.CLEANUP_TIMEOUT = 1
        assert store.exists(key)
        """
    )
    script.expect("waits")
    script.interrupt()
    script.expect("cleans up")
    script.interrupt()
    script.expect("interrupted")
    script.end()


@pytest.mark.row("interrupt while waiting")
def test_in_a_touch(start):
    """A touch is interrupted, its flight cancelled, and the next one fetches."""
    script = start(
        """
        with sync.Store("s", Slow()) as store:
            p = store.proxy([1], populate_target=False)
            Slow.delay = FOR_EVER
            thread(lambda: (wait_until(lambda: Slow.events), say("waits")))
            try:
                p[0]
            except KeyboardInterrupt:
                wait_until(lambda: "ended" in Slow.events)
            else:
                raise AssertionError
            Slow.delay = 0
            assert p[0] == 1
            assert not flights._process.flights and not flights._process.waits
        say("done")
        """
    )
    script.expect("waits")
    script.interrupt()
    script.expect("done")
    script.end()


def test_while_it_decodes(start):
    """When the thread that decodes is interrupted, another one that waits decodes."""
    script = start(
        """
        with sync.Store("s", LocalConnector(), cache_size=0) as store:
            p = store.proxy(Decoded({"a": 1}), populate_target=False)
            def slow():
                if threading.current_thread() is threading.main_thread():
                    say("decodes")
                    time.sleep(FOR_EVER)
            Decoded.on_decode = slow
            got = []
            def other():
                wait_until(lambda: Decoded.decoded_in)
                got.append(p.payload)
            async def main():
                wait_until(lambda: Decoded.decoded_in)
                got.append((await p).payload)
            others = [thread(other), thread(lambda: asyncio.run(main()))]
            try:
                p.payload
            except KeyboardInterrupt:
                pass
            for one in others:
                one.join()
            assert got == [{"a": 1}] * 2, got
            assert len(Decoded.decoded_in) == 2
        say("done")
        """
    )
    script.expect("decodes")
    script.interrupt()
    script.expect("done")
    script.end()


@pytest.mark.parametrize("works", ["here", "on the loop"])
def test_at_every_line(run, works):
    """Wherever it hits the thread that resolves, the others that wait get the object."""
    run(
        f"""
        HERE = {works!r} == "here"
        files = tuple(sys.modules["proxyplane._runtime." + name].__file__
                      for name in ("cycles", "flight", "flights", "io_thread", "workers"))
        if HERE:
            Slow.get_sync = lambda self, key, *, size=None: self._entries()[key].body
            Slow.put_sync, Slow.exists_sync, Slow.evict_sync = (
                LocalConnector.put_sync, LocalConnector.exists_sync, LocalConnector.evict_sync)
        store = sync.Store("s", Slow(), cache_size=0)
        gate = threading.Event()
        Decoded.on_decode = gate.wait
        n = misses = 0
        while True:
            n += 1
            p = store.proxy(Decoded([n]), populate_target=False)
            gate.clear()
            left = n
            hit = False
            def trace(frame, event, arg):
                global left, hit
                if not frame.f_code.co_filename.startswith(files):
                    return None
                if event == "line" and not no_signal_comes(frame):
                    left -= 1
                    if not left:
                        hit = True
                        sys.settrace(None)
                        raise KeyboardInterrupt
                return trace
            got = []
            def other():
                got.append(p.payload)
            async def main():
                got.append((await p).payload)
            others = [thread(other), thread(lambda: asyncio.run(main()))]
            helper = thread(lambda: (time.sleep(0.005), gate.set()))
            sys.settrace(trace)
            try:
                p.payload
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            gate.set()
            for one in [*others, helper]:
                one.join()
            assert got == [[n]] * 2, (n, got)
            assert p.payload == [n]
            # One of the others may have been faster this time, so that there was little to hit.
            misses = 0 if hit else misses + 1
            if misses == 5:
                break
        assert n > 10
        assert all(flight.state.name == "DONE" for flight in flights._process.waits.values())
        """,
        stderr=None,
    )


def test_at_every_line_of_a_blocking_call(run):
    """Wherever it hits a blocking call, the next one works and nothing is left behind."""
    run(
        """
        file = sys.modules["proxyplane._runtime.io_thread"].__file__
        with sync.Store("s", Slow(), cache_size=0) as store:
            key = store.put([1])
            n, hit = 0, True
            while hit:
                n += 1
                left, hit = n, False
                def trace(frame, event, arg):
                    global left, hit
                    if frame.f_code.co_filename != file:
                        return None
                    if event == "line" and not no_signal_comes(frame):
                        left -= 1
                        if not left:
                            hit = True
                            sys.settrace(None)
                            raise KeyboardInterrupt
                    return trace
                sys.settrace(trace)
                try:
                    store.get(key)
                except KeyboardInterrupt:
                    pass
                finally:
                    sys.settrace(None)
                assert store.get(key) == [1]
                wait_until(lambda: not io_thread()._spawned)
            assert n > 10
        """,
        stderr=None,  # hit before the first line, a coroutine is never awaited
    )


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "Odd"])
def test_raised_on_the_loop(run, error):
    """What a coroutine raises on the library's loop reaches the caller, and the loop goes on."""
    run(
        f"""
        class Odd(BaseException):
            pass
        class Raises(Slow):
            async def get(self, key, *, size=None):
                raise {error}("mine")
        with sync.Store("s", Raises()) as store:
            key = store.put([1])
            before = io_thread()
            for _ in range(2):
                try:
                    store.get(key)
                except {error} as caught:
                    assert caught.args == ("mine",)
                else:
                    raise AssertionError
            p = store.proxy([1], populate_target=False)
            for _ in range(2):
                try:
                    p[0]
                except {error}:
                    pass
                else:
                    raise AssertionError
            assert store.exists(key) and io_thread() is before
        """
    )


@pytest.mark.parametrize("error", ["SystemExit(3)", "asyncio.CancelledError()", "Odd()"])
def test_raised_by_a_factory_on_a_worker(run, error):
    """A factory that raises what is no error is called once, and every waiter learns of it."""
    run(
        f"""
        class Odd(BaseException):
            pass
        calls = []
        def factory():
            calls.append(1)
            time.sleep(0.05)
            raise {error}
        p = Proxy(factory)
        async def main():
            tasks = [asyncio.ensure_future(wait()) for _ in range(2)]
            for task in tasks:
                assert await task == "raised"
        async def wait():
            try:
                await p
            except (SystemExit, Odd, ProxyResolveError):
                return "raised"
        asyncio.run(main())
        assert len(calls) == 1, calls
        """
    )


def test_launch_that_is_interrupted(run):
    """Others that wait for a flight go on when the thread that was starting it is interrupted."""
    run(
        """
        store = sync.Store("s", Slow(), cache_size=0)
        p = store.proxy({"a": 1}, populate_target=False)
        others, got = [], []
        thread_of = io_thread()
        spawn = type(thread_of).spawn
        def interrupted(self, coro, done):
            if threading.current_thread() is not threading.main_thread():
                return spawn(self, coro, done)
            flight = done.__self__
            lock = flights._process.lock
            lock.release()  # as if they had come a moment before it was taken
            others.append(thread(lambda: got.append(p["a"])))
            others.append(thread(lambda: asyncio.run(main())))
            wait_until(lambda: len(flight._wakers) == 2)
            lock.acquire()
            coro.close()
            raise KeyboardInterrupt
        async def main():
            got.append((await p)["a"])
        type(thread_of).spawn = interrupted
        try:
            p["a"]
        except KeyboardInterrupt:
            pass
        for other in others:
            other.join()
        assert got == [1, 1], got
        store.close()
        """
    )
