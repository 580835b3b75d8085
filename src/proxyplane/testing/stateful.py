"""Hypothesis state machines: a connector, or a store over it, against a dict."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from proxyplane import sync
from proxyplane.abc import Connector, DeferrableConnector, SupportsNames, SupportsSync
from proxyplane.exceptions import KeyExistsError, ProxyResolveMissingKeyError
from proxyplane.proxy import aresolve, extract, get_key
from proxyplane.store import Store
from proxyplane.testing._buffers import content, joined

__all__ = ["ConnectorMachine", "StoreMachine", "run_machine"]

Do = Callable[..., Any]
"""Performs an operation, given its name and arguments, and returns its result."""

LONG = 600.0
LEASES = (None, 300.0, LONG)
"""Seconds; longer than any example takes."""

# The examples of one test share a medium, so that each needs chosen keys of its own.
_numbers = itertools.count()

_frames = st.lists(st.binary(max_size=40), min_size=1, max_size=4).filter(any)
_names = st.sampled_from(["", "a/..", "é\0"])


class _Machine(RuleBasedStateMachine):
    """Rules that are the same for connectors and stores.

    Attributes:
        model: What the medium must hold: key to the frames that were put, joined.
    """

    keys: Bundle[str] = Bundle("keys")
    chosen: Bundle[str] = Bundle("chosen")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model: dict[str, bytes] = {}
        self.seen: set[str] = set()
        self.number = next(_numbers)
        self.ways = self.open()

    def open(self) -> Sequence[Do]:
        """The ways in which operations can be performed; each rule picks one."""
        raise NotImplementedError

    def to_put(self, frames: list[bytes]) -> Any:
        """What is put for these frames."""
        raise NotImplementedError

    def got(self, found: Any) -> Any:
        """The joined frames of what was got."""
        raise NotImplementedError

    def do(self, way: int, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Performs an operation in one of the ways."""
        return self.ways[way % len(self.ways)](operation, *args, **kwargs)

    def remember(self, key: str, frames: list[bytes]) -> str:
        """Notes that something was put."""
        assert key not in self.model, f"{key!r} was made twice"
        self.model[key] = joined(frames)
        self.seen.add(key)
        return key

    way = st.integers(0, 5)

    @rule(target=keys, way=way, frames=_frames)
    def put(self, way: int, frames: list[bytes]) -> str:
        """Puts under a key that the connector makes."""
        return self.remember(self.do(way, "put", self.to_put(frames)), frames)

    @rule(targets=(keys, chosen), way=way, frames=_frames, name=_names)
    def put_with_key(self, way: int, frames: list[bytes], name: str) -> str:
        """Puts under a chosen key, which may be taken."""
        return self.put_under(f"{self.number} {name}", way, frames)

    @rule(evicting=way, putting=way, key=chosen, frames=_frames)
    def replace(self, evicting: int, putting: int, key: str, frames: list[bytes]) -> None:
        """Evicts a chosen key, alone or as one of many, and puts under it anew."""
        if evicting % 2:
            self.evict(evicting, key)
        else:
            self.evict_batch(evicting, [key])
        self.put_under(key, putting, frames)

    def put_under(self, key: str, way: int, frames: list[bytes]) -> str:
        """Puts under a key, which may be taken."""
        try:
            assert self.do(way, "put", self.to_put(frames), key=key) == key
        except KeyExistsError:
            assert key in self.model
            return key
        return self.remember(key, frames)

    @rule(target=keys, way=way, batch=st.lists(_frames, max_size=3))
    def put_batch(self, way: int, batch: list[list[bytes]]) -> Any:
        """Puts many."""
        keys = self.do(way, "put_batch", [self.to_put(frames) for frames in batch])
        assert len(keys) == len(batch)
        for key, frames in zip(keys, batch, strict=True):
            self.remember(key, frames)
        return multiple(*keys)

    @rule(way=way, key=keys)
    def get(self, way: int, key: str) -> None:
        """Gets one."""
        assert self.got(self.do(way, "get", key)) == self.model.get(key)

    @rule(way=way, some=st.lists(keys, max_size=5))
    def get_batch(self, way: int, some: list[str]) -> None:
        """Gets many, some of them absent, some twice."""
        found = self.do(way, "get_batch", ["absent", *some])
        assert [self.got(one) for one in found] == [None, *map(self.model.get, some)]

    @rule(way=way, key=keys)
    def exists(self, way: int, key: str) -> None:
        """Looks for one."""
        assert self.do(way, "exists", key) is (key in self.model)

    @rule(way=way, key=keys)
    def evict(self, way: int, key: str) -> None:
        """Evicts one, which may be gone already."""
        assert self.do(way, "evict", key) is (self.model.pop(key, None) is not None)

    @rule(way=way, some=st.lists(keys, min_size=1, max_size=4))
    def evict_batch(self, way: int, some: list[str]) -> None:
        """Evicts many, some of which may be gone already."""
        some = list(dict.fromkeys(some))
        there = [self.model.pop(key, None) is not None for key in some]
        assert self.do(way, "evict_batch", some) == there

    def teardown(self) -> None:
        """Compares all that was ever put, and leaves the medium as it was."""
        try:
            keys = sorted(self.seen)
            for way in range(len(self.ways)):
                found = [self.got(one) for one in self.do(way, "get_batch", keys)]
                assert dict(zip(keys, found, strict=True)) == {
                    key: self.model.get(key) for key in keys
                }
        finally:
            self.do(0, "evict_batch", sorted(self.seen))
            self.runner.close()


class ConnectorMachine(_Machine):
    """A connector, others on the same medium, and the shortcut of each that has one.

    Args:
        connector: The connector.
        others: More connectors on the same medium.
    """

    later: Bundle[str] = Bundle("later")

    def __init__(self, connector: Connector, *others: Connector) -> None:
        self._connectors = [connector, *others]
        super().__init__()

    def open(self) -> Sequence[Do]:
        """Coroutines of each connector, and plain calls where it has them."""
        ways: list[Do] = []
        for connector in self._connectors:
            ways.append(self._awaiting(connector))
            if isinstance(connector, SupportsSync):
                ways.append(self._calling(connector))
        return ways

    def _awaiting(self, connector: Connector) -> Do:
        def do(operation: str, *args: Any, **kwargs: Any) -> Any:
            return self.runner.run(getattr(connector, operation)(*args, **kwargs))

        return do

    def _calling(self, connector: Connector) -> Do:
        def do(operation: str, *args: Any, **kwargs: Any) -> Any:
            plain = getattr(connector, f"{operation}_sync", None)
            if plain is not None:
                return plain(*args, **kwargs)
            return self.runner.run(getattr(connector, operation)(*args, **kwargs))

        return do

    def to_put(self, frames: list[bytes]) -> Any:
        """The frames."""
        return frames

    def got(self, found: Any) -> Any:
        """Its bytes."""
        return content(found)

    @precondition(lambda self: isinstance(self._connectors[0], DeferrableConnector))
    @rule(target=later, way=_Machine.way)
    def new_key(self, way: int) -> str:
        """Registers a key whose object comes later, or never."""
        key: str = self.do(way, "new_key")
        assert key not in self.seen
        assert self.do(way, "exists", key) is False
        return key

    @rule(target=_Machine.keys, way=_Machine.way, key=consumes(later), frames=_frames)
    def set(self, way: int, key: str, frames: list[bytes]) -> str:
        """Stores the object of a registered key."""
        self.do(way, "set", key, frames)
        self.do(way + 1, "wait", key, 30)
        return self.remember(key, frames)

    @precondition(lambda self: self._connectors[0].takes_ttl)
    @rule(target=_Machine.keys, way=_Machine.way, frames=_frames)
    def put_with_lease(self, way: int, frames: list[bytes]) -> str:
        """Puts for longer than the example takes."""
        return self.remember(self.do(way, "put", frames, ttl=LONG), frames)

    @precondition(lambda self: self._connectors[0].takes_ttl)
    @rule(way=_Machine.way, some=st.lists(_Machine.keys, max_size=4), ttl=st.sampled_from(LEASES))
    def extend(self, way: int, some: list[str], ttl: float | None) -> None:
        """Gives some a lease, or another, or none; some of them may be gone."""
        assert self.do(way, "extend", ["absent", *some], ttl) == [
            key in self.model for key in ["absent", *some]
        ]

    @rule(first=_Machine.keys, second=_Machine.keys, frames=_frames, way=_Machine.way)
    def at_once(self, first: str, second: str, frames: list[bytes], way: int) -> None:
        """Puts, gets, looks and evicts in tasks of one loop, on keys that do not meet."""
        one, two = self._connectors[0], self._connectors[-1]

        async def run() -> Any:
            return await asyncio.gather(
                one.get(first), two.exists(first), two.get(second), one.put(frames), two.evict("")
            )

        found, there, other, key, nothing = self.runner.run(run())
        assert content(found) == self.model.get(first)
        assert there is (first in self.model)
        assert content(other) == self.model.get(second)
        assert nothing is False
        self.remember(key, frames)


class StoreMachine(_Machine):
    """A store, awaited and through its blocking facade, and its proxies.

    A second store without a cache puts and gets beside it.

    Args:
        connector: The connector of both.
        cache_size: How many objects the first store keeps.
    """

    def __init__(self, connector: Connector, *, cache_size: int = 0) -> None:
        name = f"machine {next(_numbers)}"
        self._store = Store(name, connector, cache_size=cache_size)
        self._uncached = Store(f"{name}, no cache", connector, cache_size=0)
        super().__init__()

    def open(self) -> Sequence[Do]:
        """Coroutines of both stores, and the blocking facade of the first."""

        def awaiting(operation: str, *args: Any, **kwargs: Any) -> Any:
            return self.runner.run(getattr(self._store, operation)(*args, **kwargs))

        def blocking(operation: str, *args: Any, **kwargs: Any) -> Any:
            return getattr(sync.Store.of(self._store), operation)(*args, **kwargs)

        def uncached(operation: str, *args: Any, **kwargs: Any) -> Any:
            # What one store evicts, or replaces, another may have in its cache, and may return.
            changes = operation.startswith("evict") or "key" in kwargs
            store = self._store if changes else self._uncached
            return self.runner.run(getattr(store, operation)(*args, **kwargs))

        return awaiting, blocking, uncached

    def put_under(self, key: str, way: int, frames: list[bytes]) -> str:
        """Puts under a key, which may be taken, and then is replaced where that is possible."""
        replaces = isinstance(self._store.connector, SupportsNames) and way % 2 == 0
        options = {} if way % 2 == 0 else {"overwrite": False}
        try:
            assert self.do(way, "put", self.to_put(frames), key=key, **options) == key
        except KeyExistsError:
            assert key in self.model and not replaces
            return key
        assert replaces or key not in self.model
        self.model[key] = joined(frames)
        self.seen.add(key)
        return key

    @rule(key=_Machine.keys, way=_Machine.way)
    def get_strictly(self, key: str, way: int) -> None:
        """Gets the latest object of a key, whatever the cache has."""
        if isinstance(self._store.connector, SupportsNames):
            assert self.got(self.do(way, "get", key, strict=True)) == self.model.get(key)
            (found,) = self.do(way, "get_batch", [key], strict=True)
            assert self.got(found) == self.model.get(key)

    def to_put(self, frames: list[bytes]) -> Any:
        """An object with the frames inside, some as they are and some in a list."""
        return frames[0] if len(frames) == 1 else {"frames": frames}

    def got(self, found: Any) -> bytes | None:
        """The frames of such an object, joined."""
        return joined(found["frames"]) if isinstance(found, dict) else found

    @rule(target=_Machine.keys, frames=_frames, way=_Machine.way, awaits=st.booleans())
    def proxy(self, frames: list[bytes], way: int, awaits: bool) -> str:
        """Makes a proxy, which has a key like every object, and resolves it."""
        made = self.do(way, "proxy", self.to_put(frames), populate_target=False)
        found = self.runner.run(aresolve(made)) if awaits else extract(made)
        assert self.got(found) == joined(frames)
        return self.remember(get_key(made), frames)

    @rule(key=_Machine.keys, awaits=st.booleans())
    def proxy_from_key(self, key: str, awaits: bool) -> None:
        """Resolves a proxy that was made from a key, which may hold nothing."""
        made = self._store.proxy_from_key(key)
        try:
            found = self.runner.run(aresolve(made)) if awaits else extract(made)
        except ProxyResolveMissingKeyError:
            assert key not in self.model
        else:
            assert self.got(found) == self.model[key]


def run_machine(
    make: Callable[[], RuleBasedStateMachine], *, max_examples: int = 30, steps: int = 50
) -> None:
    """Runs a state machine as a test.

    Args:
        make: Makes it, once for each example.
        max_examples: How many sequences to try.
        steps: How long each may be.
    """
    run_state_machine_as_test(
        cast(Any, make),  # any callable will do; only its annotation asks for a class
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=steps,
            deadline=None,
            # One flaw shows in many ways, and each takes seconds to make short.
            report_multiple_bugs=False,
        ),
    )
