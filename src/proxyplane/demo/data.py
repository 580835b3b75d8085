"""What the demo sends: real arrays, made from photographs or read from the user's files."""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxyplane.demo.errors import DemoError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = Any

PHOTOGRAPHS_MEGABYTES = 100
FILES_MEGABYTES = 500
MEGABYTE = 1_000_000

# Standard deviation of the blur from one level to the next, in pixels. Two such blurs make one of
# sqrt(2) times the width, so every level holds less detail than the one before.
BLUR_PIXELS = 1.6


@dataclass(frozen=True)
class Item:
    """One object to send.

    Attributes:
        name: For messages.
        array: The object.
    """

    name: str
    array: Array


@dataclass(frozen=True)
class Dataset:
    """All objects to send.

    Attributes:
        items: At least one.
        origin: Where they come from, in a few words.
        left_out: What was not read, and why; empty if all was.
    """

    items: list[Item]
    origin: str
    left_out: str = ""

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(item.array.nbytes for item in self.items)


def require(purpose: str, extra: str, **modules: str) -> None:
    """Checks that optional packages are installed.

    Args:
        purpose: What they are for; the message begins with it.
        extra: What ``pip install`` takes to bring them.
        modules: Names of modules, and of the packages that bring them.

    Raises:
        DemoError: One is not; the message has the command that installs it.
    """
    missing = [package for name, package in modules.items() if not _importable(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise DemoError(
            f"{purpose} needs {' and '.join(missing)}, which {verb} not installed: "
            f"pip install {extra}"
        )


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def photographs(megabytes: int = PHOTOGRAPHS_MEGABYTES) -> Dataset:
    """The photographs of scikit-learn, in linear light, each as a series of ever blurrier images.

    Such a scale space is what detectors of edges and features work on. Each level is an array of
    427 x 640 x 3 doubles, 6.6 MB.

    Args:
        megabytes: Make at least this much.

    Raises:
        DemoError: A package is missing.
    """
    require(
        "the demo",
        '"proxyplane[demo]"',
        numpy="numpy",
        sklearn="scikit-learn",
        PIL="pillow",
    )
    from scipy.ndimage import gaussian_filter
    from sklearn.datasets import load_sample_images

    loaded = load_sample_images()
    names = [os.path.basename(name) for name in loaded.filenames]
    levels = [_linear(pixels) for pixels in loaded.images]
    items: list[Item] = []
    size = level = 0
    while True:
        for name, image in zip(names, levels, strict=True):
            items.append(Item(f"{name} at blur {level}", image))
            size += image.nbytes
            if size >= megabytes * MEGABYTE:
                count = f"{level + 1} levels of blur" if level else "no blur"
                return Dataset(items, f"photographs {' and '.join(names)}, {count}")
        level += 1
        levels = [gaussian_filter(image, (BLUR_PIXELS, BLUR_PIXELS, 0)) for image in levels]


def _linear(pixels: NDArray[np.uint8]) -> Array:
    """Light intensities from sRGB values (IEC 61966-2-1, without its straight part near black)."""
    intensities: Array = ((pixels / 255 + 0.055) / 1.055) ** 2.4
    return intensities


def files(paths: Sequence[str], megabytes: int = FILES_MEGABYTES) -> Dataset:
    """The user's files, each as an array of its bytes; directories with all that is below them.

    Args:
        paths: Files and directories.
        megabytes: Read at most this much, whole files only.

    Raises:
        DemoError: A path is not there, or cannot be read, or there is nothing to send.
    """
    require("the demo", "numpy", numpy="numpy")
    items: list[Item] = []
    room = megabytes * MEGABYTE
    too_much = unreadable = 0
    for path, named in _walk(paths):
        try:
            # Asked before it is opened: a pipe or a device could be read for ever.
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                if named:
                    raise DemoError(f"{path} is neither a file nor a directory")
                continue
            if found.st_size > room:
                too_much += 1
                continue
            array = _read(path)
        except OSError as exc:
            if named:
                raise DemoError(f"cannot read {path}: {exc.strerror}") from exc
            unreadable += 1
            continue
        if array.size:
            items.append(Item(path, array))
            room -= array.nbytes
    reasons = []
    if too_much:
        reasons.append(f"{too_much:,} above {megabytes:,} MB in all (--size reads more)")
    if unreadable:
        reasons.append(f"{unreadable:,} that cannot be read")
    left_out = "files left out: " + ", ".join(reasons) if reasons else ""
    origin = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    if not items:
        raise DemoError(f"nothing to send in {origin}" + (f"; {left_out}" if left_out else ""))
    return Dataset(items, f"files of {origin}", left_out)


def _read(path: str) -> Array:
    import numpy as np

    with open(path, "rb") as file:
        return np.frombuffer(file.read(), dtype=np.uint8)


def _walk(paths: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Paths of files, and whether the user named them."""
    for path in paths:
        if not os.path.isdir(path):
            yield path, True
            continue
        try:
            os.scandir(path).close()
        except OSError as exc:
            raise DemoError(f"cannot read {path}: {exc.strerror}") from exc
        for directory, below, names in os.walk(path):
            below.sort()
            for name in sorted(names):
                yield os.path.join(directory, name), False
