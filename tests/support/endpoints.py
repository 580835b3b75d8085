"""Endpoints that run, each a process with a directory of its own, perhaps in another network."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxyplane import cli
from proxyplane.connectors.endpoint.keys import quote_key

SECONDS = 50
MAIN = "import sys\nfrom proxyplane import cli\nsys.exit(cli.main())"
FORGETS = """
from proxyplane.connectors.endpoint.watch import Watch
real = Watch._send
async def send(self, session, answer):
    if hasattr(self, "asked"):
        self._unsent.clear()
    self.asked = True
    await real(self, session, answer)
Watch._send = send
"""
"""Does not ask once more, after a link was lost, for what is waited for."""

WHERE = {
    "memory": (),
    "spilled": ("--memory", "100KB"),
    "persistent": ("--persist",),
    "persistent, on disk": ("--persist", "--memory", "100KB"),
}
"""The settings of an endpoint by which objects are here or there."""


class Site:
    """A machine with one endpoint, of which processes are told by their environment.

    Args:
        directory: For its files; not to be long, since a socket is in it.
        name: Of the endpoint.
        network: The network namespace in which everything of the site runs; that of the tests if
            left out.
    """

    def __init__(self, directory: Path, name: str, network: str = "") -> None:
        self.name = name
        self.directory = directory / name
        self.network = network
        self.id = ""
        self.listen = ""
        self.process: subprocess.Popen | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process one of this site."""
        return {
            **os.environ,
            "PROXYPLANE_ENDPOINTS": str(self.directory),
            "PROXYPLANE_ENDPOINT": self.name,
        }

    def command(self, *words: str) -> list[str]:
        """A command, to be run at this site."""
        inside = ["ip", "netns", "exec", self.network] if self.network else []
        return [*inside, *words]

    def run(self, *words: str, check: bool = True, **more) -> subprocess.CompletedProcess:
        """Runs ``proxyplane endpoint ...`` at this site."""
        done = subprocess.run(
            self.command(sys.executable, "-m", "proxyplane", "endpoint", *words),
            env=self.environment,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            **more,
        )
        if check and done.returncode:
            raise AssertionError(f"{words}: {done.returncode}\n{done.stderr.decode()}")
        return done

    def configure(self, *words: str, listen: str = "") -> str:
        """Makes or changes the endpoint; returns its id."""
        if listen:
            self.listen = listen
            words = (*words, "--listen", listen)
        # In this process: a test may make many, and the package for certificates loads slowly.
        said = io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(said),
            ThreadPoolExecutor(1) as thread,  # where no loop runs that it could block
        ):
            patch.setenv("PROXYPLANE_ENDPOINTS", str(self.directory))
            code = thread.submit(cli.main, ["endpoint", "configure", self.name, *words]).result()
        assert code == 0
        self.id = said.getvalue().strip()
        return self.id

    def start(self, without: str = "") -> None:
        """Starts it in front, as a child of the tests; returns when it serves.

        Args:
            without: Python that it runs first, to switch off something of it.
        """
        program = ["-m", "proxyplane"]
        if without:
            program = [
                "-c",
                f"{without}\nimport sys\nfrom proxyplane import cli\nsys.exit(cli.main())",
            ]
        reader, writer = os.pipe()
        with open(self.directory / "stderr", "ab") as log:
            self.process = subprocess.Popen(
                self.command(
                    *(sys.executable, "-W", "error", *program, "endpoint", "start"),
                    *(self.name, "--front", "--ready-fd", str(writer)),
                ),
                env=self.environment,
                pass_fds=(writer,),
                stderr=log,
            )
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        assert said == b"ready", self.log

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.directory / "stderr").read_text("utf-8")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends it with a signal; returns its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        self.process = None
        return code

    @property
    def files(self) -> list[str]:
        """The names of the files of its objects."""
        return sorted(os.listdir(self.directory / self.name / "objects"))

    @property
    def socket_path(self) -> str:
        """The path of its socket."""
        state = json.loads((self.directory / self.name / "running.json").read_text("utf-8"))
        return state["socket"]

    def ask(self, method: str, path: str, body: bytes = b"", **fields: str):
        """Asks it over its socket, without the connector; returns the status and the body."""
        connection = _UnixConnection(self.socket_path)
        try:
            connection.request(method, path, body or None, {**fields})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def status(self) -> dict:
        """What it tells its operator."""
        return json.loads(self.ask("GET", "/v1/status")[1])

    def clear(self) -> None:
        """Evicts everything."""
        body = json.dumps({"prefix": ""}).encode()
        assert self.ask("POST", "/v1/clear", body)[0] == 200


def free_port() -> int:
    """A port of the loopback interface that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def introduce(*sites: Site) -> None:
    """Makes each of some sites, which listen, a peer of all the others."""
    for one in sites:
        peers = [
            f"--peer={other.name}={other.id}@{other.listen}" for other in sites if other != one
        ]
        one.configure(*peers)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("endpoint", timeout=SECONDS)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self.path)


def path_of(key: str) -> str:
    """Where an object is, in the API."""
    return f"/v1/objects/{quote_key(key)}"
