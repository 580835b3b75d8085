"""The class of a proxy: what it can do, and what it is taken for."""

from __future__ import annotations

import collections
import collections.abc
import math
import numbers
import os
import pathlib
import sys
import types
import typing
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from proxyplane import Proxy, extract, is_resolved
from proxyplane.hints import NO_HINTS, Hints
from proxyplane.proxy import make_proxy
from support.targets import TARGETS, Odd, Point, Slotted, greet


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


class Changing:
    """A target whose attributes come and go."""

    __slots__ = ("__dict__", "late")
    constant = 1

    @property
    def failing(self) -> Any:
        return self.late + 1  # an AttributeError of its own

    def method(self) -> int:
        return 2


@pytest.mark.parametrize("resolved", [False, True])
def test_attributes_of_the_class(resolved: bool) -> None:
    """What the target's class has is the target's, whatever becomes of it later."""
    target: Any = Changing()
    p = make(target)
    if resolved:
        extract(p)
    assert p.constant == 1
    assert p.method.__self__ is target
    with pytest.raises(AttributeError, match="late"):
        _ = p.failing
    assert not hasattr(p, "late")
    p.late = 3
    assert (target.late, p.late, p.failing) == (3, 3, 4)
    del p.late
    assert not hasattr(target, "late")
    kind: Any = Changing
    kind.constant, kind.newer = 5, 6
    try:
        assert (p.constant, p.newer) == (5, 6)
        target.constant = 7
        assert p.constant == 7
        del kind.constant
        assert p.constant == 7
        del p.constant
        with pytest.raises(AttributeError, match="'Changing' object has no attribute 'constant'"):
            _ = p.constant
    finally:
        kind.constant = 1
        del kind.newer


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


def test_annotations() -> None:
    """Annotations are the target's, also after somebody looked for those of the class."""
    p: Any = Proxy(lambda: greet)
    assert p.__annotations__ == greet.__annotations__
    assert type(p).__annotations__ == Proxy.__annotations__ == {}
    assert p.__annotations__ == greet.__annotations__
    q = make(Point())
    assert type(q).__annotations__ == {}
    assert q.__annotations__ == Point.__annotations__
    assert not is_resolved(q)


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
