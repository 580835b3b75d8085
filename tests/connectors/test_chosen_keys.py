"""What a connector keeps of the keys that users chose, so that it can be cleared."""

from __future__ import annotations

import asyncio

import pytest

import proxyplane as pp
from proxyplane.connectors._keys import ChosenKeys

COUNT = 2_000
FEW = 600


async def use(crossing, put, survivors):
    """Puts under many keys, of which others evict all but the survivors; returns the connector."""
    connector, other = crossing.connector(), crossing.connector()
    for key in survivors:
        await put(connector, key)
    for begin in range(0, COUNT, 100):
        keys = [f"key {number}" for number in range(begin, begin + 100)]
        for key in keys:
            await put(connector, key)
        assert all(await other.evict_batch(keys))
    return connector, other


async def by_put(connector, key):
    await connector.put([b"object"], key=key)


async def by_swap(connector, key):
    await connector.swap(key, [b"object"])


async def in_a_thread(connector, key):
    await asyncio.to_thread(connector.put_sync, [b"object"], key=key)


@pytest.mark.parametrize("put", [by_put, by_swap, in_a_thread])
async def test_keys_that_others_evict_are_forgotten(crossing, put):
    """Keys that others evicted are not kept for ever; what is there is cleared all the same."""
    survivors = [f"survivor {number}" for number in range(10)]
    connector, other = await use(crossing, put, survivors)
    assert len(connector._chosen) < FEW
    await connector.aclose(clear=True)
    assert [await other.exists(key) for key in survivors] == [False] * len(survivors)
    await other.aclose()


async def test_keys_whose_leases_end_are_forgotten(crossing):
    """Nor of keys with a lease."""
    connector = crossing.connector()
    for number in range(COUNT):
        await connector.put([b"object"], key=f"key {number}", ttl=0.001)
        if number % 100 == 99:
            await asyncio.sleep(0.01)
            if isinstance(connector, pp.FileConnector):
                await connector.sweep()
    assert len(connector._chosen) < FEW
    await connector.aclose()


def test_a_key_that_is_put_again_while_somebody_looks_is_kept():
    """Who looked before tells of what was there before."""
    chosen = ChosenKeys()
    for number in range(200):
        chosen.note(f"key {number}", True)
    looked = chosen.to_look_at()
    assert [note.key for note in looked] == [f"key {number}" for number in range(200)]
    chosen.note("key 0", True)
    for note in looked:
        chosen.forget_gone(note)
    assert [key for key, _ in chosen.items()] == ["key 0"]
