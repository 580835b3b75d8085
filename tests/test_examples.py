"""The examples, run as their readers run them: real processes, a real client, a real kernel."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import re
import signal
from pathlib import Path

import aiohttp
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris, load_sample_images

from plugins.blocking import ALLOWED
from support import examples
from support.examples import EXAMPLES, SECONDS, ending, objects, start
from support.servers import admin

environment = examples.environment
store_options = examples.store_options


class TestAll:
    def test_listed(self):
        """The examples' README has a line for each of them, and for nothing else."""
        text = (EXAMPLES / "README.md").read_text("utf-8")
        linked = re.findall(r"^\| \[(\S+)\]\((\S+)\)", text, re.MULTILINE)
        files = sorted(p.name for p in EXAMPLES.iterdir() if p.suffix in {".py", ".ipynb"})
        assert [(name, name) for name in files] == sorted(linked)

    @pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.glob("*.py")))
    def test_says_how_to_run_it(self, name):
        """The docstring of an example has the command that runs it, or what imports it."""
        docstring = ast.get_docstring(ast.parse((EXAMPLES / name).read_text("utf-8")))
        (runs,) = set(re.findall(r"\n    python examples/(\S+)", docstring))
        source = (EXAMPLES / runs).read_text("utf-8")
        assert runs == name or f"\nfrom {Path(name).stem} import " in source
        assert 'if __name__ == "__main__":' in source


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
