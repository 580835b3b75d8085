"""What a proxy holds, read and written past what its class forwards to the target.

Four slots: the factory; what is known of the target; the interest that the background takes in the
proxy, or None; and the target, which is unset until the proxy is resolved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing import Generic

    from proxyplane._runtime.window import Interest
    from proxyplane.hints import Hints

    T_co = TypeVar("T_co", covariant=True)

    # To a type checker, that knows of slots, nothing could be both a proxy and a list, and what
    # follows ``isinstance(p, list)`` would not be checked.
    class ProxySlots(Generic[T_co]):
        """See below."""

        __slots__ = ()
        __proxy_target__: Any
else:

    class ProxySlots:
        """The slots of a proxy, without anything that is forwarded."""

        __slots__ = (
            "__proxy_factory__",
            "__proxy_hints__",
            "__proxy_interest__",
            "__proxy_target__",
            "__weakref__",
        )

        # At run time `typing.Generic` would put its own names before the target's.
        def __class_getitem__(cls, item: Any) -> type:
            return cls


_slots = ProxySlots.__dict__
get_target: Callable[[Any], Any] = _slots["__proxy_target__"].__get__
set_target: Callable[[Any, Any], None] = _slots["__proxy_target__"].__set__
factory_of: Callable[[Any], Callable[[], Any]] = _slots["__proxy_factory__"].__get__
set_factory: Callable[[Any, Callable[[], Any]], None] = _slots["__proxy_factory__"].__set__
hints_of: Callable[[Any], Hints] = _slots["__proxy_hints__"].__get__
set_hints: Callable[[Any, Hints], None] = _slots["__proxy_hints__"].__set__
get_interest: Callable[[Any], Interest | None] = _slots["__proxy_interest__"].__get__
set_interest: Callable[[Any, Interest | None], None] = _slots["__proxy_interest__"].__set__
set_class: Callable[[Any, type], None] = object.__dict__["__class__"].__set__


def is_resolved(proxy: ProxySlots[Any]) -> bool:
    """Whether a proxy has its target; never fetches it."""
    try:
        get_target(proxy)
    except AttributeError:
        return False
    return True


def require_proxy(value: object) -> None:
    """Raises TypeError if `value` is no proxy."""
    if not issubclass(type(value), ProxySlots):
        raise TypeError(f"expected a Proxy, got {type(value).__name__}")
