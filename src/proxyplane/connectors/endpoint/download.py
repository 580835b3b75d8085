"""One object on its way from an endpoint, of which a link that breaks loses nothing.

The first answer has a tag that no other object has. When the link breaks in the middle of a large
object, the rest is asked for, of the object with that tag; if the key holds another one by now, all
of that comes instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from proxyplane.abc import Buffer, telling
from proxyplane.connectors.endpoint.channel import Answer
from proxyplane.connectors.endpoint.keys import quote_key
from proxyplane.connectors.endpoint.wire import SLICE, Tell, new_buffer
from proxyplane.exceptions import (
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    NotAllowedError,
)

__all__ = ["MEMORY", "Download"]

MEMORY: Final = "Memory"
"""The header of a request that an object may be mapped, and of the answer that says where."""
RESUME_SECONDS: Final = 5.0
"""Seconds without a further byte after which a link that broke is given up."""

_WORTH: Final = 1 << 20  # bytes that have come, and are not to come again
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0

Ask = Callable[..., AbstractAsyncContextManager[Answer]]


class Download:
    """Fetches one object.

    Args:
        ask: Sends a request, as `Client.ask`.
        key: The key of the object.
        endpoint: Who has it.
        mapped: Whether it may be told where to map it instead.
    """

    def __init__(self, ask: Ask, key: str, endpoint: str, *, mapped: bool) -> None:
        self._ask = ask
        self._path = f"/v1/objects/{quote_key(key)}"
        self._endpoint = endpoint
        self._mapped = mapped
        self._buffer: Any = b""
        self._at = 0  # so many bytes have come
        self._tag = ""

    async def run(self) -> Buffer | str | None:
        """The object, or where it can be mapped; None if there is none.

        Raises:
            ConnectorLostError: The link broke before enough had come, or did not come back.
        """
        loop = asyncio.get_running_loop()
        reached, give_up, pause = 0, 0.0, _FIRST_PAUSE
        while True:
            try:
                return await self._go_on()
            except (ConnectorLostError, ConnectorUnavailableError) as error:
                if not self._is_worth_it(error):
                    raise
                if self._at > reached:
                    reached, pause = self._at, _FIRST_PAUSE
                    give_up = loop.time() + RESUME_SECONDS
                elif loop.time() >= give_up:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _is_worth_it(self, error: ConnectorError) -> bool:
        """Whether to go on; not after a time-out: what is stuck has not lost what it was sent."""
        stuck = isinstance(error.__cause__, TimeoutError)
        refused = isinstance(error, NotAllowedError)
        return self._at >= _WORTH and self._tag != "" and not stuck and not refused

    async def _go_on(self) -> Buffer | str | None:
        fields: dict[str, str] = {}
        if self._at:
            fields = {"Range": f"bytes={self._at}-", "If-Range": self._tag}
        elif self._mapped:
            fields = {MEMORY: "yes"}
        async with self._ask("GET", self._path, self._endpoint, fields=fields, missing=True) as got:
            if got.status == 404:
                await got.text()
                return None
            if self._mapped and MEMORY.lower() in got.fields:
                await got.text()
                return str(got.fields[MEMORY.lower()])
            if got.status == 206:
                self._check_rest(got)
            else:
                self._begin(got)
            await self._receive(got)
        return self._buffer  # type: ignore[no-any-return]

    def _begin(self, answer: Answer) -> None:
        self._buffer = new_buffer(answer.size or 0)
        self._at = 0
        self._tag = answer.fields.get("etag", "")

    def _check_rest(self, answer: Answer) -> None:
        size = len(self._buffer)
        wanted = f"bytes {self._at}-{size - 1}/{size}"
        if (answer.fields.get("content-range"), answer.fields.get("etag")) != (wanted, self._tag):
            raise ConnectorError(
                "the endpoint sent another part of an object than it was asked for"
            )

    async def _receive(self, answer: Answer) -> None:
        begin, size = self._at, len(self._buffer)
        tell: Tell = telling(size) if size > SLICE else None
        told = None if tell is None else lambda done: tell(begin + done)
        with memoryview(self._buffer) as whole, whole[begin:] as rest:
            try:
                await answer.connection.read_into(rest, told)
            except OSError:
                self._at = begin + answer.connection.filled
                raise
