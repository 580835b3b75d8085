"""Secrets by reference: what travels and is shown is where a secret is, never the secret.

A reference is a line of text: ``env:NAME`` (an environment variable), ``file:/path`` (a file) or
``call:NAME`` (a function that this process registered under the name). It is read in the process
that needs the secret, when it needs it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import NoReturn

from proxyplane.exceptions import ConfigError

__all__ = [
    "Secret",
    "check_reference",
    "read_at_once",
    "read_secret",
    "register_secret",
    "without_secret",
]

SecretSource = Callable[[], "str | bytes"]

REFERENCES = "'env:NAME', 'file:/path' or 'call:NAME'"
_ENV_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_CALL_NAME = r"[A-Za-z0-9_.-]{1,64}"

_registered: dict[str, SecretSource] = {}


class Secret:
    """A secret in memory: shown as ``***`` wherever it is shown, and never pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: str | bytes) -> None:
        self._value = value

    def text(self) -> str:
        """The secret as text. Do not keep it in a variable: tracebacks show those.

        Raises:
            ConfigError: It is no UTF-8.
        """
        if isinstance(self._value, str):
            return self._value
        with contextlib.suppress(UnicodeDecodeError):  # which holds the bytes
            return self._value.decode()
        raise ConfigError("a secret that must be text is not UTF-8")

    def data(self) -> bytes:
        """The secret as bytes. Do not keep it in a variable either."""
        if isinstance(self._value, bytes):
            return self._value
        with contextlib.suppress(UnicodeEncodeError):  # which holds the text
            return self._value.encode("utf-8", "surrogateescape")
        raise ConfigError("a secret holds characters that are no text")

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled: send the reference to it")


def register_secret(name: str, source: SecretSource) -> None:
    """Makes ``call:NAME`` mean, in this process, what a function returns.

    For secrets that a vault hands out. The function is called when the secret is needed, on a
    thread where it may block, and maybe several times.

    Args:
        name: 1 to 64 letters, digits and any of ``_ . -``.
        source: Takes nothing; returns text or bytes. A second one of the name replaces the first.

    Raises:
        ConfigError: The name cannot be, or `source` cannot be called.
    """
    if not isinstance(name, str) or not re.fullmatch(_CALL_NAME, name):
        raise ConfigError(
            f"a secret cannot be registered as {name!r}",
            hint="1 to 64 letters, digits and any of _ . -",
        )
    if not callable(source):
        raise ConfigError(
            f"the source of the secret {name!r} is not a function but a {type(source).__name__}",
            hint="register what returns the secret, not the secret",
        )
    _registered[name] = source


def check_reference(field: str, reference: object) -> str:
    """A reference in its one spelling.

    Args:
        field: Where it stands, for the message.
        reference: The text.

    Raises:
        ConfigError: It is none. What was given is not repeated: it may be the secret itself.
    """
    if isinstance(reference, str):
        kind, separator, rest = reference.partition(":")
        pattern = {"env": _ENV_NAME, "call": _CALL_NAME, "file": r"[^\x00-\x1f\x7f]+"}.get(kind)
        if separator and pattern and re.fullmatch(pattern, rest):
            if kind == "file" and not os.path.isabs(rest):
                # The process that reads it may run in another directory.
                return f"file:{os.path.abspath(rest)}"
            return reference
    raise ConfigError(
        f"{field} is not the name of a secret; it must be {REFERENCES}",
        hint="put the secret into an environment variable or a file of each process, and name that",
    )


def read_at_once(reference: str) -> bool:
    """Whether reading it cannot block."""
    return reference.startswith("env:")


def read_secret(reference: str, *, what: str) -> Secret:
    """The secret that a reference names, read now; may block.

    Args:
        reference: As `check_reference` returns it.
        what: What needs it, for the message: "the signing key of store 'demo'".

    Raises:
        ConfigError: There is none, or it is empty; the message names the reference.
    """
    kind, _, name = reference.partition(":")
    reader = {"env": _from_environment, "file": _from_file, "call": _from_call}[kind]
    secret = reader(name, what)
    if not secret:
        raise ConfigError(f"{what} is empty: {reference}")
    return secret


def _from_environment(name: str, what: str) -> Secret:
    secret = Secret(os.environ.get(name, ""))
    if not secret:
        state = "empty" if name in os.environ else "not set"
        raise ConfigError(
            f"environment variable {name} is {state} in this process, and {what} comes from it",
            hint=f"export {name}=... where this process is started",
        )
    return secret


def _from_file(path: str, what: str) -> Secret:
    try:
        with open(path, "rb") as file:
            # One line end goes, as editors and `echo` add one.
            return Secret(file.read().removesuffix(b"\n").removesuffix(b"\r"))
    except OSError as error:
        raise ConfigError(
            f"{what} comes from the file {path!r}, which cannot be read: {error.strerror}"
        ) from error


def _from_call(name: str, what: str) -> Secret:
    source = _registered.get(name)
    if source is None:
        raise ConfigError(
            f"no secret is registered as {name!r} in this process, and {what} comes from it",
            hint=f"call proxyplane.config.register_secret({name!r}, function) in each process",
        )
    try:
        secret = Secret(source())
        failed = "" if isinstance(secret._value, str | bytes) else "returned no text"
    except Exception as error:  # noqa: BLE001  whatever a function of the user's raises
        # Not chained: its frames may hold the secret, and its text may too.
        failed = f"raised {type(error).__name__}"
    if failed:
        raise ConfigError(f"the function registered for {what}, {name!r}, {failed}")
    return secret


def without_secret(
    error: BaseException, secret: Secret, *, but: BaseException | None = None
) -> None:
    """Takes a secret out of an error and its causes.

    Out of their texts, since a server may repeat what it was sent. And their tracebacks go: the
    variables of the frames that they passed hold the secret, and some loggers show these.

    Args:
        error: The error.
        secret: What it may tell.
        but: A cause that is left as it is, with all of its own.
    """
    for one in _chain(error, but):
        one.__traceback__ = None
        one.args = tuple(
            arg.replace(secret.text(), "***") if isinstance(arg, str) else arg for arg in one.args
        )


def _chain(error: BaseException, but: BaseException | None) -> Iterator[BaseException]:
    seen = {id(but)}
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
