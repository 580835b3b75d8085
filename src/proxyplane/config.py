"""What describes a store, and where a connector is found: URLs, the environment, the registry.

A store is described by one line of text, which travels inside its proxies::

    file:///dev/shm/data#demo;checksum=1
    └─ connector URL ──┘ └name┘└ options that are not the default

It holds no secret, but may name one, and nothing that is a matter of the process that reads it: how
much it caches, and what it accepts.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from proxyplane._policies import MULTI, multi_url, read_multi_url, read_table
from proxyplane._policies import table as multi_table
from proxyplane._registry import (
    ENTRY_POINT_GROUP,
    connector_class,
    connector_from_url,
    known_schemes,
    register_connector,
)
from proxyplane._secrets import check_reference, register_secret
from proxyplane._toml import read_toml, write_toml
from proxyplane._urls import bad, check_connector_url, redact
from proxyplane.exceptions import ConfigError

if TYPE_CHECKING:
    from os import PathLike

__all__ = [
    "ALLOW_VARIABLE",
    "CACHE_BYTES_VARIABLE",
    "CACHE_SIZE_VARIABLE",
    "Checksum",
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
    "register_secret",
]

OnBlocking: TypeAlias = Literal["warn", "raise", "allow"]
"""What a blocking touch does on a thread with a running event loop."""

Checksum: TypeAlias = Literal["crc32", "xxh3"]
"""Kind of the checksums of bodies: of the standard library, or of the package xxhash."""

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
ALLOW_VARIABLE = "PROXYPLANE_ALLOW"


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
        checksum: Whether a checksum also covers the bodies of arrays and tables: its kind, or
            True for ``"crc32"``.
        on_blocking: What a blocking touch on a running event loop does; by default what
            `PROXYPLANE_ON_BLOCKING` says.
        eager: Whether the store's proxies resolve in the background where they arrive.
        cache_size: Objects kept in the cache, 0 for none; by default `PROXYPLANE_CACHE_SIZE`.
        cache_bytes: Bytes kept in the cache, 0 for none; by default `PROXYPLANE_CACHE_BYTES`.
        signing_key: References to the keys that sign objects, none for unsigned ones:
            ``"env:NAME"``, ``"file:/path"`` or ``"call:NAME"`` (see `register_secret`). The first
            signs, and what any of them signed is accepted. One string is one reference.
        allow: Ids of the serialisers whose objects are read, and written; by default those that
            `PROXYPLANE_ALLOW` lists, with commas between them, else all.
        metrics: Whether the store counts its operations, in the process that makes it.

    Raises:
        ConfigError: A value cannot be; the message names the field and the value.
    """

    name: str
    connector: str
    serializer: str | None = None
    checksum: bool | Checksum = False
    on_blocking: OnBlocking | None = None
    eager: bool = True
    cache_size: int | None = None
    cache_bytes: int | None = None
    signing_key: Sequence[str] | str = ()
    allow: Collection[str] | None = None
    metrics: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise bad("name", self.name, "a string of at least one character")
        check_connector_url(self.connector)
        if self.serializer is not None and not (
            isinstance(self.serializer, str) and self.serializer
        ):
            raise bad("serializer", self.serializer, "the id of a serializer, or None")
        for field in ("eager", "metrics"):
            if not isinstance(getattr(self, field), bool):
                raise bad(field, getattr(self, field), "True or False")
        kinds = get_args(Checksum)
        if not isinstance(self.checksum, bool) and (
            not isinstance(self.checksum, str) or self.checksum not in kinds
        ):
            raise bad("checksum", self.checksum, f"True, False or one of {', '.join(kinds)}")
        policies = get_args(OnBlocking)
        if self.on_blocking is not None and self.on_blocking not in policies:
            raise bad("on_blocking", self.on_blocking, f"one of {', '.join(policies)}, or None")
        for field in ("cache_size", "cache_bytes"):
            value = getattr(self, field)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise bad(field, value, "a whole number, 0 or more, or None")
        object.__setattr__(self, "signing_key", _references(self.signing_key))
        if self.allow is not None:
            object.__setattr__(self, "allow", _codecs("allow", self.allow))

    def to_url(self) -> str:
        """The line that travels inside proxies: all but the limits of the cache, `allow` and
        `metrics`.

        A store that is rebuilt from it in another process takes those of that process.
        """
        options = [_quote(self.name)]
        for field, default in _OPTIONS.items():
            value = getattr(self, field)
            if value != default:
                options.append(f"{field}={_written(value)}")
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
                    f"the store URL {redact(url)!r} has the option {redact(';' + option)[1:]!r}, "
                    "which is unknown",
                    hint=_did_you_mean(field, _OPTIONS)
                    + "; a newer version of proxyplane may know more",
                )
            if field in values:
                raise ConfigError(f"the store URL {redact(url)!r} has {field!r} twice")
            values[field] = _read(field, text)
        found = _unquote(quoted) or name
        if not found:
            raise ConfigError(
                f"the store URL {redact(url)!r} has no name", hint="append #name to it"
            )
        return cls(name=found, connector=connector, **values)

    def to_toml(self) -> str:
        """The description as the text of a TOML file: all that is not the default."""
        table: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                table[field.name] = list(value) if isinstance(value, tuple) else value
        if self.connector.partition(":")[0].lower() == MULTI:
            table["connector"] = multi_table(read_multi_url(self.connector))
        return write_toml(table)

    @classmethod
    def from_toml(cls, source: str | PathLike[str], *, table: str | None = None) -> StoreConfig:
        """Reads the description of a store from TOML.

        Its keys are the names of the fields. Instead of the URL of a `MultiConnector` there may be
        a table of its connectors.

        Args:
            source: The path of a file; or the text itself, a string with a line break or a ``=``.
            table: Name of the table in it, with dots: ``"stores.demo"``; by default all of it.

        Raises:
            ConfigError: It cannot be read, or a field is unknown, missing or wrong; the message
                names the field, and the value unless that may be a secret.
        """
        values, where = read_toml(source, table)
        known = [field.name for field in fields(cls)]
        for field in values:
            if field not in known:
                raise ConfigError(
                    f"{where} has the field {field!r}, which is unknown",
                    hint=_did_you_mean(field, known),
                )
        for field in ("name", "connector"):
            if field not in values:
                raise ConfigError(f"{where} has no {field!r}", hint=f"add {field} = ...")
        if isinstance(values["connector"], dict):
            values["connector"] = multi_url(read_table(values["connector"]))
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.args[0]}", hint=error.hint) from None

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

    def accepted(self) -> tuple[str, ...] | None:
        """Ids of the serialisers that are accepted; `PROXYPLANE_ALLOW` if `allow` is not given.

        Raises:
            ConfigError: The environment variable is wrong.
        """
        if self.allow is not None:
            return tuple(self.allow)
        text = env_str(ALLOW_VARIABLE)
        return None if text is None else _codecs(ALLOW_VARIABLE, map(str.strip, text.split(",")))


# The options of a store URL, in their order there, and their defaults.
_OPTIONS: dict[str, Any] = {
    field.name: field.default
    for field in fields(StoreConfig)
    if field.name in {"serializer", "checksum", "on_blocking", "eager", "signing_key"}
}


def _references(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    if isinstance(given, str) or not isinstance(given, Iterable):
        given = (given,)
    return tuple(check_reference("signing_key", one) for one in given)


def _codecs(field: str, given: Any) -> tuple[str, ...]:
    wanted = "ids of serializers, for example 'numpy', 'arrow', 'bytes' and 'str'"
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise bad(field, given, wanted)
    found = list(given)
    if not all(isinstance(one, str) and one for one in found):
        raise bad(field, found, wanted)
    return tuple(sorted(set(found)))


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # only where something is wrong

    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(map(_quote, [value] if isinstance(value, str) else value))


def _read(field: str, text: str) -> Any:
    if field == "eager" or (field == "checksum" and text not in get_args(Checksum)):
        return _flag(field, text)
    if field == "signing_key":
        return tuple(map(_unquote, text.split(",")))
    return _unquote(text)


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
    more = f", or one of {', '.join(get_args(Checksum))}" if field == "checksum" else ""
    raise ConfigError(f"{field}={text!r} in a store URL is not possible; it must be 1 or 0{more}")
