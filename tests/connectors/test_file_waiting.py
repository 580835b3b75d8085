"""FileConnector: objects that come later."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import stat
from pathlib import Path

import pytest

from proxyplane._runtime.io_thread import io_thread
from proxyplane.abc import DeferrableConnector
from proxyplane.connectors._inline import INLINE_BYTES
from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file import inotify as inotify
from proxyplane.connectors.file import watch as file_watch
from proxyplane.connectors.file.directory import PENDING
from proxyplane.exceptions import KeyExistsError, ObjectLostError
from proxyplane.testing import cancelled_at
from support.soak import times
from support.waiting import (
    LONG,
    drop_watches,
    inotify_watches,
    looking_every,
    nobody_waits,
    on_thread,
    set_in_process,
    until,
    waiting,
    watched_place,
)

SIZES = [1, INLINE_BYTES + 1]


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


def registrations(connector: FileConnector) -> list[str]:
    return os.listdir(Path(connector.directory, PENDING))


async def test_a_registration_is_no_object(connector):
    """Before the set there is a record of the key, which is not its object."""
    assert isinstance(connector, DeferrableConnector)
    key = await connector.new_key()
    assert await connector.get(key) is None
    assert await connector.exists(key) is False
    assert registrations(connector) == [key]
    await connector.set(key, [b"o", b"bject"])
    assert bytes(await connector.get(key)) == b"object"
    assert registrations(connector) == []


def test_wakes_other_processes(tmp_path):
    """Objects that another process sets, in any order, wake who waits for them."""

    async def main():
        connector = FileConnector(tmp_path / "objects")
        keys = [await connector.new_key() for _ in range(200)]
        tasks = [await waiting(connector, key) for key in keys]
        other = set_in_process(connector.url, *random.sample(keys, len(keys)))
        other.stdin.write("\n" * len(keys))
        await asyncio.gather(*tasks)
        assert [bytes(await connector.get(key)) for key in keys] == [b"object"] * 200
        other.communicate()

    asyncio.run(main())


@pytest.mark.parametrize("size", SIZES)
async def test_wakes_its_own_process(connector, size, monkeypatch):
    """A set wakes who waits in the same process without the help of the kernel."""
    monkeypatch.setattr(inotify.Removals, "_handle", lambda self, event: None)
    key, lost = await connector.new_key(), await connector.new_key()
    tasks = [await waiting(connector, one) for one in (key, lost)]
    other = FileConnector.from_url(connector.url)
    await asyncio.wrap_future(on_thread(lambda: other.set(key, [b"x" * size])))
    await tasks[0]
    await other.evict(lost)
    with pytest.raises(ObjectLostError):
        await tasks[1]


@pytest.mark.parametrize("anonymous", [True, False], ids=["without a name", "named"])
@pytest.mark.parametrize("size", SIZES)
async def test_of_many_sets_one_succeeds(connector, size, anonymous):
    """Of sets on eight threads at once one stores its object, and the others raise."""
    connector._publisher.anonymous = anonymous
    for _ in range(max(times("set racing set") // 20, 1)):
        key = await connector.new_key()
        tried = await asyncio.gather(
            *(
                asyncio.wrap_future(on_thread(lambda n=n: connector.set(key, [b"%d" % n * size])))
                for n in range(8)
            ),
            return_exceptions=True,
        )
        (winner,) = [number for number, raised in enumerate(tried) if raised is None]
        assert {type(raised) for raised in tried} == {type(None), KeyExistsError}
        assert await connector.get(key) == b"%d" % winner * size
        await connector.evict(key)


async def test_two_sets_and_an_evict(connector, monkeypatch):
    """A set that finds, after it published, that its key was set and evicted, takes it back."""
    key = await connector.new_key()
    real = connector._publisher.publish
    other = FileConnector.from_url(connector.url)

    def publish(name, bodies, *, unique, check):
        def check_then_lose():
            check()
            other._set_sync([memoryview(b"theirs")], key, lambda: None)
            assert other.evict_sync(key)

        return real(name, bodies, unique=unique, check=check_then_lose)

    monkeypatch.setattr(connector._publisher, "publish", publish)
    with pytest.raises(ObjectLostError):
        await connector.set(key, [b"mine"])
    assert await connector.get(key) is None


async def test_evict_between_publishing_and_settling(connector, monkeypatch):
    """Who evicts an object the moment it appears does not make its set fail."""
    key = await connector.new_key()
    real = connector._registrations.settle

    def settle(key, wrote):
        assert FileConnector.from_url(connector.url).evict_sync(key)
        real(key, wrote)

    monkeypatch.setattr(connector._registrations, "settle", settle)
    await connector.set(key, [b"x"])
    assert await connector.exists(key) is False


async def test_evict_while_settling(connector, monkeypatch):
    """Of an evict and a set that takes back its object one has it: the set if it fails."""
    key = await connector.new_key()
    real = connector._leases.unlink
    publish = connector._publisher.publish

    def lose_then_unlink(path, name, **options):
        if Path(path).parent == Path(connector.directory):  # not its registration, which is gone
            os.unlink(path)  # as another process's evict, which has removed that first
        return real(path, name, **options)

    def publish_then_lose(*args, **options):
        wrote = publish(*args, **options)
        os.unlink(connector._registrations._path(key))
        monkeypatch.setattr(connector._leases, "unlink", lose_then_unlink)
        return wrote

    monkeypatch.setattr(connector._publisher, "publish", publish_then_lose)
    await connector.set(key, [b"x"])
    assert await connector.exists(key) is False


@pytest.mark.parametrize("timeout", [-1, 0, 0.01])
@pytest.mark.parametrize("remote", [False, True])
async def test_timeouts(connector, timeout, remote):
    """A wait says how long it waited; what is there is found in no time."""
    connector._directory.remote = remote
    key = await connector.new_key()
    with pytest.raises(TimeoutError, match=f"{key}.* {timeout} s"):
        await connector.wait(key, timeout)
    await connector.set(key, [b"x"])
    await connector.wait(key, timeout)


@pytest.mark.parametrize("remote", [False, True])
async def test_cancellation_at_each_suspension(connector, remote):
    """A wait that is cancelled leaves nobody waiting."""
    connector._directory.remote = remote
    nth, reached = 1, True
    while reached:
        key = await connector.new_key()
        setting = asyncio.get_running_loop().call_later(
            0.01, lambda key=key: connector.put_sync([b"x"], key=key)
        )
        reached = await cancelled_at(connector.wait(key, LONG), nth)
        setting.cancel()
        assert connector._waiting._place is None or nobody_waits(connector._waiting._place.waiters)
        nth += 1
    assert nth >= 3


async def test_clear(connector):
    """Clearing removes what this connector registered or set, and nothing else."""
    other = FileConnector.from_url(connector.url)
    mine, theirs, both = await connector.new_key(), await other.new_key(), await other.new_key()
    task = await waiting(other, mine)
    await connector.set(both, [b"x"])
    await connector.aclose(clear=True)
    with pytest.raises(ObjectLostError):
        await task
    assert registrations(other) == [theirs]
    assert await other.exists(both) is False
    await other.set(theirs, [b"x"])


async def test_a_group_shares_registrations(tmp_path):
    """The group of a shared directory can wait and set in it."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o2770)
    connector = FileConnector(directory)
    key = await connector.new_key()
    assert stat.S_IMODE(os.stat(directory / PENDING).st_mode) == 0o2770
    assert stat.S_IMODE(os.stat(directory / PENDING / key).st_mode) == 0o640


async def test_a_directory_that_is_not_there(tmp_path):
    """A wait in a directory that was never made says so."""
    connector = FileConnector.from_url(f"file://{tmp_path}/missing")
    for call in (connector.wait("0" * 32, LONG), connector.set("0" * 32, [b"x"])):
        with pytest.raises(ObjectLostError, match="no such directory"):
            await call
    assert not (tmp_path / "missing").exists()


# What it costs


def test_ten_thousand(connector):
    """Ten thousand who wait take one instance and one watch, and all are woken."""

    async def main():
        keys = [await connector.new_key() for _ in range(10_000)]
        tasks = [asyncio.ensure_future(connector.wait(key, LONG)) for key in keys]
        place = await watched_place(connector)
        await until(lambda: keys[-1] in place.waiters.names() and inotify_watches() == [1])
        other = set_in_process(connector.url)
        other.stdin.write("".join(f"\n{key}\n" for key in keys))
        await asyncio.gather(*tasks)
        assert inotify_watches() == [1]
        other.communicate()

    asyncio.run(main())


def switches() -> int:
    """How often the thread of the library's loop went to sleep and was woken."""
    with open(f"/proc/self/task/{io_thread()._thread.native_id}/status") as lines:
        (line,) = [line for line in lines if line.startswith("voluntary_ctxt_switches")]
        return int(line.split()[1])


@pytest.mark.parametrize("remote", [False, True])
async def test_nothing_runs_while_nothing_happens(connector, remote):
    """While inotify works the library's thread sleeps through; where it polls, it does not."""
    connector._directory.remote = remote
    key = await connector.new_key()
    task = await waiting(connector, key)
    await connector.put([b"an object that nobody waits for"])
    await asyncio.sleep(0.1)
    before = switches()
    await asyncio.sleep(0.5)
    assert (switches() > before) is remote
    await connector.set(key, [b"x"])
    await task


async def test_descriptors_stay_flat(connector):
    """Waits, however they end, hold no descriptor when they are over."""
    await connector.wait(await connector.put([b"x"]))
    task = await waiting(connector, await connector.new_key())
    task.cancel()
    await asyncio.to_thread(drop_watches)
    gc.collect()  # what other tests left
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        keys = [await connector.new_key() for _ in range(4)]
        tasks = [await waiting(connector, key) for key in keys]
        await connector.set(keys[0], [b"x"])
        await connector.evict(keys[1])
        tasks[2].cancel()
        with pytest.raises(TimeoutError):
            await connector.wait(keys[3], 0.001)
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(drop_watches)
        assert len(os.listdir("/proc/self/fd")) <= before


async def test_the_watch_goes_with_the_last_waiter(connector):
    """Some time after the last waiter has left nothing is watched."""
    file_watch.LOOK_SECONDS = 0.05
    tasks = [await waiting(connector, await connector.new_key()) for _ in range(2)]
    tasks[0].cancel()
    await asyncio.sleep(0.2)
    assert inotify_watches() == [1]
    tasks[1].cancel()
    await until(lambda: inotify_watches() == [])
    assert file_watch._process.watcher.keepers == {}
