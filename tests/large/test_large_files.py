"""Objects of gigabytes as files."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest

from proxyplane import FileConnector, Store
from proxyplane.exceptions import StoreFullError
from proxyplane.sync import Store as BlockingStore
from support.large import GIB, marked
from support.mounts import mounted, need_root

pytestmark = pytest.mark.timeout(900)

# Compares all of it, a little at a time, with what `marked` made.
READER = """
import sys
import numpy as np
from proxyplane import FileConnector
from proxyplane.sync import Store

url, key, places = sys.argv[1], sys.argv[2], [int(place) for place in sys.argv[4:]]
with Store("large-reader", url, cache_size=0) as store:
    array = store.get(key)
    assert array.dtype == np.uint8 and len(array) == int(sys.argv[3])
    found = []
    for start in range(0, len(array), 1 << 26):
        found += (np.flatnonzero(array[start : start + (1 << 26)]) + start).tolist()
    assert found == places, found
    assert [int(array[place]) for place in places] == [1 + n for n in range(len(places))]
    array[places[0]] = 99  # a private copy of one page
    assert store.get(key)[places[0]] == 1
    print(open("/proc/self/status").read().partition("RssAnon:")[2].split()[0])
"""


def read_elsewhere(url: str, key: str, size: int, places: list[int]) -> int:
    """Has another process compare the array; returns the memory that it needed, in bytes."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(READER)]
        + [url, key, *map(str, [size, *places])],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


@pytest.mark.parametrize("gib", [1, 3, 6])
@pytest.mark.parametrize("awaited", [False, True])
def test_array(tmp_path, need, gib, awaited):
    """An array is put and read elsewhere, whole, and neither process needs memory for it."""
    size = gib * GIB + 1
    need(memory=2 * GIB, disk=size + 2 * GIB, path=tmp_path)
    array, places = marked(size)
    url = FileConnector(tmp_path / "objects").url
    name = f"large-{uuid.uuid4().hex}"
    if awaited:

        async def put() -> str:
            async with Store(name, url, cache_size=0) as store:
                return await store.put(array)

        key = asyncio.run(put())
    else:
        with BlockingStore(name, url, cache_size=0) as store:
            key = store.put(array)
    assert os.stat(tmp_path / "objects" / key).st_size > size
    assert read_elsewhere(url, key, size, places) < GIB // 4
    os.unlink(tmp_path / "objects" / key)


def test_bytes(tmp_path, need):
    """Bytes of more than one system call can write come back equal."""
    size = 3 * GIB
    need(memory=3 * size, disk=size + 2 * GIB, path=tmp_path)
    body = b"0123456789abcdef" * (size // 16)
    url = FileConnector(tmp_path / "objects").url
    with BlockingStore(f"large-{uuid.uuid4().hex}", url, cache_size=0) as store:
        assert store.get(store.put(body)) == body
        store.close(clear=True)


@pytest.mark.parametrize("firm", [True, False])
def test_larger_than_the_medium(tmp_path, need, firm):
    """What does not fit leaves all the room free, whether that is known before or found out."""
    need_root()
    need(memory=3 * GIB)
    with mounted(tmp_path / "one", "-t", "tmpfs", "-o", "size=1g,mode=700", "none") as path:
        connector = FileConnector(path)
        connector._directory.firm = firm
        kept = connector.put_sync([b"kept" * 50_000], key="kept")
        buffer = connector.get_sync(kept)
        before = os.statvfs(path).f_bavail
        array, _ = marked(3 * GIB)
        with pytest.raises(StoreFullError, match=str(3 * GIB)):
            connector.put_sync([memoryview(array)])
        assert os.statvfs(path).f_bavail == before
        assert buffer == connector.get_sync(kept) == b"kept" * 50_000
        assert [name.name for name in Path(path).iterdir()] == ["k-kept"]
        del buffer
