"""Endpoints for `endpoint`: two of ours, peers, and two of ProxyStore's, with their relay."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import has_reference

_SECONDS = 30.0
_COMMAND = [sys.executable, "-m", "proxyplane", "endpoint"]
_REFERENCE = {
    "relay": "from proxystore.p2p.relay.run import cli; cli()",
    "endpoint": "from proxystore.endpoint.cli import cli; cli()",
}


class Reference(NamedTuple):
    """ProxyStore's two endpoints.

    Attributes:
        address: The API of the first.
        home: Its directory.
        ids: Of both.
    """

    address: str
    home: str
    ids: tuple[str, str]


def free_port() -> int:
    """A port of the loopback interface that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def our_sites() -> Iterator[None]:
    """Two endpoints, ``near``, which this process uses, and ``far``."""
    with tempfile.TemporaryDirectory(prefix="pp-") as base, contextlib.ExitStack() as stack:
        before = dict(os.environ)
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        os.environ |= {"PROXYPLANE_ENDPOINTS": base, "PROXYPLANE_ENDPOINT": "near"}

        def call(*words: str) -> str:
            done = subprocess.run(
                [*_COMMAND, *words], capture_output=True, text=True, check=True, timeout=_SECONDS
            )
            return done.stdout.strip()

        listen = {name: f"127.0.0.1:{free_port()}" for name in ("near", "far")}
        ids = {name: call("configure", name, "--listen", listen[name]) for name in listen}
        for name, other in (("near", "far"), ("far", "near")):
            call("configure", name, "--peer", f"{other}={ids[other]}@{listen[other]}")
            call("start", name)
            stack.callback(call, "stop", name)
        yield


def has_reference_endpoints() -> bool:
    """Whether ProxyStore's endpoints are installed: ``proxystore[endpoints]``."""
    return has_reference() and all(
        importlib.util.find_spec(name) for name in ("aiortc", "quart", "uvicorn")
    )


@contextlib.contextmanager
def reference_sites() -> Iterator[Reference]:
    """Two endpoints of ProxyStore's that have met through a relay of their own."""
    from proxystore.endpoint import client
    from proxystore.endpoint.config import get_configs

    with tempfile.TemporaryDirectory(prefix="ps-") as base, contextlib.ExitStack() as stack:

        def start(what: str, home: str, *words: str, wait: bool = False) -> None:
            log = stack.enter_context(open(Path(base) / f"{what}.log", "ab"))
            process = subprocess.Popen(
                [sys.executable, "-c", _REFERENCE[what], *words],
                env={**os.environ, "PROXYSTORE_HOME": home},
                stdout=log,
                stderr=log,
            )
            if wait:
                process.wait(_SECONDS)
            else:
                stack.callback(process.wait, _SECONDS)
                stack.callback(process.terminate)

        relay = free_port()
        start("relay", base, "--host", "127.0.0.1", "--port", str(relay))
        _until(lambda: socket.create_connection(("127.0.0.1", relay)).close())
        ids, addresses = [], []
        for name in ("near", "far"):
            home, port = f"{base}/{name}", free_port()
            start(
                *("endpoint", home, "configure", name, "--host", "127.0.0.1"),
                *("--port", str(port), "--relay-address", f"ws://127.0.0.1:{relay}"),
                "--no-relay-auth",
                wait=True,
            )
            start("endpoint", home, "start", "--no-detach", name)
            ids.append(get_configs(home)[0].uuid)
            addresses.append(f"http://127.0.0.1:{port}")
            _until(lambda port=port: socket.create_connection(("127.0.0.1", port)).close())
        _until(lambda: client.exists(addresses[0], "none", endpoint=ids[1]))
        yield Reference(addresses[0], f"{base}/near", (ids[0], ids[1]))


def _until(call: Callable[[], object]) -> None:
    end = time.monotonic() + _SECONDS
    while True:
        try:
            call()
        except OSError:  # what requests raises is one, too
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return
