"""The published guide "Proxy Futures", example by example, with this package's names."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import proxyplane as pp
from proxyplane.sync import Store


class MyData:
    """What the producer computes."""

    def __init__(self, values: list[int]) -> None:
        self.values = values


def foo(future: pp.ProxyFuture[MyData]) -> str:
    """Produces."""
    data = MyData(list(range(10)))
    future.set_result(data)
    return "foo"


def bar(data: MyData) -> int:
    """Consumes: what does not need the data runs freely, and the first use waits for it."""
    other = sum(range(100))
    return other + sum(data.values)


def test_trivial_example() -> None:
    """The proxy of a future resolves to the result of the future."""
    with Store("proxy-future-example", pp.LocalConnector()) as store:
        future: pp.ProxyFuture[str] = store.future()
        proxy = future.proxy()

        future.set_result("value")
        assert future.result() == "value"
        assert proxy == "value"


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("bar_first", [False, True], ids=["foo first", "bar first"])
@pytest.mark.parametrize("medium", ["file", "redis"])
def test_two_processes(
    medium: str,
    bar_first: bool,
    pool: ProcessPoolExecutor,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Producer and consumer run at the same time, and may start in either order."""
    connector: Any = (
        pp.FileConnector(tmp_path)
        if medium == "file"
        else pp.RedisConnector(request.getfixturevalue("redis_url"))
    )
    with Store("proxy-future-example", connector) as store:
        future: pp.ProxyFuture[MyData] = store.future()
        if bar_first:
            bar_result = pool.submit(bar, future.proxy())
            foo_result = pool.submit(foo, future)
        else:
            foo_result = pool.submit(foo, future)
            bar_result = pool.submit(bar, future.proxy())
        assert foo_result.result(timeout=60) == "foo"
        assert bar_result.result(timeout=60) == sum(range(100)) + sum(range(10))
