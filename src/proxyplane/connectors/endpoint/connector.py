"""The endpoint connector: objects are held by endpoints, and each process talks to its own one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, ClassVar, TypeVar

from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.per_loop import PerLoop
from proxyplane._ttl import require_ttl
from proxyplane.abc import Buffer, DeferrableConnector, Frames, FreshKey
from proxyplane.connectors._inline import total, views
from proxyplane.connectors._keys import ChosenKeys, KeyMaker
from proxyplane.connectors._tasks import to_the_end
from proxyplane.connectors.endpoint.client import Client, Lease, lease_of, pack_batch
from proxyplane.connectors.endpoint.keys import (
    LONGEST_KEY,
    make_key,
    portions,
    quote_key,
    split_key,
)
from proxyplane.connectors.endpoint.url import parse_url, patience_of, write_url
from proxyplane.connectors.endpoint.waiting import wait_for
from proxyplane.exceptions import (
    ConfigError,
    ConnectorClosedError,
    ConnectorError,
    ConnectorLostError,
    KeyExistsError,
    ObjectTooLargeError,
    ProxyPlaneError,
)

T = TypeVar("T")

_TOGETHER = 1 << 20  # bytes of a small object, of which many are read in one request


class EndpointConnector(DeferrableConnector):
    """Keeps objects at an endpoint: a daemon of a site, on this machine or on another.

    A process talks to the endpoint of its own machine only, over a socket that nobody else can
    open; that one asks the others for what it does not have. See the guide, docs/endpoints.md.

    What is put goes to the endpoint that the URL names. A key that the connector made says where
    its object is, so it can be used with any URL; one of yours is looked for at the endpoint of the
    URL.

    Leases are kept by the endpoint that has the object. One of an older version, which keeps none
    and replaces nothing, is told by a `NotSupportedError`, and nothing has happened.

    Lost connections: reading is tried a second time, and so are extending, and storing under a key
    that the connector made itself. Evicting, setting, swapping, and storing under a key of yours,
    may have happened already: they raise `ConnectorLostError`. Whoever waits goes on waiting while
    an endpoint, or the link to it, is down.

    Args:
        endpoint: ``endpoint://ID``, the id alone, or the name of an endpoint of this machine or of
            one of its peers. Left out: that of ``$PROXYPLANE_ENDPOINT``, or the only one of this
            machine, or the one that is called ``default``.
        connect_timeout: Seconds for a connection to the endpoint of this machine.
        timeout: Seconds without progress after which a request counts as lost.
        max_connections: Connections per event loop; callers wait while all are in use.

    Raises:
        ConfigError: There is no such endpoint, or the URL is wrong.
    """

    scheme: ClassVar[str] = "endpoint"
    takes_keys: ClassVar[bool] = True
    takes_ttl: ClassVar[bool] = True
    reads_at_once: ClassVar[bool] = True

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        connect_timeout: float | None = None,
        timeout: float | None = None,
        max_connections: int | None = None,
    ) -> None:
        self.endpoint, options = parse_url(endpoint)
        given = {
            "connect_timeout": connect_timeout,
            "timeout": timeout,
            "max_connections": max_connections,
        }
        options |= {name: value for name, value in given.items() if value is not None}
        patience = patience_of(options)
        self._url = write_url(self.endpoint, patience)
        self._closed = self._to_clear = False
        self._keys = KeyMaker()
        self._clients = PerLoop(lambda: Client(self.endpoint, patience), Client.aclose)
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        """Starts as one that has put nothing; clients and keys see to themselves."""
        self._made_keys = False
        self._chosen: ChosenKeys[bool] = ChosenKeys()

    @classmethod
    def from_url(cls, url: str) -> EndpointConnector:
        """Makes the connector that ``endpoint://ID`` describes, with options in the query."""
        if not url.startswith("endpoint://"):
            raise ConfigError(f"{url!r} is not of the form endpoint://ID")
        return cls(url)

    @property
    def url(self) -> str:
        """The canonical URL."""
        return self._url

    def __repr__(self) -> str:
        return f"EndpointConnector({self._url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_url, (self._url,)

    async def put(self, frames: Frames, *, key: str | None = None, ttl: float | None = None) -> str:
        """Stores one object at the endpoint of the URL; see `Connector.put`.

        Args:
            frames: The bytes of the object.
            key: A key chosen by the caller; by default a new one.
            ttl: Seconds until it is gone; by default it stays.

        Raises:
            ConnectorLostError: For a key of yours: the link broke, and the object may or may not
                be stored. `exists` tells.
            ObjectTooLargeError: The endpoint holds no object of this size.
        """
        body = views(frames)
        size = total(body)
        lease = lease_of(ttl)
        if key is not None and not self._is_fresh(key):
            await self._forget_gone()
            await self._store(await self._client(), key, self._at(key), body, lease)
            self._chosen.note(key, True)
            return key
        key = self._new_key(size) if key is None else str(key)

        async def store(client: Client) -> None:
            try:
                await self._store(client, key, self.endpoint, body, lease)
            except asyncio.CancelledError:
                await client.undo([key], self.endpoint)
                raise

        await self._twice(store, taken_is_mine=True)
        return key

    async def _store(
        self, client: Client, key: str, endpoint: str, body: list[memoryview], lease: Lease
    ) -> None:
        path = f"{lease.api}/objects/{quote_key(_short_enough(key))}"
        async with client.ask(
            "PUT", path, endpoint, fields=lease.fields, size=total(body), body=body
        ) as answer:
            await answer.text()

    async def get(self, key: str, *, size: int | None = None) -> Buffer | None:
        """Reads one object into a private buffer; see `Connector.get`."""
        if len(key) > LONGEST_KEY:
            return None
        return await self._twice(lambda client: client.get(key, self._at(key)))

    async def exists(self, key: str) -> bool:
        """Whether the key holds an object now."""
        if len(key) > LONGEST_KEY:
            return False
        path = f"/v1/objects/{quote_key(key)}"

        async def look(client: Client) -> bool:
            async with client.ask("HEAD", path, self._at(key), missing=True) as answer:
                return answer.status == 200

        return await self._twice(look)

    async def evict(self, key: str) -> bool:
        """Removes an object and returns whether it was there; see `Connector.evict`.

        Whoever waits for the object of a key gets `ObjectLostError`.

        Raises:
            ConnectorLostError: The link broke, and the object may or may not be there.
        """
        (there,) = await self.evict_batch([key])
        return there

    def make_key(self, size: int, tags: Collection[str] = ()) -> FreshKey:
        """A key for one object that is put next; see `Connector.make_key`."""
        return FreshKey(self._new_key(size))

    def _is_fresh(self, key: str) -> bool:
        made = split_key(key) if type(key) is FreshKey else None
        return made is not None and self.endpoint.startswith(made.endpoint)

    async def put_batch(
        self,
        batch: Sequence[Frames],
        *,
        keys: Sequence[str] | None = None,
        ttl: float | None = None,
    ) -> list[str]:
        """Stores many objects, all or none, in one request; returns their keys in order.

        Args:
            batch: The objects.
            keys: Their keys, each from `make_key`.
            ttl: As for `put`.
        """
        lease = lease_of(ttl)
        bodies = [views(frames) for frames in batch]
        if not bodies:
            await self._client()
            return []
        sizes = [total(body) for body in bodies]
        keys = list(map(self._new_key, sizes) if keys is None else map(str, keys))
        head = memoryview(pack_batch(keys, sizes))
        pieces = [head, *(view for body in bodies for view in body)]

        async def store(client: Client) -> None:
            try:
                async with client.ask(
                    *("POST", f"{lease.api}/write", self.endpoint),
                    fields=lease.fields,
                    size=total(pieces),
                    body=pieces,
                ) as answer:
                    await answer.text()
            except asyncio.CancelledError:
                await client.undo(keys, self.endpoint)
                raise

        await self._twice(store, taken_is_mine=True)
        return keys

    async def get_batch(
        self, keys: Sequence[str], *, sizes: Sequence[int | None] | None = None
    ) -> list[Buffer | None]:
        """Reads many objects in order; None for a key that holds nothing.

        Small ones come together from each endpoint; large ones follow one after another.
        """
        await self._client()
        found: list[Buffer | None] = [None] * len(keys)
        together: dict[str, list[int]] = {}
        alone: list[int] = []
        for number, key in enumerate(keys):
            made = split_key(key)
            if made is not None and made.size <= _TOGETHER:
                together.setdefault(self._at(key), []).append(number)
            else:
                alone.append(number)
        for endpoint, numbers in together.items():
            for some in portions(keys, numbers):
                wanted = [keys[number] for number in some]

                async def read(
                    client: Client, wanted: list[str] = wanted, endpoint: str = endpoint
                ) -> list[Buffer | None]:
                    return await client.get_many(wanted, endpoint)

                for number, body in zip(some, await self._twice(read), strict=True):
                    found[number] = body
        for number in alone:
            found[number] = await self.get(keys[number])
        return found

    async def evict_batch(self, keys: Sequence[str]) -> list[bool]:
        """Evicts many objects, up to twenty thousand in one request to each endpoint.

        Raises:
            ConnectorLostError: The link broke; some may have been evicted.
        """
        client = await self._client()

        async def evict(endpoint: str, some: list[str]) -> Any:
            return (await client.call("/v1/evict", endpoint, {"keys": some}))["there"]

        there = await self._at_each(keys, evict)
        self._chosen.forget(keys)
        return there

    async def extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        """Gives objects a new lease, many in one request; see `Connector.extend`.

        Raises:
            NotSupportedError: An endpoint is of an older version and keeps no leases.
        """
        seconds = None if ttl is None else require_ttl(ttl)
        await self._client()

        async def extend(endpoint: str, some: list[str]) -> Any:
            what = {"keys": some, "ttl": seconds}
            told = await self._twice(lambda client: client.call("/v2/extend", endpoint, what))
            return told["held"]

        return await self._at_each(keys, extend)

    async def _at_each(
        self, keys: Sequence[str], call: Callable[[str, list[str]], Awaitable[Any]]
    ) -> list[bool]:
        """Asks each endpoint that has any of some keys, and gives what is told of each key."""
        told = [False] * len(keys)
        grouped: dict[str, list[int]] = {}
        for number, key in enumerate(keys):
            if len(key) <= LONGEST_KEY:
                grouped.setdefault(self._at(key), []).append(number)
        for endpoint, numbers in grouped.items():
            for some in portions(keys, numbers):
                answers = await call(endpoint, [keys[number] for number in some])
                for number, answer in zip(some, answers, strict=True):
                    told[number] = bool(answer)
        return told

    async def swap(
        self, key: str, frames: Frames | None, *, ttl: float | None = None
    ) -> Buffer | None:
        """Replaces what a key holds, and returns its beginning; see `SupportsNames.swap`.

        It goes on to its end when its caller is cancelled, who waits for that for some seconds.

        Raises:
            ConnectorLostError: The connection broke, and it may or may not be done.
            KeyExistsError: The key is one of `new_key`, and its object has not come yet.
            NotSupportedError: The endpoint is of an older version and replaces nothing.
            ObjectTooLargeError: As for `put`.
        """
        lease = lease_of(ttl)
        body = [] if frames is None else views(frames)
        if frames is not None and not total(body):
            raise ConnectorError("an object has at least one byte")
        path = f"/v2/swap/{quote_key(_short_enough(key))}"
        client = await self._client()

        async def replace() -> Buffer | None:
            async with client.ask(
                *("POST", path, self._at(key)),
                fields=lease.fields,
                size=total(body),
                body=body,
            ) as answer:
                was = await answer.body()
                return None if answer.status == 201 else was

        chosen = frames is not None and not self._keys.is_mine(key[:32])
        if chosen:
            await self._forget_gone()
            self._chosen.note(key, True)  # before: it may be done although the call fails
        was = await to_the_end(replace())
        if chosen:
            self._chosen.note(key, True)  # somebody may have looked in between
        elif frames is None:
            self._chosen.forget([key])
        return was

    async def _forget_gone(self) -> None:
        """From time to time, forgets chosen keys that others evicted, or whose leases ended."""
        oldest = self._chosen.to_look_at()
        if not oldest:
            return
        client = await self._client()

        async def look(endpoint: str, some: list[str]) -> Any:
            return (await client.call("/v2/exists", endpoint, {"keys": some}))["there"]

        with contextlib.suppress(ConnectorError):  # they are kept, then; a put does not fail of it
            there = await self._at_each([note.key for note in oldest], look)
            for note, held in zip(oldest, there, strict=True):
                if not held:
                    self._chosen.forget_gone(note)

    async def new_key(self, *, ttl: float | None = None) -> str:
        """Registers a key at the endpoint of the URL, whose object will come later.

        Args:
            ttl: Seconds that the registration has, and its object after it; by default it stays.
        """
        key = self._new_key(0)
        lease = lease_of(ttl)
        path = f"{lease.api}/later/{quote_key(key)}"

        async def register(client: Client) -> None:
            try:
                await client.call(path, self.endpoint, {}, lease.fields)
            except asyncio.CancelledError:
                await client.undo([key], self.endpoint)
                raise

        await self._twice(register, taken_is_mine=True)
        return key

    async def set(self, key: str, frames: Frames) -> None:
        """Stores the object of a key made by `new_key` and wakes everyone who waits for it.

        From any site: the object goes to the endpoint that registered the key.

        Raises:
            KeyExistsError: It was set before; of two at once exactly one succeeds.
            ObjectLostError: The endpoint does not know the key (any more).
            ConnectorLostError: The link broke, and it may or may not be set.
        """
        body = views(frames)
        path = f"/v1/later/{quote_key(_short_enough(key))}"
        client = await self._client()
        async with client.ask("PUT", path, self._at(key), size=total(body), body=body) as answer:
            await answer.text()

    async def wait(self, key: str, timeout: float | None = None) -> None:
        """Returns when `key` holds an object; see `DeferrableConnector.wait`.

        It goes on while the endpoint that has the key, or the link to it, is down.

        Raises:
            TimeoutError: The object did not come in time; its cause is why the endpoint of this
                machine could not be reached, if it could not.
            ObjectLostError: The endpoint does not know the key (any more).
            NotAllowedError: The endpoint does not let this site wait.
        """
        await wait_for(await self._client(), key, self._at(_short_enough(key)), timeout)

    async def aclose(self, *, clear: bool = False) -> None:
        """Closes the connections of every event loop; operations and waits under way fail.

        Args:
            clear: Also evict what this instance put, in this process: the keys it made, those of
                futures too, and those of yours by name.

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
                chosen = [key for key, _ in self._chosen.items()]
                if chosen:
                    await self.evict_batch(chosen)
                if self._made_keys:
                    client = await self._client()
                    await client.call("/v1/clear", self.endpoint, {"prefix": self._keys.prefix})
                self._to_clear = False
        finally:
            self._closed = True
            await self._clients.aclose()

    def _at(self, key: str) -> str:
        """The endpoint that has the object of a key."""
        made = split_key(key)
        if made is None or self.endpoint.startswith(made.endpoint):
            return self.endpoint
        return made.endpoint

    def _new_key(self, size: int) -> str:
        self._made_keys = True
        return make_key(self._keys.new(), size, self.endpoint)

    async def _client(self) -> Client:
        return await self._clients.get(self._check_open)

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectorClosedError(f"the connector of {self._url} was closed")

    async def _twice(
        self, operation: Callable[[Client], Awaitable[T]], *, taken_is_mine: bool = False
    ) -> T:
        """Does what may safely be done twice, a second time if the link is lost.

        Not after a time-out: what is stuck has not lost what it was sent.
        """
        try:
            return await operation(await self._client())
        except ConnectorLostError as lost:
            if isinstance(lost.__cause__, TimeoutError):
                raise
            try:
                return await operation(await self._client())
            except KeyExistsError:
                # The first try did arrive.
                if not taken_is_mine:
                    raise
                return None  # type: ignore[return-value]  # as all do that take such a key
            except ProxyPlaneError as error:
                raise lost from error


def _short_enough(key: str) -> str:
    if len(key.encode("utf-8", "surrogatepass")) > LONGEST_KEY:
        raise ObjectTooLargeError(f"a key of more than {LONGEST_KEY} bytes; no endpoint takes it")
    return key
