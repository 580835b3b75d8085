"""What the demo is made of: its data, its work, and its count of bytes."""

from __future__ import annotations

import os
import threading
from multiprocessing.connection import Connection

import numpy as np
import pytest

from proxyplane.demo import data, work
from proxyplane.demo.pool import CountingConnection
from proxyplane.proxy import Proxy


def test_photographs_differ():
    """No two of the arrays that are made of the photographs are the same."""
    items = data.photographs(30).items
    assert len(items) == len({work.analyse(item.array)["sha256"] for item in items})
    edges = [work.analyse(item.array)["edges"] for item in items if "china" in item.name]
    assert edges == sorted(edges, reverse=True)  # more blur, less edge


def test_count_is_what_the_pipe_holds():
    """The count of a connection is what can be read from the other end, in bytes."""
    read_end, write_end = os.pipe()
    writer = CountingConnection(Connection(write_end, readable=False))
    pieces = []

    def read():
        while piece := os.read(read_end, 1 << 16):
            pieces.append(len(piece))

    reader = threading.Thread(target=read)
    reader.start()
    for size in (0, 1, 16_384, 16_385, 1_000_000):  # short messages are written in one call
        writer.send(b"x" * size)
    writer.close()
    reader.join()
    os.close(read_end)
    assert sum(pieces) == writer.written


@pytest.mark.parametrize("shape", [(1000,), (40, 60, 3)])
def test_work_takes_proxies(shape):
    """The work gives for a proxy what it gives for its target."""
    array = np.linspace(0, 1, int(np.prod(shape))).reshape(shape)
    array = (array * 255).astype(np.uint8) if array.ndim == 1 else array
    assert work.same(work.analyse(array), work.analyse(Proxy(lambda: array)))


def test_same_notices_every_part():
    """Answers differ if any part does, and not for the last digit of a sum."""
    answer = work.analyse(np.arange(1000, dtype=np.uint8))
    assert work.same(answer, answer | {"bits": answer["bits"] * (1 + 1e-12)})
    assert not work.same(answer, answer | {"bits": answer["bits"] * (1 + 1e-6)})
    assert not work.same(answer, answer | {"sha256": "0" * 64})
    assert not work.same(answer, {"sha256": answer["sha256"]})
