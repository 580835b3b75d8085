"""One client per loop: made on its loop, closed when its loop ends, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from proxyplane._runtime.per_loop import PerLoop


class Client:
    """Remembers its loop, and whether it was closed there."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.closed = False

    async def aclose(self):
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)
        self.closed = True


def make():
    return PerLoop(Client, Client.aclose)


def runners():
    yield asyncio.run
    try:
        import uvloop
    except ImportError:
        return
    yield uvloop.run


@pytest.fixture(params=runners(), ids=lambda run: run.__module__)
def run_loop(request):
    return request.param


def test_one_loop_after_another(run_loop):
    """Each loop has a client of its own, closed when the loop ends."""
    per_loop = make()

    async def main():
        client = await per_loop.get()
        assert await per_loop.get() is client
        return client

    first, second = run_loop(main()), run_loop(main())
    assert first is not second
    assert first.closed
    assert second.closed


def test_two_loops_at_once(run_loop):
    """Two loops in two threads do not share a client."""
    per_loop = make()
    both = threading.Barrier(2)
    clients = []

    async def main():
        clients.append(await per_loop.get())
        await asyncio.to_thread(both.wait)
        assert await per_loop.get() in clients

    threads = [threading.Thread(target=run_loop, args=(main(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(clients)) == 2
    assert all(client.closed for client in clients)


def test_aclose_reaches_other_loops():
    """A client is closed on its own loop, whichever loop asks for it."""
    per_loop = make()
    made, release = threading.Event(), threading.Event()
    clients = []

    async def other():
        clients.append(await per_loop.get())
        made.set()
        while not clients[0].closed:
            await asyncio.sleep(0.001)

    async def main():
        clients.append(await per_loop.get())
        await per_loop.aclose()
        assert clients[1].closed

    thread = threading.Thread(target=asyncio.run, args=(other(),))
    thread.start()
    made.wait()
    asyncio.run(main())
    thread.join()
    assert clients[0].closed
    release.set()


@pytest.mark.row("loop closed under a client")
def test_loop_that_was_not_shut_down():
    """A loop that is closed without shutting down its generators leaves nothing behind."""
    per_loop = make()
    loop = asyncio.new_event_loop()
    client = weakref.ref(loop.run_until_complete(per_loop.get()))
    loop.close()
    alive = weakref.ref(loop)
    del loop

    async def main():
        await per_loop.get()

    asyncio.run(main())
    gc.collect()
    assert client() is None
    assert alive() is None


def test_new_client_after_aclose():
    """After a close the next use makes a new client."""
    per_loop = make()

    async def main():
        first = await per_loop.get()
        await per_loop.aclose()
        second = await per_loop.get()
        assert first.closed
        assert not second.closed
        return second

    assert asyncio.run(main()).closed


def test_loops_are_not_kept(run_loop):
    """A hundred loops, one after another, are all collected."""
    per_loop = make()
    alive = weakref.WeakSet()

    async def main():
        alive.add(asyncio.get_running_loop())
        await per_loop.get()

    for _ in range(100):
        run_loop(main())
    gc.collect()
    assert len(alive) <= 1
    assert not per_loop._entries


def test_descriptors_stay_flat(run, url):
    """A hundred loops that use one store, and its proxies, cost no descriptor and no thread."""
    run(
        """
        with sync.Store("s", URL, cache_size=0) as store:
            a = store._store
            p = store.proxy([1], populate_target=False)
            async def main():
                assert await a.get_batch([await a.put([1])]) == [[1]]
                assert await a.get(await a.put([0] * 200_000)) is not None
                assert await fresh(p) == [1]
            asyncio.run(main())
            before = descriptors(), threading.active_count()
            for _ in range(100):
                asyncio.run(main())
            gc.collect()
            assert descriptors() <= before[0] + 2, (before, descriptors())
            assert threading.active_count() <= before[1] + 9
        assert os.getpid()
        """,
        url,
    )


def test_two_loops_share_one_store(run, url):
    """Two loops in two threads use one store, and one proxy, at once."""
    run(
        """
        calls = []
        def factory():
            calls.append(1)
            time.sleep(0.05)
            return 7
        both = Proxy(factory)
        failures = []
        with sync.Store("s", URL, cache_size=0) as store:
            a = store._store
            p = store.proxy([1], populate_target=False)
            async def main():
                for i in range(20):
                    assert await a.get(await a.put(i)) == i
                    assert await fresh(p) == [1]
                assert await p == [1] and await both == 7
            def work():
                try:
                    asyncio.run(main())
                except BaseException:
                    failures.append(traceback.format_exc())
            for t in [thread(work) for _ in range(2)]:
                t.join()
        assert not failures, failures[0]
        assert calls == [1]
        """,
        url,
    )


def test_closed_by_another_thread_while_a_client_is_made():
    """It is not given out, and is closed: the other thread could not see it."""
    closed = False
    made = []

    def check():
        if closed:
            raise RuntimeError("closed")

    def make():
        made.append(Client())

        def close():
            nonlocal closed
            closed = True
            asyncio.run(per_loop.aclose())

        thread = threading.Thread(target=close)
        thread.start()
        thread.join()
        return made[0]

    async def main():
        with pytest.raises(RuntimeError, match="closed"):
            await per_loop.get(check)
        assert made[0].closed
        with pytest.raises(RuntimeError, match="closed"):
            await per_loop.get(check)
        assert len(made) == 1

    per_loop = PerLoop(make, Client.aclose)
    asyncio.run(main())
