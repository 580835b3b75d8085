"""A proxy does what its target does: the same calls on both, for many types of targets."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import datetime as dt
import math
import operator
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from proxyplane import Proxy, extract
from proxyplane.hints import NO_HINTS, Hints
from proxyplane.proxy import make_proxy
from support.targets import TARGETS, Color, Pair, Point


def match_it(p: Any) -> Any:
    match p:
        case [a, b, c]:
            return "three", a, b, c
        case {"a": a}:
            return "mapping", a
        case Point(x=x):
            return "point", x
        case Pair(a, b):
            return "pair", a, b
        case int() | float() | complex():
            return "number"
        case str():
            return "str"
        case bytes() | bytearray():
            return "bytes"
        case [a, *rest]:
            return "sequence", a, rest
        case Color.RED:
            return "red"
        case type():
            return "class"
    return "else"


OPERANDS: list[Any] = [
    5, 2.0, "x", b"x", [1], (1,), {"a": 1}, {1}, np.arange(2), dt.timedelta(1), None,
]  # fmt: skip

CALLS: dict[str, Callable[[Any], Any]] = {
    f.__name__: f
    for f in [
        len, bool, str, bytes, int, float, complex, list, tuple, set, frozenset, dict, sorted, sum,
        min, max, abs, round, hash, iter, reversed, enumerate, range, chr, hex, dir,
        operator.index, operator.neg, operator.pos, operator.inv, operator.length_hint,
        math.trunc, math.isfinite,
        np.array, np.asarray, np.mean, np.sum, np.sin, np.isnan, np.shape, np.ndim, np.zeros,
        dataclasses.is_dataclass, dataclasses.asdict, dataclasses.fields, dataclasses.replace,
        pathlib.PurePath, os.fspath, match_it,
    ]
}  # fmt: skip
CALLS |= {
    "callable": callable,
    "f-string": lambda p: f"{p}",
    "format": lambda p: format(p, ">5"),
    "percent": lambda p: "%s" % (p,),  # noqa: UP031
    "join": lambda p: "".join(p),
    "divmod": lambda p: divmod(p, 2),
    "rdivmod": lambda p: divmod(9, p),
    "pow": lambda p: pow(p, 2, 5),
    "round to": lambda p: round(p, 1),
    "concatenate": lambda p: np.concatenate([p, p]),
    "stack": lambda p: np.stack([p, p]),
    "add": lambda p: np.add(p, 1),
    "reduce": lambda p: np.add.reduce(p),
    "where": lambda p: np.where(p, 1, 2),
    "dot": lambda p: np.dot(p, p),
    "out": lambda p: np.multiply(p, 2, out=np.empty(6)),
    "fill": lambda p: np.full(2, p),
    "frame": lambda p: pd.DataFrame({"a": [1, 2]}) + p,
    "frame of": lambda p: pd.DataFrame(p),
    "of frame": lambda p: p + pd.DataFrame({"a": [1, 2]}),
    "concat": lambda p: pd.concat([p, p]),
    "merge": lambda p: pd.DataFrame({"a": [1, 2]}).merge(p),
    "item of list": lambda p: [1, 2, 3, 4, 5, 6, 7, 8, 9][p],
    "item of text": lambda p: "abcdefghi"[p],
    "column": lambda p: pd.DataFrame({"5": [1, 2], 7: [2, 3]})[p],
    "rows": lambda p: pd.Series(range(8))[p],
    "isinstance of it": lambda p: isinstance([], p),
    "issubclass of it": lambda p: issubclass(list, p),
    "call": lambda p: p(),
    "name": lambda p: p.__name__,
    "doc": lambda p: p.__doc__,
    "module": lambda p: p.__module__,
    "vars": lambda p: list(vars(p)),
    "or": lambda p: p | int,
    "star": lambda p: [*p],
    "stars": lambda p: {**p},
    "unpack": lambda p: (lambda a, b: (a, b))(*p),
    "extend": lambda p: (lambda items: (items.extend(p), items)[1])([]),
    "in": lambda p: 1 in p,
    "first": lambda p: p[0],
    "part": lambda p: p[0:1],
    "by name": lambda p: p["a"],
    "next": lambda p: next(iter(p)),
    "equals itself": lambda p: p == p,  # noqa: PLR0124
    "type": lambda p: p.__class__,
    "iadd to list": lambda p: (lambda items: in_place_add(items, p))([0]),
}
for _op in (
    "add sub mul truediv floordiv mod matmul lshift rshift and_ or_ xor pow "
    "eq ne lt le gt ge contains getitem"
).split():
    _function = getattr(operator, _op)
    for _operand in OPERANDS:
        if _op in ("lshift", "rshift", "pow") and not isinstance(_operand, int):
            continue  # too large a number is quickly made
        _kind = type(_operand).__name__
        CALLS[f"p {_op} {_kind}"] = lambda p, f=_function, o=_operand: f(p, o)
        if _op != "mod" or _kind not in ("str", "bytes"):  # that looks for a tuple, or items
            CALLS[f"{_kind} {_op} p"] = lambda p, f=_function, o=_operand: f(o, p)


def in_place_add(items: Any, p: Any) -> Any:
    other = items
    items += p
    return other


# Where C code looks at the very type of what it is given and refuses a proxy. Whatever is not
# listed here is the same for the target and its proxy.
ITEMS = {f"{kind} getitem p" for kind in ("bytes", "list", "str", "tuple", "ndarray")}
REFUSED = {
    "bytearray": {"bytes contains p"},
    "bytes": {"bytes contains p"},
    "matrix": {"bytes contains p"},
    "ndarray": {"bytes contains p"},
    "numpy float": {"bytes contains p"},
    "set": {"set contains p"},
    "slice": ITEMS | {"column", "item of list", "item of text"},
    "str": {"str contains p"},
}
# Where it does something else. NumPy's scalars have items, which would make a sequence of their
# proxy; pandas would take a set that turns into an array for an array. The proxy of a text has
# the number that ``float`` finds in it.
OTHERWISE = {
    "str": {"isfinite"},
    "exception": {"hash"},  # by identity
    "slice": {"rows"},
    "IntEnum": {"rows"},
    "module": {"callable"},
    "int": {"rows"},
    "numpy int": {"rows", "p getitem NoneType"},
    "numpy float": {"p getitem NoneType"},
    "set": {"array", "asarray", "fill", "stack"},
    "frozenset": {"array", "asarray", "fill", "stack"},
}
if sys.version_info >= (3, 12):
    # NumPy takes a proxied ``bytes`` for the buffer that it is there.
    made = "array asarray mean sum sin isnan shape ndim concatenate stack fill add reduce dot where"
    OTHERWISE["bytes"] = {name for name in CALLS if "ndarray" in name} | set(made.split())
# As long as nobody knows the type, the class of the proxy has every special method.
OTHERWISE_UNKNOWN = {"callable", "match_it", "asdict", "is_dataclass", "replace", "zeros"}


def outcome(call: Callable[[Any], Any], argument: Any) -> Any:
    try:
        result = call(argument)
    except Exception as error:
        return error
    return extract(result) if issubclass(type(result), Proxy) else result


def same(expected: Any, actual: Any) -> bool:
    if isinstance(expected, Exception) or isinstance(actual, Exception):
        return isinstance(expected, Exception) and isinstance(actual, Exception)
    if type(expected) is not type(actual):
        return False
    if isinstance(expected, np.ndarray):
        kinds = expected.dtype == actual.dtype and expected.shape == actual.shape
        return kinds and repr(expected) == repr(actual)
    if isinstance(expected, pd.DataFrame | pd.Series | pd.Index | pl.DataFrame | pl.Series):
        return bool(expected.equals(actual))
    if isinstance(expected, collections.abc.Iterator):
        return True
    return repr(expected) == repr(actual) or bool(expected == actual)


def known(make: Callable[[], Any]) -> Hints:
    return Hints.of(make(), 50)


def unknown(make: Callable[[], Any]) -> Hints:
    return NO_HINTS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hints", [known, unknown])
@pytest.mark.parametrize("target", TARGETS)
def test_same_as_target(target: str, hints: Callable[..., Hints]) -> None:
    """Whatever can be done with the target gives the same with its proxy, by one fetch at most."""
    make = TARGETS[target]
    differences = []
    for name, call in CALLS.items():
        fetches: list[int] = []

        def factory() -> Any:
            fetches.append(1)  # noqa: B023
            return make()

        p = make_proxy(factory, hints(make))
        expected, actual = outcome(call, make()), outcome(call, p)
        allowed = name in OTHERWISE.get(target, ()) or (
            hints is unknown and name in OTHERWISE_UNKNOWN
        )
        if isinstance(actual, TypeError | IndexError) and name in REFUSED.get(target, ()):
            continue
        if not allowed and not same(expected, actual):
            differences.append((name, expected, actual))
        if len(fetches) > 1:
            differences.append((name, "one fetch", len(fetches)))
    assert [] == differences
