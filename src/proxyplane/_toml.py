"""Reading tables from TOML, with errors that say where, and writing the little that is needed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proxyplane._urls import bad
from proxyplane.exceptions import ConfigError

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["read_toml", "write_toml"]


def read_toml(source: str | PathLike[str], table: str | None) -> tuple[dict[str, Any], str]:
    """A table, and what to call it in a message.

    Args:
        source: A path; or the text itself, a string with a line break or a ``=``.
        table: Name of the table, with dots; None for all.

    Raises:
        ConfigError: It cannot be read, is no TOML, or has no such table.
    """
    import tomllib  # on first use: few processes read a file

    where = "the TOML text"
    if isinstance(source, str) and ("\n" in source or "=" in source):
        text = source
    elif isinstance(source, str | os.PathLike):
        where = f"the file {os.fspath(source)!r}"
        try:
            with open(source, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(f"{where} cannot be read: {why}") from error
    else:
        raise bad("source", type(source), "the path of a file, or text")
    problem = ""
    try:
        found: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem = str(error)
    if problem:  # not chained: a traceback would show the text, and what secret stands in it
        raise ConfigError(f"{where} is no TOML: {problem}")
    if table is not None:
        where = f"the table {table!r} of {where}"
        for name in table.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise ConfigError(f"{where} is not there")
    return found, where


def write_toml(table: Mapping[str, Any], under: str = "") -> str:
    """A table as TOML: text, numbers, booleans, lists of text, and tables."""
    lines = [
        f"{_key(name)} = {_value(value)}"
        for name, value in table.items()
        if not isinstance(value, Mapping)
    ]
    for name, value in table.items():
        if isinstance(value, Mapping):
            path = f"{under}{_key(name)}"
            if not all(isinstance(one, Mapping) for one in value.values()):
                lines.append(f"\n[{path}]")
            lines.append(write_toml(value, f"{path}.").rstrip("\n"))
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return f'"{"".join(map(_character, value))}"'
    return f"[{', '.join(map(_value, value))}]"


def _character(one: str) -> str:
    if one in '"\\':
        return f"\\{one}"
    if ord(one) < 32 or ord(one) == 127:
        return f"\\u{ord(one):04x}"
    if 0xD800 <= ord(one) < 0xE000:
        raise ConfigError(
            "a lone surrogate cannot be written as TOML",
            hint="choose a name of the store, or a path, that is text",
        )
    return one
