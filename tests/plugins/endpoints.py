"""Endpoints for tests: one that all share, and what is needed to make others."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from support.endpoints import Site, free_port, introduce


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
    here(monkeypatch, shared_site)
    return shared_site


@pytest.fixture(scope="session")
def shared_sites(short_path):
    """Two endpoints for the whole run, which are peers of each other; never stop them."""
    sites = [Site(short_path, name) for name in ("near", "far")]
    for site in sites:
        site.configure(listen=f"127.0.0.1:{free_port()}")
    introduce(*sites)
    for site in sites:
        site.start()
    yield sites
    assert [site.end() for site in sites] == [0, 0]


@pytest.fixture
def sites(shared_sites, monkeypatch):
    """These two endpoints, empty; this process is one of the site of the first."""
    for site in shared_sites:
        site.clear()
    here(monkeypatch, shared_sites[0])
    return shared_sites


def here(monkeypatch, site):
    """Makes this process one of a site."""
    monkeypatch.setenv("PROXYPLANE_ENDPOINTS", str(site.directory))
    monkeypatch.setenv("PROXYPLANE_ENDPOINT", site.name)


@pytest.fixture
def make_site():
    """Makes sites for this test alone, that it may stop and kill; they are not started."""
    base = Path(tempfile.mkdtemp(prefix="pp-"))
    made = []

    def make(name, *words, network="", listen=""):
        site = Site(base, name, network)
        site.configure(*words, listen=listen)
        made.append(site)
        return site

    yield make
    for site in made:
        site.end(9)
    shutil.rmtree(base)
