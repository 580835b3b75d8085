"""What a Redis URL says, checked part by part, and its one canonical spelling.

The URL travels inside proxies, so it holds everything but secrets: a password is named
(``password_env=``), never written. For the same reason no message of this module repeats the URL
or the value of a part that could hold a mistyped password.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from proxyplane._secrets import check_reference
from proxyplane.exceptions import ConfigError

CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
SCHEMES = ("redis", "rediss", "unix", *CLUSTER_SCHEMES)
WIRES = ("direct", "redis-py")
DEFAULT_URL = "redis://localhost:6379/0"
# No colon: it ends the namespace, so "a" + "b:c" and "a:b" + "c" would be one key. No character
# with a meaning in the patterns of SCAN, nor braces, which choose the slot in a cluster.
_NAMESPACE = re.compile(r"[A-Za-z0-9_./-]{1,64}")
_ENV_HINT = "put it in an environment variable and name that: password_env='REDIS_PASSWORD'"
PASSWORDS = {"env": "password_env", "file": "password_file", "call": "password_from"}
_NO_NAME = {
    "password_env": "password_env is not the name of an environment variable",
    "password_file": "password_file is not the path of a file",
    "password_from": "password_from is not a name for register_secret",
}


@dataclass(frozen=True, kw_only=True)
class RedisOptions:
    """How to reach one database of one server, or a cluster.

    All the defaults stand here, and only here.

    Attributes:
        scheme: ``redis`` (TCP), ``rediss`` (TLS), ``unix`` (a socket of this machine), or
            ``redis+cluster`` and ``rediss+cluster``.
        host: Name or address of the server; empty for ``unix``, and for a cluster until one of its
            nodes is chosen.
        port: TCP port; 0 for ``unix``.
        seeds: Host and port of the nodes of a cluster that are asked for all others.
        path: Path of the socket, for ``unix``.
        db: Number of the database.
        username: ACL user; None is the server's ``default`` user.
        password_env: Name of the environment variable that holds the password. It is read when a
            connection is made, in the process that makes it.
        password_file: Path of a file that holds it, instead.
        password_from: Name of a function that returns it, instead; each process registers it with
            `proxyplane.config.register_secret`.
        namespace: Every key begins with it and a colon.
        max_connections: Connections per event loop for large objects and for batches, in a cluster
            to each node; when all are in use, callers wait. Small operations share one more, and
            waiting another.
        connect_timeout: Seconds for a new connection, with TLS handshake and login.
        timeout: Seconds without any progress after which a connection counts as lost: a window of
            a large object that is not taken by the server, or a reply that does not come.
        wire: Who reads what arrives: ``direct``, straight into the memory of the object, or
            ``redis-py``, its client, which is slower and needs more memory.
        ssl_ca_certs: PEM file of the authorities that may sign the server's certificate; by
            default those of the system.
        ssl_certfile: PEM file with a client certificate.
        ssl_keyfile: PEM file with its key, when not in the same file.
        ssl_check_hostname: Whether the certificate must name the host.
    """

    scheme: str = "redis"
    host: str = ""
    port: int = 0
    path: str = ""
    seeds: tuple[tuple[str, int], ...] = ()
    db: int = 0
    username: str | None = None
    password_env: str | None = None
    password_file: str | None = None
    password_from: str | None = None
    namespace: str = "proxyplane"
    max_connections: int = 32
    connect_timeout: float = 5.0
    timeout: float = 30.0
    wire: str = "direct"
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True

    def __post_init__(self) -> None:
        if self.db < 0:
            raise ConfigError(f"the database of a Redis URL is a number from 0, not {self.db}")
        if self.db and self.cluster:
            raise ConfigError(f"a Redis cluster has one database, 0, and no {self.db}")
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ConfigError(
                f"namespace {self.namespace!r} cannot be used",
                hint="1 to 64 letters, digits and any of _ . - /",
            )
        named = [name for name in PASSWORDS.values() if getattr(self, name) is not None]
        if len(named) > 1:
            raise ConfigError(f"the password is named twice, by {' and '.join(named)}")
        if self.password is not None:
            try:
                check_reference("password", self.password)
            except ConfigError:
                # Not repeated: the likely mistake is to have passed the password itself.
                raise ConfigError(_NO_NAME[named[0]], hint=_ENV_HINT) from None
        if self.max_connections < 1:
            raise ConfigError(f"max_connections must be at least 1, not {self.max_connections}")
        if self.wire not in WIRES:
            raise ConfigError(f"wire must be one of {', '.join(WIRES)}, not {self.wire!r}")
        for name in ("connect_timeout", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be a number of seconds above 0")
        used = [o.name for o in _OPTIONS if o.tls and getattr(self, o.name) != o.default]
        if used and not self.tls:
            raise ConfigError(
                f"{used[0]} is for TLS, and {self.scheme}:// does not use it",
                hint=f"write {self.tls_scheme}:// for TLS",
            )
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ConfigError("ssl_keyfile without ssl_certfile")
        for option in _OPTIONS:
            path = getattr(self, option.name) if option.path else None
            if path is not None and not os.path.isabs(path):
                # The reader of this URL may run in another directory.
                object.__setattr__(self, option.name, os.path.abspath(path))

    @property
    def cluster(self) -> bool:
        """Whether it is a cluster, or a node of one."""
        return self.scheme in CLUSTER_SCHEMES

    @property
    def tls(self) -> bool:
        """Whether connections use TLS."""
        return self.scheme.startswith("rediss")

    @property
    def tls_scheme(self) -> str:
        """The scheme for the same with TLS."""
        return "rediss+cluster" if self.cluster else "rediss"

    def node(self, host: str, port: int) -> RedisOptions:
        """How to reach one node of the cluster."""
        return dataclasses.replace(self, host=host, port=port)

    @property
    def where(self) -> str:
        """The server, or the node, or the nodes of the cluster that the URL names; for messages."""
        if self.scheme == "unix":
            return self.path
        if self.cluster and not self.host:
            return self._listed
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def url(self) -> str:
        """The canonical URL: equal options have equal URLs, and defaults are left out."""
        user = f"{quote(self.username, safe='')}@" if self.username is not None else ""
        options = {o.name: o.write(getattr(self, o.name)) for o in _OPTIONS if self._says(o)}
        if self.scheme == "unix":
            base = f"unix://{user}{quote(self.path)}"
            if self.db:
                options["db"] = str(self.db)
        elif self.cluster:
            base = f"{self.scheme}://{user}{self._listed}"
        else:
            base = f"{self.scheme}://{user}{_bracketed(self.host)}:{self.port}/{self.db}"
        query = "&".join(f"{name}={quote(options[name], safe='/')}" for name in sorted(options))
        return f"{base}?{query}" if query else base

    @property
    def _listed(self) -> str:
        return ",".join(f"{_bracketed(host)}:{port}" for host, port in self.seeds)

    def _says(self, option: _Option) -> bool:
        return bool(getattr(self, option.name) != option.default)

    @property
    def password(self) -> str | None:
        """The reference to the password, see `proxyplane._secrets`; None when none is named."""
        for kind, name in PASSWORDS.items():
            value = getattr(self, name)
            if value is not None:
                return f"{kind}:{value}"
        return None


def parse_url(url: str, **overrides: Any) -> RedisOptions:
    """Reads a URL; `overrides` that are not None take the place of what it says.

    Raises:
        ConfigError: Something is wrong; the message names the part.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError("the Redis URL cannot be parsed", hint=_shape_hint()) from None
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            "a Redis URL begins with redis://, rediss:// or unix://, or for a cluster with "
            "redis+cluster:// or rediss+cluster://",
            hint=_shape_hint(),
        )
    if parts.fragment or url.endswith("#"):
        raise ConfigError(
            "a '#' in the Redis URL would cut it there", hint="write it as %23 where it belongs"
        )
    values: dict[str, Any] = {"scheme": parts.scheme, "username": _username(parts, url)}
    query = _query(parts.query)
    if parts.scheme == "unix":
        values |= _socket(parts)
    elif parts.scheme in CLUSTER_SCHEMES:
        values |= _seeds_and_db(parts)
    else:
        values |= _host_and_db(parts)
    if "db" in query:
        if "db" in values:
            raise ConfigError("the Redis URL names a database twice, in its path and as db=")
        values["db"] = _whole("option db of the Redis URL", query.pop("db"))
    for name, text in query.items():
        option = _BY_NAME.get(name)
        if option is None:
            raise ConfigError(
                f"unknown option {name!r} in the Redis URL",
                hint=f"known are {', '.join(sorted([*_BY_NAME, 'db']))}",
            )
        values[name] = option.read(text)
    values |= {name: value for name, value in overrides.items() if value is not None}
    return RedisOptions(**values)


def _shape_hint() -> str:
    return f"for example {DEFAULT_URL} or unix:///run/redis.sock"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _username(parts: SplitResult, url: str) -> str | None:
    # A password with a raw '/' or '?' in it ends the authority early, and everything from there
    # on is found in the path or the query: an '@' there gives it away.
    stray = "@" in url and "@" not in parts.netloc and parts.scheme != "unix"
    if parts.password or stray:
        raise ConfigError("a Redis URL must not hold a password", hint=_ENV_HINT)
    return unquote(parts.username) if parts.username else None


def _query(text: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name in ("password", "pass", "pwd", "auth"):
            raise ConfigError("a Redis URL must not hold a password", hint=_ENV_HINT)
        if name in query:
            raise ConfigError(f"option {name} stands twice in the Redis URL")
        query[name] = value
    return query


def _socket(parts: SplitResult) -> dict[str, Any]:
    if parts.netloc.rpartition("@")[2]:
        raise ConfigError(
            "the path of a unix:// URL must be absolute", hint="three slashes: unix:///run/x.sock"
        )
    if parts.path in ("", "/"):
        raise ConfigError("the unix:// URL names no socket", hint="unix:///run/redis.sock")
    return {"path": os.path.normpath(unquote(parts.path))}


def _host_and_db(parts: SplitResult) -> dict[str, Any]:
    if not parts.hostname:
        raise ConfigError("the Redis URL names no host", hint=_shape_hint())
    if "," in parts.netloc.rpartition("@")[2]:
        raise ConfigError(
            "the Redis URL names several servers", hint="for a cluster write redis+cluster://"
        )
    try:
        port = 6379 if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not port:
        raise ConfigError("the port of the Redis URL is not a number from 1 to 65535")
    return {"host": unquote(parts.hostname), "port": port, **_db(parts)}


def _seeds_and_db(parts: SplitResult) -> dict[str, Any]:
    seeds = set()
    for text in parts.netloc.rpartition("@")[2].split(","):
        try:
            node = urlsplit(f"redis://{text}")
        except ValueError:  # an address in half a pair of brackets
            raise ConfigError(
                "the Redis URL names nodes as host:port, with commas between",
                hint="for example redis+cluster://10.0.0.1:6379,10.0.0.2:6379",
            ) from None
        seed = _host_and_db(node)
        seeds.add((seed["host"], seed["port"]))
    # Sorted, so that whoever names the same nodes names the same store.
    return {"seeds": tuple(sorted(seeds)), **_db(parts)}


def _db(parts: SplitResult) -> dict[str, int]:
    text = parts.path.strip("/")
    return {"db": _whole("the database, the path of the Redis URL,", text)} if text else {}


def _whole(what: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{what} is not a whole number: {text[:20]!r}")
    return int(text)


def _seconds(what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{what} is not a number of seconds: {text[:20]!r}") from None


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _flag(what: str, text: str) -> bool:
    try:
        return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
    except KeyError:
        raise ConfigError(f"{what} is neither true nor false: {text[:20]!r}") from None


def _text(what: str, text: str) -> str:
    if not text:
        raise ConfigError(f"{what} is empty")
    return text


@dataclass(frozen=True)
class _Option:
    """One option of the query."""

    name: str
    parse: Callable[[str, str], Any]
    tls: bool = False
    path: bool = False
    write: Callable[[Any], str] = str

    def read(self, text: str) -> Any:
        return self.parse(f"option {self.name} of the Redis URL", text)

    @property
    def default(self) -> Any:
        return _DEFAULTS[self.name]


_DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in dataclasses.fields(RedisOptions)}
_OPTIONS = (
    _Option("connect_timeout", _seconds, write=_number),
    _Option("max_connections", _whole),
    _Option("namespace", _text),
    _Option("password_env", _text),
    _Option("password_file", _text, path=True),
    _Option("password_from", _text),
    _Option("ssl_ca_certs", _text, tls=True, path=True),
    _Option("ssl_certfile", _text, tls=True, path=True),
    _Option("ssl_check_hostname", _flag, tls=True, write=lambda on: "true" if on else "false"),
    _Option("ssl_keyfile", _text, tls=True, path=True),
    _Option("timeout", _seconds, write=_number),
    _Option("wire", _text),
)
_BY_NAME = {option.name: option for option in _OPTIONS}
