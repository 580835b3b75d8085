"""``proxyplane endpoint``: what the operator of a site types."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from proxyplane.connectors.endpoint.places import find, read_place
from proxyplane.endpoint import settings as files
from proxyplane.endpoint.room import Limits
from proxyplane.endpoint.running import ask, holder_of
from proxyplane.endpoint.settings import Settings
from proxyplane.endpoint.transport import RIGHTS
from proxyplane.exceptions import ConfigError, ProxyPlaneError

__all__ = ["run"]

_START_SECONDS = 30.0
_STOP_SECONDS = 30.0


def run(options: argparse.Namespace) -> int:
    """Does what was typed and returns the exit code."""
    command: Callable[[argparse.Namespace], int] = {
        "configure": _configure,
        "start": _start,
        "stop": _stop,
        "list": _list,
        "status": _status,
        "remove": _remove,
        "test": _test,
    }[options.what]
    try:
        return command(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (ProxyPlaneError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 1


def _configure(options: argparse.Namespace) -> int:
    new = not files.exists(options.name)
    settings = files.create(options.name) if new else files.load(options.name)
    limits = settings.limits
    limits = Limits(
        memory=limits.memory if options.memory is None else files.parse_size(options.memory),
        disk=limits.disk if options.disk is None else files.parse_size(options.disk),
        largest=(
            limits.largest if options.max_object is None else files.parse_size(options.max_object)
        ),
        persist=limits.persist if options.persist is None else options.persist,
    )
    settings = replace(settings, limits=limits)
    if options.listen is not None:
        if options.listen:
            files.parse_address(options.listen)
        settings = replace(settings, listen=options.listen)
    if options.silence is not None:
        settings = replace(settings, silence=options.silence)
    if options.port is not None:
        settings = replace(settings, api_port=options.port)
    settings = _with_peers(settings, options)
    files.save(settings)
    pid = holder_of(settings.directory)
    if pid:
        os.kill(pid, signal.SIGHUP)
    print(settings.id)
    if pid and _needs_restart(options):
        print("what is not about peers takes effect when it is started again", file=sys.stderr)
    return 0


def _needs_restart(options: argparse.Namespace) -> bool:
    told = (options.memory, options.disk, options.max_object, options.listen, options.port)
    return any(value is not None for value in (*told, options.silence, options.persist))


def _with_peers(settings: Settings, options: argparse.Namespace) -> Settings:
    peers = dict(settings.peers)
    for text in options.peer:
        name, _, rest = text.partition("=")
        id, _, address = rest.partition("@")
        known = peers.get(name)
        rights = known.rights if known is not None else RIGHTS
        peers[name] = files.make_peer(name, id, address, sorted(rights))
        if id == settings.id:
            raise ConfigError("this is the endpoint's own id, and it is no peer of itself")
    for text in options.allow:
        name, _, rights = text.partition("=")
        if name not in peers:
            raise ConfigError(f"there is no peer {name!r}", hint="name it with --peer as well")
        peer = peers[name]
        peers[name] = files.make_peer(
            name, peer.id, peer.address, [one for one in rights.split(",") if one]
        )
    for name in options.forget:
        if peers.pop(name, None) is None:
            raise ConfigError(f"there is no peer {name!r}")
    return replace(settings, peers=peers)


def _start(options: argparse.Namespace) -> int:
    settings = files.load(options.name)
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "an endpoint needs the package aiohttp", hint="pip install 'proxyplane[endpoint]'"
        ) from error
    if holder_of(settings.directory) is not None:
        raise ConfigError(f"the endpoint {settings.name!r} runs already")
    return _in_front(settings, options.ready_fd) if options.front else _in_background(settings)


def _in_front(settings: Settings, ready_fd: int | None) -> int:
    from proxyplane.endpoint.daemon import run as run_daemon

    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
    )

    def ready() -> None:
        if ready_fd is not None:
            os.write(ready_fd, b"ready")
            os.close(ready_fd)

    run_daemon(settings, ready)
    return 0


def _in_background(settings: Settings) -> int:
    path = settings.path("log")
    reader, writer = os.pipe()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    begin = os.fstat(log).st_size
    try:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "proxyplane", "endpoint", "start", settings.name),
                *("--front", "--ready-fd", str(writer)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
        )
    finally:
        os.close(writer)
        os.close(log)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()  # until it is ready, or has ended
    if said != b"ready":
        code = process.wait()
        with open(path, "rb") as file:
            file.seek(begin)
            sys.stderr.write(file.read().decode("utf-8", "replace"))
        return code or 1
    # It is nobody's child that anyone waits for: it stays when this process ends.
    process.returncode = 0
    print(f"endpoint {settings.name} runs (process {process.pid}); its log is {path}")
    return 0


def _stop(options: argparse.Namespace) -> int:
    settings = files.load(options.name)
    pid = holder_of(settings.directory)
    if not pid:
        print(f"the endpoint {settings.name!r} does not run")
        return 0
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + _STOP_SECONDS
    while holder_of(settings.directory) == pid:
        if time.monotonic() > end:
            print(f"process {pid} does not stop", file=sys.stderr)
            return 1
        time.sleep(0.02)
    print(f"endpoint {settings.name} stopped")
    return 0


def _list(options: argparse.Namespace) -> int:
    for place in find():
        pid = holder_of(place.directory)
        state = f"runs (process {pid})" if pid is not None else "does not run"
        print(f"{place.name}\t{place.id}\t{state}")
    return 0


def _status(options: argparse.Namespace) -> int:
    place = read_place(files.load(options.name).directory)
    status = ask(place, "GET", "/v1/status")
    if options.json:
        print(json.dumps(status, indent=2))
        return 0
    memory, disk = status["memory"], status["disk"]
    rows: Sequence[tuple[str, Any]] = (
        ("id", status["id"]),
        ("process", status["pid"]),
        ("listens to peers at", status["listen"] or "nothing"),
        ("objects", f"{status['objects']}, and {status['awaited']} to come"),
        ("have a lease", status.get("leases", 0)),
        ("in memory", f"{memory['used']:,} of {memory['limit']:,} bytes"),
        ("in files", f"{disk['used']:,} of {disk['limit']:,} bytes"),
        ("survive a restart", "yes" if status["persist"] else "no"),
        ("waited for", status["waiting"]),
    )
    for what, value in rows:
        print(f"{what:20} {value}")
    for name, peer in status["peers"].items():
        up = "up" if peer["up"] else "not heard of lately"
        print(
            f"peer {name:15} {peer['address'] or 'no address'}, "
            f"may {', '.join(peer['allow'])}; {up}"
        )
    return 0


def _remove(options: argparse.Namespace) -> int:
    directory = files.directory_of(options.name)
    if not os.path.isdir(directory):
        raise ConfigError(f"no endpoint {options.name!r} is configured")
    if holder_of(directory) is not None:
        raise ConfigError(
            f"the endpoint {options.name!r} runs", hint=f"proxyplane endpoint stop {options.name}"
        )
    shutil.rmtree(directory)
    print(f"removed {options.name}, with its identity and its objects")
    return 0


def _test(options: argparse.Namespace) -> int:
    from proxyplane.connectors.endpoint import EndpointConnector

    async def call() -> int:
        connector = EndpointConnector(options.name, timeout=options.timeout)
        try:
            return await _call(connector, options)
        finally:
            await connector.aclose()

    return asyncio.run(call())


async def _call(connector: Any, options: argparse.Namespace) -> int:
    if options.operation == "put":
        data = sys.stdin.buffer.read() if options.data is None else options.data.encode()
        print(await connector.put([data], key=options.key))
        return 0
    if options.key is None:
        raise ConfigError(f"`test {options.operation}` needs a key")
    if options.operation == "get":
        body = await connector.get(options.key)
        if body is None:
            print("there is no such object", file=sys.stderr)
            return 1
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
        return 0
    there = await (connector.exists if options.operation == "exists" else connector.evict)(
        options.key
    )
    print("yes" if there else "no")
    return 0 if there else 1
