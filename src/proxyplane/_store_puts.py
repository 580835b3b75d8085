"""How a store takes objects: alone or many at once, for their keys or for proxies of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from proxyplane import serialization
from proxyplane._operations import Known, Operation
from proxyplane._store_base import SerializerLike, StoreBase
from proxyplane._store_checks import is_proxiable, require_key
from proxyplane._store_leases import FOR_EVER, Keeping
from proxyplane._store_names import (
    Steps,
    publishing,
    retires_gently,
    step,
    storing,
    take,
)
from proxyplane._store_trust import key_of, put_all
from proxyplane.abc import Buffer, SupportsSync
from proxyplane.cache import MISSING
from proxyplane.connectors._tasks import to_the_end
from proxyplane.hints import Hints
from proxyplane.proxy import Proxy, make_proxy

T = TypeVar("T")


class StorePuts(StoreBase):
    """The operations that store objects."""

    def putting(
        self,
        obj: Any,
        key: str | None,
        serializer: SerializerLike,
        tags: Collection[str] = (),
        overwrite: bool = True,
        keep: Keeping = FOR_EVER,
    ) -> Operation[str]:
        """Stores an object; gives its key."""
        return self._putting(obj, key, serializer, tags, keep, lambda key, size: key, overwrite)

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
        strict: bool = False,
        keep: Keeping = FOR_EVER,
        overwrite: bool = True,
    ) -> Operation[Any]:
        """Stores an object; gives a proxy of it."""
        if strict:
            self._require_strict()
        if not is_proxiable(obj, skip_nonproxiable):
            return Known(obj)
        return self._putting(
            obj,
            key,
            serializer,
            tags,
            keep,
            lambda key, size: self._make_proxy(
                obj, key, size, evict, eager, populate_target, strict
            ),
            overwrite,
        )

    def _putting(
        self,
        obj: Any,
        key: str | None,
        serializer: SerializerLike,
        tags: Collection[str],
        keep: Keeping,
        result: Callable[[str, int], Any],
        overwrite: bool = True,
    ) -> Operation[Any]:
        self.require_open()
        tagged = self._tagged(tags)
        options = tagged | keep.options
        if key is not None:
            require_key(key)
            if keep.adopts:
                keep.require_free(self.factory(key, False, None, False))
        size = 0

        def prepare() -> list[Buffer]:
            nonlocal size
            frames = self._encode(obj, serializer, key, tags)
            size = serialization.frames_size(frames)
            return frames

        def finish(key: str) -> Any:
            self._adopt(keep, [key])
            return result(str(key), size)

        if key is not None and self._is_name(key):
            return self._putting_name(
                key,
                lambda: (self._forget([key]), prepare())[1],
                partial(self._encoding_stalls, obj),
                options,
                overwrite,
                finish,
            )
        return Operation(
            lambda: f"putting an object in {self!r}",
            io=lambda frames: self.connector.put(frames, key=key_of(frames, key), **options),
            io_here=None
            if tagged
            else self._here(
                lambda it, frames: it.put_sync(frames, key=key_of(frames, key), **options)
            ),
            prepare=prepare,
            prepare_stalls=partial(self._encoding_stalls, obj),
            finish=finish,
        )

    def _putting_name(
        self,
        name: str,
        prepare: Callable[[], list[Buffer]],
        prepare_stalls: Callable[[], bool],
        options: dict[str, Any],
        overwrite: bool,
        result: Callable[[str], Any],
    ) -> Operation[Any]:
        gently = retires_gently(self.connector)

        async def store(frames: list[Buffer]) -> str:
            publication = await take(self.connector, storing(name, frames, options, overwrite))
            # Between the two steps of this there is one object too many.
            await to_the_end(take(self.connector, publishing(name, publication, overwrite, gently)))
            return name

        def all_steps(frames: list[Buffer]) -> Steps[str]:
            publication = yield from storing(name, frames, options, overwrite)
            yield from publishing(name, publication, overwrite, gently)
            return name

        return Operation(
            lambda: f"putting {name!r} in {self!r}",
            io=store,
            io_here=self._steps_here(all_steps),
            prepare=prepare,
            prepare_stalls=prepare_stalls,
            finish=lambda _: result(self._forget([name], name)),
        )

    def replacing(self, obj: Any, key: str, serializer: SerializerLike) -> Operation[Any]:
        """Stores an object in the place of the one that a key holds, also if it is written once.

        For the one who owns it. In one step, where the medium can do that.
        """
        operation = self._putting(obj, key, serializer, (), FOR_EVER, lambda key, size: key)
        if self._is_name(key):
            return operation
        put, put_here = operation.io, operation.io_here

        def replace_steps(frames: list[Buffer]) -> Steps[None]:
            try:
                yield step("swap", key, frames)
            except NotImplementedError:  # a connector of others, in a `MultiConnector`
                yield step("evict", key)
                yield step("put", frames, key=key)

        async def evict_and_put(frames: list[Buffer]) -> None:
            await self.connector.evict(key)
            await put(frames)

        def evict_and_put_here(frames: list[Buffer]) -> None:
            cast(SupportsSync, self.connector).evict_sync(key)
            cast(Any, put_here)(frames)

        if self._naming:
            operation.io = lambda frames: take(self.connector, replace_steps(frames))
            operation.io_here = self._steps_here(replace_steps)
        else:
            operation.io = evict_and_put
            operation.io_here = put_here and evict_and_put_here
        prepare = operation.prepare
        operation.prepare = lambda: (self._forget([key]), prepare())[1]
        return operation.then(lambda _: self._forget([key]))

    def putting_batch(
        self,
        objs: Sequence[Any],
        serializer: SerializerLike,
        tags: Collection[str] = (),
        keep: Keeping = FOR_EVER,
    ) -> Operation[list[str]]:
        """Stores many objects; gives their keys."""
        return self._putting_batch(objs, serializer, tags, keep, lambda i, key, size: key)

    def proxying_batch(
        self,
        objs: Sequence[Any],
        serializer: SerializerLike,
        evict: bool,
        populate_target: bool,
        skip_nonproxiable: bool,
        eager: bool | None = None,
        tags: Collection[str] = (),
        keep: Keeping = FOR_EVER,
    ) -> Operation[list[Any]]:
        """Stores many objects; gives proxies in their places."""
        results = list(objs)
        places = [i for i, obj in enumerate(results) if is_proxiable(obj, skip_nonproxiable)]

        def result(i: int, key: str, size: int) -> None:
            place = places[i]
            obj = results[place]
            results[place] = self._make_proxy(obj, key, size, evict, eager, populate_target)

        operation: Operation[Any] = self._putting_batch(
            [results[i] for i in places], serializer, tags, keep, result
        )
        return operation.then(lambda _: results)

    def _putting_batch(
        self,
        objs: Sequence[Any],
        serializer: SerializerLike,
        tags: Collection[str],
        keep: Keeping,
        result: Callable[[int, str, int], Any],
    ) -> Operation[list[Any]]:
        self.require_open()
        options = self._tagged(tags) | keep.options
        objs = list(objs)  # any iterable, and as it is now
        sizes: list[int] = []

        def prepare() -> list[list[Buffer]]:
            batch = [self._encode(obj, serializer, None, tags) for obj in objs]
            sizes[:] = map(serialization.frames_size, batch)
            return batch

        def finish(keys: list[str]) -> list[Any]:
            self._adopt(keep, keys)
            return [
                result(i, str(key), size)
                for i, (key, size) in enumerate(zip(keys, sizes, strict=True))
            ]

        return Operation(
            f"putting {len(objs)} objects in {self!r}",
            prepare=prepare,
            prepare_stalls=partial(self._encoding_stalls, objs),
            io=lambda batch: put_all(self.connector, batch, **options),
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
        strict: bool = False,
    ) -> Proxy[T]:
        # A proxy that has its target already would never make its claim, nor look for the latest.
        target = obj if populate_target and not evict and not strict else MISSING
        hints = Hints.of(obj, size)
        if hints.hash and self._is_name(key):
            hints.hash = None  # by then it may be another object
        return make_proxy(self.factory(key, evict, size, eager, strict), hints, target)
