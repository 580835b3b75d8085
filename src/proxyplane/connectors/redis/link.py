"""How a connection is made and logged in, which is left to redis-py."""

from __future__ import annotations

import array
import asyncio
import contextlib
import inspect
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis import connection as blocking
from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.credentials import CredentialProvider

from proxyplane._runtime.workers import run_in_worker
from proxyplane._secrets import Secret, read_at_once, read_secret, without_secret
from proxyplane.connectors.redis.url import RedisOptions
from proxyplane.exceptions import ConfigError

try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# redis-py tells the server its own version, which it reads from the installed package's metadata
# for each connection anew: files, on the loop. How to have it say nothing depends on its version.
_QUIET: dict[str, Any] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)


@dataclass
class Link:
    """A connection that is logged in, on which nothing is under way.

    Attributes:
        transport: The connection.
        refusal: Makes the exception for what the server says when it refuses.
        parser: redis-py's, if that is to read; else None.
        stream: Takes what arrives, for the parser.
    """

    transport: asyncio.Transport
    refusal: Callable[[str], Exception]
    parser: Any
    stream: Any
    _writer: asyncio.StreamWriter  # closes the transport when it is dropped

    def unsent(self) -> int:
        """Bytes that the other machine has not taken, as far as they can be counted."""
        waiting = self.transport.get_write_buffer_size()
        with contextlib.suppress(AttributeError):  # not a socket
            waiting += unsent(self.transport.get_extra_info("socket").fileno())
        return waiting


def unsent(fileno: int) -> int:
    """Bytes that the kernel was given and the other machine has not taken; 0 if it cannot tell."""
    count = array.array("i", [0])
    if fcntl is not None:
        with contextlib.suppress(OSError):  # closed
            fcntl.ioctl(fileno, termios.TIOCOUTQ, count)
    return count[0]


class _Dropped(AbstractConnection):
    """A connection of redis-py's that ends at once when a step failed or was cancelled."""

    async def disconnect(self, nowait: bool = False, *args: Any, **kwargs: Any) -> None:
        """Drops the connection; a polite end would need an answer."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._parser.on_disconnect()  # type: ignore[no-untyped-call]
        self._reader = self._writer = None


class _TCP(_Dropped, Connection):
    """Over TCP, with TLS when it was given a context."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, **kwargs: Any) -> None:
        self.tls = tls
        super().__init__(**kwargs)

    def _connection_arguments(self) -> Mapping[str, Any]:
        # redis-py's own TLS connection reads the certificates anew for each connection.
        return {"host": self.host, "port": self.port, "ssl": self.tls}


class _Unix(_Dropped, UnixDomainSocketConnection):
    """Over a socket of this machine."""

    async def _connect(self) -> None:
        # redis-py's logs in here, and then a second time like every other connection.
        self._reader, self._writer = await asyncio.open_unix_connection(path=self.path)


async def connect(options: RedisOptions, tls: ssl.SSLContext | None) -> Link:
    """Makes a connection, in the time that `options` allow.

    Raises:
        OSError: There is no way to the server.
        TimeoutError: It took too long.
        redis.RedisError: The server refused.
    """
    password = await _password_of(options)
    handled = sys.exception()  # what the caller is about, and none of ours
    common = _arguments(options, password, None)
    made: _TCP | _Unix
    if options.scheme == "unix":
        made = _Unix(path=options.path, **common)
    else:
        made = _TCP(host=options.host, port=options.port, tls=tls, **common)
    try:
        async with asyncio.timeout(options.connect_timeout):
            await made.connect()  # type: ignore[no-untyped-call]
            # A server that wants a password takes a connection without one, and hangs up on the
            # first large command without saying why; it answers a small one.
            await made.send_command("PING", check_health=False)
            try:
                await made.read_response()
            except redis_errors.NoPermissionError:
                pass  # it knows the user, who may not PING
    except BaseException as error:
        await made.disconnect()
        if password is not None:
            without_secret(error, password, but=handled)
        raise
    writer = made._writer
    assert writer is not None
    transport = cast(asyncio.Transport, writer.transport)
    parser: Any = made._parser
    made._reader = made._writer = None
    if options.wire == "redis-py":
        return Link(transport, parser.parse_error, parser, transport.get_protocol(), writer)
    parser.on_disconnect()
    return Link(transport, parser.parse_error, None, None, writer)


class _Login(CredentialProvider):
    """What redis-py asks for user and password, so that it keeps no password itself."""

    def __init__(self, username: str | None, password: Secret) -> None:
        self._username = username
        self._password = password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """The words that AUTH takes."""
        if self._username is None:
            return (self._password.text(),)
        return self._username, self._password.text()

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """The same; redis-py's own logs a warning for each connection."""
        return self.get_credentials()


async def _password_of(options: RedisOptions) -> Secret | None:
    """The password, read now.

    Raises:
        ConfigError: It cannot be had; the message names where it should be.
    """
    reference = options.password
    if reference is None:
        return None
    if read_at_once(reference):
        return _read_password(options)
    return await run_in_worker(_read_password, options)


def _read_password(options: RedisOptions) -> Secret | None:
    """The same, for a thread that may block."""
    if options.password is None:
        return None
    return read_secret(options.password, what=f"the password for {options.where}")


def connect_blocking(
    options: RedisOptions, tls: ssl.SSLContext | None
) -> tuple[socket.socket, Callable[[str], Exception]]:
    """Makes a connection for a thread that blocks, which has a time-out for each of its steps.

    Returns:
        The connection, logged in, on which nothing is under way; and what makes the exception for
        what the server says when it refuses.

    Raises:
        OSError: There is no way to the server.
        redis.RedisError: The server refused, or it took too long.
    """
    password = _read_password(options)
    handled = sys.exception()
    common = _arguments(options, password, options.connect_timeout)
    made: Any
    if options.scheme == "unix":
        made = _BlockingUnix(path=options.path, **common)
    else:
        made = _BlockingTCP(host=options.host, port=options.port, tls=tls, **common)
    try:
        made.connect()
        made.send_command("PING", check_health=False)  # as for `connect`
        with contextlib.suppress(redis_errors.NoPermissionError):
            made.read_response()
    except BaseException as error:
        made.disconnect()
        if password is not None:
            without_secret(error, password, but=handled)
        raise
    sock, refusal = made._sock, made._parser.parse_error
    made._sock = None
    made._parser.on_disconnect()
    return sock, refusal


class _BlockingTCP(blocking.Connection):
    """Over TCP, with TLS when it was given a context."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, **kwargs: Any) -> None:
        self.tls = tls
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]

    def _connect(self) -> socket.socket:
        sock: socket.socket = super()._connect()  # type: ignore[no-untyped-call]
        if self.tls is None:
            return sock
        try:
            return self.tls.wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise


_BlockingUnix: Any = blocking.UnixDomainSocketConnection


def _arguments(
    options: RedisOptions, password: Secret | None, timeout: float | None
) -> dict[str, Any]:
    """What redis-py is told of every connection; the time-out, in seconds, is for each step."""
    return {
        "db": options.db,
        **({"username": options.username} if password is None else {}),
        "credential_provider": password and _Login(options.username, password),
        "protocol": 2,  # spares the HELLO, which servers before 6.0 do not know
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        **_QUIET,
    }


def _read_tls_context(options: RedisOptions) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.ssl_ca_certs)
    context.check_hostname = options.ssl_check_hostname
    if options.ssl_certfile:
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
    return context


async def load_tls_context(options: RedisOptions) -> ssl.SSLContext:
    """The same as `tls_context`, off the loop."""
    return await run_in_worker(tls_context, options)


def tls_context(options: RedisOptions) -> ssl.SSLContext:
    """The TLS settings of a connector; reads files.

    Raises:
        ConfigError: A file cannot be used; the message names those that are configured.
    """
    try:
        return _read_tls_context(options)
    except OSError as exc:
        named = [
            f"{name}={value}"
            for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
            if (value := getattr(options, name))
        ]
        raise ConfigError(
            f"the certificates for {options.where} cannot be used ({', '.join(named)}): {exc}"
        ) from exc
