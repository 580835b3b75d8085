"""The border: what redis-py, the server or a socket reports, as errors of this package."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import socket
import ssl
from collections.abc import Iterator
from typing import TypeVar

from redis import exceptions as redis_errors

from proxyplane.connectors.redis.url import RedisOptions
from proxyplane.exceptions import (
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    ProxyPlaneError,
    StoreFullError,
)

E = TypeVar("E", bound=Exception)

_START_HINT = (
    "is the server running? start one with `redis-server` or `valkey-server`, or use "
    "FileConnector, which needs none"
)
# Whatever may come out of a connection in use. RuntimeError is what a transport of uvloop raises
# when it is written to after it was closed.
_BROKEN = (redis_errors.RedisError, OSError, EOFError, asyncio.LimitOverrunError, RuntimeError)


@contextlib.contextmanager
def map_errors(options: RedisOptions, *, connecting: bool = False) -> Iterator[None]:
    """Translates what fails inside.

    Args:
        options: Names the server in messages.
        connecting: Whether no command was sent yet, so that nothing can have happened.
    """
    try:
        yield
    except ProxyPlaneError:
        raise
    except _BROKEN as exc:
        raise _translate(exc, options, connecting=connecting) from exc


def copied(error: E) -> E:
    """The same for one more caller: one exception object must not be raised in two tasks."""
    other = copy.copy(error)
    other.__cause__ = error.__cause__
    return other


# What nodes of a cluster answer that cannot do what they are asked, now or ever.
_REDIRECTIONS = (
    redis_errors.AskError,  # MOVED too
    redis_errors.TryAgainError,
    redis_errors.ClusterDownError,
    redis_errors.ClusterCrossSlotError,
)
# Those that end by themselves, in a cluster.
CHANGING = (
    redis_errors.AskError,
    redis_errors.TryAgainError,
    redis_errors.ClusterDownError,
)
# What no patience mends: somebody must change a setting, here or at the server.
_LASTING = (
    redis_errors.AuthenticationError,
    redis_errors.AuthorizationError,
    redis_errors.InvalidResponse,
    redis_errors.ResponseError,
    ssl.SSLCertVerificationError,
    PermissionError,
)


def is_passing(error: ProxyPlaneError, *, cluster: bool = False) -> bool:
    """Whether to try again later makes sense: the server or the way to it is down.

    Args:
        error: What an operation raised.
        cluster: Whether it was done in a cluster, which may be changing just now.
    """
    if isinstance(error, ConnectorLostError):
        return True
    if not isinstance(error, ConnectorUnavailableError) or error.__cause__ is None:
        return False
    if cluster and isinstance(error.__cause__, CHANGING):
        return True
    return not any(isinstance(cause, _LASTING) for cause in _chain(error.__cause__))


def _translate(exc: Exception, options: RedisOptions, *, connecting: bool) -> ConnectorError:
    where = options.where
    known = _reply_error(exc, options)
    if known is not None:
        return known
    if connecting:
        reason, hint = _why_not(exc, options)
        return ConnectorUnavailableError(f"cannot connect to Redis at {where}: {reason}", hint=hint)
    if isinstance(exc, TimeoutError):
        return ConnectorLostError(
            f"Redis at {where} made no progress for {options.timeout:g} s; "
            f"the operation may or may not have happened",
            hint="raise timeout= if the server may be busy for longer",
        )
    if isinstance(exc, redis_errors.ResponseError):
        return ConnectorError(f"Redis at {where} refused the command: {exc!s}")
    return ConnectorLostError(
        f"the connection to Redis at {where} was lost; the operation may or may not have happened"
    )


def _reply_error(exc: Exception, options: RedisOptions) -> ConnectorError | None:
    """The error for what a server replied, or None when it is not one that has a name."""
    where = options.where
    # What a server refuses at the end of a transaction only.
    text = str(exc).removeprefix("Transaction discarded because of: ")
    if isinstance(exc, redis_errors.AuthenticationError | redis_errors.AuthorizationError):
        return ConnectorUnavailableError(
            f"Redis at {where} refused the login: {text}", hint=_login_hint(options)
        )
    if isinstance(exc, redis_errors.NoPermissionError):
        user = options.username or "default"
        return ConnectorUnavailableError(
            f"Redis at {where} does not permit this to user {user!r}: {text}",
            hint="grant it with ACL SETUSER, or choose another user with username=",
        )
    if isinstance(exc, redis_errors.OutOfMemoryError) or text.startswith("OOM "):
        return StoreFullError(
            f"Redis at {where} is out of memory: {text}",
            hint="evict objects, or raise the server's maxmemory",
        )
    if isinstance(exc, redis_errors.BusyLoadingError):
        return ConnectorUnavailableError(
            f"Redis at {where} is loading its data", hint="try again in a moment"
        )
    if isinstance(exc, redis_errors.ReadOnlyError):
        return ConnectorUnavailableError(
            f"Redis at {where} is a read-only replica", hint="use the URL of the primary"
        )
    if isinstance(exc, _REDIRECTIONS):
        return ConnectorUnavailableError(
            f"Redis at {where} is a node of a cluster: {type(exc).__name__}, {text}",
            hint="look at CLUSTER NODES; it is being changed, or nodes are down"
            if options.cluster
            else f"for a cluster write {'redis' + 's' * options.tls}+cluster://{where}",
        )
    if text.startswith("MISCONF"):
        return ConnectorUnavailableError(
            f"Redis at {where} takes no writes because it cannot save to its disk: {text}",
            hint="look at the disk and the log of the server",
        )
    return None


def _why_not(exc: Exception, options: RedisOptions) -> tuple[str, str | None]:
    """Why a connection could not be made, and what to do."""
    for cause in _chain(exc):
        match cause:
            case ssl.SSLCertVerificationError():
                return (
                    f"its certificate is not trusted ({cause.verify_message})",
                    "name the authority's file with ssl_ca_certs=",
                )
            case ssl.SSLError():
                return f"the TLS handshake failed ({cause.reason})", "does the server speak TLS?"
            case socket.gaierror():
                return "the host name is unknown", "check the host in the URL"
            case FileNotFoundError():
                return "there is no such socket", _START_HINT
            case PermissionError():
                return "no permission for the socket", "check the owner and mode of the socket"
            case ConnectionRefusedError():
                return "connection refused", _START_HINT
            case TimeoutError() | redis_errors.TimeoutError():
                return _no_answer(options)
            case redis_errors.InvalidResponse():
                return "it does not speak the Redis protocol", "check host and port"
            case redis_errors.ResponseError():
                return str(cause), _reply_hint(cause)
            case redis_errors.ConnectionError() if "max number of clients" in str(cause):
                return "it has its maximum of clients", "close some, or raise its maxclients"
            case OSError() if "Connect call failed" in str(cause):
                # What asyncio makes of one refusal for each address of a name.
                return "connection refused", _START_HINT
    plain = not options.tls and options.scheme != "unix"
    hint = f"use {options.tls_scheme}:// if the server expects TLS" if plain else None
    return "the server closed the connection", hint


def _no_answer(options: RedisOptions) -> tuple[str, str]:
    tls = "whether the server expects TLS there, " if options.tls else ""
    return (
        f"no answer in {options.connect_timeout:g} s",
        f"check {tls}host, port and firewall, or raise connect_timeout=",
    )


def _reply_hint(exc: BaseException) -> str | None:
    return "check the database number in the URL" if "DB index" in str(exc) else None


def _login_hint(options: RedisOptions) -> str:
    if options.password is None:
        return "name the variable that holds the password: password_env='REDIS_PASSWORD'"
    kind, _, name = options.password.partition(":")
    source = {
        "env": f"${name}",
        "file": f"the file {name!r}",
        "call": f"the function registered as {name!r}",
    }[kind]
    user = "the default user" if options.username is None else f"user {options.username!r}"
    return (
        f"the password came from {source}, for {user}; check both, "
        f"or choose another user with username="
    )


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """An exception, then what it came from.

    The nearest comes first: further down there may be what the user was handling when they called.
    """
    one: BaseException | None = exc
    while one is not None:
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
