"""A proxy does what its target does: the same calls on both, for many types of targets."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import math
import numbers
import operator
import os
import pathlib
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from proxyplane import Proxy, extract, is_resolved
from proxyplane.hints import NO_HINTS, Hints
from proxyplane.proxy import make_proxy


@dataclasses.dataclass
class Point:
    x: int = 1
    tags: list[str] = dataclasses.field(default_factory=lambda: ["a"])


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 3

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and other.value == self.value

    def __hash__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return "Slotted()"


class OldSequence:
    """A sequence by `__getitem__` alone."""

    def __getitem__(self, index: int) -> int:
        if index > 2:
            raise IndexError(index)
        return index * 10

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OldSequence)

    def __hash__(self) -> int:
        return 5

    def __repr__(self) -> str:
        return "OldSequence()"


class Pair(typing.NamedTuple):
    a: int
    b: int


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Uncooperative(type):
    """A metaclass whose classes cannot be hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(cls, other: object) -> bool:
        return cls is other


class Odd(metaclass=Uncooperative):
    def __len__(self) -> int:
        return 7

    def __hash__(self) -> int:
        return 7

    def __repr__(self) -> str:
        return "Odd()"


def greet(name: str = "you") -> str:
    """Says hello."""
    return f"hello {name}"


TARGETS: dict[str, Callable[[], Any]] = {
    "int": lambda: 7,
    "float": lambda: 2.5,
    "complex": lambda: 1 + 2j,
    "str": lambda: "5",
    "bytes": lambda: b"ab",
    "bytearray": lambda: bytearray(b"ab"),
    "list": lambda: [3, 1, 2],
    "tuple": lambda: (1, 2),
    "dict": lambda: {"a": 1, "b": 2},
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset({1}),
    "range": lambda: range(4),
    "slice": lambda: slice(0, 2),
    "deque": lambda: collections.deque([1, 2]),
    "Counter": lambda: collections.Counter("aab"),
    "OrderedDict": lambda: collections.OrderedDict(a=1),
    "ndarray": lambda: np.arange(6.0),
    "matrix": lambda: np.array([[1.0, 2.0], [3.0, 4.0]]),
    "numpy float": lambda: np.float64(3.5),
    "numpy int": lambda: np.int64(3),
    "DataFrame": lambda: pd.DataFrame({"a": [1, 2], "b": [3.0, 4.0]}),
    "Series": lambda: pd.Series([1, 2, 3]),
    "Index": lambda: pd.Index([1, 2, 3]),
    "polars frame": lambda: pl.DataFrame({"a": [1, 2]}),
    "polars series": lambda: pl.Series([1, 2]),
    "Decimal": lambda: decimal.Decimal("1.5"),
    "Fraction": lambda: fractions.Fraction(1, 3),
    "date": lambda: dt.date(2020, 1, 2),
    "timedelta": lambda: dt.timedelta(1),
    "path": lambda: pathlib.PurePosixPath("/tmp"),
    "dataclass": Point,
    "slots": Slotted,
    "getitem only": OldSequence,
    "namedtuple": lambda: Pair(1, 2),
    "enum": lambda: Color.RED,
    "IntEnum": lambda: Level.LOW,
    "exception": lambda: ValueError("x"),
    "class": lambda: list,
    "generic alias": lambda: list[int],
    "function": lambda: greet,
    "builtin": lambda: len,
    "module": lambda: math,
}


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


def make(target: Any) -> Any:
    return make_proxy(lambda: target, Hints.of(target, 50))


ABCS = [
    abc
    for module in (collections.abc, numbers)
    for abc in vars(module).values()
    if isinstance(abc, type(collections.abc.Sized))
    and abc.__name__ not in ("Awaitable", "ByteString")  # the latter is deprecated
]
HASHED_LATE = {"class", "generic alias", "function", "builtin", "module"}


@pytest.mark.parametrize("target", sorted(set(TARGETS) - HASHED_LATE))
@pytest.mark.parametrize("abc", ABCS)
def test_abcs(target: str, abc: type) -> None:
    """A proxy, and its class, belong to the ABCs of the target, unresolved and resolved."""
    value = TARGETS[target]()
    p = make(value)
    assert isinstance(value, abc) == isinstance(p, abc)
    assert not is_resolved(p)
    if target not in ("str", "bytes", "bytearray"):  # sequences, but not to ``match``
        assert isinstance(value, abc) == issubclass(type(p), abc)
    extract(p)
    assert isinstance(value, abc) == isinstance(p, abc)


def test_every_proxy_is_awaitable() -> None:
    """`Awaitable` is the one thing that a proxy is and its target is not."""
    p = make([1])
    assert isinstance(p, collections.abc.Awaitable)
    assert not isinstance(extract(p), collections.abc.Awaitable)


@pytest.mark.parametrize("target", TARGETS)
def test_has_the_special_methods_of_its_target(target: str) -> None:
    """A resolved proxy has no operator, item or call that its target lacks."""
    value = TARGETS[target]()
    p = Proxy(lambda: value, target=value)
    names = "call iter next len contains getitem setitem delitem enter exit index neg add radd and"
    for name in (f"__{name}__" for name in names.split()):
        if name == "__getitem__" and target.startswith("numpy"):
            continue
        if name == "__radd__":  # there for the sake of left operands that do not give way
            continue
        has, proxy_has = (
            any(name in vars(base) for base in kind.__mro__) for kind in (type(value), type(p))
        )
        assert has == proxy_has, name


def test_class_becomes_that_of_the_target() -> None:
    """A proxy of unknown type supports everything; resolved, what its target does."""
    p = Proxy(lambda: 5)
    assert callable(p)
    assert p + 1 == 6
    assert not callable(p)
    with pytest.raises(TypeError, match="not iterable"):
        iter(p)


def test_subclass_of_the_hint() -> None:
    """When the target turns out to be of another type than the hint said, the proxy follows."""
    p = make_proxy(lambda: collections.OrderedDict(a=1), Hints.of({"a": 1}, 50))
    assert p.__class__ is dict
    assert list(p) == ["a"]
    assert p.__class__ is collections.OrderedDict
    p.move_to_end("a")


def test_metaclass_that_cannot_be_hashed() -> None:
    """A type that no table can hold gets the full class."""
    p = make(Odd())
    assert len(p) == 7
    assert isinstance(p, Odd)


def test_unknown_protocols_raise_type_error() -> None:
    """What the target does not support is a TypeError, as without a proxy."""

    def unknown() -> Any:
        return Proxy(lambda: 5)

    for use in (
        iter, len, next, lambda p: p(), lambda p: p[0], lambda p: 1 in p,
        os.fspath, lambda p: p.__enter__(), lambda p: p @ 2,
    ):  # fmt: skip
        with pytest.raises(TypeError):
            use(unknown())
    with pytest.raises(TypeError), unknown():
        pass


# -- operators in place -------------------------------------------------------------------------


def test_in_place_gives_the_proxy() -> None:
    """An operator in place changes the target and gives the proxy."""
    items = [1]
    p = before = make(items)
    p += [2]
    p *= 2
    assert p is before
    assert items == [1, 2, 1, 2]


def test_in_place_may_change_the_type() -> None:
    """A number that turns from int to float makes the proxy one of a float."""
    p = before = make(7)
    p /= 2
    assert p is before
    assert type(extract(p)) is float
    assert isinstance(p, float)
    with pytest.raises(TypeError):
        p << 1


@pytest.mark.parametrize(
    ("start", "step"),
    [
        ([1], [2]),
        ([1], (2,)),
        ([1], {2: 3}),
        ([1], "ab"),
        (bytearray(b"a"), b"b"),
        (collections.deque([1]), [2]),
    ],
)
def test_grown_by_a_proxy(start: Any, step: Any) -> None:
    """What grows by a proxy in place stays the same object, as others see it."""
    items = start.copy()
    items += make(step)
    expected = start.copy()
    expected += step
    assert expected == items
    alias = items = start.copy()
    items += Proxy(lambda: step)
    assert alias is items
    assert expected == alias


@pytest.mark.parametrize("op", ["|=", "&=", "-=", "^="])
def test_set_changed_by_a_proxy(op: str) -> None:
    """A set that a proxy changes in place stays the same object."""
    names = {"items": {1, 2}, "p": make({2, 3})}
    alias = names["items"]
    exec(f"items {op} p", names)
    expected = {"items": {1, 2}, "p": {2, 3}}
    exec(f"items {op} p", expected)
    assert alias is names["items"]
    assert expected["items"] == alias


def test_added_to_a_list() -> None:
    """A list and a proxy of a list make a new list."""
    items = [1]
    made = items + make([2])
    assert type(made) is list
    assert made == [1, 2]
    assert items == [1]


def test_two_proxies() -> None:
    """An operator between proxies gives the bare result."""
    assert type(make([1]) + make([2])) is list
    assert type(make(np.ones(2)) * make(np.ones(2))) is np.ndarray
    assert make(3) - make(2) == 1


# -- attributes ---------------------------------------------------------------------------------


def test_attributes_are_the_targets() -> None:
    """Setting and deleting an attribute goes to the target."""
    target = Point()
    p: Any = make(target)
    p.x = 5
    p.extra = 6
    assert (target.x, target.extra) == (5, 6)  # type: ignore[attr-defined]
    del p.extra
    assert not hasattr(target, "extra")
    assert not hasattr(p, "extra")
    with pytest.raises(AttributeError):
        make(Slotted()).other = 1


def test_class_attributes_are_the_proxys() -> None:
    """The class has its own module, name and documentation, an instance has its target's."""
    assert Proxy.__module__ == "proxyplane.proxy"
    assert Proxy.__name__ == "Proxy"
    assert "stand-in" in (Proxy.__doc__ or "")
    p = make(Point())
    assert type(p).__module__ == "proxyplane.proxy"
    assert p.__module__ == Point.__module__
    assert p.__doc__ == Point.__doc__
    assert not is_resolved(p)


def test_function_target() -> None:
    """A proxied function is called, has its name and signature, and is documented."""
    import functools
    import inspect

    p = Proxy(lambda: greet)
    assert p("me") == "hello me"
    assert p.__name__ == "greet"
    assert inspect.signature(p) == inspect.signature(greet)
    assert p.__doc__ == greet.__doc__
    assert typing.get_type_hints(p) == typing.get_type_hints(greet)
    assert inspect.unwrap(p) is p

    @functools.wraps(p)
    def wrapper() -> None: ...

    assert wrapper.__name__ == "greet"


def test_class_target() -> None:
    """A proxied class makes instances and is one to `isinstance` and `issubclass`."""
    p = Proxy(lambda: Point)
    assert type(p(x=3)) is Point
    assert isinstance(Point(), p)
    assert issubclass(Point, p)
    assert isinstance(p, type)
    assert p.__name__ == "Point"


def test_instance_of_a_metaclass_is_not_taken_for_its_type() -> None:
    """What the class of a class says is not said of the class."""
    p = make(Point)
    assert p.__doc__ == Point.__doc__
    assert p.__module__ == Point.__module__


def test_proxy_of_a_proxy() -> None:
    """A proxy whose target is a proxy works through both."""
    p = Proxy(lambda: Proxy(lambda: [1, 2]))
    assert p == [1, 2]
    assert len(p) == 2
    assert isinstance(p, list)
    assert p + [3] == [1, 2, 3]


def test_module_target() -> None:
    """A proxied module has the names of the module."""
    p = Proxy(lambda: math)
    assert p.floor(2.5) == 2
    assert isinstance(p, types.ModuleType)


def test_exception_target() -> None:
    """A proxied exception has its arguments; only C code sees that it is none."""
    p = make(ValueError("x"))
    assert isinstance(p, ValueError)
    assert p.args == ("x",)
    with pytest.raises(TypeError, match="must derive from BaseException"):
        raise p


# -- protocols ----------------------------------------------------------------------------------


def test_context_manager(tmp_path: pathlib.Path) -> None:
    """A proxied context manager is entered and left."""
    file = open(tmp_path / "f", "w")
    with Proxy(lambda: file) as entered:
        assert entered is file
    assert file.closed


def test_path_of_a_text(tmp_path: pathlib.Path) -> None:
    """A proxied text is a path to `open`, and so are a path and bytes."""
    path = tmp_path / "f"
    path.write_text("here")
    for target in (str(path), path, os.fsencode(path)):
        with open(make(target)) as file:
            assert file.read() == "here"
        with open(Proxy(lambda t=target: t)) as file:  # type: ignore[misc]
            assert file.read() == "here"


class Ticker:
    def __init__(self) -> None:
        self.entered = self.left = False
        self.numbers = iter([1, 2])

    async def __aenter__(self) -> str:
        self.entered = True
        return "entered"

    async def __aexit__(self, *exc_info: object) -> None:
        self.left = True

    def __aiter__(self) -> Ticker:
        return self

    async def __anext__(self) -> int:
        for number in self.numbers:
            return number
        raise StopAsyncIteration


@pytest.mark.parametrize("hints", [NO_HINTS, Hints.of(Ticker())])
async def test_async_protocols(hints: Hints) -> None:
    """`async with` and `async for` wait for the target without blocking the loop."""
    ticker = Ticker()
    async with make_proxy(lambda: ticker, hints) as entered:
        assert entered == "entered"
        assert not ticker.left
    assert ticker.left
    p: Any = make_proxy(lambda: ticker, hints)
    assert [n async for n in p] == [1, 2]
    ticker.numbers = iter([3])
    assert await anext(make_proxy(lambda: ticker, hints)) == 3
    with pytest.raises(TypeError):
        async with Proxy(lambda: 5):  # type: ignore[attr-defined]
            pass


# -- NumPy and pandas ---------------------------------------------------------------------------


def test_numpy_out() -> None:
    """A proxied array takes the output of a ufunc."""
    out = np.zeros(3)
    result = np.add(make(np.ones(3)), 1, out=make(out), where=make(np.array([True, False, True])))
    assert result.tolist() == out.tolist() == [2, 0, 2]
    np.multiply.at(make(out), [0], 5)
    assert out.tolist() == [10, 0, 2]


@pytest.mark.parametrize("dtype", ["float32", None])
def test_numpy_constructors(dtype: str | None) -> None:
    """An array made of a proxy has the type of the target's numbers, or the one asked for."""
    for target in (7, [1, 2], np.arange(3), (1.5,)):
        for p in (make(target), Proxy(lambda t=target: t)):  # type: ignore[misc]
            made, expected = np.array(p, dtype=dtype), np.array(target, dtype=dtype)
            assert made.dtype == expected.dtype
            assert made.tolist() == expected.tolist()
    array = np.arange(3)
    assert np.shares_memory(np.asarray(make(array)), array)
    assert not np.shares_memory(np.array(make(array), copy=True), array)


def test_numpy_keeps_subclasses() -> None:
    """A masked array stays one."""
    masked = np.ma.array([1, 2, 3], mask=[0, 1, 0])
    assert type(np.sqrt(make(masked))) is np.ma.MaskedArray
    assert np.mean(make(masked)) == 2


def test_pandas_indexing() -> None:
    """pandas takes a proxied list of names, mask or text for what it is."""
    # Columns of pandas' own type for text look at the C type of what they are asked for.
    names = pd.Index(["a", "b"], dtype=object)
    frame = pd.DataFrame([[1, 4], [2, 5], [3, 6]], columns=names)
    assert list(frame[make(["b"])].columns) == ["b"]
    assert frame[make("a")].tolist() == [1, 2, 3]
    assert frame[make(np.array([True, False, True]))]["a"].tolist() == [1, 3]
    assert frame[make(frame["a"] > 1)]["a"].tolist() == [2, 3]
    assert frame.loc[make([0, 2]), "b"].tolist() == [4, 6]
    assert frame.iloc[make(slice(0, 1)).stop]["a"] == 2


def test_pandas_arithmetic() -> None:
    """A frame and a proxied frame add up to a frame, either way."""
    frame = pd.DataFrame({"a": [1, 2]})
    for total in (frame + make(frame), make(frame) + frame, make(frame) + make(frame)):
        assert type(total) is pd.DataFrame
        assert total["a"].tolist() == [2, 4]
    assert (frame["a"] * make(pd.Series([3, 4]))).tolist() == [3, 8]


def test_polars() -> None:
    """A proxied polars frame does what frames do."""
    frame = pl.DataFrame({"a": [1, 2]})
    assert make(frame).select(pl.col("a").sum()).item() == 3
    assert pl.concat([frame, extract(make(frame))]).height == 4


@pytest.mark.skipif(sys.version_info < (3, 12), reason="buffers in Python are new in 3.12")
def test_buffers() -> None:
    """A proxied buffer is one, without a copy."""
    target = bytearray(b"abc")
    view = memoryview(make(target))
    target[0] = ord("z")
    assert bytes(view) == b"zbc"
    assert b"-".join([make(b"a"), make(b"b")]) == b"a-b"
