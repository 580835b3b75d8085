"""Objects that come later: their keys, their records, and the transaction that sets one.

A key is registered by a record, an empty string beside it. There is always either a record or an
object: to set the object takes the record away in the same transaction. So a key with neither was
evicted, or its lease ended, or the server lost its data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from proxyplane.connectors.redis.pool import Pool
from proxyplane.connectors.redis.resp import Piece, Reply, command
from proxyplane.connectors.redis.transfer import MULTI, Body

# What is published to the channel of a key.
WAS_SET = b"set"
WAS_EVICTED = b"evicted"
WAS_TRIED = b"tried"  # to set it, without knowing at that moment whether it is set

_RENAME: Final = (
    b"*3\r\n$8\r\nRENAMENX\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n*2\r\n$6\r\nEXISTS\r\n$%d\r\n%b\r\n"
)
_PUBLISH: Final = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
_EXEC: Final = b"*1\r\n$4\r\nEXEC\r\n"


def for_later(key: str) -> str:
    """Marks a new key as one whose object comes later.

    The counter in a key never gets as far as its first digit, which is free for that. Evicting
    such a key takes more commands; nothing else depends on the mark.
    """
    return f"{key[:16]}f{key[17:]}"


def comes_later(key: str) -> bool:
    """Whether a key is marked so."""
    return len(key) == 32 and key[16] == "f"


def record_name(name: bytes) -> bytes:
    """The name of the record that registers a key whose object comes later.

    No key of a user's has this name in any namespace, and in a cluster it has the slot of `name`,
    without which no transaction could span the two.
    """
    return b"{%b}later" % name


def px(lease: int | None) -> tuple[str | int, ...]:
    """The words of SET for a lease of so many milliseconds; none for no lease."""
    return () if lease is None else ("PX", lease)


Setting = Literal["set", "taken", "gone"]
"""What comes of setting: nothing is changed unless it was set, although a message went out."""

SETTING_REPLIES: Final = 6


def setting(name: bytes, body: Body, *, cluster: bool = False) -> list[Piece]:
    """Stores the object of a registered key and wakes its waiters, in one transaction.

    The object is written over the record, if there is one, and the record renamed to the key. So
    one of two setters finds a record and the other none, and it takes one trip, where to watch the
    record first would take two.

    In a cluster the message goes behind the transaction, and says less. Within it, it would keep
    the node from looking whether it has the keys: Valkey 9.1 executes a transaction with a PUBLISH
    though they are at the node that gets their slot, and finds them missing.
    """
    record = record_name(name)
    rename = _RENAME % (len(record), record, *(len(name), name) * 2)
    what = WAS_TRIED if cluster else WAS_SET
    publish = _PUBLISH % (len(name), name, len(what), what)
    after = rename + (_EXEC + publish if cluster else publish + _EXEC)
    # The last word goes with the rest: a caller who is cancelled while sending never sends it.
    # The lease of the record stays, and becomes that of the object.
    return [MULTI, *body.set_command(record, b"XX", b"KEEPTTL"), after]


def what_was_set(replies: Sequence[Reply]) -> Setting:
    """What came of it, by the replies to `setting`.

    Returns:
        ``"taken"`` if the key has an object, ``"gone"`` if it has neither object nor record.
    """
    (results,) = (reply for reply in replies if isinstance(reply, list))
    _, renamed, there = results[:3]
    if renamed == 1:
        return "set"
    return "taken" if there else "gone"


async def look_up(pool: Pool, names: Sequence[bytes]) -> list[tuple[bool, bool]]:
    """For each registered key whether its object is there, and whether its record is.

    Usually no object is there, and one command says so: as long as there is a record there is no
    object. Otherwise the record is asked for first: when it is found missing, the object is there
    or gone for good.
    """
    records = [record_name(name) for name in names]
    if len(names) > 1 and await pool.request(command("EXISTS", *records)) == len(names):
        return [(False, True)] * len(names)
    both = [command("EXISTS", one) for pair in zip(records, names, strict=True) for one in pair]
    found = [bool(reply) for reply in await pool.requests(b"".join(both), len(both))]
    return list(zip(found[1::2], found[::2], strict=True))
