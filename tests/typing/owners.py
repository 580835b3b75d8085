"""What mypy sees of owners, borrows and executors, with the plugin."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import reveal_type

from proxyplane import (
    Proxy,
    ProxySize,
    Store,
    StoreExecutor,
    StoreTaskGroup,
    aclone,
    aupdate,
    borrow,
    into_owned,
    mut_borrow,
    scopes,
    sync,
)


def total(x: list[int]) -> int:
    return sum(x)


async def atotal(x: list[int]) -> int:
    return sum(x)


async def ownership(store: Store, blocking: sync.Store, p: Proxy[list[int]]) -> None:
    owner = await store.owned_proxy([1, 2])
    reveal_type(owner)  # OwnedProxy[list[int]]
    reveal_type(blocking.owned_proxy("a"))  # OwnedProxy[str]
    reveal_type(await owner)  # list[int]
    reveal_type(owner[0])  # int
    owner.append("x")  # error arg-type: expected "int"
    owner.nothing()  # error attr-defined: has no attribute "nothing"
    owner += [1]
    reveal_type(owner)  # OwnedProxy[list[int]]
    reveal_type(borrow(owner))  # RefProxy[list[int]]
    reveal_type(mut_borrow(owner))  # RefMutProxy[list[int]]
    reveal_type(mut_borrow(owner)[0])  # int
    reveal_type(into_owned(p))  # OwnedProxy[list[int]]
    reveal_type(await aclone(owner))  # OwnedProxy[list[int]]
    reveal_type(total(owner) + total(borrow(owner)))  # int
    await aupdate(borrow(owner))  # error arg-type: expected "OwnedProxy[Any] | RefMutProxy[Any]"
    borrow(p)  # error arg-type: expected "OwnedProxy


async def runners(store: Store, pool: Executor) -> None:
    with StoreExecutor(pool, store, ProxySize(10)) as executor:
        reveal_type(executor.submit(total, [1]))  # Future[Proxy[int] | int]
        executor.submit(total, "a")  # error arg-type: expected "list[int]"
        owner = await store.owned_proxy([1])
        scopes.submit(executor.submit, args=(total, borrow(owner)))
        executor.submit(total, borrow(owner))
    async with StoreTaskGroup(store) as group:
        reveal_type(group.submit(atotal, [1]))  # Task[Proxy[int] | int]
        reveal_type(group.submit(total, [1]))  # Task[Proxy[int] | int]
