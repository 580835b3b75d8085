"""Parts to frames, and one buffer back to slices of it: the byte format, and nothing of objects.

``docs/format.md`` draws every byte.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from pickle import PickleBuffer
from typing import Any, Final, Literal, NamedTuple

import msgpack

from proxyplane.abc import Buffer, Parts
from proxyplane.exceptions import SerializationError

MAGIC: Final = b"\xc1PXP"  # no UTF-8 text, no pickle and no msgpack begins with this byte
VERSION: Final = 2
OLDEST: Final = max(1, VERSION - 1)  # readers accept this version and the one before
ALIGN: Final = 64
PREAMBLE: Final = struct.Struct("<4sBBHII")
_SHAPE: Final = struct.Struct("<4xBB2xI")  # version, flags and length of the header in it

# A signed object has these between preamble and header: the id of the signing key, and the MAC.
SIGNED: Final = 1  # the flag
KEY_ID: Final = 8
MAC: Final = 32
SIGNATURE: Final = KEY_ID + MAC

_CHECKED: Final = 12  # bytes of the preamble before the checksum in it
_ZEROS: Final = bytes(ALIGN)

# A header of no more bytes is kept when it was read: those of bytes of one length are all the same,
# and those of arrays of one shape. Many of them, of a hundred bytes each.
_KEEP_BELOW: Final = 512
_KEPT: Final = 256

# In-band parts up to this size are joined with the header: one frame costs less than three.
_JOIN_BELOW: Final = 64 * 1024


class Header(NamedTuple):
    """What the header says.

    Attributes:
        codec: Id of the serialiser.
        end: Bytes of the whole object.
        crc: CRC-32 of the in-band bytes.
        inband: Where the in-band bytes are, as (start, end).
        lengths: The length of each body, in bytes.
        checksum: Kind of the checksums of the bodies; None when the writer made none.
        sums: The checksum of each body, when the writer made them.
    """

    codec: str
    end: int
    crc: int
    inband: tuple[int, int]
    lengths: tuple[int, ...]
    checksum: str | None
    sums: tuple[int, ...] | None


def pack(
    codec: str, parts: Parts, *, checksum: str | None = None, key_id: bytes | None = None
) -> list[Buffer]:
    """Makes the frames of one object, without copying what is large.

    Args:
        codec: Id of the serialiser.
        parts: What it made of the object.
        checksum: Kind of the checksums of the bodies; None for none.
        key_id: Of the key that will sign the object; the MAC is left zero.

    Raises:
        TypeError, ValueError, BufferError: A part is no contiguous buffer.
        SerializationError: The package for these checksums is not here.
    """
    inband = [chunk for chunk in map(_frame, parts.inband) if len(chunk)]
    bodies = list(map(_frame, parts.buffers))
    crc = 0
    for chunk in inband:
        crc = zlib.crc32(chunk, crc)
    header: dict[str, Any] = {"codec": codec, "inband": sum(map(len, inband)), "crc": crc}
    if bodies:
        header["bodies"] = struct.pack(f"<{len(bodies)}Q", *map(len, bodies))
        if checksum is not None:
            kind, digest = checksum_of(checksum)
            header["checksum"] = checksum
            header["sums"] = struct.pack(f"<{len(bodies)}{kind}", *map(digest, bodies))
    packed: bytes = msgpack.packb(header)
    flags = 0 if key_id is None else SIGNED
    start = PREAMBLE.pack(MAGIC, VERSION, flags, 0, len(packed), 0)[:_CHECKED]
    head_crc = zlib.crc32(packed, zlib.crc32(start))
    signature = b"" if key_id is None else key_id + bytes(MAC)
    head = b"".join((start, head_crc.to_bytes(4, "little"), signature, packed))

    offset = len(head) + header["inband"]
    frames: list[Buffer] = [head, *inband]
    if offset <= _JOIN_BELOW:
        frames = [b"".join(frames)]
    for body in bodies:
        padding = -offset % ALIGN
        if padding:
            frames.append(_ZEROS[:padding])
        if len(body):
            frames.append(body)
        offset += padding + len(body)
    return frames


def _frame(buffer: Buffer) -> Buffer:
    return buffer if type(buffer) is bytes else flat_view(buffer)


def flat_view(buffer: Buffer) -> memoryview:
    """A buffer as a flat view of its bytes, in memory order.

    As long as the view lives, a bytearray cannot be resized: the lengths stay true.

    Raises:
        BufferError: It is not contiguous.
    """
    view = memoryview(buffer)
    if type(buffer) is bytearray or type(buffer) is bytes:
        return view
    if view.ndim == 1 and view.format == "B" and view.contiguous:
        return view
    # PickleBuffer knows every layout and format. It is the last resort, because before Python
    # 3.12.7 the garbage collector crashes on one of a memoryview (cpython#77894).
    if view.c_contiguous and view.nbytes:
        try:
            return view.cast("B")
        except ValueError:
            pass  # not a format of the struct module
    return PickleBuffer(buffer).raw()


def checksum_of(kind: str) -> tuple[str, Callable[[Buffer], int]]:
    """How the checksums of a kind are packed, and the function that makes one.

    Raises:
        SerializationError: They are of no known kind, or the package for them is not here.
    """
    if kind == "crc32":
        return "I", zlib.crc32
    if kind == "xxh3":
        try:
            import xxhash  # optional, and only where objects have such checksums
        except ImportError:
            raise SerializationError(
                "the checksums 'xxh3' need the package xxhash, which is not installed here",
                reason="version",
                hint='pip install "proxyplane[checksum]", or let the writer use checksum="crc32"',
            ) from None
        return "Q", xxhash.xxh3_64_intdigest
    raise _newer(f"its checksums are of an unknown kind, {kind!r}")


def may_be_signed(view: memoryview) -> bool:
    """Whether bytes say that they are signed, if they are an object at all."""
    return len(view) > 5 and view[5] & SIGNED != 0 and view[4] > 1


def signature_of(view: memoryview) -> tuple[bytes, memoryview] | None:
    """Id of the key that signed an object, and the MAC; None for one that is not signed.

    Raises:
        SerializationError: The bytes are no object, or too few; or of a later version.
    """
    _, flags, _ = _check_start(view)
    if not flags & SIGNED:
        return None
    return view[PREAMBLE.size :][:KEY_ID].tobytes(), view[PREAMBLE.size + KEY_ID :][:MAC]


def read_header(view: memoryview) -> Header:
    """Reads and checks the header, and that the buffer has exactly the bytes it announces.

    The contents are not looked at: see `check_contents`.

    Raises:
        SerializationError: `reason` says what is wrong with the bytes.
    """
    size = len(view)
    if size < PREAMBLE.size:
        _check_start(view)
    version, flags, length = _SHAPE.unpack_from(view)
    if length < _KEEP_BELOW and not (flags & SIGNED and version > 1):
        header = _kept(view[: PREAMBLE.size + length].tobytes())
    else:
        header = _parse(view)
    end = header.end
    if size < end:
        raise _truncated(f"{size} bytes of {end}")
    if size > end:
        raise SerializationError(
            f"trailing: {size - end} bytes after the {end} of the object",
            reason="trailing",
            hint="the buffer must hold one object and nothing else",
        )
    return header


def _parse(data: memoryview | bytes) -> Header:
    """Reads what begins with a header."""
    view = memoryview(data)
    header_start, header_end = _check_preamble(view)
    try:
        # No container inside may claim more than 16 elements and no string more bytes than there
        # are, so that a few bytes cannot claim gigabytes.
        fields = msgpack.unpackb(view[header_start:header_end], max_array_len=16, max_map_len=16)
        codec, inband, crc = fields["codec"], fields["inband"], fields["crc"]
        if not (type(codec) is str and type(inband) is type(crc) is int and inband >= 0):
            raise TypeError("a field has the wrong type")
        raw = fields.get("bodies")
        lengths = struct.unpack(f"<{len(raw) // 8}Q", raw) if raw else ()
        checksum = fields.get("checksum")
        sums = None
        if checksum is not None:
            kind, _ = checksum_of(checksum)
            sums = struct.unpack(f"<{len(lengths)}{kind}", fields["sums"])
    except SerializationError:
        raise
    except Exception as exc:
        raise _corrupt(f"the header is malformed ({type(exc).__name__}: {exc})") from exc

    end = inband_end = header_end + inband
    for length in lengths:
        end += -end % ALIGN + length
    return Header(codec, end, crc, (header_end, inband_end), lengths, checksum, sums)


# The checksum is in these bytes, so what is equal to a header that was checked is as good.
_kept = lru_cache(_KEPT)(_parse)


def _check_start(view: memoryview) -> tuple[bytes, int, int]:
    """Checks magic and version; returns the preamble, flags, and where the header begins."""
    size = len(view)
    if not size:
        raise SerializationError(
            "empty: no bytes at all, where an object should be",
            reason="empty",
            hint="the writer was interrupted, or this is not what it wrote",
        )
    start = view[: PREAMBLE.size].tobytes()
    if not MAGIC.startswith(start[:4]):
        raise SerializationError(
            f"foreign: not written by proxyplane; begins with {start[:4]!r}, not {MAGIC!r}",
            reason="foreign",
            hint="something else wrote under this key",
        )
    if size > 4 and start[4] > VERSION:
        raise _newer(f"format version {start[4]}, and this reader knows up to {VERSION}")
    if size < PREAMBLE.size:
        raise _truncated(f"{size} bytes, fewer than the {PREAMBLE.size} of the preamble")
    flags = start[5] if start[4] > 1 else 0
    begin = PREAMBLE.size + SIGNATURE * (flags & SIGNED)
    if size < begin:
        raise _truncated(f"{size} bytes, and preamble and signature end at {begin}")
    return start, flags, begin


def _check_preamble(view: memoryview) -> tuple[int, int]:
    """Checks magic, version and checksum; returns where the header begins and ends."""
    size = len(view)
    magic, version, flags, reserved, length, crc = PREAMBLE.unpack_from(view)
    begin = PREAMBLE.size
    if magic != MAGIC or version != VERSION or flags:  # which is rare
        _, _, begin = _check_start(view)
    end: int = begin + length
    if size < end:
        raise _truncated(f"{size} bytes, and the header alone ends at {end}")
    if zlib.crc32(view[begin:end], zlib.crc32(view[:_CHECKED])) != crc:
        raise _corrupt("the header fails its checksum")
    if version < OLDEST:
        raise _corrupt(f"there is no format version {version}")
    known = SIGNED if version > 1 else 0
    if flags & ~known or reserved:
        raise _newer(f"flags {flags:#x} and {reserved:#x} are set")
    return begin, end


def check_contents(view: memoryview, header: Header) -> tuple[memoryview, list[memoryview]]:
    """Slices the buffer into the in-band bytes and the bodies, checking what has a checksum.

    Raises:
        SerializationError: A checksum differs (reason ``"corrupt"``).
    """
    start, end = header.inband
    inband = view[start:end]
    if zlib.crc32(inband) != header.crc:
        raise _corrupt("the in-band bytes fail their checksum")
    bodies = []
    for length in header.lengths:
        start = end + -end % ALIGN
        end = start + length
        bodies.append(view[start:end])
    if header.checksum is not None and header.sums is not None:
        _, digest = checksum_of(header.checksum)
        for index, (body, expected) in enumerate(zip(bodies, header.sums, strict=True)):
            if digest(body) != expected:
                raise _corrupt(f"body {index} of {len(bodies)} fails its checksum")
    return inband, bodies


def _failure(reason: Literal["truncated", "corrupt"], what: str, hint: str) -> SerializationError:
    return SerializationError(f"{reason}: {what}", reason=reason, hint=hint)


def _truncated(what: str) -> SerializationError:
    return _failure("truncated", what, "the writer or the transfer was cut off: put it again")


def _corrupt(what: str) -> SerializationError:
    return _failure("corrupt", what, "the medium or the transfer damaged it: put it again")


def _newer(what: str) -> SerializationError:
    return SerializationError(
        f"written by a newer proxyplane: {what}",
        reason="version",
        hint="upgrade proxyplane in the process that reads",
    )
