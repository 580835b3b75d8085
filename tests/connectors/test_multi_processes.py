"""What a multi-connector put in one process is there in another, which is started anew."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import proxyplane
from proxyplane import FileConnector, MultiConnector, RedisConnector, Store
from proxyplane.connectors.multi import Policy
from proxyplane.testing import in_forked_child

HEAD = """
import asyncio, os, pickle, socket, sys
import proxyplane as pp
given = pickle.load(sys.stdin.buffer)
def made():
    return sorted(pp.get_store("shared").connector._parts._made)
def tell(*values):
    sys.stdout.buffer.write(pickle.dumps(values))
"""


class Process:
    """A new process that is given something and tells something."""

    def __init__(self, given, script):
        paths = [Path(proxyplane.__file__).parents[1]]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", HEAD + script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        )
        self._given = pickle.dumps(given)

    def told(self):
        out, err = self._process.communicate(self._given, timeout=50)
        assert (0, b"") == (self._process.returncode, err)
        return pickle.loads(out)


@pytest.fixture
def store(redis_url, tmp_path):
    """Small objects in Redis, large ones in files, those for other hosts where nobody looks."""
    multi = MultiConnector(
        {
            "small": (RedisConnector(redis_url), Policy(max_bytes=1000)),
            "large": FileConnector(tmp_path / "objects"),
            "tagged": (f"file://{tmp_path}/tagged", Policy(priority=1, superset_tags=["x"])),
            "never": ("redis://127.0.0.1:1", Policy(priority=9, host_pattern="no-such-host")),
        }
    )
    with asyncio.Runner() as runner:
        made = Store("shared", multi)
        yield made
        runner.run(made.aclose(clear=True))


def run(call):
    return asyncio.run(call)


def test_proxies_resolve_in_another_process(store):
    """By a touch, by await, of every connector; none is made that no object needs."""

    async def put():
        return [
            await store.proxy({"size": size}, tags=tags, populate_target=False)
            for size, tags in (("small", ()), ("x" * 5000, ()), ("tagged", ["x"]))
        ]

    small, large, tagged = run(put())
    script = 'tell(str(given["size"]), made())'
    assert Process(small, script).told() == ("small", ["small"])
    assert Process(large, script).told() == ("x" * 5000, ["large"])
    assert Process(tagged, script).told() == ("tagged", ["tagged"])
    script = """
async def work():
    return [one["size"] for one in await pp.gather(*given)]
tell(asyncio.run(work()))
"""
    assert Process([small, large, tagged], script).told() == (["small", "x" * 5000, "tagged"],)


@pytest.mark.parametrize("size", [10, 5000])
def test_named_objects_are_found_by_name(store, size):
    """A key that one process chose is found by another, which knows nothing of its size."""

    async def put():
        await store.put(bytes(size), key="model")

    run(put())
    script = """
store = pp.sync.Store.from_config(given)
found = len(store.get("model")), store.exists("model")
try:
    store.put("other", key="model", overwrite=False)
except pp.exceptions.KeyExistsError as error:
    found += (str(error).count("model") > 0,)
tell(*found, store.evict("model"))
store.close()
"""
    assert Process(store.config(), script).told() == (size, True, True, True)
    assert run(store.connector.exists("model")) is False


def test_a_future_is_set_in_another_process(store):
    """Those who wait here are woken, and the consumer there waits for what is set here."""

    async def work():
        there, here = await store.future(), await store.future()
        script = """
there, here = given
there.set_result(["from", "there"])
tell(here.result(timeout=45), made())
"""
        process = Process((there, here), script)
        telling = asyncio.ensure_future(asyncio.to_thread(process.told))
        assert await there.aresult(timeout=45) == ["from", "there"]
        await here.aset_result(["from", "here"])
        return await telling

    # Sizes are not known, so the one that takes any.
    assert run(work()) == (["from", "here"], ["large"])


def test_hosts_that_may_use_a_connector(store, tmp_path):
    """A process on such a host makes the connector that stays dormant here."""
    script = """
from unittest import mock
async def put(host):
    with mock.patch("socket.gethostname", lambda: host):
        connector = pp.MultiConnector.from_table(given)
    key = await connector.put([b"object"], tags=["x"])
    return key, sorted(connector._parts._made)
key, used = asyncio.run(put("node-7"))
tell(key, used, asyncio.run(put("login"))[1])
"""
    table = {
        "node": {"url": f"file://{tmp_path}/node", "host_pattern": ["node-.*"]},
        "any": {"url": f"file://{tmp_path}/any"},
    }
    key, on_node, on_login = Process(table, script).told()
    assert (on_node, on_login) == (["node"], ["any"])
    with pytest.raises(proxyplane.exceptions.ConnectorUnavailableError, match="node-"):
        run(MultiConnector.from_table(table).get(key))


def test_a_forked_child_makes_its_own(store):
    """A child of a running loop uses what the parent made, and makes what was dormant there."""

    async def parent():
        keys = [await store.put("small"), await store.put("x" * 5000)]

        async def child():
            tagged = await store.put("tagged", tags=["x"])
            return tagged, await store.get_batch([*keys, tagged])

        tagged, found = in_forked_child(lambda: asyncio.run(child()))
        assert found == ["small", "x" * 5000, "tagged"]
        assert "tagged" not in store.connector._parts._made
        assert await store.get(tagged) == "tagged"

    asyncio.run(parent())
