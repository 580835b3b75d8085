"""What is pickled moves."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import cloudpickle
import dill
import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane import (
    OwnedProxy,
    borrow,
    clone,
    drop,
    get_key,
    into_owned,
    mut_borrow,
    update,
)
from proxyplane.exceptions import (
    AlreadyOwnedError,
    MutableBorrowError,
    OwnershipError,
    ProxyResolveError,
    ReferenceInvalidError,
)
from support.owners import gone, unresolved


def repr_of_target(reference: Any) -> str:
    return str(reference)


class TestMoving:
    @pytest.mark.parametrize("module", [pickle, cloudpickle, dill], ids=lambda m: m.__name__)
    def test_owner(self, store: pp.sync.Store, module: Any) -> None:
        """Pickling moves an owner: what was pickled is spent, and its end evicts nothing."""
        owner = store.owned_proxy([1])
        key = get_key(owner)
        data = module.dumps(owner)
        assert len(data) < 350
        for use in (len, repr_of_target, pickle.dumps, borrow, mut_borrow, clone, update, drop):
            with pytest.raises(ReferenceInvalidError):
                use(owner)
        del owner
        again = module.loads(data)
        assert isinstance(again, OwnedProxy)
        assert [1] == again
        assert store.exists(key)
        del again
        gone(store, key)

    async def test_awaiting_what_moved(self, file_store: pp.sync.Store) -> None:
        """Who awaits what moved learns the same, and without a warning."""
        owner = await file_store.asynchronous.owned_proxy([1], populate_target=False)
        data = pickle.dumps(owner)
        for use in (pp.aresolve, pp.gather, pp.aclone, pp.aupdate, pp.adrop, pp.aevict):
            with pytest.raises(ReferenceInvalidError):
                await use(owner)
        with pytest.raises(ReferenceInvalidError):
            owner.append(1)
        with pytest.raises(ReferenceInvalidError):
            pp.resolve_async(owner)
        pp.prefetch([owner])
        assert not asyncio.isfuture(owner)
        assert [1] == await pickle.loads(data)

    @pytest.mark.parametrize("lend", [borrow, mut_borrow])
    def test_borrow(self, store: pp.sync.Store, lend: Any) -> None:
        """Pickling moves a borrow; the owner lends until what was pickled is gone."""
        owner = store.owned_proxy([1])
        ref = lend(owner)
        data = pickle.dumps(ref)
        for use in (len, repr_of_target, pickle.dumps):
            with pytest.raises(ReferenceInvalidError):
                use(ref)
        again = pickle.loads(data)
        assert [1] == again
        del again
        with pytest.raises(MutableBorrowError):
            mut_borrow(owner)
        del ref
        assert [1] == mut_borrow(owner)

    def test_is_one_of_the_errors(self) -> None:
        """What cannot be used any more is an error of proxies as well as of ownership."""
        assert issubclass(ReferenceInvalidError, ProxyResolveError)
        assert issubclass(ReferenceInvalidError, OwnershipError)

    def test_one_owner(self, store: pp.sync.Store) -> None:
        """An object has one owner in a process, however one tries."""
        owner = store.owned_proxy([1])
        data = pickle.dumps(owner)
        again = pickle.loads(data)
        with pytest.raises(AlreadyOwnedError):
            pickle.loads(data)
        with pytest.raises(AlreadyOwnedError):
            into_owned(store.proxy_from_key(get_key(again)))
        assert [1] == again

    def test_threads(self, store: pp.sync.Store) -> None:
        """Of many threads that pickle an owner one moves it."""
        owner = store.owned_proxy([1])
        moved, start = [], threading.Barrier(20)

        def work() -> None:
            start.wait()
            try:
                moved.append(pickle.dumps(owner))
            except ReferenceInvalidError:
                pass

        threads = [threading.Thread(target=work) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [1] == [pickle.loads(data) for data in moved][0]
        assert 1 == len(moved)

    def test_moves_while_it_resolves(self, store: pp.sync.Store) -> None:
        """What arrives for a reference that moved meanwhile does not revive it."""
        for _ in range(50):
            ref = borrow(unresolved(store, [1]))
            pp.resolve_async(ref)
            data = pickle.dumps(ref)
            with pytest.raises(ReferenceInvalidError):
                len(ref)
            assert [1] == pickle.loads(data)
