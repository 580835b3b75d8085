"""What listens in the place of an endpoint and answers nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from proxyplane import EndpointConnector
from proxyplane.exceptions import ConnectorError
from support.waiting import LONG

NONSENSE = b"{{{"


@pytest.fixture
async def connector(tmp_path, monkeypatch):
    """One that is sure to find its endpoint, whose JSON is none and which never stores anything."""
    site, socket = tmp_path / "site", str(tmp_path / "socket")
    site.mkdir()
    (site / "settings.toml").write_text(f'id = "{"a" * 52}"\n')
    (site / "running.json").write_text(json.dumps({"socket": socket}))
    monkeypatch.setenv("PROXYPLANE_ENDPOINTS", str(tmp_path))
    monkeypatch.delenv("PROXYPLANE_ENDPOINT", raising=False)

    async def answer(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"PUT"):
                    await reader.read()  # until the caller has had enough
                    break
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                await asyncio.sleep(0.1)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(NONSENSE))
                writer.write(NONSENSE)
        writer.close()

    async with await asyncio.start_unix_server(answer, socket):
        made = EndpointConnector("site")
        yield made
        await made.aclose()


async def test_it_is_told(connector):
    """That is an error of the connector's, which names the endpoint."""
    for call in (connector.evict("key"), connector.extend(["key"], 60)):
        with pytest.raises(ConnectorError, match="'site' of this machine does not speak as an"):
            await call


async def test_nobody_waits_for_an_undo_that_fails(connector):
    """Of several puts that are cancelled together each ends, though none can be taken back."""
    tasks = [asyncio.create_task(connector.put([b"x"])) for _ in range(5)]
    await asyncio.sleep(0.2)
    for task in tasks:
        task.cancel()
    done, waiting = await asyncio.wait(tasks, timeout=LONG)
    assert not waiting
    assert all(task.cancelled() for task in done)
