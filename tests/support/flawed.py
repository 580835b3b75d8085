"""Connectors with one flaw each, and the tests of the suite that must notice it.

Each is a FileConnector in all other respects, so that nothing but the flaw makes a test fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from urllib.parse import quote

from proxyplane.abc import Connector
from proxyplane.config import register_connector
from proxyplane.connectors.file import FileConnector
from proxyplane.exceptions import ConnectorClosedError, KeyExistsError, ObjectLostError

NOTICED_BY: dict[type[Connector], tuple[str, ...]] = {}


def noticed_by(*tests):
    def note(cls):
        cls.scheme = cls.__name__.lower()
        register_connector(cls.scheme, cls)
        NOTICED_BY[cls] = tests
        return cls

    return note


@noticed_by()
class Sound(FileConnector):
    """Has no flaw."""


@noticed_by("test_frames_come_back_joined", "test_batches_of_all_sizes")
class LosesAByte(FileConnector):
    async def get(self, key, *, size=None):
        found = await super().get(key)
        return None if found is None else bytes(found)[:-1]


@noticed_by("test_producer_is_out_of_sight", "test_second_connector_reaches_the_objects")
class JoinsLate(FileConnector):
    """Keeps the frames, and stores them when somebody asks."""

    def __init__(self, directory=None):
        super().__init__(directory)
        self.late = {}

    async def put(self, frames, *, key=None):
        name = self._keys.new() if key is None else key
        self.late[name] = frames
        return name

    async def get(self, key, *, size=None):
        if key in self.late:
            await super().put(self.late.pop(key), key=key)
        return await super().get(key)


@noticed_by("test_chosen_keys_are_write_once", "test_one_of_many_puts_wins")
class Overwrites(FileConnector):
    async def put(self, frames, *, key=None):
        if key is not None:
            await super().evict(key)
        return await super().put(frames, key=key)


@noticed_by("test_readers_are_out_of_sight")
class SharesMemoryWithReaders(FileConnector):
    shared = {}

    async def get(self, key, *, size=None):
        if key not in self.shared and (found := await super().get(key)) is not None:
            self.shared[key] = bytearray(found)
        return self.shared.get(key)


@noticed_by("test_a_missing_key_holds_nothing", "test_evict_removes", "test_batches_with_gaps")
class AlwaysEvicts(FileConnector):
    async def evict(self, key):
        await super().evict(key)
        return True


@noticed_by("test_one_of_many_evicts_wins")
class LooksBeforeItEvicts(FileConnector):
    async def evict(self, key):
        there = await self.exists(key)
        await asyncio.sleep(0)
        await super().evict(key)
        return there


@noticed_by("test_a_missing_key_holds_nothing", "test_what_others_removed_is_gone")
class RaisesKeyError(FileConnector):
    async def get(self, key, *, size=None):
        found = await super().get(key)
        if found is None:
            raise KeyError(key)
        return found


@noticed_by("test_a_broken_medium_is_a_connector_error")
class LeaksForeignErrors(FileConnector):
    async def exists(self, key):
        try:
            return await super().exists(key)
        except ConnectorClosedError:
            raise
        except Exception as error:
            raise OSError("as the driver said it") from error


@noticed_by("test_size_is_only_a_hint")
class TrustsTheHint(FileConnector):
    async def get(self, key, *, size=None):
        found = await super().get(key)
        return found if found is None else bytes(found)[:size]


@noticed_by("test_get_reads_what_others_wrote", "test_second_connector_reaches_the_objects")
class KnowsOnlyItsOwn(FileConnector):
    async def exists(self, key):
        return await super().exists(key) and (self._keys.is_mine(key) or key in self._chosen)


@noticed_by("test_awkward_keys")
class IgnoresCase(FileConnector):
    def _path(self, key):
        return super()._path(key.casefold())

    def _put_sync(self, bodies, key, check):
        return super()._put_sync(bodies, key and key.casefold(), check)


@noticed_by("test_made_keys_are_unique", "test_a_forked_child_uses_the_connector")
class Counts(FileConnector):
    numbers = itertools.count()

    def __init__(self, directory=None):
        super().__init__(directory)
        self.numbers = itertools.count()

    async def put(self, frames, *, key=None):
        return await super().put(frames, key=key or f"{next(self.numbers)}")


@noticed_by("test_batches_keep_their_order")
class SortsBatches(FileConnector):
    async def get_batch(self, keys, *, sizes=None):
        return await super().get_batch(sorted(keys))


@noticed_by("test_a_bad_batch_stores_nothing", "test_cancelled_put_batch")
class StoresHalfABatch(FileConnector):
    async def put_batch(self, batch):
        keys = []
        for frames in batch:
            await asyncio.sleep(0)
            keys.append(await self.put(frames))
        return keys


@noticed_by("test_cancelled_put", "test_readers_see_all_or_nothing")
class WritesInPlace(FileConnector):
    async def put(self, frames, *, key=None):
        name = await super().put(frames[:1], key=key)
        await asyncio.sleep(0)
        with open(self._path(name), "ab") as file:
            file.writelines(frames[1:])
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return name


@noticed_by("test_cancelled_get")
class MixesUpReplies(FileConnector):
    """A cancelled caller's reply stays in the line, and goes to the next."""

    def __init__(self, directory=None):
        super().__init__(directory)
        self.replies = []

    async def get(self, key, *, size=None):
        self.replies.append(await super().get(key))
        await asyncio.sleep(0)
        return self.replies.pop(0)


@noticed_by("test_one_loop_after_another", "test_two_loops_in_turn", "test_twenty_threads")
class BelongsToOneLoop(FileConnector):
    loop = None

    async def get(self, key, *, size=None):
        self.loop = self.loop or asyncio.get_running_loop()
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError("attached to a different loop")
        return await super().get(key)


@noticed_by("test_a_forked_child_uses_the_connector")
class BelongsToOneProcess(FileConnector):
    def __init__(self, directory=None):
        super().__init__(directory)
        self.pid = os.getpid()

    async def get(self, key, *, size=None):
        return await super().get(key) if self.pid == os.getpid() else None


@noticed_by("test_a_forked_child_clears_only_its_own")
class ClearsForItsParent(FileConnector):
    def after_fork_in_child(self):
        pass

    def _clear_mine(self):
        for name in os.listdir(self.directory):
            with contextlib.suppress(OSError):
                os.unlink(f"{self.directory}/{name}")


@noticed_by("test_close_keeps_the_objects")
class ClearsOnClose(FileConnector):
    async def aclose(self, *, clear=False):
        await super().aclose(clear=True)


@noticed_by("test_clear_evicts_what_it_put")
class KeepsWhatItShouldClear(FileConnector):
    async def aclose(self, *, clear=False):
        await super().aclose()


@noticed_by("test_clear_evicts_what_it_put")
class ClearsWhatOthersPut(FileConnector):
    def _clear_mine(self):
        for name in os.listdir(self.directory):
            with contextlib.suppress(OSError):
                os.unlink(f"{self.directory}/{name}")


@noticed_by("test_use_after_close", "test_two_loops_in_turn")
class NeverCloses(FileConnector):
    async def aclose(self, *, clear=False):
        pass


@noticed_by("test_url_round_trip", "test_second_connector_reaches_the_objects")
class QuotesTwice(FileConnector):
    @property
    def url(self):
        return f"{self.scheme}://{quote(quote(self.directory + ' '))}"


@noticed_by("test_url_fits_a_store")
class TellsItsPassword(FileConnector):
    @property
    def url(self):
        return super().url.replace("://", "://me:secret@localhost")

    @classmethod
    def from_url(cls, url):
        return super().from_url(url.replace("me:secret@", ""))


@noticed_by("test_shortcut_does_what_the_coroutines_do")
class ForgetsToAnswerInTheShortcut(FileConnector):
    def evict_sync(self, key):
        super().evict_sync(key)

    async def evict(self, key):
        return self._evict_sync(key)


@noticed_by("test_any_sequence_of_operations")
class BuriesWhatABatchEvicted(FileConnector):
    """Only a certain order of operations shows it."""

    buried = set()

    async def evict_batch(self, keys):
        there = await super().evict_batch(keys)
        self.buried.update(key for key in keys if " " in key)
        return there

    async def get(self, key, *, size=None):
        return None if key in self.buried else await super().get(key)


@noticed_by("test_set_is_done_once")
class SetsTwice(FileConnector):
    async def set(self, key, frames):
        try:
            await super().set(key, frames)
        except KeyExistsError:
            await self.evict(key)
            await self.put(frames, key=key)


@noticed_by("test_wait_ends_when_the_object_is_there", "test_wait_ends_in_time")
class WakesTooEarly(FileConnector):
    async def wait(self, key, timeout=None):
        pass


@noticed_by("test_an_unknown_key_is_lost")
class WaitsForTheUnknown(FileConnector):
    async def wait(self, key, timeout=None):
        try:
            await super().wait(key, timeout)
        except ObjectLostError:
            raise TimeoutError from None
