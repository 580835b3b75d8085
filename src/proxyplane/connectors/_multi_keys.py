"""Keys of a multi-connector: which connector has the object, or what stands under a chosen key.

A key that an inner connector made gets a *mark*, three hexadecimal digits of the connector's name,
and five more that check it, so that no key of a user's is mistaken for one::

    0f1e2d3c4b5a6978 0 00000000 0000007   as the inner connector made it: writer, counter
    0f1e2d3c4b5a6978 0 5d1a03bc 0000007   as the multi-connector gives it: still 32 digits

An inner key of another form has them at its end, after a ``~``.

Under a key that a user chose stands a *record*, which is small and always in the same connector:
the object itself, or the key of the object. Its last byte tells which, so that an object stays
aligned.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import NamedTuple

from proxyplane.abc import Buffer

__all__ = ["HERE", "Record", "join", "mark_of", "pointer", "read_record", "split"]

_MARK = 3
_DIGITS = 8
_BEGIN, _END = 17, 17 + _DIGITS  # after the writer and the digit that marks a future's key
_MADE = re.compile(r"[0-9a-f]{32}")
_ADDED = re.compile(rf"(?s)(.*)~([0-9a-f]{{{_DIGITS}}})")

HERE = b"\0"
"""The last byte of a record that is the object."""
_ELSEWHERE = b"\1"


def mark_of(name: str) -> str:
    """The digits by which keys name a connector."""
    return _digest(name)[:_MARK]


def join(mark: str, key: str) -> str:
    """The key of an object that the connector of `mark` keeps under `key`."""
    digits = f"{mark}{_digest(mark + key)[: _DIGITS - _MARK]}"
    if _MADE.fullmatch(key) and key[_BEGIN:_END] == "0" * _DIGITS:
        return f"{key[:_BEGIN]}{digits}{key[_END:]}"
    return f"{key}~{digits}"


def split(key: str) -> tuple[str, str] | None:
    """The inverse of `join`: mark and inner key; None for a key that `join` did not make."""
    if _MADE.fullmatch(key):
        mark = key[_BEGIN : _BEGIN + _MARK]
        inner = f"{key[:_BEGIN]}{'0' * _DIGITS}{key[_END:]}"
    elif added := _ADDED.fullmatch(key):
        inner, mark = added[1], added[2][:_MARK]
    else:
        return None
    return (mark, inner) if join(mark, inner) == key else None


class Record(NamedTuple):
    """What stands under a chosen key: one of the two.

    Attributes:
        body: The object.
        key: Key of the object, as `join` made it.
    """

    body: Buffer | None
    key: str


def pointer(key: str) -> list[bytes]:
    """The frames of the record of an object that stands elsewhere."""
    return [key.encode("utf-8", "surrogatepass"), _ELSEWHERE]


def read_record(buffer: Buffer) -> Record | None:
    """What a record says; None if it is none."""
    view = memoryview(buffer)
    if view[-1:] == HERE:
        return Record(view[:-1], "")
    if view[-1:] == _ELSEWHERE:
        try:
            return Record(None, str(view[:-1], "utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            pass
    return None


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
