"""What a proxy knows about its target without having it: type, size and hash."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
import weakref
from typing import Any, Final

__all__ = ["NO_HINTS", "Hints"]

# Larger objects are not hashed when they are put: hashing reads every byte.
HASH_LIMIT = 4096

# Text and bytes hash differently in each process unless the seed is shared; so a hash is believed
# only where this one comes out the same.
_SEED: Final = hash("proxyplane") & 0xFFFFFFFF
_SAME_HASH_EVERYWHERE = (int, float, complex)
_HASHED_BY_VALUE = (bool, int, float, complex, str, bytes)

# What these are depends on the one at hand, and so do the names that frameworks look for on them.
_NOT_NAMED = (
    type,
    types.BuiltinFunctionType,
    types.FunctionType,
    types.GenericAlias,
    types.MethodType,
    types.ModuleType,
)

# Who asks for the class of everything that passes by, and means the proxy: an event loop whether
# it is a future, a pickler whether it is a function. A fetch would stall the one, and the other
# would send the target along.
_ASK_ABOUT_THE_PROXY = ("asyncio", "cloudpickle", "dill")
# Who chooses by it how to show the object, when showing it must not fetch it.
_SHOW_THE_PROXY = ("IPython", "_pydevd_bundle", "pprint", "pydevd_plugins")
_ASK_FOR_OTHERS = ("abc", "dataclasses", "functools", "inspect", "typing")
# Who would rebuild a list, item by item, as what `type` says it is; in place of copying a proxy.
_COPY_THE_PROXY = ("_asdict_inner", "_astuple_inner")

_METHODS = (types.FunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)

# What frameworks look for on anything that passes by. No unresolved target is worth fetching for
# one of these, and what a proxy of a wrapped function wraps is the target's business.
_PROBES = frozenset(
    {
        "_asyncio_future_blocking",
        "_is_coroutine",
        "_is_coroutine_marker",
        "_pytestfixturefunction",
        "__isabstractmethod__",
        "__signature__",
        "__wrapped__",
    }
)
_PROBE_PREFIXES = ("_ipython_", "_repr_", "__pydantic_", "__get_pydantic_")


class Hints:
    """Facts about a target, taken when it was stored.

    Args:
        type_name: ``"module:qualname"`` of the target's type, or None.
        size: Size of the encoded target in bytes, or None.
        hash: The target's hash; False if it has none; None if not known.
    """

    __slots__ = ("_type", "hash", "size", "type_name")

    def __init__(
        self, type_name: str | None = None, size: int | None = None, hash: int | None = None
    ) -> None:
        self.type_name = type_name
        self.size = size
        self.hash = hash
        self._type: type | None = None

    @classmethod
    def of(cls, target: Any, size: int | None = None) -> Hints:
        """The hints for `target`, whose encoded size is `size` bytes."""
        kind = type(target)
        hints = cls(type_name(kind), size, _hash_of(target, kind, size))
        hints._type = None if issubclass(kind, _NOT_NAMED) else kind
        return hints

    def flat(self) -> tuple[int | None, str | None, int | None, int | None]:
        """What travels: (size, type name, hash, hash seed)."""
        kind = self.target_type()
        everywhere = not self.hash or kind in _SAME_HASH_EVERYWHERE  # None, False, or just zero
        return self.size, self.type_name, self.hash, None if everywhere else _SEED

    @classmethod
    def from_flat(
        cls, size: int | None, type_name: str | None, hash: int | None, seed: int | None
    ) -> Hints:
        """Inverse of `flat`, in the process that reads it."""
        return cls(type_name, size, hash if seed is None or seed == _SEED else None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hints.from_flat, self.flat()

    def target_type(self) -> type | None:
        """The target's type, if its module is imported in this process."""
        kind = self._type
        if kind is None and self.type_name is not None:
            kind = self._type = _find_type(self.type_name)
        return kind

    def type_for(self, asking: types.FrameType, own: type) -> type | None:
        """The type that code is told which asks for the class of an unresolved proxy.

        Args:
            asking: The code that asks.
            own: The class that a proxy has when nobody knows better.

        Returns:
            None if only the target can tell.
        """
        package = _asking_package(asking)
        if package in _SHOW_THE_PROXY or asking.f_code.co_name in _COPY_THE_PROXY:
            return own
        if package in _ASK_ABOUT_THE_PROXY:
            return self.target_type() or own
        if self.target_type() is None and self.type_name is not None:
            # To import is less than to fetch, which would import too.
            # Whatever is wrong with that module, the hint is worth nothing then.
            with contextlib.suppress(Exception):
                importlib.import_module(self.type_name.partition(":")[0])
        return self.target_type()

    @property
    def type_label(self) -> str:
        """The bare name of the type, for messages; empty if not known."""
        if self.type_name is None:
            return "" if self._type is None else self._type.__qualname__
        return self.type_name.rpartition(":")[2]

    @property
    def size_label(self) -> str:
        """The size for people, as in ``95.4 MiB``; empty if not known."""
        if self.size is None:
            return ""
        size, unit = float(self.size), "B"
        for larger in ("KiB", "MiB", "GiB", "TiB"):
            if size < 1024:
                break
            size, unit = size / 1024, larger
        return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"

    def answers(self, name: str) -> bool:
        """Whether the target has a method `name`; False also where only the target can tell.

        Raises:
            AttributeError: The target has nothing of that name, or nobody should ask it.
        """
        if name in _PROBES or name.startswith(_PROBE_PREFIXES):
            raise AttributeError(f"unresolved proxy has no attribute {name!r}")
        known = self.target_type()
        if known is None or not (name.startswith("__") and name.endswith("__")):
            return False
        for base in known.__mro__:
            if name in base.__dict__:
                return isinstance(base.__dict__[name], _METHODS)
        raise AttributeError(f"{known.__name__!r} object has no attribute {name!r}")


NO_HINTS: Final = Hints()


def _asking_package(frame: types.FrameType | None) -> str:
    """The package on whose behalf somebody asks."""
    while frame is not None:
        package: str = frame.f_globals.get("__name__", "").partition(".")[0]
        if package == "inspect" and frame.f_code.co_name == "isawaitable":
            return "asyncio"
        if package not in _ASK_FOR_OTHERS:
            return package
        frame = frame.f_back
    return ""


_type_names: weakref.WeakKeyDictionary[type, str | None] = weakref.WeakKeyDictionary()


def type_name(kind: type) -> str | None:
    """The name by which another process finds `kind`; None if it would not."""
    try:
        return _type_names[kind]
    except (KeyError, TypeError):  # not asked before, or a metaclass that cannot be hashed
        pass
    name = None
    if not issubclass(kind, _NOT_NAMED):
        # Interned, so that the proxies of one pickle share it.
        name = sys.intern(f"{kind.__module__}:{kind.__qualname__}")
        if _find_type(name) is not kind:  # a local class, or another of the same name
            name = None
    with contextlib.suppress(TypeError):
        _type_names[kind] = name
    return name


def _find_type(name: str) -> type | None:
    """The type of a name, if it is imported; runs no code of its module."""
    module_name, parts = _split(name)
    found: Any = sys.modules.get(module_name)
    for part in parts:
        found = getattr(found, "__dict__", _EMPTY).get(part)
    return found if isinstance(found, type) else None


_EMPTY: Final[dict[str, Any]] = {}


@functools.lru_cache(1024)  # the names are few, the proxies that carry them many
def _split(name: str) -> tuple[str, tuple[str, ...]]:
    module_name, _, qualname = name.partition(":")
    return module_name, tuple(qualname.split("."))


def _hash_of(target: Any, kind: type, size: int | None) -> int | None:
    if kind.__hash__ is None:
        return False
    if size is None or size > HASH_LIMIT or not _hashed_by_value(target):
        return None
    try:
        return hash(target)
    except TypeError:  # a tuple that holds a list
        return False


def _hashed_by_value(target: Any) -> bool:
    # A hash that is by identity, in part, is another in each process and each copy: that of NaN
    # and of most objects, and so of what contains one.
    kind = type(target)
    if kind in (tuple, frozenset):
        return all(map(_hashed_by_value, target))
    return kind in _HASHED_BY_VALUE and target == target  # NaN is not
