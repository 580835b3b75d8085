"""The URL of an endpoint connector: which endpoint, and for how long one is patient."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from proxyplane.connectors.endpoint.client import Patience
from proxyplane.connectors.endpoint.keys import is_id
from proxyplane.connectors.endpoint.places import default_place, find
from proxyplane.exceptions import ConfigError

__all__ = ["parse_url", "patience_of", "write_url"]

_NUMBERS: dict[str, type] = {"connect_timeout": float, "max_connections": int, "timeout": float}


def parse_url(endpoint: str | None) -> tuple[str, dict[str, Any]]:
    """The id of an endpoint, by its URL or name, and the options of the URL if it is one.

    Raises:
        ConfigError: There is no such endpoint, or the URL is wrong.
    """
    if endpoint is None:
        return default_place().id, {}
    if not endpoint.startswith("endpoint:"):
        return _id_of_name(endpoint), {}
    parts = urlsplit(endpoint)
    if not is_id(parts.netloc) or parts.path.strip("/") or parts.fragment:
        raise ConfigError(
            f"{endpoint!r} is not of the form endpoint://ID", hint="proxyplane endpoint list"
        )
    options: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _NUMBERS or name in options:
            raise ConfigError(
                f"option {name!r} of an endpoint URL is unknown, or stands there twice",
                hint=f"known are {', '.join(_NUMBERS)}",
            )
        try:
            options[name] = _NUMBERS[name](text)
        except ValueError:
            raise ConfigError(f"{name}={text!r} in an endpoint URL is no number") from None
    return parts.netloc, options


def _id_of_name(name: str) -> str:
    if is_id(name):
        return name
    places = find()
    for place in places:
        if place.name == name:
            return place.id
    for place in places:
        if name in place.peers:
            return place.peers[name]
    known = [place.name for place in places] + [peer for place in places for peer in place.peers]
    raise ConfigError(
        f"{name!r} is neither an endpoint of this machine nor a peer of one",
        hint=f"known are {', '.join(map(repr, known)) or 'none'}",
    )


def patience_of(options: dict[str, Any]) -> Patience:
    """How long to wait for what, by the options.

    Raises:
        ConfigError: One of them is not above 0.
    """
    for name, value in options.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} must be a number above 0, not {value}")
    default = Patience()
    return Patience(
        connect=float(options.get("connect_timeout", default.connect)),
        progress=float(options.get("timeout", default.progress)),
        connections=int(options.get("max_connections", default.connections)),
    )


def write_url(endpoint: str, patience: Patience) -> str:
    """The canonical URL."""
    default = Patience()
    options = []
    for name, value, usual in (
        ("connect_timeout", patience.connect, default.connect),
        ("max_connections", patience.connections, default.connections),
        ("timeout", patience.progress, default.progress),
    ):
        if value != usual:
            options.append(f"{name}={repr(value).removesuffix('.0')}")
    query = "&".join(options)
    return f"endpoint://{endpoint}?{query}" if query else f"endpoint://{endpoint}"
