"""The task runner without overlap and with it, and a picture of what its workers did when.

The same tasks run twice: with a store whose proxies resolve when they are touched (`eager=False`),
and with one whose proxies resolve where they arrive, which is what a store does by itself.

What is measured is measured as anybody could: the fetches in a connector around the connector, the
computing around the call of the function.

    python examples/overlap.py overlap.svg                                 # files: there at once
    python examples/overlap.py overlap.svg --link 125                      # as by gigabit Ethernet
    python examples/overlap.py overlap.svg --store redis://localhost:6379/0
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
from task_runner import Image, blur, edges, start_runner, strength
from timeline import COMPUTE, FETCH, Run, Span, draw

from proxyplane import (
    Connector,
    FileConnector,
    Proxy,
    Store,
    StoreConfig,
    get_key,
    resolve,
    set_default_store,
)
from proxyplane.abc import Buffer, Frames
from proxyplane.config import connector_from_url

R = TypeVar("R")

# -- in a worker --------------------------------------------------------------------------------


_spans: list[Span] = []


@contextmanager
def spent(lane: str) -> Iterator[None]:
    """Takes down how long something took."""
    start = time.perf_counter()
    try:
        yield
    finally:
        _spans.append(Span(os.getpid(), lane, start, time.perf_counter()))


def observe(function: Callable[..., R], *args: Any) -> tuple[R, list[Span]]:
    """Calls a function when its inputs are there; returns what was taken down, too."""
    for arg in args:
        if isinstance(arg, Proxy):
            resolve(arg)  # the function would: so waiting is not taken for computing
    with spent(COMPUTE):
        value = function(*args)
    spans = _spans[:]
    del _spans[: len(spans)]
    return value, spans


class Observed(Connector):
    """A connector whose fetches are taken down.

    Args:
        inner: The connector that does the work.
        link: Bytes a second that come over the network between the medium and this process, one
            object after another; None for what the medium really does.
    """

    scheme = "observed"

    def __init__(self, inner: Connector, link: float | None) -> None:
        self.inner = inner
        self._link = link
        self._busy = asyncio.Lock()  # one is enough: proxies fetch on the library's loop only

    @property
    def url(self) -> str:
        """The URL of the connector inside: by it, proxies find the store that has this one."""
        return self.inner.url

    @classmethod
    def from_url(cls, url: str) -> Observed:
        """What the URL describes, on no link."""
        return cls(connector_from_url(url), None)

    async def get(self, key: str, *, size: int | None = None) -> Buffer | None:
        """Fetches an object, as fast as the link is."""
        if self._link is None:
            with spent(FETCH):
                return await self.inner.get(key, size=size)
        async with self._busy:
            with spent(FETCH):
                start = time.perf_counter()
                found = await self.inner.get(key, size=size)
                due = start + (len(found) if found is not None else 0) / self._link
                await asyncio.sleep(due - time.perf_counter())
                return found

    async def put(self, frames: Frames, *, key: str | None = None) -> str:
        """As the connector inside."""
        return await self.inner.put(frames, key=key)

    async def exists(self, key: str) -> bool:
        """As the connector inside."""
        return await self.inner.exists(key)

    async def evict(self, key: str) -> bool:
        """As the connector inside."""
        return await self.inner.evict(key)

    async def aclose(self, *, clear: bool = False) -> None:
        """As the connector inside."""
        await self.inner.aclose(clear=clear)


def use_observed_store(link: float | None, config: StoreConfig) -> None:
    """Makes proxies of the runner's store fetch through an `Observed`, in a worker process."""
    connector = Observed(connector_from_url(config.connector), link)
    set_default_store(Store(config.name, connector, eager=config.eager, register=True))


# -- the work -----------------------------------------------------------------------------------


def detail(frame: Image) -> float:
    """How much there is to see in one frame of a film, at four scales."""
    return sum(strength(edges(frame, blur(frame, sigma))) for sigma in (1, 2, 4, 8))


async def watch(
    store: Store, film: list[Image], workers: int, link: float | None
) -> tuple[list[float], list[Span]]:
    """Looks for detail in each frame of a film, and takes down who did what when."""
    observed = partial(use_observed_store, link)
    async with store:
        frames = await store.proxy_batch(film)
        try:
            async with start_runner(store, workers, observed) as runner:
                answers = await asyncio.gather(
                    *(runner.value(observe, detail, frame) for frame in frames)
                )
        finally:
            await store.evict_batch([get_key(frame) for frame in frames])
    return [value for value, _ in answers], [span for _, spans in answers for span in spans]


async def compare(
    store_url: str | None, frames: int, workers: int, link: float | None, picture: str
) -> None:
    """Watches a film without overlap and with it, and draws who did what when."""
    from sklearn.datasets import load_sample_images  # here, for workers import this file too

    # Two photographs are a panorama; the camera turns.
    panorama = np.concatenate(load_sample_images().images, axis=1) / 255
    film = [np.roll(panorama, 32 * i, axis=1)[:, :640].copy() for i in range(frames)]
    runs, found = [], []
    for title, remark, eager in (
        ("Without overlap", "each input is fetched when it is used", False),
        ("With overlap", "the next input arrives while this one is used", True),
    ):
        store = Store("film", store_url or FileConnector(), eager=eager)
        values, spans = await watch(store, film, workers, link)
        runs.append(Run(title, remark, spans))
        found.append(values)
    assert found[0] == found[1]

    print(f"{'':16} {'time':>8} {'fetching':>10} {'computing':>10} {'fetching hidden':>16}")
    for run in runs:
        figures = f"{run.seconds:6.2f} s {run.total(FETCH):8.2f} s {run.total(COMPUTE):8.2f} s"
        print(f"{run.title:16} {figures} {run.hidden():16.0%}")

    medium = (store_url or "files").partition(":")[0]
    caption = f"{frames} tasks; each fetches {film[0].nbytes / 1e6:.1f} MB from {medium}"
    if link:
        caption += f", slowed down to a link of {link / 1e6:g} MB/s for each worker"
    with open(picture, "w", encoding="utf-8") as file:
        file.write(draw(runs, caption))


def main() -> None:
    """Reads the command line and runs the tasks twice."""
    parser = argparse.ArgumentParser(description="Fetching behind computing, in a picture.")
    parser.add_argument("picture", metavar="FILE.svg", help="where to draw it")
    parser.add_argument("--frames", type=int, default=20, help="how many tasks (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--store", metavar="URL", help="a connector's URL; files by default")
    parser.add_argument(
        "--link", type=float, metavar="MB/S", help="wait as if each worker had a link so fast"
    )
    options = parser.parse_args()
    link = options.link and options.link * 1e6
    try:
        asyncio.run(compare(options.store, options.frames, options.workers, link, options.picture))
    except KeyboardInterrupt:
        sys.exit("interrupted: the workers have ended and the store is clean")


if __name__ == "__main__":
    main()
