"""The settings of an endpoint, and its directory.

::

    ENDPOINTS/NAME/settings.toml   what `configure` was told
                   identity.pem    its private key and certificate
                   token           what processes show on the loopback port
                   objects/        what is in files
                   running.json    how to reach it, while it runs
                   lock            held while it runs
                   log             what it says in the background
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tomllib
from dataclasses import dataclass, field, replace
from typing import Any

from proxyplane.connectors.endpoint.keys import is_id
from proxyplane.connectors.endpoint.places import SETTINGS_FILE, TOKEN_FILE, endpoints_directory
from proxyplane.connectors.endpoint.watch import PING_SECONDS, SILENCE_SECONDS
from proxyplane.endpoint import identity
from proxyplane.endpoint.room import Limits
from proxyplane.endpoint.transport import RIGHTS, Peer
from proxyplane.exceptions import ConfigError

__all__ = ["Settings", "create", "directory_of", "load", "parse_address", "parse_size", "save"]

MOST_FREQUENT = 2 * PING_SECONDS
"""Seconds of silence that need not mean anything."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """What an endpoint was told.

    Attributes:
        name: What it is called on this machine.
        id: Its id.
        api_port: The port of the loopback interface for processes of this machine; 0 for a Unix
            socket.
        listen: Where peers reach it, ``host:port``; empty if they cannot.
        silence: Seconds of silence after which a peer counts as lost.
        limits: What it may use.
        peers: The others it knows, by the names they have here.
    """

    name: str
    id: str
    api_port: int = 0
    listen: str = ""
    silence: float = SILENCE_SECONDS
    limits: Limits = field(default_factory=Limits)
    peers: dict[str, Peer] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        """Where its files are."""
        return directory_of(self.name)

    def path(self, file: str) -> str:
        """The path of one of its files."""
        return os.path.join(self.directory, file)


def directory_of(name: str) -> str:
    """Where the files of an endpoint are.

    Raises:
        ConfigError: It cannot have such a name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"an endpoint cannot be called {name!r}",
            hint="1 to 64 letters, digits and any of _ . -, a letter or digit first",
        )
    return os.path.join(endpoints_directory(), name)


def create(name: str) -> Settings:
    """Makes a new endpoint: its directory, identity and token.

    Raises:
        ConfigError: There is one of this name, or the package for certificates is missing.
    """
    directory = directory_of(name)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    os.chmod(directory, 0o700)
    try:
        id = identity.create(os.path.join(directory, identity.IDENTITY_FILE))
    except FileExistsError:
        raise ConfigError(
            f"{directory} has an identity and no settings",
            hint=f"proxyplane endpoint remove {name}",
        ) from None
    _write(os.path.join(directory, TOKEN_FILE), f"{secrets.token_urlsafe(32)}\n")
    settings = Settings(name, id)
    save(settings)
    return settings


def exists(name: str) -> bool:
    """Whether there is an endpoint of this name."""
    return os.path.exists(os.path.join(directory_of(name), SETTINGS_FILE))


def load(name: str) -> Settings:
    """Reads the settings of an endpoint.

    Raises:
        ConfigError: There is none of this name, or they are wrong; the message says where.
    """
    path = os.path.join(directory_of(name), SETTINGS_FILE)
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(
            f"no endpoint {name!r} is configured in {endpoints_directory()}",
            hint=f"proxyplane endpoint configure {name}",
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        return _from_table(name, table)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not right: {error}") from error


def save(settings: Settings) -> None:
    """Writes the settings; whoever reads them sees the old ones or the new ones."""
    limits = settings.limits
    lines = [
        "# Written by `proxyplane endpoint configure`; may be edited.",
        f"id = {json.dumps(settings.id)}",
        f"api_port = {settings.api_port}",
        f"listen = {json.dumps(settings.listen)}",
        f"silence = {settings.silence}",
        f"memory = {limits.memory}",
        f"disk = {limits.disk}",
        f"max_object = {limits.largest}",
        f"persist = {'true' if limits.persist else 'false'}",
    ]
    for peer in settings.peers.values():
        lines += [
            "",
            f"[peers.{json.dumps(peer.name)}]",
            f"id = {json.dumps(peer.id)}",
            f"address = {json.dumps(peer.address)}",
            f"allow = {json.dumps([right for right in RIGHTS if right in peer.rights])}",
        ]
    _write(settings.path(SETTINGS_FILE), "\n".join(lines) + "\n")


def _write(path: str, text: str) -> None:
    made = f"{path}.{os.getpid()}.new"
    file = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(file, "w", encoding="utf-8") as writer:
        writer.write(text)
    os.replace(made, path)


def _from_table(name: str, table: dict[str, Any]) -> Settings:
    default = Limits()
    unknown = set(table) - {
        *("id", "api_port", "listen", "silence", "memory", "disk", "max_object", "persist", "peers")
    }
    if unknown:
        raise ConfigError(f"there is no setting {min(unknown)!r}")
    limits = Limits(
        memory=int(table.get("memory", default.memory)),
        disk=int(table.get("disk", default.disk)),
        largest=int(table.get("max_object", default.largest)),
        persist=bool(table.get("persist", default.persist)),
    )
    peers = {}
    for peer_name, said in table.get("peers", {}).items():
        peers[peer_name] = make_peer(
            peer_name, str(said["id"]), str(said.get("address", "")), said.get("allow", RIGHTS)
        )
    if not is_id(str(table["id"])):
        raise ConfigError("its id is not one")
    settings = Settings(
        name=name,
        id=table["id"],
        api_port=int(table.get("api_port", 0)),
        silence=float(table.get("silence", SILENCE_SECONDS)),
        limits=limits,
        peers=peers,
    )
    if not MOST_FREQUENT <= settings.silence < float("inf"):
        raise ConfigError(f"silence must be at least {MOST_FREQUENT:g} seconds")
    listen = str(table.get("listen", ""))
    if listen:
        parse_address(listen)
    return replace(settings, listen=listen)


def make_peer(name: str, id: str, address: str, rights: Any) -> Peer:
    """A peer, checked.

    Raises:
        ConfigError: Something of it cannot be.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"a peer cannot be called {name!r}")
    if not is_id(id):
        raise ConfigError(
            f"{id!r} is not the id of an endpoint",
            hint="`proxyplane endpoint list` prints it there",
        )
    if address:
        parse_address(address)
    wrong = [right for right in rights if right not in RIGHTS]
    if wrong or isinstance(rights, str):
        raise ConfigError(
            f"a peer may be allowed {', '.join(RIGHTS)}, not {(wrong or [rights])[0]!r}"
        )
    return Peer(name, id, address, frozenset(rights))


def parse_address(text: str) -> tuple[str, int]:
    """The host and port of ``host:port``, with the host of IPv6 in brackets.

    Raises:
        ConfigError: It is not of this form.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not (colon and host and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
        raise ConfigError(f"{text!r} is not of the form HOST:PORT")
    return host, int(port)


def parse_size(text: str) -> int:
    """Bytes, from text such as ``500MB`` or ``4GiB``.

    Raises:
        ConfigError: It is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size such as 500MB or 4GiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))
