"""Policies: which objects travel as proxies."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane import ProxyAlways, ProxyNever, ProxySize, ProxyType, is_resolved


class TestPolicies:
    @pytest.mark.parametrize(
        ("policy", "item", "chosen"),
        [
            (ProxyAlways(), 1, True),
            (ProxyNever(), [1], False),
            (ProxyType(str, float), "text", True),
            (ProxyType(str, float), [1], False),
            (ProxyType(int), True, True),
            (ProxySize(1000), b"a" * 1000, True),
            (ProxySize(1000), "a" * 900, False),
            (ProxySize(1000), {"a": ["b" * 1000]}, True),
            (ProxySize(1000), [1, 2, 3], False),
            (ProxySize(8000), np.zeros(1000), True),
            (ProxySize(8001), np.zeros(1000), False),
            (ProxySize(8000), [np.zeros(500), {1: np.zeros(500)}], True),
            (ProxySize(8000), [np.zeros(500)] * 2, False),
            (ProxySize(8000), pd.DataFrame({"a": range(1000)}), True),
            (ProxySize(8000), pl.DataFrame({"a": range(1000)}), True),
            (ProxySize(8000), memoryview(bytearray(8000)), True),
            (ProxySize(8000), Path, False),
            (ProxySize(0), 1, True),
        ],
    )
    def test_choice(self, policy: Any, item: Any, chosen: bool) -> None:
        """A policy chooses by type or size, and travels."""
        assert chosen is policy(item)
        assert chosen is pickle.loads(pickle.dumps(policy))(item)

    def test_size_of_proxies(self, file_store: pp.sync.Store) -> None:
        """What is in a container and a proxy already is small, and is not fetched."""
        proxies = [file_store.proxy(b"a" * 10_000, populate_target=False) for _ in range(3)]
        assert not ProxySize(10_000)(proxies)
        assert not any(map(is_resolved, proxies))

    def test_size_of_a_cycle(self) -> None:
        """What contains itself, and what is endless, has a size."""
        cycle: list[Any] = [b"a" * 100]
        cycle.append(cycle)
        assert not ProxySize(1000)(cycle)
        assert ProxySize(100)(cycle)
