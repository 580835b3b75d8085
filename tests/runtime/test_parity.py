"""The blocking facade has what the async API has, under the same names."""

from __future__ import annotations

import inspect

import pytest

import proxyplane
from proxyplane import ProxyFuture, Store, sync


def _signature(function):
    signature = inspect.signature(function)
    return [(p.name, p.kind, p.default) for p in signature.parameters.values() if p.name != "self"]


RENAMED = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}
# Public names that are defined by the store itself, and not by what it shares with its factories.
PUBLIC = {n for n in vars(Store) if not n.startswith("_")} | {"closed", "__init__", *RENAMED}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_parity(name):
    """Every public name of Store has a blocking twin of the same signature, that says so."""
    theirs = inspect.getattr_static(Store, name)
    twin = inspect.getattr_static(sync.Store, RENAMED.get(name, name))
    if isinstance(theirs, property):
        assert isinstance(twin, property)
        return
    theirs, ours = (getattr(f, "__func__", f) for f in (theirs, twin))
    assert _signature(ours) == _signature(theirs)
    assert not inspect.iscoroutinefunction(ours)
    if not name.startswith("__"):
        assert ours.__doc__.startswith(f"Blocking twin of `proxyplane.Store.{name}`"), ours.__doc__


@pytest.mark.parametrize("name", ["to_proxy", "resolve", "extract", "evict"])
def test_parity_of_functions(name):
    """So has every function that waits."""
    twin = getattr(proxyplane, "a" + name)
    assert inspect.iscoroutinefunction(twin)
    assert _signature(getattr(proxyplane, name)) == _signature(twin)
    assert getattr(sync, name) is getattr(proxyplane, name)


@pytest.mark.parametrize("name", ["wait", "as_completed"])
def test_parity_of_futures(name):
    """So has what waits for many futures, under its own name."""
    ours, twin = getattr(sync, name), getattr(proxyplane, name)
    assert _signature(ours) == _signature(twin)
    assert not inspect.iscoroutinefunction(ours)
    assert ours.__doc__ == f"Blocking twin of `proxyplane.{name}`."


@pytest.mark.parametrize(
    "name", ["done", "result", "exception", "set_result", "set_exception", "cancel"]
)
def test_parity_of_a_future(name):
    """What blocks on a future has an async twin with an ``a`` before its name."""
    twin = getattr(ProxyFuture, f"a{name}")
    assert inspect.iscoroutinefunction(twin)
    assert _signature(getattr(ProxyFuture, name)) == _signature(twin)
    assert twin.__doc__ == f"Async twin of `{name}`."
