"""Objects as files in one directory, for the processes of one host or of a shared file system."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.workers import run_in_worker
from proxyplane.abc import Buffer, DeferrableConnector, Frames
from proxyplane.connectors._file_dir import Directory, default_directory
from proxyplane.connectors._file_io import (
    Publisher,
    WouldStallError,
    file_name,
    identity,
    read,
    sweep,
    translate,
)
from proxyplane.connectors._file_waiting import Registrations, Waiting, taken
from proxyplane.connectors._inline import INLINE_BYTES, Claim, put_in_worker, total, views
from proxyplane.connectors._keys import KeyMaker
from proxyplane.exceptions import ConfigError, ConnectorClosedError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

__all__ = ["FileConnector"]

# A put of a small object takes some 10 us, so this many stall a loop for less than a millisecond.
INLINE_OBJECTS = 64
# The kernel gives the pages of a file back in 3 ms for 100 MB.
INLINE_EVICT_BYTES = 32 << 20


class FileConnector(DeferrableConnector):
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

    def __init__(self, directory: str | Path | None = None) -> None:
        self._open_sync(None if directory is None else os.fspath(directory), make=True)

    def _open_sync(self, path: str | None, *, make: bool) -> None:
        if path is None:
            path = default_directory()
        if not path or "\0" in path or path.startswith("file:"):
            raise ConfigError(
                f"{path!r} is no path of a directory",
                hint="leave it out to use the default one; a URL goes to FileConnector.from_url",
            )
        # POSIX gives two leading slashes a meaning that no system here uses.
        self._directory = Directory("/" + os.path.abspath(path).lstrip("/"))
        self._publisher = Publisher(self._directory)
        self._registrations = Registrations(self._directory)
        self._waiting = Waiting(self._directory, self._is_set_sync)
        self._keys = KeyMaker()
        self._chosen: dict[str, tuple[int, int]] = {}
        self._swept = False
        self._wrote = False
        self._closed = False
        self._to_clear = False
        on_fork(self)
        if make:
            self._directory.make()
        else:
            self._directory.look()

    def after_fork_in_child(self) -> None:
        """What the parent wrote is the parent's to clear."""
        self._chosen = {}
        self._wrote = False

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

    @property
    def directory(self) -> str:
        """Absolute path of the directory."""
        return self._directory.path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._directory.path!r})"

    def put_sync(self, frames: Frames, *, key: str | None = None) -> str:
        """Blocking twin of `put`."""
        return self._put_sync(views(frames), key, _go_on)

    def get_sync(self, key: str, *, size: int | None = None) -> Buffer | None:
        """Blocking twin of `get`."""
        return self._get_sync(key, None)

    def exists_sync(self, key: str) -> bool:
        """Blocking twin of `exists`."""
        return self._stat_sync(key) is not None

    def evict_sync(self, key: str) -> bool:
        """Blocking twin of `evict`."""
        self._check_open()
        return self._evict_sync(key)

    async def put(self, frames: Frames, *, key: str | None = None) -> str:
        """Publishes an object and returns its key.

        A cancelled put leaves nothing behind, or the whole object under a key of your choice.

        Args:
            frames: The bytes of the object; together at least one byte.
            key: A key of your choice; by default a new unique one.

        Raises:
            KeyExistsError: `key` is taken; what it holds is unchanged.
            StoreFullError: The file system, or this user's share of it, is full.
            ObjectTooLargeError: No file may be that large.
            ConnectorUnavailableError: The directory cannot be written to.
            ConnectorClosedError: This connector was closed.
        """
        bodies = views(frames)
        if total(bodies) <= INLINE_BYTES and not self._directory.remote:
            return self._put_sync(bodies, key, _go_on)
        return await put_in_worker(
            lambda claim: self._put_sync(bodies, key, claim.check),
            self._evict_sync if key is None else _keep,
        )

    async def put_batch(self, batch: Sequence[Frames]) -> list[str]:
        """Publishes many objects, all of them or none, and returns their keys in order."""
        objects = [views(frames) for frames in batch]

        def put_all(claim: Claim[list[str]]) -> list[str]:
            keys: list[str] = []
            try:
                for bodies in objects:
                    keys.append(self._put_sync(bodies, None, claim.check))
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
            the process is short of descriptors or maps. None when the key holds nothing.

        Raises:
            ConnectorUnavailableError: There is no such directory here, or it cannot be read.
            ConnectorLostError: The file system failed.
            ConnectorClosedError: This connector was closed.
        """
        if not self._directory.remote:
            try:
                return self._get_sync(key, INLINE_BYTES)
            except WouldStallError:
                pass
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
                return self.evict_sync(key)
        return await run_in_worker(self.evict_sync, key)

    async def evict_batch(self, keys: Sequence[str]) -> list[bool]:
        """Evicts many objects and tells for each key whether it was there."""
        if self._brief(len(keys)):
            return [await self.evict(key) for key in keys]
        return await run_in_worker(lambda: [self.evict_sync(key) for key in keys])

    async def new_key(self) -> str:
        """Registers a key whose object will come later, and returns it.

        The registration is an empty file, which stays until the key is set or evicted.

        Raises:
            StoreFullError: The file system, or this user's share of it, is full.
            ConnectorUnavailableError: The directory cannot be written to.
            ConnectorClosedError: This connector was closed.
        """
        if self._directory.remote:
            return await run_in_worker(self._new_key_sync)
        return self._new_key_sync()

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
            self._set_sync(bodies, key, _go_on)
        else:

            def set_it(claim: Claim[None]) -> None:
                self._set_sync(bodies, key, claim.check)

            await put_in_worker(set_it, _keep)

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
            self._closed = True
            self._to_clear = clear
            self._waiting.end()
        if self._to_clear:  # also when an earlier call was cancelled before it came to this
            await run_in_worker(self._clear)
            self._to_clear = False

    def _clear(self) -> None:
        try:
            for key, wrote in list(self._chosen.items()):
                path = self._path(key)
                try:
                    # Someone may have evicted it and put their own under the same key since.
                    if identity(os.lstat(path)) == wrote:
                        os.unlink(path)
                except FileNotFoundError:
                    pass
            if self._wrote:
                self._registrations.clear(self._keys.is_mine)
                self._clear_mine()
        except OSError as exc:
            raise translate(exc, self._directory) from exc
        self._chosen.clear()

    def _clear_mine(self) -> None:
        try:
            with os.scandir(self._directory.path) as entries:
                mine = [entry.path for entry in entries if self._keys.is_mine(entry.name)]
        except FileNotFoundError:
            return
        for path in mine:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    def _put_sync(
        self, bodies: list[memoryview], key: str | None, check: Callable[[], None]
    ) -> str:
        self._check_open()
        if not self._swept:
            self._swept = True
            sweep(self._directory)
        name = self._keys.new() if key is None else key
        while True:
            try:
                wrote = self._publisher.publish(
                    file_name(name), bodies, unique=key is None, check=check
                )
                if key is not None:
                    # A put under a key that was registered is as good as its set.
                    self._registrations.remove(key)
            except FileExistsError as exc:
                raise taken(name, self._directory) from exc
            except OSError as exc:
                if exc.errno == errno.ENOENT and not os.path.isdir(self._directory.path):
                    # Not made yet, or removed by hand; an error if that is impossible.
                    self._directory.make()
                    continue
                raise translate(exc, self._directory, total(bodies)) from exc
            if key is None:
                self._wrote = True
            else:
                self._chosen[key] = wrote
            return name

    def _new_key_sync(self) -> str:
        self._check_open()
        key = self._keys.new()
        try:
            self._registrations.make(key)
        except OSError as exc:
            raise translate(exc, self._directory) from exc
        self._wrote = True
        return key

    def _set_sync(self, bodies: list[memoryview], key: str, check: Callable[[], None]) -> None:
        self._check_open()

        def check_again() -> None:
            check()
            self._registrations.refuse_set(key)

        try:
            self._registrations.refuse_set(key)
            wrote = self._publisher.publish(file_name(key), bodies, unique=False, check=check_again)
            if not self._keys.is_mine(key):
                self._chosen[key] = wrote
            self._registrations.settle(key, wrote)
        except FileExistsError as exc:
            raise taken(key, self._directory) from exc
        except OSError as exc:
            raise translate(exc, self._directory, total(bodies)) from exc

    def _is_set_sync(self, key: str) -> bool:
        self._check_open()
        try:
            return self._registrations.is_set(key)
        except OSError as exc:
            raise translate(exc, self._directory) from exc

    def _get_sync(self, key: str, limit: int | None) -> Buffer | None:
        self._check_open()
        try:
            return read(self._path(key), limit)
        except FileNotFoundError:
            self._missing()
            return None
        except OSError as exc:
            raise translate(exc, self._directory) from exc

    def _evict_sync(self, key: str) -> bool:
        # Also undoes a put whose caller was cancelled, and closed the connector since.
        try:
            self._registrations.remove(key)  # first: from here on no set can succeed
            os.unlink(self._path(key))
        except FileNotFoundError:
            self._chosen.pop(key, None)
            return self._missing()
        except OSError as exc:
            raise translate(exc, self._directory) from exc
        self._chosen.pop(key, None)
        return True

    def _stat_sync(self, key: str) -> os.stat_result | None:
        self._check_open()
        try:
            return os.lstat(self._path(key))
        except FileNotFoundError:
            self._missing()
            return None
        except OSError as exc:
            raise translate(exc, self._directory) from exc

    def _path(self, key: str) -> str:
        return f"{self._directory.path}/{file_name(key)}"

    def _missing(self) -> bool:
        """False for a key that holds nothing; an error if it could not hold anything."""
        if not os.path.isdir(self._directory.path):
            raise self._directory.gone()
        return False

    def _brief(self, count: int) -> bool:
        return count <= INLINE_OBJECTS and not self._directory.remote

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectorClosedError(
                f"{self!r} was closed", hint="make a new FileConnector, or close it later"
            )


def _go_on() -> None:
    pass


def _keep(_: object) -> None:
    pass
