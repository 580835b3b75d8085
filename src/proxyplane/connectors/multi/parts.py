"""The connectors of a multi-connector: made on first need, found by keys, chosen by policies."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxyplane._policies import Described, Policy, multi_url
from proxyplane._registry import connector_class, connector_from_url
from proxyplane._runtime.workers import run_in_worker
from proxyplane.abc import Connector, DeferrableConnector
from proxyplane.connectors._multi_keys import mark_of, split
from proxyplane.exceptions import (
    ConfigError,
    ConnectorClosedError,
    ConnectorUnavailableError,
    NoConnectorError,
)

CANNOT_DEFER = "it cannot defer"
NO_TAGS: frozenset[str] = frozenset()
RECORD_BYTES = 64
"""About what stands under a chosen key whose object is elsewhere."""


@dataclass(eq=False, slots=True)
class Part:
    """One of the connectors.

    Attributes:
        name: Its name.
        url: Its URL.
        policy: What goes there.
        mark: What names it in keys.
        refused: Why this host may not use it; None if it may.
    """

    name: str
    url: str
    policy: Policy
    mark: str
    refused: str | None


Found = tuple[Part, str]
"""Where an object is: connector, and its key there."""


class Parts:
    """All of them.

    Args:
        described: By name, in the order in which equal priorities are tried.
        given: Those that are connectors already.

    Attributes:
        url: Describes all of them.
        home: The one that has what stands under chosen keys.
    """

    def __init__(self, described: Mapping[str, Described], given: dict[str, Connector]) -> None:
        self.url = multi_url(described)
        self.described = dict(described)
        self._made = given
        self._closed = False
        host = socket.gethostname()
        parts = [
            Part(name, url, policy, mark_of(name), policy.refuses_host(host))
            for name, (url, policy) in described.items()
        ]
        self._by_mark = {part.mark: part for part in parts}
        if len(self._by_mark) < len(parts):
            raise ConfigError(
                f"keys could not tell apart the connectors named {', '.join(described)}",
                hint="rename one of them",
            )
        self._ranked = sorted(parts, key=lambda part: -part.policy.priority)
        everywhere = [
            part for part in self._ranked if not part.policy.host_pattern and not _is_local(part)
        ]
        small = [part for part in everywhere if part.policy.refuses(RECORD_BYTES, NO_TAGS) is None]
        self.home = (small or everywhere or self._ranked)[0]
        for part in parts:
            # Its objects live for as long as connectors refer to them, so it cannot be dormant.
            if _is_local(part) and part.name not in given and part.refused is None:
                given[part.name] = connector_from_url(part.url)

    # -- life -----------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises ConnectorClosedError if the multi-connector was closed."""
        if self._closed:
            raise ConnectorClosedError(
                f"the MultiConnector of {', '.join(self.described)} was closed",
                hint="make a new one, or close it later",
            )

    async def open(self, part: Part) -> Connector:
        """The connector, made now if it was dormant.

        Raises:
            ConnectorUnavailableError: This host may not use it.
            ConnectorClosedError: The multi-connector was closed.
            ConfigError: Its URL describes none.
        """
        self.check_open()
        if part.refused is not None:
            raise ConnectorUnavailableError(
                f"the connector {part.name!r} cannot be used here: {part.refused}",
                hint="use the object on such a host, or change the host_pattern",
            )
        connector = self._made.get(part.name)
        if connector is None:
            # Its module, and its driver with it, may have to be imported first.
            made = await run_in_worker(connector_from_url, part.url)
            # One step decides between loops that come here at once, and between them and a close.
            connector = self._made.setdefault(part.name, made)
            if connector is not made or self._closed:
                await made.aclose()
            self.check_open()
        return connector

    def opened(self, part: Part) -> Connector | None:
        """The connector, if it is made already."""
        return self._made.get(part.name)

    async def open_all(self) -> list[Connector]:
        """All connectors that this host may use."""
        return [await self.open(part) for part in self._ranked if part.refused is None]

    async def aclose(self, clear: bool) -> None:
        """Closes those that are open; the others cannot be opened any more."""
        self._closed = True
        closing = [one.aclose(clear=clear) for one in list(self._made.values())]
        for ended in await asyncio.gather(*closing, return_exceptions=True):
            if ended is not None:
                raise ended

    # -- where an object goes -------------------------------------------------------------------

    def choose(self, size: int, tags: Collection[str]) -> Part:
        """The connector for an object that is put.

        Raises:
            NoConnectorError: None takes it; the message says why for each.
        """
        refused = {}
        tagged = _tag_set(tags)
        for part in self._ranked:
            why = part.refused or part.policy.refuses(size, tagged)
            if why is None:
                return part
            refused[part.name] = why
        raise _nobody(f"an object of {size} bytes", tagged, refused)

    async def choose_deferrable(self, tags: Collection[str]) -> Part:
        """The connector for an object that comes later and may have any size.

        Raises:
            NotImplementedError: None can defer.
            NoConnectorError: None of those that can takes it.
        """
        can: list[Part] = []
        refused = {}
        tagged = _tag_set(tags)
        for part in self._ranked:
            why = part.refused or part.policy.refuses_tags(tagged)
            if why is None and not await self._can_defer(part):
                why = CANNOT_DEFER
            if why is None:
                can.append(part)
            else:
                refused[part.name] = why
        if can:
            return max(can, key=lambda part: _limit(part.policy))  # the first of equals
        if all(why == CANNOT_DEFER for why in refused.values()):
            raise NotImplementedError(
                f"none of the connectors of this MultiConnector ({', '.join(refused)}) can defer, "
                "so its stores have no futures; connectors that can: FileConnector, "
                "LocalConnector, RedisConnector"
            )
        raise _nobody("a future", tagged, refused)

    async def _can_defer(self, part: Part) -> bool:
        made = self._made.get(part.name)
        if made is not None:
            return isinstance(made, DeferrableConnector)
        cls = await run_in_worker(connector_class, part.url.partition(":")[0])
        return issubclass(cls, DeferrableConnector)

    # -- where an object is ---------------------------------------------------------------------

    def find(self, key: str) -> Found | None:
        """Where the object of a key that a connector of these made is; None for another key."""
        made = split(key)
        part = None if made is None else self._by_mark.get(made[0])
        return None if made is None or part is None else (part, made[1])

    def require(self, key: str) -> Found:
        """As `find`, of a key that a connector made.

        Raises:
            NoConnectorError: It is none of these.
        """
        found = self.find(key)
        if found is None:
            raise NoConnectorError(
                f"the key {key!r} is of a connector that is not among those of this "
                f"MultiConnector: {', '.join(self.described)}",
                hint="describe all connectors under their names, also those no longer written to",
            )
        return found

    def find_all(self, keys: Sequence[str]) -> tuple[dict[int, Found], list[int]]:
        """What `find` finds, by place, and the places of the other keys."""
        found: dict[int, Found] = {}
        others = []
        for place, key in enumerate(keys):
            one = self.find(key)
            if one is None:
                others.append(place)
            else:
                found[place] = one
        return found, others


def _is_local(part: Part) -> bool:
    return part.url.lower().startswith("local:")


def by_part(found: Mapping[int, Found]) -> dict[Part, dict[int, str]]:
    """The inner keys in each connector, by place."""
    groups: dict[Part, dict[int, str]] = {}
    for place, (part, inner) in found.items():
        groups.setdefault(part, {})[place] = inner
    return groups


def options(
    connector: Connector, tags: Collection[str] = (), ttl: float | None = None
) -> dict[str, Any]:
    """Tags, for a connector that takes them itself, and the lease, as arguments.

    Raises:
        NotImplementedError: There is a lease, and the connector keeps none.
    """
    found: dict[str, Any] = {"tags": tags} if tags and connector.takes_tags else {}
    if ttl is not None:
        if not connector.takes_ttl:
            raise NotImplementedError(f"{type(connector).__name__} keeps no leases")
        found["ttl"] = ttl
    return found


def _tag_set(tags: Collection[str]) -> frozenset[str]:
    if isinstance(tags, str):
        raise TypeError(f"tags are a collection of strings, not one string: {tags!r}")
    return frozenset(tags)


def _limit(policy: Policy) -> float:
    return float("inf") if policy.max_bytes is None else policy.max_bytes


def _nobody(what: str, tags: frozenset[str], refused: Mapping[str, str]) -> NoConnectorError:
    tagged = f" tagged {', '.join(map(repr, sorted(tags)))}" if tags else ""
    reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
    return NoConnectorError(
        f"no connector takes {what}{tagged}: {reasons}",
        hint="add a connector for the rest, whose policy has no limits",
    )
