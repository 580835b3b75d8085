"""What PyTorch and JAX need, that they see the target where they are given its proxy.

Nothing here imports either: whoever asks has.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from proxyplane._slots import ProxySlots

if TYPE_CHECKING:
    import dis

# -- PyTorch: the class of each argument is asked whether it takes the call over -----------------


def torch_function(
    cls: type, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
) -> Any:
    """``__torch_function__``: the same call, of the targets."""
    found: list[Any] = []
    args, kwargs = _unwrapped(args, found), _unwrapped(kwargs or {}, found)
    # A call with its proxies left in place would come here again, and again.
    return func(*args, **kwargs) if found else NotImplemented


def _unwrapped(value: Any, found: list[Any]) -> Any:
    """`value` with targets for the proxies in its lists, tuples and dicts; these go to `found`."""
    kind = type(value)
    if issubclass(kind, ProxySlots):
        found.append(value)
        return value.__proxy_target__
    if kind is list or kind is tuple:
        return kind(_unwrapped(item, found) for item in value)
    if kind is dict:
        return {key: _unwrapped(item, found) for key, item in value.items()}
    return value


def trusts_the_class(kind: type) -> bool:
    """Whether C code takes a ``__class__`` of `kind` as proof of what is in the memory.

    That of PyTorch calls `PyObject_IsInstance` and then reads the fields of a tensor, which a proxy
    has not: garbage, or a crash.
    """
    return any(base.__module__ == "torch._C" for base in kind.__mro__)


# What asks for the class and only compares it. ABCs ask by the last of the names. An index may be
# told: whether it is a tensor decides what it means, and then it is asked to take the call over.
_COMPARES = {"isinstance", "issubclass", "getattr", "__class__", "_abc_instancecheck"}
_COMPARES |= {"MATCH_CLASS", "BINARY_SUBSCR", "STORE_SUBSCR"}


def only_compares(asking: types.FrameType) -> bool:
    """Whether the code that asks for a class just compares it, as far as one can see."""
    return _what_runs(asking.f_code, asking.f_lasti) in _COMPARES


@functools.lru_cache(1024)
def _what_runs(code: types.CodeType, offset: int) -> object:
    """What the instruction at `offset` does: the name that it calls or gets, or its own."""
    import dis

    before: list[dis.Instruction] = []
    for instruction in dis.get_instructions(code):
        if instruction.offset == offset:
            does = instruction.opname
            if "CALL" in does:  # that of Python 3.11 may be its PRECALL
                return _called(before, instruction)
            return instruction.argval if "LOAD" in does else does
        before.append(instruction)
    return None


def _called(before: Sequence[dis.Instruction], call: dis.Instruction) -> object:
    """The name that is called; None if it is no plain name, which could be that of anything."""
    place = _place_of(call)
    if place is None:
        return _called_by_depth(before, call)
    name = None
    for instruction in before:
        if _place_of(instruction) == place:  # what a call begins with begins where that does
            if "LOAD" in instruction.opname:
                name = _plain_name(instruction)
            elif instruction.opname in _CALLS:
                name = None  # what this one gave is called, not what it called
    return name


def _called_by_depth(before: Sequence[dis.Instruction], call: dis.Instruction) -> object:
    """The same without columns (-X no_debug_ranges), unless an argument is a condition."""
    import dis

    if call.opname not in ("CALL", "PRECALL"):
        return None
    depth = call.arg or 0  # of the stack, above what is called
    for instruction in reversed(before):
        if "JUMP" in instruction.opname or "FOR_ITER" in instruction.opname:
            return None
        if depth <= 0 and instruction.opname != "PUSH_NULL":
            return _plain_name(instruction)
        if instruction.opname == "PRECALL" and instruction is before[-1]:
            continue  # takes what the call takes
        depth -= dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
    return None


_CALLS = {"CALL", "CALL_KW", "CALL_FUNCTION_EX"}


def _plain_name(instruction: dis.Instruction) -> object:
    does = instruction.opname
    return instruction.argval if "LOAD" in does and not does.endswith(("ATTR", "METHOD")) else None


def _place_of(instruction: dis.Instruction) -> tuple[int, int] | None:
    """The line and the column."""
    at = instruction.positions
    if at is None or at.lineno is None or at.col_offset is None:
        return None
    return at.lineno, at.col_offset


def class_told(kind: type) -> property:
    """The ``__class__`` of a proxy whose target is of a `kind` that C code trusts."""
    return property(lambda self: kind if only_compares(sys._getframe(1)) else type(self))


# -- JAX: what it compiles takes trees of arrays, of which a proxy is one; the rest asks for one ---


def register_with_jax(proxy_class: Any, target_type: type) -> None:
    """Makes proxies of arrays what the functions of JAX take, if JAX is there."""
    jax, numpy = sys.modules.get("jax"), sys.modules.get("numpy")
    arrays = getattr(jax, "Array", None), getattr(numpy, "ndarray", None)
    if jax is None or not issubclass(target_type, tuple(filter(None, arrays))):
        return
    proxy_class.__jax_array__ = lambda proxy: jax.numpy.asarray(proxy.__proxy_target__)
    jax.tree_util.register_pytree_node(
        proxy_class, lambda proxy: ((proxy.__proxy_target__,), None), lambda _, leaves: leaves[0]
    )
