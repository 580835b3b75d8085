"""Endpoints: a thousand who wait while the endpoint of theirs, or a peer, is killed."""

from __future__ import annotations

import asyncio
import signal

import pytest

from plugins.endpoints import here
from proxyplane.connectors.endpoint import EndpointConnector
from proxyplane.connectors.endpoint.watch import Watch
from proxyplane.exceptions import ObjectLostError
from support.endpoints import free_port, introduce, path_of
from support.soak import SOAK, recovering, tally, times
from support.waiting import until

WAITERS = 1_000
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900 if SOAK else 180)]


@pytest.fixture
def join(make_site, monkeypatch):
    """Starts two sites that are peers; this process is one of the first."""

    def start(*words):
        sites = [
            make_site(name, *words, "--silence", "2", listen=f"127.0.0.1:{free_port()}")
            for name in ("near", "far")
        ]
        introduce(*sites)
        for site in sites:
            site.start()
        here(monkeypatch, sites[0])
        return sites

    return start


async def wait_for(far, count):
    """Keys at a peer, and waits for them of which it knows."""
    connector = EndpointConnector(far.name)
    keys = [await connector.new_key() for _ in range(count)]
    tasks = [asyncio.create_task(connector.wait(key)) for key in keys]
    await until(lambda: far.status()["waiting"] == count)
    return connector, keys, tasks


def set_there(site, key):
    """Sets a key at its own endpoint, without any other."""
    assert site.ask("PUT", path_of(key).replace("objects", "later"), b"object")[0] == 201


@pytest.mark.row("peer killed")
@pytest.mark.parametrize(
    ("killed", "defended"),
    [("near", True), ("far", True), ("near", False)],
    ids=["near", "far", "undefended"],
)
async def test_killed_under_waiters(join, monkeypatch, killed, defended):
    """With --persist all are woken by what is set while it is away, and after that.

    Not if those who wait do not ask once more.
    """
    near, far = join("--persist")
    if not defended:
        monkeypatch.setattr(Watch, "_send", forgetful(Watch._send))
    for _ in range(times("peer killed") if defended else 1):
        connector, keys, tasks = await wait_for(far, WAITERS if defended else 10)
        await asyncio.to_thread((near if killed == "near" else far).end, signal.SIGKILL)
        if killed == "near":
            for key in keys[::2]:
                set_there(far, key)
        await asyncio.to_thread((near if killed == "near" else far).start)
        if killed == "far":
            for key in keys[::2]:
                set_there(far, key)
        if not defended:
            await asyncio.wait(tasks, timeout=2)
            assert not any(task.done() for task in tasks)
        else:
            with recovering():
                await asyncio.gather(*tasks[::2])
            assert not any(task.done() for task in tasks[1::2])
            for key in keys[1::2]:
                set_there(far, key)
            await asyncio.gather(*tasks)
            assert [bytes(one) for one in await connector.get_batch(keys)] == [b"object"] * WAITERS
            assert await connector.evict_batch(keys) == [True] * WAITERS
        await connector.aclose()
        await asyncio.gather(*tasks, return_exceptions=True)
    if defended:
        tally.notes.append("kills under 1,000 waiters too")


def forgetful(send):
    """The same as `FORGETS`, in this process."""
    asked = set()

    async def send_once(self, session, answer):
        if self in asked:
            self._unsent.clear()
        asked.add(self)
        await send(self, session, answer)

    return send_once


@pytest.mark.row("peer killed")
async def test_waiters_of_a_peer_without_a_memory(join):
    """Without --persist a thousand who wait at a peer that is killed learn that all is lost."""
    _, far = join()
    for _ in range(times("peer killed")):
        connector, keys, tasks = await wait_for(far, WAITERS)
        await asyncio.to_thread(far.end, signal.SIGKILL)
        await asyncio.to_thread(far.start)
        with recovering():
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in outcomes} == {ObjectLostError}
        with pytest.raises(ObjectLostError):
            await connector.set(keys[0], [b"x"])
        await connector.aclose()
