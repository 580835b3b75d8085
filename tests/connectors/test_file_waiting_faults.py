"""FileConnector: waits when things break: overflow, limits, lost directories, forks, exits.

Each main defence is also switched off once, and then what it defends must fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from proxyplane._runtime.io_thread import io_thread
from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file import watch as file_watch
from proxyplane.connectors.file.directory import PENDING
from proxyplane.exceptions import ObjectLostError
from support.mounts import mounted, need_root
from support.soak import WAITERS, recovering, times
from support.waiting import (
    LONG,
    SHORT,
    inotify_watches,
    looking_every,
    many_waiting,
    nobody_waits,
    run_code,
    set_elsewhere,
    until,
    waiting,
)


@pytest.fixture(autouse=True)
def events_only():
    """What wakes is events, unless the test says otherwise; nobody waits when it is over."""
    with looking_every(1000):
        yield
        assert all(nobody_waits(place.waiters) for place in file_watch._places.values())
    assert inotify_watches() == []


@pytest.fixture
def connector(tmp_path):
    made = FileConnector(tmp_path / "objects")
    made._registrations._make_folder()
    return made


@pytest.fixture(params=[True, False], ids=["", "undefended"])
def defended(request):
    """With the defence, or with it switched off."""
    return request.param


def folder(connector: FileConnector) -> Path:
    return Path(connector.directory, PENDING)


@contextlib.contextmanager
def io_loop_stopped():
    """Keeps the library's loop from running, so that events pile up in the kernel."""
    reached, go_on = threading.Event(), threading.Event()

    def stand_still():
        reached.set()
        go_on.wait(LONG)

    io_thread().loop.call_soon_threadsafe(stand_still)
    reached.wait(LONG)
    try:
        yield
    finally:
        go_on.set()


# Events that are lost


@pytest.mark.row("inotify overflow")
def test_overflow(connector, defended, monkeypatch):
    """When the kernel's queue overflows none of 5,000 is forgotten."""
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > 100_000:
        pytest.skip(f"the queue takes {most} events")
    if not defended:
        monkeypatch.setattr(file_watch._Watcher, "on_lost", lambda self, everyone: None)

    async def main():
        keys, tasks = await many_waiting(connector, WAITERS if defended else 1)
        with io_loop_stopped():
            for number in range(most + 100):
                path = folder(connector) / f"{number:032x}"
                path.touch()
                path.unlink()
            set_elsewhere(connector, *keys)
        await all_woken(tasks, defended)
        later = await waiting(connector, await connector.new_key())
        os.unlink(folder(connector) / os.listdir(folder(connector))[0])
        with pytest.raises(ObjectLostError):
            await later

    for _ in range(times("inotify overflow") if defended else 1):
        asyncio.run(main())


async def all_woken(tasks, defended):
    """Every wait ends well; without the defence it does not, and is cancelled here."""
    if defended:
        with recovering():
            assert await asyncio.gather(*tasks) == [None] * len(tasks)
        return
    _, asleep = await asyncio.wait(tasks, timeout=SHORT)
    assert asleep, "nothing was lost: the test does not test the defence"
    for task in asleep:
        task.cancel()
    await asyncio.wait(asleep)


@pytest.mark.row("setter killed")
def test_a_setter_killed_in_the_middle(connector, defended):
    """Who is killed after publishing, before it ends the registration, has set the key."""

    async def main():
        key = await connector.new_key()
        task = await waiting(connector, key, LONG if defended else SHORT)
        code = """
            import asyncio, os, signal, sys
            from proxyplane.connectors.file import FileConnector
            connector = FileConnector(sys.argv[1])
            connector._registrations.settle = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            asyncio.run(connector.set(sys.argv[2], [b"object"]))
        """
        killed = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), connector.directory, key]
        )
        assert killed.returncode == -signal.SIGKILL
        if defended:
            await task
            assert bytes(await connector.get(key)) == b"object"
        else:
            with pytest.raises(TimeoutError):
                await task

    # Only a look from time to time finds it.
    with looking_every(0.1 if defended else 1000):
        for _ in range(times("setter killed") if defended else 1):
            asyncio.run(main())


async def test_removed_by_hand(connector):
    """Who waits for a registration that somebody deletes learns it at once."""
    key = await connector.new_key()
    task = await waiting(connector, key)
    (folder(connector) / key).unlink()
    with pytest.raises(ObjectLostError):
        await task


# Directories that go


@pytest.mark.row("directory replaced")
def test_the_folder_is_replaced(connector, tmp_path, defended, monkeypatch):
    """When another directory takes the place of the one that 5,000 wait at, that is watched."""
    if not defended:
        monkeypatch.setattr(file_watch._Watcher, "on_lost", lambda self, everyone: None)

    async def main(number):
        keys, tasks = await many_waiting(connector, WAITERS if defended else 2)
        with io_loop_stopped():  # nobody looks while there is none
            shutil.copytree(folder(connector), tmp_path / "copy")
            folder(connector).rename(tmp_path / f"old{number}")
            (tmp_path / "copy").rename(folder(connector))
        set_elsewhere(connector, *keys[::2])
        await all_woken(tasks[::2], defended)
        if defended:
            set_elsewhere(connector, *keys[1::2])
        await all_woken(tasks[1::2], defended)

    for number in range(times("directory replaced") if defended else 1):
        asyncio.run(main(number))


@pytest.mark.row("directory replaced")
def test_the_directory_is_replaced_under_many(connector, tmp_path, defended, monkeypatch):
    """Where an empty directory takes its place, 5,000 who wait learn that all is gone."""
    if not defended:
        monkeypatch.setattr(file_watch._Watcher, "on_lost", lambda self, everyone: None)

    async def main(number):
        _, tasks = await many_waiting(connector, WAITERS if defended else 1)
        with io_loop_stopped():
            shutil.copytree(connector.directory, tmp_path / "copy")
            for path in (tmp_path / "copy" / PENDING).iterdir():
                path.unlink()
            folder(connector).rename(tmp_path / f"old{number}")
            (tmp_path / "copy" / PENDING).rename(folder(connector))
            shutil.rmtree(tmp_path / "copy")
        if defended:
            with recovering():
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(one) for one in outcomes} == {ObjectLostError}
        else:
            await all_woken(tasks, False)

    for number in range(times("directory replaced") if defended else 1):
        asyncio.run(main(number))


async def test_a_new_waiter_finds_a_replaced_directory(connector, tmp_path):
    """Who comes after a replacement that nobody noticed has the new directory watched."""
    store = Path(connector.directory)
    key = await connector.new_key()
    task = await waiting(connector, key)
    shutil.copytree(store, tmp_path / "copy", copy_function=shutil.copy2)
    store.rename(tmp_path / "old")
    (tmp_path / "copy").rename(store)
    later = await connector.new_key()
    tasks = [task, await waiting(connector, later)]
    await asyncio.to_thread(set_elsewhere, connector, key, later)
    await asyncio.gather(*tasks)


async def test_the_directory_is_replaced(connector, tmp_path):
    """Where an empty directory takes the place of another, who waits learns that all is gone."""
    file_watch.LOOK_SECONDS = 0.1
    task = await waiting(connector, await connector.new_key())
    Path(connector.directory).rename(tmp_path / "old")
    FileConnector(connector.directory)
    with pytest.raises(ObjectLostError):
        await task


@pytest.mark.row("directory gone")
@pytest.mark.parametrize("again", [True, False])
async def test_the_directory_is_deleted(connector, again):
    """When the directory is deleted the waits end, and in a new one they work."""
    task = await waiting(connector, await connector.new_key())
    shutil.rmtree(connector.directory)
    if again:
        await connector.new_key()
    with pytest.raises(ObjectLostError):
        await task
    key = await connector.new_key()
    task = await waiting(connector, key)
    await asyncio.to_thread(set_elsewhere, connector, key)
    await task


@pytest.mark.row("directory gone")
@pytest.mark.parametrize(
    ("option", "defended"),
    [((), True), (("-l",), True), ((), False)],
    ids=["umount", "lazy", "undefended"],
)
def test_unmounted(tmp_path, monkeypatch, option, defended):
    """When the file system is unmounted the waits end: the kernel says that a watch is over.

    Who does not listen to that waits on for nothing.
    """
    need_root()
    if not defended:
        monkeypatch.setattr(file_watch._Watcher, "on_lost", lambda self, everyone: None)

    async def main(path):
        connector = FileConnector(path)
        task = await waiting(connector, await connector.new_key())
        subprocess.run(["umount", *option, str(path)], check=True)
        if not defended:
            await all_woken([task], False)
            return
        with pytest.raises(ObjectLostError):
            await task

    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "mode=700", "none") as path:
        asyncio.run(main(path))


async def test_two_paths_to_one_directory(connector, tmp_path):
    """Who waits by another path shares the watch, and loses nothing when the other goes."""
    (tmp_path / "link").symlink_to(connector.directory)
    other = FileConnector(tmp_path / "link")
    keys = [await connector.new_key() for _ in range(2)]
    tasks = [await waiting(connector, keys[0]), await waiting(other, keys[1])]
    assert inotify_watches() == [1]
    await asyncio.to_thread(set_elsewhere, connector, keys[0])
    await tasks[0]
    watcher = file_watch._process.watcher
    io_thread().loop.call_soon_threadsafe(watcher.keepers[connector._waiting._place].look_now.set)
    await until(lambda: len(watcher.keepers) == 1)
    await asyncio.to_thread(set_elsewhere, connector, keys[1])
    await tasks[1]


# Where inotify does not work

SETS = """
import asyncio, sys
from proxyplane.connectors.file import FileConnector
async def main():
    for key in sys.argv[2:]:
        await FileConnector(sys.argv[1]).set(key, [b"object"])
sys.stdin.read()
asyncio.run(main())
"""
POLLS = """
    import asyncio, logging, os, sys
    {before}
    from proxyplane.connectors.file import watch as file_watch
    from proxyplane.connectors.file import FileConnector
    file_watch.LOOK_SECONDS = 0.2
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    async def main():
        connector = FileConnector(sys.argv[1])
        for _ in range(3):
            keys = [await connector.new_key() for _ in range(10)]
            tasks = [asyncio.ensure_future(connector.wait(key, 30)) for key in keys]
            await asyncio.sleep(0.05)
            place = connector._waiting._place
            while not place.watched and not place.polled:
                await asyncio.sleep(0.05)
            print("watched" if place.watched else "polled")
            other = await asyncio.create_subprocess_exec(
                sys.executable, "-c", sys.argv[2], sys.argv[1], *keys, stdin=-3)
            await asyncio.gather(*tasks)
            await other.wait()
            {between}
    asyncio.run(main())
"""


def logged(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "polling" in line]


@pytest.mark.row("inotify limits")
@pytest.mark.parametrize("limit", ["instances", "watches"])
@pytest.mark.parametrize("lifted", [False, True])
def test_limits_of_inotify(tmp_path, limit, lifted):
    """At the limits of inotify waits are served by polling, which is said once.

    When there is room again, they are watched.
    """
    # In a user namespace of its own, so that nobody else meets the limit.
    prefix = ("unshare", "--user", "--map-root-user")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces")
    file = f"/proc/sys/user/max_inotify_{limit}"
    before = f"open({file!r}, 'w').write('0')"
    between = f"open({file!r}, 'w').write('99')" if lifted else ""
    between += "; await asyncio.sleep(0.3)" if lifted else ""
    done = run_code(
        POLLS.format(before=before, between=between), tmp_path / "objects", SETS, prefix=prefix
    )
    (line,) = logged(done)
    assert line.startswith("WARNING") and str(tmp_path / "objects") in line
    assert f"fs.inotify.max_user_{limit}" in line
    assert done.stdout.split() == ["polled", *["watched" if lifted else "polled"] * 2]


def test_without_the_library(tmp_path):
    """Where there is no asyncinotify waits are served by polling, which is said once."""
    code = POLLS.format(before="sys.modules['asyncinotify'] = None", between="")
    done = run_code(code, tmp_path / "objects", SETS)
    (line,) = logged(done)
    assert line.startswith("INFO")
    assert done.stdout.split() == ["polled"] * 3


async def test_remote(connector, caplog):
    """What others do on a network file system is found by polling, which is said once."""
    caplog.set_level(logging.INFO, "proxyplane")
    connector._directory.remote = True
    for _ in range(3):
        keys = [await connector.new_key() for _ in range(10)]
        tasks = [await waiting(connector, key) for key in keys]
        assert inotify_watches() == []
        await asyncio.to_thread(set_elsewhere, connector, *keys)
        await asyncio.gather(*tasks)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "remote" in record.message


async def test_remote_is_found_out(tmp_path, monkeypatch):
    """A directory that was made after the connector is looked at before it is watched."""
    monkeypatch.setattr(file_watch, "is_remote", lambda kind: True)
    connector = FileConnector.from_url(f"file://{tmp_path}/objects")
    key = await FileConnector(tmp_path / "objects").new_key()
    task = await waiting(connector, key)
    assert connector._waiting._place.polled
    await asyncio.to_thread(set_elsewhere, connector, key)
    await task


@pytest.mark.row("inotify limits")
def test_few_descriptors(tmp_path):
    """A process that has no descriptor left still waits, and says once how."""
    code = """
        import asyncio, os, resource, subprocess, sys
        from proxyplane._runtime.io_thread import io_thread
        from proxyplane.connectors.file import FileConnector
        async def main():
            connector = FileConnector(sys.argv[1])
            key = await connector.new_key()
            io_thread()
            other = subprocess.Popen(
                [sys.executable, "-c", sys.argv[2], sys.argv[1], key], stdin=subprocess.PIPE)
            import asyncinotify, ctypes.util
            held = []
            try:
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            task = asyncio.ensure_future(connector.wait(key, 30))
            while not (connector._waiting._place and connector._waiting._place.polled):
                await asyncio.sleep(0.01)
            other.stdin.close()
            await task
            for fd in held:
                os.close(fd)
            other.wait()
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        asyncio.run(main())
    """
    done = run_code(code, tmp_path / "objects", SETS)
    (line,) = logged(done)
    assert "Too many open files" in line
