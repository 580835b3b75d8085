"""What a crash leaves, who sweeps it, and the command that does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import proxyplane as pp
import proxyplane.sync
from proxyplane.connectors.file.directory import LEASES, PENDING, UNPUBLISHED
from proxyplane.connectors.file.leases import Leases
from support.owners import until

OWNER = """
    import sys, time
    import proxyplane as pp, proxyplane.sync
    from proxyplane.lifetimes import LeaseLifetime

    url, period = sys.argv[1], float(sys.argv[2])
    store = pp.sync.Store("owner", url)
    lifetime = LeaseLifetime(store, period)
    keys = [store.put("x" * size, lifetime=lifetime) for size in (1, 100_000)]
    keys.append(pp.get_key(store.proxy([1], lifetime=lifetime)))
    keys.append(pp.get_key(store.future(lifetime=lifetime).proxy()))
    print(*keys, flush=True)
    time.sleep(600)
"""


def owner(url: str, period: float) -> tuple[subprocess.Popen[str], list[str]]:
    """A process with a lifetime, and the keys in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER), url, str(period)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def objects(directory: Path) -> set[str]:
    """What is in a directory of objects, registrations included."""
    found = {entry.name for entry in directory.iterdir()} - {LEASES, PENDING, UNPUBLISHED}
    pending = directory / PENDING
    return found | ({entry.name for entry in pending.iterdir()} if pending.is_dir() else set())


def test_a_killed_owner_leaves_nothing_in_files(tmp_path):
    """Another open store sweeps what it left, in the background; a live lease stays.

    This process only opens a store and looks at the directory.
    """
    directory = tmp_path / "objects"
    url = f"file://{directory}"
    dead, dead_keys = owner(url, 2.0)
    alive, alive_keys = owner(url, 20.0)
    try:
        kill(dead)
        with pp.sync.Store("bystander", url) as store:
            stays = store.put("no lease")
            until(lambda: not objects(directory) & set(dead_keys))
            assert objects(directory) == {stays, *alive_keys}
            until(lambda: len(list((directory / LEASES).glob("*/*"))) == len(alive_keys))
    finally:
        kill(alive)


def test_a_killed_owner_leaves_nothing_in_redis(redis_url):
    """The server removes what it left."""
    dead, keys = owner(redis_url, 2.0)
    kill(dead)
    connector = pp.RedisConnector(redis_url)

    async def left() -> int:
        client = await connector._client()
        names = [name for key in keys for name in (connector._name(key),)]
        records = [b"{%b}later" % name for name in names]
        replies = await client._replies([("EXISTS", name) for name in names + records])
        return sum(replies)

    async def wait() -> None:
        end = time.monotonic() + 30
        while await left():
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        await connector.aclose()

    asyncio.run(wait())


def test_a_live_owner_keeps_what_it_has(tmp_path, redis_url):
    """Its objects outlive many periods of their lease, on each medium, while others sweep."""
    with contextlib.ExitStack() as stack:
        kept = []
        for url in (f"file://{tmp_path}", redis_url):
            alive, keys = owner(url, 4.0)
            stack.callback(kill, alive)
            store = stack.enter_context(pp.sync.Store(f"bystander at {url}", url, cache_size=0))
            kept += [(store, key) for key in keys[:3]]
        end = time.monotonic() + 13
        while time.monotonic() < end:
            assert all(store.exists(key) for store, key in kept)
            time.sleep(0.1)


def test_sweeping_and_extending_at_once(tmp_path):
    """A lease that was extended holds, whatever sweeps meanwhile; else its object is gone."""
    connector = pp.FileConnector(tmp_path)
    stop = threading.Event()

    def sweep() -> None:
        leases = Leases(connector._directory)
        while not stop.is_set():
            leases.sweep_all()

    threads = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        kept = gone = 0
        for number in range(400):
            key = connector.put_sync([b"x"], ttl=0.001 + number % 5 / 1000)
            time.sleep(number % 4 / 1000)
            if connector._extend_sync([key], 600) == [True]:
                kept += 1
                assert connector.exists_sync(key)
                assert connector.get_sync(key) == b"x"
            else:
                gone += 1
                assert not connector.exists_sync(key)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert kept + gone == 400
    Leases(connector._directory).sweep_all()
    assert len(objects(tmp_path)) == kept


def test_a_sweep_takes_nothing_else(tmp_path):
    """What has no lease, or one that holds, stays; the index keeps what is left to do."""
    connector = pp.FileConnector(tmp_path)
    plain, live = connector.put_sync([b"x"]), connector.put_sync([b"x"], ttl=600)
    ended = [connector.put_sync([b"xyz"], ttl=0.01) for _ in range(3)]
    until(lambda: not any(map(connector.exists_sync, ended)))
    swept = asyncio.run(connector.sweep())
    assert (3, 9, 0, 0) == (swept.objects, swept.size, swept.registrations, swept.temporaries)
    assert objects(tmp_path) == {plain, live}
    assert connector.evict_sync(live)
    assert not list((tmp_path / LEASES).glob("*/*~*")) or asyncio.run(connector.sweep())


def test_a_lost_index_is_made_up_for(tmp_path):
    """A sweep by hand finds leases that have no entry, as in a copy of a directory."""
    import shutil

    connector = pp.FileConnector(tmp_path)
    key = connector.put_sync([b"x"], ttl=0.01)
    until(lambda: not connector.exists_sync(key))
    shutil.rmtree(tmp_path / LEASES)
    assert Leases(connector._directory).sweep().objects == 0
    asyncio.run(connector.sweep())
    assert not objects(tmp_path)


def command(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "proxyplane", "sweep", url],
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_the_command(tmp_path, redis_url):
    """It tells what it removed, or that there is nothing to do, or what is wrong."""
    directory = tmp_path / "objects"
    connector = pp.FileConnector(directory)
    keys = [connector.put_sync([b"x" * 1000], ttl=0.01) for _ in range(2)]
    until(lambda: not any(map(connector.exists_sync, keys)))
    done = command(f"file://{directory}")
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith(("removed 2 objects (2,000 bytes)", "removed 0 objects"))
    assert not objects(directory)
    done = command(redis_url)
    assert (0, "") == (done.returncode, done.stderr)
    assert "nothing to sweep" in done.stdout
    done = command(f"file://{tmp_path}/absent")
    assert (1, "") == (done.returncode, done.stdout)
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr
    done = command("nonsense://x")
    assert (2, "") == (done.returncode, done.stdout)
    assert "nonsense" in done.stderr
