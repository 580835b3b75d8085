"""Objects that live as long as something else: a block, a lease, or the process.

A lifetime is told of objects by ``lifetime=`` where they are put, or by `add_key` and `add_proxy`.
When it ends they are evicted, in each store together. What is still open when the process ends is
evicted then, within a second. Only a `LeaseLifetime` also covers a process that is killed.

An object has one lifetime or one owner at a time. A forked child has none: the lifetimes that it
inherits are done, and what is in them is the parent's affair.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

from proxyplane._evictions import (
    ATTEMPT_SECONDS,
    Claim,
    claim,
    evict_factories,
    evict_later,
    require_unclaimed,
)
from proxyplane._references import factory_of
from proxyplane._renewals import Renewal
from proxyplane._runtime.blocking import about_to_block
from proxyplane._runtime.io_thread import io_thread
from proxyplane._store_leases import Lifetime
from proxyplane._ttl import require_ttl
from proxyplane.factory import StoreFactory
from proxyplane.future import ProxyFuture
from proxyplane.proxy import Proxy

if TYPE_CHECKING:
    from proxyplane.store import Store
    from proxyplane.sync import Store as SyncStore

__all__ = ["ContextLifetime", "LeaseLifetime", "Lifetime", "StaticLifetime"]

Factories = Sequence[StoreFactory[Any]]


class _Lifetime:
    """What all lifetimes have in common."""

    def __init__(self, store: Store | SyncStore | None, name: str) -> None:
        self.name = name
        self._store: Any = None if store is None else getattr(store, "asynchronous", store)
        self._claims: dict[tuple[str, str], Claim] = {}
        self._stores: dict[str, Any] = {}
        self._pid = os.getpid()
        self._ended = False
        # Re-entrant: the handler of a signal may put something too.
        self._lock = threading.RLock()

    # -- what is in it ----------------------------------------------------------------------------

    def add_key(self, *keys: str, store: Store | SyncStore | None = None) -> None:
        """Adds objects by their keys.

        Args:
            keys: The keys.
            store: Their store, if it is not that of the lifetime.

        Raises:
            RuntimeError: The lifetime has ended.
            AlreadyOwnedError: An object has an owner, or another lifetime, in this process.
            ConnectorError: A `LeaseLifetime` could not give a lease; it has none of the objects.
        """
        self._add(self._factories(keys, store))

    async def aadd_key(self, *keys: str, store: Store | SyncStore | None = None) -> None:
        """Async twin of `add_key`."""
        await self._aadd(self._factories(keys, store))

    def add_proxy(self, *proxies: Proxy[Any] | ProxyFuture[Any]) -> None:
        """Adds the objects of proxies, and those that futures have or will have.

        Raises:
            TypeError: A proxy was not made by a store.
            As `add_key`.
        """
        self._add([_factory(one) for one in proxies])

    async def aadd_proxy(self, *proxies: Proxy[Any] | ProxyFuture[Any]) -> None:
        """Async twin of `add_proxy`."""
        await self._aadd([_factory(one) for one in proxies])

    def active_count(self) -> int:
        """How many objects it has."""
        return sum(one.is_held for one in list(self._claims.values()))

    def lease(self) -> float | None:
        """Seconds of the lease with which an object is put; None for none."""
        return None

    def adopt(self, *factories: StoreFactory[Any]) -> None:
        """Takes objects that were just put; no I/O. For ``lifetime=``.

        Raises:
            RuntimeError: It has ended; the objects will be evicted.
        """
        self._hold(self._claim(factories))

    def require_free(self, *factories: StoreFactory[Any]) -> None:
        """Raises AlreadyOwnedError if one has an owner, or another lifetime, in this process."""
        for factory in factories:
            require_unclaimed(factory, but=self._claims.get((factory.reference, factory.key)))

    def _factories(self, keys: Sequence[str], store: Any) -> Factories:
        self._require_open()
        found = self._store if store is None else getattr(store, "asynchronous", store)
        if found is None:
            raise ValueError(f"{type(self).__name__} needs the store of the keys: store=")
        return [found.factory(key, False, None, False) for key in keys]

    def _add(self, factories: Factories) -> None:
        self._require_open()
        self._hold(self._claim(factories))

    async def _aadd(self, factories: Factories) -> None:
        self._add(factories)

    def _claim(self, factories: Factories) -> list[Claim]:
        """Takes those that it does not have yet, all or none."""
        named = {(one.reference, one.key): one for one in factories}
        made: list[Claim] = []
        with self._lock:
            try:
                for name, factory in named.items():
                    had = self._claims.get(name)
                    if had is None or not had.is_held:
                        made.append(claim(factory))
                        self._claims[name] = made[-1]
            except BaseException:
                self._give_up(made)
                raise
        return made

    def _give_up(self, claims: Iterable[Claim]) -> None:
        for one in claims:
            self._claims.pop((one.factory.reference, one.factory.key), None)
            one.give_up()

    def _hold(self, claims: Sequence[Claim]) -> None:
        if self.done():  # perhaps it was closed in another thread
            for one in claims:
                if one.give_up():
                    evict_later(one.factory)
            self._require_open()
        for one in claims:
            self._stores[one.factory.reference] = one.factory._store_at_hand()

    # -- its end ----------------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether it has ended; so it has in a forked child."""
        return self._ended or self._pid != os.getpid()

    def close(self, *, close_stores: bool = False) -> None:
        """Ends the lifetime and evicts its objects; a second call does nothing. Blocks.

        Args:
            close_stores: Also close the stores of the objects, and that of the lifetime.

        Raises:
            ConnectorError: Some could not be evicted; it is tried again behind your back.
        """
        if not self._ended and self.active_count():
            # Before it ends: who may not block has it still, and can end it in another way.
            about_to_block(lambda: f"ending {self!r}", self._on_blocking())
        with contextlib.ExitStack() as stack:
            for store in self._all_stores() if close_stores else ():
                closing = store.closing(False)
                stack.callback(closing.perform_blocking, store.on_blocking)
            factories = self._end()
            if factories:
                io_thread().run(_evict(factories))

    async def aclose(self, *, close_stores: bool = False) -> None:
        """Async twin of `close`."""
        async with contextlib.AsyncExitStack() as stack:
            for store in self._all_stores() if close_stores else ():
                stack.push_async_callback(store.closing(False).perform)
            factories = self._end()
            if factories:
                await _evict(factories)

    def _end(self) -> Factories:
        if self.done():
            return []
        return self._let_go()

    def _let_go(self) -> Factories:
        with self._lock:
            self._ended = True
            claims, self._claims = self._claims, {}
        return [one.factory for one in claims.values() if one.give_up()]

    def _all_stores(self) -> list[Any]:
        stores = {id(one): one for one in (self._store, *self._stores.values()) if one is not None}
        return list(stores.values())

    def _on_blocking(self) -> Any:
        return None if self._store is None else self._store.on_blocking

    def _require_open(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"{self!r} is of process {self._pid}: a forked child owns nothing of its parent's"
            )
        if self.done():
            raise RuntimeError(f"{self!r} has ended")

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._require_open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        ended = ", ended" if self.done() else ""
        return f"<{type(self).__name__} {self.name!r}, {self.active_count()} objects{ended}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self!r} is of this process and cannot be pickled; send proxies of its objects"
        )


class ContextLifetime(_Lifetime):
    """Objects that live until a block is left, or `close` is called.

    Args:
        store: Store of the objects, async or blocking.
        name: For messages; by default that of the store.
    """

    def __init__(self, store: Store | SyncStore, *, name: str | None = None) -> None:
        super().__init__(store, store.name if name is None else name)


class LeaseLifetime(_Lifetime):
    """Objects with a lease, which the medium keeps: when this process dies, they go with it.

    While the process lives the lease is renewed in the background, three times in each period, and
    again at once if that fails. If it could not be renewed until its end, for example because the
    server was away, the objects are gone, a warning is logged, and the lifetime is done.

    Args:
        store: Store of the objects, async or blocking.
        expiry: Seconds of the lease (or a `timedelta`), or when it ends (a `datetime`). What a
            killed process leaves is gone after that time.
        renew: Whether to renew it. If not, it ends when it ends, unless `extend` is called.
        name: For messages; by default that of the store.

    Raises:
        NotImplementedError: The medium keeps no leases.
        ValueError: The lease is not longer than nothing.
    """

    def __init__(
        self,
        store: Store | SyncStore,
        expiry: float | timedelta | datetime,
        *,
        renew: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(store, store.name if name is None else name)
        self._store.require_leases()
        self._renewal = Renewal(self, require_ttl(_seconds(expiry)), renew)

    def extend(self, expiry: float | timedelta | datetime) -> None:
        """Lets the lease end later; blocks.

        Args:
            expiry: By how many seconds (or a `timedelta`), or when (a `datetime`).

        Raises:
            RuntimeError: The lifetime has ended.
            ConnectorError: The medium failed; the lease is as it was.
        """
        self._require_open()
        until = self._until(expiry)
        about_to_block(lambda: f"extending {self!r}", self._on_blocking())
        io_thread().run(self._renewal.extend(until))

    async def aextend(self, expiry: float | timedelta | datetime) -> None:
        """Async twin of `extend`."""
        self._require_open()
        await self._renewal.extend(self._until(expiry))

    def done(self) -> bool:
        """Whether it has ended: it was closed, or its lease is over."""
        return super().done() or self._renewal.left() <= 0

    def lease(self) -> float | None:
        """Seconds of the lease with which an object is put."""
        return self._renewal.lease()

    def adopt(self, *factories: StoreFactory[Any]) -> None:
        """Takes objects that were just put with this lease; no I/O. For ``lifetime=``.

        Raises:
            RuntimeError: It has ended; the objects will be evicted.
        """
        super().adopt(*factories)

    def _until(self, expiry: float | timedelta | datetime) -> float:
        if isinstance(expiry, datetime):
            return time.monotonic() + require_ttl(_seconds(expiry))
        return time.monotonic() + self._renewal.left() + require_ttl(_seconds(expiry))

    def _add(self, factories: Factories) -> None:
        self._require_open()
        with self._claimed(factories) as claims:
            if claims:
                about_to_block(lambda: f"adding to {self!r}", self._on_blocking())
                io_thread().run(self._lend(claims))
        self._hold(claims)

    async def _aadd(self, factories: Factories) -> None:
        self._require_open()
        with self._claimed(factories) as claims:
            await self._lend(claims)
        self._hold(claims)

    def _hold(self, claims: Sequence[Claim]) -> None:
        super()._hold(claims)
        self._renewal.begin()

    def _lend(self, claims: Sequence[Claim]) -> Coroutine[Any, Any, Any]:
        for one in claims:
            one.factory.store.require_leases()
        return self._renewal.lend([one.factory for one in claims])

    @contextlib.contextmanager
    def _claimed(self, factories: Factories) -> Iterator[list[Claim]]:
        claims = self._claim(factories)
        try:
            yield claims
        except BaseException:  # they could not be given a lease
            self._give_up(claims)
            raise

    def _end(self) -> Factories:
        # What is over may have been extended by others, or put a moment ago: it is evicted too.
        if self._ended or self._pid != os.getpid():
            return []
        self._renewal.end()
        return self._let_go()

    def held(self) -> Factories:
        """What is in it, for the renewal."""
        return [one.factory for one in list(self._claims.values()) if one.is_held]

    def forget(self, factories: Factories) -> None:
        """Lets go of objects that are gone."""
        for factory in factories:
            gone = self._claims.pop((factory.reference, factory.key), None)
            if gone is not None:
                gone.give_up()


class StaticLifetime(_Lifetime):
    """Objects that live until this process ends; there is one in each process.

    They are evicted when the interpreter exits, within a second. A process that is killed leaves
    them; a `LeaseLifetime` does not.
    """

    _only: ClassVar[tuple[int, StaticLifetime] | None] = None

    def __new__(cls) -> Self:
        """The one of this process."""
        only = cls._only
        if only is None or only[0] != os.getpid():
            made = super().__new__(cls)
            _Lifetime.__init__(made, None, "static")
            only = StaticLifetime._only = os.getpid(), made
        return only[1]  # type: ignore[return-value]  # nobody subclasses what there is once

    def __init__(self) -> None:
        """Nothing: it was made before."""

    def __reduce__(self) -> Any:
        return StaticLifetime, ()


def _factory(one: Any) -> StoreFactory[Any]:
    return factory_of(one.proxy() if type(one) is ProxyFuture else one)


def _seconds(expiry: float | timedelta | datetime) -> float:
    if isinstance(expiry, datetime):
        return expiry.timestamp() - time.time()
    if isinstance(expiry, timedelta):
        return expiry.total_seconds()
    return expiry


async def _evict(factories: Factories) -> None:
    left = list(factories)
    try:
        failed = await evict_factories(left, ATTEMPT_SECONDS)
        left = [factory for factory, _ in failed]
        if failed:
            raise failed[0][1]
    finally:
        # Also when it was cancelled; what is gone does not mind to be evicted again.
        for factory in left:
            evict_later(factory)
