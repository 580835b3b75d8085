"""How a producer's exception travels to the consumers of its future."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Sequence
from typing import Any

import msgpack

from proxyplane.abc import Parts
from proxyplane.exceptions import FutureCancelled, ProducerError

__all__ = ["FAILURES", "TOLD", "Failure", "RemoteTraceback"]


class RemoteTraceback(Exception):  # noqa: N818  as concurrent.futures names its like
    """The traceback of an exception, as text, from the process that raised it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class Failure:
    """An exception in the place of an object.

    Args:
        error: What the producer raised.
        text: Its traceback.
    """

    __slots__ = ("error", "text")

    def __init__(self, error: Exception, text: str) -> None:
        self.error = error
        self.text = text

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure that `error` is, with its traceback as far as it has one.

        Raises:
            TypeError: It is no exception that a consumer could handle.
        """
        if not isinstance(error, Exception):
            raise TypeError(f"a future can fail with an Exception, not with {error!r}")
        return cls(error, "".join(traceback.format_exception(error)))

    def to_raise(self) -> Exception:
        """The exception for a consumer to raise; its cause shows the producer's traceback."""
        self.error.__cause__ = RemoteTraceback(self.text)
        return self.error


class _FailureCodec:
    """Encodes failures. An exception that cannot be pickled, or rebuilt, crosses as its text."""

    id = f"{__name__}:FAILURES"
    copies = True

    def encode(self, obj: Failure) -> Parts:
        try:
            pickled = pickle.dumps(obj.error, protocol=5)
        except Exception:  # noqa: BLE001  whatever a class of the user's raises
            pickled = b""
        return Parts([pickle.dumps((pickled, _summary(obj.error), obj.text), protocol=5)])

    def decode(self, inband: memoryview, buffers: Sequence[memoryview]) -> Failure:
        pickled, summary, text = pickle.loads(inband)
        error: Any = None
        if pickled:
            try:
                error = pickle.loads(pickled)
            except Exception:  # noqa: BLE001  a class that is not here, or does not take its args
                error = None
        if not isinstance(error, Exception):
            error = ProducerError(
                f"the producer failed: {summary}",
                hint="its exception cannot be rebuilt in this process",
            )
        return Failure(error, text)


class _ToldFailureCodec:
    """Encodes failures as their text alone, for readers that accept no pickle.

    That a producer gave up is told as what it is.
    """

    id = f"{__name__}:TOLD"
    copies = True

    def encode(self, obj: Failure) -> Parts:
        gave_up = isinstance(obj.error, FutureCancelled)
        summary = _summary(obj.error)
        return Parts([msgpack.packb([gave_up, str(obj.error) if gave_up else summary, obj.text])])

    def decode(self, inband: memoryview, buffers: Sequence[memoryview]) -> Failure:
        gave_up, summary, text = msgpack.unpackb(inband, max_array_len=3, max_map_len=0)
        if not (isinstance(summary, str) and isinstance(text, str)):
            raise TypeError("a failure is told as text")
        error = (
            FutureCancelled(summary)
            if gave_up
            else ProducerError(
                f"the producer failed: {summary}",
                hint="its exception came as text, since this store accepts no pickle",
            )
        )
        return Failure(error, text)


def _summary(error: Exception) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


FAILURES = _FailureCodec()
TOLD = _ToldFailureCodec()
