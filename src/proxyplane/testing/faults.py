"""Connectors around a connector: slow ones, failing ones, one that writes down what it is asked.

A wrapper has the URL of the connector inside, so what a proxy finds in another process is that
connector, without the wrapper. It offers coroutines only: the shortcut of `SupportsSync` is hidden.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from proxyplane.abc import Buffer, Connector, DeferrableConnector, Frames, SupportsNames
from proxyplane.exceptions import ConfigError

__all__ = ["Call", "CoroutinesOnly", "FailingConnector", "Recorder", "SlowConnector", "Wrapper"]


class Wrapper(Connector):
    """Passes everything on to another connector; override `call` to do more.

    It is a `DeferrableConnector`, and has what `SupportsNames` asks, exactly when the connector
    inside does.

    Args:
        connector: The connector inside.

    Attributes:
        inner: The connector inside.
    """

    scheme = "wrapper"

    def __new__(cls, connector: Connector, *args: Any, **kwargs: Any) -> Any:
        """Makes one that can do what the connector inside can."""
        bases: tuple[type, ...] = (cls,)
        if isinstance(connector, DeferrableConnector) and not issubclass(cls, DeferrableConnector):
            bases += (_Deferring,)
        if isinstance(connector, SupportsNames) and not issubclass(cls, SupportsNames):
            bases += (_Naming,)
        same = {name: getattr(connector, name) for name in ("takes_ttl", "reads_at_once")}
        if len(bases) > 1 or any(getattr(cls, name) != same[name] for name in same):
            cls = type(cls.__name__, bases, {"__module__": cls.__module__, **same})
        return super().__new__(cls)

    def __init__(self, connector: Connector) -> None:
        self.inner = connector

    async def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Does one operation; all of them come through here, except `url`.

        Args:
            operation: Name of the method of the connector, for example ``"put"``.
            args: Its arguments.
            kwargs: Its arguments.
        """
        return await getattr(self.inner, operation)(*args, **kwargs)

    @classmethod
    def from_url(cls, url: str) -> Wrapper:
        """Always raises: a wrapper has no URL of its own.

        Raises:
            ConfigError: In every case.
        """
        raise ConfigError(
            f"{url!r} describes no {cls.__name__}",
            hint="make it around a connector; its url is that of the connector inside",
        )

    @property
    def url(self) -> str:
        """The URL of the connector inside."""
        return self.inner.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"

    async def put(self, frames: Frames, *, key: str | None = None, **options: Any) -> str:
        """As the connector inside."""
        return str(await self.call("put", frames, key=key, **options))

    async def get(self, key: str, *, size: int | None = None) -> Buffer | None:
        """As the connector inside."""
        found: Buffer | None = await self.call("get", key, size=size)
        return found

    async def exists(self, key: str) -> bool:
        """As the connector inside."""
        there: bool = await self.call("exists", key)
        return there

    async def evict(self, key: str) -> bool:
        """As the connector inside."""
        there: bool = await self.call("evict", key)
        return there

    async def aclose(self, *, clear: bool = False) -> None:
        """As the connector inside."""
        await self.call("aclose", clear=clear)

    async def put_batch(self, batch: Sequence[Frames], **options: Any) -> list[str]:
        """As the connector inside."""
        keys: list[str] = await self.call("put_batch", batch, **options)
        return keys

    async def get_batch(
        self, keys: Sequence[str], *, sizes: Sequence[int | None] | None = None
    ) -> list[Buffer | None]:
        """As the connector inside."""
        found: list[Buffer | None] = await self.call("get_batch", keys, sizes=sizes)
        return found

    async def evict_batch(self, keys: Sequence[str]) -> list[bool]:
        """As the connector inside."""
        there: list[bool] = await self.call("evict_batch", keys)
        return there

    async def extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        """As the connector inside."""
        held: list[bool] = await self.call("extend", keys, ttl)
        return held


class _Deferring(DeferrableConnector):
    """What a wrapper of a deferrable connector has besides; mixed in by `Wrapper.__new__`."""

    call: Any

    async def new_key(self, **options: Any) -> str:
        return str(await self.call("new_key", **options))

    async def set(self, key: str, frames: Frames) -> None:
        await self.call("set", key, frames)

    async def wait(self, key: str, timeout: float | None = None) -> None:
        await self.call("wait", key, timeout)


class _Naming:
    """What a wrapper of a connector with `swap` has besides; mixed in by `Wrapper.__new__`."""

    call: Any

    async def swap(self, key: str, frames: Frames | None, **options: Any) -> Buffer | None:
        was: Buffer | None = await self.call("swap", key, frames, **options)
        return was


class CoroutinesOnly(Wrapper):
    """The same connector, with its shortcut hidden."""


class SlowConnector(Wrapper):
    """Sleeps before each operation.

    Args:
        connector: The connector inside.
        seconds: How long.
        operations: Names of the operations to slow down; by default all.
    """

    def __init__(
        self, connector: Connector, seconds: float, *, operations: Collection[str] | None = None
    ) -> None:
        super().__init__(connector)
        self.seconds = seconds
        self._operations = operations

    async def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Sleeps, then does one operation."""
        if self._operations is None or operation in self._operations:
            await asyncio.sleep(self.seconds)
        return await super().call(operation, *args, **kwargs)


class FailingConnector(Wrapper):
    """Raises an error in place of one operation, and works before and after it.

    Args:
        connector: The connector inside.
        nth: Which call fails; the first is 1.
        error: What it raises.
        operations: Names of the operations that count; by default all.
        too_late: Whether the operation that fails is done all the same, as when a connection
            breaks before the reply arrives.

    Attributes:
        calls: How many calls there were that count.
    """

    def __init__(
        self,
        connector: Connector,
        nth: int,
        error: BaseException,
        *,
        operations: Collection[str] | None = None,
        too_late: bool = False,
    ) -> None:
        super().__init__(connector)
        self.calls = 0
        self._nth = nth
        self._error = error
        self._operations = operations
        self._too_late = too_late

    async def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Does one operation, unless it is its turn to fail."""
        if self._operations is not None and operation not in self._operations:
            return await super().call(operation, *args, **kwargs)
        self.calls += 1
        if self.calls != self._nth:
            return await super().call(operation, *args, **kwargs)
        if self._too_late:
            await super().call(operation, *args, **kwargs)
        raise self._error


class Call(NamedTuple):
    """One call of a connector.

    Attributes:
        operation: Name of the method.
        args: What it was given by position.
        kwargs: What it was given by name.
    """

    operation: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Recorder(Wrapper):
    """Writes down every call.

    Args:
        connector: The connector inside.

    Attributes:
        calls: The calls, in the order in which they began.
    """

    def __init__(self, connector: Connector) -> None:
        super().__init__(connector)
        self.calls: list[Call] = []

    async def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Writes one operation down, then does it."""
        self.calls.append(Call(operation, args, kwargs))
        return await super().call(operation, *args, **kwargs)

    def count(self, operation: str) -> int:
        """How many calls of one operation there were."""
        return sum(call.operation == operation for call in self.calls)
