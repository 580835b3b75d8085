"""LocalConnector: objects in the memory of one process."""

from __future__ import annotations

import array
import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyplane.abc import Connector, SupportsSync
from proxyplane.connectors._inline import INLINE_BYTES, views
from proxyplane.connectors.local.connector import MAP_BYTES, LocalConnector
from proxyplane.exceptions import (
    ConfigError,
    ConnectorClosedError,
    KeyExistsError,
    ObjectLostError,
    WrongProcessError,
)
from support.workers import Workers, cancel_after

SIZES = [1, 1000, INLINE_BYTES + 1, MAP_BYTES + 12345, 3 * MAP_BYTES + 1]


def pattern(size: int) -> bytes:
    """Bytes that differ from their neighbours at every power of two."""
    return (b"%16x" * (size // 4096 + 1) % tuple(range(size // 4096 + 1))).ljust(size, b"~")[:size]


def run(code: str, *argv: str) -> str:
    """Runs code in a new interpreter and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *argv],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_is_a_connector_with_the_plain_shortcut():
    """It fulfils both contracts."""
    connector = LocalConnector()
    assert isinstance(connector, Connector)
    assert isinstance(connector, SupportsSync)


@pytest.mark.parametrize("size", SIZES)
async def test_round_trip(size):
    """Get returns the joined frames, whatever their size."""
    connector = LocalConnector()
    body = pattern(size)
    key = await connector.put([body[: size // 3], b"", bytearray(body[size // 3 :])])
    assert await connector.get(key) == body
    assert connector.get_sync(connector.put_sync([body])) == body


@given(st.lists(st.binary(max_size=50), max_size=9).filter(any), st.text())
def test_any_frames_under_any_key(frames, key):
    """Any text is a key, and any list of buffers an object."""
    connector = LocalConnector()
    assert connector.put_sync([memoryview(frame) for frame in frames], key=key) == key
    assert connector.get_sync(key) == b"".join(frames)


def test_frames_of_other_shapes():
    """Frames of other item sizes and dimensions are stored as their bytes."""
    connector = LocalConnector()
    numbers = array.array("d", [1.5, 2.5])
    table = memoryview(bytes(range(6))).cast("B", (2, 3))
    key = connector.put_sync([numbers, table])
    assert connector.get_sync(key) == numbers.tobytes() + bytes(range(6))


def test_scattered_memory_is_refused():
    """A view with gaps has no bytes to store without a copy."""
    with pytest.raises(BufferError, match="contiguous"):
        views([memoryview(b"abcdef")[::2]])


@pytest.mark.parametrize("size", SIZES)
async def test_isolated_from_the_producer(size):
    """What the producer does to its buffer after put is not seen."""
    connector = LocalConnector()
    body = bytearray(pattern(size))
    key = await connector.put([memoryview(body)])
    body[:] = bytes(size)
    assert await connector.get(key) == pattern(size)


@pytest.mark.parametrize("size", SIZES)
async def test_readers_cannot_write(size):
    """The one copy is shared, so it is read-only."""
    connector = LocalConnector()
    buffer = await connector.get(await connector.put([pattern(size)]))
    assert buffer.readonly
    with pytest.raises(TypeError):
        buffer[0] = 1


@pytest.mark.parametrize("size", SIZES)
async def test_views_outlive_evict_and_close(size):
    """A buffer that was handed out stays valid."""
    connector = LocalConnector()
    key = await connector.put([pattern(size)])
    buffer = await connector.get(key)
    assert await connector.evict(key)
    await connector.aclose()
    del connector
    gc.collect()
    assert buffer == pattern(size)


async def test_missing_key():
    """A key that holds nothing is None, False, False."""
    connector = LocalConnector()
    assert await connector.get("no") is None
    assert not await connector.exists("no")
    assert not await connector.evict("no")


@pytest.mark.parametrize("size", SIZES)
async def test_keys_are_write_once(size):
    """A taken key is refused and keeps what it holds."""
    connector = LocalConnector()
    await connector.put([b"first"], key="k")
    with pytest.raises(KeyExistsError, match="'k'"):
        await connector.put([pattern(size)], key="k")
    assert await connector.get("k") == b"first"


async def test_url_shares_the_objects():
    """A connector made from the URL in this process reaches the same objects."""
    first = LocalConnector()
    second = LocalConnector.from_url(first.url)
    key = await first.put([b"x"])
    assert await second.get(key) == b"x"
    assert second.url == first.url
    other = LocalConnector()
    assert not await other.exists(key)


async def test_memory_lives_with_its_last_connector():
    """Closing one connector takes nothing from another on the same memory."""
    first = LocalConnector()
    second = LocalConnector.from_url(first.url)
    key = await first.put([b"x"])
    await first.aclose()
    assert await second.get(key) == b"x"
    await second.aclose()
    third = LocalConnector.from_url(first.url)
    with pytest.raises(ObjectLostError, match="was freed"):
        await third.get(key)


async def test_collected_memory_is_lost():
    """A connector that nobody keeps takes its memory along."""
    url = LocalConnector().url
    gc.collect()
    late = LocalConnector.from_url(url)
    for call in (late.get("k"), late.put([b"x"]), late.exists("k"), late.evict("k")):
        with pytest.raises(ObjectLostError):
            await call


async def test_closed_connector():
    """After aclose every operation says so, and a second aclose does nothing."""
    connector = LocalConnector()
    other = LocalConnector.from_url(connector.url)
    await connector.aclose()
    await connector.aclose(clear=True)
    for call in (
        connector.get("k"),
        connector.put([b"x"]),
        connector.put([bytes(INLINE_BYTES + 1)]),
        connector.put_batch([[b"x"]]),
        connector.exists("k"),
        connector.evict("k"),
    ):
        with pytest.raises(ConnectorClosedError):
            await call
    assert not await other.exists("k")


async def test_clear_evicts_only_its_own():
    """Clear takes what this instance put, also when its key now holds someone else's object."""
    one = LocalConnector()
    two = LocalConnector.from_url(one.url)
    mine, theirs = await one.put([b"1"]), await two.put([b"2"])
    await one.put([b"1"], key="mine")
    await one.put([b"1"], key="reused")
    await two.evict("reused")
    await two.put([b"2"], key="reused")
    await one.aclose(clear=True)
    assert [await two.exists(key) for key in (mine, "mine")] == [False, False]
    assert [await two.get(key) for key in (theirs, "reused")] == [b"2", b"2"]


async def test_other_process():
    """In another process the connector can be made, and each operation names the right one."""
    connector = LocalConnector()
    printed = run(
        """
        import asyncio, sys
        from proxyplane.connectors.local import LocalConnector
        from proxyplane.exceptions import WrongProcessError
        async def main():
            there = LocalConnector.from_url(sys.argv[1])
            assert there.url == sys.argv[1]
            calls = [there.get("k"), there.put([b"x"]), there.put_batch([[b"x"]]),
                     there.exists("k"), there.evict("k")]
            for call in calls:
                try:
                    await call
                except WrongProcessError as exc:
                    print(exc)
            await there.aclose(clear=True)
        asyncio.run(main())
        """,
        connector.url,
    )
    assert printed.count(f"process {os.getpid()} on host {os.uname().nodename!r}") == 5
    assert "FileConnector" in printed


async def test_other_host():
    """The same process id on another host is another process."""
    connector = LocalConnector()
    _, _, pid, token = connector.url.removeprefix("local:/").split("/")
    there = LocalConnector.from_url(f"local://elsewhere/{pid}/{token}")
    with pytest.raises(WrongProcessError, match="'elsewhere'"):
        await there.get("k")


def test_forked_child():
    """A forked child raises, at once, while another thread of the parent is in the connector."""
    run(
        """
        import os, threading
        from proxyplane.connectors.local import LocalConnector
        from proxyplane.exceptions import WrongProcessError
        connector = LocalConnector()
        key = connector.put_sync([b"x" * 100])
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                connector.evict_sync(connector.put_sync([bytes(5 << 20)]))
        thread = threading.Thread(target=busy)
        thread.start()
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is the point
        for _ in range(20):
            child = os.fork()
            if not child:
                code = 1
                try:
                    copy = LocalConnector.from_url(connector.url)
                    for one in (connector, copy):
                        try:
                            one.get_sync(key)
                        except WrongProcessError:
                            code = 0
                        else:
                            os._exit(2)
                    own = LocalConnector()
                    assert own.get_sync(own.put_sync([b"y"])) == b"y"
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        stop.set()
        thread.join()
        assert connector.get_sync(key) == b"x" * 100
        """
    )


@pytest.mark.parametrize(
    "url",
    [
        "local://",
        "local://host/1",
        "local://host/one/token",
        "local://host/1/",
        "local://host/1/a/b",
        "file://host/1/token",
        "local://host/\u0661/token",
    ],
)
def test_bad_url(url):
    """A URL that describes no local connector is refused."""
    with pytest.raises(ConfigError):
        LocalConnector.from_url(url)


def test_evict_is_won_once():
    """Of fifty threads that evict one key, one learns that it was there."""
    connector = LocalConnector()
    with ThreadPoolExecutor(50) as pool:
        for _ in range(100):
            key = connector.put_sync([b"x"])
            assert sum(pool.map(connector.evict_sync, [key] * 50)) == 1


def test_put_is_won_once():
    """Of fifty threads that put under one key, one succeeds, and its object stays."""
    connector = LocalConnector()
    barrier = threading.Barrier(50)

    def put(number: int) -> int | None:
        barrier.wait()
        try:
            connector.put_sync([b"%d" % number], key="k")
        except KeyExistsError:
            return None
        return number

    with ThreadPoolExecutor(50) as pool:
        winners = [one for one in pool.map(put, range(50)) if one is not None]
    assert [b"%d" % one for one in winners] == [connector.get_sync("k")]


def test_put_under_a_key_taken_meanwhile(monkeypatch):
    """A key that is taken while the body is copied is refused, and keeps what it holds."""
    import proxyplane.connectors.local.connector as module

    connector = LocalConnector()
    rival = LocalConnector.from_url(connector.url)
    copy = module._copy

    def late(bodies):
        monkeypatch.undo()
        rival.put_sync([b"rival"], key="k")
        return copy(bodies)

    monkeypatch.setattr(module, "_copy", late)
    with pytest.raises(KeyExistsError):
        connector.put_sync([b"late"], key="k")
    assert connector.get_sync("k") == b"rival"


@pytest.mark.row("loops and threads")
def test_loops_and_threads():
    """Many loops use one connector at once."""
    connector = LocalConnector()

    async def use() -> bool:
        bodies = [os.urandom(10), os.urandom(INLINE_BYTES + 1)]
        keys = await connector.put_batch([[body] for body in bodies])
        same = await connector.get_batch(keys) == bodies
        return same and await connector.evict_batch(keys) == [True, True]

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(lambda _: asyncio.run(use()), range(60)))


async def test_large_copies_leave_the_loop(monkeypatch):
    """A large body is copied on a worker thread, a small one where it is."""
    import proxyplane.connectors.local.connector as module

    threads = []
    copy = module._copy
    monkeypatch.setattr(
        module, "_copy", lambda bodies: threads.append(threading.get_ident()) or copy(bodies)
    )
    connector = LocalConnector()
    await connector.put([b"small"])
    await connector.put([bytes(INLINE_BYTES + 1)])
    await connector.put_batch([[b"small"]])
    await connector.put_batch([[bytes(INLINE_BYTES)], [b"x"]])
    here = threading.get_ident()
    assert [one == here for one in threads] == [True, False, True, False, False]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("phase", ["before", "copying", "done"])
async def test_cancelled_put_leaves_nothing(monkeypatch, batch, phase):
    """Cancelled before, during or after the copy, a put leaves no object behind."""
    import proxyplane.connectors.local.connector as module

    workers = Workers(monkeypatch)
    connector = LocalConnector()
    entered, go_on = threading.Event(), threading.Event()
    copy = module._copy

    def slow(bodies):
        entered.set()
        assert go_on.wait(30)
        return copy(bodies)

    monkeypatch.setattr(module, "_copy", slow)
    for steps in range(8):
        entered.clear()
        go_on.clear()
        frames = [bytes(INLINE_BYTES + 1)]
        put = connector.put_batch([frames]) if batch else connector.put(frames, key="k")
        if phase == "before":
            go_on.set()
            cancelled = await cancel_after(steps, put)
        else:
            task = asyncio.ensure_future(put)
            await asyncio.to_thread(entered.wait)
            if phase == "done":
                ended = workers.ended
                go_on.set()
                # The loop is kept busy, so that the put ends before its caller hears of it.
                while workers.ended == ended:
                    pass
            task.cancel()
            await asyncio.wait([task])
            go_on.set()
            cancelled = task.cancelled()
        await workers.settle()
        assert cancelled or phase == "before"
        assert bool(connector._medium.entries) is not cancelled
        connector._medium.entries.clear()
