"""Several connectors behind one; policies choose among them for each object."""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from proxyplane._policies import MULTI, Described, Policy, read_multi_url, read_table, table
from proxyplane.abc import (
    Buffer,
    Connector,
    DeferrableConnector,
    Frames,
    FreshKey,
    SupportsSweep,
    Swept,
)
from proxyplane.connectors._inline import total, views
from proxyplane.connectors._keys import KeyMaker
from proxyplane.connectors._multi_keys import join
from proxyplane.connectors._tasks import all_or_raise
from proxyplane.connectors.multi.batch import evict_all, put_all
from proxyplane.connectors.multi.names import Names, swapping, taken
from proxyplane.connectors.multi.parts import Found, Part, Parts, by_part, options
from proxyplane.exceptions import ConfigError, KeyExistsError, ObjectLostError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["MultiConnector"]


class MultiConnector(DeferrableConnector):
    """Several connectors behind one, chosen for each object by their policies.

    The key tells which connector has the object, so everything but a put goes straight there. Any
    process that gets a proxy makes this connector from its URL, which describes all of them.

    A connector that is given by its URL is *dormant*: it is made when an object needs it, and never
    on a host that its policy keeps out. So are all of them in a process that got a proxy.

    Under a key of your choice stands a small record, which names the object or is the object if
    that is small. All records are in one connector: the first, by priority, that takes small
    objects without tags from every host, and is no `LocalConnector`.

    A future goes to the first connector that can defer and takes objects of any size, since the
    size of its result is not known; else to the one that takes the largest.

    Args:
        connectors: By name: a connector or the URL of one, or a tuple of that and its `Policy`.
            Names are 1 to 32 letters, digits, ``_``, ``.`` and ``-``. Closing this connector
            closes them.

    Raises:
        ConfigError: There is none, or a name, URL or policy cannot be.
    """

    scheme: ClassVar[str] = MULTI
    takes_tags: ClassVar[bool] = True
    takes_ttl: ClassVar[bool] = True

    def __init__(
        self, connectors: Mapping[str, Connector | str | tuple[Connector | str, Policy]]
    ) -> None:
        if not isinstance(connectors, Mapping):
            raise ConfigError(
                f"a MultiConnector takes connectors by name, not {type(connectors).__name__}",
                hint="for example MultiConnector({'files': FileConnector(), 'redis': 'redis://h'})",
            )
        described: dict[str, Described] = {}
        given: dict[str, Connector] = {}
        for name, value in connectors.items():
            pair = value if isinstance(value, tuple) and len(value) == 2 else (value, Policy())
            one, policy = pair
            if not isinstance(policy, Policy) or not isinstance(one, str | Connector):
                # Not repeated: it may hold a password.
                raise ConfigError(
                    f"{name!r} of a MultiConnector is neither a connector nor a URL, nor a tuple "
                    "of one of these and a Policy"
                )
            if isinstance(one, Connector):
                given[name] = one
            described[name] = Described(one if isinstance(one, str) else one.url, policy)
        self._setup(Parts(described, given))

    def _setup(self, parts: Parts) -> None:
        self._parts = parts
        self._keys = KeyMaker()  # for connectors that are dormant
        self._names = Names(parts)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Makes the connector that `url` describes; all connectors in it are dormant at first.

        Args:
            url: ``multi:NAME=URL;OPTION=VALUE&NAME=URL``; the options are those of `Policy`.

        Raises:
            ConfigError: It describes none; the message names the part.
        """
        connector = cls.__new__(cls)
        connector._setup(Parts(read_multi_url(url), {}))
        return connector

    @classmethod
    def from_table(cls, table: Mapping[str, Mapping[str, Any]]) -> Self:
        """Makes the connector that a table of a TOML file describes.

        Args:
            table: By name, tables with a ``url`` and the options of `Policy`.

        Raises:
            ConfigError: It describes none; the message names the connector and the field.
        """
        connector = cls.__new__(cls)
        connector._setup(Parts(read_table(table), {}))
        return connector

    @property
    def url(self) -> str:
        """``multi:`` and all connectors, with their URLs and policies."""
        return self._parts.url

    def table(self) -> dict[str, dict[str, Any]]:
        """The inverse of `from_table`."""
        return table(self._parts.described)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    # -- objects --------------------------------------------------------------------------------

    def make_key(self, size: int, tags: Collection[str] = ()) -> FreshKey:
        """A key for one object that is put next, in the connector that takes it.

        Args:
            size: Bytes of the object.
            tags: Tags of the object.

        Raises:
            NoConnectorError: No connector takes it; the message says why for each.
        """
        part = self._parts.choose(size, tags)
        connector = self._parts.opened(part)
        made = self._keys.new() if connector is None else connector.make_key(size, tags)
        return FreshKey(join(part.mark, made))

    async def put(
        self,
        frames: Frames,
        *,
        key: str | None = None,
        tags: Collection[str] = (),
        ttl: float | None = None,
    ) -> str:
        """Stores one object in the first connector that takes it, and returns its key.

        Args:
            frames: The bytes of the object.
            key: A key of your choice; by default a new unique one.
            tags: Tags of the object.
            ttl: Seconds until it is gone; by default it stays.

        Raises:
            NotImplementedError: There is a `ttl`, and the connector keeps no leases.
            NoConnectorError: No connector takes it; the message says why for each.
            KeyExistsError: `key` is taken.
            ConnectorError: What the connector raises.
        """
        self._parts.check_open()
        bodies = views(frames)
        if key is None:
            part = self._parts.choose(total(bodies), tags)
            connector = await self._parts.open(part)
            return join(part.mark, await connector.put(bodies, **options(connector, tags, ttl)))
        found = self._parts.find(key)
        if found is None:
            await self._names.put(bodies, key, tags, ttl)
            return key
        # One that was made here, now or before: it says where.
        connector = await self._parts.open(found[0])
        fresh = type(key) is FreshKey
        more = options(connector, tags if fresh else (), ttl)
        try:
            await connector.put(bodies, key=FreshKey(found[1]) if fresh else found[1], **more)
        except KeyExistsError as error:
            raise taken(key) from error
        return str(key)

    async def swap(
        self, key: str, frames: Frames | None, *, ttl: float | None = None
    ) -> Buffer | None:
        """Replaces what a key holds, in the connector that has it; see `SupportsNames.swap`.

        A key of your choice is always in the one that has all of those, whatever the policies say.

        Raises:
            NotImplementedError: That connector cannot.
            ConnectorError: What the connector raises.
        """
        self._parts.check_open()
        bodies = None if frames is None else views(frames)
        found = self._parts.find(key)
        if found is None:
            return await self._names.swap(bodies, key, ttl)
        connector = await self._parts.open(found[0])
        return await swapping(connector, found[0])(found[1], bodies, **options(connector, ttl=ttl))

    async def get(self, key: str, *, size: int | None = None) -> Buffer | None:
        """Reads one object; None when the key holds nothing.

        Args:
            key: The key that `put` returned.
            size: As for `Connector.get`.

        Raises:
            NoConnectorError: The key is of a connector that is none of these.
            ConnectorUnavailableError: It is of one that this host may not use.
            ConnectorError: What the connector raises.
        """
        found = await self._look_for(key)
        if not isinstance(found, tuple):
            return found
        connector = await self._parts.open(found[0])
        return await connector.get(found[1], size=size)

    async def exists(self, key: str) -> bool:
        """Whether the key holds an object now; raises what `get` raises."""
        found = await self._look_for(key)
        if not isinstance(found, tuple):
            return found is not None
        connector = await self._parts.open(found[0])
        return await connector.exists(found[1])

    async def evict(self, key: str) -> bool:
        """Removes an object and returns whether it was there; raises what `get` raises."""
        self._parts.check_open()
        found = self._parts.find(key)
        if found is None:
            (there,) = await self._names.evict([key])
            return there
        connector = await self._parts.open(found[0])
        return await connector.evict(found[1])

    async def _look_for(self, key: str) -> Found | Buffer | None:
        self._parts.check_open()
        found = self._parts.find(key)
        return (await self._look([key]))[0] if found is None else found

    async def _look(self, keys: Sequence[str]) -> list[Found | Buffer | None]:
        """Where objects are; an object itself, if it stands under the key that was chosen."""
        self._parts.check_open()
        found, chosen = self._parts.find_all(keys)
        all_found: list[Found | Buffer | None] = [found.get(place) for place in range(len(keys))]
        if chosen:
            records = await self._names.look([keys[place] for place in chosen])
            for place, record in zip(chosen, records, strict=True):
                if record is not None:
                    here = record.body
                    all_found[place] = self._parts.require(record.key) if here is None else here
        return all_found

    # -- many objects ---------------------------------------------------------------------------

    async def put_batch(
        self, batch: Sequence[Frames], *, tags: Collection[str] = (), ttl: float | None = None
    ) -> list[str]:
        """Stores many objects, all or none, in all connectors at once; returns the keys in order.

        Args:
            batch: The bytes of each object.
            tags: Tags of all of them.
            ttl: As for `put`.

        Raises:
            NoConnectorError: No connector takes one of them; nothing was stored.
            PartialBatchError: A connector failed, and not all that others had stored could be
                taken back.
            ConnectorError: What a connector raises; nothing was stored.
        """
        self._parts.check_open()
        objects = [views(frames) for frames in batch]
        places: dict[Part, list[int]] = {}
        for place, bodies in enumerate(objects):
            places.setdefault(self._parts.choose(total(bodies), tags), []).append(place)
        if not places:
            return []
        groups = {
            part: (await self._parts.open(part), [objects[place] for place in some])
            for part, some in places.items()
        }
        keys: dict[int, str] = {}
        for part, inner in (await put_all(groups, tags, ttl)).items():
            keys.update(zip(places[part], (join(part.mark, one) for one in inner), strict=True))
        return [keys[place] for place in range(len(objects))]

    async def get_batch(
        self, keys: Sequence[str], *, sizes: Sequence[int | None] | None = None
    ) -> list[Buffer | None]:
        """Reads many objects, in the order of the keys, from all connectors at once.

        Raises:
            As `get`.
        """
        hints = [None] * len(keys) if sizes is None else list(sizes)
        found = await self._look(keys)
        bodies = [None if isinstance(one, tuple) else one for one in found]

        async def read(connector: Connector, some: Mapping[int, str]) -> None:
            got = await connector.get_batch(
                list(some.values()), sizes=[hints[place] for place in some]
            )
            for place, body in zip(some, got, strict=True):
                bodies[place] = body

        groups = by_part({i: one for i, one in enumerate(found) if isinstance(one, tuple)})
        opened = [(await self._parts.open(part), some) for part, some in groups.items()]
        await all_or_raise([read(connector, some) for connector, some in opened])
        return bodies

    async def evict_batch(self, keys: Sequence[str]) -> list[bool]:
        """Evicts many objects, in all connectors at once; tells for each key if it was there.

        Raises:
            PartialBatchError: Some connectors failed, and others did not; it tells what is known.
            ConnectorError: All failed; or one is not to be used here, and nothing was evicted.
        """
        self._parts.check_open()
        found, chosen = self._parts.find_all(keys)
        groups = by_part(found)
        opened = {part: await self._parts.open(part) for part in groups}
        calls: dict[str, tuple[Coroutine[Any, Any, list[bool]], Mapping[int, str]]] = {}
        if chosen:
            names = {place: keys[place] for place in chosen}
            calls["chosen keys"] = self._names.evict(list(names.values())), names
        for part, some in groups.items():
            evicting = opened[part].evict_batch(list(some.values()))
            calls[part.name] = evicting, {place: keys[place] for place in some}
        there = await evict_all(calls)
        return [there[place] for place in range(len(keys))]

    async def extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        """Gives objects a new lease, in all connectors at once; see `Connector.extend`.

        Raises:
            NotImplementedError: A connector keeps no leases.
            ConnectorError: What a connector raises; the leases of others may have changed.
        """
        self._parts.check_open()
        found, chosen = self._parts.find_all(keys)
        held = [False] * len(keys)

        async def extend(extending: Coroutine[Any, Any, list[bool]], places: list[int]) -> None:
            for place, there in zip(places, await extending, strict=True):
                held[place] = there

        calls = [
            ((await self._parts.open(part)).extend(list(some.values()), ttl), list(some))
            for part, some in by_part(found).items()
        ]
        if chosen:
            calls.append((self._names.extend([keys[place] for place in chosen], ttl), chosen))
        await all_or_raise([extend(*call) for call in calls])
        return held

    async def sweep(self) -> Swept:
        """Sweeps those of the connectors that need it; see `SupportsSweep`."""
        swept = [
            await one.sweep()
            for one in await self._parts.open_all()
            if isinstance(one, SupportsSweep)
        ]
        return Swept(
            objects=sum(one.objects for one in swept),
            size=sum(one.size for one in swept),
            registrations=sum(one.registrations for one in swept),
            temporaries=sum(one.temporaries for one in swept),
        )

    # -- objects that come later ----------------------------------------------------------------

    async def new_key(self, *, tags: Collection[str] = (), ttl: float | None = None) -> str:
        """Registers a key whose object will come later, and returns it.

        Args:
            tags: Tags of the object.
            ttl: Seconds that the registration has, and its object after it; by default it stays.

        Raises:
            NotImplementedError: None of the connectors can defer, or the one keeps no leases.
            NoConnectorError: None of those that can takes it; the message says why for each.
            ConnectorError: What the connector raises.
        """
        self._parts.check_open()
        part = await self._parts.choose_deferrable(tags)
        connector = await self._parts.open(part)
        assert isinstance(connector, DeferrableConnector)
        return join(part.mark, await connector.new_key(**options(connector, tags, ttl)))

    async def set(self, key: str, frames: Frames) -> None:
        """Stores the object of a key made by `new_key`, in the connector that was chosen then.

        Raises:
            KeyExistsError: It was set before.
            ObjectLostError: The connector no longer knows the key.
            ConnectorError: What the connector raises.
        """
        bodies = views(frames)
        registered = await self._registered(key)
        if registered is None:
            raise taken(key)
        connector, inner = registered
        await connector.set(inner, bodies)

    async def wait(self, key: str, timeout: float | None = None) -> None:
        """Returns when `key` holds an object; see `DeferrableConnector.wait`.

        Raises:
            TimeoutError: The object did not come in time.
            ObjectLostError: The connector no longer knows the key.
            ConnectorError: What the connector raises.
        """
        registered = await self._registered(key)
        if registered is not None:
            connector, inner = registered
            await connector.wait(inner, timeout)

    async def _registered(self, key: str) -> tuple[DeferrableConnector, str] | None:
        """Where the object of a registered key is to come; None for another key that is taken."""
        self._parts.check_open()
        found = self._parts.find(key)
        if found is not None:
            connector = await self._parts.open(found[0])
            if isinstance(connector, DeferrableConnector):
                return connector, found[1]
        if await self.exists(key):
            return None
        raise ObjectLostError(
            f"the key {key!r} holds no object and is not registered to get one",
            hint="only keys that new_key() made can be set, or waited for",
        )

    # -- life -----------------------------------------------------------------------------------

    async def aclose(self, *, clear: bool = False) -> None:
        """Closes the connectors that are open; dormant ones stay so.

        Args:
            clear: Also evict what was put through this instance, and nothing else.

        Raises:
            ConnectorError: One could not be cleared; the others are closed all the same.
        """
        await self._parts.aclose(clear)
