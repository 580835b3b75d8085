"""What PyTorch and JAX ask of a proxy, asked here by a few lines in their place.

`tests/frameworks` asks the real ones.
"""

from __future__ import annotations

import collections.abc
import functools
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxyplane import Proxy, extract, is_resolved
from proxyplane.exceptions import BlockingResolveWarning
from proxyplane.hints import NO_HINTS, Hints
from proxyplane.proxy import make_proxy


class Tensor:
    """What has the protocol, and a place in memory that C code would read."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __add__(self, other: Any) -> Any:
        return add(self, other)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not all(issubclass(one, Tensor) for one in types):
            return NotImplemented
        return func.plain(*args, **(kwargs or {}))


Tensor.__module__ = "torch._C"
# Where `Hints` find the type; proxies know it when they were made by a store.
KNOWN = Hints()
KNOWN._type = Tensor


def overridable(function: Callable[..., Any]) -> Callable[..., Any]:
    """As PyTorch does: who stands for a tensor, alone or in a list, is asked to take over."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        flat = [*args, *kwargs.values(), *(x for one in args if type(one) is list for x in one)]
        asked = [one for one in flat if hasattr(one, "__torch_function__")]
        if all(type(one) is Tensor for one in asked):
            return function(*args, **kwargs)
        for one in asked:
            types = {type(one) for one in asked}
            result = one.__torch_function__(call, types, args, kwargs)
            if result is not NotImplemented:
                return result
        raise TypeError("all handlers returned NotImplemented")

    vars(call)["plain"] = function
    return call


@overridable
def add(a: Any, b: Any, out: Any = None) -> Tensor:
    total = Tensor(a.value + b.value)
    if out is not None:
        out.value = total.value
    return total if out is None else out


@overridable
def stack(tensors: Any, extra: Any = None) -> tuple[list[int], Any]:
    return [one.value for one in tensors], extra


@pytest.fixture(params=["known", "unknown"])
def make(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    hints = KNOWN if request.param == "known" else NO_HINTS
    return lambda target: make_proxy(lambda: target, hints)


def test_functions_take_proxies(make: Callable[[Any], Any]) -> None:
    """A function is called again with the targets in place of the proxies."""
    x = Tensor(2)
    assert add(make(x), x).value == 4
    assert add(x, make(x)).value == 4
    assert add(x, b=make(x)).value == 4
    assert (x + make(x)).value == (make(x) + x).value == 4
    assert add(make(x), make(x)).value == 4


def test_inside_of_containers(make: Callable[[Any], Any]) -> None:
    """Proxies in lists, tuples and dicts of the arguments are found."""
    x, y = Tensor(1), Tensor(2)
    values, extra = stack([make(x), y], extra={"a": (make(y), 3)})
    assert values == [1, 2]
    assert extra == {"a": (y, 3)}
    assert type(extra["a"][0]) is Tensor


def test_out_goes_to_the_target(make: Callable[[Any], Any]) -> None:
    """What the function writes to is the target, and so is what it returns."""
    x, out = Tensor(2), Tensor(0)
    assert add(x, x, out=make(out)) is out
    assert out.value == 4


def test_nothing_to_put_in_place() -> None:
    """Where no proxy can be found the call is left to others, not made again without end."""

    class Hides:
        pass

    assert (
        type(make_proxy(lambda: Tensor(1), KNOWN)).__torch_function__(add, (), (Hides(),))
        is NotImplemented
    )


def test_only_of_tensors() -> None:
    """A proxy of something else does not claim to stand for a tensor."""
    p = make_proxy(lambda: 5, Hints.of(5, 50))
    assert not hasattr(p, "__torch_function__")
    assert not is_resolved(p)


@pytest.mark.allow_blocking
async def test_on_a_loop_the_caller_is_warned(make: Callable[[Any], Any]) -> None:
    """A function that blocks the loop for a proxy warns of it, once."""
    p = make(Tensor(1))
    with pytest.warns(BlockingResolveWarning, match="await it instead") as caught:
        add(p, p)
    assert [one.filename for one in caught] == [__file__]


# -- C code that believes a class -----------------------------------------------------------------


def test_python_is_told_the_class(make: Callable[[Any], Any]) -> None:
    """`isinstance`, `match`, attributes, ABCs and dispatch see the target's class."""
    for p in (make(Tensor(1)), Proxy(lambda: Tensor(1), target=Tensor(1))):
        assert isinstance(p, Tensor) and isinstance(p, int | Tensor)
        assert not isinstance(p, int)
        assert p.__class__ is Tensor
        assert [
            isinstance(
                one,
                Tensor,
            )
            for one in (p, 1)
        ] == [True, False]
        assert not isinstance(p, collections.abc.Sequence)
        dispatch = functools.singledispatch(lambda _: "else")
        dispatch.register(Tensor, lambda _: "tensor")
        assert dispatch(p) == "tensor"
        match p:
            case Tensor(value=value):
                assert value == 1
            case _:
                pytest.fail("not matched")


def test_python_is_told_the_class_without_columns() -> None:
    """So it is where code objects do not know the columns of the source."""
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from test_proxy_frameworks import *\n"
        "test_python_is_told_the_class(lambda target: make_proxy(lambda: target, KNOWN))\n"
        "test_python_is_told_the_class(lambda target: make_proxy(lambda: target))\n"
        "test_calls_that_look_like_comparisons(lambda target: make_proxy(lambda: target, KNOWN))\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "no_debug_ranges", "-B", "-c", code, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr


def test_c_code_is_not(make: Callable[[Any], Any]) -> None:
    """A C function that is called, and could read memory as that of the class, sees a proxy."""
    ask = functools.partial(isinstance)  # it is C code that asks then
    for p in (make(Tensor(1)), Proxy(lambda: Tensor(1), target=Tensor(1))):
        assert not ask(p, Tensor)
        assert list(map(isinstance, [p], [Tensor])) == [False]
        assert ask(extract(p), Tensor)


def other_calls(p: Any) -> Iterator[bool]:
    """What asks for the class in C, beside or inside of what only compares it."""
    ask, place = isinstance, types.SimpleNamespace(ask=isinstance)
    yield getattr(place, "ask")(p, Tensor)  # noqa: B009
    yield place.ask(p, Tensor)
    yield (isinstance, ask)[1](p, Tensor)
    yield isinstance(ask(p, Tensor), str) or ask(p, Tensor)
    yield ask(p, Tensor) if isinstance(p, Tensor) else True
    yield isinstance(p, Tensor) and ask(p, Tensor)
    yield (lambda: getattr(place, "ask"))()(p, Tensor)  # noqa: B009


def test_calls_that_look_like_comparisons(make: Callable[[Any], Any]) -> None:
    """What was looked up where it is called is not what looked it up, however often it runs."""
    p = make(Tensor(1))
    for _ in range(50):  # also when the interpreter has specialised the code
        assert not any(other_calls(p))
        assert isinstance(p, Tensor)


def test_others_are_told_as_before() -> None:
    """Only classes that C code is known to believe in are kept from it."""
    ask = functools.partial(isinstance)
    p = make_proxy(lambda: [1], Hints.of([1], 50))
    assert ask(p, list)
    assert not is_resolved(p)
