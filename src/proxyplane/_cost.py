"""Whether encoding an object may take so long that it should not happen on an event loop."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable
from types import FunctionType, MemberDescriptorType
from typing import Any

# The limits aim at a millisecond, on a machine that pickles a small instance in 0.5 us, a numpy
# array in 2 us, a table in 15 us, and copies or checks a MiB in 0.2 ms. A wrong "yes" costs the
# hop to a worker (0.1 ms), a wrong "no" stalls everyone on the loop; so in doubt it is yes.
NODES = 1000
ARRAY_NODES = 2
TENSOR_NODES = 8
TABLE_NODES = 20
CELLS = 10_000
BYTES = 1024 * 1024

_ATOMS = frozenset({int, float, bool, complex, type(None), type(...), type(NotImplemented), range})
_REDUCE = {name: getattr(object, name) for name in ("__reduce__", "__reduce_ex__")}
_TABLES = {
    "pandas": ("DataFrame", "Series", "Index"),
    "polars": ("DataFrame", "Series"),
    "pyarrow": ("Table", "RecordBatch", "ChunkedArray", "Array"),
}


def encode_may_stall(obj: Any, *, checksum: bool = False) -> bool:
    """Whether encoding `obj` may take more than about a millisecond.

    Looks at up to a thousand nodes of builtin containers and plain instances, never at what is
    behind a ``__reduce__`` of its own (so never at the target of a proxy), and takes at most some
    tenths of a millisecond itself.

    Args:
        obj: What will be encoded with the default serialiser.
        checksum: Whether the bodies will be checked too.
    """
    try:
        return _Walk(checksum).stalls(obj)
    except Exception:  # noqa: BLE001  # a thread changes the container, an attribute raises, ...
        return True


class _Walk:
    """One bounded walk; every `_visit_...` returns True to stop: it may stall."""

    def __init__(self, checksum: bool) -> None:
        self.checksum = checksum
        self.nodes = NODES
        self.bytes = BYTES
        self.seen: set[int] = set()
        self.stack: list[Any] = []
        self.visitors: dict[type, Callable[[_Walk, Any], bool]] = {}

    def stalls(self, obj: Any) -> bool:
        kind = type(obj)
        if kind is bytes or kind is bytearray:
            return self.checksum and len(obj) > BYTES
        stack, seen, visitors = self.stack, self.seen, self.visitors
        stack.append(obj)
        while stack:
            obj = stack.pop()
            kind = type(obj)
            if kind in _ATOMS or id(obj) in seen:
                continue
            seen.add(id(obj))
            visit = visitors.get(kind)
            if visit is None:
                visit = visitors[kind] = _visitor(kind)
            if visit(self, obj) or self.bytes < 0:
                return True
        return False

    def push(self, count: int, *groups: Iterable[Any]) -> bool:
        self.nodes -= count
        if self.nodes < 0:
            return True
        for group in groups:
            self.stack.extend(group)
        return False

    def visit_text(self, obj: str) -> bool:
        self.bytes -= 2 * len(obj)  # encoded, then copied or checked
        return False

    def visit_bytes(self, obj: bytes) -> bool:
        self.bytes -= len(obj)
        return False

    def visit_dict(self, obj: dict[Any, Any]) -> bool:
        return self.push(2 * len(obj), dict.keys(obj), dict.values(obj))

    def visit_sequence(self, obj: Collection[Any]) -> bool:
        return self.push(len(obj), obj)

    def visit_opaque(self, obj: Any) -> bool:
        return False

    def visit_named(self, obj: Any) -> bool:
        # Pickled by value when it has no importable name, and cloudpickle is slow.
        return "<" in obj.__qualname__

    def visit_local(self, obj: Any) -> bool:
        return True

    def visit_table(self, obj: Any) -> bool:
        columns = len(obj.columns) if hasattr(obj, "columns") else 1
        return self.push(TABLE_NODES) or (len(obj) + 50) * max(columns, 1) > CELLS

    def visit_exact_array(self, obj: Any) -> bool:
        free = obj.flags.c_contiguous or obj.flags.f_contiguous
        return self.visit_array(obj, copied=self.checksum or not free)

    def visit_array(self, obj: Any, *, copied: bool = True) -> bool:
        if obj.dtype.hasobject or obj.dtype.kind == "T":
            return self.push(int(obj.size), obj.flat)
        if copied:
            self.bytes -= int(obj.nbytes)
        return self.push(ARRAY_NODES)

    def visit_tensor(self, obj: Any) -> bool:
        if self.checksum or obj.device.type != "cpu" or not obj.is_contiguous():
            self.bytes -= obj.nbytes
        return self.push(TENSOR_NODES)

    def visit_jax_array(self, obj: Any) -> bool:
        if self.checksum or {device.platform for device in obj.devices()} != {"cpu"}:
            self.bytes -= obj.nbytes
        return self.push(TENSOR_NODES)

    def visit_std_array(self, obj: Any) -> bool:
        self.bytes -= len(obj) * obj.itemsize
        return False

    def visit_instance(self, obj: Any) -> bool:
        kind = type(obj)
        if kind.__dictoffset__:
            values = object.__getattribute__(obj, "__dict__").values()
            if self.push(len(values), values):
                return True
        for base in kind.__mro__:
            if "__slots__" in vars(base):
                for member in vars(base).values():
                    if type(member) is MemberDescriptorType and self._push_member(member, obj):
                        return True
        return False

    def _push_member(self, member: MemberDescriptorType, obj: Any) -> bool:
        try:
            return self.push(1, (member.__get__(obj),))
        except AttributeError:
            return False  # the slot is empty


_BUILTINS: tuple[tuple[Any, Callable[[_Walk, Any], bool]], ...] = (
    (str, _Walk.visit_text),
    ((bytes, bytearray), _Walk.visit_bytes),
    (dict, _Walk.visit_dict),
    ((list, tuple, set, frozenset, deque), _Walk.visit_sequence),
    ((FunctionType, type), _Walk.visit_named),
)


def _visitor(kind: type) -> Callable[[_Walk, Any], bool]:
    """How to visit an instance; the class alone decides, since a proxy lies about its own."""
    for classes, visit in _BUILTINS:
        if issubclass(kind, classes):
            return visit
    if issubclass(kind, _loaded("numpy", "ndarray")):
        exact = kind in _loaded("numpy", "ndarray", "memmap")
        return _Walk.visit_exact_array if exact else _Walk.visit_array
    for library, names in _TABLES.items():
        if issubclass(kind, _loaded(library, *names)):
            return _Walk.visit_table
    if issubclass(kind, _loaded("torch", "Tensor")):
        return _Walk.visit_tensor
    if issubclass(kind, _loaded("jax", "Array")):
        return _Walk.visit_jax_array
    if issubclass(kind, _loaded("array", "array")):
        return _Walk.visit_std_array
    if "<" in kind.__qualname__:
        return _Walk.visit_local
    if any(getattr(kind, name) is not method for name, method in _REDUCE.items()):
        return _Walk.visit_opaque
    return _Walk.visit_instance


def _loaded(library: str, *names: str) -> tuple[type, ...]:
    """Classes of a library when this process has imported it; never imports it."""
    module = sys.modules.get(library)
    return tuple(getattr(module, name) for name in names if hasattr(module, name))
