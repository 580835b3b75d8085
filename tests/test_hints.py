"""What a proxy knows of its target: right, or nothing."""

from __future__ import annotations

import collections
import copy
import pickle
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyplane.hints import HASH_LIMIT, NO_HINTS, Hints


class Outer:
    class Inner:
        pass


Original = collections.namedtuple("Shadowed", "a")  # noqa: PYI024
Shadowed = collections.namedtuple("Shadowed", "a b")  # noqa: PYI024


def travelled(hints: Hints) -> Hints:
    return pickle.loads(pickle.dumps(hints))


class TestType:
    @pytest.mark.parametrize("target", [[1], "x", np.ones(1), Outer.Inner(), Shadowed(1, 2)])
    def test_known(self, target: Any) -> None:
        """The type is known here and where it travelled to."""
        hints = Hints.of(target)
        assert hints.target_type() is type(target)
        assert travelled(hints).target_type() is type(target)
        assert hints.type_label == type(target).__qualname__

    @pytest.mark.parametrize("target", [len, Outer, types, test_known, list[int]])
    def test_none_for(self, target: Any) -> None:
        """Functions, classes and modules have no hint: what one is, says nothing of the next."""
        hints = Hints.of(target)
        assert hints.type_name is None
        assert hints.target_type() is None

    def test_local_class(self) -> None:
        """A local class is known by its objects here, and has no name elsewhere."""

        class Local:
            pass

        hints = Hints.of(Local())
        assert hints.target_type() is Local
        assert "Local" in hints.type_label
        assert hints.type_name is None
        assert travelled(hints).target_type() is None

    def test_another_of_the_same_name(self) -> None:
        """A type whose name leads to another type has no name."""
        assert Hints.of(Original(1)).type_name is None

    @pytest.mark.parametrize(
        "name", ["no.such.module:Thing", "sys:nothing", "sys:path", "os:a.b.c"]
    )
    def test_not_found(self, name: str) -> None:
        """A name that leads to no type is no hint."""
        hints = Hints.from_flat(None, name, None, None)
        assert hints.target_type() is None
        assert hints.type_for(sys._getframe(), object) is None

    def test_looking_imports_nothing(self) -> None:
        """Only a question for the class imports the module of the type."""
        code = """
import sys
from proxyplane.hints import Hints
hints = Hints.from_flat(None, "fractions:Fraction", None, None)
assert hints.target_type() is None
try:
    hints.answers("__len__")
    hints.answers("__wrapped__")
except AttributeError:
    pass
assert "fractions" not in sys.modules
assert hints.type_for(sys._getframe(), object).__name__ == "Fraction"
"""
        subprocess.run([sys.executable, "-c", code], check=True, timeout=30)

    def test_lazy_modules_are_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Looking for a type runs no code of its module."""
        module = types.ModuleType("lazy_module")
        module.__getattr__ = lambda name: pytest.fail(name)  # type: ignore[method-assign]
        monkeypatch.setitem(sys.modules, "lazy_module", module)
        assert Hints.from_flat(None, "lazy_module:Thing", None, None).target_type() is None


class TestHash:
    @given(
        st.recursive(
            st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
            lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=3),
            max_leaves=5,
        )
    )
    def test_right(self, target: Any) -> None:
        """The hash of numbers, text, bytes and tuples of them is right after travelling."""
        assert travelled(Hints.of(target, 100)).hash == hash(pickle.loads(pickle.dumps(target)))

    @pytest.mark.parametrize(
        "target",
        [float("nan"), complex("nan"), (1, float("nan")), object(), (object(),), (1, None),
         frozenset({Outer}), Original(1)],
    )  # fmt: skip
    def test_unknown(self, target: Any) -> None:
        """A hash that is by identity, wholly or in part, is no hint."""
        assert Hints.of(target, 100).hash is None

    @pytest.mark.parametrize("target", [[], {}, np.ones(1), ([],), (1, ({},))])
    def test_unhashable(self, target: Any) -> None:
        """That there is none is known too."""
        if type(target) is not tuple:
            assert Hints.of(target, 100).hash is False
            assert travelled(Hints.of(target, 100)).hash is False
        else:
            assert Hints.of(target, 100).hash is None

    def test_large(self) -> None:
        """Large objects, and those of unknown size, are not hashed."""
        assert Hints.of("x", HASH_LIMIT).hash == hash("x")
        assert Hints.of("x", HASH_LIMIT + 1).hash is None
        assert Hints.of("x").hash is None

    def test_other_process(self) -> None:
        """A hash of text is not believed where text hashes otherwise; that of a number is."""
        write = """
import pickle, sys
from proxyplane.hints import Hints
sys.stdout.buffer.write(pickle.dumps([Hints.of(x, 9) for x in ("text", 7, [])]))
"""
        read = """
import pickle, sys
print([hints.hash for hints in pickle.load(sys.stdin.buffer)])
print(hash("text"))
"""

        def run(code: str, seed: str, data: bytes = b"") -> bytes:
            env = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
            command = [sys.executable, "-c", code]
            return subprocess.run(
                command, env=env, input=data, check=True, capture_output=True, timeout=30
            ).stdout

        for seed, text_known in (("1", True), ("2", False)):
            hashes, actual = run(read, seed, run(write, "1")).decode().splitlines()
            assert hashes == f"[{actual if text_known else None}, 7, False]"


@pytest.mark.parametrize(
    ("size", "label"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (100_000_000, "95.4 MiB"),
     (5 << 30, "5.0 GiB"), (3 << 50, "3072.0 TiB")],
)  # fmt: skip
def test_size_label(size: int | None, label: str) -> None:
    """Sizes are shown for people."""
    assert Hints(size=size).size_label == label


def test_no_hints_stay_so() -> None:
    """Copies of the empty hints know nothing either."""
    for hints in (copy.copy(NO_HINTS), travelled(NO_HINTS)):
        assert hints.flat() == (None, None, None, None)
