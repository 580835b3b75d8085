"""Objects in a Redis or Valkey server, over ``redis://``, ``rediss://`` (TLS) and ``unix://``."""

from __future__ import annotations

from proxyplane.connectors.redis.connector import RedisConnector as RedisConnector

__all__ = ["RedisConnector"]
