"""Names at an endpoint: swaps in one step, also when it is killed, or the caller is cancelled."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal

import pytest

from proxyplane.connectors.endpoint import EndpointConnector
from proxyplane.endpoint import leases
from proxyplane.endpoint.room import Limits
from proxyplane.endpoint.storage import Storage
from proxyplane.exceptions import (
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    KeyExistsError,
    NotAllowedError,
)
from proxyplane.testing import cancelled_at
from support.endpoints import WHERE, path_of
from support.waiting import until

MB = 1_000_000
LONG = 600.0


@pytest.mark.parametrize("words", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize("size", [100, 2 * MB])
async def test_names_while_they_are_replaced(at, words, size):
    """Wherever objects are, readers get whole ones and no errors, and nothing is left over."""
    site = at(*words)
    connector, other = EndpointConnector(), EndpointConnector()
    bodies = [bytes([number]) * size for number in range(8)]
    await connector.swap("name", [bodies[0]])
    done = asyncio.Event()

    async def read():
        reads = 0
        while not done.is_set() or not reads:
            assert bytes(await other.get("name")) in bodies
            reads += 1

    readers = [asyncio.create_task(read()) for _ in range(3)]
    had = []
    for number in range(40):
        had.append(bytes(await connector.swap("name", [bodies[number % 8]]))[0])
    done.set()
    await asyncio.gather(*readers)
    assert had == [0, *(number % 8 for number in range(39))]
    status = site.status()
    assert status["objects"] == 1
    assert status["memory"]["used"] + status["disk"]["used"] in (size, 2 * size)
    assert len(site.files) == (status["disk"]["used"] > 0)
    assert bytes(await connector.swap("name", None))[:1] == bytes([39 % 8])
    status = site.status()
    assert (0, 0) == (status["memory"]["used"], status["disk"]["used"])
    assert site.files == []
    await connector.aclose()
    await other.aclose()


@pytest.mark.parametrize("size", [100, 2 * MB])
async def test_killed_while_it_swaps(at, size):
    """An endpoint that is killed has the last object that it acknowledged, or the next one."""
    site = at("--persist")
    connector = EndpointConnector()

    def body(number):
        return number.to_bytes(8, "big") * (size // 8)

    await connector.swap("name", [body(0)])
    acknowledged = 0
    for round_ in range(4):
        number = acknowledged
        wanted = acknowledged + 3 + 5 * round_
        killing = None
        try:
            for number in itertools.count(acknowledged + 1):
                if number == wanted:
                    killing = asyncio.create_task(asyncio.to_thread(site.end, signal.SIGKILL))
                was = await connector.swap("name", [body(number)])
                assert int.from_bytes(was[:8], "big") == number - 1
                acknowledged = number
        except (ConnectorLostError, ConnectorUnavailableError):
            pass
        assert killing is not None
        await killing
        await asyncio.to_thread(site.start)
        found = bytes(await connector.get("name"))
        assert found == body(int.from_bytes(found[:8], "big"))
        assert int.from_bytes(found[:8], "big") in (acknowledged, number)
        acknowledged = int.from_bytes(found[:8], "big")
        assert len(site.files) == 1
    await connector.evict("name")
    await asyncio.to_thread(site.end, signal.SIGKILL)
    await asyncio.to_thread(site.start)
    assert await connector.get("name") is None
    await connector.aclose()


@pytest.mark.parametrize("where", ["near", "far"])
async def test_a_caller_that_dies_in_the_middle(sites, where):
    """Of a swap of which not all has come nothing is done, and its room is free again."""
    near, far = sites
    site = near if where == "near" else far
    connector = EndpointConnector(site.id)
    await connector.swap("name", [b"old"])
    used = site.status()["memory"]["used"]
    head = f"POST {path_of('name').replace('v1/objects', 'v2/swap')} HTTP/1.1\r\nHost: endpoint\r\n"
    head += f"Endpoint: {site.id}\r\nContent-Length: {5 * MB}\r\n\r\n"
    _, writer = await asyncio.open_unix_connection(near.socket_path)
    writer.write(head.encode() + bytes(2 * MB))
    await writer.drain()
    await until(lambda: site.status()["memory"]["used"] == used + 5 * MB)  # it has begun to come
    assert bytes(await connector.get("name")) == b"old"
    writer.transport.abort()
    await until(lambda: site.status()["memory"]["used"] == used)
    assert bytes(await connector.swap("name", [b"new"])) == b"old"
    await connector.aclose()


async def test_what_a_swap_may(pair):
    """A peer has to be allowed to read and to write, since a swap does both."""
    two = pair[1]
    connector = EndpointConnector(two.name)
    key = await connector.put([b"x"], ttl=LONG)
    for rights in ("read", "write", "read,write"):
        two.configure("--allow", f"one={rights}")
        expected = sorted(rights.split(","))
        await until(lambda: two.status()["peers"]["one"]["allow"] == expected)  # noqa: B023
        if rights == "read,write":
            assert await connector.swap("name", [b"x"]) is None
        else:
            with pytest.raises(NotAllowedError):
                await connector.swap("name", [b"x"])
        if rights == "read":
            with pytest.raises(NotAllowedError):
                await connector.extend([key], LONG)
        else:
            assert await connector.extend([key], LONG) == [True]
    await connector.aclose()


async def test_a_key_that_is_to_come_is_not_swapped(site):
    """Whoever waits for it waits for its object; when that has come, it can be replaced."""
    connector = EndpointConnector()
    key = await connector.new_key()
    for frames in ([b"x"], None):
        with pytest.raises(KeyExistsError):
            await connector.swap(key, frames)
    with pytest.raises(ConnectorError, match="at least one byte"):
        await connector.swap(key, [b""])
    await connector.set(key, [b"one"])
    assert bytes(await connector.swap(key, [b"two"])) == b"one"
    await connector.aclose()


async def test_chosen_keys_that_went_are_forgotten(sites):
    """A connector that puts under ever new keys does not keep those that others evicted."""
    connector, other = EndpointConnector("far"), EndpointConnector("far")
    await connector.put([b"x"], key="survivor")
    for begin in range(0, 1000, 100):
        keys = [f"key {number}" for number in range(begin, begin + 100)]
        for number, key in enumerate(keys):
            if number % 2:
                await connector.swap(key, [b"x"])
            else:
                await connector.put([b"x"], key=key)
        assert all(await other.evict_batch(keys))
    assert len(connector._chosen) < 600
    await connector.aclose(clear=True)
    assert not await other.exists("survivor")
    await other.aclose()


@pytest.mark.allow_blocking  # the name of a file that is of no use is removed at once
@pytest.mark.parametrize("persist", [True, False])
@pytest.mark.parametrize("size", [100, 3 * MB])
async def test_a_swap_that_is_cancelled(tmp_path, size, persist):
    """Wherever, the one object or the other is there, also after a restart, and all its room."""
    limits = Limits(memory=2 * MB, disk=100 * MB, persist=persist)
    nth, reached = 1, True
    while reached:
        storage = Storage(str(tmp_path), limits, lambda key: None)
        await storage.open()

        async def swap(byte, storage=storage):
            with await storage.begin("key", size) as upload:
                await upload.write(bytes([byte]) * size)
                return await storage.swap("key", upload, LONG)

        await swap(1)
        reached = await cancelled_at(swap(2), nth)
        await until(lambda storage=storage: not storage._tasks)

        async def content(storage):
            _, reading = await storage.read(storage.find("key"))
            found = b"".join([bytes(piece) async for piece in reading.pieces(0, size)])
            await reading.close()
            return found

        found = await content(storage)
        assert found in [bytes([one]) * size for one in ((1, 2) if reached else (2,))]
        room = storage.room
        entry = storage.find("key")
        assert room.memory_used == (size if entry.memory is not None else 0)
        assert room.disk_used == (size if entry.path is not None else 0)
        assert len(os.listdir(tmp_path)) == (entry.path is not None)
        assert len(storage.leases) == 1
        again = Storage(str(tmp_path), limits, lambda key: None)
        await again.open()
        if persist:
            assert await content(again) == found
            assert 0 < again.find("key").lease.deadline - leases.now() <= LONG
        await again.evict(["key"])
        assert os.listdir(tmp_path) == []
        storage.leases.close()
        await again.close()
        nth += 1
