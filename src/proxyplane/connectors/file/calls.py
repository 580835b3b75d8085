"""What a file connector does, as plain calls: they block the thread that makes them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence

from proxyplane._runtime.fork import on_fork
from proxyplane._ttl import require_ttl
from proxyplane.abc import Buffer, Frames, FreshKey, Swept
from proxyplane.connectors._inline import total, views
from proxyplane.connectors._keys import ChosenKeys, KeyMaker
from proxyplane.connectors._sweeping import sweep_in_background
from proxyplane.connectors.file.directory import Directory, default_directory
from proxyplane.connectors.file.errors import translate
from proxyplane.connectors.file.leases import Leases, deadline, has_ended, same_file
from proxyplane.connectors.file.publish import Publisher, file_name, is_library_key, sweep
from proxyplane.connectors.file.read import read
from proxyplane.connectors.file.swap import Swapper
from proxyplane.connectors.file.waiting import Registrations, Waiting, taken
from proxyplane.exceptions import ConfigError, ConnectorClosedError


class FileCalls:
    """The objects of one directory, put, read and evicted by calls that may block.

    `proxyplane.FileConnector` adds what is awaited, and decides which of these calls run on the
    event loop and which on a worker thread.
    """

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
        self._leases = Leases(self._directory)
        self._publisher = Publisher(self._directory)
        self._swapper = Swapper(self._directory, self._leases)
        self._registrations = Registrations(self._directory, self._leases)
        self._waiting = Waiting(self._directory, self._is_set_sync)
        self._keys = KeyMaker()
        self._chosen: ChosenKeys[tuple[int, int]] = ChosenKeys()
        self._swept = self._begun = False
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
        self._chosen = ChosenKeys()
        self._wrote = self._begun = False

    @property
    def directory(self) -> str:
        """Absolute path of the directory."""
        return self._directory.path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._directory.path!r})"

    def put_sync(self, frames: Frames, *, key: str | None = None, ttl: float | None = None) -> str:
        """Blocking twin of `put`."""
        return self._put_sync(views(frames), key, ttl, go_on)

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

    def swap_sync(
        self, key: str, frames: Frames | None, *, ttl: float | None = None
    ) -> Buffer | None:
        """Blocking twin of `swap`."""
        return self._swap_sync(None if frames is None else views(frames), key, ttl, go_on)

    def _clear(self) -> None:
        try:
            for key, wrote in self._chosen.items():
                if self._is_there_still(key, wrote):
                    with contextlib.suppress(FileNotFoundError):
                        self._leases.unlink(self._path(key), file_name(key))
            if self._wrote:
                self._registrations.clear(self._keys.is_mine)
                self._clear_mine()
        except OSError as exc:
            raise translate(exc, self._directory) from exc
        self._chosen.clear()

    def _is_there_still(self, key: str, wrote: tuple[int, int]) -> bool:
        """Whether a key holds what was put; somebody may have evicted it, and put their own."""
        try:
            return same_file(os.lstat(self._path(key)), wrote)
        except FileNotFoundError:
            return False

    def _note(self, key: str, wrote: tuple[int, int]) -> None:
        """Keeps a key for `_clear`, and from time to time forgets some that others evicted."""
        self._chosen.note(key, wrote)
        for oldest in self._chosen.to_look_at():
            with contextlib.suppress(OSError):
                if not self._is_there_still(oldest.key, *oldest.word):
                    self._chosen.forget_gone(oldest)

    def _clear_mine(self) -> None:
        try:
            with os.scandir(self._directory.path) as entries:
                mine = [entry.name for entry in entries if self._keys.is_mine(entry.name)]
        except FileNotFoundError:
            return
        for name in mine:
            self._leases.unlink(f"{self._directory.path}/{name}", name, again=False)

    def _put_sync(
        self,
        bodies: list[memoryview],
        key: str | None,
        ttl: float | None,
        check: Callable[[], None],
        *,
        wait: bool = True,
    ) -> str:
        self._check_open()
        self._sweep()
        name = self._keys.new() if key is None else str(key)
        checking = check if ttl is None else _until(require_ttl(ttl), check)
        while True:
            try:
                if key is None or (type(key) is FreshKey and self._keys.is_mine(key)):
                    self._publisher.publish(name, bodies, unique=True, check=checking)
                    self._wrote = True
                else:
                    with self._swapper.alone(wait=wait):
                        wrote = self._publisher.publish(
                            file_name(key), bodies, unique=False, check=checking
                        )
                    self._note(key, wrote)
                    # A put under a key that was registered is as good as its set.
                    self._registrations.remove(key)
                return name
            except FileExistsError as exc:
                if self._make_way(name, wait):
                    continue
                raise taken(name, self._directory) from exc
            except OSError as exc:
                if exc.errno == errno.ENOENT and not os.path.isdir(self._directory.path):
                    # Not made yet, or removed by hand; an error if that is impossible.
                    self._directory.make()
                    continue
                raise translate(exc, self._directory, total(bodies)) from exc

    def _make_way(self, key: str, wait: bool) -> bool:
        try:
            return self._leases.make_way(self._path(key), wait=wait)
        except OSError as exc:
            raise translate(exc, self._directory) from exc

    def _swap_sync(
        self,
        bodies: list[memoryview] | None,
        key: str,
        ttl: float | None,
        check: Callable[[], None],
        *,
        wait: bool = True,
    ) -> bytes | None:
        self._check_open()
        self._sweep()
        checking = check if ttl is None else _until(require_ttl(ttl), check)
        while True:
            try:
                if bodies is None:
                    self._registrations.remove(key)
                    was = self._swapper.take(file_name(key), wait=wait)
                    self._chosen.forget([key])
                    return was if was is not None or self._missing() else None
                was, wrote = self._swapper.replace(file_name(key), bodies, checking, wait=wait)
                self._note(key, wrote)
                self._registrations.remove(key)
                return was
            except OSError as exc:
                if exc.errno == errno.ENOENT and not os.path.isdir(self._directory.path):
                    self._directory.make()
                    continue
                raise translate(exc, self._directory, total(bodies or [])) from exc

    def _sweep(self) -> None:
        if not self._swept:
            self._swept = True
            sweep(self._directory)
            self._swapper.sweep()

    def _new_key_sync(self, ttl: float | None) -> str:
        self._check_open()
        key = self._keys.new()
        try:
            self._registrations.make(key, None if ttl is None else deadline(ttl))
        except OSError as exc:
            raise translate(exc, self._directory) from exc
        self._wrote = True
        return key

    def _set_sync(
        self,
        bodies: list[memoryview],
        key: str,
        check: Callable[[], None],
        *,
        wait: bool = True,
    ) -> None:
        self._check_open()

        try:
            self._registrations.refuse_set(key)
            with self._registrations.setting(key, wait=wait) as hold:

                def check_and_hold() -> int | None:
                    check()
                    return hold()

                wrote = self._publisher.publish(
                    file_name(key), bodies, unique=False, check=check_and_hold
                )
                if not self._keys.is_mine(key):
                    self._note(key, wrote)
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

    def _evict_sync(self, key: str, *, wait: bool = True) -> bool:
        # Also undoes a put whose caller was cancelled, and closed the connector since.
        try:
            self._registrations.remove(key)  # first: from here on no set can succeed
            with self._swapper.alone(wait=wait):
                there = self._unlink(key, wait)
        except OSError as exc:
            raise translate(exc, self._directory) from exc
        self._chosen.forget([key])
        return there or self._missing()

    def _unlink(self, key: str, wait: bool) -> bool:
        name = file_name(key)
        return self._leases.unlink(
            f"{self._directory.path}/{name}", name, again=not is_library_key(key), wait=wait
        )

    def _extend_sync(
        self, keys: Sequence[str], ttl: float | None, *, wait: bool = True
    ) -> list[bool]:
        self._check_open()
        try:
            return [self._extend_one(key, ttl, wait) for key in keys]
        except OSError as exc:
            raise translate(exc, self._directory) from exc

    def _extend_one(self, key: str, ttl: float | None, wait: bool) -> bool:
        # A set publishes the object before it ends the registration: maybe between these calls.
        for _ in range(2):
            extended = self._leases.extend(self._path(key), file_name(key), ttl, wait=wait)
            if extended is not None:
                self._chosen.change(key, extended)
                return True
            if self._registrations.extend(key, ttl, wait=wait):
                return True
        return self._missing()

    def _sweep_sync(self) -> Swept:
        self._check_open()
        if not os.path.isdir(self._directory.path):
            raise self._directory.gone()
        try:
            temporaries = sweep(self._directory)
            swept = self._leases.sweep_all()
        except OSError as exc:
            raise translate(exc, self._directory) from exc
        return swept._replace(temporaries=temporaries)

    def _stat_sync(self, key: str) -> os.stat_result | None:
        self._check_open()
        try:
            found = os.lstat(self._path(key))
            return None if has_ended(found) else found
        except FileNotFoundError:
            self._missing()
            return None
        except OSError as exc:
            raise translate(exc, self._directory) from exc

    def _path(self, key: str) -> str:
        return f"{self._directory.path}/{file_name(key)}"

    def _missing(self) -> bool:
        """False for a key that holds nothing; an error if it could not hold anything."""
        try:
            if stat.S_ISDIR(os.stat(self._directory.path).st_mode):
                return False
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as exc:
            raise translate(exc, self._directory) from exc
        raise self._directory.gone()

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectorClosedError(
                f"{self!r} was closed", hint="make a new FileConnector, or close it later"
            )
        if not self._begun:
            self._begun = True
            sweep_in_background(self._leases)


def _until(ttl: float, check: Callable[[], None]) -> Callable[[], int]:
    def checking() -> int:
        check()
        return deadline(ttl)  # counted from when the object is there

    return checking


def go_on() -> None:
    """For a caller that nobody can cancel."""
