"""How a store gives objects back: read, behind a proxy, looked for, evicted."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, cast

from proxyplane._operations import Known, Operation
from proxyplane._runtime.source import Ahead
from proxyplane._store_base import StoreBase
from proxyplane._store_checks import require_key, require_keys
from proxyplane._store_names import Found, Steps, claiming, reading, removing, take
from proxyplane.abc import Buffer
from proxyplane.cache import MISSING
from proxyplane.connectors._tasks import all_or_raise, to_the_end
from proxyplane.exceptions import ObjectLostError
from proxyplane.hints import NO_HINTS
from proxyplane.proxy import Proxy, make_proxy


class StoreGets(StoreBase):
    """The operations on objects that are stored."""

    def getting(self, key: str, default: Any, strict: bool = False) -> Operation[Any]:
        """Gets an object, from the cache if it is there; the latest one if `strict`."""
        self.require_open()
        require_key(key)
        if strict:
            return self._reading_strictly(key, lambda: default, None)
        found = self._cache.get(key)
        if found is not MISSING:
            return Known(found)
        if self._is_name(key):
            return self._reading_name(key, lambda: default)
        return self._reading(key, None, lambda: default, cache=True)

    def resolving(
        self,
        key: str,
        size: int | None,
        evict: bool,
        deferred: bool,
        missing: Exception,
        strict: bool = False,
        ahead: Ahead | None = None,
    ) -> Operation[Any]:
        """Gets the object of a proxy past the cache; raises `missing` if there is none.

        One that is deferred is waited for.
        """
        self.require_open()

        def absent() -> Any:
            raise missing

        if self._is_name(key):
            if evict:
                return self._claiming_name(key, absent)
            if not strict:
                return self._reading_name(key, absent)
        if strict and not evict:
            return self._reading_strictly(key, absent, ahead)
        operation = self._reading(key, size, absent, cache=not evict)
        if deferred:
            medium = self._deferrable()

            async def read_later(request: None) -> Buffer | None:
                buffer = await medium.get(key, size=size)
                if buffer is None:
                    await medium.wait(key)
                    buffer = await medium.get(key, size=size)
                    if buffer is None and not evict:
                        raise self._gone(key)
                return buffer

            # No shortcut: a thread cannot wait without a loop.
            operation.io, operation.io_here = read_later, None
        if evict:
            # Of many who read it at once, the one who evicts it may use it; the others find that
            # they came too late.
            read, read_here = operation.io, operation.io_here

            async def claim(request: None) -> Buffer | None:
                buffer = await read(request)
                return buffer if buffer is not None and await self.evicting(key).perform() else None

            def claim_here(request: None) -> Buffer | None:
                buffer = cast(Any, read_here)(request)
                return buffer if buffer is not None and self.evicting(key).work() else None

            operation.io = claim
            operation.io_here = claim_here if read_here and self.claims_here else None
        return operation

    def reading_set(self, key: str) -> Operation[Any]:
        """Gets the object of a key made by `promising` that was seen to be set."""

        def absent() -> Any:
            raise self._gone(key)

        self.require_open()
        found = self._cache.get(key)
        return (
            Known(found) if found is not MISSING else self._reading(key, None, absent, cache=True)
        )

    def _gone(self, key: str) -> ObjectLostError:
        return ObjectLostError(
            f"the result of the future {key!r} in {self!r} was there and is gone",
            hint="it was evicted, or the medium dropped it",
        )

    def _reading(
        self, key: str, size: int | None, absent: Callable[[], Any], *, cache: bool
    ) -> Operation[Any]:
        since = self._cache.drops
        medium = self._shortcut

        def finish(buffer: Buffer | None) -> Any:
            return absent() if buffer is None else self._decode(key, buffer, since, cache)

        # In full, by position: this is what a small get consists of.
        return Operation(
            lambda: f"getting {key!r} from {self!r}",
            lambda _: self.connector.get(key, size=size),
            None if medium is None else lambda _: medium.get_sync(key, size=size),
            finish=finish,
            finish_stalls=self._decoding_stalls,
        )

    def fetching(self, key: str, size: int | None) -> Operation[Buffer | None]:
        """Gets the bytes of an object, not decoded."""
        if not self._is_name(key):
            return Operation(
                lambda: f"reading {key!r} in {self!r}",
                io=lambda _: self.connector.get(key, size=size),
                io_here=self._here(lambda medium, _: medium.get_sync(key, size=size)),
            )

        def steps(_: None) -> Steps[Buffer | None]:
            return (yield from reading(key, None)).buffer

        return Operation(
            lambda: f"reading {key!r} in {self!r}",
            io=lambda _: take(self.connector, steps(None)),
            io_here=self._steps_here(steps),
        )

    # -- what stands under keys that were chosen ------------------------------------------------

    def _reading_name(
        self,
        name: str,
        absent: Callable[[], Any],
        *,
        had: Ahead | None = None,
        result: Callable[[str | None, Any], Any] | None = None,
    ) -> Operation[Any]:
        """Gets what a name stands for.

        Args:
            name: The name.
            absent: Gives the result if that is nothing.
            had: What it stood for before; it is not transferred again.
            result: Makes the result of the generation and the object; by default the object.
        """
        since = self._cache.drops
        known = None if had is None else had.generation

        def finish(found: Found) -> Any:
            if found.same:
                obj = cast(Ahead, had).obj
            elif found.buffer is None:
                if had is not None:
                    self._forget([name])
                return absent()
            else:
                obj = self._decode(name, found.buffer, since, mark=found.generation)
            return obj if result is None else result(found.generation, obj)

        return Operation(
            lambda: f"getting {name!r} from {self!r}",
            io=lambda _: take(self.connector, reading(name, known)),
            io_here=self._steps_here(lambda _: reading(name, known)),
            finish=finish,
            finish_stalls=lambda found: self._decoding_stalls(found.buffer),
        )

    def _reading_strictly(
        self,
        key: str,
        absent: Callable[[], Any],
        ahead: Ahead | None,
        result: Callable[[str | None, Any], Any] | None = None,
    ) -> Operation[Any]:
        self._require_strict()
        if self._is_name(key):
            if ahead is None:
                obj, generation = self._cache.get_marked(key)
                ahead = None if generation is None else Ahead(generation, obj)
            return self._reading_name(key, absent, had=ahead, result=result)
        # What is written once is the latest, as long as it is there.
        had = self._cache.get(key) if ahead is None else ahead.obj
        if had is MISSING:
            operation = self._reading(key, None, absent, cache=True)
        else:
            # Not `self.looking`: an instrument would take it for one more operation.
            operation = StoreGets.looking(self, key).then(
                lambda there: had if there else self._forget([key]) or absent()
            )
        return operation if result is None else operation.then(partial(result, key))

    def reading_ahead(self, key: str, ahead: Ahead | None, missing: Exception) -> Operation[Ahead]:
        """Gets an object for a proxy that looks once more when it is used."""

        def absent() -> Any:
            raise missing

        self.require_open()
        # One without a record is of no generation, and will be fetched once more.
        return self._reading_strictly(
            key, absent, ahead, lambda generation, obj: Ahead(generation or "", obj)
        )

    def _claiming_name(self, name: str, absent: Callable[[], Any]) -> Operation[Any]:
        since = self._cache.drops

        async def claim(_: None) -> Buffer | None:
            found = await take(self.connector, reading(name, None))
            if found.buffer is None:
                return None
            return await to_the_end(take(self.connector, claiming(name, found)))

        def all_steps(_: None) -> Steps[Buffer | None]:
            found = yield from reading(name, None)
            return None if found.buffer is None else (yield from claiming(name, found))

        def finish(buffer: Buffer | None) -> Any:
            self._forget([name])
            return absent() if buffer is None else self._decode(name, buffer, since, cache=False)

        return Operation(
            lambda: f"claiming {name!r} from {self!r}",
            io=claim,
            io_here=self._steps_here(all_steps),
            finish=finish,
            finish_stalls=self._decoding_stalls,
        )

    def _removing_name(self, name: str) -> Operation[bool]:
        return Operation(
            lambda: f"evicting {name!r} from {self!r}",
            prepare=lambda: self._forget([name]),
            io=lambda _: to_the_end(take(self.connector, removing(name))),
            io_here=self._steps_here(lambda _: removing(name)),
            finish=lambda gone: self._forget([name], gone),
        )

    # -- many at once ---------------------------------------------------------------------------

    def getting_batch(
        self, keys: Sequence[str], default: Any, strict: bool = False
    ) -> Operation[list[Any]]:
        """Gets many objects, from the cache where they are there; the latest if `strict`."""
        self.require_open()
        keys = require_keys(keys)
        if strict or any(map(self._is_name, keys)):
            return self._getting_names(keys, default, strict)
        found = {key: self._cache.get(key) for key in keys}
        absent = [key for key, obj in found.items() if obj is MISSING]
        since = self._cache.drops
        if not absent:
            return Known([found[key] for key in keys])

        def finish(buffers: list[Buffer | None]) -> list[Any]:
            for key, buffer in zip(absent, buffers, strict=True):
                found[key] = default if buffer is None else self._decode(key, buffer, since)
            return [found[key] for key in keys]

        return Operation(
            f"getting {len(keys)} objects from {self!r}",
            io=lambda _: self.connector.get_batch(absent),
            finish=finish,
            finish_stalls=lambda buffers: any(map(self._decoding_stalls, buffers)),
        )

    def _getting_names(self, keys: list[str], default: Any, strict: bool) -> Operation[list[Any]]:
        parts: dict[str, Operation[Any]] = {}
        others: list[str] = []
        for key in keys:
            if strict or self._is_name(key):
                # Not `self.getting`: an instrument would take it for one more operation.
                parts[key] = StoreGets.getting(self, key, default, strict)
            else:
                others.append(key)
        known = {key: one.work() for key, one in parts.items() if isinstance(one, Known)}
        reads = [(key, one) for key, one in parts.items() if key not in known]
        rest = StoreGets.getting_batch(self, others, default)

        async def read(_: None) -> tuple[Any, list[Any]]:
            calls = [one.io(None) for _, one in reads]
            if not isinstance(rest, Known):
                calls.append(rest.io(None))
            replies = await all_or_raise(calls)
            return None if isinstance(rest, Known) else replies.pop(), replies

        def finish(read: tuple[Any, list[Any]]) -> list[Any]:
            of_rest, replies = read
            found = known | {
                key: one.finish(reply) for (key, one), reply in zip(reads, replies, strict=True)
            }
            objs = rest.work() if isinstance(rest, Known) else rest.finish(of_rest)
            found |= dict(zip(others, objs, strict=True))
            return [found[key] for key in keys]

        def finish_stalls(read: tuple[Any, list[Any]]) -> bool:
            of_rest, replies = read
            pairs = zip(reads, replies, strict=True)
            return any(one.finish_stalls(reply) for (_, one), reply in pairs) or (
                not isinstance(rest, Known) and rest.finish_stalls(of_rest)
            )

        return Operation(
            f"getting {len(keys)} objects from {self!r}",
            io=read,
            finish=finish,
            finish_stalls=finish_stalls,
        )

    # -- whether it is there --------------------------------------------------------------------

    def looking(self, key: str) -> Operation[bool]:
        """Whether the key holds an object, by the medium's word."""
        self.require_open()
        require_key(key)
        return Operation(
            f"looking for {key!r} in {self!r}",
            io=lambda _: self.connector.exists(key),
            io_here=self._here(lambda medium, _: medium.exists_sync(key)),
        )

    def evicting(self, key: str) -> Operation[bool]:
        """Removes an object; gives whether it was there."""
        self.require_open()
        require_key(key)
        if self._is_name(key):
            return self._removing_name(key)
        return Operation(
            lambda: f"evicting {key!r} from {self!r}",
            prepare=lambda: self._forget([key]),
            io=lambda _: self.connector.evict(key),
            io_here=self._here(lambda medium, _: medium.evict_sync(key)),
            finish=lambda gone: self._forget([key], gone),
        )

    def evicting_batch(self, keys: Sequence[str]) -> Operation[list[bool]]:
        """Removes many objects; gives for each key whether it was there."""
        self.require_open()
        keys = require_keys(keys)
        names = [place for place, key in enumerate(keys) if self._is_name(key)]

        async def evict_names(_: None) -> list[bool]:
            made = [key for key in keys if not self._is_name(key)]
            calls: list[Coroutine[Any, Any, Any]] = [
                to_the_end(take(self.connector, removing(keys[place]))) for place in names
            ]
            calls.append(self.connector.evict_batch(made))
            *there, others = await all_or_raise(calls)
            by_place = dict(zip(names, there, strict=True))
            rest = iter(others)
            return [by_place[i] if i in by_place else next(rest) for i in range(len(keys))]

        return Operation(
            f"evicting {len(keys)} objects from {self!r}",
            prepare=lambda: self._forget(keys),
            io=evict_names if names else lambda _: self.connector.evict_batch(keys),
            finish=lambda gone: self._forget(keys, gone),
        )

    def proxy_of_key(
        self, key: str, evict: bool, eager: bool | None = None, strict: bool = False
    ) -> Proxy[Any]:
        """A proxy of whatever the key holds."""
        self.require_open()
        require_key(key)
        if strict:
            self._require_strict()
        return make_proxy(self.factory(key, evict, None, eager, strict), NO_HINTS)
