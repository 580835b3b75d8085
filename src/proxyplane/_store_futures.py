"""How a store makes, sets and awaits futures."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from proxyplane._operations import Operation
from proxyplane._store_base import SerializerLike, StoreBase
from proxyplane._store_leases import FOR_EVER, Keeping
from proxyplane.abc import Buffer
from proxyplane.exceptions import FutureAlreadySet, KeyExistsError
from proxyplane.factory import StoreFactory
from proxyplane.future import ProxyFuture
from proxyplane.hints import type_name


class StoreFutures(StoreBase):
    """The operations behind `proxyplane.ProxyFuture`."""

    def promising(
        self,
        kind: type | None,
        evict: bool,
        eager: bool | None = None,
        tags: Collection[str] = (),
        keep: Keeping = FOR_EVER,
    ) -> Operation[ProxyFuture[Any]]:
        """Makes a key whose object comes later; gives the future of it."""
        medium = self._deferrable()
        options = self._tagged(tags) | keep.options

        def finish(key: str) -> ProxyFuture[Any]:
            self._adopt(keep, [key])
            factory: StoreFactory[Any] = StoreFactory(
                self.reference,
                key,
                evict=evict,
                deferred=True,
                eager=self.eager if eager is None else eager,
                store=self,
            )
            return ProxyFuture(factory, None if kind is None else type_name(kind))

        return Operation(
            f"making a future in {self!r}", io=lambda _: medium.new_key(**options), finish=finish
        )

    def setting(self, key: str, obj: Any, serializer: SerializerLike = None) -> Operation[None]:
        """Stores the object of a key made by `promising`; once."""
        medium = self._deferrable()

        async def set_once(frames: list[Buffer]) -> None:
            try:
                await medium.set(key, frames)
            except KeyExistsError as error:
                raise FutureAlreadySet(
                    f"the future {key!r} in {self!r} is done already",
                    hint="a future is set once: to a result, an exception, or cancelled",
                ) from error

        return Operation(
            f"setting a future in {self!r}",
            prepare=partial(self._encode, obj, serializer, key),
            prepare_stalls=partial(self._encoding_stalls, obj),
            io=set_once,
        )

    def awaiting(self, key: str, timeout: float | None) -> Operation[None]:
        """Ends when the key holds an object; raises TimeoutError after `timeout` seconds."""
        medium = self._deferrable()
        return Operation(
            f"waiting for a future in {self!r}", io=lambda _: medium.wait(key, timeout)
        )
