"""What describes a store, and where a connector is found: URLs, the environment, the registry.

A store is described by one line of text, which travels inside its proxies::

    file:///dev/shm/data#demo;checksum=1
    └─ connector URL ──┘ └name┘└ options that are not the default

It holds no secret, and nothing that is a matter of the process that reads it (cache limits).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from proxyplane._registry import (
    ENTRY_POINT_GROUP,
    connector_class,
    connector_from_url,
    known_schemes,
    register_connector,
)
from proxyplane._urls import bad, check_connector_url, redact
from proxyplane.exceptions import ConfigError

__all__ = [
    "CACHE_BYTES_VARIABLE",
    "CACHE_SIZE_VARIABLE",
    "DEFAULT_CACHE_BYTES",
    "DEFAULT_CACHE_SIZE",
    "DEFAULT_EAGER_BYTES",
    "DEFAULT_EAGER_FLIGHTS",
    "EAGER_BYTES_VARIABLE",
    "EAGER_FLIGHTS_VARIABLE",
    "EAGER_VARIABLE",
    "ENTRY_POINT_GROUP",
    "ON_BLOCKING_VARIABLE",
    "OnBlocking",
    "STORE_VARIABLE",
    "StoreConfig",
    "connector_class",
    "connector_from_url",
    "default_eager",
    "default_on_blocking",
    "default_store_url",
    "eager_window",
    "env_choice",
    "env_int",
    "env_str",
    "known_schemes",
    "redact",
    "register_connector",
]

OnBlocking: TypeAlias = Literal["warn", "raise", "allow"]
"""What a blocking touch does on a thread with a running event loop."""

DEFAULT_CACHE_SIZE = 16
"""Objects that a store keeps in its cache."""
DEFAULT_CACHE_BYTES = 1 << 30
"""Bytes that a store keeps in its cache: 1 GiB."""

DEFAULT_EAGER_FLIGHTS = 32
"""Objects that a process fetches at a time in the background."""
DEFAULT_EAGER_BYTES = 256 << 20
"""Bytes that these may have together: 256 MiB. A larger object is fetched alone."""

CACHE_SIZE_VARIABLE = "PROXYPLANE_CACHE_SIZE"
CACHE_BYTES_VARIABLE = "PROXYPLANE_CACHE_BYTES"
EAGER_VARIABLE = "PROXYPLANE_EAGER"
EAGER_FLIGHTS_VARIABLE = "PROXYPLANE_EAGER_FLIGHTS"
EAGER_BYTES_VARIABLE = "PROXYPLANE_EAGER_BYTES"
ON_BLOCKING_VARIABLE = "PROXYPLANE_ON_BLOCKING"
STORE_VARIABLE = "PROXYPLANE_STORE"


# --- The environment -----------------------------------------------------------------------------


def env_str(variable: str, default: str | None = None) -> str | None:
    """The value of an environment variable; `default` when it is unset or empty."""
    return os.environ.get(variable) or default


def env_int(variable: str, default: int) -> int:
    """The value of an environment variable as a whole number of at least 0.

    Raises:
        ConfigError: It is set to something else.
    """
    text = env_str(variable)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise ConfigError(
            f"the environment variable {variable} is {text!r}; it must be a whole number, 0 or more"
        )
    return value


def env_choice(variable: str, choices: Iterable[str], default: str) -> str:
    """The value of an environment variable that allows only a few.

    Raises:
        ConfigError: It is set to something else.
    """
    text = env_str(variable)
    if text is None:
        return default
    allowed = list(choices)
    if text not in allowed:
        raise ConfigError(
            f"the environment variable {variable} is {text!r}; it must be one of "
            + ", ".join(allowed)
        )
    return text


def default_on_blocking() -> OnBlocking:
    """The policy of this process for blocking touches: `PROXYPLANE_ON_BLOCKING`, or ``"warn"``.

    Raises:
        ConfigError: The variable holds no policy.
    """
    return env_choice(ON_BLOCKING_VARIABLE, get_args(OnBlocking), "warn")  # type: ignore[return-value]  # one of the choices


def default_eager() -> bool:
    """Whether proxies that arrive in this process resolve in the background: `PROXYPLANE_EAGER`.

    Yes, unless it is ``0``, which is for processes that only pass proxies on. It is read when the
    first proxy arrives.

    Raises:
        ConfigError: The variable is neither 0 nor 1.
    """
    return env_choice(EAGER_VARIABLE, ("0", "1"), "1") == "1"


def eager_window() -> tuple[int, int]:
    """Objects and bytes that this process fetches at a time in the background.

    `PROXYPLANE_EAGER_FLIGHTS` and `PROXYPLANE_EAGER_BYTES`; one object is always allowed.

    Raises:
        ConfigError: A variable is wrong.
    """
    return (
        env_int(EAGER_FLIGHTS_VARIABLE, DEFAULT_EAGER_FLIGHTS),
        env_int(EAGER_BYTES_VARIABLE, DEFAULT_EAGER_BYTES),
    )


def default_store_url() -> str | None:
    """URL of the default store of this process, `PROXYPLANE_STORE`; None when it is unset."""
    return env_str(STORE_VARIABLE)


# --- The description of a store ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """What makes a store: a connector URL and little else. Holds no secret.

    Attributes:
        name: Of the store; any characters, at least one.
        connector: URL of the connector, without a fragment and without a password.
        serializer: Id of the serialiser for all objects; by default chosen for each object.
        checksum: Whether a checksum also covers the bodies of arrays and tables.
        on_blocking: What a blocking touch on a running event loop does; by default what
            `PROXYPLANE_ON_BLOCKING` says.
        eager: Whether the store's proxies resolve in the background where they arrive.
        cache_size: Objects kept in the cache, 0 for none; by default `PROXYPLANE_CACHE_SIZE`.
        cache_bytes: Bytes kept in the cache, 0 for none; by default `PROXYPLANE_CACHE_BYTES`.

    Raises:
        ConfigError: A value cannot be; the message names the field and the value.
    """

    name: str
    connector: str
    serializer: str | None = None
    checksum: bool = False
    on_blocking: OnBlocking | None = None
    eager: bool = True
    cache_size: int | None = None
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise bad("name", self.name, "a string of at least one character")
        check_connector_url(self.connector)
        if self.serializer is not None and not (
            isinstance(self.serializer, str) and self.serializer
        ):
            raise bad("serializer", self.serializer, "the id of a serializer, or None")
        for field in _FLAGS:
            if not isinstance(getattr(self, field), bool):
                raise bad(field, getattr(self, field), "True or False")
        policies = get_args(OnBlocking)
        if self.on_blocking is not None and self.on_blocking not in policies:
            raise bad("on_blocking", self.on_blocking, f"one of {', '.join(policies)}, or None")
        for field in ("cache_size", "cache_bytes"):
            value = getattr(self, field)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise bad(field, value, "a whole number, 0 or more, or None")

    def to_url(self) -> str:
        """The line that travels inside proxies: everything but the limits of the cache.

        A store that is rebuilt from it in another process takes the limits of that process.
        """
        options = [_quote(self.name)]
        for field, default in _OPTIONS.items():
            value = getattr(self, field)
            if value != default:
                options.append(f"{field}={int(value) if field in _FLAGS else _quote(value)}")
        return f"{self.connector}#{';'.join(options)}"

    @classmethod
    def from_url(cls, url: str, *, name: str | None = None) -> StoreConfig:
        """Reads a line made by `to_url`, or written by hand.

        Args:
            url: The line.
            name: Name of the store, if the line has none.

        Raises:
            ConfigError: The line describes no store; the message names the part.
        """
        if not isinstance(url, str):
            raise bad("url", url, "a string")
        connector, _, fragment = url.partition("#")
        if "#" in fragment:
            raise ConfigError(
                f"the store URL {redact(url)!r} has two '#'",
                hint="write # inside a path or a name as %23",
            )
        quoted, *options = fragment.split(";")
        values: dict[str, Any] = {}
        for option in options:
            field, separator, text = option.partition("=")
            if field not in _OPTIONS or not separator:
                raise ConfigError(
                    f"the store URL {redact(url)!r} has the option {option!r}, which is unknown",
                    hint=f"known options: {', '.join(_OPTIONS)}; "
                    "a newer version of proxyplane may know more",
                )
            if field in values:
                raise ConfigError(f"the store URL {redact(url)!r} has {field!r} twice")
            values[field] = _flag(field, text) if field in _FLAGS else _unquote(text)
        found = _unquote(quoted) or name
        if not found:
            raise ConfigError(
                f"the store URL {redact(url)!r} has no name", hint="append #name to it"
            )
        return cls(name=found, connector=connector, **values)

    @property
    def identity(self) -> tuple[str, str]:
        """What two stores share exactly when they are the same store."""
        return self.name, self.to_url()

    def cache_limits(self) -> tuple[int, int]:
        """Objects and bytes that the cache may hold; what is not given comes from the environment.

        Raises:
            ConfigError: An environment variable is wrong.
        """
        size, nbytes = self.cache_size, self.cache_bytes
        if size is None:
            size = env_int(CACHE_SIZE_VARIABLE, DEFAULT_CACHE_SIZE)
        if nbytes is None:
            nbytes = env_int(CACHE_BYTES_VARIABLE, DEFAULT_CACHE_BYTES)
        return size, nbytes


# The options of a store URL, in their order there, and their defaults.
_OPTIONS: dict[str, Any] = {
    field.name: field.default
    for field in fields(StoreConfig)
    if field.name in {"serializer", "checksum", "on_blocking", "eager"}
}
_FLAGS = ("checksum", "eager")


def _quote(text: str) -> str:
    from urllib.parse import quote  # on first use: it imports much that nothing else needs

    # Lone surrogates are what os.fsdecode makes of a file name that is not UTF-8.
    return quote(text, safe=":", errors="surrogatepass")


def _unquote(text: str) -> str:
    from urllib.parse import unquote

    try:
        return unquote(text, errors="surrogatepass")
    except UnicodeDecodeError:
        raise ConfigError(f"{text!r} in a store URL is not percent-encoded UTF-8") from None


def _flag(field: str, text: str) -> bool:
    if text.lower() in {"1", "true"}:
        return True
    if text.lower() in {"0", "false"}:
        return False
    raise ConfigError(f"{field}={text!r} in a store URL is not possible; it must be 1 or 0")
