"""Endpoints for tests: one that all share, and what is needed to make others."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from support.endpoints import Site


@pytest.fixture(scope="session")
def short_path():
    """A directory with a short path, so that there is room for a socket's name."""
    path = Path(tempfile.mkdtemp(prefix="pp-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def shared_site(short_path):
    """One endpoint for the whole run; never stop it."""
    site = Site(short_path, "shared")
    site.configure()
    site.start()
    yield site
    assert site.end() == 0


@pytest.fixture
def site(shared_site, monkeypatch):
    """The shared endpoint, empty; this process is one of its site."""
    shared_site.clear()
    monkeypatch.setenv("PROXYPLANE_ENDPOINTS", str(shared_site.directory))
    monkeypatch.setenv("PROXYPLANE_ENDPOINT", shared_site.name)
    return shared_site


@pytest.fixture
def make_site(tmp_path_factory, monkeypatch):
    """Makes sites for this test alone, that it may stop and kill; they are not started."""
    base = Path(tempfile.mkdtemp(prefix="pp-"))
    made = []

    def make(name, *words, network=""):
        site = Site(base, name, network)
        site.configure(*words)
        made.append(site)
        return site

    yield make
    for site in made:
        site.end(9)
    shutil.rmtree(base)
