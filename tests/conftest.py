"""Fixtures of all tests."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

from proxyplane._runtime import eager
from proxyplane._server import EmbeddedServer
from support.cluster import Cluster
from support.servers import make_server

pytest_plugins = ["plugins.blocking", "plugins.endpoints", "plugins.media", "plugins.rows"]

# On a CI server pytest tells how two values differ in full, which takes minutes for megabytes.
for _variable in ("CI", "BUILD_NUMBER"):
    os.environ.pop(_variable, None)

# How long an example takes is the machine's affair: no test asserts a time.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def _default_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests put into the default directory goes with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROXYPLANE_DIR", str(tmp_path_factory.mktemp("default") / "objects"))
        yield


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies that arrive wait for their first use, as in a process with PROXYPLANE_EAGER=0.

    For tests of that first use, which otherwise may find that the background was there before.
    """
    monkeypatch.setattr(eager._process, "on", False)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedServer]:
    """One Redis server for the whole run; never kill or configure it."""
    with make_server() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> str:
    """The URL of the shared server, in a namespace that no other test uses."""
    return f"{redis_server.url}?namespace=test-{next(_numbers)}"


@pytest.fixture
def own_redis_server() -> Iterator[Callable[..., EmbeddedServer]]:
    """Starts servers for this test alone, to be killed or configured; takes `args=`.

    Call it, and methods that end a server, with `asyncio.to_thread` in async tests: they block.
    """
    servers: list[EmbeddedServer] = []

    def start(**kwargs: object) -> EmbeddedServer:
        server = make_server(**kwargs)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[Cluster]:
    """One Redis cluster for the whole run; never kill or change it."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster_url(redis_cluster: Cluster) -> str:
    """The URL of the shared cluster, in a namespace that no other test uses."""
    return f"{redis_cluster.url}?namespace=test-{next(_numbers)}"


@pytest.fixture
def own_redis_cluster() -> Iterator[Callable[..., Cluster]]:
    """Starts clusters for this test alone, like `own_redis_server`; takes arguments of servers."""
    with contextlib.ExitStack() as stack:
        yield lambda *args: stack.enter_context(Cluster(args))


def pytest_collection_finish() -> None:
    """Leaves what was collected, some hundred thousand objects, to no garbage collector any more.

    Many tests collect garbage, most of them after each test: it took a third of a second each time.
    """
    gc.collect()
    gc.freeze()
