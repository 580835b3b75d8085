"""Owners and borrows: proxies that know whose the object is.

An owner holds a *claim*: that this process is to evict the object. What it lends is a *loan*, which
the borrow keeps, and which keeps the owner. A finaliser ends either without a lock: a loan leaves
a set, a claim goes into a queue.

A reference that was moved, or whose time is over, is *spent*: its factory is replaced by one that
raises, so that whatever would use it says why it cannot.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from proxyplane import _evictions
from proxyplane._forward import ClassCache
from proxyplane._runtime import eager, flights
from proxyplane._stakes import Deed, Loan, ReferenceFactory, SpentFactory, Updating, lock
from proxyplane.cache import MISSING
from proxyplane.exceptions import (
    MutableBorrowError,
    ReferenceInvalidError,
    ReferenceNotOwnedError,
)
from proxyplane.factory import EAGER_OFF, StoreFactory, rebuild_factory
from proxyplane.hints import NO_HINTS, Hints
from proxyplane.proxy import Proxy, get_factory, get_interest, is_resolved, set_interest

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

OVER = "its borrow is over, as its task is"
MOVED = "it was pickled, and so moved to whoever unpickles it"


# -- the proxies ------------------------------------------------------------------------------

_FromTarget: Any = type(Proxy.__dict__["__doc__"])

if TYPE_CHECKING:
    _ReferenceMeta = type
else:

    class _ReferenceMeta(type(Proxy)):
        __module__ = property(lambda cls: "proxyplane.ownership")


class Reference(Proxy[T_co], metaclass=_ReferenceMeta, made_for_target=True):
    """What owners and borrows have in common."""

    if not TYPE_CHECKING:
        __slots__ = ("__proxy_stake__",)

        def __proxy_deliver__(self, target: Any) -> None:
            """Sets the target, and makes this a reference to what it turned out to be."""
            if type(_get_factory(self)) is SpentFactory:
                return
            _set_target(self, target)
            wanted = _classes[kind_of(self)].get(type(target))
            if type(self) is not wanted:
                _set_class(self, wanted)

        def __proxy_forget__(self) -> None:
            """Has it read its object again: somebody else may have changed that."""
            factory, hints = _factory(self), get_hints(self)
            factory.shared = False
            factory.size = None
            unhashable = False if hints.hash is False else None
            set_hints(self, Hints(hints.type_name, None, unhashable))
            if is_resolved(self):
                _del_target(self)

        def __repr__(self) -> str:
            name = kind_of(self).__name__
            factory = _get_factory(self)
            if type(factory) is SpentFactory:
                return f"<{name} of {factory}, spent: {factory.why}>"
            shown = super().__repr__()
            return shown if is_resolved(self) else shown.replace("<Proxy", f"<{name}", 1)

        def __copy__(self) -> NoReturn:
            raise NotImplementedError(
                f"a copy of a {kind_of(self).__name__} would break the rules of ownership: "
                "borrow from the owner, or clone it"
            )

        def __deepcopy__(self, memo: object) -> NoReturn:
            self.__copy__()

        def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
            # At that point the exit has seen to everything, and there are no modules any more.
            if not is_finalizing():
                self.__proxy_stake__.finalize()


class OwnedProxy(Reference[T_co], made_for_target=True):
    """A proxy that owns its object: the object is evicted when the proxy is gone.

    There is one owner of an object. It lends the object, with `borrow` to many readers or with
    `mut_borrow` to one writer, and lives as long as they do. Pickling moves it: whoever unpickles
    it is the owner then, and the proxy that was pickled cannot be used any more. It does not
    resolve in the background where it arrives, since owners mostly lend.

    The object is evicted soon after the owner is collected, or in the second after the process
    ends. A process that is killed evicts nothing. One that was forked owns nothing of what its
    parent does.

    Args:
        factory: Names the object; from ``get_factory(proxy)`` of a store's proxy.
        target: The object, where the caller has it.

    Raises:
        AlreadyOwnedError: The object has an owner in this process.
        TypeError: `factory` is not a `StoreFactory`.
    """

    if not TYPE_CHECKING:
        __slots__ = ()
        __module__ = _FromTarget("__module__", "proxyplane.ownership")

    def __new__(cls, factory: Callable[[], T_co], *, target: Any = MISSING) -> OwnedProxy[T_co]:
        hints = NO_HINTS if target is MISSING else Hints.of(target)
        return make_owner(require_store_factory(factory), hints, target)

    if not TYPE_CHECKING:

        def __del__(
            self,
            is_finalizing: Callable[[], bool] = sys.is_finalizing,
            is_garbage: Callable[[Any], bool] = gc.is_finalized,
        ) -> None:
            if is_finalizing():
                return
            deed = self.__proxy_stake__
            # Borrows keep their owner. So either all of them are garbage, or somebody calls this.
            if not is_garbage(self):
                deed.require_alone("be deleted")
            deed.finalize()

        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            take_claim(self, "move")
            return _move(self, rebuild_owner)


class RefProxy(Reference[T_co], made_for_target=True):
    """A borrow to read; made by `borrow`. Pickling moves it."""

    if not TYPE_CHECKING:
        __slots__ = ()
        __module__ = _FromTarget("__module__", "proxyplane.ownership")

        def __new__(cls, *args: object, **kwargs: object) -> NoReturn:
            raise TypeError("a RefProxy is made by proxyplane.borrow(owner)")

        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            require_valid(self)
            return _move(self, rebuild_borrow)


class RefMutProxy(Reference[T_co], made_for_target=True):
    """A borrow to write, the only one of its owner's; made by `mut_borrow`. Pickling moves it.

    Its object is its own, not that of a store's cache. What it changes is stored by `update`.
    """

    if not TYPE_CHECKING:
        __slots__ = ()
        __module__ = _FromTarget("__module__", "proxyplane.ownership")

        def __new__(cls, *args: object, **kwargs: object) -> NoReturn:
            raise TypeError("a RefMutProxy is made by proxyplane.mut_borrow(owner)")

        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            require_valid(self)
            _get_stake(self).changed = True  # for all that is known here
            return _move(self, rebuild_writer)


KINDS: tuple[Any, ...] = (OwnedProxy, RefProxy, RefMutProxy)
for _kind in KINDS:
    _kind.__doc__ = _FromTarget("__doc__", _kind.__doc__)
    _kind.__annotations__ = _FromTarget("__annotations__", {})
_classes: dict[Any, ClassCache] = {kind: ClassCache(kind) for kind in KINDS}


def kind_of(reference: object) -> type[Reference[Any]]:
    """Which of the three it is; its type is made for that of its target."""
    kind = type(reference)
    return cast("type[Reference[Any]]", kind if kind in _classes else kind.__mro__[1])


# The slots, read and written past `__getattr__` and `__setattr__`.
_get_target = Proxy.__dict__["__proxy_target__"].__get__
_set_target = Proxy.__dict__["__proxy_target__"].__set__
_del_target = Proxy.__dict__["__proxy_target__"].__delete__
_get_factory = Proxy.__dict__["__proxy_factory__"].__get__
_set_factory = Proxy.__dict__["__proxy_factory__"].__set__
get_hints: Callable[[Any], Hints] = Proxy.__dict__["__proxy_hints__"].__get__
set_hints = Proxy.__dict__["__proxy_hints__"].__set__
_get_stake = Reference.__dict__["__proxy_stake__"].__get__
_set_stake = Reference.__dict__["__proxy_stake__"].__set__
_set_class = object.__dict__["__class__"].__set__


def _factory(reference: Any) -> ReferenceFactory[Any]:
    return cast("ReferenceFactory[Any]", _get_factory(reference))


# -- making -----------------------------------------------------------------------------------


def _make(
    kind: Any, stake: Deed | Loan, factory: ReferenceFactory[Any], hints: Hints, target: Any
) -> Any:
    known = hints.target_type() if target is MISSING else type(target)
    made: Any = object.__new__(_classes[kind].get(known))
    _set_stake(made, stake)
    _set_factory(made, factory)
    set_hints(made, hints)
    set_interest(made, None)
    if target is not MISSING:
        _set_target(made, target)
    return made


def make_owner(
    factory: StoreFactory[T], hints: Hints, target: Any = MISSING, shared: bool = True
) -> OwnedProxy[T]:
    """Makes an owner.

    Raises:
        AlreadyOwnedError: The object has an owner in this process.
    """
    own = ReferenceFactory(factory, shared)
    owner = _make(OwnedProxy, Deed(_evictions.claim(own)), own, hints, target)
    return cast("OwnedProxy[T]", owner)


def lend(owner: OwnedProxy[T], *, mutable: bool, what: str = "lend it once more") -> Loan:
    """A new loan.

    Args:
        owner: Who lends.
        mutable: Whether to a writer.
        what: What that is for, for the message.

    Raises:
        ReferenceNotOwnedError: Not an owner.
        MutableBorrowError: The owner has a writer, or readers where a writer is wanted.
    """
    deed = deed_of(owner, "borrowed from")
    loan = Loan(owner, mutable)
    with lock():
        if mutable:
            deed.require_alone(what)
            deed.writer = loan
        else:
            if deed.writer is not None:
                deed.require_alone(what)
            deed.readers.add(loan)
    return loan


def lend_to_update(reference: OwnedProxy[Any] | RefMutProxy[Any]) -> Loan:
    """Keeps all others from the object, until what this returns is over.

    Raises:
        ReferenceNotOwnedError: It may not write.
        MutableBorrowError: An owner that lends, or a writer that updates already.
    """
    if not issubclass(type(reference), RefMutProxy):
        if issubclass(type(reference), RefProxy):
            raise ReferenceNotOwnedError("a RefProxy may only read: update the owner")
        return lend(cast("OwnedProxy[Any]", reference), mutable=True, what="be updated")
    require_valid(reference)
    stake: Loan = _get_stake(reference)
    busy = Updating(stake)
    with lock():
        if stake.updating:
            raise MutableBorrowError(f"{_factory(reference)} is being updated")
        stake.updating = True
    return busy


def note_change(reference: Any) -> None:
    """Notes that what is stored differs from what the owner has."""
    stake = _get_stake(reference)
    if type(stake) is Loan:
        stake.changed = True


def take_claim(owner: Any, what: str) -> None:
    """Leaves it to the caller to see to the object of an owner that lends to nobody.

    Raises:
        ReferenceNotOwnedError: It is no owner, or owns nothing in this process.
        ReferenceInvalidError: It was moved.
        MutableBorrowError: It lends.
    """
    deed = deed_of(owner, "asked to " + what)
    with lock():
        deed.require_alone(what)
        if not deed.claim.give_up():
            raise ReferenceInvalidError(f"the owner of {_factory(owner)} moved at this moment")


def make_borrow(owner: OwnedProxy[T], *, mutable: bool, populate_target: bool) -> Any:
    """Makes a borrow; raises what `lend` does."""
    loan = lend(owner, mutable=mutable)
    of = _factory(owner)
    factory = ReferenceFactory(of, of.shared and not mutable)
    target = get_target(owner) if populate_target else MISSING
    return _make(RefMutProxy if mutable else RefProxy, loan, factory, get_hints(owner), target)


def get_target(reference: Any) -> Any:
    """The target, or MISSING."""
    return _get_target(reference) if is_resolved(reference) else MISSING


# -- moving -----------------------------------------------------------------------------------


def _move(reference: Any, rebuild: Callable[..., Any]) -> tuple[Any, ...]:
    """Spends a reference; what it pickles to."""
    factory, hints = _factory(reference), get_hints(reference)
    spend(reference, MOVED)
    return rebuild, (factory.shared, *factory.flat(), *hints.flat())


def _rebuilt(
    shared: bool,
    reference: str,
    key: bytes | str,
    flags: int,
    size: int | None,
    type_name: str | None,
    hash: int | None,
    seed: int | None,
) -> tuple[ReferenceFactory[Any], Hints]:
    factory = rebuild_factory(reference, key, flags, size)
    return ReferenceFactory(factory, shared), Hints.from_flat(size, type_name, hash, seed)


def rebuild_owner(*flat: Any) -> OwnedProxy[Any]:
    """Inverse of pickling an owner: this process is to evict the object now."""
    factory, hints = _rebuilt(*flat)
    return make_owner(factory, hints, shared=factory.shared)


def rebuild_borrow(*flat: Any) -> RefProxy[Any]:
    """Inverse of pickling a borrow; its owner is elsewhere."""
    return cast("RefProxy[Any]", _rebuilt_borrow(RefProxy, *flat))


def rebuild_writer(*flat: Any) -> RefMutProxy[Any]:
    """Inverse of pickling a mutable borrow."""
    return cast("RefMutProxy[Any]", _rebuilt_borrow(RefMutProxy, *flat))


def _rebuilt_borrow(kind: Any, *flat: Any) -> Any:
    factory, hints = _rebuilt(*flat)
    made = _make(kind, Loan(mutable=kind is RefMutProxy), factory, hints, MISSING)
    if not flat[3] & EAGER_OFF:
        set_interest(made, eager.arrive(made, factory))
    return made


def spend(reference: Any, why: str) -> None:
    """Makes a reference one that cannot be used any more."""
    interest = get_interest(reference)
    if interest is not None:
        eager.pass_on(interest)

    def swap(_: object) -> object:
        dropped = get_target(reference)
        _set_factory(reference, SpentFactory(_factory(reference), why))
        set_hints(reference, NO_HINTS)
        if dropped is not MISSING:
            _del_target(reference)
        return dropped

    # Not while a flight delivers.
    flights.hand_over(swap, None)


def end_borrow(*borrows: Any) -> None:
    """Ends borrows before they die.

    Raises:
        ReferenceNotOwnedError: A borrow whose owner is in another process, or no borrow.
    """
    for one in borrows:
        if not is_reference(one) or issubclass(type(one), OwnedProxy):
            raise ReferenceNotOwnedError(f"not a borrow: {type(one).__name__}")
        if _get_stake(one).owner is None and type(_get_factory(one)) is not SpentFactory:
            raise ReferenceNotOwnedError(
                f"the owner of {_factory(one)} is in another process",
                hint="end the borrow there, where it was made",
            )
    for one in borrows:
        if type(_get_factory(one)) is not SpentFactory:
            spend(one, OVER)
        _get_stake(one).finalize()


# -- what is asked of a reference -------------------------------------------------------------


def is_reference(proxy: object) -> bool:
    """Whether it is an owner or a borrow; never fetches the target."""
    return issubclass(type(proxy), Reference)


def is_lent_here(value: object) -> bool:
    """Whether it is a borrow whose owner is in this process."""
    return is_reference(value) and getattr(_get_stake(value), "owner", None) is not None


def require_valid(reference: Any) -> None:
    """Raises ReferenceInvalidError if it is spent."""
    factory = _get_factory(reference)
    if type(factory) is SpentFactory:
        factory.refuse()


def deed_of(proxy: Any, what: str) -> Deed:
    """What an owner holds.

    Args:
        proxy: The owner.
        what: What is to be done with it, for the message.

    Raises:
        ReferenceNotOwnedError: It is no owner, or owns nothing in this process.
        ReferenceInvalidError: It was moved.
    """
    if not issubclass(type(proxy), OwnedProxy):
        raise ReferenceNotOwnedError(
            f"only an OwnedProxy can be {what}, not a {type(proxy).__name__}",
            hint="into_owned(proxy) makes an owner of a store's proxy",
        )
    require_valid(proxy)
    deed: Deed = _get_stake(proxy)
    if not deed.claim.is_held:
        raise ReferenceNotOwnedError(
            f"{_factory(proxy)} is not owned by this process",
            hint="a forked child owns nothing of its parent's: let the parent borrow or clone",
        )
    return deed


def require_store_factory(factory: Any) -> StoreFactory[Any]:
    """The factory, if a store made it.

    Raises:
        TypeError: It did not.
    """
    if not isinstance(factory, StoreFactory):
        raise TypeError(
            f"an owner is of an object in a store, so it takes a StoreFactory, "
            f"not {type(factory).__name__}"
        )
    return factory


def factory_of(proxy: Any) -> StoreFactory[Any]:
    """The factory of a store's proxy.

    Raises:
        TypeError: No store made it.
    """
    return require_store_factory(get_factory(proxy))
