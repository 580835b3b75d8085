"""Connectors that can replace what a key holds: exactly one caller has what was there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxyplane.abc import RECORD_BYTES, Buffer, Connector, SupportsNames
from proxyplane.exceptions import ConnectorClosedError, KeyExistsError
from proxyplane.testing._buffers import content, joined, large
from proxyplane.testing._harness import Harness
from proxyplane.testing._objects import AWKWARD_KEYS
from proxyplane.testing._races import in_threads
from proxyplane.testing.steps import cancelled_at


class NamesTests(Harness):
    """What `SupportsNames` promises; skipped where that is not offered."""

    @pytest.fixture
    def naming(self, connector: Connector) -> Any:
        """The connector, if it can swap."""
        if not isinstance(connector, SupportsNames):
            pytest.skip("this connector cannot replace what a key holds")
        return connector

    async def test_swap_returns_what_was_there(self, naming: Any) -> None:
        """A swap replaces, returns what was there, and None where there was nothing."""
        assert await naming.swap("name", [b"one"]) is None
        assert content(await naming.get("name")) == b"one"
        assert content(await naming.swap("name", [b"t", b"wo"])) == b"one"
        assert content(await self.second(naming).get("name")) == b"two"
        assert content(await naming.swap("name", None)) == b"two"
        assert await naming.get("name") is None
        assert await naming.swap("name", None) is None

    async def test_swapped_keys_are_taken(self, naming: Any) -> None:
        """What a swap left is an object as any other: a put is refused, an evict removes it."""
        await naming.swap("name", [b"one"])
        with pytest.raises(KeyExistsError):
            await naming.put([b"two"], key="name")
        assert await naming.exists("name") is True
        assert await naming.evict("name") is True
        assert await naming.exists("name") is False
        assert await naming.put([b"three"], key="name") == "name"
        assert content(await naming.swap("name", [b"four"])) in (b"three", b"")
        assert content(await naming.get("name")) == b"four"

    @pytest.mark.parametrize("size", [RECORD_BYTES - 1, RECORD_BYTES, 300_000, 5 << 20])
    async def test_a_large_object_is_replaced(self, naming: Any, size: int) -> None:
        """Of a large object that was there before, at least the beginning comes back, or b""."""
        body = large()[:size]
        await naming.put([body], key="name")
        was = bytes(await naming.swap("name", [b"small"]))
        assert not was or (len(was) >= min(size, RECORD_BYTES) and body.startswith(was))
        assert content(await naming.get("name")) == b"small"
        assert content(await naming.swap("name", [body[:7], body[7:]])) == b"small"
        assert content(await naming.get("name")) == body
        assert content(await self.behind(self.read_raw, "name"))
        assert await naming.swap("name", None) is not None
        assert await self.behind(self.read_raw, "name") is None

    async def test_a_made_key_can_be_swapped(self, naming: Any) -> None:
        """The object of a key that the connector made can be replaced, too."""
        key = await naming.put([b"one"])
        assert content(await naming.swap(key, [b"two"])) in (b"one", b"")
        assert content(await naming.get(key)) == b"two"

    async def test_any_key_can_be_swapped(self, naming: Any) -> None:
        """Keys of any characters can be swapped, and each names its own object."""
        for number, key in enumerate(AWKWARD_KEYS):
            assert await naming.swap(key, [b"%d" % number]) is None
        for number, key in enumerate(AWKWARD_KEYS):
            assert content(await naming.swap(key, None)) == b"%d" % number

    @pytest.mark.parametrize("size", [1, RECORD_BYTES // 2])
    async def test_no_two_get_the_same(self, naming: Any, size: int) -> None:
        """Of many who swap at once each object comes back to one of them, or is there at last."""
        bodies = [bytes([number]) * size for number in range(40)]
        both: list[Any] = [naming, self.second(naming)]
        swaps = [both[i % 2].swap("name", [body]) for i, body in enumerate(bodies)]
        had = [bytes(was) for was in await asyncio.gather(*swaps) if was is not None]
        had.append(bytes(await naming.get("name")))
        assert {size} == set(map(len, had))
        assert sorted(one[0] for one in had) == list(range(40))

    async def test_one_of_many_takes_it(self, naming: Any) -> None:
        """Of many who remove an object at once, by swaps and by evicts, one gets it."""
        for _ in range(20):
            await naming.swap("name", [b"object"])
            taking = [naming.swap("name", None) for _ in range(5)]
            evicting = [naming.evict("name") for _ in range(5)]
            taken = await asyncio.gather(*taking, *evicting)
            there = [one for one in taken if one is not None and one is not False]
            assert len(there) == 1
            assert there[0] is True or content(there[0]) == b"object"

    def test_threads_swap_at_once(self, naming: Any) -> None:
        """In threads with loops of their own no object comes back twice, and none is missing."""

        async def work(number: int) -> list[Any]:
            return [
                content(await naming.swap("name", [b"%d/%d" % (number, i)])) for i in range(100)
            ]

        had = [was for all_of_one in in_threads(4, work) for was in all_of_one]
        had.append(content(asyncio.run(naming.swap("name", None))))
        assert had.count(None) == 1
        assert len(set(had)) == 401

    @pytest.mark.parametrize("size", [10, 100_000, 3 << 20])
    async def test_readers_see_one_or_the_other(self, naming: Any, size: int) -> None:
        """While an object is replaced all the time, every get returns a whole one."""
        bodies = [bytes([number]) * size for number in range(10)]
        await naming.swap("name", [bodies[0]])
        other: Any = self.second(naming)

        async def write() -> None:
            for number in range(30):
                await naming.swap("name", [bodies[number % 10]])

        writing = asyncio.ensure_future(write())
        reads = 0
        while not writing.done() or not reads:
            assert content(await other.get("name")) in bodies
            assert await other.exists("name") is True
            reads += 1
            await asyncio.sleep(0)
        await writing

    @pytest.mark.parametrize("size", [10, 3 << 20])
    async def test_a_cancelled_swap_is_done_or_not(self, naming: Any, size: int) -> None:
        """Wherever a swap is cancelled, what it found or what it brought is there, and whole."""
        bodies = [bytes([number % 256]) * size for number in range(2)]
        nth, reached = 1, True
        while reached:
            await naming.swap("name", [bodies[0]])
            reached = await cancelled_at(naming.swap("name", [bodies[1]]), nth)
            found = content(await naming.get("name"))
            assert found in bodies if reached else found == bodies[1]
            nth += 1
        nth, reached = 1, True
        while reached:
            await naming.swap("name", [bodies[0]])
            reached = await cancelled_at(naming.swap("name", None), nth)
            found = await naming.get("name")
            assert found is None or (reached and content(found) == bodies[0])
            nth += 1

    async def test_the_blocking_twin(self, naming: Any) -> None:
        """Where there is `swap_sync`, it does the same."""
        swap_sync = getattr(naming, "swap_sync", None)
        if swap_sync is None:
            pytest.skip("this connector has no swap_sync")
        assert swap_sync("name", [b"one"]) is None
        assert content(swap_sync("name", [b"two"])) == b"one"
        assert content(await naming.get("name")) == b"two"
        assert content(swap_sync("name", None)) == b"two"
        assert swap_sync("name", None) is None

    async def test_what_was_swapped_can_be_cleared(self, naming: Any) -> None:
        """Closing with `clear` removes what this instance left under a name, and no other's."""
        other: Any = self.second(naming)
        await other.swap("theirs", [b"theirs"])
        await naming.swap("theirs", [b"mine"])
        await naming.swap("mine", [b"mine"])
        await other.swap("theirs", [b"theirs again"])
        await naming.aclose(clear=True)
        with pytest.raises(ConnectorClosedError):
            await naming.swap("mine", [b"x"])
        assert await other.get("mine") is None
        await other.aclose()

    async def test_swapped_objects_have_leases(self, naming: Any) -> None:
        """A swap with a lease gives that to the object, and one without takes it away."""
        if not naming.takes_ttl:
            pytest.skip("the medium of this connector keeps no leases")
        await naming.swap("name", [b"one"], ttl=600)
        await naming.swap("brief", [b"one"], ttl=0.05)
        assert content(await naming.swap("name", [b"two"])) == b"one"
        async with asyncio.timeout(60):
            while await naming.exists("brief"):  # noqa: ASYNC110  nothing tells
                await asyncio.sleep(0.01)
        assert await naming.swap("brief", [b"two"]) is None
        assert content(await naming.get("brief")) == b"two"
        await naming.swap("brief", [b"three"], ttl=0.05)
        async with asyncio.timeout(60):
            while await naming.get("brief") is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await naming.swap("brief", None) is None
        assert content(await naming.swap("name", None)) == b"two"

    async def test_frames_are_joined(self, naming: Any) -> None:
        """The frames of a swap come back in order."""
        frames: list[Buffer] = [b"", bytearray(b"ab"), memoryview(b"cdef")[1:], b""]
        await naming.swap("name", frames)
        assert content(await naming.get("name")) == joined(frames)
