"""Where a connector is found: built in, registered in this process, or promised by a package."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING

from proxyplane._urls import SCHEME, bad, check_connector_url
from proxyplane.abc import Connector
from proxyplane.exceptions import ConfigError, UnknownSchemeError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "ENTRY_POINT_GROUP",
    "connector_class",
    "connector_from_url",
    "known_schemes",
    "register_connector",
]

ENTRY_POINT_GROUP = "proxyplane.connectors"

_BUILT_IN = {
    "local": "proxyplane.connectors.local:LocalConnector",
    "file": "proxyplane.connectors.file:FileConnector",
    "redis": "proxyplane.connectors.redis:RedisConnector",
    "rediss": "proxyplane.connectors.redis:RedisConnector",
    "unix": "proxyplane.connectors.redis:RedisConnector",
    "redis+cluster": "proxyplane.connectors.redis:RedisConnector",
    "rediss+cluster": "proxyplane.connectors.redis:RedisConnector",
    "multi": "proxyplane.connectors.multi:MultiConnector",
    "endpoint": "proxyplane.connectors.endpoint:EndpointConnector",
}
_registered: dict[str, type[Connector]] = {}
_loaded: dict[str, type[Connector]] = {}


def register_connector(scheme: str, cls: type[Connector]) -> None:
    """Makes ``scheme:`` URLs, in this process, mean connectors of a class.

    A package that others install declares an entry point of the group ``proxyplane.connectors``
    instead, which every process finds by itself; a class registered here goes before it.

    Args:
        scheme: The part of the URL before the colon.
        cls: The class. To register the same class again is fine, and so is its new version, of
            the same module and name, after a notebook cell ran again.

    Raises:
        ConfigError: The scheme is taken by another class, cannot be a scheme, or `cls` is no
            connector class.
    """
    if not isinstance(scheme, str) or not re.fullmatch(SCHEME, f"{scheme}:"):
        raise bad("scheme", scheme, "letters, digits, '+', '-' and '.', with a letter first")
    if not isinstance(cls, type) or not issubclass(cls, Connector):
        raise bad("cls", cls, "a subclass of proxyplane.Connector")
    scheme = scheme.lower()
    built_in = _BUILT_IN.get(scheme)
    if built_in is not None:
        if cls.__module__.startswith("proxyplane.") and cls is connector_class(scheme):
            return
        taken = built_in
    else:
        # One atomic step decides between two threads that register at once.
        taken = _import_string(_registered.setdefault(scheme, cls))
    if taken != _import_string(cls):
        raise ConfigError(
            f"the scheme {scheme!r} is taken by {taken}, so {_import_string(cls)} cannot have it",
            hint="choose another scheme",
        )
    _registered[scheme] = cls


def known_schemes() -> list[str]:
    """Every scheme that has a connector in this process, sorted."""
    return sorted({*_BUILT_IN, *_registered, *_entry_points()})


def connector_class(scheme: str) -> type[Connector]:
    """The connector class of a URL scheme; imports it on first use.

    Raises:
        UnknownSchemeError: No connector has this scheme; the message lists those that exist.
        ConfigError: A package promises one and cannot deliver; the message names the package.
    """
    scheme = scheme.lower()
    built_in = _BUILT_IN.get(scheme)
    if built_in is not None:
        module, _, name = built_in.partition(":")
        found: type[Connector] = getattr(importlib.import_module(module), name)
        return found
    known = _registered.get(scheme) or _loaded.get(scheme)
    if known is not None:
        return known
    candidates = _entry_points().get(scheme)
    if candidates:
        # Kept, because a look at every installed package takes milliseconds.
        return _loaded.setdefault(scheme, _load(scheme, candidates))
    raise _unknown(scheme)


def connector_from_url(url: str) -> Connector:
    """Makes the connector that a URL describes.

    Raises:
        ConfigError: The URL is wrong; the message names the part.
        UnknownSchemeError: No connector has its scheme.
    """
    check_connector_url(url)
    return connector_class(url.partition(":")[0]).from_url(url)


def _import_string(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _entry_points() -> dict[str, list[EntryPoint]]:
    from importlib.metadata import entry_points  # takes as long to import as half of asyncio

    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        scheme = point.name.lower()
        # The built-ins are entry points of this package too, when it is installed. The same
        # package may be on the path twice (an editable install): equal points count once.
        if scheme not in _BUILT_IN and all(
            point.value != one.value for one in found.get(scheme, ())
        ):
            found.setdefault(scheme, []).append(point)
    return found


def _load(scheme: str, candidates: list[EntryPoint]) -> type[Connector]:
    point = candidates[0]
    if len(candidates) > 1:
        raise ConfigError(
            f"the scheme {scheme!r} is claimed by several packages: "
            + ", ".join(f"{_package(one)} ({one.value})" for one in candidates),
            hint="uninstall all but one, or call register_connector with the class you want",
        )
    try:
        cls = point.load()
    except Exception as error:
        raise ConfigError(
            f"the package {_package(point)} promises a connector for {scheme!r} at {point.value}, "
            f"which cannot be imported: {type(error).__name__}: {error}",
            hint=f"reinstall or update {_package(point)}",
        ) from error
    if not isinstance(cls, type) or not issubclass(cls, Connector):
        raise ConfigError(
            f"the package {_package(point)} promises a connector for {scheme!r} at {point.value}, "
            f"which is not a subclass of proxyplane.Connector but {cls!r}",
            hint=f"reinstall or update {_package(point)}",
        )
    return cls


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "(unknown)"


def _unknown(scheme: str) -> UnknownSchemeError:
    from difflib import get_close_matches

    known = known_schemes()
    near = get_close_matches(scheme, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "install or register the connector for it"
    return UnknownSchemeError(
        f"no connector has the URL scheme {scheme!r}; known are {', '.join(known)}", hint=hint
    )
