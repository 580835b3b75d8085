"""Keys that were chosen: what a store does with the records that stand under them.

Each of these is written once, as the *steps* that it takes: calls of the connector, of which the
reply, or the error, comes back in. Async code takes them on its loop; blocking code takes them in
its own thread, where the medium has that shortcut. So nothing is done in two ways.

Whoever replaces a record, or removes it, gets the one that was there, and nobody else does: so it
is he who retires the object of that one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast

from proxyplane._records import SMALL, Record, pack_record, read_record
from proxyplane._ttl import MOST_SECONDS
from proxyplane.abc import Buffer, Connector, Frames, SupportsNames, SupportsSync
from proxyplane.connectors._keys import KeyMaker, is_made
from proxyplane.exceptions import (
    ConnectorLostError,
    KeyExistsError,
    ObjectLostError,
    ProxyPlaneError,
    SerializationError,
)
from proxyplane.serialization import frames_size

R = TypeVar("R")

# How often a reader goes on whose object was replaced while he read it: somebody else gets on.
_ATTEMPTS: Final = 1000

# Bytes from which on a medium may take several steps to read an object; and how long such a one
# stays when it is replaced, in seconds.
_LARGE: Final = 1 << 20
_LEAST_GRACE: Final = 0.25
_MOST_GRACE: Final = 30.0
# By how much the lease of an object is longer than that of its record, in seconds.
_LONGER_SECONDS: Final = 30.0

# For a message: to ask each connector would import its driver.
NAMING = (
    "EndpointConnector",
    "FileConnector",
    "LocalConnector",
    "MultiConnector",
    "RedisConnector",
)


class Step(NamedTuple):
    """A call of the connector.

    Attributes:
        operation: Name of the method.
        args: Its arguments.
        kwargs: Its arguments.
    """

    operation: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Steps = Generator[Step, Any, R]


def step(operation: str, *args: Any, **kwargs: Any) -> Step:
    """A step."""
    return Step(operation, args, kwargs)


async def take(connector: Connector, steps: Steps[R]) -> R:
    """Takes the steps on the running loop."""
    reply: Any = None
    error: BaseException | None = None
    try:
        while True:
            try:
                one = steps.send(reply) if error is None else steps.throw(error)
            except StopIteration as end:
                result: R = end.value
                return result
            error = None
            try:
                reply = await getattr(connector, one.operation)(*one.args, **one.kwargs)
            except BaseException as raised:  # noqa: BLE001  goes to the steps
                error = raised
    finally:
        del error, reply  # an exception refers to this frame: break the cycle


def take_here(connector: Connector, steps: Steps[R]) -> R:
    """Takes the steps in this thread, by the connector's shortcut."""
    reply: Any = None
    error: BaseException | None = None
    try:
        while True:
            try:
                one = steps.send(reply) if error is None else steps.throw(error)
            except StopIteration as end:
                result: R = end.value
                return result
            error = None
            try:
                reply = getattr(connector, f"{one.operation}_sync")(*one.args, **one.kwargs)
            except BaseException as raised:  # noqa: BLE001  goes to the steps
                error = raised
    finally:
        del error, reply


def has_names(connector: Connector) -> bool:
    """Whether the connector can replace what a key holds."""
    return isinstance(connector, SupportsNames)


def names_here(connector: Connector) -> bool:
    """Whether `take_here` can be had of it."""
    return isinstance(connector, SupportsSync) and hasattr(connector, "swap_sync")


class Found(NamedTuple):
    """What a name stands for.

    Attributes:
        buffer: The object; None if there is none, or if the reader has it.
        generation: Names what was put, and is new with each put; None for an object that was put
            there without a record.
        same: Whether the reader has it.
    """

    buffer: Buffer | None
    generation: str | None = None
    same: bool = False


_NOTHING: Final = Found(None)
_generations = KeyMaker()


class Publication(NamedTuple):
    """An object that is stored and that no name stands for yet.

    Attributes:
        record: What is to stand under the name.
        generation: Key of the object; None if it is in the record.
        lease: That of the record, as arguments of the connector's `swap`.
    """

    record: bytes
    generation: str | None
    lease: dict[str, Any]


def storing(
    name: str, frames: Frames, options: dict[str, Any], overwrite: bool
) -> Steps[Publication]:
    """Stores an object that a name is to stand for.

    Args:
        name: The name.
        frames: The bytes of the object.
        options: Further arguments of the connector's `put`: tags, by which it chooses a place, and
            a lease.
        overwrite: Whether the name may stand for another one.

    Raises:
        KeyExistsError: It does, and may not.
    """
    size = frames_size(frames)
    # Before the body is moved; `publishing` makes sure of it.
    if not overwrite and (yield step("exists", name)):
        raise KeyExistsError(
            f"the key {name!r} is taken", hint="choose another one, or overwrite it"
        )
    lease = {"ttl": options["ttl"]} if options.get("ttl") is not None else {}
    if size <= SMALL and not options.get("tags"):
        return Publication(pack_record(_generations.new(), size, frames), None, lease)
    if lease:  # whoever finds the record finds the object too
        options = options | {"ttl": min(lease["ttl"] + _LONGER_SECONDS, MOST_SECONDS)}
    key = yield step("put", frames, **options)
    return Publication(pack_record(key, size), key, lease)


def extending(keys: Sequence[str], names: Sequence[str], ttl: float | None) -> Steps[list[bool]]:
    """Gives objects a lease; tells for each whether it was there.

    The object of a name first, and for longer: whoever finds the record finds the object.

    Args:
        keys: Their keys.
        names: Those of them that are names.
        ttl: Seconds; None for no lease any more.
    """
    longer = None if ttl is None else min(ttl + _LONGER_SECONDS, MOST_SECONDS)
    stood: dict[str, Record] = {}
    stands = yield from _objects(names)
    held: list[bool] = []
    for _ in range(_ATTEMPTS):
        if stands:
            yield step("extend", list(stands), longer)
        # What had been replaced by then may have got a lease once more, or be for ever.
        for generation in stood.keys() - stands.keys():
            yield step("extend", [generation], grace(stood[generation]))
        held = yield step("extend", keys, ttl)
        stood, stands = stands, (yield from _objects(names))
        # A record that was put meanwhile has this lease now, or its own: its object is to have it.
        if stands.keys() == stood.keys():
            break
    return held


def _objects(names: Sequence[str]) -> Steps[dict[str, Record]]:
    """The records of those names of which the objects stand elsewhere, by where they do."""
    found = (yield step("get_batch", names)) if names else ()
    records: list[Record] = []
    for buffer in found:
        with contextlib.suppress(SerializationError):  # for those who read it
            record = None if buffer is None else read_record(buffer)
            if record is not None and record.body is None:
                records.append(record)
    return {record.generation: record for record in records}


def publishing(
    name: str, publication: Publication, overwrite: bool, gently: bool = False
) -> Steps[None]:
    """Has a name stand for an object, and retires the one that it stood for.

    Args:
        name: The name.
        publication: The object.
        overwrite: As for `storing`.
        gently: As for `retiring`.

    Raises:
        KeyExistsError: It stands for one, and is not to be overwritten.
    """
    record, generation, lease = [publication.record], publication.generation, publication.lease
    was: Buffer | None = None
    try:
        if overwrite:
            try:
                was = yield step("swap", name, record, **lease)
            except NotImplementedError:  # a connector of others, in a `MultiConnector`
                overwrite = False
        if not overwrite:
            yield step("put", record, key=name, **lease)
    except ConnectorLostError:
        # The record may stand there, or be on its way. An object that nobody finds is the lesser
        # evil, beside a name that stands for nothing.
        raise
    except BaseException:
        if generation is not None:
            with contextlib.suppress(ProxyPlaneError):
                yield step("evict", generation)
        raise
    yield from retiring(was, gently)


def retiring(was: Buffer | None, gently: bool = False) -> Steps[None]:
    """Removes the object of a record that was replaced. What was asked for is done by then.

    Args:
        was: The record.
        gently: Whether those who are reading the object now may end that, if it is large.
    """
    with contextlib.suppress(ProxyPlaneError):
        record = None if was is None else read_record(was)
        if record is None or record.body is not None:
            return
        if gently and record.size >= _LARGE:
            yield step("extend", [record.generation], grace(record))
        else:
            yield step("evict", record.generation)


def grace(record: Record) -> float:
    """How long the object of a record that was replaced stays, in seconds.

    A few times as long as it was the latest: so readers get on, and however fast it is overwritten,
    there are only a few objects more than one.
    """
    return min(max(_LEAST_GRACE, 4 * (time.time() - record.time)), _MOST_GRACE)


def retires_gently(connector: Connector) -> bool:
    """Whether readers of a large object would be disturbed if it were evicted, and need not be."""
    return connector.takes_ttl and not connector.reads_at_once


def reading(name: str, known: str | None) -> Steps[Found]:
    """Reads the object that a name stands for.

    Args:
        name: The name.
        known: The generation that the reader has.

    Raises:
        ObjectLostError: It is gone, and the name stands for it still; or it was replaced each time.
    """
    buffer = yield step("get", name)
    last: str | None = None
    for _ in range(_ATTEMPTS):
        record = None if buffer is None else read_record(buffer)
        if record is None:
            return _NOTHING if buffer is None else Found(buffer)
        if record.generation == known:
            return Found(None, known, same=True)
        if record.body is not None:
            return Found(record.body, record.generation)
        if record.generation == last:
            raise ObjectLostError(
                f"the object of the key {name!r} was there and is gone",
                hint="it was evicted by its own key, or the medium dropped it: put it again",
            )
        body = yield from _body(record)
        if body is not None:
            return Found(body, record.generation)
        last = record.generation
        buffer = yield step("get", name)
    raise ObjectLostError(
        f"the object of the key {name!r} was replaced each time while it was being read",
        hint="read it again, or put it less often",
    )


def _body(record: Record) -> Steps[Buffer | None]:
    try:
        body: Buffer | None = yield step("get", record.generation, size=record.size)
    except ObjectLostError:  # it went while it was being read
        return None
    return body


def removing(name: str) -> Steps[bool]:
    """Removes a name, with its object; gives whether it was there."""
    try:
        was = yield step("swap", name, None)
    except NotImplementedError:
        was = yield step("get", name)
        if not (yield step("evict", name)):
            return False
    yield from retiring(was)
    return was is not None


async def evict_all(connector: Connector, keys: Sequence[str]) -> None:
    """Evicts objects, whether their keys are names or not."""
    names = [key for key in keys if has_names(connector) and not is_made(key)]
    for name in names:
        await take(connector, removing(name))
    await connector.evict_batch([key for key in keys if key not in names])


def evict_all_here(connector: SupportsSync, keys: Sequence[str]) -> None:
    """The same in this thread, by the connector's shortcut."""
    for key in keys:
        if names_here(cast(Connector, connector)) and not is_made(key):
            take_here(cast(Connector, connector), removing(key))
        else:
            connector.evict_sync(key)


def claiming(name: str, found: Found) -> Steps[Buffer | None]:
    """Removes a name, and gives the object for which it stood at that moment.

    Of many who do it at once, one gets it.

    Args:
        name: The name.
        found: What was read of it, because an object without a record is had only before.
    """
    try:
        was = yield step("swap", name, None)
    except NotImplementedError:
        was = yield step("get", name)
        if not (yield step("evict", name)):
            return None
    if was is None:
        return None
    record = read_record(was)
    if record is None:
        return found.buffer
    body: Buffer | None = record.body
    if body is None:
        # Usually what was read; else it was put since.
        same = record.generation == found.generation
        body = found.buffer if same else (yield from _body(record))
    yield from retiring(was)
    return body
