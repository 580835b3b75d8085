"""Large objects on their way between endpoints: how far they are, and what if the link breaks."""

from __future__ import annotations

import asyncio
import os

import pytest

from plugins.endpoints import here
from proxyplane import Store
from proxyplane.connectors.endpoint import EndpointConnector
from support.endpoints import free_port
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
