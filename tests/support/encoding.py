"""What the tests of the serialisation share: short ways, odd objects, forged messages."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import struct
import sys
import zlib

import msgpack
import numpy as np
import polars as pl
import pytest

from proxyplane.abc import Parts
from proxyplane.exceptions import SerializationError
from proxyplane.serialization import (
    decode,
    encode,
)


def packed(obj, **options):
    return b"".join(encode(obj, **options))


def through(obj, **options):
    return decode(bytearray(packed(obj, **options)))


def reason_of(data):
    """The reason for which `data` does not decode; any other exception fails the test."""
    with pytest.raises(SerializationError) as caught:
        decode(data)
    return caught.value.reason


def same(a, b):
    """Equality that tells 1 from True and from 1.0, at every depth."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(map(type, a)) == list(map(type, b)) and all(
            same(x, y) for x, y in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int
    label: str = ""


@dataclasses.dataclass(slots=True)
class Slotted:
    content: object


class Loud(bytes):
    """A subclass of bytes with an attribute."""


class Refuses:
    def __reduce_ex__(self, protocol):
        raise RuntimeError("not me")


class Explodes:
    """Raises when it is loaded."""

    def __reduce__(self):
        return _explode, ()


class Exits:
    def __reduce__(self):
        return sys.exit, (3,)


def _explode():
    raise LookupError("on load")


def forged(fields, *, tail=b"", version=1, flags=0, reserved=0):
    """A message with an intact checksum over a header of our choice."""
    header = fields if isinstance(fields, bytes) else msgpack.packb(fields)
    start = struct.pack("<4sBBHI", b"\xc1PXP", version, flags, reserved, len(header))
    return start + struct.pack("<I", zlib.crc32(start + header)) + header + tail


def long_frame():
    n = 20_000
    return pl.DataFrame(
        {
            "i": pl.Series(range(n), dtype=pl.Int32),
            "f": np.linspace(0, 1, n),
            "s": [f"row {i} is rather long" if i % 3 else None for i in range(n)],
            "b": [i % 2 == 0 for i in range(n)],
            "bin": [b"x" * (i % 20) for i in range(n)],
        }
    ).with_columns(
        d=pl.date_range(pl.date(1900, 1, 1), pl.date(1900, 1, 1) + pl.duration(days=n - 1)),
        t=pl.lit(dt.datetime(2020, 1, 1, tzinfo=dt.UTC)).dt.convert_time_zone("Europe/Paris"),
        u=pl.duration(milliseconds="i", time_unit="ms"),
        c=pl.time(1, 2, 3),
    )


class Upper:
    """A serialiser of text that shouts; found by its import string."""

    id = f"{__name__}:upper"
    copies = True

    def encode(self, obj):
        return Parts((obj.upper().encode(),))

    def decode(self, inband, buffers):
        return bytes(inband).decode()


upper = Upper()
