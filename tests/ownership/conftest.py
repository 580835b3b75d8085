"""What the tests of ownership share."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane import _evictions
from proxyplane.exceptions import StoreNotFoundError
from support.owners import until


@pytest.fixture(params=["local", "file", "redis"])
def store(request: Any, tmp_path: Any) -> Iterator[pp.sync.Store]:
    if request.param == "redis":
        connector: Any = request.getfixturevalue("redis_url")
    else:
        connector = pp.LocalConnector() if request.param == "local" else f"file://{tmp_path}"
    with pp.sync.Store("owners", connector) as store:
        yield store
        gc.collect()


@pytest.fixture
def file_store(tmp_path: Any) -> Iterator[pp.sync.Store]:
    with pp.sync.Store("owners", f"file://{tmp_path}") as store:
        yield store


@pytest.fixture(autouse=True)
def _stores_are_closed() -> Iterator[None]:
    """What arrives opens its store, which has its name and its connections from then on."""
    yield
    gc.collect()
    process = _evictions._process
    until(lambda: not process.asked and not process.under_way)
    for name in ("s", "made"):
        with contextlib.suppress(StoreNotFoundError):
            pp.sync.get_store(name).close()
