"""Serialisers of arrays and tables that name no code, for readers that accept no pickle.

Their bytes come from writers that are not trusted: everything is checked before it is used.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pickle import PickleBuffer
from typing import Any, Final

import msgpack

from proxyplane.abc import Parts

__all__ = ["ArrowCodec", "NumpyCodec", "natural_codec"]

_INLINE_BELOW: Final = 512  # bytes; see `proxyplane._codecs.INLINE_BELOW`
_MOST_DIMENSIONS: Final = 64
# Numbers, texts, bytes, dates and durations. No objects, whose bytes would be addresses.
_DTYPE: Final = r"[<>|=][biufcSUVmM][0-9]{1,9}(\[[0-9]{0,9}[A-Za-z]{1,7}\])?"
# Reading a table of an older one could run code: CVE-2023-47248.
_OLDEST_ARROW: Final = 15


class NumpyCodec:
    """A numpy array of numbers, text, bytes or dates."""

    id = "numpy"
    copies = False

    def encode(self, obj: Any) -> Parts:
        np = sys.modules.get("numpy")
        if np is None or type(obj) is not np.ndarray:
            raise TypeError(f"expected exactly a numpy array, got {type(obj).__qualname__}")
        dtype = obj.dtype
        if dtype.metadata or not re.fullmatch(_DTYPE, dtype.str) or np.dtype(dtype.str) != dtype:
            raise TypeError(f"arrays of {dtype} need pickle")
        array = obj if obj.flags.c_contiguous or obj.flags.f_contiguous else obj.copy(order="C")
        order = "C" if array.flags.c_contiguous else "F"
        # Dates and durations refuse to export their memory.
        raw = PickleBuffer(array.view(np.int64) if dtype.kind in "mM" else array).raw()
        small = raw.nbytes < _INLINE_BELOW
        said = [
            dtype.str,
            order,
            obj.flags.writeable,
            list(obj.shape),
            bytes(raw) if small else b"",
        ]
        return Parts((msgpack.packb(said),), () if small else (raw,))

    def decode(self, inband: memoryview, buffers: Sequence[memoryview]) -> Any:
        import numpy as np

        said = msgpack.unpackb(inband, max_array_len=_MOST_DIMENSIONS, max_map_len=0)
        name, order, writeable, shape, small = said
        if not (isinstance(name, str) and re.fullmatch(_DTYPE, name) and order in ("C", "F")):
            raise ValueError("no such array")
        if not all(type(one) is int and one >= 0 for one in shape) or len(buffers) > 1:
            raise ValueError("no such shape")
        data = buffers[0] if buffers else bytearray(small)
        dtype = np.dtype(name)
        # The parameter is an int64 at least: without data, any memory will do.
        array: Any = np.ndarray(tuple(shape), dtype, data or bytearray(8), order=order)
        if array.nbytes != len(data) or dtype.hasobject:
            raise ValueError(f"{len(data)} bytes for an array of {array.nbytes}")
        array.flags.writeable = bool(writeable)
        return array


class ArrowCodec:
    """A table of pyarrow or polars, as an arrow stream."""

    id = "arrow"
    copies = False

    def encode(self, obj: Any) -> Parts:
        kind = _table_kind(obj)
        if kind is None:
            raise TypeError(f"expected a table of pyarrow or polars, got {type(obj).__qualname__}")
        import pyarrow as pa
        import pyarrow.ipc as ipc

        table, name = obj, None
        if kind.startswith("polars"):
            pl = sys.modules["polars"]
            name = obj.name if kind == "polars.Series" else None
            frame = obj.to_frame("") if kind == "polars.Series" else obj
            table = frame.to_arrow(compat_level=pl.CompatLevel.newest())
        sink = pa.BufferOutputStream()
        with ipc.new_stream(sink, table.schema) as writer:
            writer.write(table)
        return Parts((msgpack.packb([kind, name]),), (sink.getvalue(),))

    def decode(self, inband: memoryview, buffers: Sequence[memoryview]) -> Any:
        import pyarrow as pa
        import pyarrow.ipc as ipc

        if int(pa.__version__.partition(".")[0]) < _OLDEST_ARROW:
            raise ValueError(f"pyarrow {pa.__version__} is too old to read what is not trusted")
        kind, name = msgpack.unpackb(inband, max_array_len=2, max_map_len=0)
        (buffer,) = buffers
        table = ipc.open_stream(buffer).read_all()
        # The offsets inside are taken for true by whatever uses it.
        table.validate(full=True)
        if kind == "pyarrow.Table":
            return table
        if kind == "pyarrow.RecordBatch":
            batches = table.to_batches()
            return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)
        if kind not in ("polars.DataFrame", "polars.Series"):
            raise ValueError("no such table")
        import polars as pl

        try:
            frame: Any = pl.from_arrow(table, rechunk=False)
        except pl.exceptions.PanicException as error:  # no Exception, and not the end of anything
            raise ValueError(f"polars cannot read this table: {error}") from None
        return frame if kind == "polars.DataFrame" else frame.to_series(0).alias(name)


def natural_codec(obj: Any) -> str:
    """Id of the serialiser for an object that needs no pickle; ``"pickle"`` for any other."""
    kind: Any = type(obj)
    if kind in (bytes, bytearray, str):
        return str(kind.__name__)
    np = sys.modules.get("numpy")
    if np is not None and kind is np.ndarray:
        return NumpyCodec.id
    return "pickle" if _table_kind(obj) is None else ArrowCodec.id


def _table_kind(obj: Any) -> str | None:
    for library, names in (
        ("pyarrow", ("Table", "RecordBatch")),
        ("polars", ("DataFrame", "Series")),
    ):
        module = sys.modules.get(library)
        for name in names:
            if module is not None and type(obj) is getattr(module, name, None):
                return f"{library}.{name}"
    return None
