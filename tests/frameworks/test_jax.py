"""Proxies of arrays, given to JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxyplane import extract, is_resolved
from proxyplane.exceptions import BlockingResolveWarning
from proxyplane.hints import Hints
from proxyplane.proxy import make_proxy

X = jnp.arange(4.0)


def make(target: Any) -> Any:
    return make_proxy(lambda: target, Hints.of(target, 50))


USES: dict[str, Callable[[Any], Any]] = {
    "reductions": lambda p: (jnp.sum(p), jnp.mean(p), jnp.linalg.norm(p)),
    "arithmetic": lambda p: (jnp.add(X, p), jnp.add(p, 1), jnp.sin(p), jnp.dot(p, X)),
    "operators": lambda p: (X + p, X @ p, X * p, X > p),
    "join": lambda p: (jnp.stack([p, p]), jnp.concatenate([p, X])),
    "arrays of it": lambda p: (jnp.asarray(p, X.dtype), jnp.array([p]), jax.device_put(p)),
    "einsum": lambda p: jnp.einsum("i,i->", p, X),
    "choose": lambda p: (jnp.where(p > 1, p, 0), jnp.argsort(p), jnp.take(p, jnp.array([0]))),
    "shape": lambda p: (jnp.reshape(p, (2, 2)), jnp.zeros_like(p), jnp.shape(p)),
    "jit": lambda p: jax.jit(lambda a: a * 2)(p),
    "jit of a tree": lambda p: jax.jit(lambda tree: tree["a"][0] * 2)({"a": [p]}),
    "grad": lambda p: jax.grad(lambda a: (a * a).sum())(p),
    "vmap": lambda p: jax.vmap(lambda a: a * 2)(p),
    "layers": lambda p: (jax.nn.relu(p), jax.nn.softmax(p)),
    "tree": lambda p: jax.tree.map(lambda a: a + 1, [p]),
}


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray])
@pytest.mark.parametrize("use", USES)
def test_same_as_of_an_array(use: str, kind: Callable[[Any], Any]) -> None:
    """What JAX makes of a proxy is what it makes of the array, its own or NumPy's."""
    target = kind(X)
    expected, found = USES[use](target), USES[use](make(target))
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(one, other)


def test_methods() -> None:
    """A proxy has the methods and operators of the array."""
    p = make(X)
    assert (p + 1).tolist() == [1, 2, 3, 4]
    assert p.at[0].set(5.0).tolist() == [5, 1, 2, 3]
    assert isinstance(p, jax.Array)


@pytest.mark.parametrize(
    "use", [lambda p: X[p], lambda p: jax.lax.add(p, np.ones(4, int)), jnp.array, jnp.asarray]
)
def test_told_what_to_do(use: Callable[[Any], Any]) -> None:
    """What asks neither for a tree nor for an array is refused, with advice; an older JAX asks."""
    target = np.arange(4)
    try:
        found = use(make(target))
    except ValueError as error:
        assert "explicitly convert" in str(error)
    else:
        np.testing.assert_array_equal(found, use(target))


def test_probes_fetch_nothing() -> None:
    """To ask for a proxy's class or protocols fetches nothing."""
    p = make(X)
    assert isinstance(p, jax.Array)
    assert hasattr(p, "__jax_array__")
    repr(p)
    assert not is_resolved(p)


@pytest.mark.allow_blocking
async def test_warns_where_the_loop_is_blocked() -> None:
    """On a running loop it warns once, with the advice to await."""
    p = make(X)
    with pytest.warns(BlockingResolveWarning, match="await it") as caught:
        jnp.sum(p)
    assert len(caught) == 1
    assert extract(p) is X
