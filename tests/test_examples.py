"""The examples, run as their readers run them: real processes, a real client, a real kernel."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import nbclient
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from sklearn.datasets import load_iris, load_sample_images

from plugins.blocking import ALLOWED
from support.servers import admin

EXAMPLES = Path(__file__).parent.parent / "examples"
SECONDS = 50


@pytest.fixture
def environment(tmp_path):
    """A home of its own for the objects, and no blocking touch of a running loop."""
    changed = {
        "PROXYPLANE_DIR": str(tmp_path / "objects"),
        "PROXYPLANE_ON_BLOCKING": "raise",
        "PYTHONUNBUFFERED": "1",
    }
    return {k: v for k, v in os.environ.items() if not k.startswith("TABLES_")} | changed


def objects(environment):
    """The names of what lies in the directory of the objects."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(environment["PROXYPLANE_DIR"]))
    return []


def start(environment, *command):
    """Starts an example in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        # A test run in the background of a shell ignores it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@contextlib.contextmanager
def ending(process):
    """Leaves no process of the example behind, whatever the test finds."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()


class TestAll:
    def test_listed(self):
        """The examples' README has a line for each of them, and for nothing else."""
        text = (EXAMPLES / "README.md").read_text("utf-8")
        linked = re.findall(r"^\| \[(\S+)\]\((\S+)\)", text, re.MULTILINE)
        files = sorted(p.name for p in EXAMPLES.iterdir() if p.suffix in {".py", ".ipynb"})
        assert [(name, name) for name in files] == sorted(linked)

    @pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.glob("*.py")))
    def test_says_how_to_run_it(self, name):
        """The docstring of an example has the command that runs it."""
        docstring = ast.get_docstring(ast.parse((EXAMPLES / name).read_text("utf-8")))
        assert f"\n    python examples/{name}" in docstring


# -- the service --------------------------------------------------------------------------------

# Runs the service with a detector that makes a call that blocks its loop an error.
DETECTED = f"""
import sys
from fnmatch import fnmatchcase
from blockbuster import BlockBuster

sys.path.insert(0, {str(EXAMPLES)!r})
import service

class Matching:
    def __init__(self, patterns):
        self.patterns = patterns
    def __contains__(self, name):
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

detector = BlockBuster(["service", "proxyplane"])
for function in detector.functions.values():
    for filename, patterns in {[(name, matching.patterns) for name, matching in ALLOWED]!r}:
        function.can_block_in(filename, Matching(patterns))
detector.activate()
service.main()
"""


def iris():
    """A real table: 150 flowers, four measures and a species each."""
    bunch = load_iris(as_frame=True)
    return bunch.frame.assign(species=bunch.target_names[bunch.target]).drop(columns="target")


def as_csv(table):
    return table.to_csv(index=False).encode()


class Service:
    """A running service and a client of it."""

    def __init__(self, process, url, client):
        self.process = process
        self.url = url
        self.client = client

    async def ask(self, method, path, body=None):
        """The status and the answer, decoded if it is JSON."""
        data = io.BytesIO(body) if body is not None else None
        async with self.client.request(method, self.url + path, data=data) as reply:
            if reply.content_type == "application/json":
                return reply.status, await reply.json()
            return reply.status, await reply.text()

    async def stop(self):
        """Ends it as a supervisor does; as `finish`."""
        self.process.send_signal(signal.SIGTERM)
        return await self.finish()

    async def finish(self):
        """Waits for its end; its exit code and what it said of errors."""
        _, stderr = await asyncio.to_thread(self.process.communicate, timeout=SECONDS)
        return self.process.returncode, stderr


@contextlib.asynccontextmanager
async def serving(environment, *args, program=(EXAMPLES / "service.py",)):
    """Starts the service on a free port and waits until it says where it is."""
    with ending(start(environment, *program, "--port", "0", *args)) as process:
        line = await asyncio.to_thread(process.stdout.readline)
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found, line + process.stderr.read()
        timeout = aiohttp.ClientTimeout(SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as client:
            yield Service(process, found[0], client)


@pytest.fixture(params=["file", "redis"])
def store_options(request):
    """Command-line options that choose the store."""
    return [] if request.param == "file" else ["--store", request.getfixturevalue("redis_url")]


class TestService:
    async def test_many_clients_at_once(self, environment, store_options):
        """Eighty tables at once get eighty keys, and each key has its table's statistics."""
        rng = np.random.default_rng(7)
        tables = [pd.DataFrame(rng.random((500, 3)), columns=list("abc")) for _ in range(80)]
        async with serving(environment, *store_options) as service, asyncio.TaskGroup() as group:

            async def one(table):
                status, entry = await service.ask("POST", "/tables", as_csv(table))
                assert (201, 500, ["a", "b", "c"]) == (status, entry["rows"], entry["columns"])
                answers = await asyncio.gather(
                    *(service.ask("GET", f"/tables/{entry['key']}") for _ in range(5))
                )
                for status, answer in answers:
                    assert status == 200
                    pd.testing.assert_frame_equal(table.describe(), pd.DataFrame(answer))
                return entry

            entries = [group.create_task(one(table)) for table in tables]
            while not all(task.done() for task in entries):
                await asyncio.sleep(0.01)
            listed = (await service.ask("GET", "/tables"))[1]
            kept = [task.result() for task in entries]
            assert sorted(entry["key"] for entry in kept) == sorted(e["key"] for e in listed)
            assert len({entry["key"] for entry in kept}) == 80
            assert (0, "") == await service.stop()

    async def test_statuses(self, environment, store_options):
        """What the store refuses is the client's fault or the service's, and the status says so."""
        async with serving(environment, *store_options) as service:
            for path in ("/tables/iris", "/tables/a%2F..%2Fb%0D%0Ac"):
                status, entry = await service.ask("PUT", path, as_csv(iris()))
                assert (201, 150) == (status, entry["rows"])
            assert (409, "KeyExistsError") == await service.ask("PUT", "/tables/iris", b"a\n1\n")
            status, answer = await service.ask("GET", "/tables/iris")
            assert 200 == status
            pd.testing.assert_frame_equal(iris().describe(), pd.DataFrame(answer))
            assert 400 == (await service.ask("POST", "/tables", b""))[0]
            assert 400 == (await service.ask("POST", "/tables", bytes(range(256))))[0]
            assert (404, "no table rose") == await service.ask("GET", "/tables/rose")
            assert 204 == (await service.ask("DELETE", "/tables/iris"))[0]
            assert 404 == (await service.ask("DELETE", "/tables/iris"))[0]
            assert 404 == (await service.ask("GET", "/tables/iris"))[0]
            assert (0, "") == await service.stop()

    async def test_two_tables(self, environment, store_options):
        """Two tables are fetched at once and correlated; one that is missing is not found."""
        table, other = iris(), iris().sample(frac=1, random_state=0, ignore_index=True)
        async with serving(environment, *store_options) as service:
            await service.ask("PUT", "/tables/left", as_csv(table))
            await service.ask("PUT", "/tables/right", as_csv(other))
            status, answer = await service.ask("GET", "/tables/left/correlation/right")
            assert 200 == status
            expected = table.corrwith(other, numeric_only=True).to_dict()
            assert expected == pytest.approx(answer)
            missing = await service.ask("GET", "/tables/left/correlation/nothing")
            assert (404, "ProxyResolveMissingKeyError") == missing
            assert (0, "") == await service.stop()

    async def test_shared(self, environment, redis_url):
        """What one service was given, another of the same store can answer for."""
        options = ("--store", redis_url)
        async with serving(environment, *options) as one, serving(environment, *options) as two:
            await one.ask("PUT", "/tables/iris", as_csv(iris()))
            status, answer = await two.ask("GET", "/tables/iris")
            assert 200 == status
            pd.testing.assert_frame_equal(iris().describe(), pd.DataFrame(answer))
            assert (200, []) == await two.ask("GET", "/tables")

    async def test_restarted(self, environment):
        """Tables survive the service that received them."""
        async with serving(environment) as service:
            await service.ask("PUT", "/tables/iris", as_csv(iris()))
            await service.stop()
        async with serving(environment) as service:
            assert 200 == (await service.ask("GET", "/tables/iris"))[0]

    async def test_server_gone(self, environment, own_redis_server):
        """A server that is gone is a 503 and a line in the log, and the service goes on."""
        server = await asyncio.to_thread(own_redis_server)
        async with serving(environment, "--store", server.url) as service:
            await service.ask("PUT", "/tables/iris", as_csv(iris()))
            await asyncio.to_thread(server.kill)
            status, answer = await service.ask("GET", "/tables/iris")
            assert 503 == status
            assert answer in {"ConnectorUnavailableError", "ConnectorLostError"}
            status, answer = await service.ask("GET", "/tables/iris/correlation/iris")
            assert (503, "ConnectorUnavailableError") == (status, answer)
            _, listed = await service.ask("GET", "/tables")
            assert ["iris"] == [entry["key"] for entry in listed]
            code, stderr = await service.stop()
        assert code == 0
        assert "ERROR:service:GET /tables/iris: " in stderr
        assert "Traceback" not in stderr

    async def test_request_finishes(self, environment, own_redis_server):
        """After SIGTERM nobody else is let in, and who is in gets an answer before it ends."""
        server = await asyncio.to_thread(own_redis_server)
        async with serving(environment, "--store", server.url) as service:
            with admin(server) as client:
                client.client_pause(60_000, all=False)  # milliseconds, writes only
                async with asyncio.TaskGroup() as group:
                    late = group.create_task(service.ask("PUT", "/tables/late", as_csv(iris())))
                    # They come after it and are answered before it, so it has been read.
                    for _ in range(20):
                        assert (200, []) == await service.ask("GET", "/tables")
                    service.process.send_signal(signal.SIGTERM)
                    with pytest.raises(aiohttp.ClientConnectionError):
                        while True:
                            await service.ask("GET", "/tables")
                            await asyncio.sleep(0.01)
                    assert not late.done()
                    client.client_unpause()
            status, entry = late.result()
            assert (201, "late") == (status, entry["key"])
            assert (0, "") == await service.finish()

    async def test_nothing_blocks(self, environment, store_options):
        """Under a detector of blocking calls, tables of megabytes go in and come out."""
        rng = np.random.default_rng(3)
        table = pd.DataFrame(rng.random((60_000, 8)), columns=list("abcdefgh"))
        environment["PROXYPLANE_CACHE_SIZE"] = "0"
        async with serving(environment, *store_options, program=("-c", DETECTED)) as service:
            assert 201 == (await service.ask("PUT", "/tables/large", as_csv(table)))[0]
            assert 201 == (await service.ask("PUT", "/tables/iris", as_csv(iris())))[0]
            for path in ("large", "iris", "large/correlation/large", "iris/correlation/iris"):
                assert 200 == (await service.ask("GET", f"/tables/{path}"))[0]
            assert 204 == (await service.ask("DELETE", "/tables/large"))[0]
            assert (0, "") == await service.stop()


# -- the notebook -------------------------------------------------------------------------------


# Run before and after the notebook. A kernel warns of itself when it starts and ends, so errors are
# made of warnings from the first cell on, in the workers too, and not of those.
STRICT = (
    """
import os, warnings
warnings.simplefilter("error")
warnings.simplefilter("ignore", PendingDeprecationWarning)
os.environ["PYTHONWARNINGS"] = "error"
""",
    """
try:
    warnings.warn("still")
except UserWarning:
    pass
else:
    raise AssertionError("warnings were no errors")
""",
)


def notebook():
    return nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)


def shown(cells):
    """What each code cell shows: the text of it, and the kinds of pictures."""
    for cell in cells:
        if cell.cell_type == "code":
            text, pictures = "", []
            for output in cell.outputs:
                text += output.get("text", "") + output.get("data", {}).get("text/plain", "")
                pictures += [k for k in output.get("data", {}) if k.startswith("image/")]
            yield text, "image/jpeg" in pictures


class TestNotebook:
    def test_runs(self, environment, monkeypatch):
        """A Jupyter kernel runs it, warnings being errors, and it shows what is committed."""
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fresh = notebook()
        for cell in fresh.cells:
            if cell.cell_type == "code":
                cell.outputs = []
        around = [nbformat.v4.new_code_cell(source) for source in STRICT]
        nbclient.NotebookClient(
            nbformat.v4.new_notebook(cells=[around[0], *fresh.cells, around[1]]),
            timeout=SECONDS,
            kernel_name="python3",
        ).execute()
        assert not [
            o for c in fresh.cells for o in c.get("outputs", []) if o.get("name") == "stderr"
        ]

        directory = "file://" + environment["PROXYPLANE_DIR"]
        for committed, now in zip(shown(notebook().cells), shown(fresh.cells), strict=True):
            # The reference that travels is as long as the directory's name makes it.
            texts = [
                re.sub(r"\d+(?= bytes: what travels)", "N", text.replace(place, "PLACE"))
                for text, place in ((committed[0], "file:///tmp/proxyplane"), (now[0], directory))
            ]
            assert texts[0].split() == texts[1].split()
            assert committed[1] == now[1]
        assert objects(environment) == []

    def test_outputs_are_committed(self):
        """Every code cell that shows something has its output, in order, of nobody's machine."""
        cells = [cell for cell in notebook().cells if cell.cell_type == "code"]
        assert list(range(1, len(cells) + 1)) == [cell.execution_count for cell in cells]
        assert all(cell.outputs for cell in cells)
        assert sum(picture for _, picture in shown(cells)) == 2
        text = (EXAMPLES / "notebook.ipynb").read_text("utf-8")
        assert set(re.findall(r"file://[\w/.-]*", text)) == {"file:///tmp/proxyplane"}
        assert set(notebook().metadata) == {"kernelspec", "language_info"}
        assert all(not cell.metadata for cell in notebook().cells)

    def test_reference_is_small(self):
        """What the committed notebook says of sizes is true: the reference is under 250 bytes."""
        (text,) = [text for text, _ in shown(notebook().cells) if "what travels" in text]
        photograph, reference = (
            int(number.replace(",", "")) for number in re.findall(r"([\d,]+) bytes:", text)
        )
        assert load_sample_images().images[0].nbytes == photograph
        assert reference < 250


# -- the task runner ----------------------------------------------------------------------------


@pytest.fixture
def task_runner(monkeypatch):
    """The example as a module, for its functions."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "task_runner", raising=False)
    return importlib.import_module("task_runner")


def workers_of(process):
    """The worker processes of a running example that have started their work."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children()
        return [c for c in children if "resource_tracker" not in " ".join(c.cmdline())]
    return []


def wait_for(condition):
    """Waits until something is so."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestTaskRunner:
    def test_table(self, environment, store_options, task_runner):
        """Its figures are those of a direct computation, and the pipe saw references only."""
        command = (EXAMPLES / "task_runner.py", "--scales", "5", "--workers", "2", *store_options)
        with ending(start(environment, *command)) as process:
            stdout, stderr = process.communicate(timeout=SECONDS)
        assert (0, "") == (process.returncode, stderr)

        lines = stdout.splitlines()
        printed = np.loadtxt(io.StringIO("\n".join(lines[1:5]).replace("-", " ")))
        images = [image / 255 for image in load_sample_images().images]
        sigmas = [0.5 * 2 ** (i / 3) for i in range(5)]
        assert printed[:, 0] == pytest.approx(sigmas[:-1], abs=0.006)
        for column, image in enumerate(images):
            blurs = [task_runner.blur(image, sigma) for sigma in sigmas]
            direct = [
                task_runner.strength(task_runner.edges(fine, coarse))
                for fine, coarse in zip(blurs, blurs[1:], strict=False)
            ]
            assert printed[:, 2 + column] == pytest.approx(direct, abs=0.000006)

        tasks, piped, stored = re.match(r"\s*(\d+)\s+([\d.]+) kB\s+([\d.]+) MB", lines[-1]).groups()
        blurring, differing = 2 * 5, 2 * 4
        assert blurring + 2 * differing == int(tasks)
        # A blur reads and writes an image; a difference reads two and writes a grey one, of a
        # third of the size, which the last task of each pair reads.
        moved = images[0].nbytes * (blurring * 2 + differing * (2 + 1 / 3 + 1 / 3))
        assert moved / 1e6 == pytest.approx(float(stored), abs=0.1)
        assert float(piped) * 1e3 < 600 * int(tasks)
        assert objects(environment) == []

    @pytest.mark.parametrize("moment", ["starting", "working"])
    def test_interrupted(self, environment, moment):
        """Ctrl-C leaves one sentence, no process and no object."""
        command = (EXAMPLES / "task_runner.py", "--scales", "40", "--workers", "2")
        with ending(start(environment, *command)) as process:
            enough = {"starting": lambda: True, "working": lambda: len(objects(environment)) > 6}
            wait_for(lambda: len(workers_of(process)) == 2 and enough[moment]())
            workers = workers_of(process)
            os.killpg(process.pid, signal.SIGINT)
            stdout, stderr = process.communicate(timeout=SECONDS)
        assert (1, "") == (process.returncode, stdout)
        assert "interrupted: the workers have ended and the store is clean\n" == stderr
        assert not any(worker.is_running() for worker in workers)
        assert objects(environment) == []

    def test_worker_killed(self, environment):
        """A worker that is killed ends the run with an error, and leaves nothing behind."""
        command = (EXAMPLES / "task_runner.py", "--scales", "40", "--workers", "2")
        with ending(start(environment, *command)) as process:
            wait_for(lambda: len(objects(environment)) > 6)
            workers = workers_of(process)
            workers[0].kill()
            _, stderr = process.communicate(timeout=SECONDS)
        assert process.returncode == 1
        assert "BrokenProcessPool" in stderr
        assert not any(worker.is_running() for worker in workers)
        assert objects(environment) == []
