"""Keys that a connector makes: unique, and telling which connector instance wrote the object."""

from __future__ import annotations

import itertools
import os
import re
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Generic, NamedTuple, TypeVar

from proxyplane._runtime.fork import on_fork

V = TypeVar("V")

# After how many notes the oldest are looked at, and how many: more than came, so that what is gone
# is found however much there is.
_LOOK_AFTER: Final = 128
_LOOK_AT: Final = 256

# The writer; the mark of a future's key; a counter, which never gets further than seven digits, and
# in whose first eight a `MultiConnector` notes which of its connectors has the object.
plainly_made = re.compile(r"[0-9a-f]{16}[0f]0{8}[0-9a-f]{7}").fullmatch
_marked = re.compile(r"[0-9a-f]{16}[0f][0-9a-f]{15}").fullmatch
# The same with what only endpoints need: the size of the object, and who has it. A
# `MultiConnector` makes its note at the end.
with_place = re.compile(r"([0-9a-f]{32})-([0-9a-f]{1,15})@([a-z2-7]{16})").fullmatch


def is_made(key: str) -> bool:
    """Whether a key has the form of those that the library makes, which no name of a user's has."""
    if plainly_made(key):
        return True
    if with_place(key):
        return True
    if not _marked(key) and not with_place(key.partition("~")[0]):
        return False
    from proxyplane.connectors._multi_keys import split  # loads OpenSSL

    return split(key) is not None


class KeyMaker:
    """Makes keys of 32 hexadecimal digits: 8 random bytes of the writer, then a counter.

    With the writer in the key, an instance can later evict what it wrote without having kept a
    list, and a counter costs less than new random bytes for each object. A forked child is
    another writer.
    """

    def __init__(self) -> None:
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        self.prefix = os.urandom(8).hex()
        self._counter = itertools.count()

    def new(self) -> str:
        """A key that no other call, here or in any process, returns."""
        return f"{self.prefix}{next(self._counter):016x}"

    def is_mine(self, key: str) -> bool:
        """Whether this instance, in this process, made the key."""
        return len(key) == 32 and key.startswith(self.prefix)


class Note(NamedTuple, Generic[V]):
    """One of `ChosenKeys`.

    Attributes:
        key: The key.
        word: The word on it, in a tuple of this note alone.
    """

    key: str
    word: tuple[V]


class ChosenKeys(Generic[V]):
    """The keys of the user's that an instance put, with a word on each, for when it is cleared.

    What others evict, or what had a lease, is gone without a word to us. So that such keys are not
    kept for ever, whoever notes some looks at the oldest from time to time (`to_look_at`), and
    forgets those that are gone (`forget_gone`).

    Threads may use it together: each step is one call, which no other thread interrupts.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[V]] = OrderedDict()
        self._noted = 0

    def note(self, key: str, word: V) -> None:
        """Keeps a key, or another word on it."""
        self._kept[key] = (word,)
        self._noted += 1

    def forget(self, keys: Iterable[str]) -> None:
        """Keeps these no longer."""
        for key in keys:
            self._kept.pop(key, None)

    def change(self, key: str, word: V) -> None:
        """Has another word on a key if it is kept."""
        if key in self._kept:
            self._kept[key] = (word,)

    def clear(self) -> None:
        """Keeps none."""
        self._kept.clear()

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def items(self) -> list[tuple[str, V]]:
        """What is kept."""
        return [(note.key, note.word[0]) for note in self._notes(list(self._kept))]

    @property
    def is_due(self) -> bool:
        """Whether it is time to look."""
        return self._noted >= _LOOK_AFTER

    def to_look_at(self) -> list[Note[V]]:
        """The oldest, if it is time to see whether they are still there; mostly none."""
        if not self.is_due:
            return []
        self._noted = 0
        oldest = list(itertools.islice(self._kept, _LOOK_AT))
        for key in oldest:
            with suppress(KeyError):
                self._kept.move_to_end(key)
        return self._notes(oldest)

    def forget_gone(self, note: Note[V]) -> None:
        """Keeps a key no longer that was looked at, unless it was noted once more since."""
        if self._kept.get(note.key) is note.word:
            self._kept.pop(note.key, None)

    def _notes(self, keys: Iterable[str]) -> list[Note[V]]:
        found = ((key, self._kept.get(key)) for key in keys)
        return [Note(key, word) for key, word in found if word is not None]

    def __len__(self) -> int:
        return len(self._kept)
