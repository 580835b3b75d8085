"""Waiting for one object at an endpoint."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from proxyplane.connectors._waiters import deadline
from proxyplane.connectors.endpoint.client import Client
from proxyplane.connectors.endpoint.keys import quote_key
from proxyplane.exceptions import (
    ConnectorLostError,
    ConnectorUnavailableError,
    NotAllowedError,
    ObjectLostError,
    ProxyPlaneError,
)

__all__ = ["wait_for"]

_LOOK_SECONDS: Final = 1.0  # for which one may look, though there is less time to wait


async def wait_for(client: Client, key: str, endpoint: str, timeout: float | None) -> None:
    """Returns when a key holds an object; see `EndpointConnector.wait`.

    Args:
        client: The way of this event loop.
        key: The key.
        endpoint: The endpoint that has it.
        timeout: Seconds to wait at most.
    """
    since = asyncio.get_running_loop().time()
    if timeout is not None and timeout < _LOOK_SECONDS:
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                if await _is_there(client, key, endpoint):
                    return
        except NotAllowedError:
            raise
        except (ConnectorUnavailableError, ConnectorLostError, TimeoutError):
            pass  # it may be over in time
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    watcher = client.watch.add(endpoint, key, future.set_result)
    try:
        async with deadline(key, timeout, since=since):
            heard = await future
    except TimeoutError as error:
        if client.watch.trouble is not None:
            raise TimeoutError(*error.args) from client.watch.trouble
        raise
    finally:
        client.watch.leave(watcher)
    if isinstance(heard, ProxyPlaneError):
        raise type(heard)(*heard.args, hint=heard.hint)
    if heard == "gone":
        raise _lost(key)


async def _is_there(client: Client, key: str, endpoint: str) -> bool:
    async with client.ask("GET", f"/v1/later/{quote_key(key)}", endpoint) as answer:
        state = await answer.text()
    if state == b"gone":
        raise _lost(key)
    return state == b"there"


def _lost(key: str) -> ObjectLostError:
    return ObjectLostError(
        f"the endpoint does not know the key {key!r}, or not any more",
        hint="it was evicted, its lease ended, or its endpoint was restarted and keeps nothing",
    )
