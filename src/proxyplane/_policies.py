"""How a multi-connector is described: policies, and the one line that travels in its proxies.

A line, here broken in two, and the same as a table, as a TOML file gives it::

    multi:small=redis://localhost:6379/0;priority=1;max_bytes=100000
         &large=file:///data/objects

    {"small": {"url": "redis://localhost:6379/0", "priority": 1, "max_bytes": 100000},
     "large": {"url": "file:///data/objects"}}

In the line ``% & ; , # @`` are percent-encoded within a URL or a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from proxyplane._urls import bad, check_connector_url, redact
from proxyplane.exceptions import ConfigError

__all__ = ["MULTI", "Described", "Policy", "multi_url", "read_multi_url", "read_table", "table"]

MULTI = "multi"
_NAME = r"[A-Za-z0-9_.-]{1,32}"
_FORM = "multi:NAME=URL;OPTION=VALUE&NAME=URL, for example multi:a=file:///data;max_bytes=1000"


@dataclass(frozen=True, slots=True)
class Policy:
    """Which objects go to one connector of a `MultiConnector`, and from which hosts.

    Of the connectors whose policy allows an object, the one of the highest priority takes it; of
    several, the one that was named first.

    Attributes:
        priority: Higher goes first; may be negative.
        host_pattern: Regular expressions, one of which must match the whole name of a host
            (`socket.gethostname`) for it to use this connector, to write or to read; by default
            every host may. One string is one expression.
        min_bytes: Size of the smallest object, encoded.
        max_bytes: Size of the largest object, encoded; None for no limit.
        subset_tags: The tags of an object must be a subset of these; None for any.
        superset_tags: The tags of an object must be a superset of these.

    Raises:
        ConfigError: A value cannot be; the message names the field and the value.
    """

    priority: int = 0
    host_pattern: tuple[str, ...] | str = ()
    min_bytes: int = 0
    max_bytes: int | None = None
    subset_tags: frozenset[str] | Iterable[str] | None = None
    superset_tags: frozenset[str] | Iterable[str] = frozenset()

    def __post_init__(self) -> None:
        if not _is_whole(self.priority):
            raise bad("priority", self.priority, "a whole number")
        patterns = self.host_pattern
        if isinstance(patterns, str):
            patterns = (patterns,)
        self._keep("host_pattern", tuple(_texts("host_pattern", patterns)))
        for pattern in self.host_pattern:
            try:
                re.compile(pattern)
            except re.error as error:
                wanted = f"a regular expression: {error}"
                raise bad("host_pattern", pattern, wanted) from None
        if not _is_whole(self.min_bytes) or self.min_bytes < 0:
            raise bad("min_bytes", self.min_bytes, "a whole number, 0 or more")
        if self.max_bytes is not None and not (
            _is_whole(self.max_bytes) and self.max_bytes >= self.min_bytes
        ):
            raise bad(
                "max_bytes", self.max_bytes, f"a whole number, {self.min_bytes} or more, or None"
            )
        if self.subset_tags is not None:
            self._keep("subset_tags", frozenset(_texts("subset_tags", self.subset_tags)))
        self._keep("superset_tags", frozenset(_texts("superset_tags", self.superset_tags)))

    def _keep(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def refuses_host(self, host: str) -> str | None:
        """Why the connector may not be used on a host; None if it may."""
        if not self.host_pattern or any(re.fullmatch(one, host) for one in self.host_pattern):
            return None
        wanted = " or ".join(map(repr, self.host_pattern))
        return f"only hosts matching {wanted} may use it, and this is {host!r}"

    def refuses_size(self, size: int) -> str | None:
        """Why an object of `size` bytes does not go there; None if it may."""
        if size < self.min_bytes:
            return f"{size} bytes are below min_bytes={self.min_bytes}"
        if self.max_bytes is not None and size > self.max_bytes:
            return f"{size} bytes are above max_bytes={self.max_bytes}"
        return None

    def refuses_tags(self, tags: frozenset[str]) -> str | None:
        """Why an object with these tags does not go there; None if it may."""
        if self.subset_tags is not None and (more := tags.difference(self.subset_tags)):
            return f"{_listed(more)} is not in subset_tags={_listed(self.subset_tags)}"
        if missing := frozenset(self.superset_tags) - tags:
            return f"the object lacks {_listed(missing)} of superset_tags"
        return None

    def refuses(self, size: int, tags: frozenset[str]) -> str | None:
        """Why an object of this size and with these tags does not go there; None if it may."""
        return self.refuses_size(size) or self.refuses_tags(tags)

    def options(self) -> dict[str, Any]:
        """What is not the default, as plain values: numbers, strings and lists of strings."""
        found = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if isinstance(value, frozenset):
                value = sorted(value)
            found[field.name] = list(value) if isinstance(value, tuple) else value
        return found


class Described(NamedTuple):
    """One connector of a multi-connector, as it is described.

    Attributes:
        url: Its URL.
        policy: What goes there.
    """

    url: str
    policy: Policy


def multi_url(described: Mapping[str, Described]) -> str:
    """The line that describes connectors by name, in this order.

    Raises:
        ConfigError: A name or a URL cannot be, or there is none.
    """
    if not described:
        raise ConfigError("a multi-connector needs at least one connector", hint=f"write {_FORM}")
    parts = []
    for name, (url, policy) in described.items():
        _check_name(name)
        check_connector_url(url)
        words = [f"{name}={_quote(url, '?=')}"]
        for field, value in policy.options().items():
            values = value if isinstance(value, list) else [str(value)]
            words.append(f"{field}={','.join(map(_quote, values))}")
        parts.append(";".join(words))
    return f"{MULTI}:{'&'.join(parts)}"


def read_multi_url(url: str) -> dict[str, Described]:
    """The inverse of `multi_url`; also reads what was written by hand.

    Raises:
        ConfigError: The line describes no connectors; the message names the part.
    """
    check_connector_url(url)  # before a message repeats some part of a secret
    scheme, _, rest = url.partition(":")
    if scheme.lower() != MULTI or not rest:
        raise ConfigError("the URL of a multi-connector describes none", hint=f"write {_FORM}")
    found: dict[str, dict[str, Any]] = {}
    for part in rest.split("&"):
        head, *options = part.split(";")
        name, separator, quoted = head.partition("=")
        _check_name(name)
        if not separator:
            raise ConfigError(f"{name!r} in a multi-connector has no URL", hint=f"write {_FORM}")
        if name in found:
            raise ConfigError(f"two connectors of a multi-connector are named {name!r}")
        values = found[name] = {"url": _unquote(quoted)}
        for option in options:
            field, separator, text = option.partition("=")
            if field in values or not separator:
                raise ConfigError(
                    f"{name!r} in a multi-connector has {field!r} "
                    + ("twice" if separator else "without a value")
                )
            values[field] = _read_option(f"{name}.{field}", text)
    return read_table(found)


def read_table(table: Mapping[str, Mapping[str, Any]]) -> dict[str, Described]:
    """Reads connectors, each with its ``url`` and its options, from nested dictionaries.

    Raises:
        ConfigError: A value cannot be; the message names the connector and the field.
    """
    if not isinstance(table, Mapping) or not table:
        raise bad("connectors", table, "a table of connectors by name, with a url in each")
    found = {}
    for name, values in table.items():
        _check_name(name)
        if not isinstance(values, Mapping) or not isinstance(values.get("url"), str):
            raise ConfigError(f"the connector {name!r} of a multi-connector has no url")
        options = {field: value for field, value in values.items() if field != "url"}
        known = [field.name for field in fields(Policy)]
        for field in options:
            if field not in known:
                raise ConfigError(
                    f"the connector {name!r} of a multi-connector has the option {field!r}, "
                    "which is unknown",
                    hint=f"known options: {', '.join(known)}",
                )
        try:
            check_connector_url(values["url"])
            found[name] = Described(values["url"], Policy(**options))
        except ConfigError as error:
            message = f"the connector {name!r} of a multi-connector: {error.args[0]}"
            raise ConfigError(message, hint=error.hint) from None
    return found


def table(described: Mapping[str, Described]) -> dict[str, dict[str, Any]]:
    """The inverse of `read_table`: what a TOML file holds."""
    return {name: {"url": url, **policy.options()} for name, (url, policy) in described.items()}


def _read_option(what: str, text: str) -> Any:
    field = what.rpartition(".")[2]
    if field in {"priority", "min_bytes", "max_bytes"}:
        if not re.fullmatch(r"-?\d+", text, re.ASCII):
            raise bad(what, text, "a whole number")
        return int(text)
    return [_unquote(one) for one in text.split(",")] if text else []


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        raise bad("the name of a connector", name, "1 to 32 letters, digits and any of _ . -")
    if redact(f"?{name}=x") != f"?{name}=x":
        raise ConfigError(
            f"a connector named {name!r} looks like a secret in a URL", hint="choose another name"
        )


def _texts(field: str, values: object) -> list[str]:
    # One string would be taken apart into its letters.
    if not isinstance(values, str) and isinstance(values, Iterable):
        texts = list(values)
        if all(isinstance(one, str) and one for one in texts):
            return texts
    raise bad(field, values, "a list of strings, none of them empty")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(tags: Iterable[str]) -> str:
    return f"{{{', '.join(map(repr, sorted(tags)))}}}"


def _quote(text: str, safe: str = "") -> str:
    from urllib.parse import quote  # on first use: it imports much that nothing else needs

    # An "@" is quoted too: after the port of another connector it would look like a password's end.
    return quote(text, safe=f"/:[]()*+!$~{safe}", errors="surrogatepass")


def _unquote(text: str) -> str:
    from urllib.parse import unquote

    try:
        return unquote(text, errors="surrogatepass")
    except UnicodeDecodeError:
        raise ConfigError("a part of a multi-connector is not percent-encoded UTF-8") from None
