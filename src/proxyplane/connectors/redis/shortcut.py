"""Blocking calls of the connector: what is small in the thread that asks, the rest by the loop."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, TypeVar

from proxyplane._runtime.io_thread import io_thread
from proxyplane.abc import Buffer, DeferrableConnector, Frames, FreshKey
from proxyplane.connectors._keys import ChosenKeys
from proxyplane.connectors.redis.blocking import POSSIBLE, BlockingPool
from proxyplane.connectors.redis.client import check_memory
from proxyplane.connectors.redis.parts import in_parts, layout_of
from proxyplane.connectors.redis.resp import Reply, command
from proxyplane.connectors.redis.transfer import (
    FIRST,
    MORE,
    Body,
    first_window,
    limit_of,
    small_body,
)
from proxyplane.connectors.redis.url import RedisOptions
from proxyplane.exceptions import (
    ConnectorClosedError,
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    KeyExistsError,
    ProxyPlaneError,
)

T = TypeVar("T")


class Shortcut(DeferrableConnector):
    """What `RedisConnector` does in threads that block; see `proxyplane.abc.SupportsSync`.

    What is large, and what finds no connection free, goes through the library's loop.
    """

    sync_waits: ClassVar[bool] = True

    _options: RedisOptions
    _closed: bool
    _chosen: ChosenKeys[bool]

    def _begin_shortcut(self) -> None:
        self._to_loop = False  # whether the next call goes there
        self._blocking: BlockingPool | None = None
        # In a cluster the way to the right node is the loop's affair.
        if POSSIBLE and not self._options.cluster and self._options.wire == "direct":
            self._blocking = pool = BlockingPool(self._options)
            # Not at exit, when others may still want it: the system closes them then.
            weakref.finalize(self, pool.close).atexit = False

    def _end_shortcut(self) -> None:
        if self._blocking is not None:
            self._blocking.close()

    def put_sync(self, frames: Frames, *, key: str | None = None, ttl: float | None = None) -> str:
        """Blocking twin of `put`."""
        with Body(frames, ttl) as body:
            if body.size <= FIRST and not in_parts(body):
                stored = self._put_here(body, key)
                if stored is not None:
                    return stored
        return self._by_loop(self.put(frames, key=key, ttl=ttl))

    def get_sync(self, key: str, *, size: int | None = None) -> Buffer | None:
        """Blocking twin of `get`."""
        if size is None or size <= FIRST:
            name = self._name(key)
            ask = first_window(name)
            replies = _twice(lambda: self._exchange([ask], len(ask)))
            if replies is not None:
                body = small_body(replies[0])
                if body is MORE:
                    return self._by_loop(self._read_more(name))
                if layout_of(body) is None:
                    return body
        return self._by_loop(self.get(key, size=size))

    def exists_sync(self, key: str) -> bool:
        """Blocking twin of `exists`."""
        ask = command("EXISTS", self._name(key))
        replies = _twice(lambda: self._exchange([ask], len(ask)))
        return self._by_loop(self.exists(key)) if replies is None else bool(replies[0])

    def evict_sync(self, key: str) -> bool:
        """Blocking twin of `evict`, by the loop.

        What the reply tells of, the parts of a large object, must be removed by whoever asked,
        even if that one is interrupted.
        """
        return self._by_loop(self.evict(key))

    def _by_loop(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return io_thread().run(call)
        except ProxyPlaneError:
            raise
        except BaseException:
            # Interrupted. What was sent takes effect before what is asked next, on the loop.
            self._to_loop = True
            raise

    def _put_here(self, body: Body, key: str | None) -> str | None:
        """The key under which it is stored now; None if that could not be done here."""
        blocking = self._blocking
        if blocking is None:
            return None
        if blocking.limit is None and not self._ask_limit(blocking):
            return None
        leased = body.lease is not None
        check_memory(body.size, blocking.limit, self._options.where, leased=leased)
        named = key is not None and type(key) is not FreshKey
        if named and self._chosen.is_due:
            self._by_loop(self._forget_gone())
        made = str(key) if named else self._new_key(key)
        name = self._name(made)
        pieces = body.set_command(name)
        size = body.size + len(pieces[0]) + len(pieces[-1])
        if not named:
            # On the second try "it is there already" means that the first one arrived.
            done = _twice(lambda: self._exchange(pieces, size, undo=name))
            return None if done is None else made
        replies = self._exchange(pieces, size, once=True)
        if replies is None:
            return None
        if replies[0] is None:
            raise self._taken(made)
        self._chosen.note(made, True)
        return made

    def _ask_limit(self, blocking: BlockingPool) -> bool:
        """Notes how much memory the server has; False if no connection is free."""
        ask = command("INFO", "memory")
        try:
            replies = _twice(lambda: self._exchange([ask], len(ask)))
        except ConnectorError as error:
            blocking.limit = limit_of(error, self._options.where)
        else:
            if replies is None:
                return False
            blocking.limit = limit_of(replies[0], self._options.where)
        return True

    def _exchange(
        self,
        pieces: Sequence[Any],
        size: int,
        count: int = 1,
        *,
        once: bool = False,
        undo: bytes | None = None,
    ) -> list[Reply] | None:
        if self._closed:
            raise ConnectorClosedError(f"the connector of {self._options.where} was closed")
        if self._blocking is None or self._to_loop:
            self._to_loop = False
            return None
        return self._blocking.exchange(pieces, size, count, once=once, undo=undo)

    # -- what the connector itself has -----------------------------------------------------------

    @abstractmethod
    async def put(self, frames: Frames, *, key: str | None = None, ttl: float | None = None) -> str:
        """See `RedisConnector.put`."""

    @abstractmethod
    def _name(self, key: str) -> bytes: ...

    @abstractmethod
    def _new_key(self, made: str | None = None) -> str: ...

    @abstractmethod
    async def _forget_gone(self) -> None: ...

    @abstractmethod
    def _taken(self, key: str) -> KeyExistsError: ...

    @abstractmethod
    async def _read_more(self, name: bytes) -> Buffer | None: ...


def _twice(operation: Callable[[], T]) -> T:
    """Does what may safely be done twice, a second time if the connection is lost.

    Not after a time-out: a server that is stuck has not lost what it was sent.
    """
    try:
        return operation()
    except ConnectorLostError as lost:
        if isinstance(lost.__cause__, TimeoutError):
            raise
        try:
            return operation()
        except ConnectorUnavailableError as exc:
            raise lost from exc
