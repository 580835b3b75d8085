"""Large objects on their way between endpoints: how far they are, and what if the link breaks."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from plugins.endpoints import here
from proxyplane import Store
from proxyplane.connectors.endpoint import EndpointConnector, download
from proxyplane.exceptions import ConnectorLostError, PeerUnreachableError
from support.endpoints import free_port, path_of
from support.tcp_proxy import TCPProxy
from support.waiting import until

MB = 1 << 20


@pytest.fixture
async def through_proxy(make_site, monkeypatch):
    """Two sites that are peers, of which the first reaches the other through a proxy."""
    near, far = (make_site(name, listen=f"127.0.0.1:{free_port()}") for name in ("near", "far"))
    async with TCPProxy(int(far.listen.rpartition(":")[2])) as proxy:
        near.configure(f"--peer=far={far.id}@127.0.0.1:{proxy.port}")
        far.configure(f"--peer=near={near.id}@{near.listen}")
        for site in (near, far):
            await asyncio.to_thread(site.start)
        here(monkeypatch, near)
        yield proxy, near, far


async def test_a_peer_tells_how_far_it_is(through_proxy):
    """A transfer that stands still in the middle was told as far as it came, and not as done."""
    proxy, _, _ = through_proxy
    data = os.urandom(40 * MB)
    async with Store("progress of a peer", EndpointConnector("far"), cache_size=0) as store:
        key = await store.put(data)
        for direction, call in (
            ("down", lambda calls: store.get(key, progress=lambda *one: calls.append(one))),
            ("up", lambda calls: store.put(data, progress=lambda *one: calls.append(one))),
        ):
            proxy.cut(direction, 20 * MB, "stall")
            calls: list[tuple[int, int]] = []
            task = asyncio.create_task(call(calls))
            await until(lambda calls=calls: proxy.cuts and calls and calls[-1][0] >= 10 * MB)
            assert calls[-1][0] < 30 * MB
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert calls == sorted(set(calls))
            assert all(done < total for done, total in calls)
            proxy.reset_all()  # the link that stands still
            again: list[tuple[int, int]] = []
            assert data == await store.get(key, progress=lambda *one: again.append(one))  # noqa: B023
            assert again == sorted(set(again))
            assert again[-1][0] == again[-1][1] >= len(data)
            proxy.cuts = 0


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On a machine that is busy an endpoint may take a while to start again."""
    monkeypatch.setattr(download, "RESUME_SECONDS", 60.0)


@pytest.fixture
def body():
    """Forty megabytes that are alike nowhere."""
    return os.urandom(40 * MB)


def moved(proxy, direction="down"):
    """Megabytes that the proxy has carried."""
    return proxy.forwarded[direction] / MB


async def broken(proxy, after, fault="reset"):
    """Returns as soon as the link broke, before anybody can have noticed."""
    number = proxy.cuts
    proxy.cut("down", after, fault)
    while proxy.cuts == number:
        await asyncio.sleep(0)


@pytest.mark.parametrize("fault", ["reset", "close"])
async def test_a_get_goes_on_where_it_broke(through_proxy, body, fault):
    """However often the link breaks, what has come is not sent again."""
    proxy, _, _ = through_proxy
    connector = EndpointConnector("far")
    key = await connector.put([body, body])
    before = moved(proxy)

    async def break_it():
        for _ in range(4):
            await broken(proxy, 16 * MB, fault)

    breaking = asyncio.create_task(break_it())
    assert bytes(await connector.get(key)) == body + body
    await breaking
    # What was on its way in that moment is sent again, and no more than that.
    assert 80 <= moved(proxy) - before < 80 + 4 * 16
    await connector.aclose()


async def interrupted(proxy, connector, key, meanwhile):
    """Gets an object whose link breaks in the middle and stays down while something is done."""
    getting = asyncio.create_task(connector.get(key))
    await broken(proxy, 20 * MB)
    proxy.refuses = True
    proxy.reset_all()
    await meanwhile()
    proxy.refuses = False
    return await getting


async def test_another_object_comes_whole(through_proxy, body):
    """If the key holds another object when the link is back, that one comes, and no mixture."""
    proxy, _, far = through_proxy
    connector = EndpointConnector("far")
    await connector.swap("name", [body])
    other = os.urandom(len(body))

    async def replace():
        path = path_of("name").replace("v1/objects", "v2/swap")
        status, _ = await asyncio.to_thread(far.ask, "POST", path, other)
        assert status == 200

    assert bytes(await interrupted(proxy, connector, "name", replace)) == other
    await connector.aclose()


async def test_an_evicted_object_does_not_come(through_proxy, body):
    """If it was evicted when the link is back, there is none."""
    proxy, _, far = through_proxy
    connector = EndpointConnector("far")
    key = await connector.put([body])

    async def evict():
        assert (await asyncio.to_thread(far.ask, "DELETE", path_of(key)))[0] == 200

    assert await interrupted(proxy, connector, key, evict) is None
    await connector.aclose()


@pytest.mark.parametrize("persist", [True, False])
async def test_the_endpoint_is_killed_meanwhile(through_proxy, body, persist):
    """With --persist the rest comes from the next run of it; otherwise it says that it is gone."""
    proxy, _, far = through_proxy
    if persist:
        await asyncio.to_thread(far.end)
        far.configure("--persist")
        await asyncio.to_thread(far.start)
    connector = EndpointConnector("far")
    key = await connector.put([body])
    before = moved(proxy)

    async def kill():
        await asyncio.to_thread(far.end, signal.SIGKILL)
        await asyncio.to_thread(far.start)

    found = await interrupted(proxy, connector, key, kill)
    if persist:
        assert bytes(found) == body
        assert moved(proxy) - before < 60
    else:
        assert found is None
    await connector.aclose()


async def test_this_endpoint_is_killed_meanwhile(through_proxy, body):
    """Nor is what has come lost with the endpoint of this machine."""
    proxy, near, _ = through_proxy
    connector = EndpointConnector("far")
    key = await connector.put([body])
    before = moved(proxy)
    proxy.cut("down", 20 * MB, "stall")
    getting = asyncio.create_task(connector.get(key))
    await until(lambda: proxy.cuts)
    await asyncio.to_thread(near.end, signal.SIGKILL)
    await asyncio.to_thread(near.start)
    assert bytes(await getting) == body
    assert moved(proxy) - before < 60
    await connector.aclose()


async def test_a_link_that_stays_down(through_proxy, body, monkeypatch):
    """It is given up when no byte has come for some seconds."""
    monkeypatch.setattr(download, "RESUME_SECONDS", 0.5)
    proxy, _, _ = through_proxy
    connector = EndpointConnector("far")
    key = await connector.put([body])

    getting = asyncio.create_task(connector.get(key))
    await broken(proxy, 20 * MB)
    proxy.refuses = True
    proxy.reset_all()
    with pytest.raises((ConnectorLostError, PeerUnreachableError)):
        await getting
    proxy.refuses = False
    assert bytes(await connector.get(key)) == body
    await connector.aclose()


async def test_more_keys_than_fit_a_request(site):
    """Or than fit its answer: they are asked for in portions, and each is told what is its own."""
    connector = EndpointConnector()
    first, last = [await connector.put([b"x"]) for _ in range(2)]
    made = [f"{first[:16]}{number:016x}{first[32:]}" for number in range(1000, 200_000)]
    keys = [first, *made, last]
    held = [True, *[False] * len(made), True]
    assert await connector.extend(keys, 600.0) == held
    found = await connector.get_batch(keys)
    assert [body is not None for body in found] == held
    assert await connector.evict_batch(keys) == held
    assert not await connector.exists(last)
    await connector.aclose()
