"""Innocent code asks things of every object that passes by; a proxy answers without fetching."""

from __future__ import annotations

import abc
import asyncio
import collections.abc
import contextlib
import copy
import dataclasses
import functools
import inspect
import io
import json
import logging
import pdb
import pickle
import pprint
import reprlib
import subprocess
import sys
import textwrap
import typing
import unittest.mock
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dill
import numpy as np
import pandas as pd
import pytest

from proxyplane import Proxy, extract, is_resolved
from proxyplane.exceptions import BlockingCallError, BlockingResolveWarning, ProxyResolveError
from proxyplane.hints import NO_HINTS, Hints
from proxyplane.proxy import make_proxy


@dataclasses.dataclass
class Config:
    name: str = "x"


TARGETS: dict[str, Callable[[], Any]] = {
    "list": lambda: [1, 2],
    "dict": lambda: {"a": 1},
    "str": lambda: "text",
    "int": lambda: 5,
    "array": lambda: np.arange(3),
    "frame": lambda: pd.DataFrame({"a": [1]}),
    "object": Config,
}


class Counter:
    """A factory that counts how often it was called."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        return TARGETS[self.target]()


class Plain:
    pass


class Base(abc.ABC):  # noqa: B024
    pass


def ipython_display(p: Any) -> None:
    from IPython.core.formatters import DisplayFormatter

    data, _ = DisplayFormatter().format(p)
    assert "unresolved" in data["text/plain"]


def refused_by_c(p: Any) -> None:
    for use in (memoryview, b"".join, "".join, io.BytesIO().write, json.dumps):
        with pytest.raises(TypeError):
            use([p] if "join" in repr(use) else p)


def pydantic_models(p: Any) -> None:
    pydantic = pytest.importorskip("pydantic")
    array_like = np.ndarray | pd.DataFrame

    class Model(pydantic.BaseModel):
        anything: typing.Any
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    class Narrow(Model):
        it: array_like if isinstance(p, array_like) else typing.Any  # type: ignore[valid-type]
        proxy: Proxy

    model = Narrow(anything=p, it=p, proxy=p)
    assert model.anything is p and model.it is p and model.proxy is p
    assert "unresolved" in repr(model)
    assert model == Narrow(anything=p, it=p, proxy=p)
    model.model_copy(deep=True)
    if not dataclasses.is_dataclass(p):  # of which it wants each field
        model.model_dump()
    assert pydantic.TypeAdapter(typing.Any).validate_python(p) is p


@dataclasses.dataclass
class Holder:
    """A dataclass with a proxy in it; compared and shown field by field."""

    it: Any


def in_a_dataclass(p: Any) -> None:
    holder = Holder(p)
    assert "unresolved" in repr(holder)
    assert dataclasses.replace(holder).it is p
    assert [field.name for field in dataclasses.fields(holder)] == ["it"]
    if not dataclasses.is_dataclass(p):  # of which it wants each field
        assert "unresolved" in repr([dataclasses.asdict(holder), dataclasses.astuple(holder)])


def pdb_display(p: Any) -> None:
    out = io.StringIO()
    commands = io.StringIO("p p\npp p\npp locals()\nargs\nwhatis p\ndisplay p\nwhere\nc\n")
    debugger = pdb.Pdb(stdin=commands, stdout=out, nosigint=True, readrc=False)

    def stop_here(p: Any) -> None:
        debugger.set_trace()

    tracing = sys.gettrace()
    try:
        stop_here(p)
    finally:
        sys.settrace(tracing)
    assert out.getvalue().count("unresolved") >= 5


# Answered from the hints, or about the proxy itself.
PROBES: dict[str, Callable[[Any], Any]] = {
    "isfuture": asyncio.isfuture,
    "asyncio.iscoroutine": asyncio.iscoroutine,
    "asyncio.iscoroutinefunction": asyncio.iscoroutinefunction,
    "inspect.iscoroutinefunction": inspect.iscoroutinefunction,
    "isawaitable": inspect.isawaitable,
    "iscoroutine": inspect.iscoroutine,
    "isasyncgen": inspect.isasyncgen,
    "isclass": inspect.isclass,
    "isfunction": inspect.isfunction,
    "isgenerator": inspect.isgenerator,
    "unwrap": inspect.unwrap,
    "isinstance": lambda p: [isinstance(p, kind) for kind in (list, Plain, Proxy, type, Base)],
    "isinstance of ABCs": lambda p: [
        isinstance(p, kind)
        for kind in vars(collections.abc).values()
        if isinstance(kind, abc.ABCMeta) and kind.__name__ != "ByteString"  # deprecated
    ],
    "isinstance of typing": lambda p: isinstance(p, typing.Sequence | typing.Mapping),
    "class": lambda p: p.__class__,
    "type": type,
    "doc": lambda p: p.__doc__,
    "repr": repr,
    "ascii": ascii,
    "f-string of the repr": lambda p: f"{p!r}",
    "repr of a list": lambda p: repr([p]),
    "pprint": lambda p: pprint.pformat([p, {"a": p}], width=1),
    "pdb": pdb_display,
    "pydantic": pydantic_models,
    "in a dataclass": in_a_dataclass,
    "reprlib": reprlib.repr,
    "callable": callable,
    "id": id,
    "sizeof": sys.getsizeof,
    "is": lambda p: p is None,
    "weakref": weakref.ref,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda p: [pickle.dumps(p, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)],
    "cloudpickle": cloudpickle.dumps,
    "dill": dill.dumps,
    "hasattr of dunders": lambda p: [
        hasattr(p, f"__{name}__")
        for name in ("html", "array_namespace", "jax_array", "cuda_array_interface", "wrapped",
                     "dataframe", "dlpack", "arrow_c_stream", "geo_interface", "torch_function",
                     "signature", "isabstractmethod", "awaits", "sklearn_tags", "get_validators")
    ],
    "C refuses": refused_by_c,
    "framework marks": lambda p: [
        hasattr(p, name)
        for name in ("_asyncio_future_blocking", "_is_coroutine_marker", "_repr_html_",
                     "_ipython_display_", "_pytestfixturefunction", "__pydantic_core_schema__")
    ],
    "is_dataclass": dataclasses.is_dataclass,
    "IPython": ipython_display,
    "mock": lambda p: unittest.mock.Mock()(p),
    "contextvar": lambda p: contextlib.nullcontext(p),
    "logging": lambda p: logging.getLogger("x").debug("%r", p),
    "singledispatch": functools.singledispatch(lambda p: None),
    "isnumber": lambda p: isinstance(p, int | float),
    "exception info": lambda p: ValueError(p),
}  # fmt: skip

# Of no known type either: these are about the proxy.
ABOUT_THE_PROXY = {
    "isfuture", "asyncio.iscoroutine", "isawaitable", "type", "repr", "ascii", "IPython",
    "f-string of the repr", "repr of a list", "pprint", "reprlib", "callable", "id", "sizeof",
    "is", "weakref", "copy", "deepcopy", "pickle", "cloudpickle", "dill", "framework marks",
    "mock", "contextvar", "logging", "exception info",
}  # fmt: skip


def unresolved(target: str, known: bool = True) -> tuple[Any, Counter]:
    counter = Counter(target)
    return make_proxy(counter, Hints.of(TARGETS[target](), 50) if known else NO_HINTS), counter


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("probe", PROBES)
def test_probe_fetches_nothing(probe: str, target: str) -> None:
    """A probe of a proxy of known type fetches nothing."""
    p, counter = unresolved(target)
    PROBES[probe](p)
    assert counter.calls == 0
    assert not is_resolved(p)


@pytest.mark.parametrize("probe", sorted(set(PROBES) - {"IPython"}))
async def test_probe_on_a_loop(probe: str) -> None:
    """Nor does it warn on a thread with a running loop."""
    p, counter = unresolved("array")
    PROBES[probe](p)
    assert counter.calls == 0


@pytest.mark.parametrize("probe", sorted(ABOUT_THE_PROXY))
async def test_probe_of_unknown_type(probe: str) -> None:
    """A probe that is about the proxy fetches nothing, though nobody knows the target's type."""
    p, counter = unresolved("array", known=False)
    PROBES[probe](p)
    assert counter.calls == 0


def test_debugger_of_editors() -> None:
    """The debugger of editors shows local variables that are proxies without fetching them; of
    known type or not."""
    tests = str(Path(__file__).parent)
    code = """
        import sys
        sys.path.append(sys.argv.pop())
        import debugpy._vendored.force_pydevd
        from _pydevd_bundle.pydevd_suspended_frames import _ObjectVariable
        from test_proxy_probes import TARGETS, unresolved
        for known in True, False:
            for target in TARGETS:
                p, counter = unresolved(target, known)
                show = _ObjectVariable(type("", (), {"py_db": None}), "p", p, lambda *_, **__: 0)
                assert "unresolved" in show.get_var_data()["value"], (target, known)
                assert counter.calls == 0, (target, known)
    """
    done = subprocess.run(
        [sys.executable, "-Xfrozen_modules=off", "-c", textwrap.dedent(code), tests],
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_isinstance_of_unknown_type(target: str) -> None:
    """When nobody knows the type, `isinstance` fetches once and tells the truth."""
    value = TARGETS[target]()
    p, counter = unresolved(target, known=False)
    assert isinstance(p, type(value))
    assert not isinstance(p, Plain)
    assert counter.calls == 1


def test_singledispatch_of_unknown_type() -> None:
    """A dispatch by type goes by the target's, whether it is known or not."""
    function = functools.singledispatch(lambda p: "else")
    function.register(list, lambda p: "list")
    for known in (True, False):
        p, _ = unresolved("list", known)
        assert function(p) == "list"


def test_inspect_of_unknown_type() -> None:
    """What somebody asks through `inspect` is answered truly."""
    assert inspect.isfunction(Proxy(lambda: ipython_display))
    assert inspect.isclass(Proxy(lambda: Plain))
    assert inspect.iscoroutinefunction(Proxy(lambda: test_probe_on_a_loop))


def test_answers_are_those_of_the_target() -> None:
    """Class, hash, documentation and missing attributes are the target's before it is fetched."""
    for target in TARGETS.values():
        value = target()
        p: Any = make_proxy(target, Hints.of(value, 50))
        assert p.__class__ is type(value)
        assert callable(p) == callable(value)
        for name in ("__len__", "__iter__", "__next__", "__enter__"):
            assert hasattr(p, name) == hasattr(value, name), name
        assert not is_resolved(p)


def validated(p: Any) -> None:
    pydantic = pytest.importorskip("pydantic")
    assert pydantic.TypeAdapter(list[int]).validate_python(p) == [1, 2]


NEEDS: dict[str, Callable[[Any], Any]] = {
    "==": lambda p: p == [1, 2],
    "!=": lambda p: p != [1, 2],
    "reflected ==": lambda p: [1, 2] == p,
    "bool": bool,
    "not": lambda p: not p,
    "str": str,
    "format": lambda p: f"{p}",
    "len": len,
    "iter": list,
    "in": lambda p: 1 in p,
    "item": lambda p: p[0],
    "method": lambda p: p.copy(),
    "dunder": lambda p: p.__len__(),
    "hasattr": lambda p: hasattr(p, "nothing"),
    "getmembers": inspect.getmembers,
    "dir": dir,
    "sorted": sorted,
    "sum": sum,
    "star": lambda p: [*p],
    "unpack": lambda p: (lambda a, b: a)(*p),
    "array": np.array,
    "asarray": np.asarray,
    "stack": lambda p: np.stack([p, p]),
    "json": lambda p: json.dumps({"p": p}, default=extract),
    "validated by pydantic": lambda p: validated(p),
    "rows of a frame": lambda p: pd.DataFrame(p),
    "index of a frame": lambda p: pd.DataFrame({1: [0], 2: [0]})[p],
    "mean": np.mean,
    "concatenate": lambda p: np.concatenate([p, p]),
    "series": pd.Series,
    "print": lambda p: print(p, file=io.StringIO()),
    "add": lambda p: p + [3],
    "radd": lambda p: [3] + p,
    "lt": lambda p: p < [3],
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("need", NEEDS)
def test_need_fetches_once(need: str, known: bool) -> None:
    """What needs the value fetches it once."""
    p, counter = unresolved("list", known)
    NEEDS[need](p)
    assert counter.calls == 1
    assert is_resolved(p)
    NEEDS[need](p)
    assert counter.calls == 1


@pytest.mark.allow_blocking
@pytest.mark.parametrize("need", NEEDS)
async def test_need_on_a_loop_warns_once(need: str) -> None:
    """On a thread with a running loop it does so too, and warns once of the stall."""
    p, counter = unresolved("list")
    with pytest.warns(BlockingResolveWarning, match="await it instead") as caught:
        NEEDS[need](p)
    assert len(caught) == 1
    elsewhere = (  # called by other code
        "dir", "getmembers", "mean", "concatenate", "stack", "series", "json",
        "validated by pydantic", "rows of a frame", "index of a frame",
    )  # fmt: skip
    assert caught[0].filename == __file__ or need in elsewhere
    assert "Proxy[list]" in str(caught[0].message)
    assert counter.calls == 1
    NEEDS[need](p)


@pytest.mark.allow_blocking
async def test_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy "raise" refuses and fetches nothing; "allow" says nothing."""
    p, counter = unresolved("list")
    monkeypatch.setenv("PROXYPLANE_ON_BLOCKING", "raise")
    with pytest.raises(BlockingCallError, match="await it"):
        len(p)
    assert counter.calls == 0
    assert await p == [1, 2]
    p, counter = unresolved("list")
    monkeypatch.setenv("PROXYPLANE_ON_BLOCKING", "allow")
    assert len(p) == 2


async def test_asyncio_takes_a_proxy() -> None:
    """`wait_for`, `shield` and `ensure_future` take a proxy as it is, of known type or not."""
    for known in (True, False):
        assert await asyncio.wait_for(unresolved("list", known)[0], 5) == [1, 2]
        assert await asyncio.shield(unresolved("list", known)[0]) == [1, 2]
        assert await asyncio.ensure_future(unresolved("list", known)[0]) == [1, 2]


async def test_asyncio_gather_refuses_the_unhashable() -> None:
    """`asyncio.gather` hashes, so it refuses a proxy of a list; without a fetch, or a warning."""
    p, counter = unresolved("list")
    with pytest.raises(TypeError, match="unhashable"):
        asyncio.gather(p)
    assert counter.calls == 0


def test_hash() -> None:
    """The hash is the target's, and known to be none for an unhashable one, without a fetch."""
    p, counter = unresolved("str")
    assert hash(p) == hash("text")
    assert {"text": 1}[p] == 1
    assert counter.calls == 1  # the table compares: equal hashes may be of unequal objects
    p, counter = unresolved("list")
    with pytest.raises(TypeError, match="unhashable type"):
        hash(p)
    assert counter.calls == 0
    p, counter = unresolved("list", known=False)
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        hash(p)
    assert counter.calls == 1


def test_attribute_error_of_a_factory() -> None:
    """An AttributeError inside of a factory is no missing attribute, whoever looks."""

    def broken() -> list[int]:
        raise AttributeError("inside")

    for look in (
        lambda p: hasattr(p, "x"),
        lambda p: getattr(p, "x", None),
        lambda p: p.__len__(),
        lambda p: isinstance(p, list),
        lambda p: p.__doc__,
        lambda p: hash(p),
        lambda p: p == 1,
        str,
        dir,
        vars,
        inspect.getmembers,
    ):
        with pytest.raises(ProxyResolveError) as caught:
            look(Proxy(broken))
        assert isinstance(caught.value.cause, AttributeError)
        assert caught.value.__cause__ is caught.value.cause


def test_json_and_c_refuse() -> None:
    """C code that looks at the very type refuses a proxy with a TypeError."""
    for use, target in ((json.dumps, "list"), (b"".join, "list"), (io.BytesIO().write, "str")):
        p, _ = unresolved(target)
        with pytest.raises(TypeError):
            use(p)
    assert json.dumps(Proxy(lambda: [1])[:]) == "[1]"


def test_dataclasses() -> None:
    """A proxied dataclass has fields, becomes a dict and can be replaced."""
    p, _ = unresolved("object")
    assert dataclasses.is_dataclass(p)
    assert [field.name for field in dataclasses.fields(p)] == ["name"]
    assert dataclasses.asdict(p) == {"name": "x"}
    assert dataclasses.replace(p, name="y") == Config("y")


def test_annotations_and_hints() -> None:
    """`get_type_hints` of a proxied object are those of its class."""
    p, _ = unresolved("object")
    assert typing.get_type_hints(p) == {"name": str}


def test_warnings_are_not_hidden() -> None:
    """A blocking touch with no loop around warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(unresolved("list")[0]) == 2


def test_method_of_a_dunder() -> None:
    """A method that the type has is found without a fetch, and fetches when it is called."""
    p, counter = unresolved("frame")
    method = p.__arrow_c_stream__
    assert counter.calls == 0
    assert "PyCapsule" in type(method()).__name__
    assert counter.calls == 1
