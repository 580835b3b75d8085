"""Owners, and that their objects go with them."""

from __future__ import annotations

import asyncio
import gc
import pickle
from typing import Any

import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane import (
    OwnedProxy,
    Proxy,
    RefMutProxy,
    RefProxy,
    borrow,
    clone,
    drop,
    get_key,
    into_owned,
    is_resolved,
    mut_borrow,
)
from proxyplane.exceptions import (
    MutableBorrowError,
    NonProxiableTypeError,
    ProxyResolveMissingKeyError,
    ReferenceInvalidError,
)
from support.owners import gone, unresolved


class TestOwner:
    def test_is_a_proxy(self, store: pp.sync.Store) -> None:
        """An owner does what its target does, and is known as what it is."""
        owner = store.owned_proxy([1, 2])
        assert isinstance(owner, Proxy)
        assert isinstance(owner, OwnedProxy)
        assert isinstance(owner, list)
        assert [1, 2, 3] == owner + [3]
        assert not callable(owner)
        assert "OwnedProxy[list]" == type(owner).__name__

    def test_in_place(self, store: pp.sync.Store) -> None:
        """What is changed in place stays an owner, also where the type changes."""
        owner = store.owned_proxy(3)
        key = get_key(owner)
        owner += 0.5
        assert "OwnedProxy[float]" == type(owner).__name__
        assert (3.5, key) == (owner, get_key(owner))

    @pytest.mark.usefixtures("lazy")
    def test_repr(self, store: pp.sync.Store) -> None:
        """A repr fetches nothing, and names the kind."""
        owner = unresolved(store, [1, 2])
        assert repr(owner).startswith("<OwnedProxy[list] ")
        assert not is_resolved(owner)
        ref = borrow(owner)
        assert repr(ref).startswith("<RefProxy[list] ")
        pickle.dumps(ref)
        assert repr(ref).startswith("<RefProxy of object ")
        assert "pickled" in repr(ref)

    def test_gone_with_its_owner(self, store: pp.sync.Store) -> None:
        """The object is evicted when its owner is."""
        owner = store.owned_proxy("value")
        key = get_key(owner)
        assert store.exists(key)
        del owner
        gone(store, key)

    def test_gone_in_a_cycle(self, store: pp.sync.Store) -> None:
        """Also when the collector finds owner and borrow together, and nothing is printed."""
        owner = store.owned_proxy([1])
        key = get_key(owner)
        holder: list[Any] = [owner, borrow(owner), owner]
        holder.append(holder)
        del owner, holder
        gc.collect()
        gone(store, key)

    def test_collected_anywhere(self, file_store: pp.sync.Store) -> None:
        """Also when that happens while this thread holds the locks that the library has."""
        from proxyplane import _stakes, _stores
        from proxyplane._runtime import flights

        holder: list[Any] = [file_store.owned_proxy([1]), file_store.owned_proxy([2])]
        holder.append(mut_borrow(holder[0]))
        holder.append(holder)
        keys = [get_key(one) for one in holder[:2]]
        del holder
        with flights._process.lock, _stores._process.lock, _stakes.lock():
            gc.collect()
        for key in keys:
            gone(file_store, key)

    def test_gone_after_an_exception(self, store: pp.sync.Store) -> None:
        """Also when an exception ends the function that had it."""
        keys = []

        def fails() -> None:
            owner = store.owned_proxy([1])
            keys.append(get_key(owner))
            raise LookupError

        with pytest.raises(LookupError):
            fails()
        gc.collect()
        gone(store, keys[0])

    def test_store_is_closed(self, tmp_path: Any) -> None:
        """The object goes after its store was closed, and the name of the store stays free."""
        url = f"file://{tmp_path / 'objects'}"
        with pp.sync.Store("closed", url) as store:
            owner = store.owned_proxy([1])
            key = get_key(owner)
        del owner
        with pp.sync.Store("looks", url) as looks:
            gone(looks, key)
        with pp.sync.Store("closed", f"file://{tmp_path / 'others'}"):
            pass

    def test_many(self, store: pp.sync.Store) -> None:
        """Many owners die at once."""
        owners = [store.owned_proxy(i) for i in range(300)]
        keys = [get_key(one) for one in owners]
        kept = owners[7]
        owners.clear()
        for key in keys[:7] + keys[8:]:
            gone(store, key)
        assert kept == 7
        assert store.exists(keys[7])

    def test_from_a_factory(self, store: pp.sync.Store) -> None:
        """An owner is made of a store's factory, resolved if it is given the target."""
        proxy = store.proxy("value")
        owner = OwnedProxy(pp.get_factory(proxy), target="value")
        assert is_resolved(owner)
        del owner
        gone(store, get_key(proxy))
        with pytest.raises(TypeError, match="StoreFactory"):
            OwnedProxy(lambda: 3)

    def test_of_nothing(self, store: pp.sync.Store) -> None:
        """What cannot be behind a proxy has no owner."""
        with pytest.raises(NonProxiableTypeError):
            store.owned_proxy(None)
        assert store.owned_proxy(None, skip_nonproxiable=True) is None

    @pytest.mark.parametrize("cls", [RefProxy, RefMutProxy])
    def test_borrows_are_not_made_by_hand(self, cls: Any) -> None:
        """The types of borrows are for checks and annotations only."""
        with pytest.raises(TypeError, match="borrow"):
            cls(lambda: 3)


class TestIntoOwned:
    @pytest.mark.usefixtures("lazy")
    @pytest.mark.parametrize("populate", [True, False])
    def test_takes_the_target_along(self, store: pp.sync.Store, populate: bool) -> None:
        """An owner has the target that the proxy has, and fetches nothing."""
        resolved = into_owned(store.proxy([1]), populate_target=populate)
        assert populate == is_resolved(resolved)
        proxy = store.proxy([1], populate_target=False)
        owner = into_owned(proxy, populate_target=populate)
        assert not is_resolved(proxy)
        assert not is_resolved(owner)
        assert [1] == owner

    def test_refuses(self, store: pp.sync.Store) -> None:
        """References, and proxies that no store made, cannot become owners."""
        owner = store.owned_proxy([1])
        for reference in (owner, borrow(owner)):
            with pytest.raises(ValueError, match="plain proxy"):
                into_owned(reference)
        with pytest.raises(TypeError, match="StoreFactory"):
            into_owned(Proxy(list))

    def test_of_a_claim(self, store: pp.sync.Store) -> None:
        """A proxy that evicts does so no more: that is for its owner to do."""
        proxy = store.proxy([1], evict=True)
        owner = into_owned(proxy)
        assert [1] == proxy
        assert [1] == owner
        assert store.exists(get_key(owner))


class TestClone:
    @pytest.mark.usefixtures("lazy")
    def test_copies_in_the_store(self, store: pp.sync.Store) -> None:
        """A clone is an object of its own, and neither side is fetched for it."""
        owner = unresolved(store, [1])
        cloned = clone(owner)
        assert isinstance(cloned, OwnedProxy)
        assert get_key(owner) != get_key(cloned)
        assert not is_resolved(owner)
        assert not is_resolved(cloned)
        del owner
        assert [1] == cloned

    def test_copies_the_target(self, store: pp.sync.Store) -> None:
        """The clone of a resolved owner has a deep copy of its target."""
        owner = store.owned_proxy([[1]])
        cloned = clone(owner)
        assert is_resolved(cloned)
        cloned[0].append(2)
        assert ([[1]], [[1, 2]]) == (owner, cloned)

    def test_lent(self, store: pp.sync.Store) -> None:
        """What has readers can be cloned; what has a writer cannot."""
        owner = store.owned_proxy([1])
        ref = borrow(owner)
        assert [1] == clone(owner)
        del ref
        writer = mut_borrow(owner)
        with pytest.raises(MutableBorrowError, match="cloned"):
            clone(owner)
        del writer

    def test_missing(self, store: pp.sync.Store) -> None:
        """What was evicted cannot be cloned."""
        owner = store.owned_proxy([1])
        store.evict(get_key(owner))
        with pytest.raises(ProxyResolveMissingKeyError):
            clone(owner)


class TestDrop:
    def test_evicts_now(self, store: pp.sync.Store) -> None:
        """The object is gone when `drop` returns, and the owner is spent."""
        owner = store.owned_proxy([1])
        key = get_key(owner)
        drop(owner)
        assert not store.exists(key)
        with pytest.raises(ReferenceInvalidError, match="dropped"):
            len(owner)
        with pytest.raises(ReferenceInvalidError):
            drop(owner)

    async def test_medium_fails(self, file_store: pp.sync.Store, monkeypatch: Any) -> None:
        """What cannot be evicted now is evicted later."""
        owner = await file_store.asynchronous.owned_proxy([1])
        key = get_key(owner)

        async def fails(*args: Any) -> bool:
            raise OSError("not now")

        with monkeypatch.context() as patch:
            patch.setattr(file_store.connector, "evict", fails)
            with pytest.raises(OSError):
                await pp.adrop(owner)
        await asyncio.to_thread(gone, file_store, key)
