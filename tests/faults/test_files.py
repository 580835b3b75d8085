"""Files: writers that are killed, disks that are full or broken, limits of inotify."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file import publish as file_io
from proxyplane.connectors.file.directory import UNPUBLISHED
from support.mounts import mounted, need_root
from support.soak import tally, times
from support.waiting import run_code

IN_PLACE = """
import os, sys, time
from proxyplane.connectors.file import publish as file_io
from proxyplane.connectors.file import FileConnector
def write_all(fd, bodies):
    os.link(f"/proc/self/fd/{fd}", sys.argv[1] + "/torn", src_dir_fd=fd, follow_symlinks=True)
    os.write(fd, b"x" * 1000)
    print("half", flush=True)
    time.sleep(60)
file_io.write_all = write_all
FileConnector(sys.argv[1]).put_sync([b"x" * 2000])
"""


@pytest.mark.row("writer killed")
@pytest.mark.undefended
def test_killed_writer_undefended(tmp_path):
    """Of a writer that publishes first and writes then, half an object is seen."""
    directory = tmp_path / "objects"
    writer = subprocess.Popen(
        [sys.executable, "-c", IN_PLACE, str(directory)], stdout=subprocess.PIPE, text=True
    )
    with writer:
        assert writer.stdout.readline() == "half\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert (directory / "torn").read_bytes() == b"x" * 1000


@pytest.mark.row("disk full")
@pytest.mark.undefended
def test_full_undefended(tmp_path, monkeypatch):
    """Who takes a short write for a whole one stores half an object, and gets no error."""
    need_root()
    monkeypatch.setattr(file_io, "write_all", lambda fd, bodies: os.writev(fd, bodies))
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m,mode=700", "none") as path:
        connector = FileConnector(path)
        connector._directory.firm = False
        key = connector.put_sync([b"x" * (2 << 20)])
        assert 0 < len(connector.get_sync(key)) < 2 << 20


BROKEN = """
import json, os, sys
from proxyplane.connectors.file import publish as file_io
from proxyplane.connectors.file import FileConnector
from proxyplane.exceptions import ProxyPlaneError
connector = FileConnector(sys.argv[1])
connector._publisher.anonymous = sys.argv[2] == "True"
if sys.argv[3] == "False":
    real = file_io.write_all
    def write_all(*args):
        try:
            real(*args)
        except OSError:
            pass
    file_io.write_all = write_all
told = []
for number in range(int(sys.argv[4])):
    body = b"%d" % number * 5000
    try:
        key = connector.put_sync([body[:10], body[10:]])
        told.append("whole" if connector.get_sync(key) == body else "torn")
    except ProxyPlaneError as error:
        told.append(type(error).__name__)
print(json.dumps(told))
"""


@pytest.mark.row("input/output error")
@pytest.mark.parametrize(
    ("anonymous", "call", "defended"),
    [
        (True, "writev", True),
        (True, "linkat", True),
        (False, "writev", True),
        (True, "writev", False),
    ],
    ids=["writev", "linkat", "named-writev", "undefended"],
)
def test_input_output_error(tmp_path, anonymous, call, defended):
    """When the system fails with EIO, the old objects stay, and of the new one nothing does."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace")
    old = FileConnector(tmp_path / "objects")
    kept = old.put_sync([b"kept"])
    count = 4 * times("input/output error")
    # Each second of these calls; the interpreter itself makes none of them.
    trace = [strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    inject = ["-e", f"inject={call}:error=EIO:when=2+2"]
    if subprocess.run([*trace, *inject, "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    done = subprocess.run(
        [*trace, *inject, sys.executable, "-c", BROKEN]
        + [str(tmp_path / "objects"), str(anonymous), str(defended), str(count)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == ["whole", "ConnectorLostError" if defended else "torn"] * (count // 2)
    assert old.get_sync(kept) == b"kept"
    assert not list((tmp_path / "objects" / UNPUBLISHED).glob("*"))
    published = [one for one in os.listdir(tmp_path / "objects") if one != UNPUBLISHED]
    assert len(published) == 1 + (count // 2 if defended else count)
    tally.tries = count // 2


@pytest.mark.row("inotify limits")
@pytest.mark.undefended
def test_limits_undefended(tmp_path):
    """At a limit of inotify, who does not look from time to time is not woken."""
    prefix = ("unshare", "--user", "--map-root-user")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces")
    code = """
        import asyncio, subprocess, sys
        open("/proc/sys/user/max_inotify_instances", "w").write("0")
        from proxyplane.connectors.file import watch as file_watch
        from proxyplane.connectors.file import FileConnector
        file_watch.LOOK_SECONDS, file_watch.POLL_SECONDS = 1000, (1000, 1000)
        sets = "import asyncio, sys; from proxyplane.connectors.file import FileConnector;"
        sets += "asyncio.run(FileConnector(sys.argv[1]).set(sys.argv[2], [b'x']))"
        async def main():
            connector = FileConnector(sys.argv[1])
            key = await connector.new_key()
            task = asyncio.ensure_future(connector.wait(key, 10))
            while not (connector._waiting._place and connector._waiting._place.polled):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)
            other = await asyncio.create_subprocess_exec(
                sys.executable, "-c", sets, sys.argv[1], key)
            assert await other.wait() == 0
            await asyncio.wait([task], timeout=1)
            print(task.done())
            task.cancel()
            await asyncio.wait([task])
        asyncio.run(main())
    """
    assert run_code(textwrap.dedent(code), tmp_path / "objects", prefix=prefix).stdout == "False\n"
