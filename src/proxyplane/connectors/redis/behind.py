"""Large objects read behind the back of a computing thread: blocking calls, few and long.

A thread that computes in pure Python holds the interpreter lock, and whoever comes back from a
system call gets it after 5 ms (`sys.getswitchinterval`). An event loop comes back once for each
piece that arrives: 100 MB took seconds. So the library's loop, which works behind such threads,
lends the socket of a connection to a worker thread, where one call takes many windows.

What the replies will look like is known beforehand, so one call reads windows and the headers
between them, and nothing is copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from typing import Final

from redis import exceptions as redis_errors

from proxyplane._runtime.workers import run_in_worker
from proxyplane.connectors.redis.resp import command
from proxyplane.connectors.redis.transfer import (
    EXEC,
    MULTI,
    WINDOW,
    Report,
    Touched,
    window_command,
)
from proxyplane.connectors.redis.wire import Wire

POSSIBLE: Final = hasattr(socket.socket, "recvmsg_into")  # not on Windows
# From here on it pays: a hop to another thread and back costs two waits for the interpreter lock.
LEAST: Final = 1 << 20
# Windows on their way together. The server makes them in one go, and answers nobody else meanwhile;
# so they are many only behind a thread that computes, where each call costs a wait for the lock.
_AHEAD = 4
_AHEAD_OF_BUSY = 32
# To start in a thread, or to hand over a few bytes, takes longer than this only if the lock had to
# be waited for.
_BUSY_SECONDS = 0.001
# How long a call waits before it looks whether what came so far is what was expected.
_LOOK_SECONDS = 0.25
_HEAD = 4 << 10


async def read_behind(
    wire: Wire, name: bytes, view: memoryview, report: Report = None
) -> bool | Touched:
    """Reads one object as long as `view` in a worker thread; see `transfer.read_windows`.

    When the object is not what it was thought to be, the connection is given up.

    Args:
        wire: A connection without TLS.
        name: The Redis key.
        view: Where it goes.
        report: Told how many bytes have come, in that thread.
    """
    if wire.owed:
        await wire.settling()
        wire.check()
    wire.midway = True
    with wire.lent() as fileno:
        read = _Read(fileno, name, view, report, wire)
        wire.on_lost = read.stop  # the thread has the socket open, and would not notice
        try:
            found = await run_in_worker(read.run)
        finally:
            wire.on_lost = None
            read.stop()
    wire.midway = found is not True
    return found


class _Read:
    """One read, of which the thread can be called back by `stop`."""

    def __init__(
        self, fileno: int, name: bytes, view: memoryview, report: Report, wire: Wire
    ) -> None:
        # Its own descriptor: the loop may close the connection at any time, and the number of a
        # closed one is given to the next that is opened.
        self._socket = socket.socket(fileno=os.dup(fileno))
        self._lock = threading.Lock()
        self._state = "new"
        self._name = name
        self._view = view
        self._report = report
        self._refusal = wire.refusal
        self._patience = wire.patience
        self._made = time.monotonic()

    def stop(self) -> None:
        """Ends the read if it is not over."""
        with self._lock:
            if self._state == "new":
                self._close()
            elif self._state == "reading":
                # Closing it would not wake the thread.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        self._state = "over"
        self._socket.close()

    def run(self) -> bool | Touched:
        """The read; blocks."""
        with self._lock:
            if self._state == "over":
                raise asyncio.CancelledError
            self._state = "reading"
        try:
            self._socket.setblocking(True)
            # Not `settimeout`, with which a call returns at the first piece of a window.
            self._limit(socket.SO_SNDTIMEO, self._patience)
            self._limit(socket.SO_RCVTIMEO, min(_LOOK_SECONDS, self._patience))
            found = self._read()
            self._limit(socket.SO_SNDTIMEO, 0)
            self._limit(socket.SO_RCVTIMEO, 0)
            self._socket.setblocking(False)  # as the loop needs it
            return found
        except BlockingIOError:  # what the kernel calls it
            raise TimeoutError from None
        finally:
            with self._lock:
                self._close()

    def _limit(self, option: int, seconds: float) -> None:
        value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, option, value)

    def _read(self) -> bool | Touched:
        view, name = self._view, self._name
        size = len(view)
        windows = [view[i : i + WINDOW] for i in range(0, size, WINDOW)]
        # What comes before each window if all is well, and after the last.
        between = [b"\r\n$%d\r\n" % len(window) for window in windows]
        between[0] = b"+OK\r\n:%d\r\n$%d\r\n" % (size, len(windows[0]))
        between.append(b"\r\n+OK\r\n*0\r\n")
        ask = command("WATCH", name) + command("STRLEN", name)
        asked = i = 0
        took = time.monotonic() - self._made
        while i < len(windows):
            if asked < len(windows) and asked <= i + 2:
                ahead = _AHEAD_OF_BUSY if took > _BUSY_SECONDS else _AHEAD
                upto = min(i + ahead, len(windows))
                ask += b"".join(window_command(name, j) for j in range(asked, upto))
                asked = upto
                if asked == len(windows):
                    ask += MULTI + EXEC
                began = time.monotonic()
                self._socket.sendall(ask)
                took = time.monotonic() - began
                ask = b""
            # Two more replies are always on their way behind the last window of a call. So even if
            # they are empty they are as long as the header that is read with the window.
            stop = len(windows) if asked == len(windows) else asked - 2
            views: list[memoryview] = []
            wanted: list[bytes | None] = []
            for j in range(i, stop):
                views += [windows[j], memoryview(bytearray(len(between[j + 1])))]
                wanted += [None, between[j + 1]]
            if not i:
                head = memoryview(bytearray(between[0]))
                got = 0
                while got < len(head) and head[:got] == between[0][:got]:
                    got += self._receive([head[got:], windows[0]], 0)
                if head != between[0]:
                    return self._explain(
                        bytes(head[:got]) + bytes(windows[0][: max(0, got - len(head))])
                    )
                views[0] = views[0][got - len(head) :]
            if not self._fill(views, wanted, i * WINDOW):
                return Touched(None)
            i = stop
        return True

    def _fill(self, views: list[memoryview], wanted: list[bytes | None], done: int) -> bool:
        """Reads into all of `views`; False as soon as one is not what it should be.

        Args:
            views: The windows, each with the header behind it.
            wanted: What each should be; None for any.
            done: Bytes of the object before them.
        """
        rest = list(views)
        k = 0
        while k < len(rest):
            got = self._receive(rest[k:], socket.MSG_WAITALL)
            done += got
            if self._report is not None:
                self._report(min(done, len(self._view)))  # the headers are not worth a sum
            while k < len(rest) and got >= len(rest[k]):
                got -= len(rest[k])
                rest[k] = rest[k][len(rest[k]) :]
                if not _as_far(views[k], rest[k], wanted[k]):
                    return False
                k += 1
            if got:
                rest[k] = rest[k][got:]
                if not _as_far(views[k], rest[k], wanted[k]):
                    return False
        return True

    def _receive(self, views: list[memoryview], flags: int) -> int:
        since = time.monotonic()
        while True:
            try:
                got = self._socket.recvmsg_into(views, 0, flags)[0]
            except BlockingIOError:  # what the kernel calls a time-out
                if time.monotonic() - since >= self._patience:
                    raise TimeoutError from None
            else:
                if not got:
                    raise redis_errors.ConnectionError("the connection was closed")
                return got

    def _explain(self, text: bytes) -> bool | Touched:
        """What the first replies mean when they are not those of a whole object."""
        # Cut short, or mixed up with a body, only the beginning counts.
        while text.count(b"\r\n") < 2:
            more = memoryview(bytearray(_HEAD))
            text += more[: self._receive([more], 0)]
        for line in text.split(b"\r\n")[:2]:
            if line.startswith(b"-"):
                raise self._refusal(line[1:].decode("utf-8", "replace"))
            if line.startswith(b":"):
                return Touched(int(line[1:])) if int(line[1:]) else False
        return Touched(None)


def _as_far(view: memoryview, empty: memoryview, wanted: bytes | None) -> bool:
    """Whether what a view holds so far is what it should be; None for whatever it is."""
    there = len(view) - len(empty)
    return wanted is None or bytes(view[:there]) == wanted[:there]
