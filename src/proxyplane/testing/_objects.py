"""Objects go in and come out: bytes, keys, isolation, batches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyplane.abc import Connector
from proxyplane.exceptions import KeyExistsError
from proxyplane.testing._buffers import SHAPES, content, joined, large
from proxyplane.testing._harness import Harness

AWKWARD_KEYS = [
    *("", " ", ".", "..", "/", "../../etc/passwd", "a/b", "a\\b", "a:b", "a*", "%s", "%2F", "nul"),
    *(
        "\0",
        "a\0",
        "\n",
        "'; --",
        '"',
        "?x=1",
        "#",
        "key",
        "KEY",
        "Key",
        "é",
        "e\u0301",
        "\U0001f511",
    ),
    *("x" * 5000, "x" * 5001),
]


class ObjectTests(Harness):
    """Bytes and keys."""

    @pytest.mark.parametrize("shape", SHAPES)
    async def test_frames_come_back_joined(self, connector: Connector, shape: str) -> None:
        """A get returns the bytes of all frames in order, and the medium holds them."""
        frames = await self.behind(SHAPES[shape])
        key = await connector.put(frames)
        assert content(await connector.get(key)) == joined(frames)
        assert content(await self.behind(self.read_raw, key)) == joined(frames)

    async def test_made_keys(self, connector: Connector) -> None:
        """A key can be had before its object, which is then put under it, once."""
        keys = [connector.make_key(3), connector.make_key(3)]
        assert keys[0] != keys[1]
        assert await connector.exists(keys[0]) is False
        assert await connector.put([b"abc"], key=keys[0]) == keys[0]
        assert content(await connector.get(str(keys[0]))) == b"abc"
        with pytest.raises(KeyExistsError):
            await connector.put([b"x"], key=str(keys[0]))
        assert await connector.evict(keys[0]) is True
        if connector.takes_keys:
            put: Any = connector.put_batch
            made = [connector.make_key(1), connector.make_key(70_000)]
            assert await put([[b"a"], [large()[:70_000]]], keys=made) == made
            assert content(await connector.get(made[1])) == large()[:70_000]
            assert await connector.evict_batch(made) == [True, True]

    async def test_frames_in_a_tuple(self, connector: Connector) -> None:
        """Frames may come in any sequence."""
        key = await connector.put((b"a", b"b"))
        assert content(await connector.get(key)) == b"ab"

    @pytest.mark.parametrize("size", [1, 100_000])
    async def test_get_reads_what_others_wrote(self, connector: Connector, size: int) -> None:
        """An object that this connector never put is found, read and evicted like its own."""
        await self.assert_works(connector)
        await self.behind(self.write_raw, "theirs", large()[:size])
        assert await connector.exists("theirs") is True
        assert content(await connector.get("theirs")) == large()[:size]
        with pytest.raises(KeyExistsError):
            await connector.put([b"mine"], key="theirs")
        assert await connector.evict("theirs") is True
        assert await self.behind(self.read_raw, "theirs") is None

    async def test_what_others_removed_is_gone(self, connector: Connector) -> None:
        """An object that was removed behind the connector's back is absent."""
        key = await connector.put([b"object"])
        await self.behind(self.delete_raw, key)
        assert await connector.exists(key) is False
        assert await connector.get(key) is None
        assert await connector.evict(key) is False

    @pytest.mark.parametrize("size", [1, 1000, 300_000])
    async def test_size_is_only_a_hint(self, connector: Connector, size: int) -> None:
        """A get returns the whole object, whatever size the caller believes in."""
        key = await connector.put([large()[:size]])
        for hint in (None, 1, size - 1, size, size + 1, 4 * size, 1 << 24):
            assert content(await connector.get(key, size=hint)) == large()[:size]
            assert await connector.get("absent", size=hint) is None

    async def test_a_missing_key_holds_nothing(self, connector: Connector) -> None:
        """Get gives None, exists and evict give False, and nothing is raised."""
        for key in ("absent", "", "../..", "0" * 32):
            assert await connector.get(key) is None
            assert await connector.exists(key) is False
            assert await connector.evict(key) is False

    async def test_evict_removes(self, connector: Connector) -> None:
        """Evict says once that the object was there, and then it is gone from the medium."""
        key = await connector.put([b"object"])
        assert await connector.exists(key) is True
        assert await connector.evict(key) is True
        assert await connector.exists(key) is False
        assert await connector.get(key) is None
        assert await connector.evict(key) is False
        assert await self.behind(self.read_raw, key) is None

    async def test_made_keys_are_unique(self, connector: Connector) -> None:
        """Two connectors on one medium never make the same key."""
        other = self.second(connector)
        keys = [await one.put([b"x"]) for _ in range(50) for one in (connector, other)]
        keys += await connector.put_batch([[b"x"]] * 50)
        assert len(set(keys)) == 150
        assert {type(key) for key in keys} == {str}

    @pytest.mark.parametrize("size", [1, 300_000])
    async def test_chosen_keys_are_write_once(self, connector: Connector, size: int) -> None:
        """A second put under one key is refused, by every connector, and changes nothing."""
        body = large()[:size]
        assert await connector.put([body], key="chosen") == "chosen"
        for one in (connector, self.second(connector)):
            for other in (b"x", body, body + b"more"):
                with pytest.raises(KeyExistsError, match="chosen"):
                    await one.put([other], key="chosen")
                assert content(await one.get("chosen")) == body
        assert content(await self.behind(self.read_raw, "chosen")) == body

    async def test_made_keys_are_write_once(self, connector: Connector) -> None:
        """A key that the connector made is taken like one that was chosen."""
        key = await connector.put([b"object"])
        with pytest.raises(KeyExistsError):
            await connector.put([b"another"], key=key)
        assert content(await connector.get(key)) == b"object"

    async def test_an_evicted_key_is_free(self, connector: Connector) -> None:
        """A chosen key can be used again when its object was evicted."""
        for body in (b"first", b"second", b"3"):
            assert await connector.put([body], key="again") == "again"
            assert content(await connector.get("again")) == body
            assert await connector.evict("again") is True

    async def test_awkward_keys(self, connector: Connector) -> None:
        """Keys of any characters work, and each names its own object."""
        for number, key in enumerate(AWKWARD_KEYS):
            assert await connector.put([b"object ", b"%d" % number], key=key) == key
        for number, key in enumerate(AWKWARD_KEYS):
            assert content(await connector.get(key)) == b"object %d" % number
            assert await connector.exists(key) is True
        assert set(await connector.evict_batch(AWKWARD_KEYS)) == {True}

    def test_any_text_is_a_key(self, connector: Connector) -> None:
        """Whatever text the key is and whatever bytes the frames are, the object comes back."""

        async def check(key: str, other: str, frames: list[bytes]) -> None:
            await connector.put(frames, key=key)
            assert await connector.exists(other) is (other == key)
            assert content(await connector.get(key)) == joined(frames)
            assert await connector.evict(key) is True

        with asyncio.Runner() as runner:

            @settings(max_examples=50, deadline=None)
            @given(st.text(), st.text(), st.lists(st.binary(), min_size=1).filter(any))
            def run(key: str, other: str, frames: list[bytes]) -> None:
                runner.run(check(key, other, frames))

            run()


class IsolationTests(Harness):
    """After a put returns, nobody sees what producer or reader do to their buffers."""

    @pytest.mark.parametrize("batch", [False, True], ids=["put", "put_batch"])
    @pytest.mark.parametrize("size", [10, 300_000, 5 << 20])
    async def test_producer_is_out_of_sight(
        self, connector: Connector, size: int, batch: bool
    ) -> None:
        """What the producer does to its buffers after a put is invisible."""
        head, body = bytearray(b"head"), bytearray(large()[:size])
        before = bytes(head + body)
        if batch:
            (key,) = await connector.put_batch([[head, body]])
        else:
            key = await connector.put([head, body])
        head[:] = b"DAEH"
        body.reverse()
        assert content(await connector.get(key)) == before
        assert content(await self.second(connector).get(key)) == before

    @pytest.mark.parametrize("size", [10, 300_000, 5 << 20])
    async def test_readers_are_out_of_sight(self, connector: Connector, size: int) -> None:
        """What a reader does to a writable buffer is invisible to all others."""
        body, other = large()[:size], self.second(connector)
        key = await connector.put([body])
        earlier = await connector.get(key)
        buffers = [await one.get(key) for one in (connector, other)]
        buffers += await connector.get_batch([key, key])
        for buffer in buffers:
            assert buffer is not None
            with memoryview(buffer) as view:
                if not view.readonly:
                    view[:] = bytes(size)
        assert content(earlier) == body
        assert content(await connector.get(key)) == body
        assert content(await other.get(key)) == body
        assert content(await self.behind(self.read_raw, key)) == body

    @pytest.mark.parametrize("size", [10, 300_000, 5 << 20])
    async def test_buffers_outlive_their_object(self, connector: Connector, size: int) -> None:
        """What a get returned stays as it is when the object is evicted and the key used again."""
        body = large()[:size]
        await connector.put([body], key="key")
        buffer = await connector.get("key")
        await connector.evict("key")
        await connector.put([bytes(size)], key="key")
        assert content(buffer) == body
        await connector.aclose(clear=True)
        assert content(buffer) == body


class BatchTests(Harness):
    """Many objects at once."""

    async def test_batches_keep_their_order(self, connector: Connector) -> None:
        """Keys, objects and answers come in the order of what was asked."""
        bodies = [large()[i : i + 1 + 17 * i] for i in range(200)]
        keys = await connector.put_batch([[body[:5], body[5:]] for body in bodies])
        assert [content(await connector.get(key)) for key in keys] == bodies
        assert [content(one) for one in await connector.get_batch(keys[::-1])] == bodies[::-1]
        assert await connector.evict_batch(keys[::2]) == [True] * 100
        assert [await connector.exists(key) for key in keys] == [False, True] * 100

    async def test_batches_of_all_sizes(self, connector: Connector) -> None:
        """Small and large objects of any shape go in one batch."""
        batch = await self.behind(lambda: [make() for make in SHAPES.values()])
        keys = await connector.put_batch(batch)
        sizes = [len(joined(frames)) for frames in batch]
        for hints in (None, sizes, [None, *sizes[1:]], sizes[::-1]):
            found = await connector.get_batch(keys, sizes=hints)
            assert [content(one) for one in found] == [joined(frames) for frames in batch]

    async def test_batches_with_gaps(self, connector: Connector) -> None:
        """In a batch a missing key is None or False in its place, and a key may come twice."""
        one, two = await connector.put_batch([[b"one"], [b"two"]])
        keys = ["absent", two, one, "", two]
        found = await connector.get_batch(keys)
        assert [content(body) for body in found] == [None, b"two", b"one", None, b"two"]
        there = await connector.evict_batch(keys)
        assert (there[0], there[2], there[3]) == (False, True, False)
        assert sorted((there[1], there[4])) == [False, True]
        assert await connector.get_batch(keys) == [None] * 5

    async def test_empty_batches(self, connector: Connector) -> None:
        """A batch of nothing gives nothing."""
        assert await connector.put_batch([]) == []
        assert await connector.get_batch([]) == []
        assert await connector.evict_batch([]) == []

    async def test_a_bad_batch_stores_nothing(self, connector: Connector) -> None:
        """If one object of a batch cannot be stored, none is."""
        await self.assert_works(connector)
        before = await self.behind(self.count_raw)
        with pytest.raises(TypeError):
            await connector.put_batch([[b"one"], [b"two", object()]])  # type: ignore[list-item]
        assert await self.behind(self.count_raw) == before
