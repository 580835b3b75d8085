"""What names an object of an endpoint: the endpoint's id, and keys that carry it.

An id is the SHA-256 of the endpoint's certificate in base 32, 52 characters. A key that the
connector makes is ``<writer><counter>-<size>@<id>``: 32 hexadecimal digits, the size of the object
in bytes (hexadecimal, 0 for one that comes later), and the first 16 characters of the id, 80 bits.
Whoever has the key knows where the object is and how much memory it needs. Any other key is one
that the user chose, and its object is at the endpoint of the connector's URL.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from proxyplane.connectors._keys import with_place

__all__ = [
    "Made",
    "id_of",
    "is_id",
    "make_key",
    "portions",
    "quote_key",
    "split_key",
    "unquote_key",
]

SHORT = 16
LONGEST_KEY = 1 << 15
"""Bytes of the longest key, in UTF-8."""

_KEYS_AT_ONCE: Final = 20_000
_CHARACTERS_AT_ONCE: Final = 1 << 20  # of keys, each of which JSON writes as twelve at most
_ID = re.compile(r"[a-z2-7]{52}")


class Made(NamedTuple):
    """What a key that a connector made tells.

    Attributes:
        unique: The part that only its maker knew before.
        size: Bytes of the object; 0 if it was to come later.
        endpoint: The beginning of the id of the endpoint that has it.
    """

    unique: str
    size: int
    endpoint: str


def id_of(certificate: bytes) -> str:
    """The id of the endpoint with this certificate (DER)."""
    digest = hashlib.sha256(certificate).digest()
    return base64.b32encode(digest).decode("ascii").rstrip("=").lower()


def is_id(text: str) -> bool:
    """Whether this can be the id of an endpoint."""
    return _ID.fullmatch(text) is not None


def make_key(unique: str, size: int, endpoint: str) -> str:
    """The key of a new object."""
    return f"{unique}-{size:x}@{endpoint[:SHORT]}"


def split_key(key: str) -> Made | None:
    """What a key tells; None for one that no connector made."""
    match = with_place(key)
    return None if match is None else Made(match[1], int(match[2], 16), match[3])


def quote_key(key: str) -> str:
    """A key of any characters as a part of a path."""
    return base64.urlsafe_b64encode(key.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def unquote_key(text: str) -> str:
    """The key that `quote_key` wrote.

    Raises:
        ValueError: It did not write this.
    """
    raw = text.encode("ascii")
    key = base64.b64decode(raw + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
    return key.decode("utf-8", "surrogatepass")


def portions(keys: Sequence[str], numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """The keys of these numbers, in portions that endpoints take, and answer, as one request."""
    begin = length = 0
    for at, number in enumerate(numbers):
        length += len(keys[number])
        if length > _CHARACTERS_AT_ONCE or at - begin >= _KEYS_AT_ONCE:
            yield numbers[begin:at]
            begin, length = at, len(keys[number])
    if begin < len(numbers):
        yield numbers[begin:]
