"""Runners of tasks whose arguments and results travel as proxies, for as long as they are needed.

A policy chooses. An argument that it chooses is stored, owned here, and lent to the task: when the
task has ended, however it did, the object is evicted. A result that it chooses is stored where the
task ran, and the caller becomes its owner.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, cast, overload

from proxyplane._operations import Operation
from proxyplane._references import OwnedProxy, is_lent_here, is_reference
from proxyplane.ownership import borrow, owning
from proxyplane.policies import ProxyNever, ProxyPolicy
from proxyplane.proxy import Proxy, ProxyOr, aresolve, extract
from proxyplane.registry import BlockingStore, get_or_create_store
from proxyplane.scopes import mark_refs_out_of_scope
from proxyplane.store import Store

__all__ = ["StoreExecutor", "StoreTaskGroup"]

P = ParamSpec("P")
T = TypeVar("T")


class ExecutorLike(Protocol):
    """What runs calls and gives futures: an `Executor`, or a client that has the same method."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Calls ``fn`` somewhere, and returns a future."""
        ...


class _Policy:
    """What is done with arguments and results.

    Args:
        config: Describes the store, where the task runs.
        should_proxy: The policy.
        ownership: Whether results come as owners.
        tags: Those of arguments and results.
        ttl: Their lease.
    """

    def __init__(
        self,
        store: Store,
        should_proxy: ProxyPolicy | None,
        ownership: bool,
        tags: Collection[str],
        ttl: float | None,
    ) -> None:
        # What cannot be is refused here, and not by the first task.
        store._tagged(tags)
        store.keep(ttl, None)
        self.config = store.config()
        self.should_proxy = should_proxy or ProxyNever()
        self.ownership = ownership
        self.tags = tuple(tags)
        self.ttl = ttl

    def chooses(self, item: Any) -> bool:
        """Whether it is to travel as a proxy."""
        if issubclass(type(item), Proxy) or item is None or type(item) is bool:
            return False
        return self.should_proxy(item)

    def owning(self, store: Store, item: Any) -> Operation[Any]:
        """Stores an argument, or a result; gives its owner."""
        return owning(store, item, populate_target=False, tags=self.tags, ttl=self.ttl)

    def returning(self, store: Store, result: Any) -> Operation[Any]:
        """Stores a result; gives what the caller gets."""
        if self.ownership:
            return self.owning(store, result)
        keep = store.keep(self.ttl, None)
        return store.proxying(result, None, None, False, False, False, tags=self.tags, keep=keep)


class _Call(Generic[P, T]):
    """A function with what is to be done with its result; travels to where it runs."""

    def __init__(self, function: Callable[P, T], policy: _Policy) -> None:
        self.function = function
        self.policy = policy

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        result: Any = self.function(*args, **kwargs)
        if _is_borrow(result):
            result = extract(result)  # an argument, which will be gone
        if not self.policy.chooses(result):
            return result
        store = get_or_create_store(self.policy.config)
        return self.policy.returning(store, result).perform_blocking(store.on_blocking)


class StoreExecutor(Executor):
    """An executor whose tasks get and give proxies in the place of large objects.

    `submit` and `map` block while arguments are stored; for async code there is `StoreTaskGroup`.
    Arguments are chosen as they are, not what is in them. Those that are proxies already are
    passed on; a borrow of the caller's ends with the task that gets it.

    Args:
        executor: Runs the tasks: of threads, of processes, or of a cluster. It is shut down with
            this one.
        store: Where arguments and results go; tasks in other processes find it by its
            configuration.
        should_proxy: Chooses arguments and results; None for none of them.
        ownership: Whether results come as owners, whose objects go with them. If not, the caller
            evicts them. An executor that pickles a result more than once needs False.
        tags: Tags of what is stored, by which a `MultiConnector` decides where it goes.
        ttl: Seconds after which what is stored is gone, whatever became of who owns it. More than
            any task takes, and the caller with its result. By default it stays for its owner.
        close_store: Whether the store is closed when this is shut down.

    Raises:
        NotImplementedError: There are tags, or a lease, and the connector has no use for them.
        ValueError: There is no lease of such a length.
    """

    def __init__(
        self,
        executor: ExecutorLike,
        store: Store | BlockingStore,
        should_proxy: ProxyPolicy | None = None,
        *,
        ownership: bool = True,
        tags: Collection[str] = (),
        ttl: float | None = None,
        close_store: bool = False,
    ) -> None:
        self.executor = executor
        self.store = _underneath(store)
        self.close_store = close_store
        self._policy = _Policy(self.store, should_proxy, ownership, tags, ttl)

    def submit(  # type: ignore[override]  # the result may be a proxy of a T
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[ProxyOr[T]]:
        """Stores the arguments that the policy chooses, and has ``fn`` called with proxies of them.

        Raises:
            Whatever `Store.put` raises, and the executor.
        """
        lent: list[Any] = []
        try:
            passed = [self._lend(one, lent) for one in args]
            named = {name: self._lend(one, lent) for name, one in kwargs.items()}
            future = self.executor.submit(_Call(fn, self._policy), *passed, **named)
        except BaseException:
            mark_refs_out_of_scope(*lent)
            raise
        future.add_done_callback(partial(_end, lent))
        return cast("Future[ProxyOr[T]]", future)

    def _lend(self, item: Any, lent: list[Any]) -> Any:
        if self._policy.chooses(item):
            storing = self._policy.owning(self.store, item)
            item = borrow(storing.perform_blocking(self.store.on_blocking))
        if is_lent_here(item):
            lent.append(item)
        return item

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shuts the executor down, or closes it if it is none of `concurrent.futures`.

        Args:
            wait: Whether to wait for tasks that run.
            cancel_futures: Whether to cancel those that do not run yet.
        """
        if isinstance(self.executor, Executor):
            self.executor.shutdown(wait, cancel_futures=cancel_futures)
        else:
            cast(Any, self.executor).close()
        if self.close_store:
            self.store.closing(False).perform_blocking(self.store.on_blocking)


class StoreTaskGroup:
    """The same for async code: an `asyncio.TaskGroup` whose tasks get and give proxies.

    Entered with ``async with``. Nothing blocks the loop: what is stored is awaited. When a task
    fails the others are cancelled, and an exception group is raised; leaving the block waits for
    all of them.

    Args:
        store: As for `StoreExecutor`.
        should_proxy: As for `StoreExecutor`.
        executor: Where functions are called. Without one, coroutine functions run on this loop and
            others on a worker thread.
        ownership: As for `StoreExecutor`.
        tags: As for `StoreExecutor`.
        ttl: As for `StoreExecutor`.

    Raises:
        As `StoreExecutor`.
    """

    def __init__(
        self,
        store: Store | BlockingStore,
        should_proxy: ProxyPolicy | None = None,
        *,
        executor: ExecutorLike | None = None,
        ownership: bool = True,
        tags: Collection[str] = (),
        ttl: float | None = None,
    ) -> None:
        self.store = _underneath(store)
        self.executor = executor
        self._policy = _Policy(self.store, should_proxy, ownership, tags, ttl)
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._group.__aexit__(*exc_info)

    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[ProxyOr[T]]: ...
    @overload
    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[ProxyOr[T]]: ...

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """Makes a task that stores the arguments the policy chooses and calls ``fn`` with proxies.

        Cancelling it ends it at once. A call in an executor that has begun goes on, and what it
        was lent lives until it has ended.
        """
        return self._group.create_task(self._run(fn, args, kwargs))

    async def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        lent: list[Any] = []
        try:
            passed = [await self._lend(one, lent) for one in args]
            named = {name: await self._lend(one, lent) for name, one in kwargs.items()}
            if self.executor is not None:
                return await self._run_elsewhere(fn, passed, named, lent)
            if inspect.iscoroutinefunction(fn):
                result = await fn(*passed, **named)
            else:
                result = await asyncio.to_thread(fn, *passed, **named)
                if inspect.isawaitable(result) and not issubclass(type(result), Proxy):
                    result = await result
            if _is_borrow(result):
                result = await aresolve(result)
            if not self._policy.chooses(result):
                return result
            return await self._policy.returning(self.store, result).perform()
        finally:
            mark_refs_out_of_scope(*lent)

    async def _run_elsewhere(
        self, fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], lent: list[Any]
    ) -> Any:
        assert self.executor is not None
        future = self.executor.submit(_Call(fn, self._policy), *args, **kwargs)
        # They end with the call, which may go on when this task does not.
        kept = lent.copy()
        lent.clear()
        future.add_done_callback(partial(_end, kept))
        return await (asyncio.wrap_future(future) if isinstance(future, Future) else future)

    async def _lend(self, item: Any, lent: list[Any]) -> Any:
        if self._policy.chooses(item):
            item = borrow(await self._policy.owning(self.store, item).perform())
        if is_lent_here(item):
            lent.append(item)
        return item


def _end(lent: list[Any], future: Any) -> None:
    mark_refs_out_of_scope(*lent)
    lent.clear()


def _is_borrow(value: object) -> bool:
    return is_reference(value) and not issubclass(type(value), OwnedProxy)


def _underneath(store: Store | BlockingStore) -> Store:
    return store if isinstance(store, Store) else store.asynchronous
