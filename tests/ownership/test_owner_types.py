"""What mypy sees of owners, borrows and executors."""

from __future__ import annotations

from pathlib import Path

import pytest

from test_typing import FILES, Mypy, _expected


@pytest.mark.timeout(300)
def test_owners(tmp_path: Path) -> None:
    """Owners and borrows have the members of their target, and what needs an owner says so."""
    types, errors, _ = _expected("owners.py")
    revealed, refused = Mypy(tmp_path, ["proxyplane.mypy_plugin"])(FILES / "owners.py")
    assert types == revealed
    assert errors.keys() == refused.keys()
    for place, (codes, text) in errors.items():
        assert codes == {code for code, _ in refused[place]}
        assert any(text in message for _, message in refused[place])
