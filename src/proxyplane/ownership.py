"""Objects that live as long as their owner: one owner, and many readers or one writer.

The rules are those of Rust, kept while the program runs:

- An object has one `OwnedProxy`. When that is gone, the object is evicted.
- The owner lends: to any number of readers (`borrow`), or to one writer (`mut_borrow`), which
  keep it alive. While it lends, it can be neither moved, nor updated, nor dropped.
- What is pickled moves. Copies are refused; `clone` copies the object in the store.

What does no I/O neither blocks nor is awaited. The others block, and have async twins.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Collection, Coroutine, Iterator
from typing import Any, Self, TypeVar, cast

from proxyplane._evictions import evict_later
from proxyplane._operations import Known, Operation
from proxyplane._references import (
    OwnedProxy,
    RefMutProxy,
    RefProxy,
    deed_of,
    factory_of,
    get_hints,
    get_target,
    is_reference,
    lend,
    lend_to_update,
    make_borrow,
    make_owner,
    note_change,
    set_hints,
    spend,
    take_claim,
)
from proxyplane._stakes import ReferenceFactory
from proxyplane._store_trust import key_of, put_all, readdressed, readdressed_here
from proxyplane.abc import Buffer, Serializer
from proxyplane.cache import MISSING
from proxyplane.exceptions import AlreadyOwnedError, ProxyResolveMissingKeyError
from proxyplane.factory import StoreFactory
from proxyplane.hints import Hints
from proxyplane.proxy import Proxy
from proxyplane.serialization import frames_size

__all__ = [
    "OwnedProxy",
    "RefMutProxy",
    "RefProxy",
    "aclone",
    "adrop",
    "aupdate",
    "borrow",
    "clone",
    "drop",
    "into_owned",
    "mut_borrow",
    "update",
]

T = TypeVar("T")

DROPPED = "it was dropped"
# From how many bytes on a deep copy does not belong on an event loop.
LARGE = 1 << 16


def borrow(owner: OwnedProxy[T], *, populate_target: bool = True) -> RefProxy[T]:
    """Lends an object to one more reader; fetches nothing.

    The borrow keeps its owner alive, and is over when it is gone, or when
    `proxyplane.scopes.submit` says so. Sent to another process it becomes one there, and the
    owner here cannot know when that is gone: keep the owner until the task has ended.

    Args:
        owner: Who lends.
        populate_target: Whether the borrow has its target from the start, if the owner has it.

    Raises:
        ReferenceNotOwnedError: `owner` is no owner, or owns nothing in this process.
        ReferenceInvalidError: It was moved.
        MutableBorrowError: It has lent to a writer.
    """
    return cast("RefProxy[T]", make_borrow(owner, mutable=False, populate_target=populate_target))


def mut_borrow(owner: OwnedProxy[T], *, populate_target: bool = True) -> RefMutProxy[T]:
    """Lends an object to one writer; fetches nothing.

    Args:
        owner: As for `borrow`. If the writer updated the object, or was sent away, the owner reads
            it again once the borrow is over.
        populate_target: As for `borrow`: both then have the same object.

    Raises:
        ReferenceNotOwnedError: `owner` is no owner, or owns nothing in this process.
        ReferenceInvalidError: It was moved.
        MutableBorrowError: It lends already.
    """
    return cast("RefMutProxy[T]", make_borrow(owner, mutable=True, populate_target=populate_target))


def into_owned(proxy: Proxy[T], *, populate_target: bool = True) -> OwnedProxy[T]:
    """Makes the owner of the object of a store's proxy; fetches nothing.

    That nobody else becomes its owner, in another process, is for the caller to know. If the proxy
    was to evict the object on its first use, it is not any more.

    Args:
        proxy: A plain proxy. It stays usable as long as the owner lives.
        populate_target: Whether the owner has its target from the start, if the proxy has it.

    Raises:
        AlreadyOwnedError: The proxy is an owner or a borrow, or its object has an owner in this
            process; also a ValueError.
        TypeError: The proxy was not made by a store.
    """
    if is_reference(proxy):
        raise AlreadyOwnedError(
            f"only a plain proxy can become an owner, not a {type(proxy).__name__}"
        )
    factory = factory_of(proxy)
    target = get_target(proxy) if populate_target else MISSING
    owner = make_owner(factory, get_hints(proxy), target)
    factory.evict = False
    return cast("OwnedProxy[T]", owner)


def clone(owner: OwnedProxy[T]) -> OwnedProxy[T]:
    """Copies an object in its store, and returns the owner of the copy; blocks.

    Blocking twin of `aclone`.
    """
    with lend(owner, mutable=False, what="be cloned"):
        return _blocking(owner, cloning(owner))


async def aclone(owner: OwnedProxy[T]) -> OwnedProxy[T]:
    """Copies an object in its store, and returns the owner of the copy.

    The bytes are copied, not decoded. If the owner has its target, the clone gets a deep copy of
    that. Tags and a lease are not copied: the clone stays as long as its owner.

    Raises:
        ReferenceNotOwnedError: `owner` is no owner, or owns nothing in this process.
        ReferenceInvalidError: It was moved.
        MutableBorrowError: It has lent to a writer.
        ProxyResolveMissingKeyError: The object was evicted.
        ConnectorError: The medium failed.
    """
    with lend(owner, mutable=False, what="be cloned"):
        return await cloning(owner).perform()


def update(
    reference: OwnedProxy[Any] | RefMutProxy[Any], *, serializer: Serializer | str | None = None
) -> None:
    """Stores what a reference has as its target in the place of the object; blocks.

    Blocking twin of `aupdate`.
    """
    with _Update(reference) as one:
        _blocking(reference, updating(reference, serializer, one))


async def aupdate(
    reference: OwnedProxy[Any] | RefMutProxy[Any], *, serializer: Serializer | str | None = None
) -> None:
    """Stores what a reference has as its target in the place of the object.

    Borrows that are made from now on read it, in every process. A reference that is not resolved
    has nothing to store. Who reads meanwhile gets the object as it was or as it is now, and whole.
    If storing fails, the reference still has its target, and the update can be repeated. A lease
    that the object had ends with it: what is there now stays as long as its owner. Where the
    connector cannot replace an object in one step, the store holds nothing in between.

    Args:
        reference: An owner that lends to nobody, or a mutable borrow.
        serializer: A serialiser, or its id, for this object.

    Raises:
        ReferenceNotOwnedError: It may only read.
        ReferenceInvalidError: It was moved, or its time is over.
        MutableBorrowError: The owner lends.
        SerializationError: The target cannot be encoded; the object is as it was.
        ConnectorError: The medium failed.
    """
    with _Update(reference) as one:
        await updating(reference, serializer, one).perform()


def drop(owner: OwnedProxy[Any]) -> None:
    """Evicts the object of an owner now, and ends the owner; blocks. Blocking twin of `adrop`."""
    _blocking(owner, dropping(owner))


async def adrop(owner: OwnedProxy[Any]) -> None:
    """Evicts the object of an owner now, and ends the owner.

    What happens to every owner when it is collected, but at once, and with its errors.

    Raises:
        ReferenceNotOwnedError: `owner` is no owner, or owns nothing in this process.
        ReferenceInvalidError: It was moved.
        MutableBorrowError: It lends.
        ConnectorError: The medium failed; it is tried again behind your back.
    """
    await dropping(owner).perform()


# -- as operations ----------------------------------------------------------------------------


def owning(
    store: Any,
    obj: Any,
    serializer: Serializer | str | None = None,
    populate_target: bool = True,
    skip_nonproxiable: bool = False,
    eager: bool | None = None,
    tags: Collection[str] = (),
    ttl: float | None = None,
) -> Operation[Any]:
    """Stores an object; gives its owner."""
    keep = store.keep(ttl, None)
    proxying = store.proxying(
        obj,
        None,
        serializer,
        False,
        populate_target,
        skip_nonproxiable,
        eager,
        tags,
        keep=keep,
    )
    if isinstance(proxying, Known):
        return cast("Operation[Any]", proxying)
    options = store._tagged(tags) | keep.options
    # A batch of one: what a batch stored, and whose caller is cancelled, it takes back.
    proxying.io = lambda frames: _put(store, frames, **options)
    return cast("Operation[Any]", proxying.then(into_owned))


async def _put(store: Any, frames: Any, **options: Any) -> str:
    (key,) = await put_all(store.connector, [frames], **options)
    return key


def cloning(owner: OwnedProxy[T]) -> Operation[OwnedProxy[T]]:
    """Copies an object in its store; gives the owner of the copy."""
    factory, hints, target = factory_of(owner), get_hints(owner), get_target(owner)
    store = factory.store

    def found(buffer: Buffer | None) -> Buffer:
        if buffer is None:
            raise ProxyResolveMissingKeyError(
                f"there is no {factory} to clone", key=factory.key, store=store.name
            )
        return buffer

    # Owned as soon as it is there: a caller who is cancelled later drops it.
    def own(key: str) -> OwnedProxy[T]:
        return make_owner(store.factory(key, False, factory.size), hints)

    fetching = store.fetching(factory.key, factory.size)

    async def copy_in_store(_: None) -> OwnedProxy[T]:
        buffer = found(await fetching.io(None))
        frames = await readdressed(store.trust, store.connector, buffer, factory.key)
        return own(await _put(store, frames))

    def copy_here(_: None) -> OwnedProxy[T]:
        buffer = found(fetching.io_here(None))
        frames = readdressed_here(store.trust, store.connector, buffer, factory.key)
        return own(store.connector.put_sync(frames, key=key_of(frames)))

    def finish(made: OwnedProxy[T]) -> OwnedProxy[T]:
        if target is not MISSING:
            made.__proxy_deliver__(copy.deepcopy(target))
        return made

    return Operation(
        f"cloning {factory}",
        io=copy_in_store,
        io_here=copy_here if fetching.io_here else None,
        finish=finish,
        finish_stalls=lambda _: target is not MISSING and (factory.size or LARGE) >= LARGE,
    )


def updating(
    reference: OwnedProxy[Any] | RefMutProxy[Any],
    serializer: Serializer | str | None,
    one: _Update,
) -> Operation[None]:
    """Stores the target of a reference in the place of its object."""
    target = get_target(reference)
    if target is MISSING:
        return Known(None)
    factory = cast("ReferenceFactory[Any]", factory_of(reference))
    store, key = factory.store, factory.key
    putting = store.replacing(target, key, serializer)
    put, put_here = putting.io, putting.io_here

    async def replace_whole(frames: Any) -> None:
        begin(frames)
        await one.whole(put(frames))

    def replace_here(frames: Any) -> None:
        begin(frames)
        put_here(frames)

    def begin(frames: Any) -> None:
        # From here on no cache can be believed.
        factory.shared = False
        factory.size = frames_size(frames)
        set_hints(reference, Hints.of(target, factory.size))
        note_change(reference)

    putting.what = f"updating {factory}"
    putting.io, putting.io_here = replace_whole, None
    if put_here and store.claims_here:  # who is interrupted in the middle would have lost it
        putting.io_here = replace_here
    return cast("Operation[None]", putting)


def dropping(owner: OwnedProxy[Any]) -> Operation[None]:
    """Evicts the object of an owner, and ends the owner."""
    deed, factory = deed_of(owner, "dropped"), factory_of(owner)
    deed.require_alone("be dropped")
    evicting = factory.store.evicting(factory.key)
    evict, evict_here = evicting.io, evicting.io_here

    def prepare() -> None:
        take_claim(owner, "be dropped")
        spend(owner, DROPPED)

    async def evict_or_queue(_: None) -> None:
        with _queued_unless_done(factory):
            await evict(None)

    def evict_or_queue_here(_: None) -> None:
        with _queued_unless_done(factory):
            evict_here(None)

    forget = evicting.prepare

    def prepare_both() -> None:
        prepare()
        forget()

    evicting.what = f"dropping the owner of {factory}"
    evicting.prepare = prepare_both
    evicting.io, evicting.io_here = evict_or_queue, evict_here and evict_or_queue_here
    return cast("Operation[None]", evicting.then(lambda _: None))


# -- the steps they share ---------------------------------------------------------------------


def _blocking(reference: Any, operation: Operation[T]) -> T:
    return operation.perform_blocking(factory_of(reference).store.on_blocking)


class _Update:
    """One update: keeps everybody else from an object until it has ended.

    Args:
        reference: Who updates.
    """

    def __init__(self, reference: OwnedProxy[Any] | RefMutProxy[Any]) -> None:
        self._loan = lend_to_update(reference)
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Who was cancelled leaves a task behind, which goes on.
        if self._task is None or self._task.done():
            self._loan.finalize()

    async def whole(self, storing: Coroutine[Any, Any, None]) -> None:
        """Stores, and goes on with that when the caller is cancelled in between."""
        task = self._task = asyncio.ensure_future(storing)
        _storing.add(task)  # a loop does not keep its tasks
        task.add_done_callback(self._ended)
        await asyncio.shield(task)
        self._loan.finalize()

    def _ended(self, task: asyncio.Task[None]) -> None:
        _storing.discard(task)
        self._loan.finalize()
        if not task.cancelled():
            task.exception()  # if nobody waits for it any more, that is not for stderr


_storing: set[asyncio.Task[None]] = set()


@contextlib.contextmanager
def _queued_unless_done(factory: StoreFactory[Any]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        evict_later(factory)
        raise
