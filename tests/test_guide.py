"""The published guide "Advanced", snippet by snippet, with this package's names."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import proxyplane as pp


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return f"my key of {request.node.name}"


class TestProxying:
    def test_by_hand(self, redis_url: str, key: str) -> None:
        """A factory that is given an object puts it; its proxy calls it on first use."""
        x = np.array([1, 2, 3])
        f = pp.RedisFactory(x, key=key, url=redis_url)
        p = pp.Proxy(f)
        assert not pp.is_resolved(p)
        assert p.sum() == 6
        assert pp.is_resolved(p)

    def test_calling_the_factory(self, redis_url: str, key: str) -> None:
        """`f()` returns the object from the server."""
        f = pp.RedisFactory(np.array([1, 2, 3]), key=key, url=redis_url)
        assert f().tolist() == [1, 2, 3]

    def test_object_that_is_there(self, redis_url: str, key: str) -> None:
        """A factory that is given no object finds the one that was put by hand."""
        pp.RedisFactory([1, 2, 3], key=key, url=redis_url)
        assert pp.Proxy(pp.RedisFactory(key=key, url=redis_url)) == [1, 2, 3]

    def test_neither_object_nor_key(self, redis_url: str) -> None:
        """A factory needs something to get."""
        with pytest.raises(TypeError, match="key"):
            pp.RedisFactory(url=redis_url)

    def test_taken_key(self, redis_url: str, key: str) -> None:
        """A second object under one key takes the place of the first."""
        pp.RedisFactory([1], key=key, url=redis_url)
        pp.RedisFactory([2], key=key, url=redis_url)
        assert pp.Proxy(pp.RedisFactory(key=key, url=redis_url)) == [2]

    async def test_awaited(self, redis_url: str) -> None:
        """Such a proxy can be awaited like any other."""
        async with pp.Store("by hand", pp.RedisConnector(redis_url)) as store:
            key = await store.put([1, 2, 3])
            assert await pp.Proxy(pp.RedisFactory(key=key, url=redis_url)) == [1, 2, 3]

    def test_to_proxy(self, redis_url: str, key: str) -> None:
        """The three steps in one: put, factory, proxy."""
        with pp.sync.Store("guide", redis_url) as store:
            pp.set_default_store(pp.get_store("guide"))
            try:
                p = pp.to_proxy([1, 2, 3], key=key)
            finally:
                pp.set_default_store(None)
            assert p == [1, 2, 3]
            assert store.get(key) == [1, 2, 3]

    def test_factory_of_ones_own(self) -> None:
        """Factories inherit from Factory; any callable does too."""

        class Numbers(pp.Factory[list[int]]):
            def __call__(self) -> list[int]:
                return [1, 2, 3]

        assert pp.Proxy(Numbers()) == [1, 2, 3]
        assert pp.Proxy(lambda: [1, 2, 3]) == [1, 2, 3]

    def test_evict(self, redis_url: str) -> None:
        """`extract` gives the object, `evict` removes it from the store."""
        f = pp.RedisFactory([1, 2, 3], url=redis_url)
        p: pp.Proxy[Any] = pp.Proxy(f)
        assert type(pp.extract(p)) is list
        pp.evict(p)
        with pytest.raises(pp.ProxyResolveError):
            pp.resolve(pp.Proxy(pp.RedisFactory(key=f.key, url=redis_url)))


WORKER = """
    import pickle, sys
    import proxyplane as pp

    def complex_function(large_input):
        pp.resolve_async(large_input)
        other = sum(range(100_000))     # more computation...
        return compute_input(large_input, other)

    def compute_input(large_input, other):
        return float(large_input.sum()) + other

    print(complex_function(pickle.loads(sys.stdin.buffer.read())))
"""


class TestAsynchronousResolving:
    @pytest.mark.parametrize("medium", ["file", "redis"])
    def test_overlap(self, medium: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        """A worker resolves its input in the background while it computes something else."""
        import pickle

        if medium == "file":
            connector: pp.Connector = pp.FileConnector(tmp_path)
        else:
            connector = pp.RedisConnector(request.getfixturevalue("redis_url"))
        with pp.sync.Store("overlap", connector) as store:
            p = store.proxy(np.ones(1_000_000))
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", textwrap.dedent(WORKER)],
                input=pickle.dumps(p),
                capture_output=True,
                timeout=60,
                check=False,
            )
        assert (0, b"") == (done.returncode, done.stderr)
        assert float(done.stdout) == 1_000_000 + sum(range(100_000))


class TestCaching:
    def test_environment(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """`PROXYPLANE_CACHE_SIZE` sets the cache, and 0 turns it off."""
        for size, cached in (("16", True), ("0", False)):
            monkeypatch.setenv("PROXYPLANE_CACHE_SIZE", size)
            with pp.sync.Store("guide", redis_url) as store:
                key = store.put([1])
                store.get(key)
                assert store.is_cached(key) is cached

    def test_argument(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """`cache_size=` beats the environment."""
        monkeypatch.setenv("PROXYPLANE_CACHE_SIZE", "16")
        with pp.sync.Store("guide", redis_url, cache_size=0) as store:
            key = store.put([1])
            store.get(key)
            assert not store.is_cached(key)
