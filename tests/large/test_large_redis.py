"""Objects of gigabytes in a Redis server, in parts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import uuid

import pytest

from proxyplane import Store
from proxyplane.sync import Store as BlockingStore
from support.large import GIB, marked
from support.servers import admin

pytestmark = pytest.mark.timeout(900)

# Compares all of it, a little at a time, with what `marked` made.
READER = """
import asyncio, sys
import numpy as np
from proxyplane import Store
from proxyplane.sync import Store as BlockingStore

url, key, places = sys.argv[1], sys.argv[2], [int(place) for place in sys.argv[5:]]

async def get():
    async with Store("large-reader", url, cache_size=0) as store:
        return await store.get(key)

if sys.argv[4] == "awaited":
    array = asyncio.run(get())
else:
    with BlockingStore("large-reader", url, cache_size=0) as store:
        array = store.get(key)
assert array.dtype == np.uint8 and len(array) == int(sys.argv[3])
found = []
for start in range(0, len(array), 1 << 26):
    found += (np.flatnonzero(array[start : start + (1 << 26)]) + start).tolist()
assert found == places, found
assert [int(array[place]) for place in places] == [1 + n for n in range(len(places))]
array[0] = 99
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.parametrize("how", ["awaited", "blocking"])
@pytest.mark.parametrize("size", [GIB // 2 + 1, GIB, 3 * GIB, 6 * GIB], ids="{}".format)
def test_array(own_redis_server, need, size, how):
    """An array is put, read elsewhere into one buffer, and evicted with all of its parts."""
    need(memory=3 * size + GIB)  # that of the writer, the server and the reader
    server = own_redis_server()
    array, places = marked(size)
    name = f"large-{uuid.uuid4().hex}"

    async def put() -> str:
        async with Store(name, server.url, cache_size=0) as store:
            return await store.put(array)

    async def evict() -> bool:
        async with Store(name, server.url) as store:
            return await store.evict(key)

    if how == "awaited":
        key = asyncio.run(put())
    else:
        with BlockingStore(name, server.url, cache_size=0) as store:
            key = store.put(array)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(READER)]
        + [server.url, key, str(size), how, *map(str, places)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < size + GIB // 4, "one copy and no more"
    assert asyncio.run(evict())
    with admin(server) as client:
        assert 0 == client.dbsize()
