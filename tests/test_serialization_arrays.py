"""Arrays and tables: carried by their memory, and exact."""

from __future__ import annotations

import decimal
import mmap

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from proxyplane.serialization import (
    decode,
    encode,
    frames_size,
)
from support.encoding import (
    long_frame,
    packed,
    through,
)

arrays = hnp.arrays(
    dtype=hnp.scalar_dtypes()
    | hnp.unicode_string_dtypes()
    | hnp.byte_string_dtypes()
    | hnp.array_dtypes(hnp.floating_dtypes() | hnp.datetime64_dtypes()),
    shape=hnp.array_shapes(min_dims=0, min_side=0, max_side=20),
)


def rearranged(array, how):
    match how:
        case "F":
            return np.asfortranarray(array)
        case "T":
            return array.T
        case "strided":
            return array[::2] if array.ndim else array
        case "reversed":
            return array[::-1] if array.ndim else array
        case "read-only":
            array = array.copy()
            array.flags.writeable = False
            return array
        case "big-endian":
            return array.astype(array.dtype.newbyteorder(">"))
        case "broadcast":
            return np.broadcast_to(array, (3, *array.shape))
        case _:
            return array


class TestArrays:
    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(
        arrays,
        st.sampled_from(
            ["C", "F", "T", "strided", "reversed", "read-only", "big-endian", "broadcast"]
        ),
    )
    def test_every_dtype_and_layout(self, array, how):
        """Arrays of every dtype and layout come back with dtype, shape, values and writability."""
        array = rearranged(array, how)
        for back in (through(array), decode(packed(array)), through([array])[0]):
            assert type(back) is np.ndarray
            assert back.dtype == array.dtype
            assert back.shape == array.shape
            assert back.tobytes() == array.tobytes()
            if array.flags.c_contiguous or array.flags.f_contiguous:
                assert back.flags.writeable == array.flags.writeable
                assert back.flags.f_contiguous == array.flags.f_contiguous

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize(
        "dtype", ["f8", ">i4", "U7", "S3", "c16", "?", "M8[ns]", ">M8[D]", "m8[us]"]
    )
    def test_large_arrays_share_memory_both_ways(self, dtype, order):
        """Frames are the array's memory, and the decoded array is the buffer's."""
        array = np.zeros((100, 50), dtype=dtype, order=order)
        frames = encode({"a": [array]}, checksum=True)
        views = [np.frombuffer(frame, np.uint8) for frame in frames]
        assert sum(np.shares_memory(array, view) for view in views) == 1
        buffer = bytearray(b"".join(frames))
        back = decode(buffer)["a"][0]
        assert np.shares_memory(back, np.frombuffer(buffer, np.uint8))
        assert back.dtype == array.dtype
        back[1, 2] = 1
        assert bytes(buffer) != b"".join(frames)

    def test_strided_array_costs_the_reader_no_copy(self):
        """What must be copied is copied by the writer; the reader's array is its buffer."""
        array = np.arange(10_000.0)[::3]
        buffer = bytearray(packed(array))
        back = decode(buffer)
        assert np.shares_memory(back, np.frombuffer(buffer, np.uint8))
        np.testing.assert_array_equal(back, array)

    def test_strided_read_only_array(self):
        """A read-only array stays read-only when it had to be copied."""
        array = np.broadcast_to(np.arange(100), (100, 100))
        assert not through(array).flags.writeable

    def test_read_only_array(self):
        """A read-only array stays read-only, from a writable and from a read-only buffer."""
        array = np.arange(1000.0)
        array.flags.writeable = False
        data = packed(array)
        for buffer in (bytearray(data), data, memoryview(data)):
            assert not decode(buffer).flags.writeable

    def test_read_only_source_is_copied_once(self):
        """From shared bytes each reader gets its own writable array; the bytes stay as they are."""
        array = np.arange(1000.0)
        data = packed(array)
        kept = bytes(bytearray(data))
        one, two = decode(data), decode(memoryview(data))
        one[:] = -1
        assert one.flags.writeable
        np.testing.assert_array_equal(two, array)
        assert not np.shares_memory(one, np.frombuffer(data, np.uint8))
        assert data == kept

    @pytest.mark.parametrize("access", [mmap.ACCESS_COPY, mmap.ACCESS_READ])
    def test_mapped_file(self, tmp_path, access):
        """From a privately mapped file the array is the map, writable; the file stays as it is."""
        path = tmp_path / "object"
        array = np.arange(5000)
        path.write_bytes(packed(array))
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=access)
        back = decode(mapped)
        shares = np.shares_memory(back, np.frombuffer(mapped, np.uint8))
        assert shares == (access == mmap.ACCESS_COPY)
        back[0] = 99
        np.testing.assert_array_equal(decode(path.read_bytes()), array)

    @pytest.mark.parametrize(
        "array",
        [
            np.array([1, "a", None, [2.5]], dtype=object),
            np.array([(1, "a")], dtype=[("n", "i4"), ("o", object)]),
            np.zeros(200, dtype=[("a", "i4"), ("b", "f8")]),
            np.zeros(200, dtype=[("a", "M8[s]"), ("b", "f8")])[::2],
            np.rec.array([(1, 2.0)] * 100, names="a,b"),
            np.array([1, 2], dtype=np.dtype("f8", metadata={"unit": "m"})),
            np.array(3.5),
            np.array("2020-01-01", "M8[D]"),
            np.array(["NaT", "2020"], "M8[Y]"),
            np.empty((0, 3, 0)),
        ],
        ids=lambda array: f"{type(array).__name__}-{array.dtype}"[:30],
    )
    def test_uncommon_arrays(self, array):
        """Object, structured, record, 0-d and empty arrays come back as they were."""
        back = through(array)
        assert type(back) is type(array)
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.tolist() == array.tolist()

    def test_nested_records(self):
        """Records of records and of arrays come back."""
        array = np.zeros(
            50, [("a", "i4"), ("b", "f8", (2, 2)), ("c", [("t", "M8[s]"), ("e", "O")])]
        )
        for one in (array, array[["a", "b"]], array["c"][["t"]], array[::2]):
            back = through(one)
            assert back.dtype == one.dtype
            np.testing.assert_array_equal(back, one)

    def test_masked_array(self):
        """Values and mask come back."""
        array = np.ma.masked_array(np.arange(1000), np.arange(1000) % 2)
        back = through(array)
        np.testing.assert_array_equal(back.data, array.data)
        np.testing.assert_array_equal(back.mask, array.mask)

    @pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="numpy 1 has no StringDType")
    def test_string_dtype(self):
        """Variable-length strings come back."""
        array = np.array(["a", "b" * 100] * 100, dtype=np.dtypes.StringDType())
        for one in (array, array[::2]):
            back = through(one)
            assert back.dtype == one.dtype
            assert back.tolist() == one.tolist()

    def test_memmap_is_carried_without_a_copy(self, tmp_path):
        """An array on a file is carried like one in memory."""
        array = np.memmap(tmp_path / "a", dtype="f8", mode="w+", shape=(1000,))
        array[:] = np.arange(1000)
        frames = encode(array)
        assert any(np.shares_memory(array, np.frombuffer(one, np.uint8)) for one in frames)
        back = decode(b"".join(frames))
        assert type(back) is np.memmap
        np.testing.assert_array_equal(back, array)

    def test_cloudpickle_carries_memory_too(self):
        """What pickle refuses does not make the arrays and frames beside it be copied."""
        dates, frame = np.zeros(1000, "M8[s]"), long_frame()
        frames = encode([lambda: 1, dates, frame])
        views = [np.frombuffer(one, np.uint8) for one in frames]
        assert any(np.shares_memory(dates, view) for view in views)
        assert any(np.shares_memory(frame["f"].to_numpy(), view) for view in views)
        back = decode(b"".join(frames))
        np.testing.assert_array_equal(back[1], dates)
        assert back[2].equals(frame, null_equal=True)

    def test_copyreg_of_the_user_wins(self):
        """What an application registered with copyreg for arrays is respected."""
        import copyreg

        copyreg.pickle(np.ndarray, lambda array: (list, (array.tolist(),)))
        try:
            assert through(np.arange(3)) == [0, 1, 2]
        finally:
            del copyreg.dispatch_table[np.ndarray]
        assert type(through(np.arange(3))) is np.ndarray


def body_bytes(obj):
    """How many bytes travel outside of the first frame."""
    return frames_size(encode(obj)[1:])


class TestTables:
    def test_pandas(self):
        """A frame of mixed columns comes back equal, with index and dtypes."""
        n = 2000
        frame = pd.DataFrame(
            {
                "f": np.linspace(0, 1, n),
                "i": np.arange(n),
                "s": ["text"] * n,
                "c": pd.Categorical(["a", "b"] * (n // 2)),
                "d": pd.date_range("2020", periods=n, freq="s"),
                "z": pd.date_range("2020", periods=n, freq="s", tz="Europe/Paris"),
                "n": pd.array([1, None] * (n // 2), dtype="Int64"),
                "o": [{"k": 1}] * n,
            },
            index=pd.MultiIndex.from_arrays([range(n), ["x"] * n], names=["a", "b"]),
        )
        for one in (frame, frame[::3], frame[:0], frame["z"], frame.index):
            check = pd.testing.assert_frame_equal if one.ndim == 2 else None
            for back in (through(one), decode(packed(one, checksum=True))):
                if check:
                    check(back, one)
                else:
                    assert back.equals(one)

    def test_pandas_shares_memory_both_ways(self):
        """Numbers and dates of a frame are carried and read without a copy, and are writable."""
        values = np.random.default_rng(1).random((4000, 3))
        stamps = np.arange(4000).astype("M8[ns]")
        frame = pd.DataFrame(values, columns=list("abc"), copy=False)
        frame["d"] = pd.Series(stamps, copy=False)
        frames = encode(frame)
        views = [np.frombuffer(one, np.uint8) for one in frames]
        assert any(np.shares_memory(frame["a"].to_numpy(), view) for view in views)
        assert any(np.shares_memory(frame["d"].to_numpy(), view) for view in views)
        buffer = bytearray(b"".join(frames))
        whole = np.frombuffer(buffer, np.uint8)
        back = decode(buffer)
        assert np.shares_memory(back["a"].to_numpy(), whole)
        assert np.shares_memory(back["d"].to_numpy(), whole)
        back.loc[0, "a"] = 5.0
        assert back["a"][0] == 5.0

    @pytest.mark.parametrize("nested", [False, True])
    def test_polars(self, nested):
        """A large frame comes back with schema, values and sortedness, without a copy."""
        frame = long_frame().with_columns(pl.col("i").set_sorted())
        frames = encode({"f": frame} if nested else frame)
        buffer = bytearray(b"".join(frames))
        back = decode(buffer)["f"] if nested else decode(buffer)
        assert back.schema == frame.schema
        assert back.equals(frame, null_equal=True)
        assert back.flags == frame.flags
        assert len(frames[0]) < 10_000
        memory = np.frombuffer(buffer, np.uint8)
        assert np.shares_memory(back["f"].to_numpy(), memory)
        assert any(
            np.shares_memory(frame["f"].to_numpy(), np.frombuffer(one, np.uint8)) for one in frames
        )

    def test_polars_series(self):
        """A large series keeps its name, dtype and sortedness."""
        for series in (
            pl.Series("x", range(20_000, 0, -1)).set_sorted(descending=True),
            pl.Series("", ["abc"] * 20_000),
            long_frame()["t"],
        ):
            back = through(series)
            assert (back.name, back.dtype, back.flags) == (series.name, series.dtype, series.flags)
            assert back.equals(series, null_equal=True)
            assert body_bytes(series) > 0

    @pytest.mark.parametrize(
        "column",
        [
            pl.Series(["a", "b"] * 10_000, dtype=pl.Categorical),
            pl.Series(["a", "b"] * 10_000, dtype=pl.Enum(["b", "a"])),
            pl.Series([[1, 2], None] * 10_000),
            pl.Series([{"a": 1, "b": "x"}] * 10_000),
            pl.Series([decimal.Decimal("1.20")] * 10_000),
            pl.Series([2**100, None] * 10_000, dtype=pl.Int128),
            pl.Series([None] * 10_000),
        ],
        ids=lambda series: str(series.dtype)[:12],
    )
    def test_other_polars_types(self, column):
        """Types that do not pass arrow exactly go the way polars pickles them."""
        for obj in (column, column.to_frame("x")):
            back = through(obj)
            assert back.equals(obj, null_equal=True)
            expected = obj.dtype if isinstance(obj, pl.Series) else obj.schema
            assert (back.dtype if isinstance(obj, pl.Series) else back.schema) == expected

    @pytest.mark.parametrize(
        "frame",
        [pl.DataFrame(), pl.DataFrame({"a": []}), pl.DataFrame({"a": [1, 2]}), pl.Series([1.5])],
        ids=["no-columns", "no-rows", "small", "series"],
    )
    def test_small_polars(self, frame):
        """A small frame needs no pyarrow on either side."""
        assert through(frame).equals(frame)
        assert b"_codecs" not in packed(frame)

    def test_polars_slices_carry_only_themselves(self):
        """A slice or a filter of a large frame does not drag the whole along."""
        frame = long_frame()
        texts = pl.DataFrame({"s": [f"row {i} is rather long" for i in range(100_000)]})
        for part in (
            frame[5:10],
            frame[100:9000],
            frame.filter(pl.col("i") % 100 == 7),
            texts[5000:9000],
            texts.gather_every(25),
        ):
            assert through(part).equals(part, null_equal=True)
            assert frames_size(encode(part)) < 2.5 * part.estimated_size() + 10_000

    def test_arrow(self):
        """Tables, batches, columns and arrays come back equal, views of the buffer."""
        table = long_frame().to_arrow().replace_schema_metadata({"k": "v"})
        batch = table.to_batches()[0]
        for obj in (table, batch, table["s"], batch["f"], table.schema, table[:0]):
            buffer = bytearray(packed(obj))
            back = decode(buffer)
            assert type(back) is type(obj)
            assert back.equals(obj)
        buffer = bytearray(packed(table))
        back = decode(buffer)
        assert back.schema.metadata == {b"k": b"v"}
        assert np.shares_memory(back["f"].chunk(0).to_numpy(), np.frombuffer(buffer, np.uint8))

    def test_arrow_slices_carry_only_themselves(self):
        """Ten rows of a large table are a few bytes, not the table."""
        table = long_frame().to_arrow().replace_schema_metadata({"k": "v"})
        part = table.slice(5, 10)
        for obj in (part, part.to_batches()[0], part["s"], table.slice(5, 0)):
            back = through([obj])[0]
            assert type(back) is type(obj)
            assert back.equals(obj)
            assert frames_size(encode(obj)) < 20_000
        assert through(part).schema.equals(part.schema, check_metadata=True)

    def test_arrow_dictionary_slice(self):
        """Dictionary columns survive being cut."""
        table = pa.table({"d": pa.array([f"k{i % 7}" for i in range(100_000)]).dictionary_encode()})
        part = table.slice(50, 20)
        assert through(part).equals(part)
        assert frames_size(encode(part)) < 20_000
