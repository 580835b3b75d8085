"""What owners and borrows hold: how their object is had, and who may do what with it."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from proxyplane import _evictions
from proxyplane._runtime.fork import on_fork
from proxyplane.cache import MISSING
from proxyplane.exceptions import MutableBorrowError, ReferenceInvalidError
from proxyplane.factory import StoreFactory

T = TypeVar("T")


class ReferenceFactory(StoreFactory[T]):
    """Gets the object of an owner or of a borrow.

    Args:
        factory: Names the object.
        shared: Whether it is as it was put, so that the caches of stores may have it. What a
            writer gets is its own, and what was updated may differ from what a cache has.
    """

    __slots__ = ("shared",)

    def __init__(self, factory: StoreFactory[T], shared: bool = True) -> None:
        super().__init__(
            factory.reference,
            factory.key,
            deferred=factory.deferred,
            eager=factory.eager,
            size=factory.size,
            store=factory._store,
        )
        self.shared = shared

    @property
    def flight_key(self) -> Hashable | None:
        """What is not shared is fetched for each proxy."""
        name = self.reference, self.key
        return name if self.shared else (*name, id(self))

    def cached(self) -> Any:
        """The object from the store's cache, or MISSING."""
        return super().cached() if self.shared else MISSING

    def work(self) -> T:
        """Reads and decodes; blocks this thread."""
        return self._own(super().work())

    def decode(self, fetched: Any) -> T:
        """Makes the object."""
        return self._own(super().decode(fetched))

    def _own(self, target: T) -> T:
        if not self.shared:
            self.store._forget([self.key])
        return target


class SpentFactory(StoreFactory[T]):
    """Stands in a reference that cannot be used any more.

    Args:
        factory: What stood there before.
        why: What became of the reference.
    """

    __slots__ = ("why",)

    def __init__(self, factory: StoreFactory[T], why: str) -> None:
        # That it evicts keeps `prefetch` from it, which must not raise.
        super().__init__(factory.reference, factory.key, evict=True)
        self.why = why

    def refuse(self) -> NoReturn:
        """Raises ReferenceInvalidError."""
        raise ReferenceInvalidError(
            f"this reference to {self} cannot be used any more: {self.why}",
            hint="borrow once more from the owner, or clone it before it moves",
        )

    if not TYPE_CHECKING:
        store = property(refuse)
        flight_key = property(refuse)
        on_blocking = None

        def prepare(self) -> None:
            """Nothing to do."""

        def cached(self) -> NoReturn:
            """Raises ReferenceInvalidError, as do the others."""
            self.refuse()

        refuse_cycle = __call__ = cached

        async def acall(self) -> NoReturn:
            """Raises ReferenceInvalidError."""
            self.refuse()


# -- what owner and borrow hold ---------------------------------------------------------------


class Deed:
    """What an owner holds.

    Args:
        claim: That this process is to evict the object.

    Attributes:
        readers: Who reads.
        writer: Who writes.
    """

    __slots__ = ("claim", "readers", "writer")

    def __init__(self, claim: _evictions.Claim) -> None:
        self.claim = claim
        self.readers: set[Loan] = set()
        self.writer: Loan | None = None

    @property
    def is_lent(self) -> bool:
        """Whether there is a borrow."""
        return self.writer is not None or bool(self.readers)

    def require_alone(self, what: str) -> None:
        """Raises MutableBorrowError if there is a borrow."""
        if self.is_lent:
            readers = len(self.readers)
            to = "a writer" if self.writer else "a reader" if readers == 1 else f"{readers} readers"
            raise MutableBorrowError(
                f"{self.claim.factory} is lent to {to}, so its owner cannot {what}",
                hint="wait until the borrows are gone, or end them with "
                "proxyplane.scopes.mark_refs_out_of_scope",
            )

    def finalize(self) -> None:
        """The owner is dead."""
        self.claim.release()


class Loan:
    """What a borrow holds; in the process of its owner it keeps that alive.

    Args:
        owner: The owner, where the borrow is in its process.
        mutable: Whether the borrow may write.

    Attributes:
        changed: Whether a writer may have changed what is stored.
        updating: Whether it is at it.
    """

    __slots__ = ("changed", "mutable", "owner", "updating")

    def __init__(self, owner: Any = None, mutable: bool = False) -> None:
        self.owner = owner
        self.mutable = mutable
        self.changed = False
        self.updating = False

    def __enter__(self) -> None:
        """Lends for the time of a ``with`` block."""

    def __exit__(self, *exc_info: object) -> None:
        self.finalize()

    def finalize(self) -> None:
        """The borrow is over. For finalisers: takes no lock; does nothing the second time."""
        owner, self.owner = self.owner, None
        if owner is None:
            return
        deed: Deed = owner.__proxy_stake__
        if not self.mutable:
            deed.readers.discard(self)
            return
        if self.changed:
            owner.__proxy_forget__()
        if deed.writer is self:
            deed.writer = None


class Updating(Loan):
    """That a writer updates."""

    __slots__ = ("_stake",)

    def __init__(self, stake: Loan) -> None:
        super().__init__()
        self._stake = stake

    def finalize(self) -> None:
        """It is done."""
        self._stake.updating = False


class _Process:
    def __init__(self) -> None:
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        # Re-entrant: a finaliser of the user's, that the collector runs inside, may borrow too.
        self.lock = threading.RLock()


_process = _Process()


def lock() -> threading.RLock:
    """Held for a moment by who checks and changes what is lent. Finalisers need it not."""
    return _process.lock
