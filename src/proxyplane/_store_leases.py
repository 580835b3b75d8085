"""For how long a store puts an object: for ever, with a lease, or in a lifetime."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol, runtime_checkable

from proxyplane._ttl import require_ttl
from proxyplane.abc import Connector
from proxyplane.factory import StoreFactory

# For a message: to ask each connector would import its driver.
LEASING: Final = (
    "EndpointConnector",
    "FileConnector",
    "LocalConnector",
    "MultiConnector",
    "RedisConnector",
)


@runtime_checkable
class Lifetime(Protocol):
    """What ``lifetime=`` takes."""

    def done(self) -> bool:
        """Whether it has ended."""
        ...

    def lease(self) -> float | None:
        """Seconds of the lease with which an object is put; None for none."""
        ...

    def require_free(self, *factories: StoreFactory[Any]) -> None:
        """Asked before objects are put under keys that were chosen.

        Raises:
            AlreadyOwnedError: One of them could not be taken: it has another lifetime, or an owner.
        """
        ...

    def adopt(self, *factories: StoreFactory[Any]) -> None:
        """Takes objects that were just put with that lease; no I/O.

        Raises:
            RuntimeError: It has ended; the objects will be evicted.
        """
        ...


class Keeping:
    """For how long an object is put.

    Attributes:
        options: What the connector is told of it.
    """

    __slots__ = ("_lifetime", "options")

    def __init__(self, options: dict[str, Any], lifetime: Lifetime | None) -> None:
        self.options = options
        self._lifetime = lifetime

    def adopt(self, factories: Iterable[StoreFactory[Any]]) -> None:
        """Adds objects that were just put to the lifetime, if there is one.

        Raises:
            RuntimeError: It ended meanwhile; the objects will be evicted.
        """
        if self._lifetime is not None:
            self._lifetime.adopt(*factories)

    def require_free(self, factory: StoreFactory[Any]) -> None:
        """Raises AlreadyOwnedError if the lifetime could not take what is put under a key."""
        if self._lifetime is not None:
            self._lifetime.require_free(factory)

    @property
    def adopts(self) -> bool:
        """Whether there is a lifetime."""
        return self._lifetime is not None


FOR_EVER: Final = Keeping({}, None)


def keeping(
    connector: Connector, ttl: float | None, lifetime: Lifetime | None, evict: bool = False
) -> Keeping:
    """Checks for how long an object is to be put.

    Args:
        connector: Where.
        ttl: Seconds; None for no lease of its own.
        lifetime: With what it is to end.
        evict: Whether its first use is to evict it.

    Raises:
        ValueError: These exclude each other, or there is no lease of such a length.
        TypeError: It is no lifetime, or no number of seconds.
        RuntimeError: The lifetime has ended.
        NotImplementedError: There is a lease, and the connector keeps none.
    """
    if ttl is None and lifetime is None:
        return FOR_EVER
    if lifetime is not None:
        if not isinstance(lifetime, Lifetime):
            raise TypeError(f"a lifetime is one of proxyplane.lifetimes, not {lifetime!r}")
        if evict:
            raise ValueError(
                "evict=True and lifetime= exclude each other: one ends the object with its first "
                "use, the other with the lifetime"
            )
        if lifetime.done():
            raise RuntimeError(f"{lifetime!r} has ended, or belongs to another process")
        lease = lifetime.lease()
        if lease is not None and ttl is not None:
            raise ValueError(f"ttl= and lifetime= exclude each other: {lifetime!r} has a lease")
        ttl = lease if ttl is None else ttl
    if ttl is None:
        return Keeping({}, lifetime)
    require_leases(connector)
    return Keeping({"ttl": require_ttl(ttl)}, lifetime)


def require_leases(connector: Connector) -> None:
    """Raises NotImplementedError if the connector keeps no leases."""
    if not connector.takes_ttl:
        raise NotImplementedError(
            f"{type(connector).__name__} keeps no leases; connectors that do: {', '.join(LEASING)}"
        )
