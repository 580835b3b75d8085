"""Arrays of gigabytes that are told from others at a few places."""

from __future__ import annotations

import mmap

import numpy as np

GIB = 1 << 30


def marked(size: int) -> tuple[np.ndarray, list[int]]:
    """An array of zeros that needs no memory, and the places where it has other numbers."""
    array = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    edges = [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 2**31]
    places = sorted({0, size // 2, size - 1, *(edge for edge in edges if edge < size)})
    for number, place in enumerate(places):
        array[place] = 1 + number
    return array, places
