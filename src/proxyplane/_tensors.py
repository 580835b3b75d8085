"""Tensors of PyTorch and arrays of JAX in a form that pickle carries by their memory.

Encoded objects name `tensor_from_memory` and `jax_from_numpy`, so these keep their names and
arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pickle import PickleBuffer
from typing import Any

__all__ = ["jax_from_numpy", "jax_reducers", "tensor_from_memory", "torch_reducers"]

Reducers = dict[type, Callable[[Any], Any]]


def torch_reducers(torch: Any) -> Reducers:
    """How a tensor is pickled; a parameter and a module are pickled by their tensors."""

    def reduce_tensor(tensor: Any) -> Any:
        # PyTorch writes a copy of the whole storage in-band, and reads two.
        dense = _dense(torch, tensor)
        if dense is None:
            return tensor.__reduce_ex__(5)
        try:
            numbers = dense.as_strided((_span(dense),), (1,))
            memory = PickleBuffer(numbers.view(torch.uint8).numpy())
        except (RuntimeError, TypeError):  # it is inside of a transformation, or NumPy is not here
            return tensor.__reduce_ex__(5)
        layout = tuple(dense.shape), dense.stride()
        return tensor_from_memory, (memory, tensor.dtype, *layout, tensor.requires_grad)

    return {torch.Tensor: reduce_tensor}


def _dense(torch: Any, tensor: Any) -> Any:
    """The numbers of a tensor without gaps; None if PyTorch must see to it itself."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_nested:
        return None
    if tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return None
    if vars(tensor) or tensor._backward_hooks:
        return None
    dense = tensor.detach()
    # What repeats itself is carried once. With gaps one copy is forced.
    return dense if _span(dense) <= dense.numel() else dense.contiguous()


def _span(tensor: Any) -> int:
    """How many numbers lie between the first and the last in memory, with both."""
    if not tensor.numel():
        return 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int(last) + 1


def tensor_from_memory(
    memory: Any, dtype: Any, shape: Sequence[int], strides: Sequence[int], requires_grad: bool
) -> Any:
    """Makes the tensor that lies in `memory`, a writable buffer, without a copy.

    Args:
        memory: The bytes.
        dtype: The type of the numbers, of PyTorch.
        shape: Length of each dimension.
        strides: Distance of neighbours in each dimension, in numbers.
        requires_grad: Whether gradients are asked for.
    """
    import torch

    if not len(memory):
        tensor = torch.empty_strided(shape, strides, dtype=dtype, device="cpu")
    else:
        tensor = torch.frombuffer(memory, dtype=dtype)
        tensor.set_(tensor.untyped_storage(), 0, shape, strides)  # a view could do less
    return tensor.requires_grad_() if requires_grad else tensor


def jax_reducers(jax: Any) -> Reducers:
    """How an array of JAX is pickled."""
    import numpy as np

    def reduce_array(array: Any) -> Any:
        if array.weak_type or not array.is_fully_addressable:
            return array.__reduce__()
        return jax_from_numpy, (np.asarray(array),)

    return {jax._src.array.ArrayImpl: reduce_array}


def jax_from_numpy(array: Any) -> Any:
    """Makes the array of JAX that has the numbers of `array`; on a CPU without a copy."""
    import jax

    return jax.device_put(array)
