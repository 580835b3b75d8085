"""What the connector does in one event loop: requests to the endpoint of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from proxyplane._runtime.io_thread import io_thread
from proxyplane._runtime.workers import run_in_worker
from proxyplane._ttl import require_ttl
from proxyplane.abc import Buffer, telling
from proxyplane.connectors.endpoint.channel import Answer, Body, Channel, NotSentError
from proxyplane.connectors.endpoint.download import Download
from proxyplane.connectors.endpoint.keys import SHORT, portions
from proxyplane.connectors.endpoint.places import Address, Place, address_of, place_for
from proxyplane.connectors.endpoint.problems import error_of
from proxyplane.connectors.endpoint.shared import POSSIBLE, map_memory
from proxyplane.connectors.endpoint.watch import Watch
from proxyplane.connectors.endpoint.wire import SLICE, Connection, ProtocolError, Tell
from proxyplane.exceptions import (
    ConfigError,
    ConnectorClosedError,
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    IOThreadError,
    NotSupportedError,
)

__all__ = [
    "ENDPOINT",
    "LEASE",
    "VERSIONS",
    "Client",
    "Lease",
    "Patience",
    "lease_of",
    "open_connection",
    "pack_batch",
]

ENDPOINT: Final = "Endpoint"
"""The header that says for which endpoint a request is."""
LEASE: Final = "Lease"
"""The header that says for how many seconds an object is to stay."""
VERSIONS: Final = ("v1", "v2")
"""Of the API: leases and swaps came with the second."""
LENGTH: Final = struct.Struct(">I")
_UNDO_SECONDS = 5.0


@dataclass(frozen=True)
class Patience:
    """How long to wait for what.

    Attributes:
        connect: Seconds for a connection to the endpoint of this machine.
        progress: Seconds without any progress after which a request counts as lost.
        connections: How many there are at most, per event loop.
    """

    connect: float = 5.0
    progress: float = 30.0
    connections: int = 32


class Lease(NamedTuple):
    """How a request says that an object has a lease.

    Attributes:
        api: How its path begins: an endpoint that keeps no leases does not know this path.
        fields: Its headers.
    """

    api: str
    fields: dict[str, str]


_NO_LEASE: Final = Lease("/v1", {})


def lease_of(ttl: float | None) -> Lease:
    """The lease of so many seconds.

    Raises:
        ValueError: See `require_ttl`.
    """
    return _NO_LEASE if ttl is None else Lease("/v2", {LEASE: repr(require_ttl(ttl))})


async def open_connection(address: Address, patience: Patience) -> Connection:
    """Makes a connection to the API of an endpoint.

    Raises:
        OSError: It cannot be made.
    """
    loop = asyncio.get_running_loop()

    def make() -> Connection:
        return Connection(patience.progress)

    async with asyncio.timeout(patience.connect):
        if address.socket:
            _, connection = await loop.create_unix_connection(make, address.socket)
        else:
            _, connection = await loop.create_connection(make, "127.0.0.1", address.port)
    return connection


class Client:
    """The way of one event loop to one endpoint, through that of this machine.

    Args:
        endpoint: The id of the endpoint of the connector's URL.
        patience: How long to wait for what.
        place: The endpoint of this machine; by default the one for the other.
    """

    def __init__(self, endpoint: str, patience: Patience, place: Place | None = None) -> None:
        self._endpoint = endpoint
        self._patience = patience
        self._place = place
        self._may_map = POSSIBLE
        self._channel = Channel(self._connect, limit=patience.connections)
        self.watch = Watch(self._channel)

    async def _connect(self) -> Connection:
        # Looked up each time: where it listens may have changed while it was down.
        if self._place is None:
            try:
                self._place = await run_in_worker(place_for, self._endpoint)
            except ConfigError as error:
                raise ConnectorUnavailableError(str(error.args[0]), hint=error.hint) from error
        address = await run_in_worker(address_of, self._place)
        self._channel.set_fields(
            {"Authorization": f"Bearer {address.token}"} if address.token else {}
        )
        return await open_connection(address, self._patience)

    @contextlib.asynccontextmanager
    async def ask(
        self,
        method: str,
        path: str,
        endpoint: str,
        *,
        fields: Mapping[str, str] | None = None,
        size: int = 0,
        body: Body = (),
        missing: bool = False,
    ) -> AsyncIterator[Answer]:
        """Sends a request for an endpoint and gives the answer.

        Args:
            method: Of HTTP.
            path: From the slash on, quoted.
            endpoint: For whom it is.
            fields: More headers.
            size: Bytes of the body.
            body: Its pieces.
            missing: Whether "there is no such object" is an answer and no error.

        Raises:
            ConnectorError: What the endpoint said, or that it could not be asked.
        """
        asked = {ENDPOINT: endpoint, **(fields or {})}
        with self._errors():
            async with self._channel.exchange(
                method, path, fields=asked, size=size, body=body, tell=_telling(size)
            ) as answer:
                if answer.status >= 400 and not (missing and answer.status == 404):
                    text = b"" if method == "HEAD" else await answer.text()
                    if path.startswith("/v2/") and answer.fields.get("problem") == "no-route":
                        raise self._too_old(endpoint)
                    raise error_of(answer.fields, text) or ConnectorError(
                        f"{self._where} answered {answer.status} to {method}"
                    )
                yield answer

    def _too_old(self, endpoint: str) -> NotSupportedError:
        local = self._place is not None and self._place.id.startswith(endpoint)
        more = "" if local else f", or its peer {endpoint[:SHORT]}...,"
        return NotSupportedError(
            f"{self._where}{more} is of an older version, which keeps no leases and replaces "
            "nothing; nothing has happened",
            hint="update proxyplane there, and start the endpoint again",
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except NotSentError as error:
            if self._channel.closed:
                raise ConnectorClosedError("the connector was closed") from None
            raise ConnectorUnavailableError(
                f"{self._where} cannot be reached: {error}",
                hint=f"proxyplane endpoint start {self._name}",
            ) from error
        except (ProtocolError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConnectorError(f"{self._where} does not speak as an endpoint: {error}") from error
        except TimeoutError as error:
            raise ConnectorLostError(
                f"{self._where} made no progress for {self._patience.progress:g} s; the operation "
                "may or may not have happened",
                hint="raise timeout= if it may be busy for longer",
            ) from error
        except (OSError, EOFError) as error:
            if self._channel.closed:
                raise ConnectorClosedError("the connector was closed") from None
            raise ConnectorLostError(
                f"the connection to {self._where} was lost; the operation may or may not have "
                "happened"
            ) from error

    async def call(
        self,
        path: str,
        endpoint: str,
        what: Mapping[str, Any],
        fields: Mapping[str, str] | None = None,
    ) -> Any:
        """Sends JSON and returns the JSON of the answer."""
        body = json.dumps(what).encode()
        async with self.ask(
            "POST", path, endpoint, fields=fields, size=len(body), body=[memoryview(body)]
        ) as answer:
            text = await answer.text()
            return json.loads(text) if text else None

    async def get(self, key: str, endpoint: str) -> Buffer | None:
        """Reads one object; a large one of this machine's endpoint is mapped."""
        found = await self._get(key, endpoint, mapped=self._may_map)
        if isinstance(found, str):
            found = await run_in_worker(map_memory, found)
            if found is None:  # it was evicted, or cannot be mapped from here
                found = await self._get(key, endpoint, mapped=False)
                self._may_map = found is None
        assert not isinstance(found, str)
        return found

    async def _get(self, key: str, endpoint: str, *, mapped: bool) -> Buffer | str | None:
        """An object, or where it can be mapped."""
        return await Download(self.ask, key, endpoint, mapped=mapped).run()

    async def get_many(self, keys: Sequence[str], endpoint: str) -> list[Buffer | None]:
        """Reads many objects in one request."""
        body = json.dumps({"keys": keys}).encode()
        async with self.ask(
            "POST", "/v1/read", endpoint, size=len(body), body=[memoryview(body)]
        ) as answer:
            connection = answer.connection
            (length,) = LENGTH.unpack(await connection.read(LENGTH.size))
            sizes = json.loads(bytes(await connection.read(length)))
            return [None if size is None else await connection.read(size) for size in sizes]

    async def undo(self, keys: Sequence[str], endpoint: str) -> None:
        """Evicts what a cancelled caller may have stored under keys that nobody knows.

        For that caller, who waits for it some seconds at most. It happens on the library's loop:
        the caller may be cancelled again, his loop may end, and the connector may be closed.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def done(outcome: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_end, ended)

        try:
            io_thread().spawn(self._undo(list(keys), endpoint), done)
        except IOThreadError:
            return  # the interpreter is exiting
        await ended

    async def _undo(self, keys: list[str], endpoint: str) -> None:
        loop = asyncio.get_running_loop()
        under_way = _undoing.setdefault(loop, {})
        which = self._endpoint, self._patience
        ended: asyncio.Future[None] = loop.create_future()
        left = under_way.get(which)
        if left is not None:  # of a thousand who are cancelled together, few requests are made
            left.append((keys, endpoint, ended))
            await ended
            return
        left = under_way[which] = [(keys, endpoint, ended)]
        client = Client(self._endpoint, self._patience, self._place)
        try:
            while left:
                at = left[0][1]
                now = [one for one in left if one[1] == at]
                left[:] = [one for one in left if one[1] != at]
                try:
                    await _forbid(client, [key for some, _, _ in now for key in some], at)
                finally:
                    for _, _, one in now:
                        _end(one)
        finally:
            del under_way[which]
            for _, _, one in left:  # this was cancelled, or failed: nobody is to wait on
                _end(one)
            await client.aclose()

    async def aclose(self) -> None:
        """Ends every wait, and closes the connections."""
        try:
            await self.watch.aclose(ConnectorClosedError("the connector was closed"))
        finally:
            await self._channel.aclose()

    @property
    def _name(self) -> str:
        return "NAME" if self._place is None else self._place.name

    @property
    def _where(self) -> str:
        return f"the endpoint {self._name!r} of this machine"


def _telling(size: int) -> Tell:
    """Whom to tell how far a transfer of so many bytes is, if it is one of some length."""
    return telling(size) if size > SLICE else None


_undoing: WeakKeyDictionary[
    asyncio.AbstractEventLoop,
    dict[tuple[str, Patience], list[tuple[list[str], str, asyncio.Future[None]]]],
] = WeakKeyDictionary()


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _forbid(client: Client, keys: list[str], endpoint: str) -> None:
    for _ in range(2):
        try:
            async with asyncio.timeout(_UNDO_SECONDS):
                # The request may still be on its way: the keys are never to be used.
                for numbers in portions(keys, range(len(keys))):
                    some = [keys[number] for number in numbers]
                    await client.call("/v1/evict", endpoint, {"keys": some, "forbid": True})
            return
        except (ConnectorError, TimeoutError):
            return
        except asyncio.CancelledError:
            pass  # the process ends, and leaves time for one more try


def pack_batch(keys: Sequence[str], sizes: Sequence[int]) -> bytes:
    """What precedes the bodies of a batch: how long it is, and as JSON the keys and their sizes."""
    head = json.dumps({"keys": list(keys), "sizes": list(sizes)}).encode()
    return LENGTH.pack(len(head)) + head
