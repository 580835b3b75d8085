"""Objects to frames and one buffer back to an object; ``docs/format.md`` draws every byte.

Nothing is copied on the way out: the frames are the object's own memory. On the way in, arrays
and tables are views of the buffer, and bytes, bytearray and str cost the copy Python demands.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final

from proxyplane import _frames
from proxyplane._codecs import BUILTIN
from proxyplane._cost import encode_may_stall
from proxyplane._plain_codecs import ArrowCodec, natural_codec
from proxyplane._trust import FAILURE_PICKLED, FAILURE_TOLD, NOTHING_ASKED, Trust, private
from proxyplane.abc import Buffer, Parts, Serializer
from proxyplane.exceptions import ConfigError, SerializationError

__all__ = [
    "BUILTIN",
    "CHECKSUMS",
    "TOO_LONG",
    "decode",
    "encode",
    "encode_may_stall",
    "frames_size",
    "get_serializer",
    "is_known",
    "needs_worker",
    "register_serializer",
]

# What `needs_worker` allows on a loop; each takes at most about a millisecond.
_INLINE_PICKLE = 16 * 1024  # bytes in-band: 80 us of numbers, 280 of instances, 1000 of tables
_INLINE_COPY = 1024 * 1024  # bytes copied or checked: 50 to 400 us
_INLINE_TEXT = 512 * 1024  # bytes of UTF-8: 30 us (ASCII) to 700 us
_INLINE_BODIES = 400  # bodies: about 1.5 us each
_INLINE_SIGNED = 512 * 1024  # bytes with a MAC: 450 us, and a copy

CHECKSUMS = ("crc32", "xxh3")
"""Kinds of checksums of bodies; the second, of the package xxhash, costs a quarter of the time."""


class _TooLong:
    """The type of `TOO_LONG`."""

    def __repr__(self) -> str:
        return "TOO_LONG"


TOO_LONG: Final = _TooLong()
"""What `decode` gives, if it was asked to be brief, in place of what belongs on a worker thread."""

_ARROW = ArrowCodec.id
_custom: dict[str, Serializer] = {}


def encode(
    obj: Any,
    *,
    serializer: Serializer | None = None,
    checksum: bool | str = False,
    trust: Trust = NOTHING_ASKED,
) -> list[Buffer]:
    """Encodes an object to frames, which together are its bytes.

    The frames share memory with the object wherever that is possible: write them before the
    object changes.

    Args:
        obj: Any object that pickle or cloudpickle takes.
        serializer: By default bytes, bytearray and str are carried as they are, and others by
            pickle, or by cloudpickle when pickle refuses.
        checksum: Also check the bodies on decoding; header and in-band bytes always are. True for
            ``"crc32"``, or the kind. A signature covers everything, and takes its place.
        trust: Which codecs may be used, and with which key the object will be signed: see
            `Trust.sign`.

    Raises:
        SerializationError: With reason ``"encode"`` when no serialiser takes the object, and
            ``"codec"`` when readers could not find `serializer`.
        ConfigError: The key that signs cannot be had.
    """
    codec, parts = _encode_parts(obj, serializer, trust.allow)
    key_id = trust.key_id()
    kind = CHECKSUMS[0] if checksum is True else checksum or None
    try:
        return _frames.pack(codec, parts, checksum=kind if key_id is None else None, key_id=key_id)
    except (TypeError, ValueError, BufferError) as exc:
        raise SerializationError(
            f"serializer {codec!r} returned what is no contiguous buffer: {_describe(exc)}",
            reason="encode",
        ) from exc


def frames_size(frames: Sequence[Buffer]) -> int:
    """How many bytes the frames have together."""
    return sum(frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames)


def decode(
    buffer: Buffer,
    *,
    trust: Trust = NOTHING_ASKED,
    key: str | None = None,
    brief: bool = False,
) -> Any:
    """Makes the object that one contiguous buffer holds.

    Arrays and tables of a writable buffer are views of it: the buffer must be private to the
    object. Of a read-only buffer they are copies, so that they are writable as they were.

    Args:
        buffer: The bytes.
        trust: What is asked of them.
        key: The key under which they were found, which a signature covers.
        brief: Whether to give `TOO_LONG`, and decode nothing, where `needs_worker` is true.

    Raises:
        UntrustedDataError: They are not what `trust` asks for; nothing was decoded or imported.
        SerializationError: The bytes are no whole and intact object, or it cannot be made here;
            `reason` says which. No other exception leaves, whatever the bytes.
    """
    view = _frames.flat_view(buffer)
    if trust.references or _frames.may_be_signed(view):
        if brief and len(view) > _INLINE_SIGNED:
            return TOO_LONG
        view = trust.check(view, key)
    header = _frames.read_header(view)
    if brief and _takes_long(view, header):
        return TOO_LONG
    codec = header.codec
    if trust.allow is not None:
        trust.check_codec(codec, key)
    inband, bodies = _frames.check_contents(view, header)
    serializer = BUILTIN.get(codec) or get_serializer(codec)
    if codec == _ARROW and trust.allow is not None:
        bodies = list(map(private, bodies))  # its offsets are checked, and then believed
    if not serializer.copies:
        bodies = [memoryview(bytearray(body)) if body.readonly else body for body in bodies]
    try:
        return serializer.decode(inband, bodies)
    except SerializationError:
        raise
    except (Exception, SystemExit) as exc:
        raise SerializationError(
            f"serializer {codec!r} cannot make the object from its bytes: {_describe(exc)}",
            reason="decode",
            hint=_decode_hint(exc),
        ) from exc


def needs_worker(buffer: Buffer) -> bool:
    """Whether `decode` may take so long (a millisecond) that it belongs on a worker thread.

    A peek at the header: a few microseconds. False for what is malformed, since `decode` then
    raises at once.
    """
    view = _frames.flat_view(buffer)
    try:
        if len(view) > _INLINE_SIGNED and _frames.signature_of(view) is not None:
            return True
        header = _frames.read_header(view)
    except SerializationError:
        return False
    return _takes_long(view, header)


def _takes_long(view: memoryview, header: _frames.Header) -> bool:
    serializer = BUILTIN.get(header.codec)
    if serializer is not None and header.end <= _INLINE_PICKLE:
        return len(header.lengths) > _INLINE_BODIES
    inband = header.inband[1] - header.inband[0]
    body = sum(header.lengths)
    if len(header.lengths) > _INLINE_BODIES or (header.sums is not None and body > _INLINE_COPY):
        return True
    if serializer is None:
        # An import, or user code whose cost is unknown.
        custom = _custom.get(header.codec)
        return ":" in header.codec if custom is None else inband + body > _INLINE_PICKLE
    if header.codec == "str":
        return inband + body > _INLINE_TEXT
    if serializer.copies or header.codec == _ARROW:  # which looks at all of a table
        return inband + body > _INLINE_COPY
    return inband > _INLINE_PICKLE or (view.readonly and body > _INLINE_COPY)


def register_serializer(serializer: Serializer) -> None:
    """Makes `serializer` known under its id, in this process; a second one replaces the first.

    Every process that reads must register it too, unless its id is an import string
    (``"package.module:attribute"``), which readers import by themselves.

    Raises:
        ConfigError: It is no serialiser, or the id is that of a built-in one.
    """
    problem = _why_no_serializer(serializer)
    if problem:
        raise ConfigError(f"cannot register {type(serializer).__qualname__}: {problem}")
    if serializer.id in BUILTIN:
        raise ConfigError(f"the id {serializer.id!r} is that of a built-in serializer")
    _custom[serializer.id] = serializer


def is_known(id: str) -> bool:
    """Whether a serialiser of this id is built in or registered; imports none."""
    return id in BUILTIN or id in _custom


def get_serializer(id: str) -> Serializer:
    """The serialiser of this id: built in, registered, or imported when it is an import string.

    Raises:
        SerializationError: With reason ``"codec"``: unknown, or it cannot be imported.
    """
    serializer = BUILTIN.get(id) or _custom.get(id)
    if serializer is None and ":" in id:
        serializer = _custom[id] = _import_serializer(id)
    if serializer is None:
        known = ", ".join(sorted(one for one in (*BUILTIN, *_custom) if ":" not in one))
        raise SerializationError(
            f"unknown serializer {id!r}; known are: {known}",
            reason="codec",
            hint="call proxyplane.serialization.register_serializer in this process too, "
            "or give the serializer an id of the form 'package.module:attribute'",
        )
    return serializer


def _encode_parts(
    obj: Any, serializer: Serializer | None, allow: frozenset[str] | None
) -> tuple[str, Parts]:
    if allow is not None:
        serializer = _accepted(obj, serializer, allow)
    if serializer is not None:
        problem = _why_no_serializer(serializer)
        if problem:
            raise ConfigError(f"cannot encode with {serializer!r}: {problem}")
        if ":" not in serializer.id:
            get_serializer(serializer.id)  # better now than in every reader
        return serializer.id, _call_encode(serializer, obj)
    if type(obj) is bytes or type(obj) is bytearray:
        codec = type(obj).__name__
        return codec, BUILTIN[codec].encode(obj)
    if type(obj) is str:
        try:
            return "str", BUILTIN["str"].encode(obj)
        except UnicodeEncodeError:
            pass  # lone surrogates, which pickle can carry
    try:
        return "pickle", BUILTIN["pickle"].encode(obj)
    except Exception:  # noqa: BLE001
        # Whatever it was: cloudpickle takes the object, or its error names the reason, with
        # pickle's as the context.
        return "cloudpickle", _call_encode(BUILTIN["cloudpickle"], obj)


def _accepted(obj: Any, serializer: Serializer | None, allow: frozenset[str]) -> Serializer | None:
    """The serialiser for an object, of those that readers accept; None to choose as always."""
    if serializer is None:
        if "pickle" in allow and "cloudpickle" in allow:
            return None
        id = natural_codec(obj)
        if id not in allow and "pickle" in allow:
            id = "pickle"
        serializer = BUILTIN.get(id) if id in allow else None
    if serializer is not None and serializer.id in (FAILURE_PICKLED, FAILURE_TOLD):
        return serializer  # the store has chosen the one that is accepted
    if serializer is None or serializer.id not in allow:
        kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
        with_what = "" if serializer is None else f" by {serializer.id!r}"
        raise SerializationError(
            f"an object of type {kind} cannot be encoded{with_what}, since allow= accepts only "
            f"{', '.join(sorted(allow)) or 'nothing'}",
            reason="encode",
            hint="put bytes, text, a numpy array or an arrow table, give a serializer= that is "
            "accepted, or extend allow=",
        )
    return serializer


def _call_encode(serializer: Serializer, obj: Any) -> Parts:
    try:
        return serializer.encode(obj)
    except SerializationError:
        raise
    except Exception as exc:
        raise SerializationError(
            f"serializer {serializer.id!r} cannot encode an object of type "
            f"{type(obj).__module__}.{type(obj).__qualname__}: {_describe(exc)}",
            reason="encode",
        ) from exc


def _import_serializer(id: str) -> Serializer:
    module, _, path = id.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        problem = _why_no_serializer(found)
    except (Exception, SystemExit) as exc:
        raise SerializationError(
            f"cannot import the serializer {id!r}: {_describe(exc)}", reason="codec"
        ) from exc
    if problem:
        raise SerializationError(f"{id!r} names no serializer: {problem}", reason="codec")
    serializer: Serializer = found
    return serializer


def _why_no_serializer(obj: Any) -> str | None:
    if isinstance(obj, type):
        return "a class, where an instance is needed"
    if not (isinstance(getattr(obj, "id", None), str) and obj.id):
        return "its id is no string"
    if not (callable(getattr(obj, "encode", None)) and callable(getattr(obj, "decode", None))):
        return "it lacks encode or decode"
    return None if hasattr(obj, "copies") else "it does not say whether decode copies"


def _describe(exc: BaseException) -> str:
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001  # it is user code too
        text = "(its message cannot be shown)"
    return f"{type(exc).__name__}: {text[:500]}" if text else type(exc).__name__


def _decode_hint(exc: BaseException) -> str | None:
    if isinstance(exc, AttributeError | ImportError) and "__main__" in _describe(exc):
        return (
            "it was defined in the writer's main script, which this process does not run: move "
            "it to a module that both import, or encode it with the serializer 'cloudpickle'"
        )
    if isinstance(exc, ModuleNotFoundError):
        return f"install or make importable, in this process, what provides {exc.name!r}"
    return None
