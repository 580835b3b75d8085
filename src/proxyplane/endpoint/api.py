"""What processes of this machine see of an endpoint: a socket of theirs alone, or a port.

A Unix socket can be opened only by its owner (and root), so nothing is asked there. On the loopback
interface every user of the machine can connect: there a token is asked for, that only the owner can
read.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

from aiohttp import web

from proxyplane.endpoint.http import make_server
from proxyplane.endpoint.replies import problem, whole
from proxyplane.endpoint.transport import RIGHTS, Caller, Handler, Reply, Request

__all__ = ["Api"]

_LONGEST_SOCKET_PATH = 100  # of the 108 bytes that a system takes, 104 on macOS
_PATIENCE_SECONDS = 60.0
_HERE = Caller("this machine", local=True, rights=frozenset(RIGHTS))


class Api:
    """Serves processes of this machine.

    Args:
        handler: Answers what concerns objects.
        token: What is asked for on a port.
        status: What the operator is told, as JSON.
        metrics: The same for Prometheus.
    """

    def __init__(
        self,
        handler: Handler,
        token: str,
        status: Callable[[], dict[str, Any]],
        metrics: Callable[[], str],
    ) -> None:
        self.socket = ""
        self.port = 0
        self._handler = handler
        self._expected = f"Bearer {token}".encode()
        self._status = status
        self._metrics = metrics
        self._runner: web.ServerRunner | None = None
        self._temporary = ""

    async def listen(self, directory: str, port: int) -> None:
        """Begins to serve, on a port or else a socket in this directory."""
        identify = self._identify if port else _anybody
        self._runner = web.ServerRunner(make_server(identify, self._serve, _PATIENCE_SECONDS))
        await self._runner.setup()
        site: web.BaseSite
        if port:
            site = web.TCPSite(self._runner, "127.0.0.1", port)
            self.port = port
        else:
            self.socket = self._socket_path(directory)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket)
            before = os.umask(0o177)  # so that it is never open to others
            try:
                site = web.UnixSite(self._runner, self.socket)
                await site.start()
            finally:
                os.umask(before)
            return
        await site.start()

    def _socket_path(self, directory: str) -> str:
        path = os.path.join(directory, "api.sock")
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            self._temporary = tempfile.mkdtemp(prefix="proxyplane-")
            path = os.path.join(self._temporary, "api.sock")
        return path

    def _identify(self, request: web.BaseRequest) -> Caller | Reply:
        if request.raw_path == "/healthz":
            return _HERE
        shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if hmac.compare_digest(shown, self._expected):
            return _HERE
        return problem(
            "token",
            "the endpoint does not know this token",
            "processes read it from its directory; is this the endpoint's own user?",
        )

    async def _serve(self, caller: Caller, request: Request) -> Reply:
        if request.method == "GET":
            if request.path == "/healthz":
                return whole(b"ok\n", "text/plain")
            if request.path == "/metrics":
                return whole(self._metrics().encode(), "text/plain; version=0.0.4")
            if request.path == "/v1/status":
                return whole(json.dumps(self._status()).encode())
        return await self._handler(caller, request)

    async def aclose(self) -> None:
        """Ends serving; requests under way have some seconds."""
        if self._runner is not None:
            await self._runner.cleanup()
        for path, remove in ((self.socket, os.unlink), (self._temporary, os.rmdir)):
            if path:
                with contextlib.suppress(OSError):
                    remove(path)


def _anybody(request: web.BaseRequest) -> Caller | Reply:
    return _HERE
