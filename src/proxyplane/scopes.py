"""When a borrow that was sent to another process is over: with the task that it was sent to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from proxyplane._references import (
    OwnedProxy,
    RefMutProxy,
    RefProxy,
    end_borrow,
    is_reference,
)

__all__ = ["FutureWithCallback", "mark_refs_out_of_scope", "submit"]

P = ParamSpec("P")


class FutureWithCallback(Protocol):
    """A future of `concurrent.futures`, of asyncio, or of whatever runs tasks."""

    def add_done_callback(self, callback: Callable[[Any], Any], /) -> Any:
        """Calls ``callback(future)`` when the future is done."""
        ...


FutureT = TypeVar("FutureT", bound=FutureWithCallback)


def mark_refs_out_of_scope(*refs: RefProxy[Any] | RefMutProxy[Any]) -> None:
    """Ends borrows: their owner may be updated, moved or dropped again, and they cannot be used.

    One that is over is passed over.

    Raises:
        ReferenceNotOwnedError: A borrow whose owner is in another process, or no borrow; also a
            RuntimeError. Then none is ended.
    """
    end_borrow(*refs)


def submit(
    submit_func: Callable[..., FutureT],
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    register_custom_refs: Iterable[Any] = (),
) -> FutureT:
    """Starts a task, and ends the borrows that it was given once it is done.

    The owner of a borrow that was pickled cannot know when that is gone elsewhere. It lives, and
    lends, until the task has ended: with a result, an exception, or cancelled.

    Args:
        submit_func: Starts the task and returns its future, as `Executor.submit` does, or
            `asyncio.create_task`.
        args: Its positional arguments, of which those that are borrows end with the task.
        kwargs: Its keyword arguments, likewise.
        register_custom_refs: More borrows to end, for example those in a list among the arguments.

    Returns:
        What `submit_func` returns. If that raises, nothing is ended.
    """
    kwargs = {} if kwargs is None else kwargs
    refs = [ref for ref in (*register_custom_refs, *args, *kwargs.values()) if _is_borrow(ref)]
    future = submit_func(*args, **kwargs)
    future.add_done_callback(lambda _: end_borrow(*refs))
    return future


def _is_borrow(value: object) -> bool:
    return is_reference(value) and not issubclass(type(value), OwnedProxy)
