"""Sites that a test may stop and kill."""

from __future__ import annotations

import pytest

from plugins.endpoints import here
from support.endpoints import free_port, introduce


@pytest.fixture
def at(make_site, monkeypatch):
    """Makes a site with these settings, starts it, and makes this process one of it."""

    def make(*words):
        site = make_site("own", *words)
        here(monkeypatch, site)
        site.start()
        return site

    return make


@pytest.fixture
def pair(make_site, monkeypatch):
    """Two started sites that are peers and persist; this process is one of the first."""
    made = [
        make_site(name, "--persist", listen=f"127.0.0.1:{free_port()}") for name in ("one", "two")
    ]
    introduce(*made)
    for site in made:
        site.start()
    here(monkeypatch, made[0])
    return made
