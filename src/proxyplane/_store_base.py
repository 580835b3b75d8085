"""What every operation of a store rests on: its parts, its life, and the steps that are shared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NoReturn

from proxyplane import _stores, serialization
from proxyplane._operations import Known, Operation
from proxyplane._runtime.source import Ahead, decoding
from proxyplane._store_checks import require_keys, require_tags
from proxyplane._store_leases import Keeping, Lifetime, keeping, require_leases
from proxyplane._store_names import (
    NAMING,
    Steps,
    extending,
    has_names,
    names_here,
    take,
    take_here,
)
from proxyplane._store_trust import signed, trust_of
from proxyplane.abc import Buffer, Connector, DeferrableConnector, Serializer, SupportsSync
from proxyplane.cache import LRUCache
from proxyplane.config import StoreConfig
from proxyplane.connectors._keys import is_made, plainly_made
from proxyplane.exceptions import StoreClosedError
from proxyplane.factory import StoreFactory
from proxyplane.failures import FAILURES, TOLD, Failure

# For a message: to ask each connector would import its driver.
DEFERRABLE = (
    "EndpointConnector",
    "FileConnector",
    "LocalConnector",
    "MultiConnector",
    "RedisConnector",
)

SerializerLike = Serializer | str | None


class StoreBase(ABC):
    """Connector, cache and configuration of a store, from which its operations are made.

    Args:
        config: What makes the store.
        connector: The connector that the configuration names.
    """

    def __init__(self, config: StoreConfig, connector: Connector) -> None:
        self.trust = trust_of(config)
        self._serializer = self._chosen(config.serializer)
        self._cache = LRUCache(*config.cache_limits())
        self._caches = self._cache.max_items > 0
        self._config = config
        self.connector = connector
        self._naming = has_names(connector)
        self._names_here = names_here(connector)
        self._shortcut = connector if isinstance(connector, SupportsSync) else None
        self._closed = False
        self._to_end = self._to_clear = False  # what a close that failed leaves to the next one
        self.name = config.name
        self.reference = config.to_url()
        self.on_blocking = config.on_blocking
        self.eager = config.eager

    @property
    def closed(self) -> bool:
        """Whether the store was closed."""
        return self._closed

    @property
    def claims_here(self) -> bool:
        """Whether to read and evict in the calling thread is safe: nothing interrupts it long."""
        return self.has_shortcut and not self.connector.sync_waits

    @property
    def has_shortcut(self) -> bool:
        """Whether the medium can be used in the calling thread, without a loop."""
        return self._shortcut is not None

    def cached(self, key: str) -> Any:
        """The object of `key` from the cache, or MISSING."""
        return self._cache.get(key)

    def __repr__(self) -> str:
        return f"<Store {self.name!r} at {self._config.connector}{', closed' * self._closed}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} holds connections and cannot be pickled; send its proxies, which find it "
            "by themselves, or send store.config() and use Store.from_config there"
        )

    def enter(self) -> None:
        """Gives the store its name in this process, as entering a ``with`` block does."""
        self.require_open()
        _stores.register(self, exist_ok=True)

    def closing(self, clear: bool) -> Operation[None]:
        """Closes the store; nothing the second time, unless the first one failed."""
        if self._closed and not self._to_end:
            return Known(None)

        def prepare() -> bool:
            self._closed = self._to_end = True
            self._to_clear |= clear
            _stores.unregister(self.name, self)
            self._cache.clear()
            return self._to_clear

        async def end(clear: bool) -> None:
            await self.connector.aclose(clear=clear)
            self._to_end = False

        return Operation(f"closing {self!r}", prepare=prepare, io=end)

    # -- for how long ---------------------------------------------------------------------------

    def keep(self, ttl: float | None, lifetime: Lifetime | None, evict: bool = False) -> Keeping:
        """For how long an object is to be put; raises what `keeping` raises."""
        return keeping(self.connector, ttl, lifetime, evict)

    def require_leases(self) -> None:
        """Raises NotImplementedError if the medium keeps no leases."""
        require_leases(self.connector)

    def extending(self, keys: Sequence[str], ttl: float | None) -> Operation[list[bool]]:
        """Gives objects a new lease; tells for each key whether it held one."""
        self.require_open()
        keys = require_keys(keys)
        self.require_leases()
        names = [key for key in keys if self._is_name(key)]

        return Operation(
            lambda: f"extending the leases of {len(keys)} objects in {self!r}",
            io=lambda _: take(self.connector, extending(keys, names, ttl)),
        )

    def _adopt(self, keep: Keeping, keys: Sequence[str]) -> None:
        if keep.adopts:
            keep.adopt([self.factory(str(key), False, None, False) for key in keys])

    # -- what its factories ask of it -----------------------------------------------------------

    @abstractmethod
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
        """Gets the object of a proxy past the cache; raises `missing` if there is none."""

    @abstractmethod
    def reading_ahead(self, key: str, ahead: Ahead | None, missing: Exception) -> Operation[Ahead]:
        """Gets an object for a proxy that looks once more when it is used."""

    @abstractmethod
    def evicting(self, key: str) -> Operation[bool]:
        """Removes an object; gives whether it was there."""

    # -- the steps of its operations ------------------------------------------------------------

    def require_open(self) -> None:
        """Raises StoreClosedError if the store was closed."""
        if self._closed:
            raise StoreClosedError(f"store {self.name!r} is closed", hint="make a new one")

    def _deferrable(self) -> DeferrableConnector:
        self.require_open()
        if isinstance(self.connector, DeferrableConnector):
            return self.connector
        raise NotImplementedError(
            f"{type(self.connector).__name__} cannot defer, so its stores have no futures; "
            f"connectors that can: {', '.join(DEFERRABLE)}"
        )

    def _tagged(self, tags: Collection[str]) -> dict[str, Any]:
        """The tags of an object as an argument for the connector; none if there are no tags."""
        if tags and not self.connector.takes_tags:
            raise NotImplementedError(
                f"{type(self.connector).__name__} has no use for tags; a MultiConnector chooses by "
                "them among connectors"
            )
        return {"tags": require_tags(tags)} if tags else {}

    def _here(self, call: Callable[[SupportsSync, Any], Any]) -> Callable[[Any], Any] | None:
        """`call` with the medium's shortcut; None where it has none."""
        medium = self._shortcut
        return None if medium is None else partial(call, medium)

    def _is_name(self, key: str) -> bool:
        """Whether the medium may have a record under a key."""
        # The first look decides for nearly all, and costs half of the second.
        return self._naming and not plainly_made(key) and not is_made(key)

    def _steps_here(self, steps: Callable[[Any], Steps[Any]]) -> Callable[[Any], Any] | None:
        """The steps that a request makes, in this thread; None where the medium cannot."""
        if not self._names_here:
            return None
        return lambda request: take_here(self.connector, steps(request))

    def _require_strict(self) -> None:
        if not self._naming:
            raise NotImplementedError(
                f"{type(self.connector).__name__} cannot replace what a key holds, so strict=True "
                f"means nothing there; connectors that can: {', '.join(NAMING)}"
            )

    def _forget(self, keys: Sequence[str], gone: Any = None) -> Any:
        # Before the medium evicts or replaces, which may fail halfway, and after: a reader in
        # between may have left the object here again.
        for key in keys:
            self._cache.pop(key)
        return gone

    def _chosen(self, serializer: SerializerLike) -> Serializer | None:
        if isinstance(serializer, str):
            return serialization.get_serializer(serializer)
        return serializer

    def _encode(
        self,
        obj: Any,
        serializer: SerializerLike,
        key: str | None = None,
        tags: Collection[str] = (),
    ) -> list[Buffer]:
        """The frames of an object; `Signed` ones, if this store signs."""
        chosen = self._chosen(serializer) or self._serializer
        if chosen is FAILURES and not self.trust.takes_pickles:
            chosen = TOLD
        frames = serialization.encode(
            obj, serializer=chosen, checksum=self._config.checksum, trust=self.trust
        )
        return signed(self.trust, self.connector, frames, key, tags)

    def _encoding_stalls(self, obj: Any) -> bool:
        passes = bool(self._config.checksum) or self.trust.signs  # over all bytes
        return not self.trust.ready or serialization.encode_may_stall(obj, checksum=passes)

    def _decoding_stalls(self, buffer: Buffer | None) -> bool:
        if buffer is None:
            return False
        return serialization.needs_worker(buffer) or not self.trust.ready

    def _decode(
        self,
        key: str,
        buffer: Buffer,
        since: int,
        cache: bool = True,
        mark: str | None = None,
        *,
        brief: bool = False,
    ) -> Any:
        decoding.depth += 1
        try:
            obj = serialization.decode(buffer, trust=self.trust, key=key, brief=brief)
        finally:
            decoding.depth -= 1
        if obj is serialization.TOO_LONG:
            return obj
        if type(obj) is Failure:
            raise obj.to_raise()
        if cache and self._caches:
            self._cache.put(key, obj, len(buffer), since=since, mark=mark)
        return obj

    def factory(
        self,
        key: str,
        evict: bool,
        size: int | None,
        eager: bool | None = None,
        strict: bool = False,
    ) -> StoreFactory[Any]:
        """What a proxy of `key` carries."""
        if eager is None:
            eager = self.eager
        return StoreFactory(
            self.reference,
            key,
            evict=evict,
            eager=eager,
            strict=strict,
            size=size,
            store=self,
        )
