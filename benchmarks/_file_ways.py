"""The ways to keep objects in files, ours among them; see `benchmarks.files`."""

from __future__ import annotations

import asyncio
import mmap
import os
import uuid
from typing import Any

import numpy as np

from benchmarks.harness import has_reference, reference_store
from proxyplane import Store, sync

SMALL = b"x" * 1024


class Ours:
    """Ours, with blocking calls; `place` is a directory."""

    def __init__(self, place: str) -> None:
        self.store = sync.Store(f"files-{uuid.uuid4().hex}", f"file://{place}/ours", cache_size=0)

    def put(self, obj: Any) -> Any:
        """Puts one object."""
        return self.store.put(obj)

    def puts(self, obj: Any, count: int) -> list[Any]:
        """Puts it `count` times, one after the other."""
        return [self.put(obj) for _ in range(count)]

    def get(self, key: Any) -> Any:
        """Gets one object."""
        return self.store.get(key)

    def gets(self, keys: list[Any]) -> None:
        """Gets many, one after the other."""
        for key in keys:
            self.get(key)

    def evict(self, key: Any) -> None:
        """Removes one object."""
        self.store.evict(key)

    def close(self) -> None:
        """Ends what was opened."""
        self.store.close()


class Awaited(Ours):
    """Ours, awaited in a loop of its own."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.loop = asyncio.new_event_loop()
        self.awaited: Store = self.store.asynchronous

    def put(self, obj: Any) -> Any:
        return self.loop.run_until_complete(self.awaited.put(obj))

    def puts(self, obj: Any, count: int) -> list[Any]:
        async def put_all() -> list[Any]:
            return [await self.awaited.put(obj) for _ in range(count)]

        return self.loop.run_until_complete(put_all())

    def get(self, key: Any) -> Any:
        return self.loop.run_until_complete(self.awaited.get(key))

    def gets(self, keys: list[Any]) -> None:
        async def get_all() -> None:
            for key in keys:
                await self.awaited.get(key)

        self.loop.run_until_complete(get_all())

    def close(self) -> None:
        super().close()
        self.loop.close()


class Reference(Ours):
    """ProxyStore's store over its files, which appear before they are whole."""

    def __init__(self, place: str) -> None:
        self.store = reference_store("files", f"{place}/reference")

    def close(self) -> None:
        self.store.close(clear=False)  # else it removes what others are about to read


class Raw(Ours):
    """What the medium takes: a file is written under another name and renamed, mapped or read."""

    def __init__(self, place: str) -> None:
        self.place = f"{place}/bare"
        os.makedirs(self.place, exist_ok=True)

    def put(self, obj: Any) -> Any:
        path = f"{self.place}/{uuid.uuid4().hex}"
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with memoryview(obj) as whole, whole.cast("B") as flat:
            written = 0
            while written < flat.nbytes:
                with flat[written:] as rest:
                    written += os.write(fd, rest)
        os.close(fd)
        os.rename(f"{path}.new", path)
        return path

    def get(self, key: Any) -> Any:
        fd = os.open(key, os.O_RDONLY)
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
            if size <= len(SMALL):
                return os.pread(fd, size, 0)
            return np.frombuffer(mmap.mmap(fd, size, access=mmap.ACCESS_COPY), np.int64)
        finally:
            os.close(fd)

    def evict(self, key: Any) -> None:
        os.unlink(key)

    def close(self) -> None:
        pass


def ways() -> dict[str, type[Ours]]:
    """All ways, by the name of their rows."""
    found: dict[str, type[Ours]] = {"proxyplane": Ours, "proxyplane, awaited": Awaited}
    if has_reference():
        found["ProxyStore"] = Reference
    return {**found, "bare system calls": Raw}
