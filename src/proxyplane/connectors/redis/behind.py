"""Large objects read behind the back of a computing thread: blocking calls, few and long.

A thread that computes in pure Python holds the interpreter lock, and whoever comes back from a
system call gets it after 5 ms (`sys.getswitchinterval`). An event loop comes back once for each
piece that arrives: 100 MB took seconds. So the library's loop, which works behind such threads,
lends the socket of a connection to a worker thread, where one call takes a window of 8 MiB.

What a reply will look like is known beforehand, so one call reads the end of a window and the
header of the next, and nothing is copied but the first bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from typing import Final

from redis import exceptions as redis_errors

from proxyplane._runtime.workers import run_in_worker
from proxyplane.connectors.redis.resp import command, new_buffer
from proxyplane.connectors.redis.transfer import EXEC, MULTI, Touched, window_command
from proxyplane.connectors.redis.wire import Wire

POSSIBLE: Final = hasattr(socket.socket, "recvmsg_into")  # not on Windows
# From here on it pays: a hop to another thread and back costs two waits for the interpreter lock.
LEAST: Final = 1 << 20
# Each is one reply, and waiting for the lock once or twice. The server makes a copy of each that is
# on the way, and answers nobody else meanwhile.
WINDOW: Final = 8 << 20
_AHEAD = 4
_HEAD = 4 << 10


async def read_behind(wire: Wire, name: bytes, size: int) -> bytearray | Touched | None:
    """Reads one object of `size` bytes in a worker thread; see `transfer.read_windows`.

    When the object is not what it was thought to be, the connection is given up.

    Args:
        wire: A connection without TLS.
        name: The Redis key.
        size: The size.
    """
    await wire.settled()
    wire.midway = True
    with wire.lent() as fileno:
        read = _Read(fileno, name, size, wire)
        wire.on_lost = read.stop  # the thread has the socket open, and would not notice
        try:
            found = await run_in_worker(read.run)
        finally:
            wire.on_lost = None
            read.stop()
    wire.midway = not isinstance(found, bytearray)
    return found


class _Read:
    """One read, of which the thread can be called back by `stop`."""

    def __init__(self, fileno: int, name: bytes, size: int, wire: Wire) -> None:
        # Its own descriptor: the loop may close the connection at any time, and the number of a
        # closed one is given to the next that is opened.
        self._socket = socket.socket(fileno=os.dup(fileno))
        self._lock = threading.Lock()
        self._state = "new"
        self._name = name
        self._size = size
        self._refusal = wire.refusal
        self._patience = wire.patience

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

    def run(self) -> bytearray | Touched | None:
        """The read; blocks."""
        with self._lock:
            if self._state == "over":
                raise asyncio.CancelledError
            self._state = "reading"
        try:
            self._socket.setblocking(True)
            # Not `settimeout`, with which a call returns at the first piece of a window.
            self._limit(self._patience)
            found = self._read()
            self._limit(0)
            self._socket.setblocking(False)  # as the loop needs it
            return found
        except BlockingIOError:  # what the kernel calls it
            raise TimeoutError from None
        finally:
            with self._lock:
                self._close()

    def _limit(self, seconds: float) -> None:
        value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, value)

    def _read(self) -> bytearray | Touched | None:
        size, name = self._size, self._name
        body = new_buffer(size)
        view = memoryview(body)
        windows = [view[i : i + WINDOW] for i in range(0, size, WINDOW)]
        # What comes before each window if all is well, and after the last.
        between = [b"\r\n$%d\r\n" % len(window) for window in windows]
        between[0] = b"+OK\r\n:%d\r\n$%d\r\n" % (size, len(windows[0]))
        between.append(b"\r\n+OK\r\n*0\r\n")
        asked = 0
        for i, window in enumerate(windows):
            ask = [] if i else [command("WATCH", name), command("STRLEN", name)]
            # Two more replies are always on their way behind a window. So whatever they are, even
            # empty, they are as long as what is read with the window, and the call returns.
            if asked < len(windows) and asked <= i + 2:
                upto = min(i + _AHEAD, len(windows))
                ask += [window_command(name, j, WINDOW) for j in range(asked, upto)]
                asked = upto
                if asked == len(windows):
                    ask += [MULTI, EXEC]
            if ask:
                self._socket.sendall(b"".join(ask))
            rest = [window]
            if not i:
                head = memoryview(bytearray(between[0]))
                got = 0
                while got < len(head) and head[:got] == between[0][:got]:
                    got += self._receive([head[got:], window], 0)
                if head != between[0]:
                    return self._explain(
                        bytes(head[:got]) + bytes(window[: max(0, got - len(head))])
                    )
                rest = [window[got - len(head) :]]
            after = memoryview(bytearray(len(between[i + 1])))
            rest = [one for one in (*rest, after) if len(one)]
            while rest:
                got = self._receive(rest, socket.MSG_WAITALL)
                while rest and got >= len(rest[0]):
                    got -= len(rest.pop(0))
                if got:
                    rest[0] = rest[0][got:]
            if after != between[i + 1]:
                return Touched(None)
        return body

    def _receive(self, views: list[memoryview], flags: int) -> int:
        got = self._socket.recvmsg_into(views, 0, flags)[0]
        if not got:
            raise redis_errors.ConnectionError("the connection was closed")
        return got

    def _explain(self, text: bytes) -> Touched | None:
        """What the first replies mean when they are not those of a whole object."""
        # Cut short, or mixed up with a body, only the beginning counts.
        while text.count(b"\r\n") < 2:
            more = memoryview(bytearray(_HEAD))
            text += more[: self._receive([more], 0)]
        for line in text.split(b"\r\n")[:2]:
            if line.startswith(b"-"):
                raise self._refusal(line[1:].decode("utf-8", "replace"))
            if line.startswith(b":"):
                return Touched(int(line[1:])) if int(line[1:]) else None
        return Touched(None)
