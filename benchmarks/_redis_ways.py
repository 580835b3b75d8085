"""The ways to keep objects in a Redis server, ours among them; see `benchmarks.bulk`."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import redis.asyncio
import uvloop

from benchmarks.harness import has_reference, reference_store
from proxyplane import Store, sync

BARE = "bare sockets"
_THREADS = 8
_WINDOW = 2 << 20


class Ours:
    """Ours, with blocking calls; `place` is the URL of a server."""

    def __init__(self, place: str) -> None:
        self.store = sync.Store(f"bulk-{uuid.uuid4().hex}", place, cache_size=0)

    def put(self, obj: Any) -> Any:
        """Puts one object."""
        return self.store.put(obj)

    def get(self, key: Any) -> Any:
        """Gets one object; as bare bytes where there is no serialiser."""
        return self.store.get(key)

    def gets(self, keys: list[Any]) -> list[Any]:
        """Gets many, one after the other."""
        return [self.get(key) for key in keys]

    def together(self, keys: list[Any]) -> list[Any]:
        """Gets many at once, as many callers would who know nothing of each other."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.get, keys))

    def evict(self, key: Any) -> None:
        """Removes one object."""
        self.store.evict(key)

    def close(self) -> None:
        """Ends what was opened."""
        self.store.close()


class Awaited(Ours):
    """Ours, awaited in a loop of its own."""

    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop

    def __init__(self, place: str) -> None:
        self.loop = type(self).new_loop()
        self.open(place)

    def open(self, place: str) -> None:
        """Gets ready."""
        self.awaited = Store(f"bulk-{uuid.uuid4().hex}", place, cache_size=0)

    def putting(self, obj: Any) -> Coroutine[Any, Any, Any]:
        """Puts one object."""
        return self.awaited.put(obj)

    def getting(self, key: Any) -> Coroutine[Any, Any, Any]:
        """Gets one object."""
        return self.awaited.get(key)

    def put(self, obj: Any) -> Any:
        return self.loop.run_until_complete(self.putting(obj))

    def get(self, key: Any) -> Any:
        return self.loop.run_until_complete(self.getting(key))

    def gets(self, keys: list[Any]) -> list[Any]:
        async def get_all() -> list[Any]:
            return [await self.getting(key) for key in keys]

        return self.loop.run_until_complete(get_all())

    def together(self, keys: list[Any]) -> list[Any]:
        async def get_all() -> list[Any]:
            return await asyncio.gather(*map(self.getting, keys))

        return self.loop.run_until_complete(get_all())

    def evict(self, key: Any) -> None:
        self.loop.run_until_complete(self.awaited.evict(key))

    def close(self) -> None:
        self.loop.run_until_complete(self.awaited.aclose())
        self.loop.close()


class AwaitedUvloop(Awaited):
    """The same in a loop of uvloop."""

    new_loop = uvloop.new_event_loop


class RedisPy(Awaited):
    """Plain redis-py, without a serialiser."""

    def open(self, place: str) -> None:
        self.client = redis.asyncio.Redis.from_url(place)

    def putting(self, obj: Any) -> Coroutine[Any, Any, Any]:
        async def put() -> str:
            key = uuid.uuid4().hex
            await self.client.set(key, memoryview(obj).cast("B"))
            return key

        return put()

    def getting(self, key: Any) -> Coroutine[Any, Any, Any]:
        async def get() -> Any:
            return await self.client.get(key)

        return get()

    def evict(self, key: Any) -> None:
        self.loop.run_until_complete(self.client.delete(key))

    def close(self) -> None:
        self.loop.run_until_complete(self.client.aclose())
        self.loop.close()


class RedisPyUvloop(RedisPy):
    """The same in a loop of uvloop."""

    new_loop = uvloop.new_event_loop


class Reference(Ours):
    """ProxyStore's store, which blocks; together, in threads."""

    def __init__(self, place: str) -> None:
        self.store = reference_store("bulk", place)

    def close(self) -> None:
        self.store.close(clear=False)


class Bare(Ours):
    """What the medium takes: a blocking socket, and no library.

    A large object is read in windows, two on the way, into memory that nobody filled before; many
    are asked for with one call.
    """

    def __init__(self, place: str) -> None:
        host, port = place.removeprefix("redis://").removesuffix("/0").split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(self, obj: Any) -> Any:
        name = uuid.uuid4().hex.encode()
        with memoryview(obj) as whole, whole.cast("B") as flat:
            head = b"*3\r\n$3\r\nSET\r\n$32\r\n%b\r\n$%d\r\n" % (name, flat.nbytes)
            sent = self.socket.sendmsg([head, flat, b"\r\n"])
            if sent < len(head) + flat.nbytes + 2:
                with flat[sent - len(head) :] as rest:
                    self.socket.sendall(rest)
                self.socket.sendall(b"\r\n")
            size = flat.nbytes
        assert self.socket.recv(5, socket.MSG_WAITALL) == b"+OK\r\n"
        return name, size

    def get(self, key: Any) -> Any:
        name, size = key
        starts = range(0, size, _WINDOW)
        asked = [
            b"*4\r\n$8\r\nGETRANGE\r\n$32\r\n%b\r\n$%d\r\n%d\r\n$%d\r\n%d\r\n"
            % (name, len(str(i)), i, len(str(i + _WINDOW - 1)), i + _WINDOW - 1)
            for i in starts
        ]
        body = memoryview(np.empty(size, np.uint8))
        self.socket.sendall(b"".join(asked[:2]))
        for turn, i in enumerate(starts):
            self._read(body[i : i + _WINDOW])
            if turn + 2 < len(asked):
                self.socket.sendall(asked[turn + 2])
        return body

    def together(self, keys: list[Any]) -> list[Any]:
        self.socket.sendall(
            b"".join(b"*2\r\n$3\r\nGET\r\n$32\r\n%b\r\n" % name for name, _ in keys)
        )
        return [self._read(memoryview(np.empty(size, np.uint8))) for _, size in keys]

    def _read(self, place: memoryview) -> memoryview:
        head = bytearray(b"$%d\r\n" % len(place))
        there = bytearray(len(head))
        end = bytearray(2)
        rest = [memoryview(there), place, memoryview(end)]
        while rest:
            got = self.socket.recvmsg_into(rest, 0, socket.MSG_WAITALL)[0]
            while rest and got >= len(rest[0]):
                got -= len(rest.pop(0))
            if got:
                rest[0] = rest[0][got:]
        assert there == head
        return place

    def evict(self, key: Any) -> None:
        self.socket.sendall(b"*2\r\n$6\r\nUNLINK\r\n$32\r\n%b\r\n" % key[0])
        assert self.socket.recv(4, socket.MSG_WAITALL) == b":1\r\n"

    def close(self) -> None:
        self.socket.close()


def ways() -> dict[str, type[Ours]]:
    """All ways, by the name of their rows."""
    found: dict[str, type[Ours]] = {
        "proxyplane": Ours,
        "proxyplane, awaited": Awaited,
        "proxyplane, awaited, uvloop": AwaitedUvloop,
    }
    if has_reference():
        found["ProxyStore"] = Reference
    return {**found, "redis-py": RedisPy, "redis-py, uvloop": RedisPyUvloop, BARE: Bare}
