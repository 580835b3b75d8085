"""Many proxies at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from proxyplane.proxy import Proxy, aresolve

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")

if TYPE_CHECKING:
    from typing import TypeAlias

    # Nothing is a tuple in a tuple without end. It is here because in a union that is recursive,
    # and in no other, mypy takes ``Awaitable[T]`` before a bare ``T``.
    _Endless: TypeAlias = "tuple[_Endless]"
    _Value: TypeAlias = Awaitable[T] | T | _Endless


@overload
async def gather(value: _Value[T1], /) -> tuple[T1]: ...
@overload
async def gather(v1: _Value[T1], v2: _Value[T2], /) -> tuple[T1, T2]: ...
@overload
async def gather(v1: _Value[T1], v2: _Value[T2], v3: _Value[T3], /) -> tuple[T1, T2, T3]: ...
@overload
async def gather(
    v1: _Value[T1], v2: _Value[T2], v3: _Value[T3], v4: _Value[T4], /
) -> tuple[T1, T2, T3, T4]: ...
@overload
async def gather(
    v1: _Value[T1], v2: _Value[T2], v3: _Value[T3], v4: _Value[T4], v5: _Value[T5], /
) -> tuple[T1, T2, T3, T4, T5]: ...
@overload
async def gather(*values: _Value[T]) -> list[T]: ...


async def gather(*values: Any) -> Any:
    """Resolves many proxies at once and returns their targets in order, in a list.

    Type checkers see a tuple of up to five, as with `asyncio.gather`, so that each target keeps
    its own type.

    What is neither a proxy nor awaitable is returned as it is. The first failure cancels the
    others, waits for their end and is raised.

    `asyncio.gather` will not do: it hashes its arguments, and refuses a proxy of an unhashable
    target.
    """
    tasks = [asyncio.ensure_future(_settle(value)) for value in values]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _settle(value: Any) -> Any:
    if issubclass(type(value), Proxy):
        return await aresolve(value)
    return await value if isinstance(value, Awaitable) else value
