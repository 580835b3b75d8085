"""Leases at an endpoint: what frees what, what survives which restart, and older endpoints."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from plugins.endpoints import here
from proxyplane import Store
from proxyplane.connectors.endpoint import EndpointConnector
from proxyplane.endpoint import leases
from proxyplane.endpoint.leases import Lease, Leases, pack, unpack
from proxyplane.endpoint.room import Limits
from proxyplane.endpoint.storage import Storage
from proxyplane.exceptions import (
    KeyExistsError,
    NotSupportedError,
    ObjectLostError,
)
from support.endpoints import WHERE, free_port, introduce, path_of
from support.waiting import until

MB = 1_000_000
BRIEF = 0.3
LONG = 600.0
LIMIT = 60.0


@pytest.mark.parametrize("words", WHERE.values(), ids=WHERE)
async def test_the_end_of_a_lease_frees_all(at, words):
    """Memory and files, without anybody looking at the object; what has none stays."""
    site = at(*words)
    connector = EndpointConnector()
    kept = await connector.put([b"kept"])
    before = site.status()
    keys = [await connector.put([bytes(size)], ttl=LONG) for size in (10, MB, 3 * MB)]
    keys += [await connector.new_key(ttl=LONG)]
    assert site.status()["leases"] == 4
    assert await connector.extend(keys, BRIEF) == [True] * 4

    def freed():
        status = site.status()
        return all(status[what] == before[what] for what in ("memory", "disk", "objects", "leases"))

    await until(freed)
    await until(lambda: len(site.files) == ("--persist" in words))
    assert site.status()["awaited"] == 0
    assert bytes(await connector.get(kept)) == b"kept"
    await connector.aclose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_leases_survive_a_restart(at, number):
    """With --persist, of objects and of keys to come, as they were given last."""
    site = at("--persist")
    connector = EndpointConnector()
    body = bytes(2 * MB)
    stays, taken = await connector.put([b"x"]), await connector.put([b"x"], ttl=LONG)
    holds = await connector.put([body], ttl=LONG)
    given, swapped = await connector.put([b"x"]), "swapped"
    await connector.swap(swapped, [b"x"], ttl=LONG)
    later, done = await connector.new_key(ttl=LONG), await connector.new_key(ttl=LONG)
    await connector.set(done, [b"done"])
    leased = [holds, given, swapped, later, done]
    assert await connector.extend([given], LONG) == [True]
    assert await connector.extend([taken], None) == [True]
    await asyncio.to_thread(site.end, number)
    await asyncio.to_thread(site.start)
    assert site.status()["leases"] == len(leased)
    assert bytes(await connector.get(holds)) == body
    assert await connector.extend([*leased, stays, taken], LONG) == [True] * 7
    assert await connector.extend([stays, taken], None) == [True] * 2
    # Now they end while nobody is there to see it.
    assert await connector.extend(leased, BRIEF) == [True] * 5
    await asyncio.to_thread(site.end, signal.SIGKILL)
    await asyncio.sleep(BRIEF)
    await asyncio.to_thread(site.start)
    assert [await connector.exists(key) for key in leased] == [False] * 5
    assert [await connector.exists(key) for key in (stays, taken)] == [True] * 2
    with pytest.raises(ObjectLostError):
        await connector.set(later, [b"too late"])
    assert len(site.files) == 2
    assert site.status()["leases"] == 0
    await connector.aclose()


async def test_waiters_of_a_peer_learn_that_it_ended(pair):
    """Wherever they wait, also if an endpoint on the way is killed meanwhile."""
    there, at_home = EndpointConnector("two"), EndpointConnector("one")
    keys = [await connector.new_key(ttl=LONG) for connector in (there, at_home)]
    waiting = [asyncio.create_task(at_home.wait(key, LIMIT)) for key in keys]
    await until(lambda: [site.status()["waiting"] for site in pair] == [2, 1])
    await asyncio.to_thread(pair[1].end, signal.SIGKILL)
    await asyncio.to_thread(pair[1].start)
    assert await at_home.extend(keys, BRIEF) == [True, True]
    for task in waiting:
        with pytest.raises(ObjectLostError, match="its lease ended"):
            await task
    await there.aclose()
    await at_home.aclose()


async def test_a_waiter_of_a_store(pair):
    """A future at a peer whose lease ends is an `ObjectLostError` for its consumer."""
    async with Store("futures of a peer", EndpointConnector("two")) as store:
        future = await store.future(ttl=BRIEF)
        with pytest.raises(ObjectLostError):
            await future.aresult(timeout=LIMIT)


@pytest.mark.parametrize(
    ("method", "path", "body", "fields"),
    [
        ("POST", "/v2/extend", b"{}", {}),
        ("POST", "/v2/extend", b'{"keys": ["x"], "ttl": 0}', {}),
        ("POST", "/v2/extend", b'{"keys": ["x"], "ttl": "1"}', {}),
        ("POST", "/v2/extend", b'{"keys": ["x"], "ttl": NaN}', {}),
        ("POST", "/v2/swap/!!", b"x", {}),
        *(
            ("PUT", path_of("x").replace("v1", "v2"), b"x", {"Lease": text})
            for text in ("", "x", "0", "-1", "nan", "inf", "1e99")
        ),
        ("POST", "/v2/later/eA", b"{}", {"Lease": "never"}),
    ],
)
def test_nonsense_is_refused(site, method, path, body, fields):
    """What is no lease gets an answer that says so, and nothing is stored."""
    status, text = site.ask(method, path, body, **fields)
    assert status == 400
    assert json.loads(text)["message"]
    assert (0, 0) == (site.status()["objects"], site.status()["awaited"])


# -- older endpoints --------------------------------------------------------------------------

# An endpoint before leases answers that there is no such path, as it does to all it does not know.
OLDER = """
    import sys
    from proxyplane.endpoint import service
    service.VERSIONS = ("v1",)
    from proxyplane.cli import main
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(params=["this machine's", "a peer"])
def older(request, make_site, monkeypatch):
    """A site of which the endpoint is of an older version, from near or from afar."""
    made = [make_site(name, listen=f"127.0.0.1:{free_port()}") for name in ("near", "far")]
    introduce(*made)
    here(monkeypatch, made[0])
    old = made[request.param == "a peer"]
    made[request.param != "a peer"].start()
    reader, writer = os.pipe()
    words = ("endpoint", "start", old.name, "--front", "--ready-fd", str(writer))
    with open(old.directory / "stderr", "ab") as log:
        old.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(OLDER), *words],
            env=old.environment,
            pass_fds=(writer,),
            stderr=log,
        )
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"ready", old.log
    return old


async def test_an_older_endpoint(older):
    """It says at once what it cannot do, stores nothing of it, and does the rest."""
    connector = EndpointConnector(older.id)
    key = await connector.put([b"x"])
    calls = [
        lambda: connector.put([b"y"], ttl=LONG),
        lambda: connector.put([bytes(20 * MB)], ttl=LONG),
        lambda: connector.put([b"y"], key="mine", ttl=LONG),
        lambda: connector.put_batch([[b"y"], [bytes(MB)]], ttl=LONG),
        lambda: connector.new_key(ttl=LONG),
        lambda: connector.extend([key], LONG),
        lambda: connector.swap("name", [b"y"]),
        lambda: connector.swap("name", [b"y"], ttl=LONG),
        lambda: connector.swap("name", None),
    ]
    async with asyncio.timeout(LIMIT):
        for call in calls:
            with pytest.raises(NotSupportedError, match="older version"):
                await call()
    status = older.status()
    assert (1, 0) == (status["objects"], status["awaited"])
    assert bytes(await connector.get(key)) == b"x"
    # As it was before: what is put under a name stays there.
    async with Store("older", connector) as store:
        await store.put("first", key="name")
        with pytest.raises(KeyExistsError):
            await store.put("second", key="name")
        assert await store.get("name") == "first"
        with pytest.raises(NotSupportedError):
            await store.put("third", ttl=LONG)
        assert await store.evict("name") is True
    await connector.aclose()


# -- the parts --------------------------------------------------------------------------------


def test_a_lease_that_is_written_down(monkeypatch):
    """It counts on through a restart, whatever the time of day does; that counts after a boot."""
    assert unpack(pack(None)) is unpack(pack(Lease())) is None
    day = 86400.0
    for step, boot, least, most in (
        (0, b"", 90, 100),
        (day, b"", 90, 100),
        (-day, b"", 90, 100),
        (0, b"another", 90, 100),
        (50, b"another", 40, 50),
        (day, b"another", -1, 0),
        (-day, b"another", 100, 100),  # never longer than it was given
    ):
        raw = pack(Lease(100))
        with monkeypatch.context() as patch:
            real = time.time()
            patch.setattr(leases.time, "time", lambda real=real, step=step: real + step)
            if boot:
                patch.setattr(leases, "_this_boot", lambda boot=boot: boot)
            found = unpack(raw)
            left = found.deadline - leases.now()
        assert least - 1e-3 <= left <= most + 1e-3
        assert found.ended == (most == 0)


async def test_leases_that_are_over_take_no_room():
    """However many there were, and however often they were changed."""
    ended = []
    table = Leases(ended.extend)
    for number in range(20_000):
        lease = Lease(LONG)
        table.note(f"{number}", lease)
        lease.set(LONG / 2)
        table.note(f"{number}", lease)
        table.drop(lease)
    assert len(table) == 0
    assert len(table._heap) < 5000
    often = Lease(2 * LONG)
    for number in range(20_000):
        often.set(2 * LONG - number / 100)
        table.note("x", often)
    assert len(table) == 1
    assert len(table._heap) < 5000
    longer, shorter, never = Lease(LONG), Lease(LONG), Lease(LONG)
    for lease in (longer, shorter, never):
        table.note("x", lease)
    longer.set(2 * LONG)
    never.set(None)
    shorter.set(0.01)
    for lease in (longer, shorter, never):
        table.note("x", lease)
    await until(lambda: ended)
    assert ended == [("x", shorter)]
    table.close()


@pytest.mark.allow_blocking
async def test_a_set_while_the_lease_is_extended(tmp_path):
    """The object has the lease that was given last, in memory and in its file."""
    limits = Limits(memory=MB, disk=10 * MB, persist=True)
    storage = Storage(str(tmp_path), limits, lambda key: None)
    await storage.open()
    keys = [f"key {number}" for number in range(40)]
    for key in keys:
        await storage.register(key, LONG)

    async def set_(key):
        with await storage.begin(key, 3) as upload:
            await upload.write(b"set")
            await storage.commit([upload], later=True)

    async def extend(key):
        assert await storage.extend([key], 10 * LONG) == [True]

    await asyncio.gather(*(call(key) for key in keys for call in (set_, extend)))
    again = Storage(str(tmp_path), limits, lambda key: None)
    await again.open()
    for table in (storage, again):
        for key in keys:
            assert LONG < table.find(key).lease.deadline - leases.now() <= 10 * LONG
    assert len(os.listdir(tmp_path)) == 40
    storage.leases.close()
    await again.close()
