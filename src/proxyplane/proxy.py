"""Transparent proxies: small references that become their target when it is first needed.

A proxy has two slots that matter: its factory, and its target, which is unset until the proxy is
resolved. Special methods read the target's slot; while it is unset that read falls through to
`__getattr__`, and there, once in a proxy's life, the target is fetched. So a resolved proxy pays
for nothing but the indirection.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Generator
from functools import partial
from types import GenericAlias
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from proxyplane._forward import ClassCache
from proxyplane._frameworks import only_compares, trusts_the_class
from proxyplane._resolving import aextract, aresolve, extract, resolve, resolve_async, touch
from proxyplane._runtime import eager
from proxyplane._slots import (
    ProxySlots,
    factory_of,
    get_interest,
    get_target,
    hints_of,
    is_resolved,
    set_class,
    set_interest,
    set_target,
)
from proxyplane._stored import aevict, evict, get_factory, get_key, get_size
from proxyplane.cache import MISSING
from proxyplane.factory import EAGER_OFF, EVICT, StoreFactory, ahead_of, rebuild_factory
from proxyplane.hints import NO_HINTS, Hints
from proxyplane.locker import ProxyLocker

__all__ = [
    "Proxy",
    "ProxyLocker",
    "ProxyOr",
    "aevict",
    "aextract",
    "aresolve",
    "evict",
    "extract",
    "get_factory",
    "get_interest",
    "get_key",
    "get_size",
    "is_resolved",
    "make_proxy",
    "resolve",
    "resolve_async",
    "set_interest",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MYPY = False  # mypy takes it for true


class _ProxyMeta(type):
    # ``cls.__module__`` is the proxy's while ``instance.__module__`` is the target's.
    __module__ = property(lambda cls: __name__)


class _FromTarget:
    """An attribute that is the proxy's own on the class and the target's on an instance."""

    def __init__(self, name: str, own: object) -> None:
        self.name = name
        self.own = own

    def __get__(self, proxy: Any, owner: type) -> Any:
        if proxy is None:
            return self.own
        if not is_resolved(proxy):
            known = hints_of(proxy).target_type()
            if known is not None:
                holders = [vars(base) for base in known.__mro__ if self.name in vars(base)]
                if not holders:
                    raise AttributeError(
                        f"{known.__name__!r} object has no attribute {self.name!r}"
                    )
                found = holders[0][self.name]
                if not hasattr(type(found), "__get__"):
                    return found
        return getattr(proxy.__proxy_target__, self.name)


class Proxy(ProxySlots[T_co], metaclass=_ProxyMeta):
    """A stand-in for an object that is fetched when it is first used.

    ``isinstance``, ``hash``, ``repr`` and the probes of asyncio and other frameworks are answered
    from what the proxy knows about its target, without fetching it; where nobody told it the
    type, ``isinstance`` fetches. Everything else fetches it once, whoever asks, and then goes
    straight to it. ``await proxy`` gives the target itself without ever blocking the running event
    loop.

    A proxy does what its target does, in Python. C code that looks at the very type of what it is
    given (``json.dumps``, ``a_text.join([proxy])``, ``raise proxy``) refuses it, or takes it for
    something else: ``array[proxy]`` picks rows where the target is a tuple. Pass it
    ``await proxy`` or ``extract(proxy)``; ``docs/limits.md`` has a list.

    Args:
        factory: Called without arguments, once, to get the target; see `proxyplane.Factory`.
        target: The target, when the caller has it: the proxy is resolved from the start, and only
            its copies in other processes call the factory.

    Raises:
        TypeError: `factory` is not callable.
    """

    if not TYPE_CHECKING:
        __slots__ = ()
        # The descriptors are found here too, where the class itself is looked through.
        __proxy_factory__ = ProxySlots.__proxy_factory__
        __proxy_hints__ = ProxySlots.__proxy_hints__
        __proxy_target__ = ProxySlots.__proxy_target__

    __module__ = _FromTarget("__module__", __name__)

    def __new__(cls, factory: Callable[[], T_co], *, target: Any = MISSING) -> Proxy[T_co]:
        if not callable(factory):
            raise TypeError(f"a proxy needs a callable factory, not {type(factory).__name__}")
        if target is not MISSING:
            return make_proxy(factory, Hints.of(target), target)
        proxy: Any = ProxySlots()  # as `make_proxy`
        proxy.__proxy_factory__ = factory
        proxy.__proxy_hints__ = NO_HINTS
        proxy.__proxy_interest__ = None
        proxy.__class__ = _unknown
        made: Proxy[T_co] = proxy  # `cast` is a call
        return made

    def __class_getitem__(cls, item: Any) -> GenericAlias:
        return GenericAlias(cls, item)

    # -- the target -----------------------------------------------------------------------------

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name < "`":  # one look, and most names are done: these begin with "_" or a capital
                if name == "__proxy_target__":
                    return touch(self)  # the slot is unset: this is the moment to resolve
                if name[:1] == "_" and not is_resolved(self) and hints_of(self).answers(name):
                    return partial(_call_method, self, name)
            return getattr(self.__proxy_target__, name)

        def __init_subclass__(cls, *, made_for_target: bool = False) -> None:
            if not made_for_target:
                raise TypeError("Proxy makes a subclass for each target type, and has no others")

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(self.__proxy_target__, name, value)

        def __delattr__(self, name: str) -> None:
            delattr(self.__proxy_target__, name)

        @property
        def __class__(self) -> type:
            try:
                return get_target(self).__class__
            except AttributeError:
                if is_resolved(self):
                    raise
            asking = sys._getframe(1)
            kind = hints_of(self).type_for(asking, Proxy)
            if kind is not None and type(self) is not _unknown:
                return kind  # the class was made for it: see `class_told`
            if kind is None:
                if getattr(factory_of(self), "deferred", False):
                    return Proxy  # a probe is not worth waiting for a producer
                kind = self.__proxy_target__.__class__
            return type(self) if trusts_the_class(kind) and not only_compares(asking) else kind

    def __await__(self) -> Generator[Any, None, T_co]:
        return aresolve(self).__await__()

    # -- what every object has ------------------------------------------------------------------

    def __repr__(self) -> str:
        if is_resolved(self):
            return repr(self.__proxy_target__)
        hints = hints_of(self)
        name = f"[{hints.type_label}]" if hints.type_label else ""
        size = f" {hints.size_label}" if hints.size is not None else ""
        where = getattr(get_factory(self), "where", None)
        return f"<Proxy{name}{size}{f' {where}' if where else ''}, unresolved>"

    def __str__(self) -> str:
        return str(self.__proxy_target__)

    def __format__(self, spec: str) -> str:
        return format(self.__proxy_target__, spec)

    def __dir__(self) -> list[str]:
        return dir(self.__proxy_target__)

    # What a comparison gives depends on the target: an array gives an array. Mypy learns it from
    # the plugin, as whether there is a hash; to other checkers it is some object.
    if TYPE_CHECKING and not MYPY:

        def __eq__(self, other: object) -> object: ...  # pyright: ignore[reportIncompatibleMethodOverride]
        def __ne__(self, other: object) -> object: ...  # pyright: ignore[reportIncompatibleMethodOverride]

    if not TYPE_CHECKING:

        def __hash__(self) -> int:
            if not is_resolved(self):
                known = hints_of(self).hash
                if known is False:
                    raise TypeError(f"unhashable type: {hints_of(self).type_label!r}")
                if known is not None:
                    return known
            return hash(self.__proxy_target__)

        def __eq__(self, other: object) -> Any:
            return self.__proxy_target__ == other

        def __ne__(self, other: object) -> Any:
            return self.__proxy_target__ != other

        def __lt__(self, other: Any) -> Any:
            return self.__proxy_target__ < other

        def __le__(self, other: Any) -> Any:
            return self.__proxy_target__ <= other

        def __gt__(self, other: Any) -> Any:
            return self.__proxy_target__ > other

        def __ge__(self, other: Any) -> Any:
            return self.__proxy_target__ >= other

    # -- copies ---------------------------------------------------------------------------------

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        interest = get_interest(self)
        if interest is not None:
            eager.pass_on(interest)
        factory: Any = get_factory(self)
        if getattr(type(factory), "__reduce__", None) is StoreFactory.__reduce__:
            # One flat call: less than half the size of nested objects.
            return rebuild, (*factory.flat(), *hints_of(self).flat())
        hints = hints_of(self)
        return make_proxy, (factory,) if hints is NO_HINTS else (factory, hints)

    if not TYPE_CHECKING:

        def __copy__(self) -> Proxy[T_co]:
            return make_proxy(get_factory(self), hints_of(self))

        def __deepcopy__(self, memo: dict[int, Any]) -> Proxy[T_co]:
            return make_proxy(copy.deepcopy(get_factory(self), memo), hints_of(self))

    def __proxy_accept__(self, target: Any) -> None:
        """Takes what was fetched, unless another fetch was faster."""
        if not is_resolved(self):
            self.__proxy_deliver__(target)

    def __proxy_deliver__(self, target: Any) -> None:
        """Sets the target, and makes this a proxy of the type that it turned out to have."""
        set_target(self, target)
        wanted = _classes.get(type(target))
        if type(self) is not wanted:
            set_class(self, wanted)


# Assigned here, where the docstring above has served its readers.
Proxy.__doc__ = cast(str, _FromTarget("__doc__", Proxy.__doc__))
Proxy.__annotations__ = cast("dict[str, Any]", _FromTarget("__annotations__", {}))

_classes = ClassCache(Proxy)
_unknown = _classes.unknown


def _call_method(proxy: Proxy[Any], name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(proxy.__proxy_target__, name)(*args, **kwargs)


def make_proxy(
    factory: Callable[[], T], hints: Hints = NO_HINTS, target: Any = MISSING
) -> Proxy[T]:
    """Makes a proxy; resolved if `target` is given."""
    # Filled while it is of a class that forwards nothing: plain stores take a quarter of the time
    # of calls to the slots' descriptors.
    proxy: Any = ProxySlots()
    proxy.__proxy_factory__ = factory
    proxy.__proxy_hints__ = hints
    proxy.__proxy_interest__ = None
    if target is MISSING:
        proxy.__class__ = _classes.get(hints.target_type())
    else:
        proxy.__proxy_target__ = target
        proxy.__class__ = _classes.get(type(target))
    made: Proxy[T] = proxy
    return made


def rebuild(
    reference: str,
    key: bytes | str,
    flags: int,
    size: int | None,
    type_name: str | None,
    hash: int | None,
    seed: int | None,
) -> Proxy[Any]:
    """Inverse of pickling a store's proxy."""
    factory = rebuild_factory(reference, key, flags, size)
    proxy: Proxy[Any] = make_proxy(factory, Hints.from_flat(size, type_name, hash, seed))
    if not flags & (EVICT | EAGER_OFF):
        set_interest(proxy, eager.arrive(proxy, ahead_of(factory)))
    return proxy


ProxyOr: TypeAlias = Proxy[T] | T
"""A proxy of something, or that something."""
