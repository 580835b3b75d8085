"""The Redis connector: objects are strings of one server, under a namespace, write-once."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, ClassVar, TypeVar

from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.per_loop import PerLoop
from proxyplane._ttl import milliseconds
from proxyplane.abc import Buffer, Frames, FreshKey
from proxyplane.connectors._keys import ChosenKeys, KeyMaker
from proxyplane.connectors.redis.client import Client
from proxyplane.connectors.redis.cluster import ClusterClient
from proxyplane.connectors.redis.later import comes_later, for_later
from proxyplane.connectors.redis.link import load_tls_context
from proxyplane.connectors.redis.parts import in_parts
from proxyplane.connectors.redis.shortcut import Shortcut
from proxyplane.connectors.redis.transfer import Body, groups
from proxyplane.connectors.redis.url import DEFAULT_URL, SCHEMES, parse_url
from proxyplane.connectors.redis.waiting import lost_error
from proxyplane.exceptions import (
    ConnectorClosedError,
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    KeyExistsError,
    ProxyPlaneError,
)

T = TypeVar("T")

_CLEAN_UP_SECONDS = 5.0


class RedisConnector(Shortcut):
    """Keeps objects in a Redis or Valkey server (4.0 or newer), each under one key.

    Objects above 512 MiB, the most that a server takes as one string, are kept in parts beside it.

    Or in a cluster of servers: each object is whole at one node, a batch goes to all nodes at the
    same time, and slots may move meanwhile. Then what is said here of a server holds for each node.

    A lease is the time to live of a key. Futures need Redis 6.0 or newer.

    The server's user needs the commands GETRANGE, STRLEN, SET, EXISTS, UNLINK, WATCH, MULTI, EXEC
    and DISCARD on ``<namespace>:*``, SCAN for ``aclose(clear=True)``, PEXPIRE and PERSIST to extend
    leases, and INFO if the connector is to know the server's memory limit. For objects in parts it
    also needs PEXPIRE, PERSIST and PTTL, and the keys ``{<namespace>:*`` (the parts). For futures
    it also needs RENAMENX, PUBLISH, SUBSCRIBE and UNSUBSCRIBE, the same keys (their records), and
    the channels ``<namespace>:*``. In a cluster it also needs CLUSTER|SLOTS and ASKING.

    Connections, for each event loop that uses it, made when they are needed: one for all small
    operations together, up to `max_connections` for large objects and for batches, each with one
    at a time, and one while somebody waits, however many wait. For blocking calls of small objects
    up to eight more per process.

    Lost connections: reading is tried a second time on a new one, and so is storing under a key
    that the connector made itself, which cannot be taken by anyone else. Evicting, and storing
    under a key of yours, may have happened already: they raise `ConnectorLostError`. Whoever waits
    for an object goes on waiting while the server is down.

    Args:
        url: ``redis://[user@]host[:port][/db]``, ``rediss://`` for TLS, or ``unix:///path``, with
            the arguments below as options of the query. Never with a password. For a cluster
            ``redis+cluster://[user@]host[:port],host[:port]…`` or ``rediss+cluster://``, with at
            least one of its nodes.
        username: ACL user; the server's ``default`` user if left out.
        password_env: Name of the environment variable that holds the password, read whenever a
            connection is made.
        password_file: Path of a file that holds it, instead.
        password_from: Name of a function that returns it, instead; each process registers it with
            `proxyplane.config.register_secret`.
        db: Number of the database.
        namespace: Every key begins with it and a colon.
        max_connections: Connections per event loop for large objects and for batches; callers wait
            while all are in use.
        connect_timeout: Seconds for making a connection.
        timeout: Seconds without progress after which a connection counts as lost; a link that is
            slow makes progress.
        wire: Who reads what arrives: ``direct`` (the default), straight into the memory of the
            object, or ``redis-py``, its client: slower, with more memory, and a stalled loop for
            large objects; in case you distrust the former.
        ssl_ca_certs: PEM file of the authorities to trust; by default the system's.
        ssl_certfile: PEM file with a client certificate.
        ssl_keyfile: PEM file with its key.
        ssl_check_hostname: Whether the server's certificate must name the host.

    Arguments left out are what the URL says, or else the defaults of `RedisOptions`.

    Raises:
        ConfigError: The URL or an argument is wrong, or the URL holds a password.
    """

    scheme: ClassVar[str] = "redis"
    takes_keys: ClassVar[bool] = True
    takes_ttl: ClassVar[bool] = True
    schemes: ClassVar[tuple[str, ...]] = SCHEMES

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        username: str | None = None,
        password_env: str | None = None,
        password_file: str | None = None,
        password_from: str | None = None,
        db: int | None = None,
        namespace: str | None = None,
        max_connections: int | None = None,
        connect_timeout: float | None = None,
        timeout: float | None = None,
        wire: str | None = None,
        ssl_ca_certs: str | None = None,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        ssl_check_hostname: bool | None = None,
    ) -> None:
        self._options = parse_url(
            url,
            username=username,
            password_env=password_env,
            password_file=password_file,
            password_from=password_from,
            db=db,
            namespace=namespace,
            max_connections=max_connections,
            connect_timeout=connect_timeout,
            timeout=timeout,
            wire=wire,
            ssl_ca_certs=ssl_ca_certs,
            ssl_certfile=ssl_certfile,
            ssl_keyfile=ssl_keyfile,
            ssl_check_hostname=ssl_check_hostname,
        )
        self._url = self._options.url
        self._tls: ssl.SSLContext | None = None
        self._closed = self._to_clear = False
        self._keys = KeyMaker()
        self._clients: PerLoop[Client | ClusterClient] = PerLoop(self._make, _close)
        self._begin_shortcut()
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        """Starts as one that has put nothing; clients and keys see to themselves."""
        # What was put before the fork belongs to the parent.
        self._made_keys = False
        self._chosen: ChosenKeys[bool] = ChosenKeys()

    @classmethod
    def from_url(cls, url: str) -> RedisConnector:
        """Makes the connector that `url` describes; see the class for its form."""
        return cls(url)

    @property
    def url(self) -> str:
        """The canonical URL, with everything but defaults and secrets."""
        return self._url

    def __repr__(self) -> str:
        return f"RedisConnector({self._url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_url, (self._url,)

    async def put(self, frames: Frames, *, key: str | None = None, ttl: float | None = None) -> str:
        """Stores one object; see `Connector.put`.

        Args:
            frames: The bytes of the object.
            key: A key of your choice; by default a new unique one.
            ttl: Seconds until the object is gone, by the server's clock; by default it stays.

        Raises:
            ConnectorLostError: For a key of yours: the connection broke, and the object may or may
                not be stored. `exists` tells.
            ObjectTooLargeError: It is larger than all the memory that the server may use
                (maxmemory). Nothing was sent.
        """
        with Body(frames, ttl) as body:
            if key is not None and type(key) is not FreshKey:
                await self._forget_gone()
                if not await (await self._client()).store(self._name(key), body):
                    raise self._taken(key)
                self._chosen.note(key, True)
                return key
            key = self._new_key(key)
            name = self._name(key)
            # On the second try "it is there already" means that the first one arrived.
            await self._twice(lambda client: client.store(name, body, mine=True))
            return key

    def get(self, key: str, *, size: int | None = None) -> Coroutine[Any, Any, bytearray | None]:
        """Reads one object into a private buffer; see `Connector.get`.

        Raises:
            ObjectLostError: It vanished while it was being read.
        """
        name = self._name(key)
        # Not one coroutine around another: they are a good part of what a small get takes.
        return self._twice(lambda client: client.read(name, size))

    async def _read_more(self, name: bytes) -> bytearray | None:
        return await self._twice(lambda client: client.read_more(name))

    async def exists(self, key: str) -> bool:
        """Whether the key holds an object now."""
        name = self._name(key)

        return await self._twice(lambda client: client.exists(name))

    async def evict(self, key: str) -> bool:
        """Removes an object and returns whether it was there; see `Connector.evict`.

        Whoever waits for the object of a key gets `ObjectLostError`.

        Raises:
            ConnectorLostError: The connection broke, and the object may or may not be there.
        """
        (there,) = await self.evict_batch([key])
        return there

    async def swap(
        self, key: str, frames: Frames | None, *, ttl: float | None = None
    ) -> bytes | None:
        """Replaces what a key holds, and returns its beginning; see `SupportsNames.swap`.

        Raises:
            ConnectorLostError: The connection broke, and it may or may not be done.
            ObjectTooLargeError: As for `put`.
        """
        name = self._name(key)
        client = await self._client()
        if frames is None:
            was = await client.swap(name, None)
            self._chosen.forget([key])
            return was
        with Body(frames, ttl) as body:
            chosen = not self._keys.is_mine(key)
            if chosen:
                await self._forget_gone()
                self._chosen.note(key, True)  # before: it may be done although the call fails
            was = await client.swap(name, body)
            if chosen:
                self._chosen.note(key, True)  # somebody may have looked in between
            return was

    def make_key(self, size: int, tags: Collection[str] = ()) -> FreshKey:
        """A key for one object that is put next; see `Connector.make_key`."""
        return FreshKey(self._keys.new())

    async def put_batch(
        self,
        batch: Sequence[Frames],
        *,
        keys: Sequence[str] | None = None,
        ttl: float | None = None,
    ) -> list[str]:
        """Stores many objects, all or none, and returns their keys in order.

        They go in transactions of up to 64 MiB, each in two round trips. When a later one fails,
        what the earlier ones stored is evicted again.
        """
        with contextlib.ExitStack() as stack:
            bodies = [stack.enter_context(Body(frames, ttl)) for frames in batch]
            made = [None] * len(bodies) if keys is None else keys
            named = [(self._new_key(key), body) for key, body in zip(made, bodies, strict=True)]
            begun: list[str] = []
            try:
                for group in groups(named, in_parts):
                    begun += [key for key, _ in group]
                    await self._put_group([(self._name(key), body) for key, body in group])
            except BaseException:
                await self._take_back(begun)
                raise
            return begun

    async def _put_group(self, group: Sequence[tuple[bytes, Body]]) -> None:
        if len(group) == 1:
            ((name, body),) = group
            await self._twice(lambda client: client.store(name, body, mine=True))
        else:
            await self._twice(lambda client: client.store_together(group))

    async def _take_back(self, keys: Sequence[str]) -> None:
        """Evicts what a failed batch stored, as well as the server allows."""

        async def clean_up() -> None:
            with contextlib.suppress(ProxyPlaneError, TimeoutError):
                async with asyncio.timeout(_CLEAN_UP_SECONDS):
                    await self.evict_batch(keys)

        # Shielded: the usual reason to be here is that the caller was cancelled.
        await asyncio.shield(_keep(asyncio.ensure_future(clean_up())))

    async def get_batch(
        self, keys: Sequence[str], *, sizes: Sequence[int | None] | None = None
    ) -> list[Buffer | None]:
        """Reads many objects in order; None for a key that holds nothing.

        Objects up to 1 MiB come in one pipeline; larger ones follow one after another.
        """
        hints = [None] * len(keys) if sizes is None else list(sizes)
        names = [self._name(key) for key in keys]
        return await self._twice(lambda client: client.read_many(names, hints))

    async def evict_batch(self, keys: Sequence[str]) -> list[bool]:
        """Evicts many objects in one pipeline and tells for each key whether it was there.

        Raises:
            ConnectorLostError: The connection broke; some may have been evicted.
        """
        names = [(self._name(key), comes_later(key)) for key in keys]
        there = await (await self._client()).evict(names)
        self._chosen.forget(keys)
        return there

    async def extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        """Gives objects a new lease, in two pipelines; see `Connector.extend`."""
        lease = None if ttl is None else milliseconds(ttl)
        names = [(self._name(key), comes_later(key)) for key in keys]
        return await self._twice(lambda client: client.extend(names, lease))

    async def new_key(self, *, ttl: float | None = None) -> str:
        """Registers a key whose object will come later, and returns it.

        Args:
            ttl: Seconds that the registration has, and its object after it; by default it stays.
        """
        key = for_later(self._new_key())
        name, lease = self._name(key), None if ttl is None else milliseconds(ttl)
        await self._twice(lambda client: client.register(name, lease))
        return key

    async def set(self, key: str, frames: Frames) -> None:
        """Stores the object of a key made by `new_key` and wakes everyone who waits for it.

        Raises:
            KeyExistsError: It was set before; of two at once exactly one succeeds.
            ObjectLostError: The server does not know the key (any more).
            ConnectorLostError: The connection broke, and it may or may not be set.
            ObjectTooLargeError: As for `put`.
        """
        with Body(frames) as body:
            name = self._name(key)
            try:
                result = await (await self._client()).store_registered(name, body)
            except ConnectorLostError as lost:
                # Once more does no harm; but then, if there is nothing to set any more, nobody
                # knows whether it was this call that did it.
                if isinstance(lost.__cause__, TimeoutError):
                    raise
                try:
                    result = await (await self._client()).store_registered(name, body)
                except ConnectorUnavailableError as exc:
                    raise lost from exc
                if result != "set":
                    raise
            if result == "taken":
                raise self._taken(key)
            if result == "gone":
                raise lost_error(key, self._options)

    async def wait(self, key: str, timeout: float | None = None) -> None:
        """Returns when `key` holds an object; see `DeferrableConnector.wait`.

        While the server is down it goes on trying to reach it. When it was restarted, the object
        is found if the server has kept it.

        Raises:
            TimeoutError: The object did not come in time; its cause is why the server could not
                be reached, if it could not.
            ObjectLostError: The server does not know the key (any more).
            ConnectorUnavailableError: The server refuses, for example the login.
        """
        client = await self._client()
        await client.waiters.wait(self._name(key), timeout)

    async def aclose(self, *, clear: bool = False) -> None:
        """Closes the connections of every event loop; operations and waits under way fail.

        Args:
            clear: Also evict what this instance put, in this process: the keys it made, those of
                futures too, are found by a scan of the database, those of yours by name. A key of
                yours that others evicted and put again meanwhile is evicted with them.

        Raises:
            ConnectorError: Clearing failed; the connections are closed all the same, and the next
                call tries it again.
        """
        if self._closed and not self._to_clear:
            return
        self._to_clear |= clear
        self._closed = False  # what is cleared goes through a connection
        try:
            if self._to_clear:
                await self._clear()
                self._to_clear = False
        finally:
            self._closed = True
            self._end_shortcut()
            await self._clients.aclose()

    async def _clear(self) -> None:
        chosen = [key for key, _ in self._chosen.items()]
        if chosen:
            await self.evict_batch(chosen)
        if self._made_keys:
            client = await self._client()
            await client.remove_made(self._options.namespace, self._keys.prefix)

    async def _forget_gone(self) -> None:
        """From time to time, forgets chosen keys that others evicted, or whose leases ended."""
        oldest = self._chosen.to_look_at()
        if not oldest:
            return
        ask = [("EXISTS", self._name(note.key)) for note in oldest]
        with contextlib.suppress(ConnectorError):  # they are kept, then; a put does not fail of it
            there = await (await self._client()).count(ask)
            for note, held in zip(oldest, there, strict=True):
                if not held:
                    self._chosen.forget_gone(note)

    def _name(self, key: str) -> bytes:
        return f"{self._options.namespace}:{key}".encode("utf-8", "surrogatepass")

    def _new_key(self, made: str | None = None) -> str:
        """A key under which nothing stands: a new one, or one from a `make_key`."""
        if made is not None and not self._keys.is_mine(made):
            self._chosen.note(str(made), True)  # made by another: found again by no prefix
            return str(made)
        self._made_keys = True
        return self._keys.new() if made is None else str(made)

    def _make(self) -> Client | ClusterClient:
        made = ClusterClient if self._options.cluster else Client
        return made(self._options, self._tls)

    async def _client(self) -> Client | ClusterClient:
        if self._options.tls and self._tls is None:
            self._check_open()
            self._tls = await load_tls_context(self._options)
        return await self._clients.get(self._check_open)

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectorClosedError(f"the connector of {self._options.where} was closed")

    async def _twice(self, operation: Callable[[Client | ClusterClient], Awaitable[T]]) -> T:
        """Does what may safely be done twice, a second time if the connection is lost.

        Not after a time-out: a server that is stuck has not lost what it was sent.
        """
        try:
            client = None if self._closed else self._clients.here()
            return await operation(client or await self._client())
        except ConnectorLostError as lost:
            if isinstance(lost.__cause__, TimeoutError):
                raise
            try:
                return await operation(await self._client())
            except ConnectorUnavailableError as exc:
                raise lost from exc

    def _taken(self, key: str) -> KeyExistsError:
        return KeyExistsError(
            f"key {key!r} is taken at {self._options.where}",
            hint="keys are write-once: evict it first, or choose another",
        )


async def _close(client: Client | ClusterClient) -> None:
    await client.aclose()


# A loop holds its tasks weakly only.
_kept: set[asyncio.Future[Any]] = set()


def _keep(task: asyncio.Future[T]) -> asyncio.Future[T]:
    _kept.add(task)
    task.add_done_callback(_kept.discard)
    return task
