"""A store's operations, from which `proxyplane.Store` and `proxyplane.sync.Store` are made."""

from __future__ import annotations

from proxyplane._store_futures import StoreFutures
from proxyplane._store_gets import StoreGets
from proxyplane._store_puts import StorePuts


class StoreCore(StorePuts, StoreGets, StoreFutures):
    """All that a store does, as operations that async and blocking code perform."""
