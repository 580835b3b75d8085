"""Objects that come later, on a connector that one can wait on."""

from __future__ import annotations

import asyncio

import pytest

from proxyplane.abc import Connector, DeferrableConnector
from proxyplane.exceptions import ConnectorClosedError, KeyExistsError, ObjectLostError
from proxyplane.testing._buffers import content, large
from proxyplane.testing._harness import Harness, needs_fork
from proxyplane.testing._races import in_threads
from proxyplane.testing.steps import cancelled_at, in_forked_child

LONG = 30.0
"""Seconds that no wait takes, unless it was not woken."""


class DeferrableTests(Harness):
    """`new_key`, `set` and `wait`; skipped where the connector does not have them."""

    @pytest.fixture
    def deferrable(self, connector: Connector) -> DeferrableConnector:
        """The connector, as one on which one can wait."""
        if not isinstance(connector, DeferrableConnector):
            pytest.skip("the connector cannot defer")
        return connector

    async def test_a_new_key_holds_nothing_yet(self, deferrable: DeferrableConnector) -> None:
        """A registered key is unique, and holds nothing before `set`."""
        keys = [await deferrable.new_key() for _ in range(10)]
        assert len(set(keys)) == 10
        assert await deferrable.get(keys[0]) is None
        assert await deferrable.exists(keys[0]) is False

    async def test_set_is_a_put(self, deferrable: DeferrableConnector) -> None:
        """What was set is there for everyone, and can be evicted."""
        key = await deferrable.new_key()
        await deferrable.set(key, [b"head", large()])
        assert content(await self.second(deferrable).get(key)) == b"head" + large()
        assert await deferrable.exists(key) is True
        assert await deferrable.evict(key) is True

    async def test_set_is_done_once(self, deferrable: DeferrableConnector) -> None:
        """Of many who set one key at once, one succeeds, and its object stays."""
        key = await deferrable.new_key()
        tried = await asyncio.gather(
            *(deferrable.set(key, [b"%d" % number]) for number in range(20)),
            return_exceptions=True,
        )
        (winner,) = [number for number, raised in enumerate(tried) if raised is None]
        assert {type(raised) for raised in tried} == {type(None), KeyExistsError}
        assert content(await deferrable.get(key)) == b"%d" % winner

    async def test_wait_ends_when_the_object_is_there(
        self, deferrable: DeferrableConnector
    ) -> None:
        """Everyone who waits is woken, through any connector; who comes later need not wait."""
        other = self.second(deferrable)
        assert isinstance(other, DeferrableConnector)
        key, never = await deferrable.new_key(), await deferrable.new_key()
        waiting = [asyncio.ensure_future(one.wait(key, LONG)) for one in (deferrable, other) * 10]
        in_vain = asyncio.ensure_future(deferrable.wait(never))
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in [*waiting, in_vain])
        await deferrable.set(key, [b"object"])
        assert await asyncio.gather(*waiting) == [None] * 20
        await deferrable.wait(key, 0)
        assert content(await other.get(key)) == b"object"
        assert not in_vain.done()
        in_vain.cancel()

    async def test_wait_ends_in_time(self, deferrable: DeferrableConnector) -> None:
        """If the object does not come, wait raises TimeoutError, and may be called again."""
        key = await deferrable.new_key()
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError):
                await deferrable.wait(key, timeout)
        await deferrable.set(key, [b"object"])
        await deferrable.wait(key, LONG)

    async def test_cancelled_wait(self, deferrable: DeferrableConnector) -> None:
        """A waiter who is cancelled, at any moment, does not take the wake-up of another."""
        nth, reached = 1, True
        while reached and nth < 50:
            key = await deferrable.new_key()
            waiting = asyncio.ensure_future(deferrable.wait(key, LONG))

            async def set_soon(key: str = key) -> None:
                await asyncio.sleep(0.01)
                await deferrable.set(key, [b"object"])

            setting = asyncio.ensure_future(set_soon())
            reached = await cancelled_at(deferrable.wait(key, LONG), nth)
            await asyncio.gather(waiting, setting)
            nth += 1

    async def test_an_unknown_key_is_lost(self, deferrable: DeferrableConnector) -> None:
        """A key that nobody registered cannot be set or waited for."""
        with pytest.raises(ObjectLostError):
            await deferrable.set("never registered", [b"x"])
        with pytest.raises(ObjectLostError):
            await deferrable.wait("never registered", LONG)

    async def test_deferring_after_close(self, deferrable: DeferrableConnector) -> None:
        """A closed connector says so here too."""
        key = await deferrable.new_key()
        await deferrable.aclose()
        for call in (
            deferrable.new_key,
            lambda: deferrable.set(key, [b"x"]),
            lambda: deferrable.wait(key, LONG),
        ):
            with pytest.raises(ConnectorClosedError):
                await call()

    def test_threads_wake_each_other(self, deferrable: DeferrableConnector) -> None:
        """A set on one loop wakes those who wait on others."""
        key = asyncio.run(deferrable.new_key())

        async def work(number: int) -> object:
            if number:
                await deferrable.wait(key, LONG)
            else:
                await asyncio.sleep(0.05)
                await deferrable.set(key, [b"object"])
            return content(await deferrable.get(key))

        assert in_threads(8, work) == [b"object"] * 8

    @needs_fork
    def test_processes_wake_each_other(self, deferrable: DeferrableConnector) -> None:
        """A set in another process wakes those who wait here."""
        if self.process_local:
            pytest.skip("no other process can reach the objects, by design")

        async def child(key: str) -> None:
            await deferrable.set(key, [b"of the child"])

        async def parent() -> None:
            key = await deferrable.new_key()
            waiting = asyncio.ensure_future(deferrable.wait(key, LONG))
            await asyncio.sleep(0.05)
            in_forked_child(lambda: asyncio.run(child(key)))
            await waiting
            assert content(await deferrable.get(key)) == b"of the child"

        for _ in range(3):
            asyncio.run(parent())
