"""Worker processes, and a task queue that counts the bytes that go through it.

The queue does what `multiprocessing.Queue` does: one pipe, written by a thread of the producer,
and read by whichever worker holds the lock. It is built here because that one does not count.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Lock
from typing import TYPE_CHECKING, Any

from proxyplane.demo.errors import DemoError, sentence
from proxyplane.demo.work import Answer, analyse

if TYPE_CHECKING:
    from typing import Self

    SomeConnection = Connection[Any, Any]
    _Connection = Connection[Any, Any]
else:
    SomeConnection = Any
    _Connection = Connection

_JOIN_SECONDS = 1.0


class CountingConnection(_Connection):
    """The writing end of a pipe, which counts the bytes that the kernel took from it.

    Args:
        writer: The end to take over.
    """

    def __init__(self, writer: SomeConnection) -> None:
        super().__init__(os.dup(writer.fileno()), readable=False)
        writer.close()
        self.written = 0

    def _send(self, data: Any, write: Callable[[int, Any], int] = os.write) -> None:
        def counted(handle: int, piece: Any) -> int:
            count = write(handle, piece)
            self.written += count
            return count

        # Every byte of a message, its length included, goes through here.
        super()._send(data, counted)  # type: ignore[misc]


@dataclass(frozen=True)
class Done:
    """What a worker sends back.

    Attributes:
        index: Which task it was.
        answer: The result; None if it failed.
        error: Why it failed.
        peak: Bytes of memory that receiving the object took, at most; 0 unless traced.
    """

    index: int
    answer: Answer | None
    error: str = ""
    peak: int = 0


class Pool:
    """Worker processes, spawned, that share one task queue.

    A context manager: afterwards no process is left. They end as well when this process dies.

    Args:
        count: How many.
        trace: Whether they measure the memory that receiving takes, which slows them down.
    """

    def __init__(self, count: int, *, trace: bool = False) -> None:
        self.count = count
        self._context = multiprocessing.get_context("spawn")
        self._trace = trace
        self._processes: list[SpawnProcess] = []
        self._results: list[SomeConnection] = []
        self._feeder: threading.Thread | None = None

    def __enter__(self) -> Self:
        reader, writer = self._context.Pipe(duplex=False)
        self.queue = CountingConnection(writer)
        # Readable when the feeder has failed.
        self._alarm, self._alarm_end = self._context.Pipe(duplex=False)
        try:
            # Kept: its name is removed with it, and a process that starts looks for the name.
            self._lock = self._context.Lock()
            with _no_interrupt():
                for _ in range(self.count):
                    self._start(reader)
        except BaseException:
            reader.close()
            self._end()
            raise
        # Only the workers may hold it: then a write fails, and does not wait, when all are gone.
        reader.close()
        return self

    def _start(self, reader: SomeConnection) -> None:
        result, result_end = self._context.Pipe(duplex=False)
        with result_end:
            process = self._context.Process(
                target=_work, args=(reader, self._lock, result_end, self._trace), daemon=True
            )
            self._results.append(result)
            process.start()
            self._processes.append(process)

    def __exit__(self, *exc_info: object) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + _JOIN_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        if self._feeder is not None:
            # Without readers its next write fails. It may still wait for a store that hangs; and
            # one whose start was interrupted cannot be joined.
            with contextlib.suppress(RuntimeError):
                self._feeder.join(_JOIN_SECONDS)
        for connection in (self.queue, self._alarm, self._alarm_end, *self._results):
            connection.close()

    def wait_ready(self) -> None:
        """Returns when every worker has imported what it needs.

        Raises:
            DemoError: A worker ended.
        """
        for done in self._receive(self.count):
            if done.error:
                raise DemoError(f"a worker cannot start: {done.error}", code=1)

    def run(self, payloads: Iterable[Any], count: int) -> Iterator[Done]:
        """Sends tasks to the workers, in a thread, and gives what comes back, as it comes.

        Args:
            payloads: What to send; advanced in that thread.
            count: How many there are.

        Raises:
            DemoError: A worker ended.
            Exception: What `payloads` raised.
        """
        failed: list[BaseException] = []

        def feed() -> None:
            try:
                for index, payload in enumerate(payloads):
                    self.queue.send((index, payload))
            except BaseException as exc:  # noqa: BLE001  raised again by `_receive`
                # The frames of `send` hold a view of a buffer. Destroyed in the wrong order, when
                # the exception goes, the two would complain on the screen.
                traceback.clear_frames(exc.__traceback__)
                failed.append(exc)
                self._alarm_end.send_bytes(b"!")

        self._feeder = threading.Thread(target=feed, name="demo feeder", daemon=True)
        self._feeder.start()
        yield from self._receive(count, failed)
        self._feeder.join()

    def _receive(self, count: int, failed: Sequence[BaseException] = ()) -> Iterator[Done]:
        sentinels = {process.sentinel: process for process in self._processes}
        while count:
            ready = wait([*self._results, self._alarm, *sentinels])
            for result in self._results:
                if result in ready and count:
                    with contextlib.suppress(EOFError):  # its sentinel tells
                        yield result.recv()
                        count -= 1
            for one in ready:
                if isinstance(one, int):
                    raise DemoError(_obituary(sentinels[one]), code=1)
            if self._alarm in ready:
                raise failed[0]


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; those made in here leave it to this one.

    They inherit the mask, so that they never see it, not even while they are importing. Here it
    is only put off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Making the first lock has started the tracker, which would lift the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _obituary(process: SpawnProcess) -> str:
    process.join()
    code = process.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"worker process {process.pid} {how}"


# -- in the worker ------------------------------------------------------------------------------


def _work(tasks: SomeConnection, lock: Lock, results: SomeConnection, trace: bool) -> None:
    """The whole life of a worker process."""
    try:
        import numpy as np  # now, not during the first task

        np.zeros(1)
        results.send(Done(-1, None))
        if trace:
            tracemalloc.start()
        while True:
            before = 0
            if trace:
                before, _ = tracemalloc.get_traced_memory()
                tracemalloc.reset_peak()
            with lock:
                message = tasks.recv_bytes()
            results.send(_do(message, before))
            del message
    except (EOFError, BrokenPipeError):
        pass  # the producer is gone


def _do(message: bytes, before: int) -> Done:
    index = -1
    try:
        # An array, or a proxy of one: from here on nobody asks which.
        index, array = pickle.loads(message)
        array.nbytes  # noqa: B018  the object is here now, however it came
        peak = tracemalloc.get_traced_memory()[1] - before if tracemalloc.is_tracing() else 0
        return Done(index, analyse(array), peak=peak)
    except Exception as exc:  # noqa: BLE001  the producer reports it
        return Done(index, None, error=f"{type(exc).__name__}: {sentence(exc)}")
