"""What a store checks of its arguments before it does anything."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence

from proxyplane.exceptions import NonProxiableTypeError


def require_key(key: object) -> None:
    """Raises TypeError for what is no key."""
    if not isinstance(key, str):
        forgotten = "; is an `await` missing?" if inspect.isawaitable(key) else ""
        raise TypeError(f"a key is a string, not {type(key).__name__}: {key!r}{forgotten}")


def require_keys(keys: Sequence[str]) -> list[str]:
    """The keys as a list; raises TypeError if they are none."""
    if isinstance(keys, str):
        raise TypeError(f"expected a list of keys, not one string: {keys!r}")
    keys = list(keys)
    for key in keys:
        require_key(key)
    return keys


def is_proxiable(obj: object, skip: bool) -> bool:
    """Whether an object can be behind a proxy; if not, raises NonProxiableTypeError or skips it."""
    if obj is not None and type(obj) is not bool:  # `isinstance` would ask a proxy's target
        return True
    if not skip:
        raise NonProxiableTypeError(
            f"{obj!r} cannot be behind a proxy: code compares it with `is`",
            hint="pass it as it is, or use skip_nonproxiable=True",
        )
    return False


def require_tags(tags: Collection[str]) -> frozenset[str]:
    """The tags as a set; raises TypeError if they are none."""
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
        raise TypeError(f"tags are a collection of strings, not {tags!r}")
    return frozenset(tags)
