"""The built-in serialisers: pickle, cloudpickle, and the types that need neither.

What pickle would copy although it need not (strided, datetime and file-backed arrays, tensors,
polars frames, slices of arrow tables) is handed to it in a form that it carries as it is. Encoded
objects name `arrow_from_ipc` and `polars_from_arrow`, so these keep their names and arguments.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeAlias

from proxyplane._plain_codecs import ArrowCodec, NumpyCodec
from proxyplane._tensors import jax_reducers, torch_reducers
from proxyplane.abc import Buffer, Parts, Serializer

__all__ = ["BUILTIN", "INLINE_BELOW", "arrow_from_ipc", "polars_from_arrow"]

Reduced: TypeAlias = Any
Reducers: TypeAlias = dict[type, Callable[[Any], Reduced]]

# A body costs a header entry, two frames and 31 bytes of padding on average, so what is smaller
# than this goes in-band, where the checksum covers it as well.
INLINE_BELOW = 512

# Below this a table goes the way its own library pickles it: nothing is gained, and a reader of
# a small polars frame needs no pyarrow.
SMALL_TABLE = 64 * 1024

# The polars types whose way through arrow gives back the same schema and values; others (named
# categories, objects, 128-bit integers) are left to polars' own pickle.
POLARS_EXACT = frozenset(
    f"{kind}{bits}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)
) | {"Float32", "Float64", "Boolean", "String", "Binary", "Date", "Time", "Datetime", "Duration"}


class _Sink:
    """A file for a pickler: `write` keeps what it gets, so a large bytes object is not copied."""

    __slots__ = ("chunks", "views", "write")

    def __init__(self) -> None:
        self.chunks: list[Buffer] = []
        self.views: list[Buffer] = []
        self.write: Callable[[Buffer], object] = self.chunks.append

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """Takes a buffer out of band; True asks the pickler to write it in-band instead."""
        view = buffer.raw()
        if view.nbytes < INLINE_BELOW:
            return True
        self.views.append(view)
        return False

    @property
    def parts(self) -> Parts:
        return Parts(self.chunks, self.views)


class PickleCodec:
    """Pickle protocol 5; large buffers travel as bodies."""

    id = "pickle"
    copies = False

    def encode(self, obj: Any) -> Parts:
        sink = _Sink()
        pickler = pickle.Pickler(sink, 5, buffer_callback=sink.take)
        reducers = _loaded_reducers()
        if reducers:
            # A plain dict: a ChainMap costs a microsecond for every instance that is pickled.
            pickler.dispatch_table = {**reducers, **copyreg.dispatch_table}
        pickler.dump(obj)
        return sink.parts

    def decode(self, inband: memoryview, buffers: Sequence[memoryview]) -> Any:
        return pickle.loads(inband, buffers=buffers)


class CloudpickleCodec:
    """Cloudpickle: also carries lambdas, local functions and classes, by value."""

    id = "cloudpickle"
    copies = False

    def encode(self, obj: Any) -> Parts:
        # Imported on first use: it takes as long as asyncio to import.
        import cloudpickle

        sink = _Sink()
        pickler = cloudpickle.Pickler(sink, 5, buffer_callback=sink.take)
        # By the descriptor of C: the class has an attribute of this name, which hides it.
        table = {**_loaded_reducers(), **pickler.dispatch_table}
        vars(pickle.Pickler)["dispatch_table"].__set__(pickler, table)
        pickler.dump(obj)
        return sink.parts

    def decode(self, inband: memoryview, buffers: Sequence[memoryview]) -> Any:
        return pickle.loads(inband, buffers=buffers)


def _whole(data: Buffer) -> Parts:
    return Parts((data,)) if len(data) < INLINE_BELOW else Parts((), (data,))


def _only(inband: memoryview, buffers: Sequence[memoryview]) -> memoryview:
    if len(buffers) + bool(inband) > 1:
        raise ValueError(f"one part expected, {len(buffers)} bodies and {len(inband)} bytes found")
    return buffers[0] if buffers else inband


class BytesCodec:
    """The bytes themselves."""

    id = "bytes"
    copies = True

    def encode(self, obj: bytes) -> Parts:
        return _whole(_expect(bytes, obj))

    def decode(self, inband: memoryview, buffers: Sequence[memoryview]) -> bytes:
        return bytes(_only(inband, buffers))


class BytearrayCodec:
    """The bytes themselves, of a bytearray."""

    id = "bytearray"
    copies = True

    def encode(self, obj: bytearray) -> Parts:
        return _whole(_expect(bytearray, obj))

    def decode(self, inband: memoryview, buffers: Sequence[memoryview]) -> bytearray:
        return bytearray(_only(inband, buffers))


class StrCodec:
    """Text in UTF-8."""

    id = "str"
    copies = True

    def encode(self, obj: str) -> Parts:
        return _whole(_expect(str, obj).encode())

    def decode(self, inband: memoryview, buffers: Sequence[memoryview]) -> str:
        return str(_only(inband, buffers), "utf-8")


BUILTIN: dict[str, Serializer] = {
    codec.id: codec
    for codec in (
        PickleCodec(),
        CloudpickleCodec(),
        BytesCodec(),
        BytearrayCodec(),
        StrCodec(),
        NumpyCodec(),
        ArrowCodec(),
    )
}


def _expect(kind: type[Any], obj: Any) -> Any:
    # A subclass would come back as the plain type.
    if type(obj) is not kind:
        raise TypeError(f"expected exactly {kind.__name__}, got {type(obj).__qualname__}")
    return obj


# --- what pickle is told about types of libraries that are loaded already ---------------------


def _numpy_reducers(np: Any) -> Reducers:
    def reduce_array(array: Any) -> Reduced:
        if array.dtype.hasobject:
            return array.__reduce_ex__(5)
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            # One copy is forced; numpy would make it in-band, where the reader copies again.
            writeable = array.flags.writeable
            array = array.copy(order="C")
            array.flags.writeable = writeable
        # Dates and durations, records with some, and numbers that others have added (bfloat16)
        # refuse to export their memory.
        if array.dtype.kind in "mM":
            return np.ndarray.view, (array.view(np.int64), array.dtype)
        if (array.dtype.names or array.dtype.isbuiltin == 2) and array.itemsize:
            return np.ndarray.view, (array.view(f"V{array.itemsize}"), array.dtype)
        return array.__reduce_ex__(5)

    def reduce_memmap(array: Any) -> Reduced:
        return np.ndarray.view, (array.view(np.ndarray), np.memmap)

    return {np.ndarray: reduce_array, np.memmap: reduce_memmap}


def _arrow_reducers(pa: Any) -> Reducers:
    def reduce_arrow(obj: Any) -> Reduced:
        # A slice pickles the whole memory of what it was cut from.
        size = obj.get_total_buffer_size()
        if size < SMALL_TABLE or size <= 2 * obj.nbytes:
            return obj.__reduce_ex__(5)
        try:
            return arrow_from_ipc, (type(obj), _to_ipc(pa, obj))
        except (pa.ArrowException, NotImplementedError):
            return obj.__reduce_ex__(5)

    return dict.fromkeys((pa.Table, pa.RecordBatch, pa.ChunkedArray), reduce_arrow)


def _to_ipc(pa: Any, obj: Any) -> Any:
    if isinstance(obj, pa.ChunkedArray):
        obj = pa.table({"": obj})
    import pyarrow.ipc as ipc

    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, obj.schema) as writer:
        writer.write(obj)
    return sink.getvalue()


def arrow_from_ipc(kind: type, buffer: Any) -> Any:
    """Makes the Table, RecordBatch or ChunkedArray that `buffer` holds as an arrow stream."""
    import pyarrow as pa
    import pyarrow.ipc as ipc

    reader = ipc.open_stream(buffer)
    if kind is pa.RecordBatch:
        return reader.read_next_batch()
    table = reader.read_all()
    return table.column(0) if kind is pa.ChunkedArray else table


def _polars_reducers(pl: Any) -> Reducers:
    newest = pl.CompatLevel.newest()  # keeps texts in the layout polars has them in

    def reduce_polars(obj: Any) -> Reduced:
        # Polars writes a copy of itself in-band and reads another: a second for 250 MB of text,
        # where the way through arrow takes below a millisecond.
        frame = obj.to_frame("") if isinstance(obj, pl.Series) else obj
        size = frame.estimated_size()
        if size < SMALL_TABLE or any(
            dtype.base_type().__name__ not in POLARS_EXACT for dtype in frame.dtypes
        ):
            return obj.__reduce_ex__(5)
        try:
            import pyarrow as pa  # noqa: F401
        except ImportError:
            return obj.__reduce_ex__(5)
        table = frame.to_arrow(compat_level=newest)
        if table.get_total_buffer_size() > 2 * size:  # texts that a filter left behind
            return obj.__reduce_ex__(5)
        order = [
            1 if flags["SORTED_ASC"] else -1 if flags["SORTED_DESC"] else 0
            for flags in frame.flags.values()
        ]
        name = obj.name if isinstance(obj, pl.Series) else None
        return polars_from_arrow, (table, order, name)

    return {pl.DataFrame: reduce_polars, pl.Series: reduce_polars}


def polars_from_arrow(table: Any, order: Sequence[int], name: str | None) -> Any:
    """Makes a polars DataFrame, or the Series called `name`, of an arrow table.

    Args:
        table: The columns.
        order: For each column 1 when it is known to be sorted, -1 when downwards, else 0.
        name: Name of the series; None for a frame.
    """
    import polars as pl

    frame: Any = pl.from_arrow(table, rechunk=False)
    columns = [
        column.set_sorted(descending=way < 0) if way else column
        for column, way in zip(frame.get_columns(), order, strict=True)
    ]
    return pl.DataFrame(columns) if name is None else columns[0].alias(name)


_pending: dict[str, Callable[[ModuleType], Reducers]] = {
    "numpy": _numpy_reducers,
    "pyarrow": _arrow_reducers,
    "polars": _polars_reducers,
    "torch": torch_reducers,
    "jax": jax_reducers,
}
_reducers: Reducers = {}


def _loaded_reducers() -> Reducers:
    """The reducers for the libraries that this process has imported; imports none itself."""
    for name, make in tuple(_pending.items()):
        module = sys.modules.get(name)
        if module is None:
            continue
        try:
            _reducers.update(make(module))
        except AttributeError:
            continue  # another thread is importing it; next time
        _pending.pop(name, None)
    return _reducers
