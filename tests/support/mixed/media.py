"""The media of mixed work, and what is left in them, seen behind the library's back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis import Redis

from proxyplane.connectors.endpoint import EndpointConnector
from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.local import LocalConnector
from proxyplane.connectors.multi import MultiConnector
from proxyplane.connectors.redis import RedisConnector
from support.endpoints import Site


def media(directory: Path, redis_url: str, site: Site) -> dict[str, str]:
    """The URL of each, by name; empty for what each process makes for itself.

    Args:
        directory: For files.
        redis_url: Of a server, without options.
        site: An endpoint that runs.
    """
    parts = {
        "small": f"{redis_url}?namespace=mixed.small",
        "large": (directory / "large").as_uri(),
    }
    multi = MultiConnector.from_table(
        {
            "small": {"url": parts["small"], "max_bytes": 50_000, "priority": 1},
            "large": {"url": parts["large"]},
        }
    )
    return {
        "local": "",
        "file": (directory / "objects").as_uri(),
        "redis": f"{redis_url}?namespace=mixed.direct",
        "redis-py": f"{redis_url}?namespace=mixed.redis-py&wire=redis-py",
        "multi": multi.url,
        "endpoint": f"endpoint://{site.id}",
    }


def left_in(connector: Any) -> int:
    """How many objects, and registrations of futures, there are, also those nobody can find."""
    if isinstance(connector, MultiConnector):
        return sum(map(left_in, connector._parts._made.values()))
    return sum(1 for _ in _left(connector))


def _left(connector: Any) -> Iterator[object]:
    match connector:
        case LocalConnector():
            yield from [*connector._medium.entries, *connector._medium.pending]
        case FileConnector():
            for where, _, files in os.walk(connector.directory):
                yield from (os.path.join(where, name) for name in files)
        case RedisConnector():
            options = connector._options
            with Redis(options.host, options.port) as client:
                yield from client.scan_iter(f"{options.namespace}:*", count=1000)
        case EndpointConnector():
            folder, name = os.environ["PROXYPLANE_ENDPOINTS"], os.environ["PROXYPLANE_ENDPOINT"]
            status = Site(Path(folder).parent, name).status()
            yield from range(status["objects"] + status["awaited"])
