"""Failures and cancellations, and the bytes under a name."""

from __future__ import annotations

import asyncio
import uuid

import pytest

import proxyplane as pp
from proxyplane._records import MAGIC, pack_record, read_record
from proxyplane.connectors._keys import is_made
from proxyplane.exceptions import (
    ConnectorLostError,
    KeyExistsError,
    ObjectLostError,
    SerializationError,
)
from proxyplane.testing import FailingConnector, Recorder, cancelled_at
from support.names import LARGE, body


class TestTrouble:
    """Failures and cancellations."""

    @pytest.mark.parametrize("size", [10, LARGE, 3 << 20])
    async def test_a_cancelled_put_is_done_or_not(self, store, size):
        """Wherever a put is cancelled, the key holds what it held or the new object, and whole."""
        nth, reached = 1, True
        while reached:
            await store.put(body(0, size), key="name")
            reached = await cancelled_at(store.put(body(nth, size), key="name"), nth)
            found = await store.get("name", strict=True)
            assert found in ((body(0, size), body(nth, size)) if reached else (body(nth, size),))
            nth += 1

    @pytest.mark.parametrize("size", [10, LARGE, 3 << 20])
    async def test_a_cancelled_get_spoils_nothing(self, store, size):
        """Wherever a get is cancelled, the next one gets the object."""
        await store.put(body(0, size), key="name")
        nth, reached = 1, True
        while reached:
            reached = await cancelled_at(store.get("name", strict=True), nth)
            assert await store.get("name", strict=True) == body(0, size)
            store._cache.clear()
            nth += 1

    async def test_a_cancelled_evict_is_done_or_not(self, store):
        """Wherever an evict is cancelled, the object is there or gone, and can be put again."""
        nth, reached = 1, True
        while reached:
            await store.put(body(0), key="name")
            reached = await cancelled_at(store.evict("name"), nth)
            assert await store.get("name", strict=True) in ((body(0), None) if reached else (None,))
            nth += 1

    async def test_a_failed_swap_leaves_nothing(self, tmp_path):
        """If the record cannot be written, the object is taken back, and the old one is there."""
        files = pp.FileConnector(tmp_path / "objects")
        failing = FailingConnector(files, 2, OSError("no"), operations={"swap"})
        recorder = Recorder(failing)
        async with pp.Store("failing", recorder) as store:
            await store.put(body(1), key="name")
            with pytest.raises(OSError, match="no"):
                await store.put(body(2), key="name")
            assert [call.operation for call in recorder.calls][-3:] == ["put", "swap", "evict"]
            assert await store.get("name", strict=True) == body(1)

    @pytest.mark.parametrize("too_late", [False, True])
    async def test_a_lost_swap_keeps_the_object(self, tmp_path, too_late):
        """If the connection breaks at the swap, the record may be there, so the object stays."""
        files = pp.FileConnector(tmp_path / "objects")
        failing = FailingConnector(
            files, 2, ConnectorLostError("broken"), operations={"swap"}, too_late=too_late
        )
        async with pp.Store("lost", failing) as store:
            await store.put(body(1), key="name")
            with pytest.raises(ConnectorLostError):
                await store.put(body(2), key="name")
            assert await store.get("name", strict=True) == body(2 if too_late else 1)

    async def test_a_failed_retirement_does_not_fail_the_put(self, tmp_path):
        """What was replaced and cannot be removed is left behind; the put is done."""
        files = pp.FileConnector(tmp_path / "objects")
        failing = FailingConnector(files, 1, ConnectorLostError("broken"), operations={"evict"})
        async with pp.Store("retiring", failing) as store:
            await store.put(body(1), key="name")
            await store.put(body(2), key="name")
            assert await store.get("name", strict=True) == body(2)

    async def test_an_object_that_the_medium_lost(self, store):
        """A record whose object is gone is an error, not nothing."""
        await store.put(body(1), key="name")
        record = read_record(await store.connector.get("name"))
        assert await store.connector.evict(record.generation)
        with pytest.raises(ObjectLostError, match="name"):
            await store.get("name", strict=True)
        await store.put(body(2), key="name")
        assert await store.get("name", strict=True) == body(2)

    async def test_objects_without_a_record(self, store, other):
        """What the connector put under a key by itself is read, replaced and evicted as well."""
        encoded = pp.serialization.encode("raw")
        for replace in (False, True):
            await store.connector.put(encoded, key="name")
            assert await store.get("name") == "raw"
            assert await other.get("name", strict=True) == "raw"
            assert await other.get_batch(["name"], strict=True) == ["raw"]
            if replace:
                await store.put("new", key="name")
                assert await other.get("name", strict=True) == "new"
            assert await store.evict("name") is True
        await store.connector.put(encoded, key="name")
        assert await store.proxy_from_key("name", evict=True) == "raw"
        assert await store.exists("name") is False

    async def test_connectors_that_cannot(self, tmp_path):
        """Without `swap` keys are write-once, and strict is an error that names who can."""

        class Plain(pp.Connector):
            scheme = "plain"
            url = "plain:"
            inner = pp.FileConnector(tmp_path / "objects")

            def from_url(self, url):
                raise NotImplementedError

            async def put(self, frames, *, key=None):
                return await self.inner.put(frames, key=key)

            async def get(self, key, *, size=None):
                return await self.inner.get(key, size=size)

            async def exists(self, key):
                return await self.inner.exists(key)

            async def evict(self, key):
                return await self.inner.evict(key)

            async def aclose(self, *, clear=False):
                await self.inner.aclose(clear=clear)

        async with pp.Store("plain", Plain()) as store:
            await store.put("one", key="name")
            with pytest.raises(KeyExistsError):
                await store.put("two", key="name")
            assert await store.get("name") == "one"
            for call in (
                lambda: store.get("name", strict=True),
                lambda: store.get_batch(["name"], strict=True),
                lambda: store.proxy([1], key="other", strict=True),
            ):
                with pytest.raises(NotImplementedError, match="Plain.*RedisConnector"):
                    await call()
            with pytest.raises(NotImplementedError, match="Plain"):
                store.proxy_from_key("name", strict=True)


class TestRecords:
    """The bytes under a name."""

    def test_round_trip(self):
        """A record says what it was made of."""
        for name, inside in (("é\ud800", None), ("g" * 32, [b"ab", b"c"])):
            record = read_record(pack_record(name, 3, inside))
            assert (record.generation, record.size) == (name, 3)
            assert (record.body and bytes(record.body)) == (inside and b"abc")

    def test_an_object_is_no_record(self):
        """What is no record is an object."""
        for other in (b"", b"\xc1", b"\xc1PXP....", MAGIC[:3]):
            assert read_record(other) is None

    def test_damage_is_found(self):
        """A record that is cut off, or has a byte changed, is an error."""
        whole = pack_record("g" * 32, 7)
        for end in range(len(MAGIC), len(whole)):
            with pytest.raises(SerializationError):
                read_record(whole[:end])
        for place in range(len(MAGIC), len(whole)):
            with pytest.raises(SerializationError):
                read_record(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])

    def test_the_form_of_made_keys(self, tmp_path):
        """Keys that connectors make are told from those that people choose, identifiers too."""
        files = pp.FileConnector(tmp_path / "objects")
        multi = pp.MultiConnector({"files": files})
        made = [files.put_sync([b"x"]), *asyncio.run(_make(files)), *asyncio.run(_make(multi))]
        assert all(map(is_made, made))
        chosen = ["", "name", "0" * 31, "measurement-2024" + "0" * 15 + "7", "A" * 32]
        chosen += [make().hex for make in (uuid.uuid1, uuid.uuid4) for _ in range(200)]
        assert not any(map(is_made, chosen))


async def _make(connector) -> list[str]:
    return [await connector.put([b"x"]), await connector.new_key()]
