"""Proxies of tensors, given to PyTorch."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from proxyplane import Proxy, extract, is_resolved
from proxyplane.exceptions import BlockingResolveWarning

X = torch.arange(6.0).reshape(2, 3)

# What is done with a tensor, here called p; of a proxy the same must come of it.
USES: dict[str, Callable[[Any], Any]] = {
    "add": lambda p: torch.add(p, 1),
    "operators": lambda p: (X + p, p + X, X @ p.T, p * 2, 2 - p, -p, p > 1, p == X),
    "methods of a tensor": lambda p: (X.add(p), X.view_as(p), X.to(p), X.type_as(p)),
    "stack": lambda p: (torch.stack([p, p]), torch.cat((p, X)), torch.vstack([X, p])),
    "layers": lambda p: (torch.nn.ReLU()(p), torch.nn.Flatten()(p), torch.nn.Softmax(1)(p)),
    "linear": lambda p: torch.nn.functional.linear(p, X),
    "loss": lambda p: torch.nn.functional.cross_entropy(p, torch.tensor([0, 1])),
    "where": lambda p: torch.where(p > 2, p, 0),
    "einsum": lambda p: torch.einsum("ij,ij->", p, X),
    "norm": lambda p: torch.linalg.norm(p),
    "equal": lambda p: (torch.equal(p, X), torch.numel(p), torch.is_floating_point(p)),
    "index": lambda p: X[:, p[0].long() % 3],
    "rows": lambda p: (list(p), p[1], p[:, 1], len(p)),
    "like": lambda p: torch.zeros_like(p),
    "split": lambda p: (torch.split(p, 1), torch.max(p, 1).values, torch.meshgrid(p[0], p[0])[0]),
    "tensors of it": lambda p: (torch.tensor(p), torch.as_tensor(p), torch.asarray(p)),
    "numpy": lambda p: (np.asarray(p), np.sqrt(np.asarray(p))),
    "collate": lambda p: torch.utils.data.default_collate([{"a": p}, {"a": p}])["a"],
    "data set": lambda p: torch.utils.data.TensorDataset(p)[0],
    "isinstance": lambda p: (isinstance(p, torch.Tensor), torch.is_tensor(p)),
    "sequences": lambda p: torch.nn.utils.rnn.pad_sequence([p, X]),
    "jacobian": lambda p: torch.autograd.functional.jacobian(torch.sum, p),
    "call": lambda p: torch.func.functional_call(
        torch.nn.Linear(3, 2), {"weight": p, "bias": p[:, 0]}, X
    ),
}  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | torch.Tensor):
        return a.tolist() == b.tolist() and a.dtype == b.dtype
    return bool(a == b)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("use", USES)
def test_same_as_of_a_tensor(use: str, make: Callable[[Any], Any]) -> None:
    """What PyTorch makes of a proxy is what it makes of the tensor."""
    assert same(USES[use](X.clone()), USES[use](make(X.clone())))


@pytest.mark.parametrize(
    "index",
    [[0], [0, 1], 1, [True, False], [[True, False, True], [False, True, False]]],
    ids=str,
)
def test_index(index: Any, make: Callable[[Any], Any]) -> None:
    """A proxied tensor picks what the tensor does, in reading and in writing."""
    index = torch.tensor(index)
    assert same(X[index], X[make(index)])
    assert same(X[(index,)], X[(make(index),)])
    one, other = X.clone(), X.clone()
    one[index] = torch.tensor(9.0)
    other[make(index)] = make(torch.tensor(9.0))
    assert same(one, other)


def test_written_to_the_target(make: Callable[[Any], Any]) -> None:
    """``out=`` and what changes a tensor in place reach the target."""
    target = torch.zeros(2, 3)
    assert torch.add(X, 1, out=make(target)) is target
    assert same(X + 1, target)
    make(target).mul_(2)
    torch.nn.init.zeros_(make(target))
    assert not target.any()
    assert same(X, target.copy_(make(X)))


def test_gradients_flow(make: Callable[[Any], Any]) -> None:
    """The gradient of a proxied leaf arrives at the target."""
    x = X.clone().requires_grad_()
    p = make(x)
    (p * p).sum().backward()
    assert same(2 * X, x.grad)
    assert same(p.grad, x.grad)
    assert same(torch.autograd.grad((p * 3).sum(), [p])[0], torch.full((2, 3), 3.0))


def test_model(make: Callable[[Any], Any]) -> None:
    """A model takes proxied inputs, is loaded from a proxied state, and can be one."""
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert same(model(X), model(make(X)))
    assert same(model(X), make(model)(make(X)))
    other.load_state_dict(make(model.state_dict()))
    assert same(model(X), other(X))
    other = torch.nn.Linear(3, 2)
    other.load_state_dict({name: make(value) for name, value in model.state_dict().items()})
    assert same(model(X), other(X))
    torch.optim.SGD(make(other).parameters(), 0.1).step()


@pytest.mark.filterwarnings("error")
def test_no_warning(make: Callable[[Any], Any]) -> None:
    """PyTorch finds nothing deprecated in how a proxy takes a call over."""
    torch.add(make(X), make(X))
    torch.nn.functional.relu(make(X))


def test_probes_fetch_nothing() -> None:
    """To ask for a proxy's class, type or protocols fetches nothing."""
    from proxyplane.hints import Hints
    from proxyplane.proxy import make_proxy

    p = make_proxy(lambda: X, Hints.of(X, 50))
    assert isinstance(p, torch.Tensor)
    assert torch.is_tensor(p)
    assert hasattr(p, "__torch_function__")
    assert torch.overrides.is_tensor_like(p)
    repr(p)
    copy.copy(p)
    assert not is_resolved(p)


@pytest.mark.allow_blocking
async def test_warns_where_the_loop_is_blocked(make: Callable[[Any], Any]) -> None:
    """On a running loop the line that gave the proxy to PyTorch is named."""
    p = make(X)
    if is_resolved(p):
        return
    with pytest.warns(BlockingResolveWarning, match="await it") as caught:
        torch.add(p, 1)
    assert [one.filename for one in caught] == [__file__]


# Each of these read memory that no tensor is in, and crashed or gave garbage, as long as C code
# was told the class of the target.
NO_TENSOR = """
    torch.asarray(p); torch.where(p > 1, p, 0); torch.nested.nested_tensor([p]); torch.Tensor(p)
    x.set_(p); x.data = p; x.grad = p; torch.FloatTensor(p); torch.func.vmap(torch.sum)(p)
    torch.func.grad(torch.sum)(p); torch.sparse_coo_tensor(P(x[:1].long()), x[0])
    torch.export.export(m, (p,)); x.new_tensor(p); torch.nn.Parameter(p)
    torch.random.set_rng_state(g); torch.rand(2, generator=r); s.copy_(t)
    torch.compile(lambda a: a * 2, backend="eager")(p)
"""


@pytest.mark.timeout(300)
def test_no_use_reads_foreign_memory() -> None:
    """What PyTorch's C code cannot take from a proxy is a Python error that names the proxy."""
    code = f"""
        import sys, torch
        from proxyplane import Proxy
        uses = {[use.strip() for use in NO_TENSOR.replace(chr(10), ";").split(";")]!r}
        for use in filter(None, uses):
            x = torch.arange(6.).reshape(2, 3); m = torch.nn.Linear(3, 2)
            P = lambda target: Proxy(lambda: target, target=target)
            p, g, r = P(x), P(torch.random.get_rng_state()), P(torch.Generator())
            s, t = x.untyped_storage(), P(x.untyped_storage())
            try:
                exec(use)
            except Exception as error:
                text = str(error)
                known = "Proxy", "__torch_dispatch__", "incompatible function arguments"
                assert any(one in text for one in known), (use, text)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("options", [[], ["-X", "no_debug_ranges"]], ids=["", "no columns"])
def test_a_call_that_looks_like_a_comparison(options: list[str]) -> None:
    """A C function that was looked up where it is called, or is called inside of a comparison, is
    not told the class."""
    code = """
        import torch
        from torch import tensor
        from proxyplane import Proxy
        x = torch.arange(6.)
        p = Proxy(lambda: x, target=x)
        def use():
            yield getattr(torch, "tensor")(p)
            yield tensor(p) if not isinstance(p, int) else tensor(p)
            yield isinstance(tensor(p), torch.Tensor) and tensor(p)
        assert all(torch.equal(one, x) for one in use())
        assert p.__class__ is torch.Tensor
    """
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


def test_copies(make: Callable[[Any], Any]) -> None:
    """Copies of a proxy are proxies, and copies of its tensor are tensors."""
    p = make(X)
    assert issubclass(type(copy.deepcopy(make([1]))), Proxy)
    assert same(X, extract(copy.copy(p)))
    assert same(X, copy.deepcopy(extract(p)))
    assert same(X, p.clone())


class Items(torch.utils.data.Dataset[Any]):
    def __init__(self, proxies: list[Any]) -> None:
        self.proxies = proxies

    def __len__(self) -> int:
        return len(self.proxies)

    def __getitem__(self, index: int) -> Any:
        return self.proxies[index]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:os.fork")
def test_data_loader(store: Any, method: str) -> None:
    """Worker processes of a `DataLoader` fetch the proxies that are its data."""
    proxies = [store.proxy(torch.full((3,), float(i)), populate_target=False) for i in range(8)]
    loader = torch.utils.data.DataLoader(
        Items(proxies), batch_size=2, num_workers=2, multiprocessing_context=method
    )
    assert [[0, 1], [2, 3], [4, 5], [6, 7]] == [batch[:, 0].tolist() for batch in loader]


def double(p: Any) -> Any:
    return p * 2


@pytest.mark.timeout(300)
def test_torch_multiprocessing(store: Any) -> None:
    """`torch.multiprocessing` sends proxies as proxies."""
    p = store.proxy(X, populate_target=False)
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        assert same(X * 2, pool.map(double, [p])[0])
    assert len(pickle.dumps(p)) < 500


def test_saved_as_a_proxy(store: Any, tmp_path: Any) -> None:
    """`torch.save` of a proxy saves the reference."""
    torch.save(store.proxy(X, populate_target=False), tmp_path / "p.pt")
    loaded = torch.load(tmp_path / "p.pt", weights_only=False)
    assert issubclass(type(loaded), Proxy)
    assert same(X, extract(loaded))
