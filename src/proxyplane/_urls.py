"""What all URLs of the package share: their check, and the hiding of secrets in messages."""

from __future__ import annotations

import os
import re

from proxyplane.exceptions import ConfigError

__all__ = ["SCHEME", "bad", "check_connector_url", "redact"]

# Patterns stay text, which `re` compiles on first use: that takes longer than importing this.
# Not a scheme but a host with its port: "localhost:6379".
SCHEME = r"([A-Za-z][A-Za-z0-9+.\-]*):(?!\d+(?:/|$))"
_HOST_PORT = r"[^:/]+:\d+(?:/|$)"
_CONTROL = r"[\x00-\x1f\x7f]"

# A password may itself hold "@" and, badly encoded, "/": everything up to the last "@" is hidden.
_USERINFO = r"(?s)(//(?!\[)[^/?#:@]*:).+@"
# When it is about to refuse a URL, a number and then a path is the port of a host without a user.
_USERINFO_REFUSED = r"(?s)//(?!\[)[^/?#:@]*:(?!\d*[/?#]).+@"
_PARAMETER = (
    r"(?i)([?&;][^=&;#]*(?:password|passwd|passphrase|pwd|secret|token|credentials?"
    r"|(?:access|account|api|auth|private|secret|signing)[-_]?key)=)[^&;#]+"
)


def redact(url: str) -> str:
    """The URL with every password and key replaced by ``***``, fit for a message or a repr."""
    return re.sub(_PARAMETER, r"\1***", re.sub(_USERINFO, r"\1***@", url))


def bad(field: str, value: object, wanted: str, *, hint: str | None = None) -> ConfigError:
    """The error for a value that cannot be; names the field, the value and what it must be."""
    shown = redact(value) if isinstance(value, str) else value
    return ConfigError(f"{field}={shown!r} is not possible; it must be {wanted}", hint=hint)


def check_connector_url(url: str) -> None:
    """Refuses what cannot be a connector URL, whatever its scheme.

    Raises:
        ConfigError: It is no URL, or has a fragment, a control character or a secret.
    """
    wanted = "a URL like 'file:///data/objects' or 'redis://localhost:6379'"
    if not isinstance(url, str):
        raise bad("connector", url, wanted)
    if not re.match(SCHEME, url):
        hint = None
        if url.startswith(("/", ".", "~")):
            hint = f"for a directory: file://{os.path.abspath(os.path.expanduser(url))}"
        elif re.match(_HOST_PORT, url):
            hint = f"for a Redis server: redis://{url}"
        raise bad("connector", url, wanted, hint=hint)
    if "#" in url:
        raise bad(
            "connector",
            url,
            "a URL without a fragment",
            hint="after # stands the name of a store; write # inside a path as %23",
        )
    if re.search(_CONTROL, url):
        raise bad("connector", url, "a URL without control characters")
    if re.search(_USERINFO_REFUSED, url) or re.search(_PARAMETER, url):
        raise bad(
            "connector",
            url,
            "a URL without a secret, since it travels inside every proxy",
            hint="put the secret into an environment variable of each process and name the "
            "variable, for example redis://user@host:6379?password_env=REDIS_PASSWORD",
        )
