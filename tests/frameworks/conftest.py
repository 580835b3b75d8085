"""Tests with PyTorch and JAX, gigabytes to install: ``nox -s frameworks``. Elsewhere they are not
even collected."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if not os.environ.get("PROXYPLANE_TEST_FRAMEWORKS"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(params=["unresolved", "resolved", "of unknown type"])
def make(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Makes a proxy of its argument, in one of the states that a proxy can be in."""
    from proxyplane import Proxy
    from proxyplane.hints import Hints
    from proxyplane.proxy import make_proxy

    if request.param == "unresolved":
        return lambda target: make_proxy(lambda: target, Hints.of(target, 50))
    if request.param == "resolved":
        return lambda target: Proxy(lambda: target, target=target)
    return lambda target: Proxy(lambda: target)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    """A store of files that leaves proxies to their first use."""
    from proxyplane import FileConnector
    from proxyplane.sync import Store

    with Store("frameworks", FileConnector(tmp_path), eager=False) as store:
        yield store
