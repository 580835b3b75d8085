"""Whatever bytes come to the API of an endpoint, it goes on serving and says so in HTTP."""

from __future__ import annotations

import asyncio
import json
import socket

from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyplane.connectors.endpoint.keys import quote_key
from proxyplane.endpoint.http import make_server
from proxyplane.endpoint.transport import Caller, Reply
from support.endpoints import path_of

HERE = Caller("a test", local=True, rights=frozenset())

METHODS = st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "get", "\0", ""])
ROUTES = ["objects", "read", "write", "evict", "clear", "later", "hello", "status", ""]
ROUTES += ["exists", "extend", "swap"]
LINES = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=60)
PATHS = st.one_of(
    st.builds("/v{}/{}/{}".format, st.integers(0, 3), st.sampled_from(ROUTES), LINES),
    st.builds(
        lambda what, key: f"/v2/{what}/{quote_key(key)}",
        st.sampled_from(["objects", "later", "swap"]),
        st.text(),
    ),
    LINES,
)
NAMES = st.sampled_from(
    [
        *("Content-Length", "Transfer-Encoding", "Range", "Endpoint", "Content-Encoding"),
        *("If-Range", "Lease"),
        *("Expect", "Connection", "Upgrade", "Authorization", "Host", "X" * 9000),
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [
            *("0", "1", "10", "-1", "99999999999999999999", "1e3", "chunked", "gzip", "close"),
            *("100-continue", "bytes=0-", "bytes=-0", "bytes=1-0", "websocket", "a" * 52),
        ]
    ),
    LINES,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["keys", "sizes", "add", "drop", "prefix", "forbid"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
BODIES = st.one_of(st.binary(max_size=50), st.builds(lambda said: json.dumps(said).encode(), JSON))


@st.composite
def requests(draw):
    """Bytes that are a request, or nearly one."""
    body = draw(BODIES)
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    if draw(st.booleans()):
        fields.append(("Content-Length", str(len(body))))
    head = (
        f"{draw(METHODS)} {draw(PATHS)} HTTP/{draw(st.sampled_from(['1.1', '1.0', '2', '']))}\r\n"
    )
    head += "".join(f"{name}: {value}\r\n" for name, value in fields)
    whole = bytearray(f"{head}\r\n".encode("latin-1") + body)
    for at, value in draw(
        st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2)
    ):
        if at < len(whole):
            whole[at] = value
    return bytes(whole)


def test_any_bytes(shared_site):
    """Each answer is one of HTTP, none says that the endpoint failed, and objects are unharmed."""
    shared_site.clear()
    assert shared_site.ask("PUT", path_of("canary \N{BIRD}"), b"sings")[0] == 201

    @settings(max_examples=300)
    @given(st.lists(requests(), min_size=1, max_size=3))
    def run(those):
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(20)
            one.connect(shared_site.socket_path)
            answer = b""
            try:
                one.sendall(b"".join(those))
                one.shutdown(socket.SHUT_WR)
                while piece := one.recv(65536):
                    answer += piece
            except (BrokenPipeError, ConnectionResetError):
                pass
        assert not answer or answer.startswith(b"HTTP/1.")
        assert b"HTTP/1.1 5" not in answer, answer
        assert b"HTTP/1.0 5" not in answer, answer

    run()
    assert shared_site.ask("GET", "/healthz")[0] == 200
    status, body = shared_site.ask("GET", path_of("canary \N{BIRD}"))
    assert status == 404 or body == b"sings"  # it may have been told to clear everything
    shared_site.clear()
    assert shared_site.status()["memory"]["used"] == 0
    assert "Traceback" not in shared_site.log


async def test_those_who_say_nothing(short_path):
    """Whoever connects and asks nothing is sent away; whoever asked may stay."""

    async def handle(caller, request):
        return Reply(204)

    runner = web.ServerRunner(make_server(lambda request: HERE, handle, 0.5))
    await runner.setup()
    path = str(short_path / "silent.sock")
    await web.UnixSite(runner, path).start()
    asker, asker_writer = await asyncio.open_unix_connection(path)
    silent, silent_writer = await asyncio.open_unix_connection(path)
    slow, slow_writer = await asyncio.open_unix_connection(path)
    asker_writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await asker.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
    slow_writer.write(b"GET / HTTP/1.1\r\n")
    assert await silent.read() == await slow.read() == b""
    asker_writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await asker.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
    for writer in (asker_writer, silent_writer, slow_writer):
        writer.close()
    await runner.cleanup()
