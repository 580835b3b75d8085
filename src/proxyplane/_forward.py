"""Which special methods a proxy has: those of its target's type, and no others.

Python looks special methods up on the class, so what a proxy can do is decided by its class. A
class with every special method would claim to be callable, iterable and a number at once, and
``callable``, the ABCs, ``match`` and pandas would believe it. So each target type gets its own
subclass of the proxy class, made once and kept, with just that type's special methods.
"""

from __future__ import annotations

import collections.abc
import numbers
import operator
import weakref
from collections.abc import Callable, Iterator
from typing import Any

# Set by inspecting the type: bits of ``type.__flags__`` that ``match`` looks at.
_SEQUENCE_FLAG, _MAPPING_FLAG = 1 << 5, 1 << 6


def _operator_forwards() -> Iterator[tuple[str, Callable[..., Any], tuple[str, ...]]]:
    """Yields (method, forward, target methods of which one must exist)."""
    binary = "add sub mul truediv floordiv mod matmul lshift rshift and or xor".split()
    for name in binary:
        plain, reflected, inplace = f"__{name}__", f"__r{name}__", f"__i{name}__"
        op = getattr(operator, plain)
        yield plain, _binary(op), (plain,)
        # A type's left operand may be of another type that gives way to ours (str + proxy), so
        # the reflected form exists where either does.
        yield reflected, _reflected(op), (plain, reflected)
        yield inplace, _inplace(getattr(operator, inplace)), (plain, inplace)
    yield "__pow__", lambda self, *args: pow(self.__proxy_target__, *args), ("__pow__",)
    yield "__rpow__", _reflected(operator.pow), ("__pow__", "__rpow__")
    yield "__ipow__", _inplace(operator.ipow), ("__pow__", "__ipow__")
    yield "__divmod__", _binary(divmod), ("__divmod__",)
    yield "__rdivmod__", _reflected(divmod), ("__divmod__", "__rdivmod__")


def _binary(op: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda self, other: op(self.__proxy_target__, other)


def _reflected(op: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda self, other: op(other, self.__proxy_target__)


def _inplace(op: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def forward(self: Any, other: Any) -> Any:
        self.__proxy_deliver__(op(self.__proxy_target__, other))
        return self

    return forward


def _unary(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda self: function(self.__proxy_target__)


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: getattr(self.__proxy_target__, name)(*args, **kwargs)


def _array_ufunc(self: Any, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    # NumPy calls this for any operand that has it; with the targets in place of the proxies it
    # finds the arrays, or hands on to another class that overrides.
    if "out" in kwargs:
        kwargs["out"] = tuple(map(_unwrap, kwargs["out"]))
    if "where" in kwargs:
        kwargs["where"] = _unwrap(kwargs["where"])
    return getattr(ufunc, method)(*map(_unwrap, inputs), **kwargs)


def _setitem(self: Any, key: Any, value: Any) -> None:
    self.__proxy_target__[key] = value


def _unwrap(value: Any) -> Any:
    return value.__proxy_target__ if hasattr(type(value), "__proxy_target__") else value


_UNARY: dict[str, Callable[[Any], Any]] = {
    "__abs__": abs,
    "__bool__": bool,
    "__bytes__": bytes,
    "__complex__": complex,
    "__float__": float,
    "__index__": operator.index,
    "__int__": int,
    "__invert__": operator.invert,
    "__iter__": iter,
    "__len__": len,
    "__length_hint__": operator.length_hint,
    "__neg__": operator.neg,
    "__next__": next,
    "__pos__": operator.pos,
    "__reversed__": reversed,
}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "__contains__": operator.contains,
    "__delitem__": operator.delitem,
    "__getitem__": operator.getitem,
    "__instancecheck__": lambda target, instance: isinstance(instance, target),
    "__subclasscheck__": lambda target, subclass: issubclass(subclass, target),
}
_METHODS = [
    "__aenter__",
    "__aexit__",
    "__aiter__",
    "__anext__",
    "__array__",
    "__buffer__",
    "__call__",
    "__ceil__",
    "__enter__",
    "__exit__",
    "__floor__",
    "__fspath__",
    "__round__",
    "__trunc__",
]

# Method -> (forward, the target's methods of which one must exist for the proxy to have it).
_FORWARDS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    **{name: (forward, needs) for name, forward, needs in _operator_forwards()},
    **{name: (_unary(function), (name,)) for name, function in _UNARY.items()},
    **{name: (_binary(function), (name,)) for name, function in _BINARY.items()},
    **{name: (_method(name), (name,)) for name in _METHODS},
    "__array_ufunc__": (_array_ufunc, ("__array_ufunc__",)),
    "__setitem__": (_setitem, ("__setitem__",)),
}
for _name, (_forward, _) in _FORWARDS.items():
    _forward.__name__ = _name

# The full class, for targets of unknown type, must not claim these: an array is only what says so
# (NumPy would ask), and a buffer is handed out without a way to refuse.
_ONLY_WHEN_KNOWN = {"__array__", "__array_ufunc__", "__buffer__"}

_ABCS: list[Any] = [
    abc
    for module in (collections.abc, numbers)
    for abc in vars(module).values()
    if isinstance(abc, type(collections.abc.Sized)) and abc is not collections.abc.Awaitable
]


def full_namespace() -> dict[str, Any]:
    """Special methods of a proxy whose target's type nobody knows yet."""
    return {
        name: forward for name, (forward, _) in _FORWARDS.items() if name not in _ONLY_WHEN_KNOWN
    }


def namespace_for(target_type: type) -> dict[str, Any]:
    """Special methods of a proxy of `target_type`."""
    found = {
        name: forward
        for name, (forward, needs) in _FORWARDS.items()
        if any(_has(target_type, one) for one in needs)
    }
    if "__array__" in found:
        # NumPy asks for a buffer first, which knows less of the type than the array does.
        found.pop("__buffer__", None)
    if target_type.__hash__ is None:
        found["__hash__"] = None
    return found


def _has(target_type: type, name: str) -> bool:
    # What a metaclass offers belongs to the class, not to its instances; None means "has not".
    for base in target_type.__mro__:
        if name in base.__dict__:
            return base.__dict__[name] is not None
    return False


def register_abcs(proxy_class: type, target_type: type) -> None:
    """Makes `proxy_class` a virtual subclass of every ABC that `target_type` belongs to."""
    flags = target_type.__flags__
    for abc in _ABCS:
        if not issubclass(target_type, abc) or issubclass(proxy_class, abc):
            continue
        # Registering passes on the flags by which ``match`` tells sequences and mappings, which
        # str and bytes are not although they are registered as sequences.
        if issubclass(abc, collections.abc.Sequence) and not flags & _SEQUENCE_FLAG:
            continue
        if issubclass(abc, collections.abc.Mapping) and not flags & _MAPPING_FLAG:
            continue
        abc.register(proxy_class)


class ClassCache:
    """The subclasses of one proxy class made so far; each goes when its target type does."""

    def __init__(self, base: type) -> None:
        self.base = base
        self.unknown = self._make("", full_namespace())
        self._made: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()

    def get(self, target_type: type | None) -> type:
        """The class of a proxy whose target is of `target_type`; None if nobody knows."""
        if target_type is None:
            return self.unknown
        made = self._made.get(target_type)
        if made is None:
            made = self._make(f"[{target_type.__name__}]", namespace_for(target_type))
            register_abcs(made, target_type)
            # Two threads may both have made it; all proxies get the one that is kept.
            made = self._made.setdefault(target_type, made)
        return made

    def _make(self, suffix: str, namespace: dict[str, Any]) -> type:
        # A class gets its own __doc__ and __module__ unless told, hiding the ones of the base
        # that answer for the target.
        inherited = {name: self.base.__dict__[name] for name in ("__doc__", "__module__")}
        namespace = inherited | namespace | {"__slots__": ()}
        return type(self.base)(f"{self.base.__name__}{suffix}", (self.base,), namespace)
