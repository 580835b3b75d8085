"""A connector is described by its URL, is closed, meets a broken medium, serves proxies."""

from __future__ import annotations

import asyncio
import pickle
import uuid

import pytest

from proxyplane.abc import Connector, SupportsSync
from proxyplane.config import StoreConfig, connector_class, connector_from_url
from proxyplane.exceptions import (
    ConfigError,
    ConnectorClosedError,
    ConnectorError,
    KeyExistsError,
)
from proxyplane.proxy import resolve
from proxyplane.registry import get_store
from proxyplane.store import Store
from proxyplane.testing._buffers import SHAPES, content, joined, large
from proxyplane.testing._harness import Harness, needs_fork, operations, unwrapped
from proxyplane.testing.stateful import ConnectorMachine, StoreMachine, run_machine
from proxyplane.testing.steps import in_forked_child


class UrlTests(Harness):
    """What travels inside proxies."""

    def test_url_round_trip(self, connector: Connector) -> None:
        """The connector of a URL has that URL, and its scheme leads back to the class."""
        plain = unwrapped(connector)
        assert type(connector.url) is str
        assert connector.url == connector.url
        assert type(plain).from_url(connector.url).url == connector.url
        assert connector_from_url(connector.url).url == connector.url
        assert connector_class(connector.url.partition(":")[0]) is type(plain)
        assert connector_class(type(plain).scheme) is type(plain)

    def test_url_fits_a_store(self, connector: Connector) -> None:
        """The URL has no secret, no fragment and no control character, as a store demands."""
        config = StoreConfig(name="any", connector=connector.url)
        assert StoreConfig.from_url(config.to_url()) == config

    def test_bad_url(self, connector: Connector) -> None:
        """What is no URL of this connector is a ConfigError."""
        for url in ("", "nonsense", "no-such-scheme://somewhere/1/2"):
            with pytest.raises(ConfigError):
                type(unwrapped(connector)).from_url(url)

    async def test_second_connector_reaches_the_objects(self, connector: Connector) -> None:
        """A connector made from the URL finds what this one put, and the other way round."""
        other = self.second(connector)
        for one, two in ((connector, other), (other, connector)):
            key = await one.put([large()])
            assert await two.exists(key) is True
            assert content(await two.get(key)) == large()
            assert await two.evict(key) is True
            assert await one.get(key) is None


class CloseTests(Harness):
    """What closing does, and what it leaves alone."""

    async def test_close_keeps_the_objects(self, connector: Connector) -> None:
        """Closing once, twice, or twice at once removes nothing."""
        other = self.second(connector)
        key = await connector.put([b"object"])
        await asyncio.gather(connector.aclose(), connector.aclose())
        await connector.aclose()
        assert content(await other.get(key)) == b"object"

    async def test_close_unused(self, connector: Connector) -> None:
        """A connector that was never used can be closed and cleared."""
        other = self.second(connector)
        await other.aclose()
        await connector.aclose(clear=True)
        await connector.aclose(clear=True)

    async def test_clear_evicts_what_it_put(self, connector: Connector) -> None:
        """``clear=True`` evicts what was put through this instance, and nothing else."""
        other = self.second(connector)
        await self.assert_works(other)
        await self.behind(self.write_raw, "theirs", b"object")
        kept = ["theirs", await other.put([b"x"]), await other.put([b"x"], key="of the other")]
        mine = [await connector.put([b"x"]), await connector.put([b"x"], key="mine")]
        mine += await connector.put_batch([[b"x"], [large()]])
        await connector.aclose(clear=True)
        assert [await other.exists(key) for key in mine] == [False] * len(mine)
        assert [await other.exists(key) for key in kept] == [True] * len(kept)

    async def test_use_after_close(self, connector: Connector) -> None:
        """Every operation of a closed connector raises ConnectorClosedError, and does nothing."""
        other = self.second(connector)
        key = await connector.put([b"object"])
        await connector.aclose()
        for call in operations(connector, key).values():
            with pytest.raises(ConnectorClosedError):
                await call()
        assert content(await other.get(key)) == b"object"
        assert connector.url == other.url


class TroubleTests(Harness):
    """The medium fails."""

    async def test_a_broken_medium_is_a_connector_error(self, connector: Connector) -> None:
        """When the medium fails, every operation raises ConnectorError, and closing does not."""
        key = await connector.put([b"object"])
        fresh = self.second(connector)
        await self.behind(self.break_medium)
        for one in (connector, fresh):
            for call in operations(one, key).values():
                with pytest.raises(ConnectorError) as caught:
                    await call()
                assert str(caught.value)
            await one.aclose()


class SyncTests(Harness):
    """The shortcut without a loop, of a connector that has it."""

    @pytest.fixture
    def medium(self, connector: Connector) -> SupportsSync:
        """The connector, as one with the shortcut."""
        if not isinstance(connector, SupportsSync):
            pytest.skip("the connector has no shortcut")
        return connector

    def test_shortcut_does_what_the_coroutines_do(
        self, connector: Connector, medium: SupportsSync
    ) -> None:
        """What the one puts the other gets and evicts, with or without a chosen key."""
        with asyncio.Runner() as runner:
            for name, make in SHAPES.items():
                body = joined(make())
                keys = [medium.put_sync(make()), runner.run(connector.put(make()))]
                keys.append(medium.put_sync(make(), key=name))
                for key in keys:
                    assert content(medium.get_sync(key)) == body
                    assert content(medium.get_sync(key, size=1)) == body
                    assert content(runner.run(connector.get(key))) == body
                    assert medium.exists_sync(key) is True
                    assert medium.evict_sync(key) is True
                    assert runner.run(connector.evict(key)) is False
                    assert medium.evict_sync(key) is False
                    assert medium.exists_sync(key) is False
                    assert medium.get_sync(key) is None
                assert len(set(keys)) == 3

    def test_shortcut_is_write_once(self, connector: Connector, medium: SupportsSync) -> None:
        """A taken key is refused here as well."""
        asyncio.run(connector.put([b"first"], key="key"))
        with pytest.raises(KeyExistsError):
            medium.put_sync([b"second"], key="key")
        assert content(medium.get_sync("key")) == b"first"

    def test_shortcut_belongs_to_the_instance(
        self, connector: Connector, medium: SupportsSync
    ) -> None:
        """Clearing evicts what came in this way, and a closed connector says so here too."""
        other = self.second(connector)
        keys = [medium.put_sync([b"x"]), medium.put_sync([b"x"], key="key")]
        asyncio.run(connector.aclose(clear=True))
        assert [asyncio.run(other.exists(key)) for key in keys] == [False, False]
        for call in (
            lambda: medium.put_sync([b"x"]),
            lambda: medium.get_sync("key"),
            lambda: medium.exists_sync("key"),
            lambda: medium.evict_sync("key"),
        ):
            with pytest.raises(ConnectorClosedError):
                call()


class StoreTests(Harness):
    """What stands on a connector."""

    async def test_a_proxy_finds_its_object(self, connector: Connector) -> None:
        """A proxy that was pickled resolves through a connector made from the URL."""
        async with Store(f"suite {uuid.uuid4()}", connector) as store:
            pickled = pickle.dumps(await store.proxy({"an": "object", "of": large()}))
            # Its name and its connector are then free: the proxy makes a store of its own.
            other = self.second(connector)
        arrived = pickle.loads(pickled)
        assert await arrived == {"an": "object", "of": large()}
        await get_store(arrived).aclose()
        await other.aclose()

    @needs_fork
    def test_a_proxy_crosses_processes(self, connector: Connector) -> None:
        """A proxy resolves in another process, by a touch."""
        if self.process_local:
            pytest.skip("no other process can reach the objects, by design")
        store = Store(f"suite {uuid.uuid4()}", connector)
        pickled = pickle.dumps(asyncio.run(store.proxy(["an", "object"])))

        def child() -> list[str]:
            arrived = pickle.loads(pickled)
            resolve(arrived)
            return [str(arrived[0]), *arrived[1:]]

        assert in_forked_child(child) == ["an", "object"]

    def test_any_sequence_of_operations(self, connector: Connector) -> None:
        """Whatever is called in whatever order, the connector does what a dict would do."""
        run_machine(lambda: ConnectorMachine(connector, self.second(connector)))

    @pytest.mark.parametrize("cache_size", [0, 2, 16])
    def test_any_sequence_over_a_store(self, connector: Connector, cache_size: int) -> None:
        """So does a store over it, with its cache, in async and in blocking code."""
        run_machine(lambda: StoreMachine(connector, cache_size=cache_size), max_examples=10)
