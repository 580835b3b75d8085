"""What the workers compute. Nothing in this module knows of proxies: it takes arrays."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from proxyplane.demo.data import Array

Answer = dict[str, Any]

# What the eye makes of linear red, green and blue (ITU-R BT.709).
LUMINANCE = (0.2126, 0.7152, 0.0722)
PIECE_BYTES = 1 << 20


def analyse(array: Array) -> Answer:
    """A digest of the array, and what it shows: as a picture, or as bytes."""
    answer = _picture(array) if array.ndim == 3 else _bytes(array)
    # Over every byte: a result can only be right if the whole object arrived.
    answer["sha256"] = hashlib.sha256(array.data).hexdigest()
    return answer


def _picture(image: Array) -> Answer:
    """Brightness, its histogram, and how much edge there is."""
    import numpy as np

    light = image @ np.array(LUMINANCE)
    across = light[1:-1, 2:] - light[1:-1, :-2]
    down = light[2:, 1:-1] - light[:-2, 1:-1]
    counts, _ = np.histogram(light, bins=64, range=(0, 1))
    return {
        "brightness": float(light.mean()),
        "edges": float(np.hypot(across, down).mean()),
        "histogram": counts.tolist(),
    }


def _bytes(array: Array) -> Answer:
    """How often each byte occurs, and the bits per byte that a perfect compressor would need."""
    import numpy as np

    counts = np.zeros(256, dtype=np.int64)
    # In pieces, because counting makes an eight times larger copy.
    for start in range(0, array.size, PIECE_BYTES):
        counts += np.bincount(array[start : start + PIECE_BYTES], minlength=256)
    shares = counts[counts > 0] / array.size
    return {"histogram": counts.tolist(), "bits": float(-(shares * np.log2(shares)).sum())}


def same(left: Answer, right: Answer) -> bool:
    """Whether two answers agree; sums of doubles may differ in their last digits."""
    return left.keys() == right.keys() and all(
        math.isclose(value, right[name], rel_tol=1e-9, abs_tol=1e-12)
        if isinstance(value, float)
        else value == right[name]
        for name, value in left.items()
    )
