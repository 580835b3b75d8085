"""Keys that a connector makes: unique, and telling which connector instance wrote the object."""

from __future__ import annotations

import itertools
import os
import re

from proxyplane._runtime.fork import on_fork

# The writer; the mark of a future's key; a counter, which never gets further than seven digits, and
# in whose first eight a `MultiConnector` notes which of its connectors has the object.
plainly_made = re.compile(r"[0-9a-f]{16}[0f]0{8}[0-9a-f]{7}").fullmatch
_marked = re.compile(r"[0-9a-f]{16}[0f][0-9a-f]{15}").fullmatch


def is_made(key: str) -> bool:
    """Whether a key has the form of those that the library makes, which no name of a user's has."""
    if plainly_made(key):
        return True
    if not _marked(key):
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
