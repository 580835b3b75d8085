"""How a store takes objects: alone or many at once, for their keys or for proxies of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

from proxyplane import serialization
from proxyplane._operations import Known, Operation
from proxyplane._store_base import SerializerLike, StoreBase
from proxyplane._store_checks import is_proxiable, require_key
from proxyplane._store_trust import key_of, put_all
from proxyplane.abc import Buffer
from proxyplane.cache import MISSING
from proxyplane.hints import Hints
from proxyplane.proxy import Proxy, make_proxy

T = TypeVar("T")


class StorePuts(StoreBase):
    """The operations that store objects."""

    def putting(
        self, obj: Any, key: str | None, serializer: SerializerLike, tags: Collection[str] = ()
    ) -> Operation[str]:
        """Stores an object; gives its key."""
        return self._putting(obj, key, serializer, tags, lambda key, size: key)

    def proxying(
        self,
        obj: Any,
        key: str | None,
        serializer: SerializerLike,
        evict: bool,
        populate_target: bool,
        skip_nonproxiable: bool,
        eager: bool | None = None,
        tags: Collection[str] = (),
    ) -> Operation[Any]:
        """Stores an object; gives a proxy of it."""
        if not is_proxiable(obj, skip_nonproxiable):
            return Known(obj)
        return self._putting(
            obj,
            key,
            serializer,
            tags,
            lambda key, size: self._make_proxy(obj, key, size, evict, eager, populate_target),
        )

    def _putting(
        self,
        obj: Any,
        key: str | None,
        serializer: SerializerLike,
        tags: Collection[str],
        result: Callable[[str, int], Any],
    ) -> Operation[Any]:
        self.require_open()
        tagged = self._tagged(tags)
        if key is not None:
            require_key(key)
        size = 0

        def prepare() -> list[Buffer]:
            nonlocal size
            frames = self._encode(obj, serializer, key, tags)
            size = serialization.frames_size(frames)
            return frames

        return Operation(
            lambda: f"putting an object in {self!r}",
            io=lambda frames: self.connector.put(frames, key=key_of(frames, key), **tagged),
            io_here=None
            if tagged
            else self._here(lambda it, frames: it.put_sync(frames, key=key_of(frames, key))),
            prepare=prepare,
            prepare_stalls=partial(self._encoding_stalls, obj),
            finish=lambda key: result(str(key), size),
        )

    def putting_batch(
        self, objs: Sequence[Any], serializer: SerializerLike, tags: Collection[str] = ()
    ) -> Operation[list[str]]:
        """Stores many objects; gives their keys."""
        return self._putting_batch(objs, serializer, tags, lambda i, key, size: key)

    def proxying_batch(
        self,
        objs: Sequence[Any],
        serializer: SerializerLike,
        evict: bool,
        populate_target: bool,
        skip_nonproxiable: bool,
        eager: bool | None = None,
        tags: Collection[str] = (),
    ) -> Operation[list[Any]]:
        """Stores many objects; gives proxies in their places."""
        results = list(objs)
        places = [i for i, obj in enumerate(results) if is_proxiable(obj, skip_nonproxiable)]

        def result(i: int, key: str, size: int) -> None:
            place = places[i]
            obj = results[place]
            results[place] = self._make_proxy(obj, key, size, evict, eager, populate_target)

        operation: Operation[Any] = self._putting_batch(
            [results[i] for i in places], serializer, tags, result
        )
        return operation.then(lambda _: results)

    def _putting_batch(
        self,
        objs: Sequence[Any],
        serializer: SerializerLike,
        tags: Collection[str],
        result: Callable[[int, str, int], Any],
    ) -> Operation[list[Any]]:
        self.require_open()
        tagged = self._tagged(tags)
        objs = list(objs)  # any iterable, and as it is now
        sizes: list[int] = []

        def prepare() -> list[list[Buffer]]:
            batch = [self._encode(obj, serializer, None, tags) for obj in objs]
            sizes[:] = map(serialization.frames_size, batch)
            return batch

        def finish(keys: list[str]) -> list[Any]:
            return [
                result(i, str(key), size)
                for i, (key, size) in enumerate(zip(keys, sizes, strict=True))
            ]

        return Operation(
            f"putting {len(objs)} objects in {self!r}",
            prepare=prepare,
            prepare_stalls=partial(self._encoding_stalls, objs),
            io=lambda batch: put_all(self.connector, batch, **tagged),
            finish=finish,
        )

    def _make_proxy(
        self,
        obj: T,
        key: str,
        size: int,
        evict: bool,
        eager: bool | None,
        populate_target: bool,
    ) -> Proxy[T]:
        # A proxy that has its target already would never make its claim.
        target = obj if populate_target and not evict else MISSING
        return make_proxy(self.factory(key, evict, size, eager), Hints.of(obj, size), target)
