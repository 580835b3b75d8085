"""Ctrl-C in the middle of what an `asyncio.run` awaits, again and again."""

from __future__ import annotations

import asyncio

import pytest

from support.counted import is_left
from support.waiting import run_code

WORK = """
    import asyncio, logging, os, random, signal, sys, threading
    from proxyplane import LocalConnector, Store, aresolve
    from proxyplane.config import connector_from_url

    logging.basicConfig(level=logging.WARNING)
    url, loop = sys.argv[1:]
    local = LocalConnector() if url == "local" else None
    LARGE = bytes(3 << 20)
    known = set()  # the keys that somebody was told of, and did not evict

    def store():
        return Store("ctrl-c", connector_from_url(local.url if local else url), cache_size=0)

    async def work(store, obj):
        while True:
            keys = [await store.put(obj)]
            known.update(keys)
            assert await store.get(keys[0]) == obj
            assert await store.proxy_from_key(keys[0]) == obj
            batch = await store.put_batch([obj, b"2"])
            known.update(batch)
            name = f"name {len(obj)}"
            known.add(name)
            for _ in range(2):
                await store.put(obj, key=name)
            told = await store.put(obj, progress=lambda done, total: None)
            known.add(told)
            keys += [*batch, told]
            assert all(await store.evict_batch(keys))
            known.difference_update(keys)

    async def main(ready):
        async with store() as one, asyncio.TaskGroup() as group:
            for obj in (b"small", LARGE, [1, 2]):
                group.create_task(work(one, obj))
            ready.set()

    def interrupt(ready, seconds):
        ready.wait()
        threading.Event().wait(seconds)
        os.kill(os.getpid(), signal.SIGINT)

    factory = None
    if loop == "uvloop":
        from uvloop import new_event_loop as factory
    for _ in range(6):
        ready = threading.Event()
        thread = threading.Thread(target=interrupt, args=(ready, random.random() * 0.05))
        thread.start()
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(main(ready))
        except KeyboardInterrupt:
            thread.join()
        else:
            sys.exit("it went on")

    async def end():
        async with store() as one:
            await one.evict_batch(sorted(known))
            key = await one.put(b"it works")
            assert await one.get(key) == b"it works"
            assert await one.evict(key)

    asyncio.run(end())
    if local:
        assert not local._medium.entries, local._medium.entries
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_ctrl_c(counted, loop):
    """It ends the run at once, with no more than a KeyboardInterrupt; nothing is left."""
    connector, count = counted
    scheme = type(connector).__name__
    if scheme == "Plain":
        pytest.skip("no other process knows it")
    if loop == "uvloop" and scheme not in {"FileConnector", "EndpointConnector", "RedisConnector"}:
        pytest.skip("others rest on these")
    url = "local" if scheme == "LocalConnector" else connector.url
    before = await asyncio.to_thread(count)
    done = await asyncio.to_thread(run_code, WORK, url, loop)
    assert done.stderr == ""
    await is_left(count, before)
