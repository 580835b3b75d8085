"""A call that blocks a running event loop, made by this package, fails the async test it is in.

Mark a test that does so on purpose with ``@pytest.mark.allow_blocking``.
"""

from __future__ import annotations

import fnmatch

import pytest
import pytest_asyncio
from blockbuster import BlockBuster


class Matching:
    """Names of functions, as patterns."""

    def __init__(self, *patterns):
        self.patterns = patterns

    def __contains__(self, name):
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)


# (end of the file's path, functions below which anything may block, why)
ALLOWED = [
    # The first use of a driver imports it, once in a process.
    ("<frozen importlib._bootstrap>", Matching("_find_and_load")),
    # The few system calls of a small object take less than a hop to a thread. The large ones go
    # to a worker, where there is no loop. docs/decisions tells what was measured.
    ("proxyplane/connectors/local/connector.py", Matching("*_sync")),
    ("proxyplane/connectors/file/calls.py", Matching("*_sync")),
    # A few small files of this machine, once for each connector that is made by a name.
    ("proxyplane/connectors/endpoint/places.py", Matching("default_place", "find")),
    ("proxyplane/connectors/file/watch.py", Matching("_identity")),  # one stat, never remote
]


@pytest.fixture(scope="session")
def _detector():
    # Calls are judged only when a function of the package is on the stack: what a test does to
    # its own loop is its own affair.
    detector = BlockBuster("proxyplane")
    for function in detector.functions.values():
        for filename, names in ALLOWED:
            function.can_block_in(filename, names)
    return detector


@pytest.fixture(autouse=True)
def _no_blocking_calls(request):
    if (
        not pytest_asyncio.is_async_test(request.node)
        or request.node.get_closest_marker("allow_blocking") is not None
    ):
        yield
        return
    detector = request.getfixturevalue("_detector")
    detector.activate()
    try:
        yield
    finally:
        detector.deactivate()
