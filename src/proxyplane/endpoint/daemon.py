"""An endpoint that runs: its parts put together, started and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable
from typing import Any, Literal

from proxyplane.connectors.endpoint.keys import id_of
from proxyplane.connectors.endpoint.places import STATE_FILE, TOKEN_FILE
from proxyplane.endpoint import settings as all_settings
from proxyplane.endpoint.api import Api
from proxyplane.endpoint.counting import Counts, exposition
from proxyplane.endpoint.https import HttpsTransport
from proxyplane.endpoint.identity import IDENTITY_FILE, certificate_of
from proxyplane.endpoint.memory import allow_many
from proxyplane.endpoint.peers import Peers
from proxyplane.endpoint.running import take
from proxyplane.endpoint.service import Service
from proxyplane.endpoint.sessions import Sessions
from proxyplane.endpoint.settings import Settings
from proxyplane.endpoint.storage import Storage
from proxyplane.exceptions import ConfigError, ConnectorUnavailableError, ProxyPlaneError

__all__ = ["Daemon", "run"]

log = logging.getLogger("proxyplane.endpoint")

_STOP_SECONDS = 10.0


class Daemon:
    """The parts of one endpoint."""

    def __init__(self, settings: Settings) -> None:
        identity = settings.path(IDENTITY_FILE)
        if id_of(certificate_of(identity)) != settings.id:
            raise ConfigError(f"the identity of {settings.name!r} is not the one it was made with")
        with open(settings.path(TOKEN_FILE), encoding="ascii") as file:
            token = file.read().strip()
        self.settings = settings
        self._counts = Counts()
        self._transport = HttpsTransport(identity, settings.listen, settings.silence)
        self._peers = Peers(self._transport, self._counts)
        self._transport.admit(self._peers)
        self._sessions = Sessions(settings.id, self._state, self._peers)
        self._storage = Storage(settings.path("objects"), settings.limits, self._sessions.changed)
        self._service = Service(
            settings.id, self._storage, self._sessions, self._peers, self._counts
        )
        self._api = Api(self._service.handle, token, self.status, self.metrics)

    def _state(self, key: str) -> Literal["there", "pending", "gone"]:
        if self._storage.find(key) is not None:
            return "there"
        return "pending" if self._storage.is_awaited(key) else "gone"

    async def start(self) -> None:
        """Begins to serve.

        Raises:
            ConnectorUnavailableError: It cannot listen where it was told to.
        """
        settings = self.settings
        await self._peers.set(settings.peers.values())
        await self._storage.open()
        try:
            await self._api.listen(settings.directory, settings.api_port)
            await self._transport.listen(self._service.handle)
        except OSError as error:
            await self.stop()
            raise ConnectorUnavailableError(f"the endpoint cannot listen: {error}") from error
        self._tell_how()
        log.info(
            "endpoint %s (%s) serves %s%s, with %d objects and %d peers",
            settings.name,
            settings.id,
            self._api.socket or f"127.0.0.1:{self._api.port}",
            f" and peers at {settings.listen}" if settings.listen else "",
            len(self._storage),
            len(settings.peers),
        )

    def _tell_how(self) -> None:
        state = {"pid": os.getpid(), "socket": self._api.socket, "port": self._api.port}
        path = self.settings.path(STATE_FILE)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(state, file)
        os.replace(f"{path}.new", path)

    async def reload(self) -> None:
        """Reads again who the peers are, and what they may do."""
        try:
            settings = all_settings.load(self.settings.name)
        except ProxyPlaneError as error:
            log.error("kept the settings: %s", error)
            return
        await self._peers.set(settings.peers.values())
        log.info("has %d peers now", len(settings.peers))

    async def stop(self) -> None:
        """Ends serving: nothing new is taken, what is under way has some seconds."""
        self._service.stopping = True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.settings.path(STATE_FILE))
        self._sessions.end()
        for _ in range(int(_STOP_SECONDS * 100)):
            if not self._counts.serving_now:
                break
            await asyncio.sleep(0.01)
        left = len(self._storage)
        await self._peers.aclose()
        await self._api.aclose()
        await self._transport.aclose()
        await self._storage.close()
        if left and not self.settings.limits.persist:
            log.info("forgot %d objects: nothing persists", left)
        log.info("stopped")

    def status(self) -> dict[str, Any]:
        """What the operator is told."""
        storage, limits = self._storage, self.settings.limits
        return {
            "name": self.settings.name,
            "id": self.settings.id,
            "pid": os.getpid(),
            "listen": self.settings.listen,
            "started": self._counts.begun,
            "objects": len(storage),
            "awaited": storage.awaited,
            "leases": len(storage.leases),
            "waiting": len(self._sessions),
            "memory": {"used": storage.room.memory_used, "limit": limits.memory},
            "disk": {"used": storage.room.disk_used, "limit": limits.disk},
            "persist": limits.persist,
            "peers": {
                peer.name: {
                    "id": peer.id,
                    "address": peer.address,
                    "allow": sorted(peer.rights),
                    "up": self._peers.is_up(peer),
                }
                for peer in self._peers
            },
        }

    def metrics(self) -> str:
        """The same for Prometheus."""
        storage = self._storage
        gauges: dict[str, tuple[str, float]] = {
            "objects": ("Objects that are there.", len(storage)),
            "awaited": ("Keys whose object will come.", storage.awaited),
            "leases": ("Objects, and keys to come, that have a lease.", len(storage.leases)),
            "leases_ended": (
                "Objects, and keys to come, that went with their lease.",
                storage.ended,
            ),
            "waiting": ("Keys that somebody waits for.", len(self._sessions)),
            "streams": ("Streams of those who wait.", self._sessions.streams),
            "memory_bytes": ("Bytes of objects in memory.", storage.room.memory_used),
            "disk_bytes": ("Bytes of objects in files.", storage.room.disk_used),
            "peers_up": (
                "Peers that were heard of lately.",
                sum(map(self._peers.is_up, self._peers)),
            ),
        }
        return exposition(self._counts, gauges)


async def _serve(settings: Settings, ready: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    daemon = Daemon(settings)
    tasks: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(daemon.reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await daemon.start()
    ready()
    await ended.wait()
    log.info("stopping")
    await daemon.stop()


def run(settings: Settings, ready: Callable[[], object]) -> None:
    """Runs an endpoint in this process until it is told to stop, by SIGTERM or SIGINT.

    Args:
        settings: Of the endpoint.
        ready: Called when it serves.

    Raises:
        ConfigError: It runs already, or something of its files is wrong.
        ConnectorUnavailableError: It cannot listen where it was told to.
    """
    file = take(settings.directory, settings.name)
    allow_many()
    try:
        try:
            import uvloop
        except ImportError:
            asyncio.run(_serve(settings, ready))
        else:
            uvloop.run(_serve(settings, ready))
    finally:
        os.close(file)
