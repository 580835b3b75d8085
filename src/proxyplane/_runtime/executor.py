"""An executor whose threads do not keep the process from ending."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from proxyplane._runtime.workers import Workers

T = TypeVar("T")
P = ParamSpec("P")


class DaemonExecutor(ThreadPoolExecutor):
    """Calls on `Workers`. Event loops take a `ThreadPoolExecutor` only; its own threads, which
    the interpreter waits for at exit, and which refuse work from then on, are never started.

    Args:
        max_workers: The number of threads.
    """

    def __init__(self, max_workers: int) -> None:
        super().__init__(max_workers)
        self._workers = Workers(max_workers)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Calls ``fn`` on a worker thread.

        Raises:
            IOThreadError: No thread can be started.
        """
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - carried
                future.set_exception(error)
            else:
                future.set_result(result)

        self._workers.submit(job)
        return future
