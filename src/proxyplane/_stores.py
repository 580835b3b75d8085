"""The stores of this process, by name and by reference.

A proxy that arrives from elsewhere names its store by a reference: connector URL and store name.
It gets the very store it names, made here if need be. Names are for people: one name stands for
one configuration, and a store of the same name with another is refused a place.

Stores that were made here for what arrived are *guests*. Nobody is to close them, and a process
that lives long may be sent proxies of ever new stores: so only so many are kept. One that is let go
is not closed, for proxies and calls may have it still. When nobody has, it is collected, and its
connections with it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from proxyplane._runtime.fork import on_fork
from proxyplane.config import StoreConfig
from proxyplane.exceptions import StoreExistsError, StoreNotFoundError

if TYPE_CHECKING:
    from proxyplane._runtime.source import Ahead
    from proxyplane.config import OnBlocking


_MOST_GUESTS: Final = 64
# What is in a process's memory lives for as long as somebody refers to it.
_IN_MEMORY: Final = "local://"


class ObjectStore(Protocol):
    """What a store is to the factories of its proxies."""

    name: str
    reference: str
    on_blocking: OnBlocking | None

    @property
    def closed(self) -> bool: ...

    @property
    def claims_here(self) -> bool: ...

    @property
    def has_shortcut(self) -> bool: ...

    def cached(self, key: str) -> Any: ...

    def resolving(
        self,
        key: str,
        size: int | None,
        evict: bool,
        deferred: bool,
        missing: Exception,
        strict: bool = False,
        ahead: Ahead | None = None,
    ) -> Any: ...

    def reading_ahead(self, key: str, ahead: Ahead | None, missing: Exception) -> Any: ...

    def evicting(self, key: str) -> Any: ...


class _Process:
    def __init__(self) -> None:
        self.after_fork_in_child()
        self.by_name: dict[str, ObjectStore] = {}
        self.by_reference: dict[str, ObjectStore] = {}
        # Open stores whose place an equal one took, by reference: they have it again when that
        # one is closed, as when one ``with`` block stands inside of another.
        self.replaced: dict[str, list[ObjectStore]] = {}
        self.guests: OrderedDict[str, ObjectStore] = OrderedDict()  # the oldest first
        on_fork(self)

    def after_fork_in_child(self) -> None:
        # The stores stay usable in the child: their connectors open connections of their own.
        self.lock = threading.RLock()


_process = _Process()


def _not_imported(config: StoreConfig) -> Any:
    raise RuntimeError("proxyplane.store must be imported before a store is made")


# How to make a store; set by the module of `Store`, which stands above this one.
make_store: Callable[[StoreConfig], Any] = _not_imported


def register(store: ObjectStore, *, exist_ok: bool = False) -> None:
    """Gives `store` its name, and makes it the one that arriving proxies find."""
    with _process.lock:
        taken = _process.by_name.get(store.name)
        if taken is not None and taken is not store and not taken.closed:
            if taken.reference != store.reference:
                refuse_namesake(taken, store.reference)
            if not exist_ok:
                raise StoreExistsError(
                    f"a store named {store.name!r} is registered in this process already",
                    hint=f"get it with get_store({store.name!r}), or pass exist_ok=True",
                )
            _process.replaced.setdefault(taken.reference, []).append(taken)
        _process.by_name[store.name] = store
        _process.by_reference[store.reference] = store
        _process.guests.pop(store.reference, None)  # the user's, from now on


def refuse_namesake(taken: ObjectStore, reference: str) -> NoReturn:
    """Raises because `taken` has the name, and is not the store that `reference` names."""
    raise StoreExistsError(
        f"the name {taken.name!r} is taken, in this process, by a store at "
        f"{taken.reference}, which is not {reference}",
        hint="choose another name, or close or unregister that store first",
    )


def unregister(name: str, store: ObjectStore | None = None) -> None:
    """Frees `name`; with `store`, only if that very store has it."""
    with _process.lock:
        registered = _process.by_name.get(name)
        if registered is None:
            return
        replaced = _process.replaced.pop(registered.reference, [])
        others = [one for one in replaced if not (store is None or one is store or one.closed)]
        if registered is (store or registered):
            del _process.by_name[name]
            if _process.by_reference.get(registered.reference) is registered:
                del _process.by_reference[registered.reference]
                _process.guests.pop(registered.reference, None)
            if others:
                register(others.pop())
        if others:
            _process.replaced[registered.reference] = others


def find(name: str) -> Any | None:
    """The open store registered under `name`, or None."""
    store = _process.by_name.get(name)
    return None if store is None or store.closed else store


def require(name: str) -> Any:
    """The store registered under `name`.

    Raises:
        StoreNotFoundError: There is none.
    """
    store = find(name)
    if store is None:
        known = ", ".join(sorted(_process.by_name)) or "none"
        raise StoreNotFoundError(
            f"no store named {name!r} is registered in this process",
            hint=f"enter it with `async with`, or call register_store(store); registered: {known}",
        )
    return store


def find_reference(reference: str) -> Any:
    """The open store of this process that `reference` names, or None."""
    store = _process.by_reference.get(reference)
    return None if store is None or store.closed else store


def open_reference(reference: str, *, stays: bool = False) -> Any:
    """The store that `reference` names, made if this process does not have it yet.

    It takes its name too if that is free; if not, it is found by its reference alone.

    Args:
        reference: The reference.
        stays: Whether it is kept for ever; otherwise it is a guest.
    """
    store = find_reference(reference)
    if store is not None:
        return store
    with _process.lock:
        store = find_reference(reference)
        if store is None:
            store = make_store(StoreConfig.from_url(reference))
            _process.by_reference[reference] = store
            if find(store.name) is None:
                _process.by_name[store.name] = store
            if not stays and _IN_MEMORY not in reference:
                _process.guests[reference] = store
                if len(_process.guests) > _MOST_GUESTS:
                    _let_go(*_process.guests.popitem(last=False))
        return store


def _let_go(reference: str, store: ObjectStore) -> None:
    if _process.by_reference.get(reference) is store:
        del _process.by_reference[reference]
    if _process.by_name.get(store.name) is store:
        del _process.by_name[store.name]
