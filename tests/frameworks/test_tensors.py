"""Tensors and arrays of JAX: carried by their memory, and exact."""

from __future__ import annotations

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from proxyplane.serialization import (
    encode,
    encode_may_stall,
    frames_size,
    get_serializer,
    needs_worker,
)
from support.encoding import packed, through

DTYPES = [
    one
    for one in vars(torch).values()
    if isinstance(one, torch.dtype) and one.itemsize and not str(one).startswith("torch.q")
]


def bits(tensor: torch.Tensor) -> Any:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).tolist()


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert (found.dtype, found.shape, found.stride()) == (
        expected.dtype,
        expected.shape,
        expected.stride(),
    )
    assert found.requires_grad == expected.requires_grad
    assert bits(found) == bits(expected)


def bodies(obj: Any) -> int:
    """How many bytes travel outside of the first frame."""
    return frames_size(encode(obj)[1:])


@pytest.mark.parametrize("size", [1, 100, 3000])
@pytest.mark.parametrize("dtype", sorted(set(DTYPES), key=str), ids=str)
def test_dtypes(dtype: torch.dtype, size: int) -> None:
    """A tensor of any type of numbers comes back, small in-band and large by its memory."""
    memory = torch.randint(0, 2, (size * dtype.itemsize,), dtype=torch.uint8)
    try:
        tensor = memory.view(dtype).reshape(1, size)
    except RuntimeError:
        pytest.skip("of this type no tensor can be made")
    assert_same(through(tensor), tensor)
    if tensor.nbytes >= 512:
        assert bodies(tensor) >= tensor.nbytes


LAYOUTS = {
    "0-d": lambda: torch.tensor(5.0),
    "transposed": lambda: torch.rand(30, 40).T,
    "permuted": lambda: torch.rand(3, 5, 7, 11).permute(2, 0, 3, 1),
    "channels last": lambda: torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last),
    "slice": lambda: torch.rand(1000)[100:400],
    "rows": lambda: torch.rand(100, 30)[10:20],
    "ones": lambda: torch.rand(1, 300, 1)[:, :, :],
    "leaf": lambda: torch.rand(300, requires_grad=True),
    "parameter": lambda: torch.nn.Parameter(torch.rand(30, 30)),
    "frozen": lambda: torch.nn.Parameter(torch.rand(30, 30), requires_grad=False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_layouts(layout: str) -> None:
    """What lies in memory without gaps is carried without a copy, and keeps its strides."""
    tensor = LAYOUTS[layout]()
    for obj in (tensor, [tensor], {"a": (tensor,)}):
        found: Any = through(obj)
        while isinstance(found, list | tuple | dict):
            (found,) = found.values() if isinstance(found, dict) else found
        assert_same(found, tensor)
    if tensor.numel() > 1:
        frames = [np.frombuffer(one, np.uint8) for one in encode(tensor)]
        assert any(np.shares_memory(tensor.detach().numpy(), frame) for frame in frames)


@pytest.mark.parametrize("step", [(slice(None), slice(None, None, 2)), (slice(None, None, 3),)])
def test_tensors_with_gaps(step: Any) -> None:
    """What has gaps is copied by the writer, and its values alone are carried."""
    tensor = torch.rand(300, 100)[step]
    found = through(tensor)
    assert torch.equal(tensor, found)
    assert found.is_contiguous()
    assert tensor.nbytes <= bodies(tensor) < tensor.nbytes + 64


REPEATED = {
    "empty": lambda: torch.rand(0, 3),
    "empty, of a shape": lambda: torch.rand(4, 5)[:, 5:].T,
    "expanded": lambda: torch.rand(700)[:, None].expand(700, 1000),
    "windows": lambda: torch.rand(1000).unfold(0, 100, 1),
    "with gaps": lambda: torch.rand(1000)[::10].expand(1000, 100),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint16, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("kind", REPEATED)
def test_numbers_that_repeat_themselves(kind: str, dtype: torch.dtype) -> None:
    """What is carried once, or not at all, is so for any type; PyTorch cannot read some."""
    whole = REPEATED[kind]()
    memory = (torch.rand(whole.untyped_storage().nbytes() // 4 or 1) * 50).to(dtype)
    tensor = memory.as_strided(whole.shape, whole.stride(), whole.storage_offset())
    for one in (tensor, torch.nn.Parameter(tensor, requires_grad=False)):
        found = through(one)
        assert_same(found, one)
        assert frames_size(encode(one)) < 5000


def test_a_slice_carries_only_itself() -> None:
    """Ten numbers of a large tensor are a few bytes."""
    assert frames_size(encode(torch.rand(1_000_000)[5:15])) < 600


def test_memory_is_shared_both_ways() -> None:
    """Frames are the tensor's memory, and the decoded tensor is the buffer's, writable."""
    tensor = torch.rand(100, 50)
    frames = encode({"a": [tensor]}, checksum=True)
    views = [np.frombuffer(frame, np.uint8) for frame in frames]
    assert sum(np.shares_memory(tensor.numpy(), view) for view in views) == 1
    from proxyplane.serialization import decode

    buffer = bytearray(b"".join(frames))
    found = decode(buffer)["a"][0]
    assert np.shares_memory(found.numpy(), np.frombuffer(buffer, np.uint8))
    found[1, 2] = 7.0
    assert bytes(buffer) != b"".join(frames)
    assert decode(b"".join(frames))["a"][0].add_(1).sum() > 0  # of a read-only buffer, a copy


def test_cloudpickle() -> None:
    """So does what cloudpickle writes."""
    obj = [lambda: 1, torch.rand(1000), jnp.ones(1000)]
    assert bodies(obj) >= 8000
    assert torch.equal(obj[1], through(obj)[1])
    assert frames_size(encode(obj[1], serializer=get_serializer("cloudpickle"))[1:]) >= 4000


def test_decoded_tensors_are_full_tensors() -> None:
    """They are trained, detached in place, shared between processes, and copied."""
    tensor = through(torch.rand(1000))
    assert not tensor._is_view()
    tensor.requires_grad_()
    (tensor * 2).sum().backward()
    assert tensor.grad.sum() == 2000
    tensor.detach_().add_(1).share_memory_()
    assert tensor.is_shared()
    assert torch.equal(tensor, tensor.clone())


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_default_device(device: str) -> None:
    """A default device of the reader changes nothing."""
    data = torch.rand(1000)
    with torch.device(device):
        assert torch.equal(through(data), data)


class Sub(torch.Tensor):
    """A subclass, which PyTorch pickles by its type."""


def with_an_attribute() -> torch.Tensor:
    tensor = torch.rand(300)
    tensor.name_of_it = "x"  # type: ignore[attr-defined]
    return tensor


OTHERS = {
    "empty": lambda: torch.rand(0, 3),
    "expanded": lambda: torch.rand(1).expand(1_000_000),
    "conjugate": lambda: torch.rand(300, dtype=torch.complex64).conj(),
    "negative": lambda: torch.rand(300, dtype=torch.complex64).conj().imag,
    "subclass": lambda: torch.rand(300).as_subclass(Sub),
    "attribute": with_an_attribute,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_tensors(kind: str) -> None:
    """What is not plain memory goes the way PyTorch pickles it, and comes back as it was."""
    tensor = OTHERS[kind]()
    found = through(tensor)
    assert type(found) is type(tensor)
    assert found.shape == tensor.shape
    assert torch.equal(found.resolve_conj().resolve_neg(), tensor.resolve_conj().resolve_neg())
    assert vars(found) == vars(tensor)
    assert frames_size(encode(tensor)) < 10_000


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_other_kinds_of_tensors() -> None:
    """Sparse and nested tensors, and those without memory, come back."""
    sparse = torch.eye(30).to_sparse()
    assert torch.equal(through(sparse).to_dense(), torch.eye(30))
    assert torch.equal(through(torch.eye(30).to_sparse_csr()).to_dense(), torch.eye(30))
    meta = through(torch.empty(3, 4, device="meta"))
    assert (meta.device.type, meta.shape) == ("meta", (3, 4))
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert [one.numel() for one in through(nested).unbind()] == [2, 3]
    quantised = torch.quantize_per_tensor(torch.rand(300), 0.1, 0, torch.quint8)
    assert torch.equal(through(quantised).dequantize(), quantised.dequantize())


def test_the_same_tensor_twice() -> None:
    """One tensor stays one; two that share memory are carried each for itself, as by pickle."""
    tensor = torch.rand(1000)
    one, other = through([tensor, tensor])
    assert one is other
    whole, part = through([tensor, tensor[:500]])
    assert torch.equal(whole[:500], part)
    whole[0] = 9.0
    assert part[0] != 9.0
    plain, plain_part = pickle.loads(pickle.dumps([tensor, tensor[:500]]))
    plain[0] = 9.0
    assert plain_part[0] != 9.0


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(40, 40)
        self.second = torch.nn.Linear(40, 40)
        self.second.weight = self.first.weight
        self.register_buffer("running", torch.zeros(400))


def test_models() -> None:
    """A model comes back with what it ties together; its state with its versions."""
    model = Tied()
    found = through(model)
    assert found.second.weight is found.first.weight
    assert type(found.first.weight) is torch.nn.Parameter
    assert bodies(model) > 40 * 40 * 4
    state = model.state_dict()
    found_state = through(state)
    assert found_state._metadata == state._metadata
    model.load_state_dict(found_state)
    optimizer = torch.optim.Adam(model.parameters())
    model.first(torch.rand(2, 40)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(through(optimizer.state_dict()))


@dataclasses.dataclass
class Batch:
    inputs: torch.Tensor
    labels: torch.Tensor


def test_dataclass() -> None:
    """Tensors in instances are carried by their memory too."""
    batch = Batch(torch.rand(100, 10), torch.arange(100))
    assert bodies(batch) >= 4800
    assert torch.equal(through(batch).labels, batch.labels)


def test_torch_save_is_as_it_was() -> None:
    """Only this package's picklers are told; those of PyTorch and of Python are not."""
    tensor = torch.rand(100)
    encode(tensor)
    out = io.BytesIO()
    torch.save(tensor, out)
    assert b"proxyplane" not in out.getvalue() + pickle.dumps(tensor)


def test_what_stalls() -> None:
    """A large tensor stalls the loop only when it is copied or checked."""
    tensor = torch.rand(1000, 1000)
    for obj in (tensor, {"a": [tensor]}, torch.nn.Parameter(tensor), jnp.zeros(1_000_000)):
        assert not encode_may_stall(obj)
        assert encode_may_stall(obj, checksum=True)
        assert not needs_worker(bytearray(packed(obj)))
    assert encode_may_stall(tensor[:, ::2])
    assert encode_may_stall([torch.rand(1) for _ in range(500)])
    assert not encode_may_stall(torch.nn.Linear(10, 10))


def test_through_a_store(store: Any) -> None:
    """What comes out of a store is a private map of the file, and proxies resolve to it."""
    tensor = torch.rand(1000, 100)
    p = store.proxy({"weight": tensor}, populate_target=False)
    assert torch.equal(tensor, p["weight"])
    p["weight"].add_(1)
    key = store.put(tensor)
    assert torch.equal(tensor, store.get(key))


# -- JAX ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["float32", "int8", "bool", "complex64", "uint16", "bfloat16", "float8_e4m3fn"]
)
@pytest.mark.parametrize("shape", [(), (3,), (100, 20), (0, 2)])
def test_jax_arrays(dtype: str, shape: Any) -> None:
    """Arrays of JAX come back with dtype, shape and values; large ones by their memory."""
    array = jnp.ones(shape, dtype)
    found = through(array)
    assert type(found) is type(array)
    assert (found.dtype, found.shape, found.weak_type) == (array.dtype, shape, array.weak_type)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(array))
    if array.nbytes >= 512:
        assert bodies(array) >= array.nbytes


def test_other_jax_arrays() -> None:
    """Weakly typed numbers and keys of random numbers come back as they were."""
    assert through(jnp.asarray(3.0)).weak_type
    key = jax.random.key_data(jax.random.key(7))
    assert through(key).tolist() == key.tolist()
    array = jnp.arange(4.0)
    one, other = through([array, array])
    assert one is other


def test_jax_memory_is_shared(store: Any, tmp_path: Path) -> None:
    """Of a mapped file, a decoded array is the file's memory."""
    array = jnp.ones((1000, 100))
    frames = [np.frombuffer(one, np.uint8) for one in encode({"a": array})]
    assert any(np.shares_memory(np.asarray(array), frame) for frame in frames)
    found = store.get(store.put(array))
    with open("/proc/self/maps", encoding="utf-8") as maps:
        ranges = [line.split() for line in maps if str(tmp_path) in line]
    address = found.unsafe_buffer_pointer()
    bounds = [tuple(int(end, 16) for end in one[0].split("-")) for one in ranges]
    assert any(low <= address < high for low, high in bounds)


def test_numpy_arrays_of_added_numbers() -> None:
    """NumPy's arrays of bfloat16 and the like are carried by their memory as well."""
    for array in (np.ones((50, 40), ml_dtypes.bfloat16), np.ones((50, 40), ml_dtypes.bfloat16).T):
        found = through(array)
        assert (found.dtype, found.shape, found.strides) == (
            array.dtype,
            array.shape,
            array.strides,
        )
        assert found.tolist() == array.tolist()
        assert bodies(array) >= array.nbytes
