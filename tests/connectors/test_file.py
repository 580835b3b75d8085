"""FileConnector: objects as files; what it promises while nothing breaks."""

from __future__ import annotations

import array
import asyncio
import mmap
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxyplane.abc import Connector, SupportsSync
from proxyplane.connectors._inline import INLINE_BYTES
from proxyplane.connectors.file import publish as file_io
from proxyplane.connectors.file.connector import (
    INLINE_EVICT_BYTES,
    INLINE_OBJECTS,
    FileConnector,
)
from proxyplane.connectors.file.directory import UNPUBLISHED
from proxyplane.connectors.file.publish import Publisher, file_name, write_all
from proxyplane.connectors.file.read import MAP_BYTES
from proxyplane.exceptions import ConnectorClosedError, KeyExistsError
from support.workers import Workers, cancel_after

SIZES = [1, 1000, MAP_BYTES - 1, MAP_BYTES, INLINE_BYTES + 1, (5 << 20) + 3]


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


def published(connector: FileConnector) -> list[str]:
    return [name for name in os.listdir(connector.directory) if name != UNPUBLISHED]


@pytest.fixture(params=["without a name", "named"])
def connector(request, tmp_path):
    """A connector on a new directory, with each way of keeping what is not published yet."""
    made = FileConnector(tmp_path / "objects")
    if request.param == "named":
        made._publisher.anonymous = False
    elif not made._publisher.anonymous:
        pytest.skip("this system has no O_TMPFILE")
    return made


def test_is_a_connector_with_the_plain_shortcut(connector):
    """It fulfils both contracts."""
    assert isinstance(connector, Connector)
    assert isinstance(connector, SupportsSync)


@pytest.mark.parametrize("size", SIZES)
async def test_round_trip(connector, size):
    """Get returns the joined frames, whatever their size, also to another connector."""
    body = pattern(size)
    key = await connector.put([body[: size // 3], b"", bytearray(body[size // 3 :])])
    reader = FileConnector.from_url(connector.url)
    assert await reader.get(key) == body
    assert reader.get_sync(connector.put_sync([body])) == body
    assert await connector.exists(key)
    assert await reader.evict(key)
    assert not await connector.exists(key)
    assert not await connector.evict(key)
    assert await connector.get(key) is None


@given(st.lists(st.binary(max_size=50), max_size=30).filter(any))
def test_any_frames(tmp_path_factory, frames):
    """Any list of buffers is an object."""
    connector = FileConnector(tmp_path_factory.getbasetemp() / "any-frames")
    key = connector.put_sync([memoryview(frame) for frame in frames])
    assert connector.get_sync(key) == b"".join(frames)
    connector.evict_sync(key)


def test_more_frames_than_one_call_takes(connector):
    """A list longer than IOV_MAX is written in several calls, with nothing lost between them."""
    frames = [b"%d," % number for number in range(3 * os.sysconf("SC_IOV_MAX") + 7)]
    assert connector.get_sync(connector.put_sync(frames)) == b"".join(frames)


def test_more_bytes_than_one_call_takes(monkeypatch):
    """Linux writes at most 2 GiB in one call; the rest follows in others."""
    calls = []
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, some: calls.append(real(fd, some)) or calls[-1])
    with mmap.mmap(-1, 1 << 30) as gigabyte, open("/dev/null", "wb") as sink:
        with memoryview(gigabyte) as body:
            write_all(sink.fileno(), [body] * 5)
    assert sum(calls) == 5 << 30
    assert len(calls) > 1


def test_frames_of_other_shapes(connector):
    """Frames of other item sizes and dimensions are stored as their bytes."""
    numbers = array.array("d", [1.5, 2.5])
    table = memoryview(bytes(range(6))).cast("B", (2, 3))
    key = connector.put_sync([numbers, table])
    assert connector.get_sync(key) == numbers.tobytes() + bytes(range(6))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(st.characters(), max_size=300), min_size=1, max_size=8, unique=True))
def test_any_text_is_a_key(tmp_path_factory, keys):
    """Different texts are different keys, and none leaves the directory."""
    connector = FileConnector(tmp_path_factory.getbasetemp() / "any-key")
    for number, key in enumerate(keys):
        assert connector.put_sync([b"%d" % number], key=key) == key
    assert len(published(connector)) == len(keys)
    for number, key in enumerate(keys):
        assert connector.get_sync(key) == b"%d" % number
        assert connector.evict_sync(key)
    assert published(connector) == []


AWKWARD = [
    "", ".", "..", "/", "../x", "a/b", "\0", "k-", "k-%2f", "%2f", "/" * 255, UNPUBLISHED,
    "x" * 100_000, "x" * 100_001, "Key", "key", "KEY", "\udc80", "é", "e\u0301", "\n", "0" * 32,
    "A" * 32, "h-" + "0" * 64,
]  # fmt: skip


def test_awkward_keys(connector):
    """Empty, dots, slashes, NUL, capitals, surrogates and very long texts are keys."""
    for key in AWKWARD:
        connector.put_sync([key.encode("utf-8", "surrogatepass") or b"empty"], key=key)
    for key in AWKWARD:
        expected = key.encode("utf-8", "surrogatepass") or b"empty"
        assert connector.get_sync(key) == expected
    names = published(connector)
    assert len({name.lower() for name in names}) == len(AWKWARD)
    assert os.listdir(os.path.dirname(connector.directory)) == ["objects"]


@given(st.text(max_size=400))
def test_names_fit_any_file_system(key):
    """A file name is short, plain ASCII, without capitals, and never a hidden one."""
    name = file_name(key)
    assert len(name) <= 200
    assert name.isascii()
    assert name == name.lower()
    assert "/" not in name
    assert not name.startswith(".")


@pytest.mark.parametrize("size", SIZES)
async def test_isolated_from_the_producer(connector, size):
    """What the producer does to its buffer after put is not seen."""
    body = bytearray(pattern(size))
    key = await connector.put([memoryview(body)])
    body[:] = bytes(size)
    assert await connector.get(key) == pattern(size)


@pytest.mark.parametrize("size", SIZES)
async def test_isolated_from_readers(connector, size):
    """A reader may write into its buffer; the file and other readers do not see it."""
    key = await connector.put([pattern(size)])
    before = await connector.get(key)
    buffer = await connector.get(key)
    with memoryview(buffer) as view:
        assert not view.readonly
        view[:] = bytes(size)
    assert buffer == bytes(size)
    assert before == pattern(size)
    assert await connector.get(key) == pattern(size)
    assert Path(connector.directory, key).read_bytes() == pattern(size)


async def test_large_objects_are_mapped(connector):
    """From the crossover on a get maps, below it reads."""
    small = await connector.get(await connector.put([bytes(MAP_BYTES - 1)]))
    large = await connector.get(await connector.put([bytes(MAP_BYTES)]))
    assert type(small) is bytearray
    assert type(large.obj) is mmap.mmap


@pytest.mark.parametrize("size", [1000, MAP_BYTES, 5 << 20])
async def test_buffers_outlive_evict_and_overwriting(connector, size):
    """A buffer stays what it was when its key is evicted, and put again with other bytes."""
    await connector.put([pattern(size)], key="k")
    buffer = await connector.get("k")
    with pytest.raises(KeyExistsError):
        await connector.put([b"\xff" * size], key="k")
    assert await connector.evict("k")
    await connector.put([b"\xff" * size], key="k")
    assert buffer == pattern(size)


@pytest.mark.parametrize("size", [10, INLINE_BYTES + 1])
async def test_keys_are_write_once(connector, size):
    """A taken key is refused, keeps what it holds, and nothing is left of the attempt."""
    await connector.put([b"first"], key="k")
    with pytest.raises(KeyExistsError, match="'k'"):
        await connector.put([bytes(size)], key="k")
    assert await connector.get("k") == b"first"
    assert len(published(connector)) == 1
    assert not list(Path(connector.directory).glob(f"{UNPUBLISHED}/*"))


def test_put_is_won_once(connector):
    """Of fifty threads that put under one key, one succeeds, and its object stays."""
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


def test_evict_is_won_once(connector):
    """Of fifty threads that evict one key, one learns that it was there."""
    with ThreadPoolExecutor(50) as pool:
        for _ in range(20):
            key = connector.put_sync([b"x"])
            assert sum(pool.map(connector.evict_sync, [key] * 50)) == 1


@pytest.mark.row("loops and threads")
def test_loops_and_threads(connector):
    """Fifty threads, each with a loop of its own, use one connector at once."""

    async def use(number: int) -> bool:
        bodies = [b"%d" % number * size for size in (1, MAP_BYTES, INLINE_BYTES)]
        keys = await connector.put_batch([[body] for body in bodies])
        found = await connector.get_batch(keys)
        same = found == bodies
        return same and await connector.evict_batch(keys) == [True, True, True]

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(lambda number: asyncio.run(use(number)), range(100)))
    assert published(connector) == []


def test_two_processes(connector):
    """Another process reads, writes and evicts through the URL."""
    large = connector.put_sync([pattern(MAP_BYTES)])
    gone = connector.put_sync([b"x"], key="gone")
    printed = run(
        """
        import asyncio, sys
        from proxyplane.connectors.file import FileConnector
        async def main(url, key):
            there = FileConnector.from_url(url)
            assert there.url == url
            print(await there.put([await there.get(key)]))
            assert await there.evict("gone")
            await there.aclose()
        asyncio.run(main(*sys.argv[1:]))
        """,
        connector.url,
        large,
    )
    assert connector.get_sync(printed.strip()) == pattern(MAP_BYTES)
    assert not connector.exists_sync(gone)


async def test_batches(connector):
    """Batches keep the order, with None and False where there is nothing."""
    for count in (0, 3, INLINE_OBJECTS + 1):
        keys = await connector.put_batch([[b"%d" % number] for number in range(count)])
        mixed = [*keys, "missing"]
        assert await connector.get_batch(mixed) == [*(b"%d" % n for n in range(count)), None]
        assert await connector.evict_batch(mixed) == [True] * count + [False]


async def test_long_calls_leave_the_loop(connector, monkeypatch):
    """Large bodies, long batches and slow file systems are served on a worker thread."""
    threads = []
    for owner, name in ((Publisher, "publish"), (file_io.os, "unlink")):

        def noting(*args, real=getattr(owner, name), **options):
            threads.append(threading.get_ident() == here)
            return real(*args, **options)

        monkeypatch.setattr(owner, name, noting)
    here = threading.get_ident()
    connector._publisher.anonymous = True  # else a put unlinks as well

    async def on_loop(call) -> set[bool]:
        threads.clear()
        await call
        return set(threads)

    assert await on_loop(connector.put([b"small"], key="a")) == {True}
    assert await on_loop(connector.evict("a")) == {True}
    assert await on_loop(connector.put([bytes(INLINE_BYTES + 1)], key="b")) == {False}
    assert await on_loop(connector.put_batch([[bytes(INLINE_BYTES)], [b"x"]])) == {False}
    assert await on_loop(connector.put_batch([[b"x"]] * INLINE_OBJECTS)) == {True}
    assert await on_loop(connector.put_batch([[b"x"]] * (INLINE_OBJECTS + 1))) == {False}
    os.truncate(Path(connector.directory, file_name("b")), INLINE_EVICT_BYTES + 1)
    assert await on_loop(connector.evict("b")) == {False}
    connector._directory.remote = True
    assert await on_loop(connector.put([b"small"], key="c")) == {False}
    assert await connector.get("c") == b"small"
    assert await connector.exists("c")
    assert await on_loop(connector.evict("c")) == {False}


@pytest.mark.parametrize("key", [None, "k", "batch"])
async def test_cancelled_put(connector, monkeypatch, key):
    """Cancelled at any step, a put leaves nothing, or the whole object under a chosen key."""
    workers = Workers(monkeypatch)
    body = pattern(INLINE_BYTES + 1)
    outcomes = set()
    for steps in [*range(8), *range(8, 3000, 300)]:
        if key == "batch":
            put = connector.put_batch([[body], [body]])
        else:
            put = connector.put([body], key=key)
        cancelled = await cancel_after(steps, put)
        await workers.settle()
        names = published(connector)
        if not cancelled or (key == "k" and names):
            assert names
            for name in names:
                assert Path(connector.directory, name).read_bytes() == body
                os.unlink(Path(connector.directory, name))
        else:
            assert names == []
        assert not list(Path(connector.directory).glob(f"{UNPUBLISHED}/*"))
        outcomes.add(cancelled)
    assert True in outcomes


async def test_put_cancelled_while_writing(connector, monkeypatch):
    """A put that is cancelled while its body is written publishes nothing later on."""
    workers = Workers(monkeypatch)
    writing, go_on = threading.Event(), threading.Event()
    write = file_io.write_all

    def slow(fd, bodies):
        write(fd, bodies)
        writing.set()
        assert go_on.wait(30)

    monkeypatch.setattr(file_io, "write_all", slow)
    task = asyncio.ensure_future(connector.put([bytes(INLINE_BYTES + 1)], key="k"))
    await asyncio.to_thread(writing.wait)
    task.cancel()
    asyncio.get_running_loop().call_later(0.01, go_on.set)
    await asyncio.wait([task])
    assert task.cancelled()
    await workers.settle()
    assert published(connector) == []
    monkeypatch.undo()
    assert await connector.put([b"again"], key="k") == "k"


@pytest.mark.parametrize("batch", [False, True])
async def test_put_cancelled_after_publishing(connector, monkeypatch, batch):
    """A put whose caller never learns the key is undone, also when the connector was closed."""
    workers = Workers(monkeypatch)
    frames = [bytes(INLINE_BYTES + 1)]
    task = asyncio.ensure_future(connector.put_batch([frames]) if batch else connector.put(frames))
    while not workers.started:
        await asyncio.sleep(0)
    while not workers.ended:
        pass  # keeps the loop from hearing of it
    assert len(published(connector)) == 1
    task.cancel()
    await connector.aclose()
    await asyncio.wait([task])
    assert task.cancelled()
    assert published(connector) == []


async def test_close_keeps_what_was_published(connector):
    """After aclose the objects are there, and every operation here says that it is closed."""
    key = await connector.put([b"x"])
    await connector.aclose()
    await connector.aclose(clear=True)
    for call in (
        connector.get(key),
        connector.put([b"x"]),
        connector.put([bytes(INLINE_BYTES + 1)]),
        connector.put_batch([[b"x"]]),
        connector.exists(key),
        connector.evict(key),
    ):
        with pytest.raises(ConnectorClosedError):
            await call
    assert await FileConnector.from_url(connector.url).get(key) == b"x"


async def test_clear_evicts_only_its_own(connector):
    """Clear takes what this instance put, and nothing that others put, also under its old keys."""
    other = FileConnector(connector.directory)
    theirs = await other.put([b"2"])
    mine = await connector.put([b"1"])
    await connector.put([b"1"], key="mine")
    await connector.put([b"1"], key="reused")
    await other.evict("reused")
    await other.put([b"2"], key="reused")
    stranger = Path(connector.directory, "README")
    stranger.write_text("not ours")
    await connector.aclose(clear=True)
    assert [await other.exists(key) for key in (mine, "mine")] == [False, False]
    assert [await other.get(key) for key in (theirs, "reused")] == [b"2", b"2"]
    assert stranger.read_text() == "not ours"


async def test_clear_keeps_the_directory(connector):
    """The directory stays, empty, so that a reader elsewhere finds no object and no error."""
    await connector.put([b"x"])
    await connector.aclose(clear=True)
    assert set(os.listdir(connector.directory)) <= {".unpublished"}
    assert await FileConnector.from_url(connector.url).get("k") is None


async def test_clear_leaves_other_instances_alone(connector):
    """An instance on the same directory works on, although it had nothing in it."""
    other = FileConnector(connector.directory)
    await connector.put([b"x"])
    await connector.aclose(clear=True)
    assert await other.get("k") is None
    assert await other.get(await other.put([b"y"])) == b"y"


async def test_clear_cancelled_can_be_repeated(connector):
    """A clear that was cancelled before it began is done by the next call."""
    await connector.put([b"x"])
    assert await cancel_after(1, connector.aclose(clear=True))
    await connector.aclose(clear=True)
    assert set(os.listdir(connector.directory)) <= {".unpublished"}
