"""Futures whose result comes from another process, and whose consumers may start before it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from functools import partial
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

from proxyplane._runtime.flights import hand_over, in_flight
from proxyplane._runtime.io_thread import io_thread
from proxyplane._runtime.source import as_raised
from proxyplane._runtime.workers import Workers
from proxyplane.cache import MISSING
from proxyplane.exceptions import FutureAlreadySet, FutureCancelled, ProxyResolveError
from proxyplane.factory import StoreFactory, rebuild_factory
from proxyplane.failures import FAILURES, Failure, RemoteTraceback
from proxyplane.hints import Hints
from proxyplane.proxy import Proxy, aresolve, extract, get_factory, is_resolved, make_proxy

__all__ = ["ProxyFuture", "as_completed", "wait"]

T = TypeVar("T")
ReturnWhen: TypeAlias = Literal["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"]
logger = logging.getLogger("proxyplane")


class ProxyFuture(Generic[T]):
    """The promise of an object that somebody will put; made by `Store.future`.

    Small, picklable, and good on both sides: the producer calls `set_result` in whatever process
    it runs, consumers wait for the result or take a `proxy` that waits on its first use. Waiters
    are woken by the medium, not polled for.

    Methods that block have an async twin whose name begins with ``a``; ``await future`` is short
    for ``await future.aresult()``.
    """

    __slots__ = ("_proxy", "_type_name")

    def __init__(self, factory: StoreFactory[T], type_name: str | None) -> None:
        # Result and proxies of one future are one proxy, so that with ``evict=True`` they are one
        # claim and do not take the object from each other.
        self._proxy: Proxy[T] = make_proxy(factory, Hints(type_name))
        self._type_name = type_name

    # -- for the consumer -----------------------------------------------------------------------

    def proxy(self) -> Proxy[T]:
        """A proxy of the result; its first use waits for it. The same one at each call."""
        return self._proxy

    def done(self) -> bool:
        """Whether the future has a result, an exception, or was cancelled; asks the medium.

        Raises:
            ConnectorError: The medium failed.
        """
        return is_resolved(self._proxy) or self._blocking(self._store.looking(self._key))

    async def adone(self) -> bool:
        """Async twin of `done`."""
        return is_resolved(self._proxy) or await self._store.looking(self._key).perform()

    def result(self, timeout: float | None = None) -> T:
        """Waits for the result and returns it.

        Args:
            timeout: Seconds to wait at most; None for no end.

        Raises:
            TimeoutError: It did not come in time.
            FutureCancelled: The producer gave up, or somebody called `cancel`.
            Exception: Whatever the producer set as the exception, with its traceback as the cause.
            ObjectLostError: The medium lost the future, so that no result will ever come.
            ProxyResolveError: The result could not be fetched or decoded.
        """
        if not is_resolved(self._proxy):
            self._blocking(self._store.awaiting(self._key, timeout))
        try:
            return extract(self._proxy)
        except ProxyResolveError as error:
            _raise_producers(error)
            raise

    async def aresult(self, timeout: float | None = None) -> T:
        """Async twin of `result`."""
        if not is_resolved(self._proxy):
            await self._store.awaiting(self._key, timeout).perform()
        try:
            if not self._factory.evict:
                await self._read_here()
            return await aresolve(self._proxy)
        except ProxyResolveError as error:
            _raise_producers(error)
            raise

    async def _read_here(self) -> None:
        """Resolves the proxy on the running loop, unless that is under way elsewhere.

        This loop has just been woken. Had it to hand the reading to the library's loop and to be
        woken once more, a small object would arrive a third later.
        """
        proxy, store, key = self._proxy, self._store, self._key
        reads = _reads.setdefault(asyncio.get_running_loop(), {})
        while not is_resolved(proxy) and not in_flight((self._factory.reference, key)):
            read = reads.get(key)
            if read is not None:
                # Somebody else who waits here. If it came to nothing, the next one tries.
                await read.ended.wait()
                _deliver(proxy, read.target)
                continue
            read = reads[key] = _Read()
            try:
                read.target = await store.reading_set(key).perform()
                _deliver(proxy, read.target)
            except Exception as error:
                raise as_raised(error, self._factory) from error
            finally:
                del reads[key]
                read.ended.set()

    def __await__(self) -> Generator[Any, None, T]:
        return self.aresult().__await__()

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Waits until the future is done; returns the producer's exception, None for a result.

        Raises:
            As `result`, but for what it returns.
        """
        try:
            self.result(timeout)
        except Exception as error:  # noqa: BLE001  sorted out by `_exception`
            return _exception(error)
        return None

    async def aexception(self, timeout: float | None = None) -> Exception | None:
        """Async twin of `exception`."""
        try:
            await self.aresult(timeout)
        except Exception as error:  # noqa: BLE001  sorted out by `_exception`
            return _exception(error)
        return None

    def add_done_callback(self, callback: Callable[[ProxyFuture[T]], object]) -> None:
        """Calls ``callback(future)`` once the future is done, or is lost.

        It is called on the loop that runs where this is called; without one, on a thread of its
        own. Never on the library's loop.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        io_thread().spawn(
            self._store.awaiting(self._key, None).perform(),
            lambda _: _call_back(loop, callback, self),
        )

    # -- for the producer -----------------------------------------------------------------------

    def set_result(self, result: T) -> None:
        """Stores the result and wakes all who wait for it.

        Raises:
            FutureAlreadySet: It has a result, an exception, or was cancelled; nothing changes.
            ObjectLostError: The medium no longer knows the future.
            SerializationError: The result cannot be encoded.
            ConnectorError: The medium failed.
        """
        self._blocking(self._store.setting(self._key, result))

    async def aset_result(self, result: T) -> None:
        """Async twin of `set_result`."""
        await self._store.setting(self._key, result).perform()

    def set_exception(self, error: Exception) -> None:
        """Makes `result` raise `error` in every consumer, with its traceback as text.

        Raises:
            As `set_result`.
        """
        self._blocking(self._store.setting(self._key, Failure.of(error), FAILURES))

    async def aset_exception(self, error: Exception) -> None:
        """Async twin of `set_exception`."""
        await self._store.setting(self._key, Failure.of(error), FAILURES).perform()

    def cancel(self, reason: str = "the future was cancelled") -> bool:
        """Ends the future without a result: consumers get FutureCancelled, with `reason`.

        Also how a producer says that it gives up.

        Returns:
            Whether it was cancelled; False if it was done already.
        """
        try:
            self.set_exception(FutureCancelled(reason))
        except FutureAlreadySet:
            return False
        return True

    async def acancel(self, reason: str = "the future was cancelled") -> bool:
        """Async twin of `cancel`."""
        try:
            await self.aset_exception(FutureCancelled(reason))
        except FutureAlreadySet:
            return False
        return True

    # -- what every object has ------------------------------------------------------------------

    @property
    def _factory(self) -> StoreFactory[T]:
        return cast("StoreFactory[T]", get_factory(self._proxy))

    @property
    def _key(self) -> str:
        return self._factory.key

    @property
    def _store(self) -> Any:
        return self._factory.store

    def _blocking(self, operation: Any) -> Any:
        return operation.perform_blocking(self._store.on_blocking)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProxyFuture) and self._factory == other._factory

    def __hash__(self) -> int:
        return hash(self._factory)

    def __repr__(self) -> str:
        return f"<ProxyFuture of {self._factory}>"

    def __reduce__(self) -> tuple[Any, ...]:
        reference, key, flags = self._factory.flat()
        return rebuild_future, (reference, key, flags, self._type_name)


def rebuild_future(
    reference: str, key: bytes | str, flags: int, type_name: str | None
) -> ProxyFuture[Any]:
    """Inverse of pickling a future."""
    return ProxyFuture(rebuild_factory(reference, key, flags, None), type_name)


class _Read:
    """A result that is being read on some loop, for all who wait for it there."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.target: Any = MISSING


_reads: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Read]] = (
    weakref.WeakKeyDictionary()
)


def _deliver(proxy: Proxy[Any], target: Any) -> None:
    if target is not MISSING:
        hand_over(proxy.__proxy_accept__, target)


def _raise_producers(error: ProxyResolveError) -> None:
    """Raises what the producer raised, if that is why a proxy could not be resolved."""
    cause = error.cause
    if cause is not None and isinstance(cause.__cause__, RemoteTraceback):
        raise cause from cause.__cause__


def _exception(error: Exception) -> Exception:
    if isinstance(error.__cause__, RemoteTraceback):
        return error
    raise error


def _call_back(
    loop: asyncio.AbstractEventLoop | None,
    callback: Callable[[ProxyFuture[T]], object],
    future: ProxyFuture[T],
) -> None:
    if loop is None:
        _callbacks.submit(partial(_call_on_worker, callback, future))
        return
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be called
        loop.call_soon_threadsafe(callback, future)


def _call_on_worker(callback: Callable[[ProxyFuture[T]], object], future: ProxyFuture[T]) -> None:
    try:
        callback(future)
    except Exception:
        logger.exception("a callback of %r failed", future)


# A user's callback may block for as long as it likes; each has a thread.
_callbacks = Workers(256, "proxyplane-callback")


async def wait(
    futures: Iterable[ProxyFuture[Any]],
    *,
    timeout: float | None = None,
    return_when: ReturnWhen = "ALL_COMPLETED",
) -> tuple[set[ProxyFuture[Any]], set[ProxyFuture[Any]]]:
    """Waits for many futures at once.

    Args:
        futures: What to wait for.
        timeout: Seconds to wait at most; None for no end.
        return_when: ``"ALL_COMPLETED"``, ``"FIRST_COMPLETED"`` or ``"FIRST_EXCEPTION"``.

    Returns:
        Those that are done, with a result or not, and those that are not. A future whose medium
        failed or lost it counts as done: its `result` raises.
    """
    tasks = {asyncio.ensure_future(_finish(one, return_when)): one for one in set(futures)}
    if not tasks:
        return set(), set()
    try:
        ended, _ = await asyncio.wait(tasks, timeout=timeout, return_when=return_when)
    finally:
        await _drop(tasks)
    done = {tasks[task] for task in ended}
    return done, set(tasks.values()) - done


async def as_completed(
    futures: Iterable[ProxyFuture[T]], *, timeout: float | None = None
) -> AsyncIterator[ProxyFuture[T]]:
    """Gives futures as they are done, with a result or not.

    Args:
        futures: What to wait for.
        timeout: Seconds from the first step to the last, at most; None for no end.

    Raises:
        TimeoutError: Not all were done in time.
    """
    tasks = {asyncio.ensure_future(_finish(one, "ALL_COMPLETED")): one for one in set(futures)}
    pending = set(tasks)
    try:
        async with asyncio.timeout(timeout):
            while pending:
                ended, pending = await asyncio.wait(pending, return_when="FIRST_COMPLETED")
                for task in ended:
                    yield tasks[task]
    except TimeoutError:
        raise TimeoutError(
            f"{len(pending)} of {len(tasks)} futures were not done in time"
        ) from None
    finally:
        await _drop(tasks)


async def _finish(future: ProxyFuture[Any], return_when: ReturnWhen) -> None:
    # Only who asks for the first exception has to fetch what was set.
    if return_when == "FIRST_EXCEPTION":
        await future.aresult()
    elif not is_resolved(future.proxy()):
        await future._store.awaiting(future._key, None).perform()


async def _drop(tasks: Iterable[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    # Also takes the exceptions, which asyncio would log as never retrieved.
    await asyncio.gather(*tasks, return_exceptions=True)
