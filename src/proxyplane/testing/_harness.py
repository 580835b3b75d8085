"""What a connector's test provides, and what every part of the suite uses."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, ClassVar, ParamSpec, TypeVar

import pytest

from proxyplane.abc import Connector
from proxyplane.config import connector_from_url
from proxyplane.testing._buffers import content
from proxyplane.testing.faults import Wrapper

T = TypeVar("T")
P = ParamSpec("P")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


class Harness:
    """The fixtures and helpers of `ConnectorTests`; see there for what to override."""

    process_local: ClassVar[bool] = False
    """Whether no other process can reach the objects, by design."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, function in list(vars(cls).items()):
            # So that the suite also runs where asyncio_mode is not "auto".
            if name.startswith("test_") and inspect.iscoroutinefunction(function):
                setattr(cls, name, pytest.mark.asyncio(function))

    @pytest.fixture
    def connector(self) -> Connector:
        """The connector to test, on an empty medium; every subclass overrides it."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture `connector`")

    @pytest.fixture(autouse=True)
    def _closed_afterwards(self, connector: Connector) -> Iterator[None]:
        yield
        asyncio.run(connector.aclose())

    def second(self, connector: Connector) -> Connector:
        """Another connector on the same medium, made as another process would make it."""
        return connector_from_url(connector.url)

    def read_raw(self, key: str) -> bytes | None:
        """What the medium holds under a key, read without the connector; None for nothing."""
        raise NotImplementedError(f"{type(self).__name__} must override read_raw")

    def write_raw(self, key: str, data: bytes) -> None:
        """Stores an object without the connector, as the connector would have stored it."""
        raise NotImplementedError(f"{type(self).__name__} must override write_raw")

    def delete_raw(self, key: str) -> None:
        """Removes an object without the connector."""
        raise NotImplementedError(f"{type(self).__name__} must override delete_raw")

    def count_raw(self) -> int:
        """How many objects the medium holds, all in all."""
        pytest.skip(f"{type(self).__name__} does not override count_raw")

    def break_medium(self) -> None:
        """Makes every operation fail from now on: stops the server, spoils the file."""
        pytest.skip(f"{type(self).__name__} does not override break_medium")

    @staticmethod
    async def behind(helper: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls one of the helpers above, which may block, from an async test."""
        return await asyncio.to_thread(helper, *args, **kwargs)

    @staticmethod
    async def assert_works(connector: Connector) -> None:
        """Fails unless an object goes in, comes back and can be evicted."""
        key = await connector.put([b"it ", b"works"])
        assert content(await connector.get(key)) == b"it works"
        assert await connector.evict(key) is True


def operations(
    connector: Connector, key: str = "a key"
) -> dict[str, Callable[[], Coroutine[Any, Any, object]]]:
    """A call of every operation, by its name."""
    return {
        "put": lambda: connector.put([b"x"]),
        "put with a key": lambda: connector.put([b"x"], key=key),
        "get": lambda: connector.get(key),
        "exists": lambda: connector.exists(key),
        "evict": lambda: connector.evict(key),
        "put_batch": lambda: connector.put_batch([[b"x"], [b"y"]]),
        "get_batch": lambda: connector.get_batch([key, "another"]),
        "evict_batch": lambda: connector.evict_batch([key, "another"]),
    }


def unwrapped(connector: Connector) -> Connector:
    """The connector inside of all wrappers."""
    while isinstance(connector, Wrapper):
        connector = connector.inner
    return connector
