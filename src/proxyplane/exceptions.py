"""Every error proxyplane raises; one root, and this module imports nothing of the package.

The tree (a second base in brackets keeps ``except`` clauses written for the built-in working)::

    ProxyPlaneError
    ├── ConfigError [ValueError]             a URL, option or environment variable is wrong
    │   └── UnknownSchemeError               no connector is registered for this URL scheme
    ├── StoreError
    │   ├── StoreClosedError                 you closed it
    │   ├── StoreExistsError                 the name is taken by a store with another configuration
    │   ├── StoreNotFoundError               no store of this name is registered in this process
    │   └── NonProxiableTypeError [TypeError]
    ├── ConnectorError                       the medium, or the way to it, failed
    │   ├── ConnectorClosedError             you closed it
    │   ├── ConnectorUnavailableError        cannot be reached: refused, no such host, no permission
    │   │   ├── NotAllowedError              an endpoint does not let another one do this
    │   │   └── PeerUnreachableError         the endpoint of this site cannot reach that of another
    │   ├── ConnectorLostError               it broke in the middle; the operation may have happened
    │   ├── KeyExistsError                   keys are write-once and this one is taken
    │   ├── NoConnectorError                 none of several takes the object, or has the key
    │   ├── NotSupportedError                [NotImplementedError] the other side is of an older
    │   │                                    version, which cannot do this; nothing has happened
    │   ├── ObjectLostError                  the key is known, but its object is gone
    │   ├── ObjectTooLargeError              no such object can ever fit
    │   ├── PartialBatchError                some connectors of several failed; see `.errors`
    │   ├── StoreFullError                   there is no room now
    │   └── WrongProcessError                the object lives in the memory of another process
    ├── FutureAlreadySet                     it has a result, an exception, or was cancelled
    ├── FutureCancelled                      no result will come: the producer gave up
    ├── ProducerError                        it failed with an exception that cannot be rebuilt here
    ├── OwnershipError [RuntimeError]        one owner; many readers or one writer
    │   ├── AlreadyOwnedError [ValueError]   the object has an owner, or the proxy is a reference
    │   ├── MutableBorrowError               it is lent, and what was asked for excludes that
    │   ├── ReferenceInvalidError            [ProxyResolveError] moved, or its time is over
    │   └── ReferenceNotOwnedError           only an owner may do this
    ├── SerializationError                   bytes that are no object, or an object that is no bytes
    │   └── UntrustedDataError               not signed as it must be, or of a codec not accepted
    ├── ProxyResolveError                    the target of a proxy could not be had; see `.cause`
    │   ├── ProxyResolveMissingKeyError      its key is not in the store
    │   └── ProxyResolveCycleError           objects need each other
    └── BlockingCallError [RuntimeError]     a blocking call where it must not block
        └── IOThreadError                    the library's own loop thread is gone

    BlockingResolveWarning [RuntimeWarning]  a blocking call or touch stalled a running event loop
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "AlreadyOwnedError",
    "BlockingCallError",
    "BlockingResolveWarning",
    "ConfigError",
    "ConnectorClosedError",
    "ConnectorError",
    "ConnectorLostError",
    "ConnectorUnavailableError",
    "FutureAlreadySet",
    "FutureCancelled",
    "IOThreadError",
    "KeyExistsError",
    "NoConnectorError",
    "MutableBorrowError",
    "NonProxiableTypeError",
    "NotAllowedError",
    "NotSupportedError",
    "ObjectLostError",
    "ObjectTooLargeError",
    "OwnershipError",
    "PartialBatchError",
    "PeerUnreachableError",
    "ProducerError",
    "ProxyPlaneError",
    "ProxyResolveCycleError",
    "ProxyResolveError",
    "ProxyResolveMissingKeyError",
    "ReferenceInvalidError",
    "ReferenceNotOwnedError",
    "SerializationError",
    "StoreClosedError",
    "StoreError",
    "StoreExistsError",
    "StoreFullError",
    "StoreNotFoundError",
    "UnknownSchemeError",
    "UntrustedDataError",
    "WrongProcessError",
]


class ProxyPlaneError(Exception):
    """Root of everything this package raises on purpose.

    Args:
        message: What happened.
        hint: What to do next; printed after the message.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  hint: {self.hint}" if self.hint else message


class ConfigError(ProxyPlaneError, ValueError):
    """A URL, an option or an environment variable is wrong."""


class UnknownSchemeError(ConfigError):
    """No connector is registered for this URL scheme."""


class StoreError(ProxyPlaneError):
    """A store was used in a way it cannot serve."""


class StoreClosedError(StoreError):
    """The store was closed by its owner."""


class StoreExistsError(StoreError):
    """The name is taken, in this process, by a store with another configuration."""


class StoreNotFoundError(StoreError):
    """No store of this name is registered in this process."""


class NonProxiableTypeError(StoreError, TypeError):
    """The object cannot be behind a proxy: `None` and `bool` are compared with ``is``."""


class ConnectorError(ProxyPlaneError):
    """The medium, or the way to it, failed."""


class ConnectorClosedError(ConnectorError):
    """The connector was closed by its owner."""


class ConnectorUnavailableError(ConnectorError):
    """The medium cannot be reached: connection refused, no such host, no permission."""


class NotAllowedError(ConnectorUnavailableError):
    """An endpoint does not let the one that asks, or its site, do this."""


class PeerUnreachableError(ConnectorUnavailableError):
    """The endpoint of this site cannot reach the one that has the object; nothing has happened."""


class ConnectorLostError(ConnectorError):
    """The medium was lost in the middle of an operation, which may or may not have happened."""


class KeyExistsError(ConnectorError):
    """Keys are write-once and this one is taken; what it holds is unchanged."""


class NoConnectorError(ConnectorError):
    """No connector of a `MultiConnector` takes the object, or the key is of one it has not."""


class NotSupportedError(ConnectorError, NotImplementedError):
    """The other side is of an older version, which cannot do this; nothing has happened."""


class ObjectLostError(ConnectorError):
    """The key is known to have held an object, and the object is gone."""


class ObjectTooLargeError(ConnectorError):
    """The object exceeds what the medium can ever hold under one key."""


class PartialBatchError(ConnectorError):
    """A batch over several connectors failed in some of them.

    Attributes:
        errors: What each connector that failed raised, by its name.
        there: What is known of the keys of the others: after evicting, whether there was an object;
            after putting, True for what was stored and could not be taken back.
    """

    def __init__(
        self,
        message: str,
        *,
        errors: dict[str, Exception] | None = None,
        there: dict[str, bool] | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.errors = errors or {}
        self.there = there or {}


class StoreFullError(ConnectorError):
    """The medium has no room for the object now; nothing was written."""


class WrongProcessError(ConnectorError):
    """The object lives in the memory of another process."""


class FutureAlreadySet(ProxyPlaneError):  # noqa: N818  the name says what is the matter
    """A future is set once, and this one is done; nothing has changed."""


class FutureCancelled(ProxyPlaneError):  # noqa: N818  as asyncio.CancelledError is one
    """The future was cancelled, or its producer gave up: no result will come."""


class ProducerError(ProxyPlaneError):
    """A producer failed with an exception that cannot be rebuilt here; its text is the message."""


class SerializationError(ProxyPlaneError):
    """Bytes that do not decode to an object, or an object that does not encode to bytes.

    Attributes:
        reason: Which of the ways it failed.
    """

    Reason = Literal[
        "empty",
        "foreign",
        "version",
        "truncated",
        "trailing",
        "corrupt",
        "codec",
        "encode",
        "decode",
        "unsigned",
        "key",
        "signature",
        "disallowed",
    ]

    def __init__(self, message: str, *, reason: Reason, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_serialization_error, (type(self), self.args[0], self.reason, self.hint)


class UntrustedDataError(SerializationError):
    """Bytes that this reader must not decode; nothing of them was.

    Its `reason` is ``"unsigned"`` (no signature, and one is wanted), ``"key"`` (signed with a key
    that this process does not have), ``"signature"`` (forged, damaged, or put under another key)
    or ``"disallowed"`` (of a codec that the reader does not accept).
    """


class ProxyResolveError(ProxyPlaneError):
    """The target of a proxy could not be had.

    Attributes:
        cause: The exception that the factory raised, also in ``__cause__``.
    """

    def __init__(
        self, message: str, *, cause: BaseException | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


class ProxyResolveMissingKeyError(ProxyResolveError):
    """The key of a proxy is not in its store.

    Attributes:
        key: The key that is missing.
        store: Name of the store.
    """

    def __init__(
        self,
        message: str,
        *,
        key: str = "",
        store: str = "",
        cause: BaseException | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.key = key
        self.store = store


class ProxyResolveCycleError(ProxyResolveError):
    """Decoders or factories wait for each other's objects, which would never end."""


class OwnershipError(ProxyPlaneError, RuntimeError):
    """Against the rules of ownership: one owner, and at any time many readers or one writer."""


class AlreadyOwnedError(OwnershipError, ValueError):
    """The object has an owner in this process, or the proxy is itself an owner or a borrow."""


class MutableBorrowError(OwnershipError):
    """The object is lent, and what was asked for needs it alone, or it is lent to a writer."""


class ReferenceNotOwnedError(OwnershipError):
    """Only an owner may do this: the proxy is none, or owns nothing in this process."""


class ReferenceInvalidError(OwnershipError, ProxyResolveError):
    """The owner or borrow cannot be used any more: it was moved elsewhere, or its time is over."""


class BlockingCallError(ProxyPlaneError, RuntimeError):
    """A blocking call was made where it must not block."""


class IOThreadError(BlockingCallError):
    """The library's event-loop thread cannot serve: it ended, or the interpreter is exiting."""


class BlockingResolveWarning(RuntimeWarning):
    """A blocking call, or a touch of an unresolved proxy, stalled a running event loop."""


def _rebuild_serialization_error(
    cls: type[SerializationError],
    message: str,
    reason: SerializationError.Reason,
    hint: str | None,
) -> SerializationError:
    return cls(message, reason=reason, hint=hint)
