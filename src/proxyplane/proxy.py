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
from proxyplane._runtime import eager, flights
from proxyplane._runtime.blocking import about_to_block
from proxyplane._runtime.flight import Flight
from proxyplane._runtime.window import Interest
from proxyplane.cache import MISSING
from proxyplane.exceptions import ProxyResolveError
from proxyplane.factory import EAGER_OFF, EVICT, CallableSource, StoreFactory, rebuild_factory
from proxyplane.hints import NO_HINTS, Hints

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MYPY = False  # mypy takes it for true

if TYPE_CHECKING:
    from typing import Generic

    class _Base(Generic[T_co]):
        __slots__ = ()
        __proxy_target__: Any  # not in `Proxy`: an instance's annotations are its target's
else:

    class _Base:
        # At run time `typing.Generic` would put its own names before the target's.
        __slots__ = ()

        def __class_getitem__(cls, item: Any) -> type:
            return cls


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
            known = _hints(proxy).target_type()
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


class Proxy(_Base[T_co], metaclass=_ProxyMeta):
    """A stand-in for an object that is fetched when it is first used.

    ``isinstance``, ``hash``, ``repr`` and the probes of asyncio and other frameworks are answered
    from what the proxy knows about its target, without fetching it; where nobody told it the
    type, ``isinstance`` fetches. Everything else fetches it once, whoever asks, and then goes
    straight to it. ``await proxy`` gives the target itself without ever blocking the running event
    loop.

    A proxy does what its target does, in Python. C code that looks at the very type of what it is
    given (``json.dumps``, ``a_text.join([proxy])``, ``raise proxy``) refuses it, or takes it for
    something else: ``array[proxy]`` picks rows where the target is a tuple. Pass it
    ``await proxy`` or ``extract(proxy)``.

    Args:
        factory: Called without arguments, once, to get the target; see `proxyplane.Factory`.
        target: The target, when the caller has it: the proxy is resolved from the start, and only
            its copies in other processes call the factory.

    Raises:
        TypeError: `factory` is not callable.
    """

    # To a type checker, that knows of slots, nothing could be both a proxy and a list, and what
    # follows ``isinstance(p, list)`` would not be checked. So it is with the copies below.
    if not TYPE_CHECKING:
        __slots__ = (
            "__proxy_factory__",
            "__proxy_hints__",
            "__proxy_interest__",
            "__proxy_target__",
            "__weakref__",
        )

    __module__ = _FromTarget("__module__", __name__)

    def __new__(cls, factory: Callable[[], T_co], *, target: Any = MISSING) -> Proxy[T_co]:
        if not callable(factory):
            raise TypeError(f"a proxy needs a callable factory, not {type(factory).__name__}")
        hints = NO_HINTS if target is MISSING else Hints.of(target)
        return make_proxy(factory, hints, target)

    def __class_getitem__(cls, item: Any) -> GenericAlias:
        return GenericAlias(cls, item)

    # -- the target -----------------------------------------------------------------------------

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name[:1] == "_":
                if name == "__proxy_target__":
                    return _touch(self)  # the slot is unset: this is the moment to resolve
                if not is_resolved(self) and _hints(self).answers(name):
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
                return _get_target(self).__class__
            except AttributeError:
                if is_resolved(self):
                    raise
            known = _hints(self).type_for(sys._getframe(1), Proxy)
            if known is None and getattr(_get_factory(self), "deferred", False):
                return Proxy  # a probe is not worth waiting for a producer
            return self.__proxy_target__.__class__ if known is None else known

    def __await__(self) -> Generator[Any, None, T_co]:
        return aresolve(self).__await__()

    # -- what every object has ------------------------------------------------------------------

    def __repr__(self) -> str:
        if is_resolved(self):
            return repr(self.__proxy_target__)
        hints = _hints(self)
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
                known = _hints(self).hash
                if known is False:
                    raise TypeError(f"unhashable type: {_hints(self).type_label!r}")
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
            return rebuild, (*factory.flat(), *_hints(self).flat())
        hints = _hints(self)
        return make_proxy, (factory,) if hints is NO_HINTS else (factory, hints)

    if not TYPE_CHECKING:

        def __copy__(self) -> Proxy[T_co]:
            return make_proxy(get_factory(self), _hints(self))

        def __deepcopy__(self, memo: dict[int, Any]) -> Proxy[T_co]:
            return make_proxy(copy.deepcopy(get_factory(self), memo), _hints(self))

    def __proxy_accept__(self, target: Any) -> None:
        """Takes what was fetched, unless another fetch was faster."""
        if not is_resolved(self):
            self.__proxy_deliver__(target)

    def __proxy_deliver__(self, target: Any) -> None:
        """Sets the target, and makes this a proxy of the type that it turned out to have."""
        _set_target(self, target)
        wanted = _classes.get(type(target))
        if type(self) is not wanted:
            _set_class(self, wanted)


# Assigned here, where the docstring above has served its readers.
Proxy.__doc__ = cast(str, _FromTarget("__doc__", Proxy.__doc__))
Proxy.__annotations__ = cast("dict[str, Any]", _FromTarget("__annotations__", {}))

# The slots, read and written past `__getattr__` and `__setattr__`.
_get_target = Proxy.__dict__["__proxy_target__"].__get__
_set_target = Proxy.__dict__["__proxy_target__"].__set__
_get_factory = Proxy.__dict__["__proxy_factory__"].__get__
_set_factory = Proxy.__dict__["__proxy_factory__"].__set__
_hints: Callable[[Any], Hints] = Proxy.__dict__["__proxy_hints__"].__get__
_set_hints = Proxy.__dict__["__proxy_hints__"].__set__
get_interest: Callable[[Any], Interest | None] = Proxy.__dict__["__proxy_interest__"].__get__
set_interest = Proxy.__dict__["__proxy_interest__"].__set__
_set_class = object.__dict__["__class__"].__set__

_classes = ClassCache(Proxy)


def _call_method(proxy: Proxy[Any], name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(proxy.__proxy_target__, name)(*args, **kwargs)


def make_proxy(
    factory: Callable[[], T], hints: Hints = NO_HINTS, target: Any = MISSING
) -> Proxy[T]:
    """Makes a proxy; resolved if `target` is given."""
    kind = hints.target_type() if target is MISSING else type(target)
    proxy: Any = object.__new__(_classes.get(kind))
    _set_factory(proxy, factory)
    _set_hints(proxy, hints)
    set_interest(proxy, None)
    if target is not MISSING:
        _set_target(proxy, target)
    return cast("Proxy[T]", proxy)


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
        set_interest(proxy, eager.arrive(proxy, factory))
    return proxy


# -- resolving --------------------------------------------------------------------------------


def _source(proxy: Proxy[Any]) -> Any:
    """Where from `proxy` is resolved now; the background does not begin with it any more."""
    interest = get_interest(proxy)
    if interest is not None:
        interest.source = None
    factory = _get_factory(proxy)
    return factory if isinstance(factory, StoreFactory) else CallableSource(factory)


def _join(proxy: Proxy[Any], source: Any) -> Flight | None:
    key = source.flight_key
    return flights.join(
        id(proxy) if key is None else key,
        source,
        partial(is_resolved, proxy),
        proxy.__proxy_accept__,
    )


def _touch(proxy: Proxy[T]) -> T:
    """Resolves `proxy`, blocking this thread, and returns its target."""
    source = _source(proxy)
    try:
        source.prepare()
    except Exception as error:
        raise ProxyResolveError(f"could not resolve {source}: {error}", cause=error) from error
    target = source.cached()
    if target is not MISSING:
        flights.hand_over(proxy.__proxy_accept__, target)
        return cast(T, _get_target(proxy))
    about_to_block(lambda: f"touching {proxy!r}", source.on_blocking)
    flight = _join(proxy, source)
    if flight is None:
        return cast(T, _get_target(proxy))
    try:
        return cast(T, flight.wait_blocking())
    finally:
        flight.leave()


async def aresolve(proxy: Proxy[T]) -> T:
    """Resolves a proxy without blocking the running loop, and returns its target.

    Args:
        proxy: A proxy.

    Returns:
        The target itself, not a proxy.

    Raises:
        ProxyResolveError: The target could not be had; what went wrong is its `cause`.
        ProxyResolveMissingKeyError: The store does not hold the object.
    """
    _require_proxy(proxy)
    if is_resolved(proxy):
        return cast(T, _get_target(proxy))
    source = _source(proxy)
    source.refuse_cycle()
    target = source.cached()
    if target is not MISSING:
        flights.hand_over(proxy.__proxy_accept__, target)
        return cast(T, _get_target(proxy))
    flight = _join(proxy, source)
    if flight is None:
        return cast(T, _get_target(proxy))
    try:
        return cast(T, await flight.wait())
    finally:
        flight.leave()


def resolve(proxy: Proxy[Any]) -> None:
    """Resolves a proxy; blocks until its target is here. Blocking twin of `aresolve`.

    Raises:
        ProxyResolveError: The target could not be had; what went wrong is its `cause`.
    """
    _require_proxy(proxy)
    _ = proxy.__proxy_target__


def resolve_async(proxy: Proxy[Any]) -> None:
    """Starts to resolve a proxy in the background and returns at once.

    Does nothing if the proxy is resolved. If it fails, the first use of the proxy tries again and
    raises.
    """
    _require_proxy(proxy)
    if is_resolved(proxy):
        return
    flight = _join(proxy, _source(proxy))
    if flight is not None:
        flight.start()
        flight.leave()


def is_resolved(proxy: Proxy[Any]) -> bool:
    """Whether a proxy has its target; never fetches it."""
    try:
        _get_target(proxy)
    except AttributeError:
        return False
    return True


def extract(proxy: Proxy[T]) -> T:
    """The target of a proxy, the object itself; blocks until it is here.

    Raises:
        ProxyResolveError: The target could not be had; what went wrong is its `cause`.
    """
    _require_proxy(proxy)
    return cast(T, proxy.__proxy_target__)


async def aextract(proxy: Proxy[T]) -> T:
    """Async twin of `extract`; the same as `aresolve` and as ``await proxy``."""
    return await aresolve(proxy)


def get_factory(proxy: Proxy[T]) -> Callable[[], T]:
    """The factory of a proxy; never fetches the target."""
    _require_proxy(proxy)
    return cast("Callable[[], T]", _get_factory(proxy))


def get_key(proxy: Proxy[Any]) -> str:
    """The key under which a proxy's target is stored; never fetches it.

    Raises:
        TypeError: The proxy was not made by a store.
    """
    return _store_factory(proxy).key


def evict(proxy: Proxy[Any]) -> None:
    """Removes the target of a proxy from its store; blocks until that is done.

    A resolved proxy keeps its target; unresolved ones of the same object will fail.

    Raises:
        TypeError: The proxy was not made by a store.
    """
    factory = _store_factory(proxy)
    store = factory.store
    store.evicting(factory.key).perform_blocking(store.on_blocking)


async def aevict(proxy: Proxy[Any]) -> None:
    """Async twin of `evict`."""
    factory = _store_factory(proxy)
    await factory.store.evicting(factory.key).perform()


def _store_factory(proxy: Proxy[Any]) -> StoreFactory[Any]:
    factory = get_factory(proxy)
    if not isinstance(factory, StoreFactory):
        raise TypeError(f"{proxy!r} was not made by a store, so it has no key and nothing to evict")
    return factory


def _require_proxy(value: object) -> None:
    if not issubclass(type(value), Proxy):
        raise TypeError(f"expected a Proxy, got {type(value).__name__}")


# -- locked, maybe ------------------------------------------------------------------------------


class ProxyLocker(_Base[T_co]):
    """A box for a proxy, which code that passes it on cannot resolve by accident.

    Args:
        proxy: The proxy to keep.
    """

    __slots__ = ("_proxy",)

    def __init__(self, proxy: Proxy[T_co]) -> None:
        _require_proxy(proxy)
        self._proxy = proxy

    def unlock(self) -> Proxy[T_co]:
        """The proxy."""
        return self._proxy

    def __repr__(self) -> str:
        return f"ProxyLocker({self._proxy!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ProxyLocker, (self._proxy,)


ProxyOr: TypeAlias = Proxy[T] | T
"""A proxy of something, or that something."""
