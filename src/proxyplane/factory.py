"""What stands behind a proxy: how its target is had, and what travels in its place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast

from proxyplane import _stores
from proxyplane._runtime.blocking import about_to_block
from proxyplane._runtime.source import Ahead
from proxyplane._runtime.workers import run_in_worker
from proxyplane.abc import Factory
from proxyplane.cache import MISSING
from proxyplane.config import OnBlocking, StoreConfig, redact
from proxyplane.exceptions import ProxyResolveCycleError, ProxyResolveMissingKeyError

__all__ = ["Factory", "RedisFactory", "StoreFactory"]

T = TypeVar("T")

# Flags of a store factory, as they travel.
EVICT = 1
DEFERRED = 2
EAGER_OFF = 4
STRICT = 8


class CallableSource(Generic[T]):
    """Any callable as the source of a flight; see `proxyplane._runtime.source.Source`.

    A blocked thread calls it directly. For a waiting loop it is called on a thread of its own,
    unless it is a `Factory` that can be awaited.
    """

    works_here = True
    claims = False
    flight_key = None
    on_blocking: OnBlocking | None = None

    def __init__(self, factory: Callable[[], T]) -> None:
        self._factory = factory
        self._fetching = False
        hook = getattr(type(factory), "acall", None)
        self.works_anywhere = hook is None or hook is Factory.acall

    def __str__(self) -> str:
        name = getattr(self._factory, "__qualname__", None) or type(self._factory).__qualname__
        return f"the proxy's factory {name}"

    def prepare(self) -> None:
        """Nothing to do."""

    def cached(self) -> Any:
        return MISSING

    def work(self) -> T:
        return self._factory()

    async def fetch(self) -> Any:
        _inside.set((*_inside.get(), self))  # seen by what this task does, and by nobody else
        self._fetching = True
        try:
            return await cast(Factory[T], self._factory).acall()
        finally:
            self._fetching = False

    def refuse_cycle(self) -> None:
        """Raises if this very factory is what awaits its own proxy, which would never end."""
        if any(one._fetching and one._factory is self._factory for one in _inside.get()):
            raise ProxyResolveCycleError(
                f"resolving {self} needs its own result",
                hint="its `acall` awaits a proxy of that same object",
            )

    def decode(self, fetched: Any) -> Any:
        return fetched

    def decoding_stalls(self, fetched: Any) -> bool:
        return False


# The sources in whose fetch the running task is.
_inside: ContextVar[tuple[CallableSource[Any], ...]] = ContextVar("_inside", default=())


class StoreFactory(Factory[T]):
    """Gets an object from a store; what a store's proxies carry.

    Args:
        reference: Names the store: connector URL and store name, as `StoreConfig.to_url` gives.
        key: The object's key.
        evict: Whether the first use removes the object; later ones find it missing.
        deferred: Whether the object may come later, and is to be waited for.
        eager: Whether a proxy that carries this starts to resolve where it arrives. One that evicts
            never does: a claim is made by the first use.
        strict: Whether the first use looks for the latest object of the key.
        size: Size of the encoded object in bytes, if known.
        store: The store itself, where it is at hand.
    """

    __slots__ = (
        "_store",
        "ahead",
        "deferred",
        "eager",
        "evict",
        "key",
        "reference",
        "size",
        "strict",
    )

    works_anywhere = False

    def __init__(
        self,
        reference: str,
        key: str,
        *,
        evict: bool = False,
        deferred: bool = False,
        eager: bool = True,
        strict: bool = False,
        size: int | None = None,
        store: _stores.ObjectStore | None = None,
    ) -> None:
        self.reference = reference
        self.key = key
        self.evict = evict
        self.deferred = deferred
        self.eager = eager
        self.strict = strict
        self.ahead: Ahead | None = None  # what was fetched before the first use
        self.size = size
        self._store = store

    @property
    def store(self) -> Any:
        """The store of this process for the object; opened again if it was closed.

        Opening imports the connector, and its driver with it, so it is left to whoever may wait.
        """
        store = self._store
        if store is None or store.closed:
            store = self._store = _stores.open_reference(self.reference)
        return store

    def _store_at_hand(self) -> Any:
        store = self._store
        if store is None or store.closed:
            store = self._store = _stores.find_reference(self.reference)
        return store

    # -- as a factory ---------------------------------------------------------------------------

    def __call__(self) -> T:
        """Gets the object; blocks.

        Raises:
            ProxyResolveMissingKeyError: The store does not hold the key.
        """
        self.prepare()
        cached = self.cached()
        if cached is not MISSING:
            return cast(T, cached)
        about_to_block(lambda: f"getting {self}", self.on_blocking)
        return self.work()

    async def acall(self) -> T:
        """Gets the object without blocking the running loop.

        Raises:
            ProxyResolveMissingKeyError: The store does not hold the key.
        """
        await self._aprepare()
        cached = self.cached()
        return cast(T, await self._operation().perform() if cached is MISSING else cached)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoreFactory):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[str, str, bool, bool]:
        return self.reference, self.key, self.evict, self.strict

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self}>"

    def __str__(self) -> str:
        return f"object {self.key!r} {self.where}"

    @property
    def where(self) -> str:
        """Store and medium, for messages."""
        url, _, name = redact(self.reference).partition("#")
        return f"in store {name.partition(';')[0]!r} at {url}"

    # -- as what travels ------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_factory, (*self.flat(), self.size)

    def flat(self) -> tuple[str, bytes | str, int]:
        """What travels, beside the size: (reference, key, flags)."""
        # A key that the library made is 32 hexadecimal digits: half as long as bytes.
        key: bytes | str = self.key
        if len(self.key) == 32:
            try:
                packed = bytes.fromhex(self.key)
            except ValueError:
                pass
            else:
                key = packed if packed.hex() == self.key else self.key
        flags = EVICT * self.evict | DEFERRED * self.deferred | EAGER_OFF * (not self.eager)
        if self.strict:
            flags |= STRICT
        return self.reference, key, flags

    # -- as the source of a flight; see `proxyplane._runtime.source.Source` --------------------

    def refuse_cycle(self) -> None:
        """Reading needs no proxy."""

    def prepare(self) -> None:
        """Opens the store; for those who may block."""
        _ = self.store

    async def _aprepare(self) -> None:
        if self._store_at_hand() is None:
            await run_in_worker(self.prepare)

    @property
    def on_blocking(self) -> OnBlocking | None:
        """The store's policy for touches on a thread with a running loop."""
        store = self._store_at_hand()
        return None if store is None else store.on_blocking

    @property
    def works_here(self) -> bool:
        """Whether the medium can be read in the calling thread; to wait needs a loop."""
        store = None if self.deferred else self._store_at_hand()
        if store is None:
            return False
        # Who is interrupted in the middle of a claim would have lost the object.
        return bool(store.claims_here if self.evict else store.has_shortcut)

    @property
    def flight_key(self) -> Hashable | None:
        """Proxies of one object share a fetch, except where each use is a claim of its own.

        And where it looks for the latest object: a fetch that has begun may have one before that.
        """
        return None if self.evict or self.strict else (self.reference, self.key)

    @property
    def claims(self) -> bool:
        """Whether what was fetched is gone for everybody else."""
        return self.evict

    def cached(self) -> Any:
        """The object from the store's cache, or MISSING. One that evicts is never cached."""
        store = None if self.evict or self.strict else self._store_at_hand()
        return MISSING if store is None else store.cached(self.key)

    def work(self) -> T:
        """Reads and decodes; blocks this thread."""
        return cast(T, self._operation().work())

    async def fetch(self) -> Any:
        """Reads on the running loop; what it returns is for `decode`."""
        await self._aprepare()
        operation = self._operation()
        return operation, await operation.io(None)

    async def arrival(self) -> None:
        """Waits, on the running loop, until an object that is deferred is there."""
        await self._aprepare()
        await self.store.awaiting(self.key, None).perform()

    def decode(self, fetched: Any) -> T:
        """Makes the object."""
        operation, reply = fetched
        self.ahead = None
        return cast(T, operation.finish(reply))

    def decoding_stalls(self, fetched: Any) -> bool:
        """Whether that takes too long for the thread of a running loop."""
        operation, reply = fetched
        return cast(bool, operation.finish_stalls(reply))

    def take_ahead(self, ahead: Ahead) -> Ahead | None:
        """Keeps what was fetched before the first use; gives what it replaces."""
        before, self.ahead = self.ahead, ahead
        return before

    def _operation(self) -> Any:
        return self.store.resolving(
            self.key,
            self.size,
            self.evict,
            self.deferred,
            self._missing(),
            self.strict,
            self.ahead,
        )

    def _missing(self) -> ProxyResolveMissingKeyError:
        late = "it was claimed by another consumer, or it" if self.evict else "it"
        return ProxyResolveMissingKeyError(
            f"there is no {self}",
            key=self.key,
            store=self.store.name,
            hint=f"{late} was evicted or has expired",
        )


class AheadSource:
    """The source of a flight that fetches, before its use, the object of a strict proxy.

    That one is not resolved by it: it looks once more when it is used.

    Args:
        factory: The factory of the proxy.
    """

    works_here = False
    works_anywhere = False
    claims = False

    def __init__(self, factory: StoreFactory[Any]) -> None:
        self._factory = factory
        self.size = factory.size
        self.flight_key = ("ahead", factory.reference, factory.key)

    def __str__(self) -> str:
        return f"{self._factory} ahead of its use"

    def cached(self) -> Any:
        """Nothing: what the cache has may not be the latest."""
        return MISSING

    def work(self) -> Any:
        """Fetches and decodes; blocks this thread."""
        self._factory.prepare()
        return self._operation().work()

    async def fetch(self) -> Any:
        """Reads on the running loop; what it returns is for `decode`."""
        await self._factory._aprepare()
        operation = self._operation()
        return operation, await operation.io(None)

    def decode(self, fetched: Any) -> Any:
        """Makes the object, and what tells it from others."""
        operation, reply = fetched
        return operation.finish(reply)

    def decoding_stalls(self, fetched: Any) -> bool:
        """Whether that takes too long for the thread of a running loop."""
        operation, reply = fetched
        return cast(bool, operation.finish_stalls(reply))

    def _operation(self) -> Any:
        factory = self._factory
        return factory.store.reading_ahead(factory.key, factory.ahead, factory._missing())


def ahead_of(factory: StoreFactory[Any]) -> Any:
    """Where the background gets the object of a proxy from."""
    return AheadSource(factory) if factory.strict else factory


def rebuild_factory(
    reference: str, key: bytes | str, flags: int, size: int | None
) -> StoreFactory[Any]:
    """Inverse of `StoreFactory.flat`."""
    # Past `__init__`, whose keywords cost as much as all of this: proxies arrive by thousands.
    factory: StoreFactory[Any] = _new(StoreFactory)
    # Interned, so that the proxies of one store share it, and so do their pickles.
    factory.reference = sys.intern(reference)
    factory.key = key.hex() if isinstance(key, bytes) else key
    factory.evict = flags & EVICT != 0
    factory.deferred = flags & DEFERRED != 0
    factory.eager = not flags & EAGER_OFF
    factory.strict = flags & STRICT != 0
    factory.ahead = None
    factory.size = size
    factory._store = None
    return factory


_new = object.__new__


class RedisFactory(StoreFactory[T]):
    """Gets one object from a Redis server, without a store of your own.

    Given an object it stores it first, which blocks.

    Args:
        obj: The object to store, in the place of what the key holds; leave it out if it is there
            already.
        key: The object's key; may be left out when an object is given.
        url: URL of the server, as for `proxyplane.RedisConnector`.
        strict: Whether each proxy of it gets the latest object of the key at its first use.

    Raises:
        TypeError: Neither an object nor a key was given.
        ConfigError: The URL is wrong.
        ConnectorError: The server failed.
    """

    def __init__(
        self,
        obj: T | Any = MISSING,
        *,
        key: str | None = None,
        url: str = "redis://localhost:6379/0",
        strict: bool = False,
    ) -> None:
        # Opened by whatever spelling of the URL, and then named by the store's own.
        store = _stores.open_reference(StoreConfig("RedisFactory", url).to_url())
        if obj is not MISSING:
            operation = store.putting(obj, key, None)
            key = operation.perform_blocking(store.on_blocking)
        elif key is None:
            raise TypeError("RedisFactory needs an object, a key, or both")
        super().__init__(store.reference, cast(str, key), strict=strict, store=store)
