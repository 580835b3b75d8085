"""Batches that go to several connectors at once, and what is true when some of them fail."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping
from typing import Any

from proxyplane.abc import Connector
from proxyplane.connectors._multi_keys import join
from proxyplane.connectors._tasks import to_the_end
from proxyplane.connectors.multi.parts import Part, options
from proxyplane.exceptions import PartialBatchError, ProxyPlaneError

Groups = Mapping[Part, tuple[Connector, list[list[memoryview]]]]
Putting = Mapping[Part, asyncio.Task[list[str]]]


async def put_all(
    groups: Groups, tags: Collection[str], ttl: float | None
) -> dict[Part, list[str]]:
    """Puts in several connectors at once, everything or nothing; gives the inner keys."""
    chosen = {part: options(connector, tags, ttl) for part, (connector, _) in groups.items()}
    if len(groups) == 1:
        ((part, (connector, batch)),) = groups.items()
        return {part: await connector.put_batch(batch, **chosen[part])}
    tasks = {
        part: asyncio.ensure_future(connector.put_batch(batch, **chosen[part]))
        for part, (connector, batch) in groups.items()
    }
    try:
        await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        errors = _errors(tasks)
        if not errors:
            return {part: task.result() for part, task in tasks.items()}
    except BaseException:
        await to_the_end(_take_back(groups, tasks))
        raise
    left, more = await to_the_end(_take_back(groups, tasks))
    raise _partial("stored", errors | more, dict.fromkeys(left, True))


async def _take_back(groups: Groups, tasks: Putting) -> tuple[list[str], dict[str, Exception]]:
    """Ends puts and evicts what they stored; gives the keys that could not be, and why."""
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    left: list[str] = []
    errors: dict[str, Exception] = {}
    for part, task in tasks.items():
        if task.cancelled() or task.exception() is not None:
            continue
        try:
            await groups[part][0].evict_batch(task.result())
        except ProxyPlaneError as error:
            errors[part.name] = error
            left += [join(part.mark, key) for key in task.result()]
    return left, errors


def _errors(tasks: Putting) -> dict[str, Exception]:
    errors: dict[str, Exception] = {}
    for part, task in tasks.items():
        error = task.exception() if task.done() else None  # raises if the task was cancelled
        if isinstance(error, Exception):
            errors[part.name] = error
        elif error is not None:
            raise error
    return errors


async def evict_all(
    calls: Mapping[str, tuple[Coroutine[Any, Any, list[bool]], Mapping[int, str]]],
) -> dict[int, bool]:
    """Evicts in several connectors at once; the others go on when one fails.

    Args:
        calls: By the name of the connector, what evicts, and the keys by their place.

    Returns:
        What was there, by place.

    Raises:
        PartialBatchError: Some failed, and others did not.
    """
    there: dict[int, bool] = {}
    known: dict[str, bool] = {}
    errors: dict[str, Exception] = {}
    ended = await asyncio.gather(*(call for call, _ in calls.values()), return_exceptions=True)
    for (name, (_, keys)), answers in zip(calls.items(), ended, strict=True):
        if isinstance(answers, Exception):
            errors[name] = answers
        elif isinstance(answers, BaseException):
            raise answers
        else:
            for (place, key), answer in zip(keys.items(), answers, strict=True):
                there[place] = answer
                known[key] = answer or known.get(key, False)  # it may come twice
    if errors:
        raise _partial("evicted", errors, known)
    return there


def _partial(what: str, errors: dict[str, Exception], there: dict[str, bool]) -> Exception:
    """The error of a batch of which some was done; if nothing was, the first one itself."""
    first = next(iter(errors.values()))
    if not there:
        return first
    told = "; ".join(f"{name}: {error}" for name, error in errors.items())
    partial = PartialBatchError(
        f"a batch was {what} in part only, because connectors failed: {told}",
        errors=errors,
        there=there,
        hint="`errors` has what each connector raised, `there` what is known of other keys",
    )
    partial.__cause__ = first
    return partial
