"""The ways to wake a consumer in another process, ours among them; see `benchmarks.wakeup`."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import redis.asyncio
from asyncinotify import Inotify, Mask

from benchmarks.harness import reference_store
from proxyplane import Store

BODY = b"x" * 1024
CHANNEL = "benchmark"


class Variant:
    """One way to wake; `place` is a URL of a server or a path.

    The producer calls `begin` and `fire`, the consumer `prepare` and `wait`.
    """

    def __init__(self, place: str) -> None:
        self.place = place

    async def begin(self) -> Any:
        """What the consumer has to know; may be pickled."""

    async def fire(self) -> None:
        """Sets the result."""

    async def prepare(self, token: Any) -> None:
        """Gets ready to wait."""

    async def wait(self) -> None:
        """Returns when the value is in hand."""

    async def close(self) -> None:
        """Ends what was opened, on either side."""


class Ours(Variant):
    """A `ProxyFuture`."""

    store: Store | None = None

    async def begin(self) -> Any:
        if self.store is None:
            self.store = Store("wakeup", self.place, cache_size=0)
        self.future: Any = await self.store.future()
        return self.future

    async def fire(self) -> None:
        await self.future.aset_result(BODY)

    async def prepare(self, token: Any) -> None:
        self.future = token

    async def wait(self) -> None:
        assert await self.future == BODY

    async def close(self) -> None:
        if self.store is not None:
            await self.store.aclose()


class RawPubSub(Variant):
    """PUBLISH and SUBSCRIBE over bare asyncio streams; the message is the value."""

    reader: asyncio.StreamReader | None = None
    channel = CHANNEL

    async def _connect(self) -> None:
        host, port = self.place.removeprefix("redis://").removesuffix("/0").split(":")
        self.reader, self.writer = await asyncio.open_connection(host, int(port))

    async def begin(self) -> Any:
        if self.reader is None:
            await self._connect()

    async def fire(self) -> None:
        self.writer.write(_command(b"PUBLISH", self.channel.encode(), BODY))
        assert self.reader is not None
        await self.reader.readline()

    async def prepare(self, token: Any) -> None:
        if self.reader is None:
            await self._connect()
            assert self.reader is not None
            self.writer.write(_command(b"SUBSCRIBE", self.channel.encode()))
            await self._read_message(self.reader)

    async def wait(self) -> None:
        assert self.reader is not None
        await self._read_message(self.reader)

    async def close(self) -> None:
        if self.reader is not None:
            self.writer.close()

    async def _read_message(self, reader: asyncio.StreamReader) -> None:
        await reader.readline()
        for _ in range(3):
            head = await reader.readline()
            if head[:1] == b"$":
                await reader.readexactly(int(head[1:]) + 2)


class RedisPyPubSub(Variant):
    """The same by redis-py."""

    client: redis.asyncio.Redis | None = None
    pubsub: Any = None
    channel = f"{CHANNEL}-redis-py"

    async def begin(self) -> Any:
        if self.client is None:
            self.client = redis.asyncio.Redis.from_url(self.place)
            await self.client.ping()

    async def fire(self) -> None:
        assert self.client is not None
        await self.client.publish(self.channel, BODY)

    async def prepare(self, token: Any) -> None:
        if self.client is None:
            self.client = redis.asyncio.Redis.from_url(self.place)
            self.pubsub = self.client.pubsub()
            await self.pubsub.subscribe(self.channel)
            await self.pubsub.get_message(timeout=None)

    async def wait(self) -> None:
        message = await self.pubsub.get_message(timeout=None)
        assert message["data"] == BODY

    async def close(self) -> None:
        if self.client is not None:
            if self.pubsub is not None:
                await self.pubsub.aclose()
            await self.client.aclose()


class RawSetAndGet(RawPubSub):
    """What a wake-up takes at least when the value stays in the server: SET, PUBLISH, then GET."""

    channel = f"{CHANNEL}-set"
    kept: asyncio.StreamWriter | None = None

    async def fire(self) -> None:
        self.writer.write(
            _command(b"MULTI")
            + _command(b"SET", b"value", BODY)
            + _command(b"PUBLISH", self.channel.encode(), b"set")
            + _command(b"EXEC")
        )
        assert self.reader is not None
        for _ in range(6):
            await self.reader.readline()

    async def prepare(self, token: Any) -> None:
        if self.reader is None:
            await super().prepare(token)
            self.message_reader, self.kept = self.reader, self.writer
            await self._connect()  # another one, because the first has subscribed

    async def wait(self) -> None:
        await self._read_message(self.message_reader)
        self.writer.write(_command(b"GET", b"value"))
        assert self.reader is not None
        size = int((await self.reader.readline())[1:])
        assert (await self.reader.readexactly(size + 2))[:-2] == BODY

    async def close(self) -> None:
        await super().close()
        if self.kept is not None:
            self.kept.close()


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


class RawInotify(Variant):
    """A file is renamed into a watched directory; the event is the end of it."""

    inotify: Inotify | None = None
    reads = False

    @property
    def path(self) -> str:
        return os.path.join(self.place, type(self).__name__)

    async def begin(self) -> Any:
        os.makedirs(self.path, exist_ok=True)

    async def fire(self) -> None:
        temporary = f"{self.path}.new"
        with open(temporary, "wb", buffering=0) as file:
            file.write(BODY)
        os.rename(temporary, f"{self.path}/value")

    async def prepare(self, token: Any) -> None:
        if self.inotify is None:
            self.inotify = Inotify()
            self.inotify.add_watch(self.path, Mask.MOVED_TO)

    async def wait(self) -> None:
        assert self.inotify is not None
        event = await self.inotify.get()
        if self.reads:
            with open(f"{self.path}/{event.name}", "rb", buffering=0) as file:
                assert file.read() == BODY

    async def close(self) -> None:
        if self.inotify is not None:
            self.inotify.close()


class InotifyAndRead(RawInotify):
    """The same, with the file read."""

    reads = True


class Reference(Variant):
    """ProxyStore's future, waited for in a thread that has nothing else to do."""

    interval = 1.0
    future: Any = None
    store: Any = None

    async def begin(self) -> Any:
        if self.store is None:
            self.store = reference_store(f"wakeup-{self.interval}", self.place)
        self.future = self.store.future(polling_interval=self.interval)
        return self.future

    async def fire(self) -> None:
        self.future.set_result(BODY)

    async def prepare(self, token: Any) -> None:
        self.future = token

    async def wait(self) -> None:
        assert self.future.result() == BODY

    async def close(self) -> None:
        if self.store is not None:
            self.store.close()


class FastReference(Reference):
    """The same, polling a thousand times a second."""

    interval = 0.001
