"""Whether an endpoint runs, and a question to one that does; without what the daemon needs."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from typing import Any

from proxyplane.connectors.endpoint.client import Client, Patience
from proxyplane.connectors.endpoint.places import Place
from proxyplane.exceptions import ConfigError

__all__ = ["ask", "holder_of", "take"]

LOCK_FILE = "lock"


def take(directory: str, name: str) -> int:
    """Takes an endpoint for this process, until the descriptor that is returned is closed.

    Raises:
        ConfigError: Another process runs it.
    """
    file = os.open(os.path.join(directory, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise ConfigError(f"the endpoint {name!r} runs already") from None
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)
    return file


def holder_of(directory: str) -> int | None:
    """The process that runs the endpoint of a directory; None if it does not run."""
    try:
        file = os.open(os.path.join(directory, LOCK_FILE), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(file, 20, 0)
        return int(text) if text.isdigit() else 0
    else:
        return None
    finally:
        os.close(file)


def ask(place: Place, method: str, path: str) -> Any:
    """Asks an endpoint of this machine, and waits for the answer.

    Raises:
        ConnectorError: It does not run, or does not answer.
    """

    async def call() -> Any:
        client = Client(place.id, Patience(), place)
        try:
            async with client.ask(method, path, place.id) as answer:
                return json.loads(await answer.text())
        finally:
            await client.aclose()

    return asyncio.run(call())
