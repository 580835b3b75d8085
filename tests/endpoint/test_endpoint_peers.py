"""Endpoints that ask each other: who may do what, what is forwarded, what survives a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import signal
import socket
import ssl
import subprocess
import sys
import textwrap

import pytest

from plugins.endpoints import here
from proxyplane import Store
from proxyplane.connectors.endpoint import EndpointConnector
from proxyplane.exceptions import (
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
    NotAllowedError,
    ObjectLostError,
    ObjectTooLargeError,
    PeerUnreachableError,
)
from support.endpoints import free_port, introduce, path_of
from support.waiting import until

LONG = 40.0


def at_loopback():
    return f"127.0.0.1:{free_port()}"


def run_at(site, code, *words):
    """Runs Python at a site; returns what it prints."""
    done = subprocess.run(
        site.command(sys.executable, "-W", "error", "-c", textwrap.dedent(code), *words),
        env=site.environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout.strip()


async def test_names(sites):
    """An endpoint of this machine and its peers can be named; nothing names this one."""
    near, far = sites
    assert EndpointConnector().endpoint == near.id
    assert EndpointConnector("near").endpoint == near.id
    assert EndpointConnector("far").url == f"endpoint://{far.id}"
    assert EndpointConnector(far.id).url == f"endpoint://{far.id}"
    slow = EndpointConnector("far", timeout=60, max_connections=3)
    assert slow.url == f"endpoint://{far.id}?max_connections=3&timeout=60"
    assert EndpointConnector(slow.url).url == slow.url


async def test_keys_say_where_the_object_is(sites):
    """A key that the connector made is found with the URL of any endpoint, in one step."""
    near, far = (EndpointConnector(site.name) for site in sites)
    keys = [await near.put([b"near"]), await far.put([b"far"])]
    assert [one.status()["objects"] for one in sites] == [1, 1]
    for connector in (near, far):
        assert [bytes(body) for body in await connector.get_batch(keys)] == [b"near", b"far"]
        assert [await connector.exists(key) for key in keys] == [True, True]
    assert await near.evict_batch(keys) == [True, True]
    assert [one.status()["objects"] for one in sites] == [0, 0]
    for connector in (near, far):
        await connector.aclose()


async def test_a_proxy_crosses_sites(sites):
    """A proxy that was made at one site resolves at the other, which has the object fetched."""
    near, far = sites
    async with Store("crossing", EndpointConnector()) as store:
        pickled = pickle.dumps(await store.proxy({"made": "near"}))
    assert len(pickled) < 250
    code = """
        import asyncio, pickle, sys
        proxy = pickle.loads(bytes.fromhex(sys.argv[1]))
        print(proxy["made"])
    """
    assert run_at(far, code, pickled.hex()) == "near"


async def test_futures_cross_sites(sites):
    """A future is set, and waited for, from either side."""
    near, far = sites
    code = """
        import asyncio, pickle, sys
        future = pickle.loads(bytes.fromhex(sys.argv[1]))
        {}
    """
    async with Store("futures", EndpointConnector()) as store:
        theirs, mine = await store.future(), await store.future()
        set_it = code.format("future.set_result('set far')")
        await asyncio.to_thread(run_at, far, set_it, pickle.dumps(theirs).hex())
        assert await theirs.aresult(timeout=LONG) == "set far"
        wait = code.format(f"print(future.result(timeout={LONG}))")
        waiting = asyncio.create_task(
            asyncio.to_thread(run_at, far, wait, pickle.dumps(mine).hex())
        )
        await until(lambda: near.status()["waiting"] == 1)
        await mine.aset_result("set near")
        assert await waiting == "set near"
    assert [site.status()["waiting"] for site in sites] == [0, 0]


@pytest.mark.parametrize("killed", [0, 1])
async def test_waiters_survive_a_restart(pair, killed):
    """Whoever waits is woken though an endpoint on the way was killed and started again."""
    here_, there = (EndpointConnector(site.name) for site in pair)
    keys = [await there.new_key() for _ in range(100)]
    waiting = [asyncio.create_task(here_.wait(key, LONG)) for key in keys]
    await until(lambda: pair[1].status()["waiting"] == 100)
    for number in (signal.SIGKILL, signal.SIGTERM):
        await asyncio.to_thread(pair[killed].end, number)
        await asyncio.to_thread(pair[killed].start)
    assert not any(task.done() for task in waiting)
    for key in keys:
        await there.set(key, [b"object"])
    assert await asyncio.gather(*waiting) == [None] * 100
    assert [bytes(body) for body in await here_.get_batch(keys)] == [b"object"] * 100
    await here_.aclose()
    await there.aclose()
    await until(lambda: [site.status()["waiting"] for site in pair] == [0, 0])


async def test_what_was_set_meanwhile_is_seen(pair):
    """What is set, and evicted, while the waiter's own endpoint is down is told afterwards."""
    here_ = EndpointConnector(pair[1].name)
    there, gone = await here_.new_key(), await here_.new_key()
    waiting = [asyncio.create_task(here_.wait(key, LONG)) for key in (there, gone)]
    await until(lambda: pair[1].status()["waiting"] == 2)
    await asyncio.to_thread(pair[0].end, signal.SIGKILL)
    path = path_of(there).replace("objects", "later")
    assert pair[1].ask("PUT", path, b"object")[0] == 201
    assert pair[1].ask("DELETE", path_of(gone))[0] == 404
    await asyncio.to_thread(pair[0].start)
    await waiting[0]
    with pytest.raises(ObjectLostError):
        await waiting[1]
    await here_.aclose()


async def test_a_peer_that_does_not_run(pair):
    """Then it is said who cannot be reached, and a waiter goes on until its time is over."""
    connector = EndpointConnector(pair[1].name)
    key, later = await connector.put([b"object"]), await connector.new_key()
    await asyncio.to_thread(pair[1].end)
    with pytest.raises((PeerUnreachableError, ConnectorLostError)):
        await connector.get(key)
    with pytest.raises(PeerUnreachableError, match="'two' at .* cannot be reached"):
        await connector.put([b"another"])
    with pytest.raises(TimeoutError):
        await connector.wait(later, 0.2)
    assert pair[0].status()["peers"]["two"]["up"] is False
    await asyncio.to_thread(pair[1].start)
    assert bytes(await connector.get(key)) == b"object"
    assert pair[0].status()["peers"]["two"]["up"] is True
    await connector.aclose()


@pytest.mark.parametrize("rights", ["read", "write", "wait", ""])
async def test_rights(pair, rights):
    """A peer may do what the list allows, and nothing else."""
    two = pair[1]
    connector = EndpointConnector(two.name)
    key, later, other = (
        await connector.put([b"x"]),
        await connector.new_key(),
        await connector.new_key(),
    )
    two.configure("--allow", f"one={rights}")
    await until(lambda: two.status()["peers"]["one"]["allow"] == ([rights] if rights else []))
    assert two.ask("PUT", path_of(other).replace("objects", "later"), b"x")[0] == 201
    calls = {
        "read": [
            lambda: connector.get(key),
            lambda: connector.exists(key),
            lambda: connector.get_batch([key]),
        ],
        "write": [
            lambda: connector.put([b"x"]),
            lambda: connector.put_batch([[b"x"], [b"y"]]),
            lambda: connector.new_key(),
            lambda: connector.set(later, [b"x"]),
            lambda: connector.evict(key),
        ],
        "wait": [lambda: connector.wait(other, LONG), lambda: connector.wait(other, 0)],
    }
    for right, those in calls.items():
        for call in those:
            if right == rights:
                await call()
            else:
                with pytest.raises((NotAllowedError, ConnectorUnavailableError)):
                    await call()
    await connector.aclose()


@pytest.mark.row("peer of a wrong identity")
async def test_a_stranger_is_refused(make_site, monkeypatch):
    """An endpoint that is not on the list is refused, by whatever it knows of the other."""
    server = make_site("server", listen=at_loopback())
    stranger = make_site("stranger", listen=at_loopback())
    stranger.configure(f"--peer=server={server.id}@{server.listen}")
    for site in (server, stranger):
        site.start()
    here(monkeypatch, stranger)
    connector = EndpointConnector("server")
    for call in (lambda: connector.put([b"x"]), lambda: connector.wait("x", LONG)):
        with pytest.raises(NotAllowedError, match="does not have yours on its list"):
            await call()
    assert f"refused {stranger.id}" in server.log
    server.configure(f"--peer=stranger={stranger.id}@{stranger.listen}")
    await until(lambda: "stranger" in server.status()["peers"])
    key = await connector.put([b"x"])
    server.configure("--forget", "stranger")
    await until(lambda: not server.status()["peers"])
    with pytest.raises(NotAllowedError):
        await connector.get(key)
    await connector.aclose()


@pytest.mark.row("peer of a wrong identity")
async def test_an_impostor_is_noticed(make_site, monkeypatch):
    """One who answers at the address of a peer with another certificate gets nothing to see."""
    server, impostor = (make_site(name, listen=at_loopback()) for name in ("server", "impostor"))
    client = make_site("client", listen=at_loopback())
    client.configure(f"--peer=server={server.id}@{impostor.listen}")
    impostor.configure(f"--peer=client={client.id}@{client.listen}")
    for site in (impostor, client):
        site.start()
    here(monkeypatch, client)
    connector = EndpointConnector("server")
    with pytest.raises(NotAllowedError, match="another fingerprint"):
        await connector.put([b"secret"])
    assert impostor.status()["objects"] == 0
    assert "PUT" not in impostor.ask("GET", "/metrics")[1].decode()
    await connector.aclose()


@pytest.mark.row("peer of a wrong identity")
@pytest.mark.undefended
async def test_an_impostor_undefended(make_site, monkeypatch):
    """Whoever takes any certificate for the right one tells an impostor everything."""
    server, impostor = (make_site(name, listen=at_loopback()) for name in ("server", "impostor"))
    client = make_site("client", listen=at_loopback())
    client.configure(f"--peer=server={server.id}@{impostor.listen}")
    impostor.configure(f"--peer=client={client.id}@{client.listen}")
    impostor.start()
    client.start(
        f"from proxyplane.endpoint import https\nhttps.id_of = lambda shown: {server.id!r}"
    )
    here(monkeypatch, client)
    connector = EndpointConnector("server")
    with contextlib.suppress(ConnectorError):
        await connector.put([b"secret"])
    assert "PUT" in impostor.ask("GET", "/metrics")[1].decode()
    await connector.aclose()


@pytest.mark.row("peer of a wrong identity")
@pytest.mark.undefended
async def test_a_stranger_undefended(make_site, monkeypatch):
    """An endpoint that does not look at its list serves whoever has a certificate."""
    server = make_site("server", listen=at_loopback())
    stranger = make_site("stranger", listen=at_loopback())
    stranger.configure(f"--peer=server={server.id}@{server.listen}")
    stranger.start()
    server.start(
        "from proxyplane.endpoint.peers import Peers\n"
        "from proxyplane.endpoint.transport import Peer\n"
        "Peers.by_id = lambda self, id: Peer('anybody', id, '')"
    )
    server.ask("PUT", path_of("secret"), b"secret")
    here(monkeypatch, stranger)
    connector = EndpointConnector("server")
    assert await connector.get("secret") == b"secret"
    await connector.aclose()


def test_without_a_certificate(sites):
    """Whoever shows no certificate, or a wrong one, learns and gets nothing."""
    far = sites[1]
    far.ask("PUT", path_of("secret"), b"secret")
    host, port = far.listen.split(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def ask(request):
        with socket.create_connection((host, int(port)), 30) as plain:
            with context.wrap_socket(plain) as one:
                one.sendall(request)
                return one.recv(65536)

    for path in (path_of("secret"), "/v1/status", "/metrics", "/healthz", "/v1/watch", "/"):
        answer = ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403"), answer
        assert b"a certificate is needed" in answer
    for body in (b"", b"nonsense", b"x" * 100_000):
        head = f"POST /v1/hello HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        assert ask(head.encode() + body)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 403")


async def test_nothing_is_forwarded_twice(make_site, monkeypatch):
    """What comes from a peer is never sent on to a third endpoint, so nothing goes in circles."""
    made = [make_site(name, listen=at_loopback()) for name in ("a", "b", "c")]
    introduce(*made[:2])
    introduce(*made[1:])
    for site in made:
        site.start()
    a, b, c = made
    here(monkeypatch, b)
    connector = EndpointConnector("c")
    key = await connector.put([b"of c"])
    assert bytes(await connector.get(key)) == b"of c"
    await connector.aclose()
    # One that takes b for c: what it asks of b is for c.
    status, text = a.ask("GET", path_of(key), Endpoint=c.id)
    assert (421, True) == (status, "does not have it as a peer" in json.loads(text)["message"])
    here(monkeypatch, a)
    connector = EndpointConnector(f"endpoint://{c.id}")
    with pytest.raises(ConnectorUnavailableError, match="does not have it as a peer"):
        await connector.get(key)
    await connector.aclose()


async def test_limits_of_a_peer(make_site, monkeypatch):
    """That an object is too large, or there is no room, is said by the one that has it."""
    made = [
        make_site("one", listen=at_loopback()),
        make_site("two", "--max-object", "1MB", listen=at_loopback()),
    ]
    introduce(*made)
    for site in made:
        site.start()
    here(monkeypatch, made[0])
    connector = EndpointConnector("two")
    with pytest.raises(ObjectTooLargeError):
        await connector.put([bytes(30_000_000)])
    assert bytes(await connector.get(await connector.put([b"small"]))) == b"small"
    await connector.aclose()


def test_no_secret_in_the_logs(sites):
    """The logs name endpoints and addresses, and no token or key."""
    for site in sites:
        token = (site.directory / site.name / "token").read_text().strip()
        key = (site.directory / site.name / "identity.pem").read_text().splitlines()[1]
        assert token not in site.log
        assert key not in site.log
