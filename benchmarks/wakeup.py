"""From the call that sets a result, in one process, to its value in the hands of another.

A consumer process waits in an event loop; the producer, in another process, sets the result some
milliseconds later. Both read the same clock. All variants take turns within a round.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from multiprocessing.connection import Connection
from typing import Any

import redis.asyncio
from asyncinotify import Inotify, Mask

from benchmarks.harness import (
    Report,
    has_reference,
    object_directory,
    peer,
    quantile,
    redis_server,
)
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


class _Ours(Variant):
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


class _RawPubSub(Variant):
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


class _RedisPyPubSub(Variant):
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


class _RawSetAndGet(_RawPubSub):
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


class _RawInotify(Variant):
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


class _InotifyAndRead(_RawInotify):
    """The same, with the file read."""

    reads = True


class _Reference(Variant):
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


class _FastReference(_Reference):
    """The same, polling a thousand times a second."""

    interval = 0.001


def reference_store(name: str, place: str) -> Any:
    """ProxyStore's store at a Redis URL or in a directory."""
    from proxystore.connectors.file import FileConnector
    from proxystore.connectors.redis import RedisConnector
    from proxystore.store import Store as ReferenceStore

    connector: Any
    if place.startswith("redis:"):
        host, port = place.removeprefix("redis://").removesuffix("/0").split(":")
        connector = RedisConnector(host, int(port))
    else:
        connector = FileConnector(place)
    name = f"{name}-{uuid.uuid4().hex}"
    return ReferenceStore(name, connector, cache_size=0, register=True)


def consume(connection: Connection, variants: list[Variant]) -> None:
    """The consumer process."""
    asyncio.run(_consume(connection, variants))


async def _consume(connection: Connection, variants: list[Variant]) -> None:
    while (order := await asyncio.to_thread(connection.recv)) is not None:
        number, token = order
        variant = variants[number]
        await variant.prepare(token)
        connection.send("ready")
        began, cpu = time.perf_counter(), time.process_time()
        await variant.wait()
        arrived = time.perf_counter()
        connection.send((arrived, (time.process_time() - cpu) / (arrived - began)))
    for variant in variants:
        await variant.close()


async def sample(
    variant: Variant, number: int, connection: Connection, pause: float
) -> tuple[float, float]:
    """Microseconds from the call to the value, and percent of a core used while waiting."""
    connection.send((number, await variant.begin()))
    connection.recv()
    await asyncio.sleep(pause)
    called = time.perf_counter()
    await variant.fire()
    arrived, cpu = connection.recv()
    return (arrived - called) * 1e6, cpu * 100


async def measure(
    report: Report, medium: str, variants: dict[str, Variant], base: str, limit: float
) -> None:
    """All variants over one medium; the first is ours."""
    quick, rounds = report.settings.quick, report.settings.rounds
    found: dict[str, list[list[float]]] = {name: [] for name in variants}
    used: dict[str, list[float]] = {name: [] for name in variants}
    listed = list(variants.values())
    with peer(consume, listed) as connection:
        for variant in listed:
            for _ in range(1 if quick else 20 if type(variant) is not _Reference else 1):
                await sample(variant, listed.index(variant), connection, 0.01)
        for _ in range(rounds):
            for name in variants:
                found[name].append([])
            for turn in range(2 if quick else 200):
                for number, (name, variant) in enumerate(variants.items()):
                    slow = type(variant) is _Reference
                    if slow and turn % 40:
                        continue  # a second each
                    pause = random.uniform(0.005, 0.015) + slow * (not quick) * random.random()
                    took, _ = await sample(variant, number, connection, pause)
                    found[name][-1].append(took)
            for number, (name, variant) in enumerate(variants.items()):
                if not isinstance(variant, (_Ours, _Reference)):
                    continue
                _, cpu = await sample(variant, number, connection, 0.05 if quick else 2.0)
                used[name].append(cpu)
    for variant in listed:
        await variant.close()
    experiment = f"wake-up over {medium}, 1 KB"
    halves = {name: [quantile(one, 0.5) for one in all_] for name, all_ in found.items()}
    for name in variants:
        ours = name == next(iter(variants))
        by = halves[base] if name != base else None
        report.add(
            experiment,
            f"{name}, p50",
            "us",
            halves[name],
            by=by,
            base=base if by else "",
            target=("<=", limit) if ours else None,
        )
        report.add(experiment, f"{name}, p99", "us", [quantile(one, 0.99) for one in found[name]])
        if used[name]:
            report.add(experiment, f"{name}, a core while waiting", "%", used[name])


def run(report: Report) -> None:
    """Runs it over Redis and over files."""
    with redis_server() as server:
        url = server.url
        variants: dict[str, Variant] = {
            "proxyplane": _Ours(url),
            "raw pub/sub": _RawPubSub(url),
            "redis-py pub/sub": _RedisPyPubSub(url),
            "raw SET and pub/sub, then GET": _RawSetAndGet(url),
        }
        if has_reference():
            variants["ProxyStore, 1 ms polling"] = _FastReference(url)
            variants["ProxyStore, as it comes"] = _Reference(url)
        asyncio.run(measure(report, "Redis", variants, "raw pub/sub", 1.75))
    media = {"files on disk": None, "files in /dev/shm": "/dev/shm"}
    for medium, parent in media.items():
        with object_directory(parent) as path:
            variants = {
                "proxyplane": _Ours(f"file://{path}/ours"),
                "raw inotify": _RawInotify(path),
                "raw inotify, and read": _InotifyAndRead(path),
            }
            os.mkdir(f"{path}/ours", 0o700)
            if has_reference():
                variants["ProxyStore, 1 ms polling"] = _FastReference(f"{path}/reference")
                variants["ProxyStore, as it comes"] = _Reference(f"{path}/reference")
            asyncio.run(measure(report, medium, variants, "raw inotify", 2.3))
