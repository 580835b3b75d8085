"""FileConnector maps large objects: what maps take from the rest of the program, and their ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from proxyplane.connectors import _maps
from proxyplane.connectors.file import FileConnector

SETUP = """
import os, sys
from proxyplane.connectors.file import FileConnector
connector = FileConnector(sys.argv[1])
"""


def run(code: str, directory: object) -> str:
    """Runs code in a new interpreter, with a connector, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SETUP + textwrap.dedent(code), str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0
    return done.stdout


@pytest.fixture
def connector(tmp_path):
    """A connector on a new directory."""
    return FileConnector(tmp_path / "objects")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere maps hold descriptors")
def test_few_descriptors(tmp_path):
    """50,000 live maps neither fail nor take the descriptors of the rest of the program."""
    run(
        """
        import resource, socket
        from proxyplane.connectors import _maps
        from proxyplane.connectors._maps import maps
        count = min(50_000, _maps._most_maps())
        def descriptors():
            return len(os.listdir("/proc/self/fd"))
        key = connector.put_sync([b"x" * 70_000])
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        before = descriptors()
        buffers = [connector.get_sync(key) for _ in range(count)]
        assert len(maps.live) == count
        assert descriptors() <= before + 64 // 8
        if sys.version_info >= (3, 13):
            assert descriptors() == before
        for number, buffer in enumerate(buffers[::50]):
            assert buffer == b"x" * 70_000
            buffer[:4] = b"%4d" % number  # each is private
        assert all(buffer[:5] == b"%4dx" % number for number, buffer in enumerate(buffers[::50]))
        assert buffers[1] == buffers[-1] == b"x" * 70_000
        assert connector.get_sync(key) == b"x" * 70_000
        sockets = [socket.socket() for _ in range(20)]
        del buffer
        buffers.clear()
        assert not maps.live and not maps.holding
        assert descriptors() == before + 20
        assert type(connector.get_sync(key)).__name__ == "memoryview"
        for one in sockets:
            one.close()
        """,
        tmp_path / "objects",
    )


def test_few_maps(tmp_path):
    """With too many maps alive the body is read: private and writable, as ever."""
    run(
        """
        from proxyplane.connectors import _maps
        _maps._map_limit = 100
        key = connector.put_sync([b"x" * 70_000])
        buffers = [connector.get_sync(key) for _ in range(150)]
        assert [type(buffer).__name__ for buffer in buffers] == ["memoryview"] * 100 + [
            "bytearray"] * 50
        assert all(buffer == b"x" * 70_000 for buffer in buffers)
        del buffers[:50]
        assert type(connector.get_sync(key)).__name__ == "memoryview"
        """,
        tmp_path / "objects",
    )


def test_the_system_refuses_a_map(tmp_path):
    """When the system has no map to give, in either way of mapping, the body is read."""
    run(
        """
        import ctypes, errno, mmap
        from proxyplane.connectors import _maps
        key = connector.put_sync([b"x" * 70_000])
        real = mmap.mmap
        def refuse(*_, **__):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        mmap.mmap = refuse
        assert type(connector.get_sync(key)).__name__ == "bytearray"
        _maps._most_descriptors = lambda: 0
        assert connector.get_sync(key) == b"x" * 70_000
        mmap.mmap = real
        if sys.platform == "linux" and sys.version_info < (3, 13):
            def refuse(*_):
                ctypes.set_errno(errno.ENOMEM)
                return 2**64 - 1
            _maps._c_mmap = refuse
            assert type(connector.get_sync(key)).__name__ == "bytearray"
            assert connector.get_sync(key) == b"x" * 70_000
        """,
        tmp_path / "objects",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only there a file is mapped over a map")
def test_maps_in_a_cycle(tmp_path):
    """Memory stays until the last finaliser that may look at it has run, whatever the order."""
    printed = run(
        """
        import gc
        from proxyplane.connectors import _maps
        _maps._most_descriptors = lambda: 0
        class Holder:
            def __init__(self, buffer):
                self.buffer, self.me = buffer, self
            def __del__(self):
                print(bytes(self.buffer[-3:]).decode())
        key = connector.put_sync([b"x" * 70_000])
        for _ in range(50):
            Holder(connector.get_sync(key))
        gc.collect()
        assert not _maps.maps.live
        """,
        tmp_path / "objects",
    )
    assert printed == "xxx\n" * 50


def test_no_descriptors_at_all(tmp_path):
    """With none left the error says what to raise, and afterwards all is well again."""
    run(
        """
        from proxyplane.exceptions import ConnectorUnavailableError
        import resource
        key = connector.put_sync([b"x" * 70_000])
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for call in (lambda: connector.get_sync(key), lambda: connector.put_sync([b"x"])):
            try:
                call()
            except ConnectorUnavailableError as exc:
                assert "ulimit -n" in str(exc), exc
            else:
                raise AssertionError
        os.close(taken.pop())  # enough to open the file
        assert connector.get_sync(key) == b"x" * 70_000
        for one in taken:
            os.close(one)
        import ctypes  # which takes descriptors itself
        buffers = [connector.get_sync(key) for _ in range(10)]
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        os.close(taken.pop())
        buffer = connector.get_sync(key)
        assert buffer == b"x" * 70_000
        assert type(buffer) is memoryview or sys.platform != "linux"
        """,
        tmp_path / "objects",
    )


async def test_large_read_without_a_map_leaves_the_loop(connector, monkeypatch):
    """A large object that cannot be mapped is read on a worker thread."""
    key = await connector.put([b"x" * (3 << 20)])
    monkeypatch.setattr(_maps.maps, "map", lambda *_: None)
    real, on_loop = os.preadv, []

    def preadv(fd, buffers, offset):
        try:
            asyncio.get_running_loop()
            on_loop.append(True)
        except RuntimeError:
            on_loop.append(False)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    assert await connector.get(key) == b"x" * (3 << 20)
    assert on_loop and not any(on_loop)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_larger_than_the_memory(connector):
    """An object that is larger than the memory is mapped: no memory is set aside for writes."""
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        pytest.skip("this system sets memory aside for everything that may be written")
    size = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    key = connector.put_sync([b"x"])
    try:
        os.truncate(Path(connector.directory, key), size)
    except OSError as exc:
        pytest.skip(f"no file of {size} bytes here: {exc.strerror}")
    buffer = connector.get_sync(key)
    assert type(buffer) is memoryview
    assert (len(buffer), buffer[0], buffer[size - 1]) == (size, ord("x"), 0)
    buffer[size // 2] = 1
    assert connector.get_sync(key)[size // 2] == 0
