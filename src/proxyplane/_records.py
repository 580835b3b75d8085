"""What stands under a key that was chosen: where the object is, or the object, if that is small.

A chosen key can be put again, and an object that is read in several steps must not change
meanwhile. So each object that is put under a name is a *generation* with a key of its own, which
is written once, and under the name stands a small record of it. ``docs/format.md`` draws it.
"""

from __future__ import annotations

import struct
import time
import zlib
from typing import Final, Literal, NamedTuple

from proxyplane.abc import RECORD_BYTES, Buffer, Frames
from proxyplane.exceptions import SerializationError

MAGIC: Final = b"\xc1PXN"  # of objects it is b"\xc1PXP"
VERSION: Final = 1
_HERE: Final = 1  # flag: the object follows
# Magic, version, flags, bytes of the generation's name, bytes of the object, seconds since 1970.
_START: Final = struct.Struct("<4sBBHQd")
_CRC: Final = struct.Struct("<I")  # of what is before it, and of the name, which is behind it
_HEAD: Final = _START.size + _CRC.size
_ALIGN: Final = 64  # as the bodies of an object

SMALL: Final = 4096
"""Bytes of an object up to which it is in its record."""
_LONGEST: Final = RECORD_BYTES - SMALL - _HEAD - _ALIGN


class Record(NamedTuple):
    """A record.

    Attributes:
        generation: Names what was put; the key of the object, unless that is in the record.
        size: Bytes of the object.
        body: The object, if it is in the record.
        time: When it was put, in seconds since 1970, by the clock of who put it.
    """

    generation: str
    size: int
    body: memoryview | None
    time: float


def pack_record(generation: str, size: int, body: Frames | None = None) -> bytes:
    """Makes a record.

    Args:
        generation: As in `Record`.
        size: Bytes of the object.
        body: The object, if it is to be in the record.

    Raises:
        ValueError: The name of the generation is too long for a record.
    """
    name = generation.encode("utf-8", "surrogatepass")
    if len(name) > _LONGEST:
        raise ValueError(f"a key of {len(name)} bytes does not fit in a record")
    flags = 0 if body is None else _HERE
    start = _START.pack(MAGIC, VERSION, flags, len(name), size, time.time())
    head = b"".join((start, _CRC.pack(zlib.crc32(name, zlib.crc32(start))), name))
    if body is None:
        return head
    padding = bytes(-len(head) % _ALIGN)
    return b"".join((head, padding, *body))


def read_record(buffer: Buffer) -> Record | None:
    """What a record says; None for an object, which was put there without one.

    Raises:
        SerializationError: It is damaged, or of a later version of the library.
    """
    view = memoryview(buffer)
    if bytes(view[:4]) != MAGIC:
        return None
    if len(view) < _HEAD:
        raise _damaged("truncated", "is cut off")
    _, version, flags, length, size, when = _START.unpack_from(view)
    if version != VERSION:
        raise SerializationError(
            f"written by a newer proxyplane: the record of a key has version {version}",
            reason="version",
            hint="upgrade proxyplane in the process that reads",
        )
    end = _HEAD + length
    start = end + -end % _ALIGN
    if len(view) != (start + size if flags & _HERE else end):
        raise _damaged("truncated", "has not the length that it says")
    (crc,) = _CRC.unpack_from(view, _START.size)
    if crc != zlib.crc32(view[_HEAD:end], zlib.crc32(view[: _START.size])):
        raise _damaged("corrupt", "fails its checksum")
    name = str(view[_HEAD:end], "utf-8", "surrogatepass")
    return Record(name, size, view[start:] if flags & _HERE else None, when)


def _damaged(reason: Literal["truncated", "corrupt"], what: str) -> SerializationError:
    return SerializationError(f"{reason}: the record of a key {what}", reason=reason)
