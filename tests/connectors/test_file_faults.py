"""FileConnector when things break: full disks, killed writers, few descriptors, forks."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file import publish as file_io
from proxyplane.connectors.file.directory import (
    UNPUBLISHED,
    Directory,
)
from proxyplane.connectors.file.errors import translate
from proxyplane.connectors.file.publish import sweep, write_all
from proxyplane.exceptions import (
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    ObjectTooLargeError,
    StoreFullError,
)
from support.mounts import mounted, need_root, small_disk
from support.soak import recovering, times

MIB = 1 << 20
WRITER = """
import os, sys
from proxyplane.connectors.file import FileConnector
connector = FileConnector(sys.argv[1])
connector._publisher.anonymous = sys.argv[2] == "True"
"""


def start(code: str, *argv: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WRITER + textwrap.dedent(code), *map(str, argv)],
        stdout=subprocess.PIPE,
        text=True,
    )


def run(code: str, *argv: object) -> str:
    process = start(code, *argv)
    printed, _ = process.communicate(timeout=50)
    assert process.returncode == 0
    return printed


@pytest.fixture(params=[True, False], ids=["without a name", "named"])
def anonymous(request):
    """Both ways of keeping what is not published yet."""
    return request.param


@pytest.fixture
def connector(tmp_path, anonymous):
    made = FileConnector(tmp_path / "objects")
    made._publisher.anonymous = anonymous
    return made


@pytest.fixture
def small(tmp_path, anonymous):
    """A connector on a real file system of 2 MiB, in memory."""
    need_root()
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m,mode=700", "none") as path:
        made = FileConnector(path)
        made._publisher.anonymous = anonymous
        yield made


def room(connector: FileConnector) -> int:
    found = os.statvfs(connector.directory)
    return found.f_bavail * found.f_frsize


def leftovers(connector: FileConnector) -> list[Path]:
    return list(Path(connector.directory, UNPUBLISHED).glob("*"))


# A full disk


@pytest.mark.row("disk full")
@pytest.mark.parametrize("size", [MIB - 1, 2 * MIB])
async def test_full(small, size):
    """A full file system is a typed error that tells the room, and leaves nothing behind."""
    kept = await small.put([b"k" * (MIB + MIB // 4)])
    before = room(small)
    with pytest.raises(StoreFullError) as caught:
        await small.put([b"x" * (size // 2), b"y" * (size - size // 2)])
    assert f"{size} bytes" in str(caught.value)
    assert small.directory in str(caught.value)
    assert "bytes are free" in str(caught.value)
    assert "PROXYPLANE_DIR" in str(caught.value)
    assert os.listdir(small.directory) in ([kept], [UNPUBLISHED, kept], [kept, UNPUBLISHED])
    assert leftovers(small) == []
    # A directory of the named kind takes a page of its own the first time.
    assert room(small) >= before - 4096
    assert await small.get(await small.put([b"z" * (MIB // 2)])) == b"z" * (MIB // 2)


@pytest.mark.row("disk full")
async def test_full_in_the_middle(small):
    """Where the room is not known in advance, what was written before it ran out is given back."""
    small._directory.firm = False
    kept = await small.put([b"k" * MIB], key="kept")
    buffer = await small.get(kept)
    before = room(small)
    for _ in range(3):
        with pytest.raises(StoreFullError):
            await small.put([b"x" * (MIB // 2)] * 3)
    assert leftovers(small) == []
    assert room(small) >= before - 4096
    assert [name for name in os.listdir(small.directory) if name != UNPUBLISHED] == ["k-kept"]
    assert buffer == await small.get(kept) == b"k" * MIB


@pytest.mark.row("disk full")
async def test_full_batch(small):
    """A batch that does not fit leaves none of its objects."""
    with pytest.raises(StoreFullError):
        await small.put_batch([[b"x" * 900_000]] * 3)
    assert [name for name in os.listdir(small.directory) if name != UNPUBLISHED] == []


@pytest.mark.row("disk full")
async def test_reading_and_writing_maps_of_a_full_disk(small):
    """A map of a file on a full disk can be read and written: its pages are private memory."""
    key = await small.put([b"x" * (2 * MIB - 100_000)])
    with contextlib.suppress(StoreFullError):
        for _ in range(100):
            await small.put([bytes(4096)])
    buffer = await small.get(key)
    assert set(memoryview(buffer)) == {ord("x")}
    memoryview(buffer)[:] = bytes(len(buffer))
    assert (await small.get(key))[:10] == b"x" * 10


@pytest.mark.row("disk full")
async def test_no_more_files(tmp_path, anonymous):
    """Running out of files, with room left, is said to be that."""
    need_root()
    options = ("-t", "tmpfs", "-o", "size=2m,mode=700,nr_inodes=6", "none")
    with mounted(tmp_path / "few", *options) as path:
        connector = FileConnector(path)
        connector._publisher.anonymous = anonymous
        with pytest.raises(StoreFullError, match="no more files"):
            for _ in range(9):
                await connector.put([b"x"])


@pytest.mark.row("disk full")
async def test_full_disk_refuses_before_writing(tmp_path, monkeypatch, anonymous):
    """A large body that does not fit is refused before a byte of it is written."""
    with small_disk(tmp_path / "disk", 8 * MIB) as path:
        connector = FileConnector(path / "objects")
        connector._publisher.anonymous = anonymous
        assert connector._directory.firm
        written = []
        monkeypatch.setattr(file_io, "write_all", lambda *args: written.append(args))
        with pytest.raises(StoreFullError):
            await connector.put([bytes(16 * MIB)])
        assert written == []
        assert leftovers(connector) == []
        monkeypatch.undo()
        assert (await connector.get(await connector.put([b"x" * MIB]))) == b"x" * MIB


def test_device_full():
    """The system's own full device gives the same error."""
    with open("/dev/full", "wb", buffering=0) as full:
        with pytest.raises(OSError, match="No space") as caught:
            write_all(full.fileno(), [memoryview(b"x" * 10)])
    assert isinstance(translate(caught.value, Directory("/tmp"), 10), StoreFullError)


def test_too_large(tmp_path, anonymous):
    """More than a file may have is a typed error, not a signal, and leaves nothing."""
    printed = run(
        """
        import resource
        from proxyplane.exceptions import ObjectTooLargeError
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for size in (100_001, 3 << 20):
            try:
                connector.put_sync([b"x" * 60_000, bytes(size - 60_000)])
            except ObjectTooLargeError as exc:
                print(exc)
        key = connector.put_sync([b"x" * 100_000])
        assert connector.get_sync(key) == b"x" * 100_000
        print([name for name in os.listdir(connector.directory) if name != ".unpublished"] == [key])
        """,
        tmp_path / "objects",
        anonymous,
    )
    assert "100001 bytes" in printed
    assert printed.endswith("True\n")


@pytest.mark.row("input/output error")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EDQUOT, StoreFullError),
        (errno.EFBIG, ObjectTooLargeError),
        (errno.EIO, ConnectorLostError),
        (errno.ESTALE, ConnectorLostError),
        (errno.EROFS, ConnectorUnavailableError),
        (errno.EMFILE, ConnectorUnavailableError),
        (errno.EBADF, ConnectorError),
    ],
)
async def test_what_the_system_says(connector, monkeypatch, code, expected):
    """Each cause is one error of ours, with the system's error behind it."""

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(file_io, "write_all", fail)
    with pytest.raises(ConnectorError) as caught:
        await connector.put([b"x"])
    assert type(caught.value) is expected
    assert connector.directory in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert leftovers(connector) == []


# Killed writers, and what a sweep takes


@pytest.mark.row("writer killed")
def test_killed_writers_leave_nothing_visible(tmp_path, anonymous):
    """Whenever a writer is killed, each published object is whole, and a put sweeps the rest."""
    directory = tmp_path / "objects"
    deaths = random.Random(7)
    seen = 0
    for number in range(times("writer killed")):
        writer = start(
            """
            letter = sys.argv[3].encode()
            print("ready", flush=True)
            while True:
                connector.put_sync([letter * 3_000_000, letter * 70_000])
                connector.put_sync([letter * 10])
            """,
            directory,
            anonymous,
            chr(ord("a") + number % 26),
        )
        writer.stdout.readline()
        time.sleep(deaths.random() / 20)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        for path in directory.iterdir():
            if path.name != UNPUBLISHED:
                body = path.read_bytes()
                assert len(body) in {10, 3_070_000}
                assert body == body[:1] * len(body)
                path.unlink()
                seen += 1
    assert seen
    with recovering():
        fresh = FileConnector(directory)
        fresh.put_sync([b"x"])
    assert leftovers(fresh) == []


def test_sweep_takes_only_what_a_dead_writer_left(tmp_path):
    """A temporary is kept while its writer lives, and removed once it is dead; an object, never."""
    writer = start(
        """
        import time
        def wait():
            print("written", flush=True)
            time.sleep(60)
        connector._publisher.publish("never", [memoryview(b"x")], unique=True, check=wait)
        """,
        tmp_path / "objects",
        False,
    )
    assert writer.stdout.readline() == "written\n"
    here = FileConnector(tmp_path / "objects")
    kept = here.put_sync([b"published"])
    assert len(leftovers(here)) == 1
    assert sweep(here._directory) == 0
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert len(leftovers(here)) == 1
    FileConnector(here.directory).put_sync([b"sweeps first"])
    assert leftovers(here) == []
    assert here.get_sync(kept) == b"published"


def test_sweep_spares_threads_of_this_process(connector):
    """A writer in another thread of the same process is a live writer."""
    connector._publisher.anonymous = False
    connector._publisher.publish(
        "a", [memoryview(b"x")], unique=True, check=lambda: _none_swept(connector)
    )
    assert Path(connector.directory, "a").read_bytes() == b"x"


def _none_swept(connector: FileConnector) -> None:
    assert len(leftovers(connector)) == 1
    assert sweep(connector._directory) == 0


def test_sweep_between_open_and_lock(connector, monkeypatch):
    """A temporary that is swept before its writer could lock it is made again."""
    connector._publisher.anonymous = False
    real, swept = file_io.fcntl.flock, []

    def late(fd, how):
        if not swept:
            swept.append(True)
            assert sweep(connector._directory) == 1
        return real(fd, how)

    monkeypatch.setattr(file_io.fcntl, "flock", late)
    assert connector.get_sync(connector.put_sync([b"x"])) == b"x"
    assert leftovers(connector) == []


def test_sweep_on_a_network_leaves_other_hosts_alone(connector):
    """Locks of a network file system may hold for one host only."""
    folder = Path(connector.directory, UNPUBLISHED)
    folder.mkdir()
    mine, other = folder / f"{os.uname().nodename}.0", folder / "elsewhere.0"
    for path in (mine, other):
        path.touch()
    connector._directory.remote = True
    assert sweep(connector._directory) == 1
    assert leftovers(connector) == [other]


async def test_no_hard_links(connector, monkeypatch):
    """Without hard links own keys still work, and a chosen one is an error that says why."""
    connector._publisher.anonymous = False

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert await connector.get(await connector.put([b"x"])) == b"x"
    with pytest.raises(ConnectorError, match="hard links"):
        await connector.put([b"x"], key="k")
    assert leftovers(connector) == []


async def test_without_proc(connector, monkeypatch):
    """Where a file without a name cannot be linked, a named one is used instead."""
    connector._publisher.anonymous = True
    real = os.link

    def link(source, *args, **options):
        if source.startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return real(source, *args, **options)

    monkeypatch.setattr(os, "link", link)
    assert await connector.get(await connector.put([b"x"], key="k")) == b"x"
    assert not connector._publisher.anonymous


# Forks


def test_fork(tmp_path, anonymous):
    """A child reads and writes, and clears what it wrote itself, nothing of its parent's."""
    run(
        """
        import asyncio, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        mine, chosen = connector.put_sync([b"parent"]), connector.put_sync([b"parent"], key="k")
        child = os.fork()
        if not child:
            code = 1
            try:
                assert connector.get_sync(mine) == b"parent"
                own = [connector.put_sync([b"child"]), connector.put_sync([b"child"], key="c")]
                asyncio.run(connector.aclose(clear=True))
                from_url = FileConnector.from_url(connector.url)
                assert not any(map(from_url.exists_sync, own))
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert connector.get_sync(mine) == connector.get_sync(chosen) == b"parent"
        asyncio.run(connector.aclose(clear=True))
        assert not {mine, chosen} & {*map(os.path.basename, os.listdir(connector.directory))}
        assert not connector.from_url(connector.url).exists_sync(chosen)
        """,
        tmp_path / "objects",
        anonymous,
    )


def test_fork_during_a_put(tmp_path, anonymous):
    """A child does not keep the file that another thread is writing, nor the lock on it."""
    run(
        """
        import threading, warnings
        from proxyplane.connectors.file.publish import sweep
        warnings.simplefilter("ignore", DeprecationWarning)
        written, go_on = threading.Event(), threading.Event()
        def wait():
            written.set()
            go_on.wait()
        writer = threading.Thread(target=lambda: connector._publisher.publish(
            "a", [memoryview(b"x")], unique=True, check=wait))
        writer.start()
        written.wait()
        child = os.fork()
        if not child:
            code = 1
            try:
                links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
                paths = [os.readlink(link) for link in links if os.path.lexists(link)]
                assert not any(path.startswith(connector.directory) for path in paths), paths
                assert sweep(connector._directory) == 0
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go_on.set()
        writer.join()
        assert open(connector.directory + "/a").read() == "x"
        """,
        tmp_path / "objects",
        anonymous,
    )
