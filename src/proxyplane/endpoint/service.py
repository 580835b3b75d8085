"""What an endpoint does when it is asked, whoever asks and by whatever way.

Requests for another endpoint, from a process of this machine, go to that peer, once: what comes
from a peer is never sent on, so nothing can go in circles.

A path begins with the version from which on endpoints can do what is asked. An older one answers
that there is no such path, instead of, for example, storing for ever what was to have a lease.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from proxyplane._ttl import require_ttl
from proxyplane.connectors.endpoint.client import (
    ENDPOINT,
    LEASE,
    LENGTH,
    VERSIONS,
)
from proxyplane.connectors.endpoint.download import MEMORY
from proxyplane.connectors.endpoint.keys import LONGEST_KEY, unquote_key
from proxyplane.endpoint.counting import Counts
from proxyplane.endpoint.objects import Entry
from proxyplane.endpoint.peers import Peers
from proxyplane.endpoint.replies import BadRequestError, problem, problem_of, whole
from proxyplane.endpoint.sessions import Sessions
from proxyplane.endpoint.storage import Storage
from proxyplane.endpoint.transport import Body, Caller, Reply, Request
from proxyplane.endpoint.upload import Upload
from proxyplane.exceptions import ConnectorError, ProxyPlaneError

__all__ = ["Service"]

log = logging.getLogger("proxyplane.endpoint")

_JSON_BYTES = 16 << 20
_FIELD = ENDPOINT.lower()
_PREFIX = 16  # characters of the writer in a key; nobody can guess those of another


class Service:
    """Serves one endpoint.

    Args:
        id: Its own id.
        storage: Its objects.
        sessions: Who waits here.
        peers: The others.
        counts: What it counts.
    """

    def __init__(
        self, id: str, storage: Storage, sessions: Sessions, peers: Peers, counts: Counts
    ) -> None:
        self.id = id
        self.stopping = False
        self._storage = storage
        self._sessions = sessions
        self._peers = peers
        self._counts = counts
        self._routes: dict[
            tuple[str, str], tuple[str, Callable[[Caller, Request, str], Awaitable[Reply]]]
        ] = {
            ("GET", "objects"): ("read", self._get),
            ("HEAD", "objects"): ("read", self._get),
            ("PUT", "objects"): ("write", self._put),
            ("DELETE", "objects"): ("write", self._delete),
            ("POST", "read"): ("read", self._read),
            ("POST", "write"): ("write", self._write),
            ("POST", "evict"): ("write", self._evict),
            ("POST", "exists"): ("read", self._exists),
            ("POST", "extend"): ("write", self._extend),
            ("POST", "swap"): ("read write", self._swap),
            ("POST", "clear"): ("write", self._clear),
            ("POST", "later"): ("write", self._register),
            ("PUT", "later"): ("write", self._set),
            ("GET", "later"): ("wait", self._state),
            ("GET", "watch"): ("", self._watch),
            ("POST", "watch"): ("", self._tell),
        }

    async def handle(self, caller: Caller, request: Request) -> Reply:
        """Answers a request; whatever goes wrong is an answer, too."""
        words = request.path.split("/", 3)
        name = f"{request.method} {words[2] if len(words) > 2 else ''}"
        known = tuple(name.split(" ", 1)) in self._routes  # or anybody could make up counters
        with self._counts.serving(name if known else "other") as count:
            try:
                reply = await self._handle(caller, request, words)
            except ProxyPlaneError as error:
                reply = problem_of(error)
            except (OSError, EOFError) as error:
                log.warning("%s of %s: %s", name, caller.name, error)
                reply = problem_of(ConnectorError(f"the endpoint failed: {error}"))
            count(reply.status)
        return reply

    async def _handle(self, caller: Caller, request: Request, words: list[str]) -> Reply:
        if self.stopping:
            return problem("stopping", "the endpoint is stopping", None)
        if len(words) < 3 or words[0] or words[1] not in VERSIONS:
            return problem("no-route", "there is no such path", None)
        right, function = self._routes.get((request.method, words[2]), ("", None))
        if function is None:
            return problem("no-route", "there is no such path", None)
        wanted = request.fields.get(_FIELD, "")
        if wanted and not self.id.startswith(wanted):
            return await self._forward(caller, request, wanted)
        for one in right.split():
            if one not in caller.rights:
                return problem(
                    "not-allowed",
                    f"this endpoint does not allow {caller.name} to {one}",
                    f"proxyplane endpoint configure NAME --allow OTHER={one} at that site",
                )
        return await function(caller, request, words[3] if len(words) > 3 else "")

    async def _forward(self, caller: Caller, request: Request, wanted: str) -> Reply:
        peer = self._peers.find(wanted) if caller.local else None
        if peer is None:
            return problem(
                "unknown-endpoint",
                f"this endpoint is not {wanted[:16]}..., and does not have it as a peer",
                "proxyplane endpoint configure NAME --peer OTHER=ID@HOST:PORT",
            )
        return await self._peers.forward(peer, request)

    # -- single objects -----------------------------------------------------------------------

    async def _get(self, caller: Caller, request: Request, text: str) -> Reply:
        entry = self._storage.find(_key(text))
        if entry is None:
            return Reply(404)
        found = None
        if request.method != "HEAD" and not self._may_be_mapped(caller, request, entry):
            # Before it is said how large it is: the next moment it may be another one.
            found = await self._storage.read(entry)
            if found is None:
                return Reply(404)
            entry = found[0]
        first, end = 0, entry.size
        fields = {"Accept-Ranges": "bytes", "ETag": f'"{entry.tag}"'}
        wanted = request.fields.get("range")
        if wanted is not None and request.fields.get("if-range", fields["ETag"]) != fields["ETag"]:
            wanted = None  # of another object: all of this one
        if wanted is not None:
            part = _range_of(wanted, entry.size)
            if part is None:
                if found is not None:
                    await found[1].close()
                return Reply(416, {"Content-Range": f"bytes */{entry.size}"})
            first, end = part
            fields["Content-Range"] = f"bytes {first}-{end - 1}/{entry.size}"
        status = 200 if wanted is None else 206
        if request.method == "HEAD":
            return Reply(status, fields, end - first, b"")
        self._counts.bytes_out += end - first
        if found is None:
            assert entry.memory is not None
            return Reply(200, {MEMORY: f"{entry.memory.place} {entry.size}"})
        reading = found[1]
        return Reply(status, fields, end - first, reading.pieces(first, end), reading.close)

    def _may_be_mapped(self, caller: Caller, request: Request, entry: Entry) -> bool:
        return (
            caller.local
            and MEMORY.lower() in request.fields
            and "range" not in request.fields
            and entry.memory is not None
            and entry.memory.place != ""
        )

    async def _put(self, caller: Caller, request: Request, text: str) -> Reply:
        return await self._store(request, _key(text), later=False)

    async def _set(self, caller: Caller, request: Request, text: str) -> Reply:
        return await self._store(request, _key(text), later=True)

    async def _store(self, request: Request, key: str, *, later: bool) -> Reply:
        if not request.size:
            raise BadRequestError("an object has at least one byte")
        ttl = None if later else _ttl_of(request)
        self._storage.check_free(key, later=later)
        with await self._storage.begin(key, request.size) as upload:
            await _receive(request.body, upload)
            await self._storage.commit([upload], later=later, ttl=ttl)
        self._counts.bytes_in += request.size
        return Reply(201)

    async def _swap(self, caller: Caller, request: Request, text: str) -> Reply:
        key, ttl = _key(text), _ttl_of(request)
        if not request.size:
            was = await self._storage.swap(key, None)
        else:
            with await self._storage.begin(key, request.size) as upload:
                await _receive(request.body, upload)
                was = await self._storage.swap(key, upload, ttl)
        self._counts.bytes_in += request.size
        return Reply(201) if was is None else whole(was, "application/octet-stream")

    async def _delete(self, caller: Caller, request: Request, text: str) -> Reply:
        (there,) = await self._storage.evict([_key(text)])
        return Reply(200 if there else 404)

    # -- keys whose object comes later ----------------------------------------------------------

    async def _register(self, caller: Caller, request: Request, text: str) -> Reply:
        await self._storage.register(_key(text), _ttl_of(request))
        return Reply(201)

    async def _state(self, caller: Caller, request: Request, text: str) -> Reply:
        return whole(self._sessions.state(_key(text)).encode())

    async def _watch(self, caller: Caller, request: Request, text: str) -> Reply:
        return Reply(200, {}, None, self._sessions.open(caller))

    async def _tell(self, caller: Caller, request: Request, text: str) -> Reply:
        said = await _json(request)
        try:
            add = [(str(endpoint), str(key)) for endpoint, key in said["add"]]
            drop = [(str(endpoint), str(key)) for endpoint, key in said["drop"]]
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequestError("what is waited for is a list of pairs") from error
        if not self._sessions.change(caller, text, add, drop):
            return problem("no-route", "there is no such session", None)
        return Reply(204)

    # -- many at once ---------------------------------------------------------------------------

    async def _read(self, caller: Caller, request: Request, text: str) -> Reply:
        entries = [self._storage.find(key) for key in _keys(await _json(request))]
        said = json.dumps([None if one is None else one.size for one in entries]).encode()
        head = LENGTH.pack(len(said)) + said
        there = [one for one in entries if one is not None]
        size = sum(one.size for one in there)
        self._counts.bytes_out += size

        async def pieces() -> AsyncIterator[bytes | memoryview]:
            yield head
            for entry in there:
                reading = await entry.read()
                try:
                    async for piece in reading.pieces(0, entry.size):
                        yield piece
                finally:
                    await reading.close()

        return Reply(200, {}, len(head) + size, pieces())

    async def _write(self, caller: Caller, request: Request, text: str) -> Reply:
        ttl = _ttl_of(request)
        source = _Cutter(request.body)
        (length,) = LENGTH.unpack(await source.take(LENGTH.size))
        if length > min(_JSON_BYTES, request.size):
            raise BadRequestError("the head of the batch is too long")
        try:
            said = json.loads(await source.take(length))
            named = list(zip(_keys(said), map(int, said["sizes"]), strict=True))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadRequestError("the head of the batch cannot be read") from error
        if (
            any(size < 1 for _, size in named)
            or LENGTH.size + length + sum(size for _, size in named) != request.size
        ):
            raise BadRequestError("the sizes of the batch are not those of its objects")
        uploads: list[Upload] = []
        try:
            for key, size in named:
                self._storage.check_free(key)
                uploads.append(await self._storage.begin(key, size))
                async for piece in source.cut(size):
                    await uploads[-1].write(piece)
            await self._storage.commit(uploads, ttl=ttl)
        finally:
            for upload in uploads:
                upload.__exit__()
        self._counts.bytes_in += request.size
        return Reply(201)

    async def _evict(self, caller: Caller, request: Request, text: str) -> Reply:
        said = await _json(request)
        there = await self._storage.evict(_keys(said), forbid=said.get("forbid") is True)
        return whole(json.dumps({"there": there}).encode())

    async def _exists(self, caller: Caller, request: Request, text: str) -> Reply:
        keys = _keys(await _json(request))
        there = [self._storage.find(key) is not None for key in keys]
        return whole(json.dumps({"there": there}).encode())

    async def _extend(self, caller: Caller, request: Request, text: str) -> Reply:
        said = await _json(request)
        ttl = said.get("ttl")
        held = await self._storage.extend(_keys(said), None if ttl is None else _ttl(ttl))
        return whole(json.dumps({"held": held}).encode())

    async def _clear(self, caller: Caller, request: Request, text: str) -> Reply:
        prefix = (await _json(request)).get("prefix")
        if not isinstance(prefix, str) or (len(prefix) < _PREFIX and not caller.local):
            raise BadRequestError(f"a prefix of at least {_PREFIX} characters is needed")
        return whole(json.dumps({"evicted": await self._storage.clear(prefix)}).encode())


class _Cutter:
    """A body, cut into parts of known sizes."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._rest = memoryview(b"")

    async def cut(self, size: int) -> AsyncIterator[memoryview]:
        """The next bytes, as they come."""
        while size:
            if not self._rest:
                try:
                    self._rest = memoryview(await anext(self._body))
                except StopAsyncIteration:
                    raise BadRequestError("the body is shorter than was said") from None
            piece, self._rest = self._rest[:size], self._rest[size:]
            size -= len(piece)
            if piece:
                yield piece

    async def take(self, size: int) -> bytes:
        """The next bytes, together."""
        return b"".join([bytes(piece) async for piece in self.cut(size)])


def _key(text: str) -> str:
    try:
        return unquote_key(text)
    except ValueError as error:
        raise BadRequestError("the key is not in base 64") from error


def _ttl(said: object) -> float:
    try:
        return require_ttl(said)
    except (ValueError, TypeError) as error:
        raise BadRequestError(str(error)) from error


def _ttl_of(request: Request) -> float | None:
    """Seconds of the lease that is asked for."""
    text = request.fields.get(LEASE.lower())
    if text is None:
        return None
    try:
        return _ttl(float(text))
    except ValueError as error:
        raise BadRequestError(f"{text!r} is no number of seconds") from error


async def _receive(body: Body, upload: Upload) -> None:
    async for piece in body:
        await upload.write(piece)


def _keys(said: Any) -> list[str]:
    keys = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(keys, list) or not all(
        isinstance(key, str) and len(key) <= LONGEST_KEY for key in keys
    ):
        raise BadRequestError("keys are a list of texts")
    return keys


async def _json(request: Request) -> Any:
    if request.size > _JSON_BYTES:
        raise BadRequestError("the request is too long")
    body = b"".join([bytes(piece) async for piece in request.body])
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError("the request is not JSON") from error
    if not isinstance(said, dict):
        raise BadRequestError("the request is not an object of JSON")
    return said


def _range_of(text: str, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last; None for a range that is not there."""
    unit, _, wanted = text.partition("=")
    first, dash, last = wanted.strip().partition("-")
    numbers = all(len(one) < 19 and f"0{one}".isdecimal() for one in (first, last))
    if unit.strip() != "bytes" or not dash or not numbers or not (first or last):
        return None
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
    return (start, end) if start < end else None
