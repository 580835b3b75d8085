"""What a reader accepts, and how a writer signs: a keyed MAC over an object and its key.

The MAC covers the key under which an object is stored and every byte of the object but its own,
so that an object can be neither changed nor put in the place of another. It is checked before
anything else is done with the bytes but to find the MAC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from proxyplane import _frames
from proxyplane._secrets import Secret, read_at_once, read_secret
from proxyplane.abc import Buffer
from proxyplane.exceptions import ConfigError, UntrustedDataError

__all__ = ["SHORTEST_KEY", "NOTHING_ASKED", "Trust", "private"]

SHORTEST_KEY: Final = 16
"""Bytes that a signing key has at least."""

FAILURE_PICKLED: Final = "proxyplane.failures:FAILURES"
FAILURE_TOLD: Final = "proxyplane.failures:TOLD"
"""Ids of the two serialisers of exceptions, see `proxyplane.failures`."""

# Sets this use of the hash apart from every other, also of the same secret.
_ID: Final = b"proxyplane keyid"
_DERIVE: Final = b"proxyplane mac k"
_FRAME: Final = b"proxyplane frame"

_ADVICE = "give the reader the writer's signing key, by reference: Store(..., signing_key='env:…')"


class _SigningKey:
    """One key. The secret itself is not kept, only the state of a hash that was begun with it.

    Attributes:
        id: What names the key in an object.
    """

    __slots__ = ("_begun", "id")

    def __init__(self, secret: Secret, reference: str) -> None:
        from hashlib import blake2b  # loads OpenSSL, which nothing else here needs

        if len(secret.data()) < SHORTEST_KEY:
            raise ConfigError(
                f"the signing key at {reference} has fewer than {SHORTEST_KEY} bytes",
                hint="make one with: openssl rand -hex 32",
            )
        # A key of BLAKE2 has at most 64 bytes, a secret any number.
        self.id = blake2b(secret.data(), digest_size=_frames.KEY_ID, person=_ID).digest()
        self._begun = blake2b(
            key=blake2b(secret.data(), person=_DERIVE).digest(),
            digest_size=_frames.MAC,
            person=_FRAME,
        )

    def begin(self, key: str) -> Any:
        """The hash, after the key under which the object is stored."""
        named = key.encode("utf-8", "surrogatepass")
        mac = self._begun.copy()
        mac.update(len(named).to_bytes(8, "little"))
        mac.update(named)
        return mac

    def __repr__(self) -> str:
        return f"<signing key {self.id.hex()}>"


class Trust:
    """What one store asks of the bytes that it reads, and does to those that it writes.

    Args:
        keys: References to the signing keys: the first signs, and all are accepted. None of them:
            nothing is signed, and what is signed cannot be checked and is refused.
        allow: Ids of the codecs that are read and written; None for all.
        what: Whose keys they are, for messages.
    """

    def __init__(
        self, keys: Sequence[str] = (), allow: Iterable[str] | None = None, what: str = "a store"
    ) -> None:
        self.references = tuple(keys)
        self.allow = None if allow is None else frozenset(allow)
        self._what = f"the signing key of {what}"
        self._keys: dict[bytes, _SigningKey] | None = None

    @property
    def signs(self) -> bool:
        """Whether objects are signed, and must be."""
        return bool(self.references)

    @property
    def takes_pickles(self) -> bool:
        """Whether pickles are accepted."""
        return self.allow is None or "pickle" in self.allow

    @property
    def ready(self) -> bool:
        """Whether the keys are known, or can be without blocking."""
        if not self.references or self._keys is not None:
            return True
        return all(map(read_at_once, self.references))

    def key_id(self) -> bytes | None:
        """Id of the key that signs; None if nothing is signed.

        Raises:
            ConfigError: A key cannot be had.
        """
        return next(iter(self._loaded())) if self.references else None

    def sign(self, frames: Sequence[Buffer], key: str) -> list[Buffer]:
        """The frames, made with `key_id`, with their MAC for the key under which they are stored.

        Raises:
            ConfigError: A key cannot be had.
        """
        head = bytearray(frames[0])
        at = _frames.PREAMBLE.size + _frames.KEY_ID
        signing = self._loaded()[bytes(head[_frames.PREAMBLE.size : at])]
        mac = signing.begin(key)
        mac.update(head[:at])
        mac.update(head[at + _frames.MAC :])
        for frame in frames[1:]:
            mac.update(frame)
        head[at : at + _frames.MAC] = mac.digest()
        return [bytes(head), *frames[1:]]

    def check(self, view: memoryview, key: str | None) -> memoryview:
        """Checks the signature of an object.

        Args:
            view: Its bytes, flat.
            key: The key under which it was found.

        Returns:
            The bytes that were checked: a copy, where others may be able to write to `view`.

        Raises:
            UntrustedDataError: It is not signed and must be, or the signature is not good here.
            SerializationError: The bytes are no object.
        """
        if not self.references and not _frames.may_be_signed(view):
            return view
        found = _frames.signature_of(view)
        if found is None:
            raise UntrustedDataError(
                f"the object {key!r} is not signed, and {self._what} is wanted",
                reason="unsigned",
                hint="the writer must use the same signing_key=; otherwise somebody else wrote it",
            )
        if not self.references or key is None:
            raise UntrustedDataError(
                f"the object {key!r} is signed, and there is no key here to check it",
                reason="key",
                hint=_ADVICE,
            )
        try:
            keys = self._loaded()
        except ConfigError as error:
            raise UntrustedDataError(
                f"the object {key!r} cannot be checked: {error.args[0]}",
                reason="key",
                hint=error.hint,
            ) from error
        signing = keys.get(found[0])
        if signing is None:
            raise UntrustedDataError(
                f"the object {key!r} is signed with a key that this process does not have, of the "
                f"id {found[0].hex()}; it has {', '.join(one.hex() for one in keys)}",
                reason="key",
                hint="while keys change, name both: signing_key=('env:NEW', 'env:OLD')",
            )
        view = private(view)
        from hmac import compare_digest  # loads OpenSSL

        at = _frames.PREAMBLE.size + _frames.KEY_ID
        mac = signing.begin(key)
        mac.update(view[:at])
        mac.update(view[at + _frames.MAC :])
        if not compare_digest(mac.digest(), view[at : at + _frames.MAC]):
            raise UntrustedDataError(
                f"the signature of the object {key!r} is wrong: it was changed, damaged, or put "
                "under another key",
                reason="signature",
                hint="do not use it; put it again, and see who can write to the medium",
            )
        return view

    def reopen(self, buffer: Buffer, key: str) -> list[Buffer]:
        """The frames of a stored object, checked, and ready to be signed for another key.

        Raises:
            UntrustedDataError: As `check`.
        """
        view = self.check(_frames.flat_view(buffer), key)
        at, end = _frames.PREAMBLE.size, _frames.PREAMBLE.size + _frames.SIGNATURE
        head = b"".join((view[:at], self.key_id() or b"", bytes(_frames.MAC)))
        return [head, view[end:]]

    def check_codec(self, codec: str, key: str | None) -> None:
        """Refuses a codec that is not accepted.

        Raises:
            UntrustedDataError: It is not.
        """
        if self.allow is not None and codec not in self.allow and not self._is_failure(codec):
            raise UntrustedDataError(
                f"the object {key!r} is encoded by {codec!r}, and this store accepts only "
                f"{', '.join(sorted(self.allow)) or 'nothing'}",
                reason="disallowed",
                hint="let the writer use one of these as its serializer=, or extend allow=",
            )

    def _is_failure(self, codec: str) -> bool:
        # Exceptions of futures: as text always, and as pickles where those are accepted.
        return codec == FAILURE_TOLD or (codec == FAILURE_PICKLED and self.takes_pickles)

    def _loaded(self) -> dict[bytes, _SigningKey]:
        keys = self._keys
        if keys is None:
            made = [_SigningKey(read_secret(one, what=self._what), one) for one in self.references]
            # In one step, since other threads look here; each would put the same.
            keys = self._keys = {one.id: one for one in made}
        return keys

    def __repr__(self) -> str:
        allow = "everything" if self.allow is None else sorted(self.allow)
        return f"<Trust in {allow}, signed with {self.references or 'nothing'}>"


def private(view: memoryview) -> memoryview:
    """Bytes that are to be checked, in memory to which nobody but this process can write.

    Who maps the same file could change it between the check and the use.
    """
    owner: Any = view.obj
    if type(owner) is bytes or type(owner) is bytearray:
        return view
    return memoryview(bytearray(view))


NOTHING_ASKED: Final = Trust()
"""Nothing is signed, and every codec is accepted."""
