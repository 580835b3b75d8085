"""Objects in the memory of one process."""

from __future__ import annotations

import mmap
import os
import secrets
import socket
import weakref
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from proxyplane._ttl import require_ttl
from proxyplane.abc import DeferrableConnector, Frames, FreshKey
from proxyplane.connectors._inline import (
    INLINE_BYTES,
    Claim,
    put_in_worker,
    swap_in_worker,
    total,
    views,
)
from proxyplane.connectors._keys import KeyMaker
from proxyplane.connectors._waiters import deadline
from proxyplane.connectors.local.medium import Entry, Lease, Medium, Pending
from proxyplane.exceptions import (
    ConfigError,
    ConnectorClosedError,
    KeyExistsError,
    ObjectLostError,
    WrongProcessError,
)

if TYPE_CHECKING:
    from typing import Self

__all__ = ["LocalConnector"]

# From here on a body gets its own map with huge pages: fresh memory of 100 MB costs 10 ms instead
# of 94, and goes back to the system when the object is evicted.
MAP_BYTES = 4 << 20
# A copy holds the interpreter lock; between two of these steps (0.4 ms) other threads run.
STEP_BYTES = 4 << 20


_media: weakref.WeakValueDictionary[str, Medium] = weakref.WeakValueDictionary()


class LocalConnector(DeferrableConnector):
    """Keeps objects in the memory of this process; nothing else can reach them.

    For one process with several loops or threads, and for tests. A connector made from the `url`
    in the same process shares the objects. In any other process, a forked child included, it can
    be made, but every operation raises `WrongProcessError`.

    Leases are counted by the monotonic clock, which no change of the time of day touches.

    The objects live until the last connector on them, in this process, is closed or collected.
    After that the operations of a connector made from the `url` raise `ObjectLostError`.

    A get returns a read-only view of the one copy that put made, shared by all readers.
    """

    scheme: ClassVar[str] = "local"
    takes_keys: ClassVar[bool] = True
    takes_ttl: ClassVar[bool] = True
    reads_at_once: ClassVar[bool] = True

    def __init__(self) -> None:
        token = secrets.token_hex(8)
        medium = _media[token] = Medium(token)
        self._setup(socket.gethostname(), os.getpid(), token, medium)

    def _setup(self, host: str, pid: int, token: str, medium: Medium | None) -> None:
        self._host, self._pid, self._token = host, pid, token
        self._medium = medium
        self._here = host == socket.gethostname()
        self._keys = KeyMaker()
        self._writer = object()
        self._closed = False

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Makes the connector that `url` describes; in its own process it shares the objects.

        Args:
            url: ``local://<host>/<pid>/<token>``, as `url` gives it.

        Raises:
            ConfigError: The URL does not describe a local connector.
        """
        head, _, rest = url.partition("://")
        parts = rest.split("/")
        if head != cls.scheme or len(parts) != 3 or not all(parts):
            raise ConfigError(
                f"{url!r} is not of the form local://<host>/<pid>/<token>",
                hint="make a LocalConnector() and take its .url",
            )
        host, pid, token = parts
        if not (pid.isascii() and pid.isdigit()):
            raise ConfigError(f"{pid!r} in {url!r} is not a process id")
        connector = cls.__new__(cls)
        here = host == socket.gethostname() and int(pid) == os.getpid()
        connector._setup(host, int(pid), token, _media.get(token) if here else None)
        return connector

    @property
    def url(self) -> str:
        """``local://<host>/<pid>/<token>``: names the process that holds the objects."""
        return f"{self.scheme}://{self._host}/{self._pid}/{self._token}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def put_sync(self, frames: Frames, *, key: str | None = None, ttl: float | None = None) -> str:
        """Blocking twin of `put`."""
        return self._put(views(frames), key, _required(ttl), None)

    def get_sync(self, key: str, *, size: int | None = None) -> memoryview | None:
        """Blocking twin of `get`."""
        entry = self._open_medium().find(key)
        return None if entry is None else entry.body

    def exists_sync(self, key: str) -> bool:
        """Blocking twin of `exists`."""
        return self._open_medium().find(key) is not None

    def evict_sync(self, key: str) -> bool:
        """Blocking twin of `evict`."""
        return self._open_medium().evict(key)

    def swap_sync(
        self, key: str, frames: Frames | None, *, ttl: float | None = None
    ) -> memoryview | None:
        """Blocking twin of `swap`."""
        return self._swap(None if frames is None else views(frames), key, _required(ttl), None)

    async def put(self, frames: Frames, *, key: str | None = None, ttl: float | None = None) -> str:
        """Stores one copy of the object and returns its key.

        A cancelled put leaves nothing behind.

        Args:
            frames: The bytes of the object.
            key: A key of your choice; by default a new unique one.
            ttl: Seconds that it has; by default it stays.

        Raises:
            KeyExistsError: `key` is taken.
            WrongProcessError: The memory is that of another process.
            ObjectLostError: The memory was freed.
            ConnectorClosedError: This connector was closed.
        """
        bodies = views(frames)
        ttl = _required(ttl)
        if total(bodies) <= INLINE_BYTES:
            return self._put(bodies, key, ttl, None)
        entries = self._open_medium().entries
        return await put_in_worker(
            lambda claim: self._put(bodies, key, ttl, claim), lambda name: entries.pop(name, None)
        )

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
        """Stores many objects, all of them or none, and returns their keys in order.

        Args:
            batch: The objects.
            keys: Their keys, each from `make_key`.
            ttl: As for `put`.
        """
        objects = [views(frames) for frames in batch]
        made = keys
        ttl = _required(ttl)
        medium = self._open_medium()
        entries = medium.entries

        def put_all(claim: Claim[list[str]]) -> list[str]:
            # Copied first, published last: nothing can fail in between.
            copies = [_copy(bodies) for bodies in objects]
            claim.check()
            keys = [self._keys.new() for _ in copies] if made is None else list(map(str, made))
            entries.update(
                (key, Entry(self._writer, copy, _lease(ttl)))
                for key, copy in zip(keys, copies, strict=True)
            )
            if ttl is not None:
                for key in keys:
                    medium.note(key)
            return keys

        if sum(map(total, objects)) <= INLINE_BYTES:
            return put_all(Claim())
        return await put_in_worker(put_all, lambda keys: [entries.pop(key, None) for key in keys])

    async def get(self, key: str, *, size: int | None = None) -> memoryview | None:
        """Returns a read-only view of the object, or None when the key holds nothing.

        Args:
            key: The key that `put` returned.
            size: Not used.

        Raises:
            WrongProcessError: The memory is that of another process.
            ObjectLostError: The memory was freed.
            ConnectorClosedError: This connector was closed.
        """
        return self.get_sync(key)

    async def exists(self, key: str) -> bool:
        """Whether the key holds an object now; raises what `get` raises."""
        return self.exists_sync(key)

    async def evict(self, key: str) -> bool:
        """Removes an object and returns whether it was there; raises what `get` raises.

        Views that were handed out stay valid. Of a key made by `new_key` the registration goes as
        well, and who waits for it gets an ObjectLostError.
        """
        return self.evict_sync(key)

    async def swap(
        self, key: str, frames: Frames | None, *, ttl: float | None = None
    ) -> memoryview | None:
        """Replaces what a key holds, and returns it; see `SupportsNames.swap`.

        Raises:
            WrongProcessError: The memory is that of another process.
            ObjectLostError: The memory was freed.
            ConnectorClosedError: This connector was closed.
        """
        bodies = None if frames is None else views(frames)
        ttl = _required(ttl)
        if bodies is None or total(bodies) <= INLINE_BYTES:
            return self._swap(bodies, key, ttl, None)
        return await swap_in_worker(lambda claim: self._swap(bodies, key, ttl, claim))

    async def new_key(self, *, ttl: float | None = None) -> str:
        """Registers a key whose object will come later, and returns it.

        Args:
            ttl: Seconds that the registration has, and its object after it; by default it stays.

        Raises:
            WrongProcessError: The memory is that of another process.
            ObjectLostError: The memory was freed.
            ConnectorClosedError: This connector was closed.
        """
        medium = self._open_medium()
        key = self._keys.new()
        medium.register(key, self._writer, _required(ttl))
        return key

    async def extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        """Gives objects a new lease; see `Connector.extend`. Raises what `get` raises."""
        medium = self._open_medium()
        ttl = _required(ttl)
        return [medium.extend(key, ttl) for key in keys]

    async def set(self, key: str, frames: Frames) -> None:
        """Stores the object of a key made by `new_key` and wakes everyone who waits for it.

        A cancelled set has stored the whole object or nothing.

        Raises:
            KeyExistsError: It was set before.
            ObjectLostError: The key is not registered: it was evicted, or the memory freed.
            WrongProcessError: The memory is that of another process.
            ConnectorClosedError: This connector was closed.
        """
        bodies = views(frames)
        if total(bodies) <= INLINE_BYTES:
            self._set(bodies, key, Claim())
        else:
            self._refuse_set(key)  # before the hop
            await put_in_worker(lambda claim: self._set(bodies, key, claim), lambda _: None)

    async def wait(self, key: str, timeout: float | None = None) -> None:
        """Returns when `key` holds an object.

        Args:
            key: A key made by `new_key`.
            timeout: Seconds to wait at most; by default without end.

        Raises:
            TimeoutError: The object did not come in time.
            ObjectLostError: The key was evicted, or was never registered, or the memory was freed.
            WrongProcessError: The memory is that of another process.
            ConnectorClosedError: This connector was closed, also while waiting.
        """
        medium = self._open_medium()
        async with deadline(key, timeout):
            waiter = medium.waiters.join(key, self)
            try:
                while not self._is_set(key):
                    await waiter.sleep()
            finally:
                waiter.leave()

    async def aclose(self, *, clear: bool = False) -> None:
        """Lets go of the memory, which is freed when no other open connector refers to it.

        Args:
            clear: Also evict what was put through this instance, which only matters when another
                connector shares the objects.
        """
        medium, self._medium, self._closed = self._medium, None, True
        if medium is None or self._pid != os.getpid():
            return
        medium.waiters.wake_owned(self)
        if clear:
            for key, entry in list(medium.entries.items()):
                # Someone may have evicted it and put their own under the same key since.
                if entry.writer is self._writer:
                    medium.entries.pop(key, None)
            for key, pending in list(medium.pending.items()):
                if pending.writer is self._writer:
                    medium.settle(key)

    def _put(
        self,
        bodies: list[memoryview],
        key: str | None,
        ttl: float | None,
        claim: Claim[str] | None,
    ) -> str:
        medium = self._open_medium()
        if key is not None and medium.find(key) is not None:
            raise _taken(key)  # before the copy
        body = _copy(bodies)
        if claim is not None:
            claim.check()
        name = self._keys.new() if key is None else str(key)
        if not medium.add(name, Entry(self._writer, body, _lease(ttl))):
            raise _taken(name)
        if key is not None:
            medium.settle(key)  # a put under a key that was registered is as good as its set
        return name

    def _swap(
        self,
        bodies: list[memoryview] | None,
        key: str,
        ttl: float | None,
        claim: Claim[Any] | None,
    ) -> memoryview | None:
        medium = self._open_medium()
        body = None if bodies is None else _copy(bodies)
        if claim is not None:
            claim.check()
        entry = None if body is None else Entry(self._writer, body, _lease(ttl))
        was = medium.swap(key, entry)
        medium.settle(key)
        return None if was is None else was.body

    def _set(self, bodies: list[memoryview], key: str, claim: Claim[None]) -> None:
        medium = self._open_medium()
        self._refuse_set(key)  # before the copy
        body = _copy(bodies)
        claim.check()
        pending = self._refuse_set(key)
        entry = Entry(self._writer, body, pending.lease)
        if not medium.add(key, entry):
            raise _taken(key)
        # Exactly one set ends the registration. It can be gone only if the key was evicted since
        # the check. If that took this object, then it was after this set, else before.
        if not medium.settle(key) and medium.entries.get(key) is entry:
            medium.entries.pop(key, None)
            raise _lost(key)

    def _refuse_set(self, key: str) -> Pending:
        medium = self._open_medium()
        pending = medium.registered(key)
        if pending is None:
            raise _taken(key) if medium.find(key) is not None else _lost(key)
        return pending

    def _is_set(self, key: str) -> bool:
        medium = self._open_medium()
        # In this order: a set stores the object before it ends the registration.
        pending = medium.registered(key)
        if medium.find(key) is not None:
            return True
        if pending is None:
            raise _lost(key)
        return False

    def _entries(self) -> dict[str, Entry]:
        return self._open_medium().entries

    def _open_medium(self) -> Medium:
        if self._pid != os.getpid() or not self._here:
            raise WrongProcessError(
                f"the objects of {self.url} are in the memory of process {self._pid} on host "
                f"{self._host!r}; this is process {os.getpid()} on host {socket.gethostname()!r}",
                hint="use a FileConnector or a RedisConnector to reach other processes",
            )
        if self._closed:
            raise ConnectorClosedError(
                f"{self!r} was closed", hint="make a new LocalConnector, or close it later"
            )
        if self._medium is None:
            # An earlier process may have had this process id: then its memory is gone as well.
            raise ObjectLostError(
                f"the memory behind {self.url} was freed: the last connector on it was closed "
                "or collected",
                hint="keep the store, or its connector, open for as long as its proxies are used",
            )
        return self._medium


def _required(ttl: float | None) -> float | None:
    return None if ttl is None else require_ttl(ttl)


def _lease(ttl: float | None) -> Lease | None:
    return None if ttl is None else Lease(ttl)


def _lost(key: str) -> ObjectLostError:
    return ObjectLostError(
        f"the key {key!r} holds no object and is not registered to get one: it was evicted, its "
        "lease ended, or new_key() did not make it",
        hint="keep a future's key until all who wait for it have their object",
    )


def _taken(key: str) -> KeyExistsError:
    return KeyExistsError(
        f"the key {key!r} is taken, and keys are write-once",
        hint="choose another key, or evict it first",
    )


def _copy(bodies: list[memoryview]) -> memoryview:
    """One private copy of all bodies, each byte copied once into memory allocated once."""
    size = total(bodies)
    if size < MAP_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return memoryview(b"".join(bodies))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel built without huge pages
    with memoryview(memory) as whole:
        start = 0
        for body in bodies:
            for offset in range(0, body.nbytes, STEP_BYTES):
                piece = body[offset : offset + STEP_BYTES]
                whole[start : start + piece.nbytes] = piece
                start += piece.nbytes
    return memoryview(memory).toreadonly()
