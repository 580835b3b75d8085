"""A box for a proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from proxyplane._slots import require_proxy

if TYPE_CHECKING:
    from proxyplane.proxy import Proxy

__all__ = ["ProxyLocker"]

T_co = TypeVar("T_co", covariant=True)


class ProxyLocker(Generic[T_co]):
    """A box for a proxy, which code that passes it on cannot resolve by accident.

    Args:
        proxy: The proxy to keep.
    """

    __slots__ = ("_proxy",)

    def __init__(self, proxy: Proxy[T_co]) -> None:
        require_proxy(proxy)
        self._proxy = proxy

    def unlock(self) -> Proxy[T_co]:
        """The proxy."""
        return self._proxy

    def __repr__(self) -> str:
        return f"ProxyLocker({self._proxy!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ProxyLocker, (self._proxy,)
