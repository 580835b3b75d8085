"""Stores over connectors of each kind."""

from __future__ import annotations

import pytest

import proxyplane as pp
from proxyplane.connectors.multi import Policy
from proxyplane.testing import Recorder


@pytest.fixture(params=["local", "file", "redis", "endpoint", "peer", "multi", "coroutines"])
def connector(request, tmp_path, redis_url):
    """A connector of each kind."""
    if request.param == "local":
        return pp.LocalConnector()
    if request.param == "file":
        return pp.FileConnector(tmp_path / "objects")
    if request.param == "redis":
        return pp.RedisConnector(redis_url)
    if request.param == "endpoint":
        request.getfixturevalue("site")
        return pp.EndpointConnector()
    if request.param == "peer":
        _, far = request.getfixturevalue("sites")
        return pp.EndpointConnector(far.name)
    if request.param == "multi":
        files = pp.FileConnector(tmp_path / "objects")
        return pp.MultiConnector(
            {"local": (pp.LocalConnector(), Policy(max_bytes=50)), "files": files}
        )
    return Recorder(pp.FileConnector(tmp_path / "objects"))


@pytest.fixture
async def store(connector):
    """A store with a cache."""
    async with pp.Store(f"names {id(connector)}", connector, cache_size=4) as store:
        yield store
        await store.aclose(clear=True)


@pytest.fixture
def other(store):
    """Another store on the same medium, with a cache of its own, as in another process."""
    return pp.Store(f"other {id(store)}", store.connector, cache_size=4)
