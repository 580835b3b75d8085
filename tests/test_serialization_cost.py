"""What may stall an event loop is told before it is done."""

from __future__ import annotations

import array
import collections
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from proxyplane import _frames
from proxyplane.exceptions import SerializationError
from proxyplane.serialization import (
    TOO_LONG,
    decode,
    encode_may_stall,
    needs_worker,
    register_serializer,
)
from support.encoding import (
    Point,
    Slotted,
    Upper,
    forged,
    long_frame,
    packed,
)


class TestStalls:
    @pytest.mark.parametrize(
        "value",
        [1, "x" * 1000, b"x" * 100_000, {"a": 1}, np.zeros(10), [np.zeros(1000)] * 100, Point(1)],
        ids=lambda value: type(value).__name__,
    )
    def test_small_objects_stay(self, value):
        """Small objects are encoded and decoded where they are."""
        assert not encode_may_stall(value, checksum=True)
        assert not needs_worker(packed(value, checksum=True))

    def test_brief(self):
        """To decode briefly is to decode unless it stalls, wherever the header was seen before."""
        for value in (1, "x" * 1000, b"x" * 2000, "x" * 3_000_000, bytes(3_000_000)):
            data = bytearray(packed(value))
            for _ in range(2):
                found = decode(data, brief=True)
                assert (found is TOO_LONG) is needs_worker(data)
                assert found is TOO_LONG or found == value
        with pytest.raises(SerializationError):
            decode(packed(1)[:-1], brief=True)

    def test_large_array(self):
        """A large array stalls only when it is copied or checked."""
        array = np.zeros(1_000_000)
        for one in (array, array.reshape(1000, -1).T, array.view("M8[s]"), {"a": [array]}):
            assert not encode_may_stall(one)
            assert encode_may_stall(one, checksum=True)
        assert encode_may_stall(array[::2])
        assert not needs_worker(bytearray(packed(array)))
        assert needs_worker(packed(array))
        assert needs_worker(bytearray(packed(array, checksum=True)))

    def test_large_bytes_and_text(self):
        """Bytes are carried for nothing and cost a copy on reading; text costs both times."""
        for value in (bytes(3_000_000), bytearray(3_000_000)):
            assert not encode_may_stall(value)
            assert encode_may_stall(value, checksum=True)
            assert needs_worker(bytearray(packed(value)))
        assert encode_may_stall("x" * 3_000_000)
        assert needs_worker(packed("x" * 3_000_000))
        assert encode_may_stall({"a": bytes(3_000_000)})

    @pytest.mark.parametrize(
        "make",
        [
            lambda: list(range(100_000)),
            lambda: {"a": {"b": set(range(5000))}},
            lambda: Point(list(range(5000))),
            lambda: Slotted(list(range(5000))),
            lambda: [Point(i) for i in range(5000)],
            lambda: [str(i) * 2000 for i in range(900)],
            lambda: collections.deque(range(5000)),
            lambda: array.array("d", bytes(4_000_000)),
            lambda: np.array([[1]] * 5000, dtype=object),
            lambda: [lambda: 0],
            lambda: long_frame(),
            lambda: long_frame().to_pandas(),
            lambda: long_frame().to_arrow(),
            lambda: [pd.Series([1.0])] * 1 + [pd.Series([1.0]) for _ in range(200)],
        ],
    )
    def test_objects_that_stall_the_writer(self, make):
        """Many nodes, wherever they are, go to a worker."""
        assert encode_may_stall(make())

    def test_objects_that_stall_the_reader(self):
        """A large in-band part, or very many bodies, goes to a worker."""
        assert needs_worker(packed(list(range(100_000))))
        assert needs_worker(bytearray(packed([np.zeros(64) for _ in range(2000)])))

    def test_cycle_ends(self):
        """A small cycle is walked once."""
        value: list = [1]
        value.append(value)
        assert not encode_may_stall(value)

    def test_small_table(self):
        """Small tables stay."""
        for value in (pd.DataFrame({"a": [1]}), pl.DataFrame({"a": [1]}), pa.table({"a": [1]})):
            assert not encode_may_stall(value)

    def test_an_object_with_its_own_reduce_is_not_looked_into(self):
        """No attribute of an object that says how to pickle itself is touched."""

        class Touchy:
            __slots__ = ("target",)

            def __reduce_ex__(self, protocol):
                return int, ()

            def __getattribute__(self, name):
                raise AssertionError(name)

        Touchy.__qualname__ = "Touchy"
        touchy = Touchy()
        touchy.target = list(range(100_000))
        assert not encode_may_stall([touchy])

    def test_custom_serializer(self):
        """An unknown one needs a worker when it must be imported, or when there is much to do."""

        class Known(Upper):
            id = "tests.known"

        register_serializer(Known())
        assert not needs_worker(packed("x", serializer=Known()))
        assert needs_worker(packed("x" * 100_000, serializer=Known()))
        assert needs_worker(forged({"codec": "never_imported:x", "inband": 0, "crc": 0}))
        assert not needs_worker(forged({"codec": "nope", "inband": 0, "crc": 0}))

    @pytest.mark.parametrize("data", [b"", b"x", _frames.MAGIC, bytes(100)])
    def test_malformed(self, data):
        """What is malformed needs no worker: decoding raises at once."""
        assert needs_worker(data) is False


def test_imports_of_heavy_libraries():
    """Encoding and decoding plain objects imports no library that the process has not."""
    code = (
        "import sys, threading\n"
        "from proxyplane.serialization import *\n"
        "value = {'a': [1, b'x' * 1000], 'b': threading.Thread}\n"
        "assert not encode_may_stall(value)\n"
        "data = b''.join(encode(value))\n"
        "assert decode(data) == value and not needs_worker(data)\n"
        "heavy = {'numpy', 'pandas', 'polars', 'pyarrow', 'cloudpickle', 'redis', 'anyio'}\n"
        "heavy |= {'torch', 'jax'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"
