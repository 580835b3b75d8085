"""Waits at a Redis server: begun, asleep, and woken or not."""

from __future__ import annotations

import asyncio

import pytest

from proxyplane.connectors.redis.client import Client
from proxyplane.connectors.redis.later import WAS_SET, record_name
from support.servers import admin
from support.soak import recovering
from support.waiting import until


async def start_waiting(connector, names, **kwargs):
    """Tasks that wait, when all of them are asleep."""
    tasks = [asyncio.create_task(connector.wait(name, **kwargs)) for name in names]
    await asleep(connector)
    return tasks


async def asleep(connector):
    """Returns when all waiters have been looked at since the subscription was acknowledged."""
    await asyncio.sleep(0)
    waiters = (await connector._client()).waiters
    await until(lambda: all(one.asleep for one in waiters._waiting.values()))


async def register(connector, count):
    return await asyncio.gather(*(connector.new_key() for _ in range(count)))


def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches off looking: whoever is looked at is taken to be still waiting."""

    async def look_up(pool, names):
        return [(False, True)] * len(names)

    monkeypatch.setattr(Client, "look_up", look_up)


def set_at_once(server, connector, names, **login):
    """Sets many keys in one transaction, which the server does before it sends any message."""
    with admin(server, **login) as client, client.pipeline(transaction=True) as pipe:
        for name in names:
            name = connector._name(name)
            pipe.set(record_name(name), b"x", xx=True)
            pipe.renamenx(record_name(name), name)
            pipe.publish(name, WAS_SET)
        pipe.execute()


async def all_woken(tasks, defended):
    """Every task returns; without the defence some stay asleep, and are cancelled here."""
    if defended:
        with recovering():
            assert [None] * len(tasks) == await asyncio.gather(*tasks)
        return
    _, asleep = await asyncio.wait(tasks, timeout=1)
    assert asleep, "nothing was lost: the test does not test the defence"
    for task in asleep:
        task.cancel()
    await asyncio.wait(asleep)
