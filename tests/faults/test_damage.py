"""Stored bytes that were changed."""

from __future__ import annotations

import numpy as np
import pytest

from proxyplane.exceptions import SerializationError
from proxyplane.serialization import decode, encode
from support.soak import defended_or_not, tally


@pytest.mark.row("bytes damaged")
@defended_or_not
def test_every_byte_of_a_body(defended):
    """A change of any byte of an array is found with checksum=, and is not without it."""
    array = np.arange(300.0)
    data = b"".join(encode(array, checksum=defended))
    wrong = 0
    for at in range(len(data) - array.nbytes, len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        try:
            wrong += not np.array_equal(decode(damaged), array)
        except SerializationError:
            continue
    assert bool(wrong) is not defended
    tally.tries = array.nbytes
