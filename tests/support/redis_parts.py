"""What a Redis server holds of a namespace, parts included."""

from __future__ import annotations

from redis import Redis

from proxyplane.connectors.redis.parts import Layout, layout_of

MB = 1 << 20
WHOLE, PART = 3 * MB, 2 * MB
"""What tests set the limits of `proxyplane.connectors.redis.parts` to."""


class Medium:
    """What another client sees of one namespace."""

    def __init__(self, client: Redis, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    def __call__(self) -> set[bytes]:
        """All keys."""
        return {*self.client.scan_iter(match=f"*{self.namespace}:*", count=1000)}

    def parts(self) -> set[bytes]:
        """The keys of parts."""
        return {name for name in self() if b"}part:" in name}

    def name(self, key: str) -> bytes:
        """The name of a key."""
        return f"{self.namespace}:{key}".encode()

    def layout(self, key: str) -> Layout | None:
        """What the record under a key says."""
        return layout_of(self.client.get(self.name(key)))
