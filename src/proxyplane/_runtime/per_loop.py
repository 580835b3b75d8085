"""One client per event loop and process, closed when its loop ends.

A client of an asyncio library belongs to the loop that made it: its sockets are registered there.
So a connector that is used from several loops (the user's, and the library's own for proxies)
keeps one client for each. Loops are compared as objects, never by ``id``, which is reused.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

from proxyplane._runtime.fork import keep_for_ever, on_fork, prepare_to_keep

C = TypeVar("C")


class PerLoop(Generic[C]):
    """Makes a client on first use in a loop and closes it when that loop shuts down.

    Args:
        make: Makes a client; called on the loop's thread, must not block.
        close: Closes one; runs on the loop that the client belongs to.
    """

    def __init__(self, make: Callable[[], C], close: Callable[[C], Awaitable[object]]) -> None:
        self._make = make
        self._close = close
        self._reset()
        on_fork(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._entries: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[C, AsyncGenerator[None, None]]
        ] = weakref.WeakKeyDictionary()

    def after_fork_in_child(self) -> None:
        # The parent owns the sockets; closing them here would say goodbye on its connections.
        keep_for_ever(*self._entries.items())
        self._reset()

    def here(self) -> C | None:
        """The client of the running loop, if it was made; `get` without its steps."""
        entry = self._entries.get(asyncio.get_running_loop())
        return None if entry is None else entry[0]

    async def get(self, check: Callable[[], None] = lambda: None) -> C:
        """The client of the running loop.

        Args:
            check: Raises if there shall be none any more. It is asked once more when `aclose` can
                see a new client: another thread may have called that in between.
        """
        check()
        found = self.here()
        if found is not None:
            return found
        loop = asyncio.get_running_loop()
        with self._lock:
            # A client keeps its loop alive, and so its own entry: what a loop that was closed
            # without shutting down its generators left behind is dropped here.
            for stale in [one for one in self._entries if one.is_closed()]:
                del self._entries[stale]
        prepare_to_keep()
        client = self._make()
        guard = self._guard(loop, client)
        with self._lock:
            self._entries[loop] = (client, guard)
        # The first step of an async generator registers it with the loop, and a loop that ends
        # (asyncio.run, uvloop) runs the ``finally`` of every generator registered with it.
        await anext(guard)
        try:
            check()
        except BaseException:
            with self._lock:
                unseen = self._entries.pop(loop, None) is not None
            if unseen:
                await guard.aclose()
            raise
        return client

    async def _guard(
        self, loop: asyncio.AbstractEventLoop, client: C
    ) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            with self._lock:
                entry = self._entries.get(loop)
                if entry is not None and entry[0] is client:
                    del self._entries[loop]
            await self._close(client)

    async def aclose(self) -> None:
        """Closes the client of every loop, each on its own loop; a later `get` makes a new one."""
        here = asyncio.get_running_loop()
        with self._lock:
            entries = list(self._entries.items())
            self._entries.clear()
        mine = None
        for loop, (_, guard) in entries:
            if loop is here:
                mine = guard
            else:
                # A loop that is closed, or closes at this moment, has run its own clean-up.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(_close_soon, loop, guard)
        if mine is not None:
            await mine.aclose()


_closing: set[asyncio.Task[None]] = set()


def _close_soon(loop: asyncio.AbstractEventLoop, guard: AsyncGenerator[None, None]) -> None:
    task = loop.create_task(guard.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
