"""Which special methods a proxy has: those of its target's type, and no others.

Python looks special methods up on the class, so what a proxy can do is decided by its class. A
class with every special method would claim to be callable, iterable and a number at once, and
``callable``, the ABCs, ``match`` and pandas would believe it. So each target type gets its own
subclass of the proxy class, made once and kept, with just that type's special methods.
"""

from __future__ import annotations

import abc
import collections.abc
import math
import numbers
import opcode
import operator
import os
import sys
import types
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

from proxyplane._frameworks import (
    class_told,
    register_with_jax,
    torch_function,
    trusts_the_class,
)
from proxyplane._slots import ProxySlots

# Bits of ``type.__flags__`` by which ``match`` tells sequences and mappings.
_SEQUENCE_FLAG, _MAPPING_FLAG = 1 << 5, 1 << 6


class _MatchesAsSequence(abc.ABC):  # noqa: B024
    """Sets the flag, on whatever is registered here: arrays have it and are no `Sequence`."""

    __abc_tpflags__ = _SEQUENCE_FLAG


def _operator_forwards() -> Iterator[tuple[str, Callable[..., Any], tuple[str, ...]]]:
    """Yields (method, forward, target methods of which one must exist)."""
    binary = "add sub mul truediv floordiv mod matmul lshift rshift and or xor".split()
    for name in binary:
        plain, reflected, inplace = f"__{name}__", f"__r{name}__", f"__i{name}__"
        op, in_place = getattr(operator, plain), getattr(operator, inplace)
        yield plain, _binary(op), (plain,)
        # A type's left operand may be of another type that gives way to ours (str + proxy), so
        # the reflected form exists where either does.
        yield reflected, _reflected(op, in_place), (plain, reflected)
        yield inplace, _inplace(in_place), (plain, inplace)
    yield "__pow__", lambda self, *args: pow(self.__proxy_target__, *args), ("__pow__",)
    yield "__rpow__", _reflected(operator.pow, operator.ipow), ("__pow__", "__rpow__")
    yield "__ipow__", _inplace(operator.ipow), ("__pow__", "__ipow__")
    yield "__divmod__", _binary(divmod), ("__divmod__",)
    yield "__rdivmod__", _reflected(divmod, divmod), ("__divmod__", "__rdivmod__")


def _binary(op: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda self, other: op(self.__proxy_target__, other)


def _reflected(
    op: Callable[[Any, Any], Any], in_place: Callable[[Any, Any], Any]
) -> Callable[[Any, Any], Any]:
    def forward(self: Any, other: Any) -> Any:
        # ``a_list += proxy`` comes here before the list itself is asked, and whoever else has
        # the list must see it grow.
        if type(other) in _MUTABLE and _is_in_place(sys._getframe(1)):
            return in_place(other, self.__proxy_target__)
        return op(other, self.__proxy_target__)

    return forward


_MUTABLE = (bytearray, collections.deque, list, set)


def _is_in_place(frame: types.FrameType) -> bool:
    """Whether the operator at which `frame` is has the form ``a += b``."""
    operation, kind = frame.f_code.co_code[frame.f_lasti : frame.f_lasti + 2]
    return operation == _BINARY_OP and kind >= _FIRST_IN_PLACE


_BINARY_OP: int = opcode.opmap["BINARY_OP"]
_FIRST_IN_PLACE = 13  # of the kinds of BINARY_OP, in the order in which Python has them


def _inplace(op: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def forward(self: Any, other: Any) -> Any:
        self.__proxy_deliver__(op(self.__proxy_target__, other))
        return self

    return forward


def _unary(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda self: function(self.__proxy_target__)


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: _special(self.__proxy_target__, name)(*args, **kwargs)


def _special(target: Any, name: str) -> Callable[..., Any]:
    # Where a protocol is not supported Python raises TypeError, and so must the full class, which
    # seems to support every one.
    method = getattr(target, name, None)
    if method is None:
        raise TypeError(f"{type(target).__name__!r} object has no {name}")
    return cast("Callable[..., Any]", method)


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.__proxy_target__(*args, **kwargs)


def _round(self: Any, *digits: Any) -> Any:
    return round(self.__proxy_target__, *digits)


def _getitem(self: Any, key: Any) -> Any:
    return self.__proxy_target__[key]


def _contains(self: Any, item: Any) -> Any:
    return item in self.__proxy_target__


def _setitem(self: Any, key: Any, value: Any) -> None:
    self.__proxy_target__[key] = value


# -- async protocols: they can wait for the target without stalling the loop ---------------------


async def _aenter(self: Any) -> Any:
    return await _special(await self, "__aenter__")()


async def _aexit(self: Any, *exc_info: Any) -> Any:
    return await _special(await self, "__aexit__")(*exc_info)


async def _anext(self: Any) -> Any:
    return await anext(await self)


async def _aiter(self: Any) -> AsyncIterator[Any]:
    async for item in await self:
        yield item


# -- NumPy: it knows numbers, text and lists by their C types, which a proxy cannot have ---------


def _array(self: Any, *args: Any, **kwargs: Any) -> Any:
    target = self.__proxy_target__
    if hasattr(type(target), "__array__"):
        return target.__array__(*args, **kwargs)
    import numpy as np  # it is imported, or who would ask

    if kwargs.get("copy") is None:  # NumPy 1 has no such argument
        kwargs.pop("copy", None)
    return np.array(target, *args, **kwargs)


def _array_ufunc(
    self: Any, ufunc: Any, method: str, first: Any, /, *others: Any, **kwargs: Any
) -> Any:
    # NumPy calls this for any operand that has it; with the targets in place of the proxies it
    # finds the arrays, or hands on to another class that overrides.
    first = self.__proxy_target__ if first is self else _unwrap(first)
    if kwargs or method != "__call__":
        if "out" in kwargs:
            kwargs["out"] = tuple(map(_unwrap, kwargs["out"]))
        if "where" in kwargs:
            kwargs["where"] = _unwrap(kwargs["where"])
        return getattr(ufunc, method)(first, *map(_unwrap, others), **kwargs)
    return ufunc(first, *map(_unwrap, others)) if others else ufunc(first)


def _unwrap(value: Any) -> Any:
    return value.__proxy_target__ if issubclass(type(value), ProxySlots) else value


_UNARY: dict[str, Callable[[Any], Any]] = {
    "__abs__": abs,
    "__bool__": bool,
    "__ceil__": math.ceil,
    "__complex__": complex,
    "__float__": float,
    "__floor__": math.floor,
    "__fspath__": os.fspath,
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
    "__trunc__": math.trunc,
}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "__delitem__": operator.delitem,
    "__instancecheck__": lambda target, instance: isinstance(instance, target),
    "__subclasscheck__": lambda target, subclass: issubclass(subclass, target),
}
_METHODS = ["__buffer__", "__enter__", "__exit__"]

# Method -> (forward, the target's methods of which one must exist for the proxy to have it).
_FORWARDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    **{name: (forward, needs) for name, forward, needs in _operator_forwards()},
    **{name: (_unary(function), (name,)) for name, function in _UNARY.items()},
    **{name: (_binary(function), (name,)) for name, function in _BINARY.items()},
    **{name: (_method(name), (name,)) for name in _METHODS},
    "__aenter__": (_aenter, ("__aenter__",)),
    "__aexit__": (_aexit, ("__aexit__",)),
    "__aiter__": (_aiter, ("__aiter__",)),
    "__anext__": (_anext, ("__anext__",)),
    "__call__": (_call, ("__call__",)),
    "__contains__": (_contains, ("__contains__",)),
    "__getitem__": (_getitem, ("__getitem__",)),
    "__round__": (_round, ("__round__",)),
    "__setitem__": (_setitem, ("__setitem__",)),
    # ``bytes`` takes what has no method for it: a buffer, a size, numbers.
    "__bytes__": (_unary(bytes), ()),
    "__array__": (_array, ()),
    "__array_ufunc__": (_array_ufunc, ()),
    "__torch_function__": (classmethod(torch_function), ("__torch_function__",)),
}
for _name, (_forward, _) in _FORWARDS.items():
    _forward.__name__ = _name

# What C code does for these types without asking for a special method: a path, the number in a
# text.
_BEYOND_METHODS: dict[type, list[str]] = {
    str: ["__complex__", "__float__", "__fspath__", "__int__"],
    bytes: ["__float__", "__fspath__", "__int__"],
    bytearray: ["__float__", "__int__"],
}
# And what it makes of a method that it would not find in their C types: a NumPy scalar has items
# and is no sequence, pandas takes for an array whatever turns into one.
_SHORT_OF_METHODS: dict[type, list[str]] = {
    numbers.Number: ["__getitem__"],
    collections.abc.Set: ["__array__"],
}

_ABCS: list[Any] = [
    kind
    for module in (collections.abc, numbers)
    for kind in vars(module).values()
    # ``isinstance`` of a ByteString warns that it is deprecated.
    if isinstance(kind, abc.ABCMeta) and kind.__name__ not in ("Awaitable", "ByteString")
]


def full_namespace() -> dict[str, Any]:
    """Special methods of a proxy whose target's type nobody knows yet."""
    # A buffer is handed out without a way to refuse.
    return {name: forward for name, (forward, _) in _FORWARDS.items() if name != "__buffer__"}


def namespace_for(target_type: type) -> dict[str, Any]:
    """Special methods of a proxy of `target_type`."""
    names = {
        name
        for name, (_, needs) in _FORWARDS.items()
        if not needs or any(_has(target_type, one) for one in needs)
    }
    for kind, more in _BEYOND_METHODS.items():
        if issubclass(target_type, kind):
            names.update(more)
    for kind, less in _SHORT_OF_METHODS.items():
        if issubclass(target_type, kind):
            names.difference_update(less)
    if _has(target_type, "__array__"):
        # NumPy asks for a buffer first, which knows less of the type than the array does.
        names.discard("__buffer__")
    found: dict[str, Any] = {name: _FORWARDS[name][0] for name in names}
    found.update(_attributes(target_type))
    if trusts_the_class(target_type):
        found["__class__"] = class_told(target_type)
    if target_type.__hash__ is None:
        found["__hash__"] = None
    for name in ("__dataclass_fields__", "__dataclass_params__"):
        # `dataclasses.asdict` and its like look for the one on the class; `pprint` for the other.
        if hasattr(target_type, name):
            found[name] = getattr(target_type, name)
    return found


def _attributes(target_type: type) -> Iterator[tuple[str, property]]:
    """Yields a forward for each public attribute that the type has: methods, properties, slots.

    Without one an attribute is looked for on the proxy in vain first, which up to Python 3.11 makes
    and drops an exception: 0.4 us instead of 0.05. One that raises AttributeError is asked twice,
    because Python then tries `__getattr__`.
    """
    for base in target_type.__mro__[:-1]:
        for name in tuple(base.__dict__):
            if name[:1] != "_" and name.isidentifier():
                yield name, property(operator.attrgetter(f"__proxy_target__.{name}"))


def _has(target_type: type, name: str) -> bool:
    # What a metaclass offers belongs to the class, not to its instances; None means "has not".
    for base in target_type.__mro__:
        if name in base.__dict__:
            return base.__dict__[name] is not None
    return False


def register_abcs(proxy_class: type, target_type: type) -> None:
    """Makes `proxy_class` a virtual subclass of every ABC that `target_type` belongs to."""
    flags = target_type.__flags__
    for kind in _ABCS:
        if not issubclass(target_type, kind) or issubclass(proxy_class, kind):
            continue
        # Registering passes on the flags by which ``match`` tells sequences and mappings, which
        # str and bytes are not although they are registered as sequences.
        if issubclass(kind, collections.abc.Sequence) and not flags & _SEQUENCE_FLAG:
            continue
        if issubclass(kind, collections.abc.Mapping) and not flags & _MAPPING_FLAG:
            continue
        kind.register(proxy_class)
    if flags & _SEQUENCE_FLAG:
        _MatchesAsSequence.register(proxy_class)


class ClassCache:
    """The subclasses of one proxy class made so far; each goes when its target type does."""

    def __init__(self, base: type) -> None:
        self.base = base
        self.unknown = self._make("", full_namespace())
        # By id, which takes a third of the time of a dictionary with weak keys.
        self._made: dict[int, type] = {id(None): self.unknown}
        self._alive: dict[int, weakref.ref[type]] = {}

    def get(self, target_type: type | None) -> type:
        """The class of a proxy whose target is of `target_type`; None if nobody knows."""
        return self._made.get(id(target_type)) or self._get_new(target_type)

    def _get_new(self, target_type: Any) -> type:
        try:
            made = self._make(f"[{target_type.__name__}]", namespace_for(target_type))
            register_abcs(made, target_type)
            register_with_jax(made, target_type)
        except Exception:  # noqa: BLE001  # a metaclass that refuses
            return self.unknown
        token = id(target_type)

        def forget(_: object) -> None:
            self._made.pop(token, None)
            self._alive.pop(token, None)

        self._alive.setdefault(token, weakref.ref(target_type, forget))
        # Two threads may both have made it; all proxies get the one that is kept.
        return self._made.setdefault(token, made)

    def _make(self, suffix: str, namespace: dict[str, Any]) -> type:
        # A class gets these of its own unless told, hiding the ones of the base that answer for
        # the target.
        names = "__annotations__", "__doc__", "__module__"
        inherited = {name: self.base.__dict__[name] for name in names}
        namespace = inherited | namespace | {"__slots__": ()}
        return type(self.base)(
            f"{self.base.__name__}{suffix}", (self.base,), namespace, made_for_target=True
        )
