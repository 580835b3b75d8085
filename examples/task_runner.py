"""A task runner: asyncio over a pool of processes, where only proxies go through the pool's pipe.

Shows tasks that take proxies and give proxies. A worker puts its result into the store and sends
back where it is; the runner passes that on to the next task, and the arrays never visit it. The
tasks themselves know nothing of all this: they take arrays and return them.

And shows overlap: a worker gets its next task before it begins with one. Proxies resolve where they
arrive, so the next inputs come while it computes; overlap.py draws a picture of that.

And shows leases: what a worker stores is gone after a minute, unless the runner renews that, once
it has been told. So nothing is left for long of a worker that is killed, nor of the runner.

They look for edges in photographs, at many scales: each photograph is blurred, and edges are
where two blurs of it differ.

    python examples/task_runner.py
    python examples/task_runner.py --scales 24 --workers 4 --store redis://localhost:6379/0
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import pickle
import signal
import sys
import time
import uuid
from asyncio import Future, Task
from collections.abc import AsyncIterator, Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from proxyplane import (
    FileConnector,
    LeaseLifetime,
    Proxy,
    Store,
    StoreConfig,
    set_default_store,
    to_proxy,
)

Image = NDArray[np.float64]
R = TypeVar("R")

LEASE_SECONDS = 60.0

# -- the tasks: plain functions of arrays -------------------------------------------------------


def blur(image: Image, sigma: float) -> Image:
    """The image as an eye sees it that makes out nothing smaller than `sigma` pixels."""
    blurred: Image = gaussian_filter(image, (sigma, sigma, 0))
    return blurred


def edges(fine: Image, coarse: Image) -> Image:
    """What one blur of an image still shows and a stronger one does not, in shades of grey."""
    difference: Image = np.abs(fine - coarse).mean(axis=2)
    return difference


def strength(image: Image) -> float:
    """How much edge there is in the whole image."""
    return float(image.mean())


# -- the runner ---------------------------------------------------------------------------------


class Job(NamedTuple):
    """A task on its way to a worker, and the future of its answer."""

    task: bytes
    answer: Future[bytes]


class Runner:
    """Runs functions in worker processes; results stay in the store until it ends.

    Attributes:
        keys: Under which workers store, or are going to.
        tasks: Tasks done.
        piped: Bytes that went through the pipes to the workers, there and back.
        stored: Bytes of the arrays that the tasks took from the store and put into it.
    """

    def __init__(self, results: LeaseLifetime) -> None:
        self._results = results
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        self.keys: set[str] = set()
        self.tasks = self.piped = self.stored = 0

    async def proxy(self, function: Callable[..., R], *args: Any) -> Proxy[R]:
        """Calls a function in a worker, which keeps the result in the store."""
        # Named here, and so removed at the end even if the answer gets lost.
        self.keys.add(key := uuid.uuid4().hex)
        proxy: Proxy[R] = await self._run(function, args, key)
        await self._results.aadd_key(key)  # from now on its lease is renewed
        self.keys.remove(key)
        return proxy

    async def value(self, function: Callable[..., R], *args: Any) -> R:
        """Calls a function in a worker and returns what it returns."""
        value: R = await self._run(function, args, None)
        return value

    async def _run(
        self, function: Callable[..., Any], args: tuple[Any, ...], key: str | None
    ) -> Any:
        job = Job(pickle.dumps((function, args, key)), asyncio.get_running_loop().create_future())
        self._jobs.put_nowait(job)
        answer = await job.answer
        result, nbytes = pickle.loads(answer)
        self.tasks += 1
        self.piped += len(job.task) + len(answer)
        self.stored += nbytes
        return result

    async def serve(self, worker: ProcessPoolExecutor) -> None:
        """Keeps one worker busy, and one task ahead."""
        loop = asyncio.get_running_loop()
        doing: Job | None = None
        while True:
            following = None
            if doing is None or not self._jobs.empty():
                following = await self._jobs.get()
            call = loop.run_in_executor(worker, work, following and following.task)
            await asyncio.wait([call])  # which leaves it alone when cancelled: nothing stops a task
            error = call.exception()
            if isinstance(error, BrokenExecutor):
                raise error
            if doing is not None and not doing.answer.done():
                if error is None:
                    doing.answer.set_result(call.result())
                else:
                    doing.answer.set_exception(error)
            doing = following


_ahead: tuple[Callable[..., Any], tuple[Any, ...], str | None] | None = None


def work(following: bytes | None) -> bytes:
    """Does the task that came with the last call, in a worker process.

    What follows is unpickled first: its proxies resolve in the background, while this computes.
    """
    global _ahead
    task, _ahead = _ahead, None
    if following is not None:
        try:
            _ahead = pickle.loads(following)
        except Exception as error:  # noqa: BLE001  # is raised in its turn, not in another task's
            _ahead = fail, (error,), None
    if task is None:
        return b""
    function, args, key = task
    result = function(*args)
    if key is not None:
        result = to_proxy(result, key=key, ttl=LEASE_SECONDS)
    # Proxies of arrays are arrays here too, and the function has resolved them.
    nbytes = sum(array.nbytes for array in (*args, result) if isinstance(array, np.ndarray))
    return pickle.dumps((result, nbytes))


def fail(error: Exception) -> None:
    """Does a task that could not be unpickled."""
    raise error


def use_store(config: StoreConfig) -> None:
    """Makes `to_proxy` put into the runner's store, in a worker process."""
    set_default_store(Store.from_config(config, register=True))


def start_worker(set_up: Callable[[], None]) -> ProcessPoolExecutor:
    """Starts a process that leaves Ctrl-C to this one; a pool of one has an order."""
    spawn = multiprocessing.get_context("spawn")
    worker = ProcessPoolExecutor(1, spawn, initializer=set_up)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # processes inherit that
    try:
        worker.submit(os.getpid)  # a process starts with its first task
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return worker


@asynccontextmanager
async def start_runner(
    store: Store, workers: int, set_up: Callable[[StoreConfig], None] = use_store
) -> AsyncIterator[Runner]:
    """A runner with processes of its own; afterwards they and its results are gone."""
    results = LeaseLifetime(store, LEASE_SECONDS)
    runner = Runner(results)
    pools = [start_worker(partial(set_up, store.config())) for _ in range(workers)]
    try:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(pool, os.getpid) for pool in pools))  # all here
        async with asyncio.TaskGroup() as group:
            serving = [group.create_task(runner.serve(pool)) for pool in pools]
            yield runner
            for task in serving:
                task.cancel()
    finally:
        for pool in pools:
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        await results.aclose()
        await store.evict_batch(list(runner.keys))


# -- the work -----------------------------------------------------------------------------------


async def find_edges(runner: Runner, photograph: Proxy[Image], scales: list[float]) -> list[float]:
    """How much edge a photograph has between each scale and the next."""
    async with asyncio.TaskGroup() as group:
        blurs = [group.create_task(runner.proxy(blur, photograph, sigma)) for sigma in scales]

        async def measure(fine: Task[Proxy[Image]], coarse: Task[Proxy[Image]]) -> float:
            difference = await runner.proxy(edges, await fine, await coarse)
            return await runner.value(strength, difference)

        found = [group.create_task(measure(fine, coarse)) for fine, coarse in pairwise(blurs)]
    return [task.result() for task in found]


async def run(store_url: str | None, scales: list[float], workers: int) -> None:
    """Finds the edges of all photographs and prints them, and what it took."""
    from sklearn.datasets import load_sample_images  # here, for workers import this file too

    samples = load_sample_images()
    names = [os.path.basename(name) for name in samples.filenames]
    started = time.perf_counter()
    async with (
        Store("task-runner", store_url or FileConnector()) as store,
        LeaseLifetime(store, LEASE_SECONDS) as inputs,
    ):
        images = [image / 255 for image in samples.images]
        photographs = await store.proxy_batch(images, lifetime=inputs)
        async with start_runner(store, workers) as runner, asyncio.TaskGroup() as group:
            finding = [group.create_task(find_edges(runner, p, scales)) for p in photographs]
    seconds = time.perf_counter() - started

    print("blur (pixels)", *(f"{name:>12}" for name in names))
    answers = [task.result() for task in finding]
    for (fine, coarse), *found in zip(pairwise(scales), *answers, strict=True):
        print(f"{fine:5.2f} - {coarse:5.2f}", *(f"{value:12.5f}" for value in found))
    print()
    print(f"{'tasks':>13} {'through the pipe':>18} {'through the store':>18} {'time':>10}")
    piped, stored = f"{runner.piped / 1e3:.1f} kB", f"{runner.stored / 1e6:.1f} MB"
    print(f"{runner.tasks:13} {piped:>18} {stored:>18} {seconds:8.2f} s")


def main() -> None:
    """Reads the command line and runs the tasks."""
    parser = argparse.ArgumentParser(description="Edges in photographs, by a pool of processes.")
    parser.add_argument("--scales", type=int, default=12, help="how many blurs (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument("--store", metavar="URL", help="a connector's URL; files by default")
    options = parser.parse_args()
    scales = [0.5 * 2 ** (i / 3) for i in range(options.scales)]
    try:
        asyncio.run(run(options.store, scales, options.workers))
    except KeyboardInterrupt:
        sys.exit("interrupted: the workers have ended and the store is clean")


if __name__ == "__main__":
    main()
