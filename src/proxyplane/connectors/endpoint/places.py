"""The endpoints of this machine: where their settings are, which one to talk to, and how.

Each endpoint has a directory of its own under `endpoints_directory`, with its settings, and while
it runs a file that says how to reach it. This module reads them, the daemon and its command write
them; nothing here needs more than the standard library.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from typing import Any

from proxyplane.connectors.endpoint.keys import SHORT, is_id
from proxyplane.exceptions import ConfigError, ConnectorUnavailableError

__all__ = ["Place", "address_of", "default_place", "endpoints_directory", "find", "place_for"]

SETTINGS_FILE = "settings.toml"
STATE_FILE = "running.json"
TOKEN_FILE = "token"  # noqa: S105  the name of the file
DIRECTORY_VARIABLE = "PROXYPLANE_ENDPOINTS"
NAME_VARIABLE = "PROXYPLANE_ENDPOINT"


@dataclass(frozen=True)
class Place:
    """An endpoint that was configured on this machine.

    Attributes:
        name: What it is called here.
        id: Its id.
        directory: Where its files are.
        peers: The ids of its peers, by the names they have there.
    """

    name: str
    id: str
    directory: str
    peers: dict[str, str]

    def knows(self, endpoint: str) -> bool:
        """Whether it is this endpoint, or has it as a peer; by the beginning of the id."""
        return any(one.startswith(endpoint) for one in (self.id, *self.peers.values()))


@dataclass(frozen=True)
class Address:
    """How to reach the API of an endpoint that runs.

    Attributes:
        socket: Path of its Unix socket, or empty.
        port: Its port on the loopback interface, or 0.
        token: What to show there; nothing for a socket, which only its owner can open.
    """

    socket: str
    port: int
    token: str

    def __repr__(self) -> str:
        return f"Address({self.socket or self.port!r})"


def endpoints_directory() -> str:
    """Where the endpoints of this user are: ``$PROXYPLANE_ENDPOINTS``, or below the home."""
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    if chosen:
        return os.path.abspath(chosen)
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "proxyplane", "endpoints")


def find() -> list[Place]:
    """All endpoints of this machine and user, by name; those that cannot be read are left out."""
    base = endpoints_directory()
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return []
    found = []
    for name in names:
        try:
            found.append(read_place(os.path.join(base, name)))
        except (OSError, ConfigError):
            continue
    return found


def read_place(directory: str) -> Place:
    """The endpoint whose files are in a directory.

    Raises:
        OSError: There are none.
        ConfigError: They are damaged.
    """
    path = os.path.join(directory, SETTINGS_FILE)
    with open(path, "rb") as file:
        try:
            table: dict[str, Any] = tomllib.load(file)
            peers = {name: str(peer["id"]) for name, peer in table.get("peers", {}).items()}
            place = Place(os.path.basename(directory), str(table["id"]), directory, peers)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
    if not all(map(is_id, (place.id, *place.peers.values()))):
        raise ConfigError(f"{path} names an endpoint by what is no id")
    return place


def default_place() -> Place:
    """The endpoint for those who name none.

    That of ``$PROXYPLANE_ENDPOINT``, or the only one, or the one called ``default``.

    Raises:
        ConfigError: There is none, or there are several.
    """
    places = find()
    wanted = os.environ.get(NAME_VARIABLE)
    for place in places:
        if place.name == (wanted or "default"):
            return place
    if wanted:
        raise ConfigError(
            f"there is no endpoint {wanted!r}, which ${NAME_VARIABLE} names",
            hint=_configured(places),
        )
    if len(places) == 1:
        return places[0]
    if not places:
        raise ConfigError(
            f"no endpoint is configured in {endpoints_directory()}",
            hint="proxyplane endpoint configure NAME && proxyplane endpoint start NAME",
        )
    raise ConfigError(
        "there are several endpoints on this machine, and none is called 'default'",
        hint=f"name one, or set ${NAME_VARIABLE}; {_configured(places)}",
    )


def place_for(endpoint: str) -> Place:
    """The endpoint of this machine through which another one is reached.

    That of ``$PROXYPLANE_ENDPOINT``; else the endpoint itself, if it is here; else one that has it
    as a peer.

    Raises:
        ConfigError: There is none.
    """
    if os.environ.get(NAME_VARIABLE):
        return default_place()
    places = find()
    for place in places:
        if place.id.startswith(endpoint):
            return place
    for place in places:
        if place.knows(endpoint):
            return place
    raise ConfigError(
        f"no endpoint of this machine is {endpoint[:SHORT]}..., or has it as a peer",
        hint=f"proxyplane endpoint configure NAME --peer OTHER=ID@HOST:PORT; {_configured(places)}",
    )


def address_of(place: Place) -> Address:
    """How to reach an endpoint.

    Raises:
        ConnectorUnavailableError: It does not run.
    """
    try:
        with open(os.path.join(place.directory, STATE_FILE), encoding="utf-8") as file:
            state = json.load(file)
        socket, port = str(state.get("socket", "")), int(state.get("port", 0))
        token = ""
        if port:
            with open(os.path.join(place.directory, TOKEN_FILE), encoding="ascii") as file:
                token = file.read().strip()
        return Address(socket, port, token)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConnectorUnavailableError(
            f"the endpoint {place.name!r} of this machine does not run",
            hint=f"proxyplane endpoint start {place.name}",
        ) from error


def _configured(places: list[Place]) -> str:
    names = ", ".join(repr(place.name) for place in places) or "none"
    return f"configured here: {names}"
