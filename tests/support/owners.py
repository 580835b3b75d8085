"""Waits for what happens to objects whose owner is gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import proxyplane.sync as pp_sync

LONG = 30.0
"""Seconds that nothing takes, unless it does not happen."""


def until(condition: Callable[[], object]) -> None:
    """Returns when the condition holds."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def gone(store: pp_sync.Store, key: str) -> None:
    """Returns when the store does not hold the key any more."""
    until(lambda: not store.exists(key))


def unresolved(store: pp_sync.Store, obj: Any) -> Any:
    return store.owned_proxy(obj, populate_target=False)
