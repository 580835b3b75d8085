"""Proxies that travel: small, unresolved, and without secrets."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dill
import numpy as np
import pytest

import proxyplane as pp
import proxyplane.hints
import proxyplane.proxy
import proxyplane.sync
from proxyplane import (
    Proxy,
    get_factory,
    get_key,
    is_resolved,
)
from proxyplane.exceptions import (
    ProxyResolveError,
)
from support.proxies import Reads, counted_reads, five


@pytest.fixture(params=["file", "redis"])
def reads(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reads]:
    """A store over a medium whose reads are counted."""
    with counted_reads(request, tmp_path) as reads:
        yield reads


class TestTravel:
    @pytest.mark.parametrize("target", [[1], "text", np.ones(3), 2**40, ProxyResolveError("x")])
    def test_size(self, target: Any) -> None:
        """A pickled proxy is below 250 bytes with a URL of 120, and each further one below 60."""
        url = "redis://somebody@redis-17.cache.example.org:6379/0?namespace=".ljust(120, "n")
        assert len(url) == 120
        store = pp.Store("results", pp.RedisConnector(url))
        key = "0123456789abcdef" * 2
        proxies = [
            pp.proxy.make_proxy(
                store.factory(key[i:] + key[:i], False, 12_345_678),
                pp.hints.Hints.of(target, 2000),
            )
            for i in range(11)
        ]
        one = len(pickle.dumps(proxies[0]))
        many = len(pickle.dumps(proxies))
        assert one < 250
        assert (many - one) / 10 < 60
        assert not any(map(is_resolved, proxies))

    def test_no_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy carries the name of the password's variable, and not the password."""
        monkeypatch.setenv("SECRET_NAME", "hunter2")
        url = "redis://localhost:1/0?password_env=SECRET_NAME"
        store = pp.Store("s", pp.RedisConnector(url))
        p = store.proxy_from_key("k")
        assert b"SECRET_NAME" in pickle.dumps(p)
        for text in (pickle.dumps(p), repr(p).encode(), repr(get_factory(p)).encode()):
            assert b"hunter2" not in text

    @pytest.mark.usefixtures("lazy")
    @pytest.mark.parametrize("module", [pickle, cloudpickle, dill])
    def test_protocols(self, module: Any, reads: Reads) -> None:
        """Every pickler and protocol sends factory and hints, never the target."""
        big = np.arange(10_000)
        for p in (reads.store.proxy(big), reads.store.proxy(big, populate_target=False)):
            resolved = is_resolved(p)
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                data = module.dumps(p, protocol)
                assert len(data) < 600
                received = module.loads(data)
                assert not is_resolved(received)
                assert isinstance(received, np.ndarray)
                assert not is_resolved(received)
                assert is_resolved(p) == resolved
            assert (received == big).all()

    @pytest.mark.parametrize("module", [pickle, cloudpickle, dill])
    def test_plain_factory(self, module: Any) -> None:
        """A proxy of a plain callable travels as that callable."""
        for p in (Proxy(five), Proxy(five, target=5)):
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                received = module.loads(module.dumps(p, protocol))
                assert not is_resolved(received)
                assert received + 1 == 6

    def test_lambda_by_cloudpickle(self) -> None:
        """cloudpickle sends a proxy of a lambda, without calling it."""
        calls: list[int] = []
        data = cloudpickle.dumps(Proxy(lambda: calls.append(1)))
        assert calls == []
        assert not is_resolved(pickle.loads(data))

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
    def test_copies(self, duplicate: Callable[[Any], Any], reads: Reads) -> None:
        """A copy is an unresolved sibling; making it reads nothing."""
        for p in (reads.store.proxy([1]), reads.store.proxy([1], populate_target=False)):
            sibling = duplicate(p)
            assert type(sibling).__mro__[1] is Proxy
            assert not is_resolved(sibling)
            assert get_key(sibling) == get_key(p)
            assert isinstance(sibling, list)
        assert reads.count == 0
        assert sibling == [1]

    def test_copies_inside_of_others(self) -> None:
        """A deep copy of what holds a proxy holds a sibling, which calls nothing."""
        calls: list[int] = []
        p = Proxy(lambda: calls.append(1))
        held = copy.deepcopy({"p": [p]})
        assert not is_resolved(held["p"][0])
        assert calls == []

    def test_in_another_process(self, tmp_path: Path) -> None:
        """A proxy of a class of the script travels to a process that has not imported it."""
        with pp.sync.Store("travel", pp.FileConnector(tmp_path)) as store:
            p = store.proxy(np.arange(3.0))
            path = tmp_path / "p.pickle"
            path.write_bytes(pickle.dumps(p))
            code = textwrap.dedent(f"""
                import pickle, sys
                p = pickle.loads(open({str(path)!r}, "rb").read())
                assert "numpy" not in sys.modules
                assert "unresolved" in repr(p) and "ndarray" in repr(p), repr(p)
                assert "numpy" not in sys.modules
                assert not isinstance(p, int)
                from proxyplane import is_resolved
                assert not is_resolved(p)
                assert p.sum() == 3
                import numpy
                assert isinstance(p, numpy.ndarray)
            """)
            subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30)

    def test_class_of_the_script(self, tmp_path: Path) -> None:
        """An object of a class of `__main__` is known by it in that script and its workers."""
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent("""
                import multiprocessing, sys
                import proxyplane as pp
                from proxyplane.sync import Store

                class Mine:
                    def __init__(self, x):
                        self.x = x

                def work(p):
                    assert isinstance(p, Mine)
                    return p.x

                if __name__ == "__main__":
                    with Store("s", pp.FileConnector(sys.argv[1])) as store:
                        p = store.proxy(Mine(5), populate_target=False)
                        assert isinstance(p, Mine) and not pp.is_resolved(p)
                        for method in ("spawn", "forkserver"):
                            with multiprocessing.get_context(method).Pool(1) as pool:
                                assert pool.map(work, [p]) == [5]
            """)
        )
        command = [sys.executable, "-W", "error", str(script), str(tmp_path / "data")]
        subprocess.run(command, check=True, timeout=60)
