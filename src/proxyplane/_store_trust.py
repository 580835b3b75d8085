"""How a store signs what it puts, and checks what it gets.

A signature covers the key, so an object needs its key before it is signed: the store asks the
connector for one, where otherwise the connector would make it while it puts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from proxyplane import serialization
from proxyplane._runtime.workers import run_in_worker
from proxyplane._trust import Trust
from proxyplane.abc import Buffer, Connector
from proxyplane.config import StoreConfig
from proxyplane.exceptions import ConfigError

__all__ = ["Signed", "key_of", "put_all", "readdressed", "signed", "trust_of"]


class Signed(list[Buffer]):
    """Frames that are signed for a key.

    Attributes:
        key: The key.
    """

    __slots__ = ("key",)

    def __init__(self, frames: Sequence[Buffer], key: str) -> None:
        super().__init__(frames)
        self.key = key


def trust_of(config: StoreConfig) -> Trust:
    """What the store of a configuration accepts, and how it signs.

    Raises:
        ConfigError: It accepts a serialiser that there is not.
    """
    allow = config.accepted()
    for id in allow or ():
        if ":" not in id and not serialization.is_known(id):
            raise ConfigError(
                f"allow={list(allow or ())} names the serializer {id!r}, which is unknown",
                hint="register it first; built in are: " + ", ".join(serialization.BUILTIN),
            )
    if allow is not None and config.serializer is not None and config.serializer not in allow:
        raise ConfigError(
            f"serializer={config.serializer!r} is not among those that allow={list(allow)} accepts",
            hint="then this store could not read what it puts",
        )
    return Trust(tuple(config.signing_key), allow, f"store {config.name!r}")


def signed(
    trust: Trust,
    connector: Connector,
    frames: list[Buffer],
    key: str | None = None,
    tags: Collection[str] = (),
) -> list[Buffer]:
    """Frames that were made with `trust`, signed for a key if it signs.

    Args:
        trust: How the store signs.
        connector: Makes the key, if there is none yet.
        frames: The frames.
        key: The key, if the object has one already.
        tags: Tags of the object.
    """
    if not trust.signs:
        return frames
    if key is None:
        key = connector.make_key(serialization.frames_size(frames), tags)
    return Signed(trust.sign(frames, key), key)


def key_of(frames: list[Buffer], key: str | None = None) -> str | None:
    """The key under which frames must be put; None for one that the connector makes."""
    return frames.key if type(frames) is Signed else key


async def put_all(connector: Connector, batch: Sequence[list[Buffer]], **options: Any) -> list[str]:
    """Puts objects under the keys for which they are signed, if they are: all of them or none."""
    keys = [frames.key for frames in batch if type(frames) is Signed]
    if not keys:
        return await connector.put_batch(batch, **options)
    if connector.takes_keys:
        return await connector.put_batch(batch, keys=keys, **options)  # type: ignore[call-arg]  # a capability
    done: list[str] = []
    try:
        for frames, key in zip(batch, keys, strict=True):
            done.append(await connector.put(frames, key=key, **options))
    except BaseException:
        await asyncio.shield(connector.evict_batch(done))
        raise
    return done


async def readdressed(trust: Trust, connector: Connector, buffer: Buffer, key: str) -> list[Buffer]:
    """The frames of a copy of a stored object; if objects are signed, checked and signed anew."""
    if not trust.signs:
        return [buffer]
    return await run_in_worker(readdressed_here, trust, connector, buffer, key)


def readdressed_here(trust: Trust, connector: Connector, buffer: Buffer, key: str) -> list[Buffer]:
    """The same, in this thread."""
    if not trust.signs:
        return [buffer]
    frames = trust.reopen(buffer, key)
    return signed(trust, connector, frames)
