"""Endpoints in networks of their own, whose link is cut, slow, or deaf on one side."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from plugins.endpoints import here
from proxyplane.connectors.endpoint import EndpointConnector
from proxyplane.exceptions import ConnectorError, ConnectorLostError, PeerUnreachableError
from support.endpoints import FORGETS, introduce, path_of
from support.networks import Internet, needs_networks
from support.soak import defended_or_not, recovering, times
from support.waiting import until

pytestmark = needs_networks

LONG = 50.0
MB = 1_000_000
WAITERS = 1_000
NEVER = "3600"


@pytest.fixture
def internet():
    """A router, with two networks behind it."""
    with Internet(f"pp{os.getpid()}-") as made:
        made.add()
        made.add()
        yield made


@pytest.fixture
def join(internet, make_site, monkeypatch):
    """Starts a site in each network, all peers; this process is one of the first."""

    def make(*words):
        made = [
            make_site(f"site{number}", *words, network=name, listen=f"{address}:7117")
            for number, (name, address) in enumerate(internet.networks.items())
        ]
        introduce(*made)
        for site in made:
            site.start()
        here(monkeypatch, made[0])
        return made

    return make


@pytest.fixture
def linked(join):
    """Two sites that are peers, and patient for two seconds."""
    return join("--silence", "2", "--persist")


async def waiting(site, count):
    """Returns when so many wait at a site."""
    await until(lambda: site.status()["waiting"] == count)


@pytest.mark.row("peer link cut")
@defended_or_not
async def test_waiters_survive_a_cut(internet, linked, defended):
    """A thousand waiters are woken by what was set while the link was cut, and after that.

    Not if their endpoint does not ask for it once more.
    """
    near, far = linked
    count = WAITERS if defended else 10
    if not defended:
        near.end()
        near.start(FORGETS)
    connector = EndpointConnector(far.name)
    for _ in range(times("peer link cut") if defended else 1):
        keys = [await connector.new_key() for _ in range(count)]
        tasks = [asyncio.create_task(connector.wait(key, LONG)) for key in keys]
        await waiting(far, count)
        internet.cut()
        for key in keys[::2]:
            path = path_of(key).replace("objects", "later")
            assert far.ask("PUT", path, b"set meanwhile")[0] == 201
        await until(lambda: not near.status()["peers"][far.name]["up"])
        assert not any(task.done() for task in tasks)
        internet.join()
        if not defended:
            await until(lambda: near.status()["peers"][far.name]["up"])
            await asyncio.wait(tasks, timeout=2)
            assert not any(task.done() for task in tasks)
            break
        with recovering():
            await asyncio.gather(*tasks[::2])
        for key in keys[1::2]:
            await connector.set(key, [b"set afterwards"])
        await asyncio.gather(*tasks)
        await waiting(near, 0)
        await waiting(far, 0)
        assert all(await connector.evict_batch(keys))
    await connector.aclose()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.row("peer link half open")
@pytest.mark.parametrize(
    ("deaf", "defended"),
    [(0, True), (1, True), (1, False)],
    ids=["we are deaf", "they are deaf", "undefended"],
)
async def test_a_half_open_link_is_noticed(internet, join, deaf, defended):
    """A request whose answer will never come ends with an error, within seconds."""
    near, far = join("--silence", "2" if defended else NEVER)
    connector = EndpointConnector(far.name)
    key = await connector.put([b"object"])
    for _ in range(times("peer link half open")):
        internet.deafen([*internet.networks][deaf])
        asking = asyncio.create_task(connector.get(key))
        if not defended:
            await asyncio.wait([asking], timeout=3)
            assert not asking.done()
            asking.cancel()
            break
        with pytest.raises((ConnectorLostError, PeerUnreachableError)):
            await asking
        assert near.status()["peers"][far.name]["up"] is False
        internet.join()

        async def mended():
            try:
                return bytes(await connector.get(key)) == b"object"
            except ConnectorError:
                return False

        with recovering():
            while not await mended():
                await asyncio.sleep(0.05)
    await connector.aclose()


async def test_a_transfer_that_is_cut(internet, linked):
    """A put that was cut off leaves nothing, and a get that was cut off returns nothing."""
    near, far = linked
    connector = EndpointConnector(far.name)
    body = os.urandom(5 * MB)
    key = await connector.put([body])
    for name in internet.networks:
        internet.slow(name, "4mbit")
    getting = asyncio.create_task(connector.get(key))
    putting = asyncio.create_task(connector.put([body], key="mine"))
    await until(lambda: far.status()["disk"]["used"] == 10 * MB)  # it has begun to come
    internet.cut()
    for task in (getting, putting):
        with pytest.raises((ConnectorLostError, PeerUnreachableError)):
            await task
    internet.join()
    for name in internet.networks:
        internet.slow(name, "4gbit")
    # Nobody told it that no more would come.
    await until(lambda: far.status()["disk"]["used"] == 5 * MB)
    connector_again = EndpointConnector(far.name)
    while True:
        try:
            assert bytes(await connector_again.get(key)) == body
            break
        except ConnectorError:
            await asyncio.sleep(0.05)
    assert await connector_again.exists("mine") is False
    await connector_again.aclose()
    await connector.aclose()


@pytest.mark.row("peer killed")
@defended_or_not
async def test_no_acknowledged_object_is_lost(join, defended):
    """A peer that is killed under puts has, afterwards, every object that was acknowledged.

    Without --persist it has none of them.
    """
    _, far = join("--silence", "2", *(["--persist"] if defended else []))
    connector = EndpointConnector(far.name)
    stored = {}

    async def store(number):
        while not ended:
            body = b"%d" % number * (1 + number % 7 * 10_000)
            try:
                stored[await connector.put([body])] = body
            except ConnectorError:
                await asyncio.sleep(0.01)

    for _ in range(times("peer killed") if defended else 1):
        ended = False
        before = len(stored)
        tasks = [asyncio.create_task(store(number)) for number in range(20)]
        await until(lambda: len(stored) > before + 50)
        acknowledged = len(stored)
        await asyncio.to_thread(far.end, signal.SIGKILL)
        await asyncio.to_thread(far.start)
        again = len(stored)
        with recovering():
            await until(lambda: len(stored) > again)
        await until(lambda: len(stored) > again + 50)
        ended = True
        await asyncio.gather(*tasks)
        found = await connector.get_batch(list(stored))
        if defended:
            assert [bytes(one) for one in found if one is not None] == [*stored.values()]
        else:
            assert found[:acknowledged] == [None] * acknowledged
    await connector.aclose()


async def test_a_slow_peer_holds_up_nobody(internet, join):
    """While a large object crawls over the link, small requests get their answers."""
    near, far = join("--silence", "4")
    connector, local = EndpointConnector(far.name), EndpointConnector()
    large, small = await connector.put([bytes(4 * MB)]), await connector.put([b"small"])
    # With connections that need not be made first, over a link that is full.
    await asyncio.gather(*(connector.get(small) for _ in range(5)))
    internet.slow([*internet.networks][0], "2mbit")  # it would take a quarter of a minute
    crawling = asyncio.create_task(connector.get(large))
    for _ in range(3):
        assert bytes(await connector.get(small)) == b"small"
        assert await local.exists("nothing") is False
    await asyncio.sleep(4.5)  # longer than a silence that would be taken for a loss
    assert not crawling.done()
    internet.slow([*internet.networks][0], "4gbit")
    assert len(await crawling) == 4 * MB
    await connector.aclose()
    await local.aclose()
