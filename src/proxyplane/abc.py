"""The contracts: what a connector, a serialiser and a factory must do, and nothing else.

A connector is a set of coroutines over a medium. It carries *frames* (a list of buffers that
together are one object) in, and one buffer out; it neither encodes nor decodes. Everything above
it, the cache, the proxies, the blocking facade, is written against the classes of this module.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

from proxyplane._runtime.progress import Progress, telling

if TYPE_CHECKING:
    from mmap import mmap
    from typing import Self

    Buffer: TypeAlias = bytes | bytearray | memoryview | mmap
else:
    Buffer = Any

__all__ = [
    "Buffer",
    "Connector",
    "DeferrableConnector",
    "Factory",
    "Frames",
    "FreshKey",
    "Parts",
    "Progress",
    "RECORD_BYTES",
    "Serializer",
    "SupportsNames",
    "SupportsSweep",
    "SupportsSync",
    "Swept",
    "telling",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Frames: TypeAlias = Sequence[Buffer]
"""The bytes of one object, in order, as buffers. Connectors write them without joining them."""


class FreshKey(str):
    """A key that was made just now, for one put: nothing can stand under it yet."""

    __slots__ = ()


class Connector(ABC):
    """Coroutines over one medium.

    An instance may be used from any number of event loops and threads at once, and must survive
    a fork (the child uses it as if it had just been made). It is described whole by its `url`,
    which travels inside proxies: a connector built from that URL in another process reaches the
    same objects, and the URL never holds a secret.

    All methods raise `proxyplane.exceptions.ConnectorError`, or one of its subclasses, when the
    medium fails; errors of the driver are translated here and never leave.

    Attributes:
        scheme: The URL scheme it is registered under, for example ``"redis"``.
        takes_tags: Whether `put`, `put_batch` and, if it has that, `new_key` take ``tags=``, a
            collection of strings by which it decides where an object goes.
        takes_keys: Whether `put_batch` takes ``keys=``, a key for each object that `make_key` made.
        takes_ttl: Whether its medium keeps leases. Then `put`, `put_batch` and, if it has them,
            `new_key` and `put_sync` take ``ttl=``, seconds after which the object is gone (by
            default it stays), and there is `extend`. An object whose lease has ended is gone for
            every reader at once, whether or not its space was given back yet.
        sync_waits: Whether the shortcut of `SupportsSync` waits for another process. Then what must
            not be interrupted between two steps does not take it.
        reads_at_once: Whether an evict never disturbs a `get` that has begun.
    """

    scheme: ClassVar[str]
    takes_tags: ClassVar[bool] = False
    takes_keys: ClassVar[bool] = False
    takes_ttl: ClassVar[bool] = False
    sync_waits: ClassVar[bool] = False
    reads_at_once: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def from_url(cls, url: str) -> Self:
        """Makes the connector that `url` describes.

        Raises:
            ConfigError: The URL does not describe one; the message names the part.
        """

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL from which `from_url` makes an equal connector. Holds no secret."""

    @abstractmethod
    async def put(self, frames: Frames, *, key: str | None = None) -> str:
        """Stores one object, whole or not at all, and returns its key.

        When it returns, every reader sees the object, and nothing that the caller does to the
        buffers afterwards is visible to anyone.

        Args:
            frames: The bytes of the object; together at least one byte.
            key: A key chosen by the caller, of any characters; by default a new unique one.

        Raises:
            KeyExistsError: `key` is taken; what it holds is unchanged.
            ObjectTooLargeError: The medium can never hold an object of this size.
            StoreFullError: The medium has no room now.
        """

    def make_key(self, size: int, tags: Collection[str] = ()) -> FreshKey:
        """Makes the key for one object before it is put, for those who write the key into it.

        The object must then be put under it, once: nobody else has it. The default makes one that
        `put` takes for a key of the caller's.

        Args:
            size: Bytes of the object.
            tags: Its tags.
        """
        return FreshKey(f"{os.urandom(8).hex()}{0:016x}")

    @abstractmethod
    async def get(self, key: str, *, size: int | None = None) -> Buffer | None:
        """Reads one object.

        A writable buffer is private to the caller, who may hand it to the user as it is. A
        read-only buffer may be shared with others: the decoder copies what must be writable.

        Args:
            key: The key that `put` returned.
            size: The size in bytes, when the caller knows it; saves a round trip in some media.
                Only a hint, never trusted.

        Returns:
            Exactly the bytes that were put, or None when the key holds nothing.
        """

    @abstractmethod
    async def exists(self, key: str) -> bool:
        """Whether the key holds an object now."""

    @abstractmethod
    async def evict(self, key: str) -> bool:
        """Removes an object and returns whether it was there.

        Of many callers that evict one key at once, exactly one learns that it was there.
        """

    @abstractmethod
    async def aclose(self, *, clear: bool = False) -> None:
        """Releases connections and descriptors. A second call does nothing.

        Args:
            clear: Also evict what was put through this instance (and nothing else). By default
                the objects stay, because other processes may still read them.
        """

    async def put_batch(self, batch: Sequence[Frames]) -> list[str]:
        """Stores many objects and returns their keys in order; all of them or none.

        The default stores them one after another.
        """
        keys: list[str] = []
        try:
            for frames in batch:
                keys.append(await self.put(frames))
        except BaseException:
            # Nobody has seen the keys, so what was stored could never be read or evicted again.
            await asyncio.shield(self.evict_batch(keys))
            raise
        return keys

    async def get_batch(
        self, keys: Sequence[str], *, sizes: Sequence[int | None] | None = None
    ) -> list[Buffer | None]:
        """Reads many objects, in the order of the keys; None for a key that holds nothing.

        The default reads them one after another.
        """
        if sizes is None:
            sizes = [None] * len(keys)
        return [await self.get(key, size=size) for key, size in zip(keys, sizes, strict=True)]

    async def evict_batch(self, keys: Sequence[str]) -> list[bool]:
        """Evicts many objects and tells for each key whether it was there.

        The default evicts them one after another.
        """
        return [await self.evict(key) for key in keys]

    async def extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        """Gives objects a new lease; tells for each key whether it still held something.

        A key made by `new_key` has a lease before its object comes, and `set` keeps it. A lease
        that has ended cannot be extended.

        Args:
            keys: The keys.
            ttl: Seconds from now until the leases end; None for no lease any more.

        Raises:
            NotImplementedError: The medium keeps no leases (`takes_ttl`).
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no leases")


class DeferrableConnector(Connector):
    """A connector on which one can wait for an object that is not there yet."""

    @abstractmethod
    async def new_key(self) -> str:
        """Registers a key whose object will come later, and returns it.

        The medium remembers the registration, so that a waiter can tell "not yet" from "gone".
        """

    @abstractmethod
    async def set(self, key: str, frames: Frames) -> None:
        """Stores the object of a key made by `new_key` and wakes everyone who waits for it.

        Raises:
            KeyExistsError: It was set before; of two at once exactly one succeeds.
            ObjectLostError: The medium no longer knows the registration.
        """

    @abstractmethod
    async def wait(self, key: str, timeout: float | None = None) -> None:
        """Returns when `key` holds an object.

        Args:
            key: A key made by `new_key`.
            timeout: Seconds to wait at most; None waits for as long as the medium remembers the
                registration.

        Raises:
            TimeoutError: The object did not come in time.
            ObjectLostError: The medium no longer knows the registration.
        """


@runtime_checkable
class SupportsSync(Protocol):
    """Optional shortcut of a connector whose work is a few system calls.

    A hop into the loop thread costs more than such a call takes, so the blocking facade and
    blocking touches call these directly; nobody calls them on the thread of a loop that could
    await instead. Each does just what its coroutine does. Where the medium is another process
    (`Connector.sync_waits`), what takes long may go through the library's loop from in here.
    """

    def put_sync(self, frames: Frames, *, key: str | None = None) -> str:
        """What `Connector.put` does, in the calling thread."""
        ...

    def get_sync(self, key: str, *, size: int | None = None) -> Buffer | None:
        """What `Connector.get` does, in the calling thread."""
        ...

    def exists_sync(self, key: str) -> bool:
        """What `Connector.exists` does, in the calling thread."""
        ...

    def evict_sync(self, key: str) -> bool:
        """What `Connector.evict` does, in the calling thread."""
        ...


class Swept(NamedTuple):
    """What a sweep removed.

    Attributes:
        objects: Objects whose lease had ended.
        size: Their bytes.
        registrations: Keys whose object never came and whose lease had ended.
        temporaries: What dead writers left behind unpublished.
        more: Whether the sweep stopped before it was through.
    """

    objects: int = 0
    size: int = 0
    registrations: int = 0
    temporaries: int = 0
    more: bool = False


@runtime_checkable
class SupportsSweep(Protocol):
    """Of a connector whose medium does not give back by itself what ended leases leave behind."""

    async def sweep(self) -> Swept:
        """Removes everything whose lease has ended; never what has a lease, or none.

        An open connector does this in the background too, a little at a time.
        """
        ...


RECORD_BYTES = 8192
"""The most that `SupportsNames.swap` returns, in bytes; the records of stores are smaller."""


@runtime_checkable
class SupportsNames(Protocol):
    """A connector that can replace what a key holds, in one step that nobody sees half done.

    Stores need it for keys that can be put again. Such a key holds a small record that says where
    the object is, and each object has a key of its own, which is written once.
    """

    async def swap(
        self, key: str, frames: Frames | None, *, ttl: float | None = None
    ) -> Buffer | None:
        """Puts an object in the place of what a key holds, and returns what was there.

        Every get, before and after and meanwhile, returns one of the two, and whole. Of many who
        swap at once each gets what another one, or a put, had left there, and none gets the same.
        A cancelled swap is done whole or not at all.

        Args:
            key: A key chosen by the caller; or one that is set, of a future.
            frames: The bytes of the object, mostly few; None leaves nothing there.
            ttl: Seconds that it has, where `Connector.takes_ttl`; by default it stays.

        Returns:
            What was there, of a large object at least the first `RECORD_BYTES` bytes; ``b""`` of
            an object that was not swapped in, where its bytes are not at hand. None if the key
            held nothing.

        Raises:
            ConnectorLostError: The connection broke, and it may or may not be done.
            NotImplementedError: A part of this connector, on which the key would be, cannot.
        """
        ...


class Parts(NamedTuple):
    """What a serialiser makes of an object.

    Attributes:
        inband: Bytes that a checksum always covers: small things, and whatever had to be copied.
        buffers: Bodies that are carried as they are, without a copy.
    """

    inband: Frames
    buffers: Frames = ()


class Serializer(Protocol):
    """Turns objects into parts and back. Framing, lengths and checksums are not its concern.

    Attributes:
        id: What the header of an encoded object names; a reader finds the serialiser by it.
            Registered with `proxyplane.serialization.register_serializer`, or an import string
            (``"package.module:attribute"``) that every reader can import.
        copies: True when `decode` copies the buffers it is given. Otherwise the object may keep
            them, and they are private to it and writable.
    """

    @property
    def id(self) -> str:
        """What the header of an encoded object names."""
        ...

    @property
    def copies(self) -> bool:
        """Whether `decode` copies the buffers it is given."""
        ...

    def encode(self, obj: Any) -> Parts:
        """Encodes `obj`, without copying large buffers where that can be avoided."""
        ...

    def decode(self, inband: memoryview, buffers: Sequence[memoryview]) -> Any:
        """Makes the object; `inband` is the joined in-band part."""
        ...


class Factory(ABC, Generic[T_co]):
    """What a proxy calls, once, to get its target.

    Any callable without arguments can be behind a proxy; subclass this to choose how the target
    is had from async code.
    """

    __slots__ = ()

    @abstractmethod
    def __call__(self) -> T_co:
        """Makes or fetches the target; may block."""

    async def acall(self) -> T_co:
        """Makes or fetches the target without blocking the running loop.

        Runs on the library's event loop. The default calls the factory on a worker thread.
        """
        return await asyncio.to_thread(self)
