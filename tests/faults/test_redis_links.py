"""Redis: links that are reset at any byte, go half-open or crawl; callers who are cancelled."""

from __future__ import annotations

import asyncio
import random

import pytest

from proxyplane.connectors.redis import RedisConnector
from proxyplane.connectors.redis.wire import Wire
from proxyplane.exceptions import (
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    KeyExistsError,
)
from support.servers import admin, connections
from support.soak import SOAK, defended_or_not, recovering, tally, times
from support.tcp_proxy import TCPProxy
from support.waiting import until

STEP = 1 if SOAK else 9
SIZE = 300


@pytest.fixture
async def proxied(redis_server, redis_url):
    """A proxy before the shared server, what makes a connector through it, and one past it."""
    async with TCPProxy(redis_server.port) as proxy:
        namespace = redis_url.partition("=")[2]

        def through(**options):
            return RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace, **options)

        direct = RedisConnector(redis_url)
        yield proxy, through, direct
        await direct.aclose(clear=True)


CALLS = {
    "get": lambda connector, key: connector.get(key),
    "put": lambda connector, key: connector.put([b"p" * SIZE]),
    "put named": lambda connector, key: connector.put([b"p" * SIZE], key="named"),
    "set": lambda connector, key: connector.set(key, [b"p" * SIZE]),
}


async def once(call, connector, direct, key):
    """What one call gave: the bytes that are there afterwards, or the error."""
    try:
        found = await call(connector, key)
    except ConnectorError as error:
        return error
    return found if isinstance(found, bytearray) else await direct.get(found or key)


@pytest.mark.row("reset at each byte")
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize(
    ("name", "defended"),
    [*((name, True) for name in CALLS), ("get", False), ("put", False)],
    ids=[*CALLS, "get-undefended", "put-undefended"],
)
async def test_reset_at_each_byte(proxied, redis_server, monkeypatch, name, direction, defended):
    """Wherever it is cut: what may be repeated is, else an error tells; the next call works."""
    proxy, through, direct = proxied
    call, body = CALLS[name], b"p" * SIZE
    if not defended:

        async def only_once(self, operation):
            return await operation(await self._client())

        monkeypatch.setattr(RedisConnector, "_twice", only_once)

    async def fresh_key():
        await direct.evict("named")
        return await (direct.new_key() if name == "set" else direct.put([body]))

    connector = through()
    before = proxy.forwarded[direction]
    assert await once(call, connector, direct, await fresh_key()) == body
    length = proxy.forwarded[direction] - before
    await connector.aclose()
    tries = errors = 0
    with admin(redis_server) as client:
        held = connections(client)
        for after in range(0, length, STEP if defended else 30):
            key, connector = await fresh_key(), through()
            proxy.cut(direction, after, "reset")
            found = await once(call, connector, direct, key)
            if isinstance(found, Exception):
                errors += isinstance(found, ConnectorLostError)
                assert isinstance(found, (ConnectorLostError, ConnectorUnavailableError))
                try:
                    with recovering():
                        await call(connector, key)
                except KeyExistsError:
                    assert name in ("put named", "set")
                    assert await direct.get("named" if name == "put named" else key) == body
                found = body
            assert found == body
            await connector.aclose()
            tries += 1
        await until(lambda: connections(client) <= held)
    if name in ("get", "put"):
        assert bool(errors) is not defended
    tally.tries = tries


@pytest.mark.row("half-open link")
@pytest.mark.undefended
async def test_half_open_undefended(proxied):
    """With patience without end, a call over a connection that is dead in silence never ends."""
    proxy, through, _ = proxied
    connector = through(timeout=3600)
    key = await connector.put([b"x"])
    proxy.cut("down", 0, "stall")
    reading = asyncio.create_task(connector.get(key))
    await asyncio.wait([reading], timeout=1)
    assert not reading.done()
    reading.cancel()
    await asyncio.wait([reading])
    await connector.aclose()


@pytest.mark.row("slow link")
@defended_or_not
async def test_slow_link(proxied, defended):
    """An object that comes in small pieces is waited for, while there are more of them in time."""
    proxy, through, direct = proxied
    body = bytes(range(256)) * (1 << 12)
    key = await direct.put([body])
    connector = through(timeout=1 if defended else 0.3)
    await connector.exists(key)
    proxy.delay = 0.05 if defended else 1  # for each piece of 64 KB
    for _ in range(times("slow link") if defended else 1):
        if defended:
            assert await connector.get(key) == body
        else:
            with pytest.raises(ConnectorLostError, match="no progress"):
                await connector.get(key)
    await connector.aclose()


@pytest.mark.row("cancellation at random")
@defended_or_not
async def test_cancelled_at_random(proxied, redis_server, monkeypatch, defended):
    """Of thousands of commands half are cancelled: no wrong reply, and hardly a new connection."""
    proxy, through, direct = proxied
    if not defended:
        real = Wire.arrival

        async def arrival(self, slot):
            try:
                await real(self, slot)
            except asyncio.CancelledError:
                self.abort()  # as clients do that match replies to whoever reads next
                raise

        monkeypatch.setattr(Wire, "exchange", Wire.__dict__["call"])
        monkeypatch.setattr(Wire, "arrival", arrival)

        async def request(self, data):
            (reply,) = await self.requests(data, 1)
            return reply

        monkeypatch.setattr("proxyplane.connectors.redis.pool.Pool.request", request)
    bodies = [b"%d" % number * (1 + number % 5 * 4_000) for number in range(40)]
    keys = await direct.put_batch([[body] for body in bodies])
    with admin(redis_server) as client:
        held = connections(client)  # also by tests before this one
    connector = through()
    await asyncio.gather(*map(connector.get, keys), *(connector.put([one]) for one in bodies))
    proxy.delay = 0.002
    dice = random.Random(7)
    accepted, cancelled = proxy.accepted, 0

    def command(number):
        which = dice.randrange(4)
        if which == 0:
            return connector.put([bodies[number]]), None
        if which == 1:
            return connector.exists(keys[number]), True
        return connector.get(keys[number]), bodies[number]

    for _ in range(times("cancellation at random") // 40 if defended else 3):
        calls = [command(number) for number in range(40)]
        tasks = [asyncio.create_task(call) for call, _ in calls]
        for task in dice.sample(tasks, 20):
            await asyncio.sleep(dice.random() / 1000)
            task.cancel()
        await asyncio.wait(tasks)
        for task, (_, expected) in zip(tasks, calls, strict=True):
            try:
                found = await task
            except asyncio.CancelledError:
                cancelled += 1
                continue
            except ConnectorLostError:  # with those who were cancelled
                assert not defended
                continue
            assert expected is None or found == expected
    assert cancelled
    reconnects = proxy.accepted - accepted
    assert (reconnects <= max(1, cancelled // 100)) is defended, (reconnects, cancelled)
    if defended:
        tally.notes.append(f"{reconnects} new connections for {cancelled:,} cancelled")
        tally.tries = cancelled
    with recovering():
        assert await asyncio.gather(*map(connector.get, keys)) == bodies
    await connector.aclose()
    with admin(redis_server) as client:
        await until(lambda: connections(client) <= held)
