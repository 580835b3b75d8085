"""Things to stand behind a proxy."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import math
import pathlib
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl


@dataclasses.dataclass
class Point:
    x: int = 1
    tags: list[str] = dataclasses.field(default_factory=lambda: ["a"])


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 3

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and other.value == self.value

    def __hash__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return "Slotted()"


class OldSequence:
    """A sequence by `__getitem__` alone."""

    def __getitem__(self, index: int) -> int:
        if index > 2:
            raise IndexError(index)
        return index * 10

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OldSequence)

    def __hash__(self) -> int:
        return 5

    def __repr__(self) -> str:
        return "OldSequence()"


class Pair(typing.NamedTuple):
    a: int
    b: int


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Uncooperative(type):
    """A metaclass whose classes cannot be hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(cls, other: object) -> bool:
        return cls is other


class Odd(metaclass=Uncooperative):
    def __len__(self) -> int:
        return 7

    def __hash__(self) -> int:
        return 7

    def __repr__(self) -> str:
        return "Odd()"


def greet(name: str = "you") -> str:
    """Says hello."""
    return f"hello {name}"


TARGETS: dict[str, Callable[[], Any]] = {
    "int": lambda: 7,
    "float": lambda: 2.5,
    "complex": lambda: 1 + 2j,
    "str": lambda: "5",
    "bytes": lambda: b"ab",
    "bytearray": lambda: bytearray(b"ab"),
    "list": lambda: [3, 1, 2],
    "tuple": lambda: (1, 2),
    "dict": lambda: {"a": 1, "b": 2},
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset({1}),
    "range": lambda: range(4),
    "slice": lambda: slice(0, 2),
    "deque": lambda: collections.deque([1, 2]),
    "Counter": lambda: collections.Counter("aab"),
    "OrderedDict": lambda: collections.OrderedDict(a=1),
    "ndarray": lambda: np.arange(6.0),
    "matrix": lambda: np.array([[1.0, 2.0], [3.0, 4.0]]),
    "numpy float": lambda: np.float64(3.5),
    "numpy int": lambda: np.int64(3),
    "DataFrame": lambda: pd.DataFrame({"a": [1, 2], "b": [3.0, 4.0]}),
    "Series": lambda: pd.Series([1, 2, 3]),
    "Index": lambda: pd.Index([1, 2, 3]),
    "polars frame": lambda: pl.DataFrame({"a": [1, 2]}),
    "polars series": lambda: pl.Series([1, 2]),
    "Decimal": lambda: decimal.Decimal("1.5"),
    "Fraction": lambda: fractions.Fraction(1, 3),
    "date": lambda: dt.date(2020, 1, 2),
    "timedelta": lambda: dt.timedelta(1),
    "path": lambda: pathlib.PurePosixPath("/tmp"),
    "dataclass": Point,
    "slots": Slotted,
    "getitem only": OldSequence,
    "namedtuple": lambda: Pair(1, 2),
    "enum": lambda: Color.RED,
    "IntEnum": lambda: Level.LOW,
    "exception": lambda: ValueError("x"),
    "class": lambda: list,
    "generic alias": lambda: list[int],
    "function": lambda: greet,
    "builtin": lambda: len,
    "module": lambda: math,
}
