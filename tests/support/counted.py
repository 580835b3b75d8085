"""A medium of each kind, and what counts all that it holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import uuid

from redis import Redis

from proxyplane import (
    Connector,
    EndpointConnector,
    FileConnector,
    LocalConnector,
    MultiConnector,
    RedisConnector,
)
from proxyplane.connectors.file.leases import has_ended
from proxyplane.connectors.multi import Policy
from proxyplane.connectors.redis import parts
from support.waiting import LONG

MB = 1 << 20


def files(directory):
    """All files of objects whose lease has not ended."""
    found = []
    for folder, _, names in os.walk(directory):
        if "/.leases/" not in f"{folder}/":
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    if not has_ended(os.lstat(os.path.join(folder, name))):
                        found.append(name)
    return found


def keys(server, url):
    """All but parts that end by themselves: those of an object that was replaced do so later."""
    with Redis(unix_socket_path=server.socket_path) as client:
        found = client.keys(f"*{url.partition('=')[2]}:*")
        return [one for one in found if b"part:" not in one or client.pttl(one) == -1]


class Plain(Connector):
    """Of a third party: one object at a time, and each step takes a moment."""

    scheme = "plain"
    url = "plain:"

    def __init__(self):
        self.objects = {}

    @classmethod
    def from_url(cls, url):
        raise NotImplementedError

    async def put(self, frames, *, key=None):
        await asyncio.sleep(0.001)
        key = key or uuid.uuid4().hex
        self.objects[key] = b"".join(frames)
        return key

    async def get(self, key, *, size=None):
        return self.objects.get(key)

    async def exists(self, key):
        return key in self.objects

    async def evict(self, key):
        await asyncio.sleep(0.001)
        return self.objects.pop(key, None) is not None

    async def aclose(self, *, clear=False):
        pass


KINDS = ["plain", "local", "file", "multi", "endpoint", "redis", "parts", "cluster"]


def make(kind, request, directory, monkeypatch):
    """A connector, and what counts all that its medium holds."""
    if kind == "plain":
        connector = Plain()
        return connector, lambda: len(connector.objects)
    if kind == "local":
        connector = LocalConnector()
        return connector, lambda: len(connector._medium.entries)
    if kind == "file":
        return FileConnector(directory), lambda: len(files(directory))
    if kind == "endpoint":
        site = request.getfixturevalue("site")
        return EndpointConnector(), lambda: json.loads(site.ask("GET", "/v1/status")[1])["objects"]
    if kind == "cluster":
        url, cluster = map(request.getfixturevalue, ("cluster_url", "redis_cluster"))
        names = f"*{url.partition('=')[2]}:*"
        return RedisConnector(url), lambda: sum(len(one.keys(names)) for one in cluster.clients)
    url, server = map(request.getfixturevalue, ("redis_url", "redis_server"))
    if kind == "multi":
        connector = MultiConnector({
            "redis": (RedisConnector(url), Policy(max_bytes=MB, priority=1)),
            "files": FileConnector(directory),
        })  # fmt: skip
        return connector, lambda: len(keys(server, url)) + len(files(directory))
    if kind == "parts":
        monkeypatch.setattr(parts, "WHOLE", MB)
        monkeypatch.setattr(parts, "PART", MB)
    return RedisConnector(url), lambda: len(keys(server, url))


async def is_left(count, before):
    """Waits until nothing more is there than before, and fails if that takes for ever."""
    until = time.monotonic() + LONG
    while (now := await asyncio.to_thread(count)) != before:
        assert time.monotonic() < until, f"{now - before} objects are left"
        await asyncio.sleep(0.01)
