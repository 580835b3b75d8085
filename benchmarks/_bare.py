"""The medium itself, without a library and without a serialiser: the limit, and redis-py."""

from __future__ import annotations

import mmap
import os
import socket
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import redis.asyncio

from benchmarks._way import InLoop, Way

_WINDOW = 2 << 20
# What is smaller is read, what is larger is mapped.
_READ = 16 << 10


class RedisPy(InLoop):
    """redis-py's asyncio client, without a serialiser."""

    def open(self, place: str) -> None:
        self.client = redis.asyncio.Redis.from_url(place)

    async def putting(self, obj: Any) -> Any:
        key = uuid.uuid4().hex
        await self.client.set(key, memoryview(obj).cast("B"))
        return key

    async def getting(self, key: Any) -> Any:
        return await self.client.get(key)

    def evict(self, key: Any) -> None:
        self.run(self.client.delete(key))

    async def ending(self) -> None:
        await self.client.aclose()


class BareSockets(Way):
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
                self.socket.sendall(b"\r\n"[max(0, sent - len(head) - flat.nbytes) :])
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

    def together(self, keys: Sequence[Any]) -> list[Any]:
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


class BareFiles(Way):
    """What the medium takes: a file is written under another name and renamed, mapped or read."""

    def __init__(self, place: str) -> None:
        self.place = f"{place.removeprefix('file://')}/bare"
        os.makedirs(self.place, exist_ok=True)

    def put(self, obj: Any) -> Any:
        path = f"{self.place}/{uuid.uuid4().hex}"
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with memoryview(obj) as whole, whole.cast("B") as flat:
            written = 0
            while written < flat.nbytes:
                with flat[written:] as rest:
                    written += os.write(fd, rest)
        os.close(fd)
        os.rename(f"{path}.new", path)
        return path

    def get(self, key: Any) -> Any:
        fd = os.open(key, os.O_RDONLY)
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
            if size <= _READ:
                return os.pread(fd, size, 0)
            return mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
        finally:
            os.close(fd)

    def evict(self, key: Any) -> None:
        os.unlink(key)

    def close(self) -> None:
        pass
