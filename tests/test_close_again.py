"""A close that fails half way: what was to be cleared is cleared by the next one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import proxyplane as pp
from proxyplane import sync
from proxyplane.config import connector_from_url
from proxyplane.exceptions import ConnectorError, StoreClosedError
from support.servers import admin

AOF = ["--appendonly", "yes", "--appendfsync", "always"]


class FileMedium:
    """A directory that is away for a while."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = path.as_uri()

    def fail(self) -> None:
        self.path.rename(self.path.with_name("away"))
        self.path.write_bytes(b"not a directory")

    def mend(self) -> None:
        self.path.unlink()
        self.path.with_name("away").rename(self.path)

    def objects(self) -> list[str]:
        return [path.name for path in self.path.rglob("*") if path.is_file()]


class RedisMedium:
    """A server that is killed, and started again with what it held."""

    def __init__(self, start) -> None:
        self.server = start(args=AOF)
        self.url = self.server.url
        self.fail = self.server.kill
        self.mend = self.server.start

    def objects(self) -> list[bytes]:
        with admin(self.server) as client:
            return client.keys("*")


@pytest.fixture(params=["file", "redis"])
def medium(request, tmp_path):
    if request.param == "file":
        return FileMedium(tmp_path / "objects")
    return RedisMedium(request.getfixturevalue("own_redis_server"))


def fill(store):
    """Objects of each kind: with a made key, with a chosen one, and one that comes later."""
    store.put([1])
    store.put([2], key="mine")
    store.future()


@pytest.mark.parametrize("again", [{}, {"clear": True}], ids=["close()", "close(clear=True)"])
def test_a_clear_that_failed_is_repeated(medium, again):
    """It raises, the store is closed all the same, and the next close clears; then no more."""
    store = sync.Store("s", medium.url)
    fill(store)
    with sync.Store("another", medium.url) as other:
        other.put([3], key="theirs")
    medium.fail()
    for _ in range(2):
        with pytest.raises(ConnectorError):
            store.close(clear=True)
        assert store.closed
        with pytest.raises(StoreClosedError):
            store.put([4])
    medium.mend()
    assert len(medium.objects()) == 4
    store.close(**again)
    assert len(medium.objects()) == 1
    with sync.Store("another", medium.url) as other:
        other.put([5], key="mine")
        store.close(clear=True)
        assert other.get("mine") == [5]


def test_a_connector_whose_clear_failed(medium):
    """The same of a connector; between the two it is a closed one."""

    async def main():
        connector = connector_from_url(medium.url)
        await connector.put([b"x"])
        await connector.put([b"x"], key="mine")
        await connector.new_key()
        await asyncio.to_thread(medium.fail)
        with pytest.raises(ConnectorError):
            await connector.aclose(clear=True)
        await asyncio.to_thread(medium.mend)
        with pytest.raises(pp.exceptions.ConnectorClosedError):
            await connector.put([b"x"])
        await connector.aclose()
        assert medium.objects() == []

    asyncio.run(main())


def test_a_close_that_is_not_to_clear_keeps_all(medium):
    """A second close does nothing, whatever it asks for."""
    store = sync.Store("s", medium.url)
    fill(store)
    store.close()
    store.close(clear=True)
    assert len(medium.objects()) == 3
