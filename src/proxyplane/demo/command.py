"""The command: sets up, runs the comparison, shows it, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from proxyplane.connectors.file import FileConnector
from proxyplane.demo import data, report
from proxyplane.demo.compare import Comparer
from proxyplane.demo.errors import DemoError, sentence
from proxyplane.demo.pool import Pool
from proxyplane.exceptions import ConfigError, ProxyPlaneError
from proxyplane.sync import Store

EXIT_FAILED = 1
EXIT_UNUSABLE = 2


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        paths: Files and directories to send; photographs if there are none.
        connector: ``"file"``, ``"redis"`` or a connector's URL.
        workers: Worker processes; by default as many as cores.
        rounds: Rounds of each way.
        megabytes: How much to send; see `data`.
        json: Whether to print JSON.
    """

    paths: list[str] = field(default_factory=list)
    connector: str = "file"
    workers: int | None = None
    rounds: int = 7
    megabytes: int | None = None
    json: bool = False


def run(options: Options) -> int:
    """Runs the demo and returns the exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C; nothing is left behind.
        SystemExit: SIGTERM; likewise.
    """
    progress = report.Progress()
    try:
        with _terminable():
            return _run(options, progress)
    except DemoError as exc:
        message, code = str(exc), exc.code
    except ProxyPlaneError as exc:
        message, code = sentence(exc), EXIT_FAILED
    except ImportError as exc:
        message, code = f"a package is broken: {exc}", EXIT_UNUSABLE
    except MemoryError:
        message, code = "there is not enough memory; --size takes less", EXIT_UNUSABLE
    finally:
        progress.clear()
    print(f"proxyplane demo: {message}", file=sys.stderr)
    return code


def _run(options: Options, progress: report.Progress) -> int:
    workers = options.workers or _cores()
    with _store(options.connector) as (store, where):
        dataset = _load(options, progress)
        comparer = Comparer(dataset, store, progress)
        with Pool(workers) as pool:
            comparer.compute_directly()  # while the workers start
            progress("starting workers", 0, 0)
            with Pool(1, trace=True) as tracing:
                tracing.wait_ready()
                comparer.trace(tracing)
            pool.wait_ready()
            comparer.compare(pool, options.rounds)
            if not comparer.found.wrong:
                comparer.await_all()
        url = store.connector.url
    found = comparer.found
    progress.clear()
    if options.json:
        print(report.as_json(dataset, found, workers=workers, url=url))
    else:
        report.show(dataset, found, workers=workers, where=where)
    return EXIT_FAILED if found.wrong else 0


def _load(options: Options, progress: report.Progress) -> data.Dataset:
    if options.paths:
        progress("reading files", 0, 0)
        return data.files(options.paths, options.megabytes or data.FILES_MEGABYTES)
    progress("making images of two photographs", 0, 0)
    return data.photographs(options.megabytes or data.PHOTOGRAPHS_MEGABYTES)


@contextlib.contextmanager
def _store(connector: str) -> Iterator[tuple[Store, str]]:
    """A store that works, and where its objects are, for people; clears what was put."""
    with contextlib.ExitStack() as stack:
        try:
            url, where = _medium(connector, stack)
            store = Store("demo", FileConnector() if url is None else url, register=True)
            store.evict(store.put(b"demo"))  # is anybody there, and is there room?
        except ProxyPlaneError as exc:
            raise DemoError(sentence(exc)) from exc
        if isinstance(store.connector, FileConnector):
            where = f"files in {store.connector.directory}; none is left there"
        try:
            yield store, where or f"{store.connector.url}; none is left there"
        except BaseException:
            with contextlib.suppress(ProxyPlaneError):  # the first error says more
                store.close(clear=True)
            raise
        store.close(clear=True)


def _medium(connector: str, stack: contextlib.ExitStack) -> tuple[str | None, str]:
    """The URL of the connector, None for the default directory; and where that is, for people."""
    if connector == "file":
        return None, ""
    if connector == "redis":
        from proxyplane._server import EmbeddedServer

        server = stack.enter_context(EmbeddedServer())
        return server.url, "a Valkey server that ran for this demo only"
    if connector == "local" or connector.startswith("local:"):
        raise ConfigError(
            "a local connector keeps objects in the memory of one process, and the workers are "
            "others",
            hint="use file or redis",
        )
    if "://" not in connector:
        raise ConfigError(
            f"there is no connector {connector!r}",
            hint="use file, redis, or a URL such as redis://localhost:6379",
        )
    return connector, ""


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Lets a SIGTERM clean up as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
