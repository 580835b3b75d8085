"""Many readers or one writer, and what a writer stores."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
from concurrent.futures import Future
from typing import Any

import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane import (
    borrow,
    clone,
    drop,
    get_key,
    is_resolved,
    mut_borrow,
    scopes,
    update,
)
from proxyplane.exceptions import (
    MutableBorrowError,
    ReferenceInvalidError,
    ReferenceNotOwnedError,
    SerializationError,
    StoreFullError,
)
from support.owners import LONG, gone, unresolved


class TestBorrow:
    @pytest.mark.usefixtures("lazy")
    @pytest.mark.parametrize("lend", [borrow, mut_borrow])
    def test_fetches_nothing(self, store: pp.sync.Store, lend: Any) -> None:
        """To borrow resolves neither side."""
        owner = unresolved(store, "value")
        ref = lend(owner)
        assert not is_resolved(owner)
        assert not is_resolved(ref)
        assert ref == "value"
        assert isinstance(ref, str)

    @pytest.mark.parametrize("populate", [True, False])
    @pytest.mark.parametrize("lend", [borrow, mut_borrow])
    def test_populate(self, store: pp.sync.Store, lend: Any, populate: bool) -> None:
        """A borrow of a resolved owner is resolved, unless it is not to be."""
        owner = store.owned_proxy([1])
        ref = lend(owner, populate_target=populate)
        assert populate == is_resolved(ref)
        assert [1] == ref

    def test_keeps_the_owner(self, store: pp.sync.Store) -> None:
        """A borrow keeps its object."""
        owner = unresolved(store, [1])
        key = get_key(owner)
        ref = borrow(owner)
        del owner
        gc.collect()
        assert [1] == ref
        assert store.exists(key)
        del ref
        gone(store, key)

    def test_many_readers_or_one_writer(self, store: pp.sync.Store) -> None:
        """There are many readers, or one writer; and after them, others."""
        owner = store.owned_proxy([1])
        refs = [borrow(owner) for _ in range(3)]
        with pytest.raises(MutableBorrowError, match="3 readers"):
            mut_borrow(owner)
        refs.clear()
        writer = mut_borrow(owner)
        for lend in (borrow, mut_borrow):
            with pytest.raises(MutableBorrowError, match="a writer"):
                lend(owner)
        del writer
        assert [1] == borrow(owner)

    def test_only_owners_lend(self, store: pp.sync.Store) -> None:
        """Neither a borrow nor a plain proxy can be borrowed from, cloned or dropped."""
        owner = store.owned_proxy([1])
        for other in (borrow(owner), store.proxy([2])):
            for function in (borrow, mut_borrow, clone, update, drop):
                with pytest.raises(ReferenceNotOwnedError):
                    function(other)

    def test_a_lent_owner_is_not_deleted(self, store: pp.sync.Store) -> None:
        """What would leave borrows without their object is an error, which is a RuntimeError."""
        owner = store.owned_proxy([1])
        ref = borrow(owner)
        with pytest.raises(RuntimeError, match="lent to a reader"):
            owner.__del__()
        for function in (drop, update, pickle.dumps):
            with pytest.raises(MutableBorrowError):
                function(owner)
        assert [1] == ref
        assert store.exists(get_key(owner))

    def test_copies_are_refused(self, store: pp.sync.Store) -> None:
        """Neither owners nor borrows are copied."""
        owner, other = store.owned_proxy([1]), store.owned_proxy([2])
        for one in (owner, borrow(owner), mut_borrow(other)):
            for copying in (copy.copy, copy.deepcopy):
                with pytest.raises(NotImplementedError, match="clone"):
                    copying(one)

    def test_threads(self, store: pp.sync.Store) -> None:
        """Of fifty threads that want to write at once one does, or fifty read."""
        owner = store.owned_proxy([1])
        start = threading.Barrier(50)
        writing, most, errors = 0, 0, []

        def work() -> None:
            nonlocal writing, most
            start.wait()
            for i in range(40):
                try:
                    if i % 4:
                        ref: Any = borrow(owner)
                        assert not writing
                    else:
                        ref = mut_borrow(owner)
                        writing += 1
                        most = max(most, writing)
                        writing -= 1
                    del ref
                except MutableBorrowError:
                    pass
                except BaseException as error:
                    errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [] == errors
        assert most <= 1
        assert [1] == mut_borrow(owner)


class TestUpdate:
    def test_by_the_owner(self, store: pp.sync.Store) -> None:
        """What an owner stores is what the key gives, and what borrows read."""
        owner = store.owned_proxy([1])
        owner.append(2)
        update(owner)
        assert [1, 2] == store.get(get_key(owner))
        assert [1, 2] == borrow(owner, populate_target=False)

    @pytest.mark.usefixtures("lazy")
    def test_unresolved(self, store: pp.sync.Store) -> None:
        """Who has no target has nothing to store."""
        owner = unresolved(store, [1])
        update(owner)
        assert not is_resolved(owner)
        assert [1] == owner

    def test_by_a_writer(self, store: pp.sync.Store) -> None:
        """What a writer stores its owner reads, once the borrow is over."""
        owner = store.owned_proxy([1])
        writer = mut_borrow(owner, populate_target=False)
        writer.append(2)
        assert [1] == owner
        update(writer)
        writer.append(3)
        update(writer)
        del writer
        assert [1, 2, 3] == owner
        assert [1, 2, 3] == borrow(owner, populate_target=False)

    def test_a_writer_has_an_object_of_its_own(self, store: pp.sync.Store) -> None:
        """What a writer changes and does not store, nobody sees."""
        owner = unresolved(store, [1])
        assert [1] == store.get(get_key(owner))
        writer = mut_borrow(owner)
        writer.append(2)
        del writer
        assert [1] == store.get(get_key(owner))
        assert [1] == owner

    def test_type_and_size(self, store: pp.sync.Store) -> None:
        """The hints that borrows carry are those of what was stored."""
        owner = store.owned_proxy(3)
        owner += 0.5
        update(owner)
        ref = pickle.loads(pickle.dumps(borrow(owner, populate_target=False)))
        assert isinstance(ref, float)
        assert hash(3.5) == hash(ref)
        assert 3.5 == ref

    def test_again_and_again(self, store: pp.sync.Store) -> None:
        """A reader of another cache is never served what was before an update."""
        owner = store.owned_proxy([0])
        for i in range(1, 6):
            owner.append(i)
            update(owner)
            ref = pickle.loads(pickle.dumps(borrow(owner, populate_target=False)))
            assert [*range(i + 1)] == ref

    def test_readers_may_not(self, store: pp.sync.Store) -> None:
        """A reader stores nothing, and neither does an owner that lends."""
        owner = store.owned_proxy([1])
        ref = borrow(owner)
        with pytest.raises(ReferenceNotOwnedError, match="only read"):
            update(ref)
        with pytest.raises(MutableBorrowError, match="updated"):
            update(owner)
        del ref
        writer = mut_borrow(owner)
        with pytest.raises(MutableBorrowError, match="updated"):
            update(owner)
        del writer

    def test_what_cannot_be_encoded(self, store: pp.sync.Store) -> None:
        """A target that cannot be stored leaves the store as it was."""
        owner = store.owned_proxy([1])
        owner.append(threading.Lock())
        with pytest.raises(SerializationError):
            update(owner)
        assert [1] == store.get(get_key(owner))
        owner.pop()
        update(owner)
        assert [1] == store.get(get_key(owner))

    async def test_no_room(self, file_store: pp.sync.Store, monkeypatch: Any) -> None:
        """An update that fails leaves the object as it was, and can be repeated."""
        owner = await file_store.asynchronous.owned_proxy([1])
        owner.append(2)

        async def full(*args: Any, **kwargs: Any) -> str:
            raise StoreFullError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(file_store.connector, "swap", full)
            with pytest.raises(StoreFullError):
                await pp.aupdate(owner)
        assert [1, 2] == owner
        assert [1] == await file_store.asynchronous.get(get_key(owner))
        await pp.aupdate(owner)
        assert [1, 2] == await borrow(owner, populate_target=False)


class TestScopes:
    def test_borrows_end(self, store: pp.sync.Store) -> None:
        """Borrows that are marked are over, once and for all."""
        one, other = store.owned_proxy("one"), store.owned_proxy("other")
        refs = borrow(one), borrow(one), mut_borrow(other)
        scopes.mark_refs_out_of_scope(*refs, refs[0])
        for ref in refs:
            with pytest.raises(ReferenceInvalidError, match="over"):
                isinstance(ref, str)
        assert "one" == mut_borrow(one)
        assert "other" == mut_borrow(other)

    def test_no_owner_here(self, store: pp.sync.Store) -> None:
        """The end of a borrow is told where its owner is."""
        owner = store.owned_proxy([1])
        ref = borrow(owner)
        away = pickle.loads(pickle.dumps(ref))
        with pytest.raises(RuntimeError, match="another process"):
            scopes.mark_refs_out_of_scope(ref, away)
        with pytest.raises(MutableBorrowError):
            mut_borrow(owner)
        scopes.mark_refs_out_of_scope(ref)
        assert [1] == mut_borrow(owner)

    def test_submit(self, store: pp.sync.Store) -> None:
        """Borrows end with the task that got them, wherever they stand; others do not."""
        owners = [store.owned_proxy(i) for i in (1, 2, 3, 4)]
        refs = [borrow(one) for one in owners]
        future: Future[int] = Future()
        got = scopes.submit(
            lambda a, owner, *, b: future,
            args=(refs[0], owners[0]),
            kwargs={"b": refs[1]},
            register_custom_refs=[refs[2], "no proxy"],
        )
        assert got is future
        assert [1, 2, 3] == [int(one) for one in refs[:3]]
        future.set_exception(LookupError())
        for ref in refs[:3]:
            with pytest.raises(ReferenceInvalidError):
                int(ref)
        assert 4 == refs[3]

    async def test_task(self, file_store: pp.sync.Store) -> None:
        """A task of asyncio is as good, and one that is cancelled has ended."""
        owner = await file_store.asynchronous.owned_proxy([1])
        ref = borrow(owner)
        task = scopes.submit(asyncio.create_task, args=(asyncio.sleep(LONG),),
                             register_custom_refs=[ref])  # fmt: skip
        await asyncio.sleep(0)
        assert [1] == ref
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert [1] == mut_borrow(owner)


async def test_who_reads_while_it_is_updated_leaves_nothing_old_behind():
    """What a reader got just before the update took place is in no cache after it."""
    async with pp.Store("updated", pp.LocalConnector()) as store:
        owner = await store.owned_proxy([1])
        owner.append(2)
        swap = store.connector.swap

        async def read_first(key: str, *args: Any, **kwargs: Any) -> Any:
            assert await store.get(key) == [1]
            return await swap(key, *args, **kwargs)

        store.connector.swap = read_first
        await pp.aupdate(owner)
        assert await store.get(pp.get_key(owner)) == [1, 2]
