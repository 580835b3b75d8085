"""Leaks of every kind, to be planted: what judges of leaks must see each of them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import proxyplane as pp
from proxyplane import _secrets

_kept: list[Any] = []


def _thread() -> threading.Thread:
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    return thread


def _task() -> Any:
    loop = asyncio.new_event_loop()
    return loop.create_task(asyncio.sleep(0), name="planted"), loop


def _entry() -> None:
    _secrets._registered[f"planted {len(_secrets._registered)}"] = str


LEAKS: dict[str, Callable[[Any], Any]] = {
    "MiB": lambda store: bytes(range(256)) * 2_000,
    "heap MiB": lambda store: bytearray(200_000),
    "blocks": lambda store: [str(number) * 2 for number in range(400)],
    "descriptors": lambda store: os.open("/dev/null", os.O_RDONLY),
    "threads": lambda store: _thread(),
    "tasks": lambda store: _task(),
    "objects": lambda store: [store.proxy_from_key("absent") for _ in range(10)],
    "entries": lambda store: [_entry() for _ in range(10)],
    "left": lambda store: pp.sync.Store.of(store).put_batch([b"left"] * 5),
}
"""What is kept for ever after an operation, by the measure that must show it."""


async def plant(leak: str, store: Any) -> None:
    """Leaks once more."""
    _kept.append(await asyncio.to_thread(LEAKS[leak], store))
