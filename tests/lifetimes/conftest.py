"""What the tests of lifetimes share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import proxyplane as pp
import proxyplane.sync


@pytest.fixture(params=["local", "file", "redis", "endpoint"])
def store(request: Any, tmp_path: Any) -> Iterator[pp.sync.Store]:
    if request.param == "redis":
        connector: Any = request.getfixturevalue("redis_url")
    elif request.param == "endpoint":
        request.getfixturevalue("site")
        connector = pp.EndpointConnector()
    else:
        connector = pp.LocalConnector() if request.param == "local" else f"file://{tmp_path}"
    with pp.sync.Store("lifetimes", connector, cache_size=0) as store:
        yield store


@pytest.fixture
def file_store(tmp_path: Any) -> Iterator[pp.sync.Store]:
    with pp.sync.Store("lifetimes", f"file://{tmp_path}/objects", cache_size=0) as store:
        yield store
