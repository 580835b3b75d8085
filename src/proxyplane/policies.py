"""Which arguments and results of a task travel as proxies."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from proxyplane.proxy import Proxy

__all__ = ["ProxyAlways", "ProxyNever", "ProxyPolicy", "ProxySize", "ProxyType"]

ProxyPolicy: TypeAlias = Callable[[Any], bool]
"""Tells of an object whether it is to travel as a proxy. Tasks take it along, so it is pickled."""

# How many objects inside of one are looked at.
NODES = 10_000
_CONTAINERS = (list, tuple, set, frozenset, deque)


class ProxyAlways:
    """Everything travels as a proxy."""

    def __call__(self, item: Any) -> bool:
        """Yes."""
        return True


class ProxyNever:
    """Nothing travels as a proxy."""

    def __call__(self, item: Any) -> bool:
        """No."""
        return False


class ProxyType:
    """Objects of some types, and of types derived from them, travel as proxies.

    Args:
        types: The types.
    """

    def __init__(self, *types: type) -> None:
        self.types = types

    def __call__(self, item: Any) -> bool:
        """Whether it is of one of the types."""
        return isinstance(item, self.types)


class ProxySize:
    """Large objects travel as proxies.

    The size is an estimate, from the sizes of arrays, tables and text in up to ten thousand
    objects of builtin containers and plain instances.

    Args:
        min_bytes: From which size on, in bytes.
    """

    def __init__(self, min_bytes: int) -> None:
        self.min_bytes = min_bytes

    def __call__(self, item: Any) -> bool:
        """Whether it is that large."""
        return _is_large(item, self.min_bytes)


def _is_large(item: Any, enough: int) -> bool:
    size, seen, todo = 0, set[int](), [item]
    while todo and len(seen) < NODES:
        one = todo.pop()
        if id(one) in seen or issubclass(type(one), Proxy):
            continue
        seen.add(id(one))
        size += _own_size(one)
        if size >= enough:
            return True
        if isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, _CONTAINERS):
            todo += one
        elif not isinstance(one, type) and isinstance(getattr(one, "__dict__", None), dict):
            todo.append(vars(one))
    return size >= enough


def _own_size(one: Any) -> int:
    if isinstance(one, type):
        return 0  # travels by its name
    nbytes = getattr(one, "nbytes", None)  # arrays, memory, tables of Arrow
    if isinstance(nbytes, int):
        return nbytes
    estimate = getattr(one, "estimated_size", None)  # tables of polars
    return int(estimate()) if callable(estimate) else sys.getsizeof(one)
