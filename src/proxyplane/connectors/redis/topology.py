"""Which node of a cluster serves which key, as far as this event loop knows.

What is known may be out of date at any moment: a node that is asked for what it does not serve says
who does, and that is noted. All of it is asked for anew when a node cannot be reached, since then
another one may have taken its place.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, Final

from redis import exceptions as redis_errors
from redis.crc import key_slot

from proxyplane.connectors.redis.client import Client
from proxyplane.connectors.redis.errors import copied
from proxyplane.connectors.redis.resp import command
from proxyplane.connectors.redis.url import RedisOptions
from proxyplane.exceptions import (
    ConnectorClosedError,
    ConnectorError,
    ConnectorUnavailableError,
)

Address = tuple[str, int]

_SLOTS: Final = 16384
_ASK: Final = command("CLUSTER", "SLOTS")


class Topology:
    """The nodes of a cluster.

    Args:
        options: How to reach the cluster.
        make: Makes the client of a node.

    Attributes:
        clients: The client of each node that was asked for something. One of a node that is no
            more costs little; to drop it might leave a connection that is being made to nobody.
        closed: Whether no further ones are made.
    """

    def __init__(self, options: RedisOptions, make: Callable[[RedisOptions], Client]) -> None:
        self.clients: dict[Address, Client] = {}
        self.closed = False
        self._options = options
        self._make = make
        self._owners: list[Address | None] = [None] * _SLOTS
        self._version = 0
        self._learning = asyncio.Lock()
        self._failed: ConnectorError | None = None  # why nothing could be learnt, the last time

    def client(self, address: Address) -> Client:
        """The client of a node.

        Raises:
            ConnectorClosedError: It would be a new one, and all were closed.
        """
        found = self.clients.get(address)
        if found is None:
            if self.closed:
                raise ConnectorClosedError(f"the connector of {self._options.where} was closed")
            found = self.clients[address] = self._make(self._options.node(*address))
        return found

    async def owner(self, name: bytes) -> Address:
        """The node that serves a key.

        Raises:
            ConnectorUnavailableError: Nobody does, or no node can be reached.
        """
        slot: int = key_slot(name)
        owner = self._owners[slot]
        if owner is None:
            await self.learn()
            owner = self._owners[slot]
        if owner is None:
            raise ConnectorUnavailableError(
                f"no node of the Redis cluster at {self._options.where} serves slot {slot}",
                hint="look at CLUSTER SLOTS; a node may be down for good",
            ) from redis_errors.ClusterDownError(f"slot {slot} is not served")
        return owner

    async def owners(self) -> list[Address]:
        """The nodes that serve anything."""
        if not self._version:
            await self.learn()
        return list(dict.fromkeys(owner for owner in self._owners if owner is not None))

    def moved(self, slot: int, owner: Address) -> None:
        """Notes who serves the keys of a slot."""
        self._owners[slot] = owner

    async def learn(self, without: Address | None = None) -> None:
        """Asks for all nodes, once for all who want to know it at the same time.

        Args:
            without: A node that did not answer, and is asked after all others.

        Raises:
            ConnectorUnavailableError: None answers.
        """
        version, before = self._version, self._failed
        async with self._learning:
            if self._version != version:
                return
            if self._failed is not None and self._failed is not before:
                raise copied(self._failed)
            failed: list[ConnectorError] = []
            for address in self._candidates(without):
                try:
                    reply = await self._ask(address)
                except ConnectorClosedError:
                    raise
                except ConnectorError as error:
                    failed.append(error)
                    continue
                self._take(reply, address)
                return
            reason = _unreachable(failed)
            self._failed = copied(reason)
            raise reason

    def _candidates(self, without: Address | None) -> list[Address]:
        # Those in use first; of each kind in any order, so that not all loops ask the same one.
        used, seeds = list({*self._owners} - {None}), list(self._options.seeds)
        random.shuffle(used)
        random.shuffle(seeds)
        all_ = dict.fromkeys([*used, *seeds])
        return sorted((one for one in all_ if one), key=lambda one: one == without)

    async def _ask(self, address: Address) -> list[Any]:
        options = self._options.node(*address)
        try:
            async with asyncio.timeout(options.connect_timeout):
                reply: list[Any] = await self.client(address).pool.request(_ASK)
        except TimeoutError:
            raise ConnectorUnavailableError(
                f"Redis at {options.where} did not tell the nodes of its cluster in "
                f"{options.connect_timeout:g} s",
                hint="is it stuck, or busy with a long command?",
            ) from redis_errors.TimeoutError()
        except ConnectorError as error:
            if "cluster support disabled" in str(error.__cause__):
                raise ConnectorUnavailableError(
                    f"Redis at {options.where} is not in cluster mode",
                    hint=f"write {self._options.scheme.partition('+')[0]}://{options.where}",
                ) from error.__cause__
            raise
        if not reply:
            raise ConnectorUnavailableError(
                f"Redis at {options.where} knows of no node of its cluster that serves anything",
                hint="make the cluster first: redis-cli --cluster create",
            ) from redis_errors.ClusterDownError("no slots")
        return reply

    def _take(self, reply: Iterable[Any], asked: Address) -> None:
        owners: list[Address | None] = [None] * _SLOTS
        for first, last, (host, port, *_), *_ in reply:
            # One that does not know by which name it is reached says nothing, or "?".
            owner = (_known_host(host) or asked[0], port)
            owners[first : last + 1] = [owner] * (last + 1 - first)
        self._owners = owners
        self._version += 1


def _unreachable(failed: list[ConnectorError]) -> ConnectorUnavailableError:
    text = failed[0].args[0]
    if len(failed) > 1:
        each = "; ".join(error.args[0] for error in failed)
        text = f"no node of the Redis cluster answers: {each}"
    error = ConnectorUnavailableError(text, hint=failed[0].hint)
    error.__cause__ = failed[-1].__cause__
    return error


def _known_host(host: bytes | None) -> str:
    text = (host or b"").decode()
    return "" if text == "?" else text
