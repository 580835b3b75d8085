"""What the experiments share: the reference, servers, directories, peer processes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks._report import Report
from proxyplane._server import EmbeddedServer

REFERENCE = "1.1.0"


def has_reference() -> bool:
    """Whether the reference, ProxyStore, is installed in the version that the targets name."""
    if importlib.util.find_spec("proxystore") is None:
        return False
    return importlib.metadata.version("proxystore") == REFERENCE


def reference_store(name: str, place: str) -> Any:
    """ProxyStore's store at a Redis URL, in a directory, or in the memory of this process."""
    from proxystore.connectors.file import FileConnector
    from proxystore.connectors.local import LocalConnector
    from proxystore.connectors.redis import RedisConnector
    from proxystore.store import Store as ReferenceStore

    connector: Any
    if place.startswith("redis:"):
        host, port = place.removeprefix("redis://").removesuffix("/0").split(":")
        connector = RedisConnector(host, int(port))
    elif place:
        connector = FileConnector(place.removeprefix("file://"))
    else:
        connector = LocalConnector()
    # A name, there, belongs to one store of the process.
    name = f"{name}-{uuid.uuid4().hex}"
    return ReferenceStore(name, connector, cache_size=0, register=True)


@contextlib.contextmanager
def redis_server(report: Report, binary: str = "") -> Iterator[EmbeddedServer]:
    """A server of one's own, on a TCP port; it refuses to fill the machine's memory."""
    binary = binary or report.settings.servers[0]
    with EmbeddedServer(binary=binary, tcp=True, args=("--maxmemory", "4gb")) as server:
        yield server


@contextlib.contextmanager
def object_directory(parent: str | None = None) -> Iterator[str]:
    """A new directory, by default on the disk of temporary files."""
    with tempfile.TemporaryDirectory(prefix="proxyplane-bench-", dir=parent) as path:
        yield path


@contextlib.contextmanager
def peer(function: Callable[..., None], *args: object) -> Iterator[Connection]:
    """Runs ``function(connection, *args)`` in a process of its own; gives the other end.

    The function ends when it receives None.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(theirs, *args))
    process.start()
    theirs.close()
    try:
        yield ours
        ours.send(None)
        process.join(20)
    finally:
        if process.is_alive():
            process.terminate()
        process.join()
        ours.close()
    if process.exitcode:
        sys.exit(f"{function.__module__}.{function.__name__} failed in its process")


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def processor_seconds(pid: int) -> float:
    """The processor time that a process has used; 0 for process 0."""
    if not pid:
        return 0.0
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
