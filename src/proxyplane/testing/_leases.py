"""Objects with a lease, on a connector whose medium keeps leases."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from proxyplane.abc import Connector, DeferrableConnector
from proxyplane.exceptions import KeyExistsError, ObjectLostError
from proxyplane.testing._buffers import content, large
from proxyplane.testing._harness import Harness, needs_fork
from proxyplane.testing.steps import in_forked_child

SHORT = 0.1
"""Seconds of a lease that is to end."""
LONG = 600.0
"""Seconds of one that is not."""
PATIENT = (0.2, 1.0, 5.0, 25.0)
"""Seconds to try, of a lease that must not end before the next call, on a machine that is busy."""
PATIENCE = 30.0
"""Seconds within which anything that should happen does."""


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Returns when it is true; fails if it does not come true."""
    end = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < end, "it did not come true"
        await asyncio.sleep(0.02)


class LeaseTests(Harness):
    """`ttl=` and `extend`; skipped where the medium keeps no leases."""

    @pytest.fixture
    def leasing(self, connector: Connector) -> Any:
        """The connector, as one that takes ``ttl=``."""
        if not connector.takes_ttl:
            pytest.skip("the medium keeps no leases")
        return connector

    async def assert_gone(self, connector: Connector, key: str) -> None:
        """Fails unless the key holds nothing, for every reader."""
        for one in (connector, self.second(connector)):
            assert await one.exists(key) is False
            assert await one.get(key) is None
            assert await one.get_batch([key]) == [None]
            assert await one.evict(key) is False
            assert await one.evict_batch([key]) == [False]
            assert await one.extend([key], LONG) == [False]
            assert await one.extend([key], None) == [False]

    @pytest.mark.parametrize("size", [1, 300_000, 5 << 20])
    async def test_an_object_is_gone_after_its_lease(self, leasing: Any, size: int) -> None:
        """Whatever its size, and whoever reads it, it is there before the end and not after."""
        body = large()[:size]
        key, chosen, lasting = (
            await leasing.put([body], ttl=PATIENCE),
            await leasing.put([body], key="chosen", ttl=PATIENCE),
            await leasing.put([body]),
        )
        batch = await leasing.put_batch([[body], [b"small"]], ttl=PATIENCE)
        leased = [key, chosen, *batch]
        assert [content(one) for one in await leasing.get_batch(leased)] == [
            body,
            body,
            body,
            b"small",
        ]
        assert await leasing.extend(leased, SHORT) == [True] * 4
        for one in leased:
            await until(partial(_absent, leasing, one))
            await self.assert_gone(leasing, one)
        assert content(await leasing.get(lasting)) == body

    async def test_a_lease_given_at_put_ends(self, leasing: Any) -> None:
        """The seconds given to a put, a batch or a shortcut are those of the medium."""
        keys = [
            await leasing.put([b"x"], ttl=SHORT),
            await leasing.put([b"x"], key="chosen", ttl=SHORT),
            *await leasing.put_batch([[b"x"], [large()]], ttl=SHORT),
        ]
        shortcut = getattr(leasing, "put_sync", None)
        if shortcut is not None:
            keys.append(await asyncio.to_thread(shortcut, [b"x"], ttl=SHORT))
        for key in keys:
            await until(partial(_absent, leasing, key))

    async def test_extended_leases_last(self, leasing: Any) -> None:
        """A lease that is renewed in time outlives many of its periods; others do not."""
        kept, left = await leasing.put_batch([[b"kept"], [b"left"]], ttl=PATIENCE)
        assert await leasing.extend([left], SHORT) == [True]
        # Each renewal is for long, so that a busy machine does not end it.
        for _ in range(5):
            assert await self.second(leasing).extend([kept], LONG) == [True]
        await until(partial(_absent, leasing, left))
        assert await leasing.extend([left, kept], PATIENCE) == [False, True]
        assert content(await leasing.get(kept)) == b"kept"

    async def test_leases_can_be_given_and_taken(self, leasing: Any) -> None:
        """`extend` gives a lease to an object without one, shortens one, and takes one away."""
        ends = await leasing.put([b"ends"])
        for ttl in PATIENT:
            stays = await leasing.put([b"stays"], ttl=ttl)
            if await leasing.extend([stays, "absent", ends], None) == [True, False, True]:
                break
        assert await leasing.extend([ends], LONG) == [True]
        assert await leasing.extend([ends], SHORT) == [True]
        await until(partial(_absent, leasing, ends))
        await asyncio.sleep(ttl)
        assert content(await leasing.get(stays)) == b"stays"

    async def test_a_key_is_free_after_its_lease(self, leasing: Any) -> None:
        """A chosen key whose lease ended can be used again, and the new object is its own."""
        await leasing.put([b"first"], key="again", ttl=PATIENCE)
        with pytest.raises(KeyExistsError):
            await leasing.put([b"second"], key="again", ttl=LONG)
        assert await leasing.extend(["again"], SHORT) == [True]
        await until(partial(_absent, leasing, "again"))
        await leasing.put([b"second"], key="again")
        await asyncio.sleep(2 * SHORT)
        assert content(await leasing.get("again")) == b"second"

    async def test_an_evicted_key_keeps_no_lease(self, leasing: Any) -> None:
        """An object that is put where one with a lease was evicted has none."""
        for ttl in PATIENT:
            await leasing.put([b"first"], key="again", ttl=ttl)
            if await leasing.evict("again"):
                break
        await leasing.put([b"second"], key="again")
        await asyncio.sleep(1.2 * ttl)
        assert content(await leasing.get("again")) == b"second"

    async def test_buffers_outlive_their_lease(self, leasing: Any) -> None:
        """What a get returned stays as it is when the lease ends."""
        body = large()
        key = await leasing.put([body], ttl=PATIENCE)
        buffer = await leasing.get(key)
        assert await leasing.extend([key], SHORT) == [True]
        await until(partial(_absent, leasing, key))
        assert content(buffer) == body

    @pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e12])
    async def test_no_lease_of_such_length(self, leasing: Any, ttl: float) -> None:
        """A lease is longer than nothing and shorter than for ever; nothing is stored."""
        key = await leasing.put([b"x"])
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: leasing.put([b"y"], key="none", ttl=ttl),
            lambda: leasing.put_batch([[b"y"]], ttl=ttl),
            lambda: leasing.extend([key], ttl),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="ttl"):
                await call()
        assert await leasing.exists("none") is False
        assert await leasing.exists(key) is True

    async def test_many_leases(self, leasing: Any) -> None:
        """Many are extended in one call, in order."""
        keys = await leasing.put_batch([[b"%d" % i] for i in range(1500)], ttl=LONG)
        await leasing.evict_batch(keys[::3])
        assert await leasing.extend(keys, LONG) == [bool(i % 3) for i in range(1500)]
        assert await leasing.extend([], LONG) == []

    @needs_fork
    def test_leases_outlive_their_process(self, leasing: Any) -> None:
        """What another process put ends when it said so, though that process is gone."""
        if self.process_local:
            pytest.skip("no other process can reach the objects, by design")
        asyncio.run(self.assert_works(leasing))

        async def child() -> None:
            await leasing.put([b"x"], key="of the child", ttl=PATIENCE)

        in_forked_child(lambda: asyncio.run(child()))

        async def parent() -> None:
            assert await leasing.extend(["of the child"], SHORT) == [True]
            await until(partial(_absent, leasing, "of the child"))

        asyncio.run(parent())

    # -- objects that come later ----------------------------------------------------------------

    @pytest.fixture
    def deferring(self, leasing: Any) -> Any:
        """The connector, as one on which one can wait."""
        if not isinstance(leasing, DeferrableConnector):
            pytest.skip("the connector cannot defer")
        return leasing

    async def test_a_registration_ends_with_its_lease(self, deferring: Any) -> None:
        """Then nobody can set the key, and who waits for it learns that in vain."""
        key = await deferring.new_key(ttl=LONG)
        assert await deferring.extend([key], LONG) == [True]
        waiting = asyncio.ensure_future(deferring.wait(key, PATIENCE))
        await asyncio.sleep(0)
        assert await deferring.extend([key], SHORT) == [True]
        with pytest.raises(ObjectLostError):
            await waiting
        with pytest.raises(ObjectLostError):
            await deferring.set(key, [b"too late"])
        assert await deferring.extend([key], LONG) == [False]

    async def test_set_keeps_the_lease(self, deferring: Any) -> None:
        """The object of a registered key has the lease that the key had."""
        key, lasting = await deferring.new_key(ttl=LONG), await deferring.new_key()
        given = await deferring.new_key()
        assert await deferring.extend([given], LONG) == [True]
        for one in (key, given, lasting):
            await deferring.set(one, [b"object"])
        for ttl in PATIENT:
            taken = await deferring.new_key(ttl=ttl)
            if await deferring.extend([taken], None) == [True]:
                break
        await deferring.set(taken, [b"object"])
        assert await self.second(deferring).extend([key, given], SHORT) == [True, True]
        for one in (key, given):
            await until(partial(_absent, deferring, one))
            await self.assert_gone(deferring, one)
        await asyncio.sleep(ttl)
        for one in (lasting, taken):
            assert content(await deferring.get(one)) == b"object"

    async def test_a_lease_of_a_key_ends_its_object(self, deferring: Any) -> None:
        """The lease that a key was registered with ends its object too."""
        for ttl in PATIENT:
            key = await deferring.new_key(ttl=ttl)
            with contextlib.suppress(ObjectLostError):
                await deferring.set(key, [b"object"])
                break
        await until(partial(_absent, deferring, key))

    async def test_extending_while_it_is_set(self, deferring: Any) -> None:
        """A lease that is extended while the key is set holds, whichever came first."""
        keys = [await deferring.new_key(ttl=PATIENCE) for _ in range(50)]

        async def extend(key: str) -> None:
            assert await deferring.extend([key], None) == [True]

        await asyncio.gather(
            *(call for key in keys for call in (extend(key), deferring.set(key, [b"object"])))
        )
        assert await deferring.extend(keys, None) == [True] * 50


async def _absent(connector: Connector, key: str) -> bool:
    return not await connector.exists(key)
