"""A medium of each kind."""

from __future__ import annotations

import pytest

from support import counted as media


@pytest.fixture(params=media.KINDS)
def counted(request, tmp_path, monkeypatch):
    """A connector, and what counts all that its medium holds."""
    return media.make(request.param, request, tmp_path / "objects", monkeypatch)
