"""Where an endpoint has its objects: in memory, in files, and what survives a restart."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import threading

import pytest

from proxyplane.connectors.endpoint import EndpointConnector, client
from proxyplane.connectors.endpoint.shared import map_memory
from proxyplane.endpoint import files
from proxyplane.endpoint.room import Limits
from proxyplane.endpoint.storage import Storage
from proxyplane.endpoint.upload import Upload
from proxyplane.exceptions import (
    ConnectorUnavailableError,
    KeyExistsError,
    ObjectLostError,
    ObjectTooLargeError,
    StoreFullError,
)
from proxyplane.testing import cancelled_at
from support.waiting import until

MB = 1_000_000


async def test_memory_has_a_budget(at):
    """What exceeds the memory that an endpoint may use goes to files, and all of it is found."""
    site = at("--memory", "3MB")
    connector = EndpointConnector()
    bodies = [bytes([number]) * MB for number in range(10)]
    keys = [await connector.put([body]) for body in bodies]
    status = site.status()
    assert status["memory"]["used"] == 3 * MB
    assert status["disk"]["used"] == 7 * MB
    assert [bytes(await connector.get(key)) for key in keys] == bodies
    assert await connector.evict_batch(keys) == [True] * 10
    status = site.status()
    assert (0, 0) == (status["memory"]["used"], status["disk"]["used"])
    assert site.files == []
    await connector.aclose()


async def test_what_was_used_lately_stays_in_memory(at):
    """Of two objects the one that was read last is not the one that moves to a file."""
    site = at("--memory", "3MB")
    connector = EndpointConnector()
    first, second = [await connector.put([bytes([1]) * MB]) for _ in range(2)]
    await connector.get(first)
    await connector.put([bytes(2 * MB)])
    assert len(site.files) == 1
    await connector.evict(second)
    assert site.files == []
    await connector.aclose()


async def test_an_object_larger_than_memory(at):
    """An object that is larger than all the memory is written to a file as it comes."""
    site = at("--memory", "1MB")
    connector = EndpointConnector()
    body = os.urandom(20 * MB)
    key = await connector.put([body[: 7 * MB], body[7 * MB :]])
    assert site.status()["memory"]["used"] == 0
    assert bytes(await connector.get(key)) == body
    await connector.aclose()


async def test_no_room(at):
    """A full endpoint says so, keeps what it has, and has room again after an eviction."""
    at("--memory", "2MB", "--disk", "2MB")
    connector = EndpointConnector()
    keys = [await connector.put([bytes(MB)]) for _ in range(4)]
    for call in (connector.put([bytes(MB)]), connector.put_batch([[b"x"], [bytes(MB)]])):
        with pytest.raises(StoreFullError, match="no room"):
            await call
    with pytest.raises(ObjectTooLargeError, match="ever holds"):
        await connector.put([bytes(3 * MB)])
    await connector.evict(keys[0])
    keys[0] = await connector.put([bytes(MB)])
    assert all([await connector.exists(key) for key in keys])
    await connector.aclose()


async def test_an_object_may_be_too_large(at):
    """An endpoint may be told the largest object it takes."""
    at("--max-object", "1MB")
    connector = EndpointConnector()
    with pytest.raises(ObjectTooLargeError, match="1000001 bytes"):
        await connector.put([bytes(MB + 1)])
    await connector.put([bytes(MB)])
    await connector.aclose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_objects_persist(at, number):
    """With --persist objects, and keys whose objects come later, survive a stop and a kill."""
    site = at("--persist", "--memory", "1MB")
    connector = EndpointConnector()
    small, large = await connector.put([b"small"]), await connector.put([bytes(5 * MB)])
    await connector.put([b"mine"], key="../mine")
    later, done = await connector.new_key(), await connector.new_key()
    await connector.set(done, [b"done"])
    gone = await connector.put([b"gone"])
    await connector.evict(gone)
    await connector.aclose()
    site.end(number)
    site.start()
    connector = EndpointConnector()
    assert bytes(await connector.get(small)) == b"small"
    assert bytes(await connector.get(large)) == bytes(5 * MB)
    assert bytes(await connector.get("../mine")) == b"mine"
    assert bytes(await connector.get(done)) == b"done"
    assert await connector.get(gone) is None
    with pytest.raises(KeyExistsError):
        await connector.set(done, [b"again"])
    await connector.set(later, [b"later"])
    assert len(site.files) == 5
    await connector.aclose()


async def test_without_persistence_nothing_is_left(at):
    """Otherwise a restart forgets them, and whoever waits or sets is told that they are lost."""
    site = at("--memory", "1MB")
    connector = EndpointConnector()
    key, later = await connector.put([bytes(5 * MB)]), await connector.new_key()
    site.end(signal.SIGKILL)
    site.start()
    assert await connector.get(key) is None
    assert site.files == []
    with pytest.raises(ObjectLostError):
        await connector.set(later, [b"x"])
    with pytest.raises(ObjectLostError):
        await connector.wait(later, 30)
    await connector.aclose()


async def test_damaged_files_are_removed(at):
    """A file that is not whole is none of an object; the others are found."""
    site = at("--persist")
    connector = EndpointConnector()
    keys = [await connector.put([bytes(MB)]) for _ in range(2)]
    site.end(signal.SIGKILL)
    objects = site.directory / site.name / "objects"
    os.truncate(objects / site.files[0], MB)
    (objects / "stray").write_bytes(b"nothing")
    site.start()
    assert sorted([await connector.exists(key) for key in keys]) == [False, True]
    assert len(site.files) == 1
    assert site.log.count("not whole") == 2
    await connector.aclose()


@pytest.mark.allow_blocking
async def test_files_of_earlier_runs(tmp_path):
    """Those of an older version are taken over; of two of one key the later one, and no other."""

    def write(name, key, body, **more):
        said = json.dumps({"key": key, "size": len(body) or -1, **more}).encode()
        head = b"PPEO1\n" + len(said).to_bytes(4, "big") + said
        digest = hashlib.sha256(key.encode()).hexdigest()
        (tmp_path / name.format(digest)).write_bytes(head + body)

    write("{}-17a5f2c0d9b3e1f0-3.object", "old", b"old")
    write("{}.later", "later", b"")
    write("{}-ff.object", "twice", b"second", tag="2")
    write("{}-fe.object", "twice", b"first", tag="1")
    write("{}-100.later", "done", b"", tag="")
    write("{}-101.object", "done", b"done", tag="3")
    storage = Storage(str(tmp_path), Limits(persist=True), lambda key: None)
    await storage.open()
    found = {}
    for key in ("old", "twice", "done"):
        _, reading = await storage.read(storage.find(key))
        size = storage.find(key).size
        found[key] = b"".join([bytes(piece) async for piece in reading.pieces(0, size)])
        await reading.close()
    assert found == {"old": b"old", "twice": b"second", "done": b"done"}
    assert storage.is_awaited("later") and not storage.is_awaited("done")
    assert len(os.listdir(tmp_path)) == 4
    # They can be given leases, which are found again.
    assert await storage.extend(["old", "later", "twice"], 600) == [True] * 3
    again = Storage(str(tmp_path), Limits(persist=True), lambda key: None)
    await again.open()
    assert len(again.leases) == 3
    await again.evict(["old", "twice", "done", "later"])
    assert os.listdir(tmp_path) == []
    await again.close()
    storage.leases.close()


async def test_a_stopped_endpoint(at):
    """Without its endpoint every operation says which command starts it."""
    site = at()
    site.end()
    connector = EndpointConnector()
    with pytest.raises(ConnectorUnavailableError, match="proxyplane endpoint start own"):
        await connector.put([b"x"])
    site.start()
    await connector.put([b"x"])
    await connector.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="memory without a name is Linux's")
async def test_large_objects_are_mapped(at, monkeypatch):
    """A large object in memory is mapped, not sent; or sent, where it cannot be mapped."""
    site = at()
    connector = EndpointConnector()
    body = os.urandom(5 * MB)

    def open_files():
        found = [
            f"/proc/{site.process.pid}/fd/{one}"
            for one in os.listdir(f"/proc/{site.process.pid}/fd")
        ]
        return sum("proxyplane-object" in os.readlink(one) for one in found)

    key = await connector.put([body])
    assert open_files() == 1
    buffer, other = await connector.get(key), await connector.get(key)
    memoryview(other)[:] = bytes(5 * MB)
    assert bytes(buffer) == body
    monkeypatch.setattr(client, "map_memory", lambda place: None)
    for _ in range(2):
        assert bytes(await connector.get(key)) == body
    await connector.evict(key)
    assert open_files() == 0
    assert bytes(buffer) == body
    await connector.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="memory without a name is Linux's")
async def test_no_other_object_is_mapped(at):
    """A descriptor that is now that of another object is not taken for the one it was."""
    at()
    connector = EndpointConnector()
    key = await connector.put([bytes(5 * MB)])
    inner = await connector._client()
    place = await inner._get(key, connector.endpoint, mapped=True)
    await connector.evict(key)
    await connector.put([bytes([1]) * (5 * MB)])
    assert map_memory(place) is None
    for nonsense in ("", "1", "a b c d", "0 0 0 0", f"{os.getpid()} 0 1 2"):
        assert map_memory(nonsense) is None
    await connector.aclose()


@pytest.mark.allow_blocking  # the name of a file that is of no use is removed at once
@pytest.mark.parametrize("size", [100, 3 * MB])
async def test_a_put_that_is_cancelled_is_not_there_after_a_restart(tmp_path, size):
    """Nor is any of its room lost, wherever it is cancelled."""
    limits = Limits(memory=2 * MB, disk=100 * MB, persist=True)
    nth, reached = 1, True
    while reached:
        storage = Storage(str(tmp_path), limits, lambda key: None)
        await storage.open()

        async def put(storage=storage):
            with await storage.begin("key", size) as upload:
                await upload.write(bytes(size))
                await storage.commit([upload])

        reached = await cancelled_at(put(), nth)
        there = storage.find("key") is not None
        assert storage.room.disk_used == (size if there else 0)
        assert len(os.listdir(tmp_path)) == there
        again = Storage(str(tmp_path), limits, lambda key: None)
        await again.open()
        assert (again.find("key") is not None) == there
        await again.evict(["key"])
        nth += 1
    assert there


@pytest.mark.allow_blocking
async def test_who_makes_room_and_is_cancelled_loses_none(tmp_path):
    """What was to move to a file stays in memory, or has moved."""
    limits = Limits(memory=1000, disk=MB)
    nth, reached = 1, True
    while reached:
        storage = Storage(str(tmp_path), limits, lambda key: None)
        await storage.open()
        with await storage.begin("old", 900) as upload:
            await upload.write(bytes(900))
            await storage.commit([upload])

        async def put(storage=storage):
            with await storage.begin("new", 800):
                pass

        reached = await cancelled_at(put(), nth)
        assert storage.room.memory_used + storage.room.disk_used == 900
        assert len(os.listdir(tmp_path)) == (storage.room.disk_used > 0)
        await storage.close()
        nth += 1


@pytest.mark.allow_blocking
async def test_a_registration_that_is_cancelled_or_made_twice(tmp_path):
    """Wherever it is cancelled, memory and files agree, and the key can be registered again."""
    limits = Limits(memory=MB, disk=MB, persist=True)
    nth, reached = 1, True
    while reached:
        storage = Storage(str(tmp_path), limits, lambda key: None)
        await storage.open()
        reached = await cancelled_at(storage.register("key"), nth)
        assert len(os.listdir(tmp_path)) == storage.is_awaited("key")
        await asyncio.gather(*(storage.register("key") for _ in range(3)))
        again = Storage(str(tmp_path), limits, lambda key: None)
        await again.open()
        assert again.is_awaited("key")
        await again.evict(["key"])
        assert os.listdir(tmp_path) == []
        nth += 1


@pytest.mark.allow_blocking
async def test_registered_by_several_at_once(tmp_path):
    """All of them have registered it."""
    storage = Storage(str(tmp_path), Limits(memory=MB, disk=MB, persist=True), lambda key: None)
    await storage.open()
    await asyncio.gather(*(storage.register("key") for _ in range(3)))
    assert storage.is_awaited("key")


@pytest.mark.parametrize("what", ["an object", "a registration", "nothing"])
async def test_under_a_forbidden_key_nothing_comes(tmp_path, what):
    """What was there is evicted, and the same request, if it comes once more, is refused."""
    storage = Storage(str(tmp_path), Limits(), lambda key: None)
    await storage.open()

    async def put():
        with await storage.begin("key", 3) as upload:
            await upload.write(b"abc")
            await storage.commit([upload])

    if what == "an object":
        await put()
    elif what == "a registration":
        await storage.register("key")
    assert await storage.evict(["key"], forbid=True) == [what == "an object"]
    with pytest.raises(ObjectLostError):
        await put()
    with pytest.raises(ObjectLostError):
        await storage.register("key")
    assert (len(storage), storage.awaited, storage.room.memory_used) == (0, 0, 0)
    await storage.close()


@pytest.mark.allow_blocking
async def test_a_registration_that_comes_late(tmp_path, monkeypatch):
    """One that was asked for twice, and comes after its object, is none: nobody would wait."""
    goes_on, slow = threading.Event(), ["the first"]

    def write_file(*what):
        if slow:
            slow.clear()
            assert goes_on.wait(60)
        files.write_file(*what)

    monkeypatch.setattr("proxyplane.endpoint.storage.write_file", write_file)
    storage = Storage(str(tmp_path), Limits(persist=True), lambda key: None)
    await storage.open()
    late = asyncio.create_task(storage.register("key"))
    await until(lambda: not slow)
    await storage.register("key")
    with await storage.begin("key", 3) as upload:
        await upload.write(b"abc")
        await storage.commit([upload], later=True)
    goes_on.set()
    await late
    assert storage.awaited == 0
    assert await storage.evict(["key"]) == [True]
    assert not storage.is_awaited("key")
    assert os.listdir(tmp_path) == []
    await storage.close()


@pytest.fixture
def gate(monkeypatch):
    """No upload is finished before this is set; the list has those that wait."""
    opened, waiting = asyncio.Event(), []
    finish = Upload.finish

    async def gated(self, *what):
        waiting.append(self.key)
        await opened.wait()
        return await finish(self, *what)

    monkeypatch.setattr(Upload, "finish", gated)
    return opened, waiting


async def stored(storage, call):
    with await storage.begin("key", 3) as upload:
        await upload.write(b"abc")
        await call(upload)


@pytest.mark.allow_blocking
async def test_registered_while_it_is_swapped(tmp_path, gate):
    """Either there is an object under a key, or it is awaited; not both."""
    opened, waiting = gate
    storage = Storage(str(tmp_path), Limits(persist=True), lambda key: None)
    await storage.open()
    late = asyncio.create_task(storage.register("key"))
    swap = asyncio.create_task(stored(storage, lambda upload: storage.swap("key", upload)))
    await until(lambda: waiting and os.listdir(tmp_path))
    await asyncio.sleep(0.05)
    opened.set()
    await asyncio.wait([late, swap])
    assert (len(storage), storage.awaited) in ((1, 0), (0, 1))
    await storage.evict(["key"])
    assert (len(storage), storage.awaited, os.listdir(tmp_path)) == (0, 0, [])
    await storage.close()


@pytest.mark.allow_blocking
async def test_registered_once_more_while_it_is_set(tmp_path, gate):
    """What comes for a registration that was evicted is not the object of the next one."""
    opened, waiting = gate
    storage = Storage(str(tmp_path), Limits(persist=True), lambda key: None)
    await storage.open()
    await storage.register("key")
    late = asyncio.create_task(stored(storage, lambda upload: storage.commit([upload], later=True)))
    await until(lambda: waiting)
    await storage.evict(["key"])
    again = asyncio.create_task(storage._register("key", None))
    await asyncio.sleep(0.05)
    opened.set()
    with pytest.raises(ObjectLostError):
        await late
    await again
    assert storage.is_awaited("key")
    assert len(os.listdir(tmp_path)) == 1
    await storage.close()
