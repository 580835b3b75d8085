"""Waiting at an endpoint: one stream that tells, for all who wait on one event loop.

The stream is opened when somebody waits. It begins with the name of a session, in which requests
then say what is waited for; the endpoint tells at once of what is already there, and of the rest
when it comes. It sends an empty line every second, so that silence is a lost link. After that a new
stream is opened and everything is asked for again: nothing that happened in between is missed.

An endpoint watches its peers with the same class, on behalf of its own clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Final, Literal

from proxyplane.connectors.endpoint.channel import Answer, Channel, NotSentError
from proxyplane.connectors.endpoint.problems import HEADER, PASSING, error_of
from proxyplane.connectors.endpoint.wire import ProtocolError
from proxyplane.exceptions import (
    ConnectorError,
    ConnectorUnavailableError,
    NotAllowedError,
    ProxyPlaneError,
)

__all__ = ["SILENCE_SECONDS", "Heard", "Watch", "Watcher"]

PING_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 6.0
"""Seconds of silence after which a link counts as lost, unless told otherwise."""
IDLE_SECONDS = 10.0
"""Seconds for which a stream is kept when nobody waits."""

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_AT_ONCE: Final = 500

State = Literal["there", "gone"]
Heard = Callable[[State | ProxyPlaneError], object]


class Watcher:
    """One who waits; `heard` is called once, unless it leaves before."""

    __slots__ = ("heard", "name")

    def __init__(self, name: tuple[str, str], heard: Heard) -> None:
        self.name = name
        self.heard = heard


class Watch:
    """Everybody who waits at one endpoint, on one event loop.

    Args:
        channel: The way there.
        on_lost: Called when the stream was lost, with the reason.
        silence: Seconds of silence after which it counts as lost.
    """

    def __init__(
        self,
        channel: Channel,
        on_lost: Callable[[BaseException], object] | None = None,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self.trouble: BaseException | None = None
        self._channel = channel
        self._on_lost = on_lost
        self._silence = silence
        self._wanted: dict[tuple[str, str], dict[Watcher, None]] = {}
        self._unsent: dict[tuple[str, str], bool] = {}  # True to add, False to drop
        self._to_send = asyncio.Event()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._used = 0.0
        self._closed = False

    def add(self, endpoint: str, key: str, heard: Heard) -> Watcher:
        """Calls `heard` when the object is there, or gone, or can never be waited for."""
        watcher = Watcher((endpoint, key), heard)
        named = self._wanted.setdefault(watcher.name, {})
        if not named:
            self._say(watcher.name, True)
        named[watcher] = None
        self.keep()
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Does not call it any more."""
        named = self._wanted.get(watcher.name, {})
        named.pop(watcher, None)
        if not named and self._wanted.pop(watcher.name, None) is not None:
            self._say(watcher.name, False)
            self._used = self._loop.time()

    def keep(self) -> None:
        """Sees to it that the stream is open, for a while also if nobody waits."""
        self._used = self._loop.time()
        if (self._task is None or self._task.done()) and not self._closed:
            self._task = self._loop.create_task(self._run())

    @property
    def waiting(self) -> int:
        """How many keys are waited for."""
        return len(self._wanted)

    async def aclose(self, error: ProxyPlaneError) -> None:
        """Ends the stream; whoever waits hears of `error`."""
        self._closed = True
        self._fail_all(error)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # -- inside -------------------------------------------------------------------------------

    def _say(self, name: tuple[str, str], wanted: bool) -> None:
        self._unsent[name] = wanted
        self._to_send.set()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while self._wanted or self._loop.time() - self._used < IDLE_SECONDS:
            try:
                async with self._channel.exchange(
                    "GET", "/v1/watch", stream=self._silence
                ) as answer:
                    if answer.status != 200 or answer.size is not None:
                        await self._refused(answer)
                        return
                    connection = answer.connection
                    session = (await connection.read_line()).decode("latin-1")
                    self.trouble, pause = None, _FIRST_PAUSE
                    self._unsent = dict.fromkeys(self._wanted, True)
                    self._to_send.set()
                    sending = asyncio.ensure_future(self._send(session, answer))
                    try:
                        await self._listen(answer)
                    finally:
                        sending.cancel()
                        await asyncio.wait([sending])
                    return  # nobody has waited for a while
            except NotAllowedError as error:  # no patience mends it
                self._fail_all(error)
                return
            except _PASSING_ERRORS as error:
                self.trouble = error
                if self._on_lost is not None:
                    self._on_lost(error)
            except ProxyPlaneError as error:
                self._fail_all(error)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _refused(self, answer: Answer) -> None:
        text = b"" if answer.size is None else await answer.text()
        error = error_of(answer.fields, text)
        if answer.fields.get(HEADER.lower()) in PASSING:
            raise _PassingError(str(error)) from error
        self._fail_all(error or ConnectorError(f"the endpoint answered {answer.status}"))

    def _fail_all(self, error: ProxyPlaneError) -> None:
        for name in list(self._wanted):
            self._tell(name, error)
        self._unsent.clear()

    async def _listen(self, answer: Answer) -> None:
        while True:
            line = await answer.connection.read_line()
            if line:
                try:
                    endpoint, key, state, *more = json.loads(line)
                except (ValueError, TypeError) as error:
                    raise ProtocolError("a line of the stream cannot be read") from error
                if state in ("there", "gone"):
                    self._tell((endpoint, key), state)
                else:
                    fields = {HEADER.lower(): str(state)}
                    found = error_of(fields, json.dumps(more[0] if more else {}).encode())
                    self._tell((endpoint, key), found or ConnectorError(str(state)))
            elif not self._wanted and self._loop.time() - self._used >= IDLE_SECONDS:
                return

    async def _send(self, session: str, answer: Answer) -> None:
        """Says what is waited for, as it changes."""
        try:
            while True:
                await self._to_send.wait()
                if not self._unsent:
                    self._to_send.clear()
                    continue
                names = list(self._unsent)[:_AT_ONCE]
                what = {name: self._unsent.pop(name) for name in names}
                body = json.dumps(
                    {
                        "add": [name for name, wanted in what.items() if wanted],
                        "drop": [name for name, wanted in what.items() if not wanted],
                    }
                ).encode()
                async with self._channel.exchange(
                    "POST", f"/v1/watch/{session}", size=len(body), body=[memoryview(body)]
                ) as reply:
                    await reply.text()
                    if reply.status != 204:
                        raise ProtocolError(f"the endpoint answered {reply.status}")
        except (OSError, EOFError, NotSentError, ProtocolError) as error:
            answer.connection.abort(ConnectionError(str(error)))

    def _tell(self, name: tuple[str, str], what: State | ProxyPlaneError) -> None:
        self._unsent.pop(name, None)
        for watcher in self._wanted.pop(name, {}):
            with contextlib.suppress(asyncio.InvalidStateError):
                watcher.heard(what)
        self._used = self._loop.time()


class _PassingError(Exception):
    """The endpoint could not serve just now."""


_PASSING_ERRORS = (
    OSError,
    EOFError,
    NotSentError,
    ProtocolError,
    ConnectorUnavailableError,  # the endpoint of this machine does not run just now
    _PassingError,
)
