"""Objects as files in one directory, for the processes of one host or of a shared file system."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from proxyplane._runtime.workers import run_in_worker
from proxyplane._ttl import require_ttl
from proxyplane.abc import Buffer, DeferrableConnector, Frames, FreshKey, Swept
from proxyplane.connectors._inline import (
    INLINE_BYTES,
    Claim,
    WouldStallError,
    put_in_worker,
    swap_in_worker,
    total,
    views,
)
from proxyplane.connectors.file.calls import FileCalls, go_on
from proxyplane.exceptions import ConfigError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

__all__ = ["FileConnector"]

# A put of a small object takes some 10 us, so this many stall a loop for less than a millisecond.
INLINE_OBJECTS = 64
# The kernel gives the pages of a file back in 3 ms for 100 MB.
INLINE_EVICT_BYTES = 32 << 20


class FileConnector(FileCalls, DeferrableConnector):
    """Keeps each object in a file of its own, in one directory.

    An object appears whole or not at all, also when its writer is killed. What is published
    survives its process, and a crash of it. It does not survive a loss of power, because nothing is
    flushed to the disk: these are objects in transit, not an archive.

    A get maps a large object into memory instead of reading it: the buffer is writable and private,
    and the file never changes. It stays valid when the object is evicted.

    Files can be read by this user, and by the group if the directory can.

    Args:
        directory: Where to keep the objects; created, with mode 0700, if it does not exist. By
            default ``PROXYPLANE_DIR``, or a directory of this user on a disk with room (see
            ``docs/decisions``). Whoever can write to it can run code in those who read objects
            from it, so one that everyone can write to is refused.

    Raises:
        ConfigError: The directory is none, or not safe.
        ConnectorUnavailableError: It cannot be created or looked at.
    """

    scheme: ClassVar[str] = "file"
    takes_keys: ClassVar[bool] = True
    takes_ttl: ClassVar[bool] = True
    reads_at_once: ClassVar[bool] = True

    def __init__(self, directory: str | Path | None = None) -> None:
        self._open_sync(None if directory is None else os.fspath(directory), make=True)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Makes the connector that `url` describes.

        The directory is created by the first put, not by this: a reader on the wrong host learns
        that the directory is not there.

        Args:
            url: ``file:///absolute/path``, percent-encoded.

        Raises:
            ConfigError: The URL does not describe a directory, or it is not safe.
            ConnectorUnavailableError: The directory cannot be looked at.
        """
        rest = url.removeprefix(f"{cls.scheme}://")
        host, slash, path = rest.partition("/")
        for mark, part in (("?", "query"), ("#", "fragment")):
            if mark in rest:
                raise ConfigError(
                    f"the {part} {rest[rest.index(mark) :]!r} in {url!r} has no meaning",
                    hint="write file:///path, with %3F for ? and %23 for # in a name",
                )
        if rest == url or not slash or host not in {"", "localhost"}:
            raise ConfigError(
                f"{url!r} is not of the form file:///absolute/path"
                + (f": {host!r} is another host" if slash and host and rest != url else ""),
                hint="a file connector reaches the file systems of its own host only",
            )
        connector = cls.__new__(cls)
        connector._open_sync("/" + os.fsdecode(unquote_to_bytes(path)), make=False)
        return connector

    @property
    def url(self) -> str:
        """``file://`` and the absolute path of the directory, percent-encoded."""
        return f"{self.scheme}://{quote_from_bytes(os.fsencode(self._directory.path))}"

    async def put(self, frames: Frames, *, key: str | None = None, ttl: float | None = None) -> str:
        """Publishes an object and returns its key.

        A cancelled put leaves nothing behind, or the whole object under a key of your choice.

        Args:
            frames: The bytes of the object; together at least one byte.
            key: A key of your choice; by default a new unique one.
            ttl: Seconds until the object is gone, by the time of day; by default it stays.

        Raises:
            KeyExistsError: `key` is taken; what it holds is unchanged.
            StoreFullError: The file system, or this user's share of it, is full.
            ObjectTooLargeError: No file may be that large.
            ConnectorUnavailableError: The directory cannot be written to.
            ConnectorClosedError: This connector was closed.
        """
        bodies = views(frames)
        if total(bodies) <= INLINE_BYTES and not self._directory.remote:
            with contextlib.suppress(WouldStallError):
                return self._put_sync(bodies, key, ttl, go_on, wait=False)
        return await put_in_worker(
            lambda claim: self._put_sync(bodies, key, ttl, claim.check),
            self._evict_sync if key is None or type(key) is FreshKey else _keep,
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
        """Publishes many objects, all of them or none, and returns their keys in order.

        Args:
            batch: The objects.
            keys: Their keys, each from `make_key`.
            ttl: As for `put`.
        """
        objects = [views(frames) for frames in batch]
        made = [None] * len(objects) if keys is None else keys

        def put_all(claim: Claim[list[str]]) -> list[str]:
            keys: list[str] = []
            try:
                for bodies, key in zip(objects, made, strict=True):
                    keys.append(self._put_sync(bodies, key, ttl, claim.check))
            except BaseException:
                undo(keys)
                raise
            return keys

        def undo(keys: list[str]) -> None:
            for key in keys:
                self._evict_sync(key)

        if self._brief(len(batch)) and sum(map(total, objects)) <= INLINE_BYTES:
            return put_all(Claim())
        return await put_in_worker(put_all, undo)

    async def get(self, key: str, *, size: int | None = None) -> Buffer | None:
        """Reads an object.

        Args:
            key: The key that `put` returned.
            size: Not used: the file tells.

        Returns:
            A private, writable buffer: a view of a map from 64 KiB on; a bytearray below, or when
            the process has nearly as many maps as the system allows. None when the key holds
            nothing.

        Raises:
            ConnectorUnavailableError: There is no such directory here, or it cannot be read.
            ConnectorLostError: The file system failed.
            ConnectorClosedError: This connector was closed.
        """
        if not self._directory.remote:
            with contextlib.suppress(WouldStallError):
                return self._get_sync(key, INLINE_BYTES)
        return await run_in_worker(self._get_sync, key, None)

    async def get_batch(
        self, keys: Sequence[str], *, sizes: Sequence[int | None] | None = None
    ) -> list[Buffer | None]:
        """Reads many objects, in the order of the keys; None for a key that holds nothing."""
        if self._brief(len(keys)):
            return [await self.get(key) for key in keys]
        return await run_in_worker(lambda: [self._get_sync(key, None) for key in keys])

    async def exists(self, key: str) -> bool:
        """Whether the key holds an object now; raises what `get` raises."""
        if self._directory.remote:
            return await run_in_worker(self.exists_sync, key)
        return self.exists_sync(key)

    async def evict(self, key: str) -> bool:
        """Removes an object and returns whether it was there; raises what `get` raises.

        Buffers that were read before stay valid, and keep the space on the disk. Of a key made by
        `new_key` the registration goes as well, and who waits for it gets an ObjectLostError.
        """
        if not self._directory.remote:
            found = self._stat_sync(key)
            if found is None or found.st_size <= INLINE_EVICT_BYTES:
                with contextlib.suppress(WouldStallError):
                    return self._evict_sync(key, wait=False)
        return await run_in_worker(self.evict_sync, key)

    async def evict_batch(self, keys: Sequence[str]) -> list[bool]:
        """Evicts many objects and tells for each key whether it was there."""
        if self._brief(len(keys)):
            return [await self.evict(key) for key in keys]
        return await run_in_worker(lambda: [self.evict_sync(key) for key in keys])

    async def extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        """Gives objects a new lease; see `Connector.extend`.

        Raises:
            ConnectorUnavailableError: The directory cannot be written to, or an object in it
                belongs to another user.
            ConnectorClosedError: This connector was closed.
        """
        if ttl is not None:
            require_ttl(ttl)
        keys = list(keys)
        if self._brief(len(keys)):
            with contextlib.suppress(WouldStallError):
                return self._extend_sync(keys, ttl, wait=False)
        return await run_in_worker(self._extend_sync, keys, ttl)

    async def sweep(self) -> Swept:
        """Removes everything whose lease has ended, and what dead writers left unpublished.

        Every open connector does that in the background too, from time to time.

        Raises:
            ConnectorUnavailableError: There is no such directory here, or it cannot be written to.
            ConnectorClosedError: This connector was closed.
        """
        return await run_in_worker(self._sweep_sync)

    async def swap(
        self, key: str, frames: Frames | None, *, ttl: float | None = None
    ) -> Buffer | None:
        """Replaces the file of a key, and returns its beginning; see `SupportsNames.swap`.

        A swap of a process that is killed is done whole, or not.

        Raises:
            As `put`, but for KeyExistsError.
        """
        bodies = None if frames is None else views(frames)
        small = bodies is None or total(bodies) <= INLINE_BYTES
        if small and not self._directory.remote:
            with contextlib.suppress(WouldStallError):
                return self._swap_sync(bodies, key, ttl, go_on, wait=False)
        return await swap_in_worker(lambda claim: self._swap_sync(bodies, key, ttl, claim.check))

    async def new_key(self, *, ttl: float | None = None) -> str:
        """Registers a key whose object will come later, and returns it.

        The registration is an empty file, which stays until the key is set or evicted.

        Args:
            ttl: Seconds that the registration has, and its object after it; by default it stays.

        Raises:
            StoreFullError: The file system, or this user's share of it, is full.
            ConnectorUnavailableError: The directory cannot be written to.
            ConnectorClosedError: This connector was closed.
        """
        if self._directory.remote:
            return await run_in_worker(self._new_key_sync, ttl)
        return self._new_key_sync(ttl)

    async def set(self, key: str, frames: Frames) -> None:
        """Publishes the object of a key made by `new_key` and wakes everyone who waits for it.

        A cancelled set has published the whole object or nothing.

        Raises:
            KeyExistsError: It was set before.
            ObjectLostError: The key is not registered here: it was evicted, or the directory is
                gone or another one.
            StoreFullError: The file system, or this user's share of it, is full.
            ObjectTooLargeError: No file may be that large.
            ConnectorUnavailableError: The directory cannot be written to.
            ConnectorClosedError: This connector was closed.
        """
        bodies = views(frames)
        if total(bodies) <= INLINE_BYTES and not self._directory.remote:
            with contextlib.suppress(WouldStallError):
                return self._set_sync(bodies, key, go_on, wait=False)

        def set_it(claim: Claim[None]) -> None:
            self._set_sync(bodies, key, claim.check)

        return await put_in_worker(set_it, _keep)

    async def wait(self, key: str, timeout: float | None = None) -> None:
        """Returns when `key` holds an object.

        The kernel wakes who waits, except on network file systems and where its limits of inotify
        are reached: there the directory is looked through, after a millisecond at first and after
        a second at last.

        Args:
            key: A key made by `new_key`.
            timeout: Seconds to wait at most; by default for as long as the key is registered.

        Raises:
            TimeoutError: The object did not come in time.
            ObjectLostError: The key holds no object and is not registered: it was evicted, or the
                directory is gone or another one.
            ConnectorUnavailableError: The directory cannot be looked at.
            ConnectorClosedError: This connector was closed, also while waiting.
        """
        await self._waiting.wait(key, timeout)

    async def aclose(self, *, clear: bool = False) -> None:
        """Ends the use of this instance. Nothing is held open, and what was published stays.

        Args:
            clear: Also evict what was put or registered through this instance, in this process.
                The directory stays, since others may be about to use it.

        Raises:
            ConnectorUnavailableError: The directory cannot be read or written.
        """
        if not self._closed:
            self._closed = self._leases.idle = True
            self._to_clear = clear
            self._waiting.end()
        if self._to_clear:  # also when an earlier call was cancelled before it came to this
            await run_in_worker(self._clear)
            self._to_clear = False

    def _brief(self, count: int) -> bool:
        return count <= INLINE_OBJECTS and not self._directory.remote


def _keep(_: object) -> None:
    pass
