"""Objects that end with their owner: a finaliser notes the key down, and a thread sees to the rest.

A finaliser may run anywhere, inside of any lock, so all it does is to put a key in a queue. One
thread waits at its other end and evicts, in batches, on the library's loop; what fails is tried
again, since an object that nobody knows any more would stay for ever. When the interpreter exits,
what is left is evicted within a bounded time.

A forked child owns nothing: what the parent has to evict is the parent's affair.
"""

from __future__ import annotations

import _thread
import asyncio
import atexit
import contextlib
import logging
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.io_thread import Outcome, io_thread
from proxyplane._runtime.workers import run_in_worker
from proxyplane._store_names import evict_all, evict_all_here
from proxyplane.abc import Connector, SupportsSync
from proxyplane.config import StoreConfig, connector_from_url, redact
from proxyplane.exceptions import (
    AlreadyOwnedError,
    ConnectorClosedError,
    ConnectorError,
    IOThreadError,
    ObjectLostError,
    StoreClosedError,
    WrongProcessError,
)
from proxyplane.factory import StoreFactory

logger = logging.getLogger("proxyplane")

# How long leaving the process waits until what it owns is evicted, in seconds.
EXIT_SECONDS = 1.0
# How long one attempt may take, and how long to wait before the next one, in seconds.
ATTEMPT_SECONDS = 30.0
PAUSES = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
# How many keys are kept while their medium cannot be reached; the oldest are forgotten first.
MOST_KEPT = 100_000

# Where these come from there is nothing any more, or nothing that this process could reach.
_GONE = (ConnectorClosedError, ObjectLostError, WrongProcessError)

Factories: TypeAlias = "list[StoreFactory[Any]]"


class Claim:
    """That this process is to evict an object; made by `claim`, one for each object.

    Args:
        factory: Names the object.
    """

    __slots__ = ("_identity", "factory")

    def __init__(self, factory: StoreFactory[Any]) -> None:
        self.factory = factory
        self._identity = factory.reference, factory.key

    @property
    def is_held(self) -> bool:
        """Whether it still is for this process to evict the object."""
        return _process.held.get(self._identity) is self

    def give_up(self) -> bool:
        """Leaves the object to somebody else; returns whether it was this process's till now."""
        return self.is_held and _process.held.pop(self._identity, None) is self

    def release(self) -> None:
        """Has the object evicted soon. For finalisers: takes no lock, waits for nothing."""
        if self.give_up():
            _process.ask(self.factory)


def evict_later(factory: StoreFactory[Any]) -> None:
    """Has an object evicted soon, whoever owns it."""
    _process.begin()
    _process.ask(factory)


def claim(factory: StoreFactory[Any]) -> Claim:
    """Takes it upon this process to evict an object.

    Raises:
        AlreadyOwnedError: The object has an owner in this process.
    """
    _process.begin()
    made = Claim(factory)
    if _process.held.setdefault(made._identity, made) is not made:
        raise _owned(factory)
    return made


def require_unclaimed(factory: StoreFactory[Any], *, but: Claim | None) -> None:
    """Raises AlreadyOwnedError if an object has an owner in this process, `but` for that claim."""
    if _process.held.get((factory.reference, factory.key)) not in (None, but):
        raise _owned(factory)


def _owned(factory: StoreFactory[Any]) -> AlreadyOwnedError:
    return AlreadyOwnedError(
        f"{factory} has an owner in this process already",
        hint="borrow from that one, or clone it",
    )


class _Process:
    """What this process owns, and what it is about to evict."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        on_fork(self)

    def after_fork_in_child(self) -> None:
        self.held: dict[tuple[str, str], Claim] = {}
        self.asked: deque[StoreFactory[Any]] = deque()
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        # What was asked for and has not happened yet. The thread puts a key here before it takes
        # it from there, so that at exit none is missed.
        self.under_way: Factories = []
        # Re-entrant: a finaliser of the user's, that the collector runs inside, may own too.
        self._lock = threading.RLock()
        self._begun = False

    def begin(self) -> None:
        """Starts the thread, and sees to the exit of this process."""
        if self._begun:
            return
        # First: what is registered later runs earlier, and to evict takes the library's loop.
        io_thread()
        with self._lock:
            if self._begun:
                return
            self._begun = True
            try:
                # Python 3.13 clears in a child what was registered in its parent.
                atexit.register(self.at_exit)
                _at_end_of_child(self.at_exit)
                # Unlike a `Thread` this does not wait until the thread runs.
                _thread.start_new_thread(self._main, ())
            except RuntimeError as error:
                self._begun = False
                raise IOThreadError(
                    f"proxyplane could not start a thread: {error}",
                    hint="the interpreter is exiting, or the limit of threads is reached",
                ) from error

    def ask(self, factory: StoreFactory[Any]) -> None:
        """Has an object evicted soon; may be called by finalisers."""
        self.asked.append(factory)
        self.wake.put(None)

    def _main(self) -> None:
        threading.current_thread().name = "proxyplane-evictions"
        failures, told = 0, set[str]()
        while True:
            pause = PAUSES[min(failures, len(PAUSES)) - 1] if self.under_way else None
            self._collect(pause)
            failed: list[tuple[StoreFactory[Any], BaseException]]
            try:
                failed = io_thread().run(evict_factories(list(self.under_way), ATTEMPT_SECONDS))
            except Exception as error:  # noqa: BLE001  to end here would end it for the process
                failed = [(factory, error) for factory in self.under_way]
            away = {factory.reference: error for factory, error in failed}
            for reference in away.keys() - told:
                logger.warning(
                    "objects whose owners are gone could not be evicted yet from %s: %s",
                    redact(reference),
                    away[reference],
                )
            told = set(away)
            failures = failures + 1 if failed else 0
            self.under_way = [factory for factory, _ in failed[-MOST_KEPT:]]

    def _collect(self, pause: float | None) -> None:
        """Waits until there is something to do, for `pause` seconds at most."""
        with contextlib.suppress(queue.Empty):
            self.wake.get(timeout=pause)
            while True:
                self.wake.get_nowait()
        while self.asked:
            self.under_way.append(self.asked[0])
            self.asked.popleft()

    def at_exit(self) -> None:
        """Evicts what this process owns, as far as that is possible in a bounded time."""
        owned = [one.factory for one in list(self.held.values()) if one.give_up()]
        left = [*owned, *list(self.asked), *self.under_way]
        if not left:
            return
        finished = threading.Event()

        def done(outcome: Outcome[Any]) -> None:
            finished.set()

        with contextlib.suppress(IOThreadError):
            spawned = io_thread().spawn(evict_factories(left, EXIT_SECONDS), done)
            finished.wait(EXIT_SECONDS)
            del spawned


async def evict_factories(
    factories: Factories, seconds: float
) -> list[tuple[StoreFactory[Any], BaseException]]:
    """Evicts objects; returns those of which that may succeed another time, and why not now."""
    groups: dict[str, Factories] = {}
    for factory in factories:
        groups.setdefault(factory.reference, []).append(factory)
    failed = await asyncio.gather(*(_evict_group(one, seconds) for one in groups.values()))
    return [
        (factory, error)
        for group, error in zip(groups.values(), failed, strict=True)
        if error is not None
        for factory in group
    ]


async def _evict_group(factories: Factories, seconds: float) -> Exception | None:
    keys = list(dict.fromkeys(factory.key for factory in factories))
    try:
        async with asyncio.timeout(seconds):
            await _evict_keys(factories[0], keys)
    except (ConnectorError, StoreClosedError, TimeoutError, OSError) as error:
        return None if isinstance(error, _GONE) else error
    except Exception:
        logger.exception("%d objects whose owners are gone cannot be evicted", len(keys))
    return None


async def _evict_keys(factory: StoreFactory[Any], keys: list[str]) -> None:
    store = factory._store_at_hand()
    if store is not None:
        try:
            await store.evicting_batch(keys).perform()
        except IOThreadError:
            _evict_here(store.connector, keys)
        return
    # It was closed. To open it again would give it back its name, which others may want by now.
    config = StoreConfig.from_url(factory.reference)
    try:
        connector = await run_in_worker(connector_from_url, config.connector)
    except IOThreadError:
        connector = connector_from_url(config.connector)
    try:
        await evict_all(connector, keys)
    except IOThreadError:
        _evict_here(connector, keys)
    finally:
        await connector.aclose()


def _evict_here(connector: Connector, keys: list[str]) -> None:
    """Evicts on the library's loop, at exit, when no thread can be started any more."""
    if not isinstance(connector, SupportsSync):
        raise ConnectorError(f"{connector!r} cannot evict without threads")
    evict_all_here(connector, keys)


def _at_end_of_child(call: Callable[[], object]) -> None:
    """Has a child of `multiprocessing` call something at its end, where `atexit` does not."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, call, exitpriority=100)


_process = _Process()
