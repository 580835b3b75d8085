"""Who waits at this endpoint: a session for each stream, with the keys that it waits for.

A session is told of what is there as soon as it asks, and of the rest when it comes. What it waits
for at a peer is asked for there, by the `Watch` of the link, which goes on asking when the link was
lost. A session ends with its stream.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Literal

from proxyplane.connectors.endpoint.problems import HEADER, text_of
from proxyplane.connectors.endpoint.watch import PING_SECONDS, Watcher
from proxyplane.endpoint.peers import Peers
from proxyplane.endpoint.replies import problem_of
from proxyplane.endpoint.transport import Caller
from proxyplane.exceptions import (
    ConnectorError,
    ConnectorUnavailableError,
    NotAllowedError,
    ProxyPlaneError,
)

__all__ = ["Sessions"]

_AT_ONCE = 200  # lines that are written together
MOST_KEYS = 100_000
"""Keys that one session may wait for."""

Name = tuple[str, str]
Leave = Callable[[], None]


class _Session:
    """One stream."""

    def __init__(self, caller: Caller) -> None:
        self.token = secrets.token_hex(16)
        self.caller = caller
        self.waiting: dict[Name, Leave] = {}
        self.lines: list[bytes] = []
        self.some = asyncio.Event()

    def say(self, name: Name, state: str, more: bytes = b"") -> None:
        """Puts a line into the stream."""
        said = json.dumps([*name, state])
        self.lines.append(
            f"{said[:-1]}, {more.decode()}]\n".encode() if more else f"{said}\n".encode()
        )
        self.some.set()


class Sessions:
    """Everybody who waits here.

    Args:
        id: The id of this endpoint.
        state: Tells of a key whether its object is there, pending or gone.
        peers: The others.
    """

    def __init__(
        self, id: str, state: Callable[[str], Literal["there", "pending", "gone"]], peers: Peers
    ) -> None:
        self.state = state
        self.ended = False
        self._id = id
        self._peers = peers
        self._sessions: dict[str, _Session] = {}
        self._waiting: dict[str, dict[_Session, Name]] = {}  # for objects of this endpoint

    def __len__(self) -> int:
        """How many wait, counted by keys and streams."""
        return sum(len(session.waiting) for session in self._sessions.values())

    @property
    def streams(self) -> int:
        """How many streams there are."""
        return len(self._sessions)

    async def open(self, caller: Caller) -> AsyncIterator[bytes]:
        """The stream of a new session."""
        session = _Session(caller)
        self._sessions[session.token] = session
        try:
            yield f"{session.token}\n".encode()
            while not self.ended:
                try:
                    async with asyncio.timeout(PING_SECONDS):
                        await session.some.wait()
                except TimeoutError:
                    yield b"\n"
                    continue
                lines, session.lines = session.lines[:_AT_ONCE], session.lines[_AT_ONCE:]
                if not session.lines:
                    session.some.clear()
                yield b"".join(lines)
        finally:
            del self._sessions[session.token]
            for leave in list(session.waiting.values()):
                leave()

    def change(self, caller: Caller, token: str, add: list[Name], drop: list[Name]) -> bool:
        """Changes what a session waits for; returns whether there is such a session."""
        session = self._sessions.get(token)
        if session is None or session.caller.name != caller.name:
            return False
        session.caller = caller  # who may do otherwise now than when the stream began
        for name in drop:
            leave = session.waiting.pop(name, None)
            if leave is not None:
                leave()
        for name in add:
            if name not in session.waiting:
                self._add(session, name)
        return True

    def _add(self, session: _Session, name: Name) -> None:
        endpoint, key = name
        caller = session.caller
        here = self._id.startswith(endpoint)
        if "wait" not in caller.rights:
            _refuse(session, name, NotAllowedError(f"{caller.name} may not wait here"))
        elif len(session.waiting) >= MOST_KEYS:
            _refuse(session, name, ConnectorError(f"more than {MOST_KEYS} keys in one stream"))
        elif here:
            self._add_here(session, name, key)
        else:
            peer = self._peers.find(endpoint) if caller.local else None
            if peer is None:
                error = ConnectorUnavailableError(
                    f"this endpoint does not have {endpoint[:16]}... as a peer"
                )
                _refuse(session, name, error)
                return
            watch = self._peers.link(peer).watch
            watcher: Watcher

            def heard(what: str | ProxyPlaneError) -> None:
                session.waiting.pop(name, None)
                if isinstance(what, ProxyPlaneError):
                    _refuse(session, name, what)
                else:
                    session.say(name, what)

            watcher = watch.add(endpoint, key, heard)
            session.waiting[name] = lambda: watch.leave(watcher)

    def _add_here(self, session: _Session, name: Name, key: str) -> None:
        state = self.state(key)
        if state != "pending":
            session.say(name, state)
            return
        named = self._waiting.setdefault(key, {})
        named[session] = name

        def leave() -> None:
            named.pop(session, None)
            if not named and self._waiting.get(key) is named:
                del self._waiting[key]

        session.waiting[name] = leave

    def changed(self, key: str) -> None:
        """A key has got its object, or will never have one."""
        named = self._waiting.pop(key, None)
        if named is None:
            return
        state = self.state(key)
        for session, name in named.items():
            session.waiting.pop(name, None)
            session.say(name, "gone" if state == "pending" else state)

    def end(self) -> None:
        """Ends every stream, for good."""
        self.ended = True
        for session in self._sessions.values():
            session.some.set()


def _refuse(session: _Session, name: Name, error: ProxyPlaneError) -> None:
    reply = problem_of(error)
    session.say(name, reply.fields[HEADER], text_of(str(error.args[0]), error.hint))
