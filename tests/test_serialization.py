"""Objects to frames and back: exact, without copies, and never a wrong object."""

from __future__ import annotations

import array
import collections
import dataclasses
import pickle
import re
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyplane import _frames
from proxyplane.abc import Parts
from proxyplane.exceptions import ConfigError, SerializationError
from proxyplane.serialization import (
    decode,
    encode,
    frames_size,
    get_serializer,
    register_serializer,
)
from support.encoding import (
    Colour,
    Loud,
    Point,
    Refuses,
    Slotted,
    Upper,
    _explode,
    forged,
    packed,
    reason_of,
    same,
    through,
)

FORMAT = Path(__file__).parent.parent / "docs" / "format.md"


def address(buffer):
    return np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0]


def hexdump(data):
    lines, above, starred = [], None, False
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        if row == above and at + 16 < len(data):
            if not starred:
                lines.append("*")
            starred = True
            continue
        above, starred = row, False
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:04x}  {row.hex(' '):<47}  {text}")
    return "\n".join([*lines, f"{len(data):04x}"])


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary(max_size=2000)
    | st.binary(max_size=2000).map(bytearray)
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.uuids()
    | st.builds(Point, st.integers(), st.text())
    | st.builds(Slotted, st.text())
    | st.just(Colour.RED)
)


hashable = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.uuids()


values = st.recursive(
    scalars | st.sets(hashable) | st.frozensets(hashable),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner)
        | st.lists(inner).map(collections.deque)
    ),
    max_leaves=20,
)


class TestRoundTrip:
    @given(values, st.booleans())
    def test_values(self, value, checksum):
        """Any nest of Python values comes back equal, of the same types."""
        assert same(through(value, checksum=checksum), value)

    @given(values)
    def test_read_only_buffers(self, value):
        """It comes back equal from bytes, from a read-only view and from an odd address."""
        data = packed(value)
        assert same(decode(data), value)
        assert same(decode(memoryview(data)), value)
        assert same(decode(memoryview(b"x" + data)[1:]), value)

    @given(st.text(st.characters(), min_size=0))
    def test_any_text(self, text):
        """Every string comes back, lone surrogates too."""
        assert through(text) == text

    @pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 70_000])
    @pytest.mark.parametrize("make", [bytes, bytearray, lambda n: "x" * n, lambda n: "漢" * n])
    def test_sizes_around_the_limits(self, make, size):
        """A string of bytes or text of any size comes back as its own type."""
        value = make(size)
        for checksum in (False, True):
            back = through(value, checksum=checksum)
            assert type(back) is type(value)
            assert back == value
            assert same(through([value], checksum=checksum), [value])

    def test_subclass_of_bytes(self):
        """A subclass of bytes keeps its class and its attributes."""
        value = Loud(b"abc" * 1000)
        value.level = 11
        back = through(value)
        assert type(back) is Loud
        assert (back, back.level) == (value, 11)

    @pytest.mark.parametrize(
        "value", [2**64, -(2**63) - 1, 10**4000, 1 << 100_000], ids=int.bit_length
    )
    def test_big_integers(self, value):
        """Integers have no limit."""
        assert through(value) == value

    def test_lone_surrogate_is_not_replaced(self):
        """What UTF-8 cannot carry goes by pickle."""
        value = "a\ud800" * 1000
        assert through(value) == value
        assert b"pickle" in packed(value)[:64]

    def test_the_same_array_twice(self):
        """Identity inside one object survives, and the body is carried once."""
        a = np.arange(1000.0)
        frames = encode([a, a])
        assert frames_size(frames) < 1.5 * a.nbytes
        first, second = through([a, a])
        assert first is second

    def test_cycle(self):
        """A list that holds itself comes back so."""
        value: list = [np.arange(500)]
        value.append(value)
        back = through(value)
        assert back[1] is back

    @pytest.mark.parametrize("count", [0, 1, 63, 600])
    def test_many_bodies(self, count):
        """Any number of bodies, each at a multiple of 64 bytes."""
        value = [np.full(64 + n, n + 1) for n in range(count)]
        data = packed(value, checksum=True)
        for a, b in zip(decode(bytearray(data)), value, strict=True):
            np.testing.assert_array_equal(a, b)
        starts = [data.index(a.tobytes()) for a in value]
        assert all(start % 64 == 0 for start in starts)

    def test_empty_body(self):
        """A body without bytes is a body."""

        class Two:
            id, copies = "tests.two", False

            def encode(self, obj):
                return Parts((), (b"", b"x" * 10, b""))

            def decode(self, inband, buffers):
                return len(inband), [bytes(one) for one in buffers]

        register_serializer(Two())
        for checksum in (False, True):
            data = packed(0, serializer=Two(), checksum=checksum)
            assert decode(data) == (0, [b"", b"x" * 10, b""])
            assert reason_of(data[:-1]) == "truncated"
            assert reason_of(data + b"\0") == "trailing"


class TestCopies:
    @pytest.mark.parametrize("make", [bytes, bytearray])
    def test_bytes_frames_are_the_object(self, make):
        """The frame of a large bytes or bytearray is its memory."""
        value = make(100_000)
        assert address(encode(value)[-1]) == address(value)

    @pytest.mark.parametrize("make", [bytes, bytearray])
    def test_bytes_in_a_container(self, make):
        """Large bytes in a container are a frame of their own, not a copy."""
        value = make(200_000)
        addresses = [address(one) for one in encode({"a": [value, 1]})]
        assert address(value) in addresses

    def test_encode_allocates_next_to_nothing(self):
        """Encoding 64 MB of array and bytes allocates some kilobytes."""
        import tracemalloc

        value = {"a": np.zeros(4_000_000), "b": bytes(32_000_000)}
        encode(value)
        tracemalloc.start()
        try:
            frames = encode(value)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert frames_size(frames) > 64_000_000
        assert peak < 1_000_000

    def test_decode_of_an_array_allocates_next_to_nothing(self):
        """Decoding an array, in-band part included, makes no copy of the buffer."""
        import tracemalloc

        buffer = bytearray(packed(np.zeros(4_000_000)))
        decode(buffer)
        tracemalloc.start()
        try:
            back = decode(buffer)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert back.nbytes == 32_000_000
        assert peak < 100_000

    @pytest.mark.parametrize("value", [b"x" * 1_000_000, bytearray(1_000_000), "x" * 1_000_000])
    def test_decode_of_bytes_costs_one_copy(self, value):
        """Bytes and text are copied once, from a read-only buffer too."""
        import tracemalloc

        data = packed(value)
        decode(data)
        tracemalloc.start()
        try:
            back = decode(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert back == value
        assert peak < 1_200_000

    def test_bytearray_cannot_be_resized_while_framed(self):
        """The announced lengths stay true: resizing is refused until the frames are gone."""
        value = bytearray(100_000)
        for obj in (value, [value]):
            frames = encode(obj)
            with pytest.raises(BufferError):
                value.extend(b"more")
            del frames
            value.extend(b"more")

    def test_frames_are_flat_bytes(self):
        """Every frame has as many items as bytes, so a connector may slice it."""
        value = [
            np.zeros((30, 30), order="F"),
            np.zeros(100, "M8[s]"),
            bytearray(100_000),
            "x" * 999,
        ]
        for frame in encode(value):
            assert memoryview(frame).nbytes == len(frame)
        assert frames_size(encode(value)) == len(packed(value))

    def test_frames_size_counts_bytes(self):
        """Views of wider items count in bytes."""
        assert frames_size([b"abc", memoryview(np.zeros(10)), bytearray(2)]) == 85
        assert frames_size([]) == 0


class TestCloudpickle:
    def test_lambda_and_closure(self):
        """What pickle refuses goes by cloudpickle, arrays still without a copy."""
        array = np.arange(1000.0)
        frames = encode(lambda x: array + x)
        assert any(np.shares_memory(array, np.frombuffer(one, np.uint8)) for one in frames)
        np.testing.assert_array_equal(decode(b"".join(frames))(1), array + 1)

    def test_local_class(self):
        """Instances of a local class keep class and state."""

        @dataclasses.dataclass
        class Local:
            x: int

        back = through(Local(3))
        assert type(back).__name__ == "Local"
        assert back.x == 3

    def test_only_when_pickle_fails(self):
        """An importable function is carried by name."""
        assert b"cloudpickle" not in packed(_explode)
        assert through(_explode) is _explode

    def test_by_choice(self):
        """A serialiser can be chosen, and no other is then tried."""
        assert through(Point(1), serializer=get_serializer("cloudpickle")) == Point(1)
        with pytest.raises(SerializationError) as caught:
            encode(lambda: 0, serializer=get_serializer("pickle"))
        assert caught.value.reason == "encode"

    @pytest.mark.parametrize(
        "make",
        [
            threading.Lock,
            Refuses,
            lambda: (i for i in ()),
            lambda: pickle.PickleBuffer(np.zeros(2000)[::2]),
        ],
        ids=["lock", "refuses", "generator", "strided-buffer"],
    )
    def test_what_nothing_encodes(self, make):
        """An object that cannot be encoded is a typed error that names its type and the cause."""
        obj = make()
        with pytest.raises(SerializationError, match=type(obj).__qualname__) as caught:
            encode(obj)
        assert caught.value.reason == "encode"
        assert caught.value.__cause__ is not None

    def test_too_deep(self):
        """A nest too deep for pickle is a typed error."""
        deep: list = []
        for _ in range(200_000):
            deep = [deep]
        with pytest.raises(SerializationError) as caught:
            encode(deep)
        assert caught.value.reason == "encode"
        while deep:  # freeing it at once would overflow the stack of some versions
            deep = deep.pop()


broken = object()


class TestRegistry:
    @pytest.mark.parametrize("id", ["pickle", "cloudpickle", "bytes", "bytearray", "str"])
    def test_built_in(self, id):
        """The built-in serialisers are found by id, and say their id."""
        assert get_serializer(id).id == id

    def test_import_string(self):
        """A serialiser is imported by the id in the header, unregistered."""
        assert through("abc", serializer=Upper()) == "ABC"

    @pytest.mark.parametrize(
        "id",
        [
            ":",
            "a:",
            ":b",
            "nosuchmodule_x:y",
            f"{__name__}:nothing",
            f"{__name__}:broken",
            f"{__name__}:Upper",
            "..:x",
            "os:path.nothing",
        ],
    )
    def test_import_string_that_fails(self, id):
        """An id that cannot be imported, or names no serialiser, is reason codec."""
        assert reason_of(forged({"codec": id, "inband": 0, "crc": 0})) == "codec"

    def test_unknown_id_lists_the_known(self):
        """An unknown id is an error that lists the known ones."""
        with pytest.raises(
            SerializationError, match="arrow, bytearray, bytes, cloudpickle, numpy, pickle, str"
        ):
            get_serializer("nope")

    def test_encode_with_an_unregistered_serializer(self):
        """An id that no reader could find is refused when writing."""

        class Nowhere(Upper):
            id = "tests.nowhere"

        with pytest.raises(SerializationError) as caught:
            encode("x", serializer=Nowhere())
        assert caught.value.reason == "codec"
        register_serializer(Nowhere())
        assert through("x", serializer=Nowhere()) == "X"

    @pytest.mark.parametrize("bad", [object(), Upper, None, get_serializer("pickle")])
    def test_register_refuses(self, bad):
        """What is no serialiser, or has a built-in id, cannot be registered."""
        with pytest.raises(ConfigError):
            register_serializer(bad)

    def test_buffers_of_a_custom_serializer(self):
        """Any contiguous buffer may be a part; it reaches the reader private and writable."""

        class Raw:
            id, copies = "tests.raw", False

            def encode(self, obj):
                return Parts((array.array("i", [1, 2]), b""), (obj, bytearray(b"abc")))

            def decode(self, inband, buffers):
                return inband, buffers

        register_serializer(Raw())
        data = packed(np.ones((3, 4), order="F"), serializer=Raw())
        for buffer in (data, bytearray(data)):
            inband, (first, second) = decode(buffer)
            assert inband.cast("i").tolist() == [1, 2]
            assert first.cast("d").tolist() == [1.0] * 12
            assert not first.readonly
            second[0] = 0
        assert data == packed(np.ones((3, 4), order="F"), serializer=Raw())

    @pytest.mark.parametrize("part", [np.ones((4, 4))[::2, ::2], "text", 3])
    def test_parts_that_are_no_buffers(self, part):
        """A serialiser that returns something else is a typed error."""

        class Wrong(Upper):
            id = "tests.wrong"

            def encode(self, obj):
                return Parts((), (part,))

        register_serializer(Wrong())
        with pytest.raises(SerializationError) as caught:
            encode("x", serializer=Wrong())
        assert caught.value.reason == "encode"

    def test_plain_codecs_take_their_type_only(self):
        """The codec of bytes refuses a subclass, which would come back as plain bytes."""
        for obj in (Loud(b"x"), bytearray(b"x"), "x"):
            with pytest.raises(SerializationError):
                encode(obj, serializer=get_serializer("bytes"))


def test_many_threads():
    """Threads encode and decode at once without disturbing each other."""
    value = {"a": np.arange(1000), "id": uuid.uuid4(), "f": lambda: 1}
    errors = []

    def work():
        try:
            for _ in range(50):
                assert through(value)["id"] == value["id"]
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_the_document_is_true():
    """Each dump in the format document is what the encoder writes, byte by byte."""
    text = FORMAT.read_text(encoding="utf-8")
    pairs = re.findall(r"```python\n(.*?)```\s+```text\n(.*?)```", text, re.DOTALL)
    assert len(pairs) == 2
    for code, dump in pairs:
        space: dict = {}
        exec(code, space)
        assert hexdump(space["data"]) == dump.rstrip("\n")


def test_the_document_names_the_constants():
    """Magic, version and alignment of the document are those of the code."""
    text = FORMAT.read_text(encoding="utf-8")
    assert f"`{_frames.MAGIC.hex(' ')}`" in text
    assert f"# The byte format, version {_frames.VERSION}\n" in text
    assert f"multiple of {_frames.ALIGN} bytes" in text
