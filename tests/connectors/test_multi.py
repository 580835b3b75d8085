"""Which connector a multi-connector chooses, and which it leaves alone."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

import proxyplane as pp
from proxyplane import (
    FileConnector,
    LocalConnector,
    MultiConnector,
    Store,
)
from proxyplane.config import connector_from_url
from proxyplane.connectors.multi import Policy
from proxyplane.connectors.multi import parts as multi_parts
from proxyplane.exceptions import (
    ConnectorClosedError,
    ConnectorUnavailableError,
    KeyExistsError,
    NoConnectorError,
    UnknownSchemeError,
)
from proxyplane.testing import CoroutinesOnly
from support.multi import ELSEWHERE, NO_SERVER, opened, recorders


async def chosen(multi, made, size=1, **kwargs):
    """The name of the connector that an object goes to."""
    before = {name: one.count("put") for name, one in made.items()}
    key = await multi.put([bytes(size)], **kwargs)
    assert await multi.get(key) == bytes(size)
    (name,) = [name for name, one in made.items() if one.count("put") > before[name]]
    return name


# -- choosing ----------------------------------------------------------------------------------


async def test_size_decides():
    """Limits are inclusive, in bytes, over all frames."""
    multi, made = recorders(
        small=Policy(max_bytes=10), middle=Policy(min_bytes=11, max_bytes=20), large=Policy()
    )
    found = [await chosen(multi, made, size) for size in (1, 10, 11, 20, 21)]
    assert found == ["small", "small", "middle", "middle", "large"]
    key = await multi.put([b"12345", b"67890", b"1"])
    assert made["middle"].count("put") == 3
    assert await multi.get(key) == b"12345678901"


async def test_priority_decides_and_then_order():
    """The highest priority goes first; of equals the one that was named first."""
    multi, made = recorders(
        a=Policy(), b=Policy(priority=2, max_bytes=5), c=Policy(priority=2), d=Policy(priority=-1)
    )
    assert await chosen(multi, made, 5) == "b"
    assert await chosen(multi, made, 6) == "c"


async def test_tags_decide():
    """An object's tags are a subset of one set of a policy and a superset of the other."""
    multi, made = recorders(
        both=Policy(subset_tags=["a", "b"], superset_tags=["a"]),
        needs=Policy(superset_tags=["x"]),
        plain=Policy(subset_tags=[]),
        any=Policy(),
    )
    found = {
        tags: await chosen(multi, made, tags=tuple(tags))
        for tags in ("", "a", "ab", "ba", "b", "abc", "x", "ax", "abx", "z")
    }
    assert found == {
        "": "plain",
        "a": "both",
        "ab": "both",
        "ba": "both",
        "b": "any",
        "abc": "any",
        "x": "needs",
        "ax": "needs",
        "abx": "needs",
        "z": "any",
    }
    with pytest.raises(TypeError, match="not one string"):
        await multi.put([b"x"], tags="abc")


async def test_hosts_decide(monkeypatch):
    """Only hosts whose whole name matches a pattern may use a connector."""
    policies = {
        "login": Policy(host_pattern="login"),
        "nodes": Policy(host_pattern=[r"node-\d+", "gpu.*"]),
        "rest": Policy(),
    }
    found = {}
    for host in ("login", "login-1", "node-7", "node-x", "gpu", "a-gpu"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        multi, made = recorders(**policies)
        found[host] = await chosen(multi, made)
    assert found == {
        "login": "login",
        "login-1": "rest",
        "node-7": "nodes",
        "node-x": "rest",
        "gpu": "nodes",
        "a-gpu": "rest",
    }


async def test_a_batch_goes_to_many():
    """Each object of a batch goes where it would go alone, in one call for each connector."""
    multi, made = recorders(small=Policy(max_bytes=10), large=Policy())
    bodies = [bytes([size]) * size for size in (1, 30, 10, 11, 2)]
    keys = await multi.put_batch([[body] for body in bodies])
    assert await multi.get_batch(keys[::-1]) == bodies[::-1]
    assert await multi.evict_batch([*keys, "absent"]) == [True] * 5 + [False]
    for one in made.values():
        assert [one.count(f"{what}_batch") for what in ("put", "evict")] == [
            1,
            1 + (one is made["small"]),
        ]
        assert one.count("put") == 0


async def test_no_connector():
    """If none takes the object, the error says for each why, and nothing was stored."""
    multi, made = recorders(
        small=Policy(max_bytes=10),
        large=Policy(min_bytes=20),
        tagged=Policy(superset_tags=["x", "y"], subset_tags=["x", "y"]),
        there=ELSEWHERE,
    )
    for put in (
        multi.put([bytes(15)], tags=["x", "z"]),
        multi.put([bytes(15)], tags=["x", "z"], key="key"),
        multi.put_batch([[bytes(5)], [bytes(15)]], tags=["x", "z"]),
    ):
        with pytest.raises(NoConnectorError) as caught:
            await put
        for told in (
            "15 bytes tagged 'x', 'z'",
            "small: 15 bytes are above max_bytes=10",
            "large: 15 bytes are below min_bytes=20",
            "tagged: {'z'} is not in subset_tags={'x', 'y'}",
            "there: only hosts matching 'no-such-host-.*' may use it, and this is "
            + repr(socket.gethostname()),
        ):
            assert told in str(caught.value)
    with pytest.raises(NoConnectorError, match="tagged: the object lacks {'y'} of superset_tags"):
        await multi.put([bytes(15)], tags=["x"])
    assert [one.calls for one in made.values()] == [[]] * 4


# -- dormant connectors ------------------------------------------------------------------------


async def test_dormant_connectors_are_made_when_needed(tmp_path):
    """Only the connector of an object is made, and a server that nobody needs need not run."""
    multi = MultiConnector(
        {
            "files": (f"file://{tmp_path}/objects", Policy(max_bytes=100)),
            "server": (NO_SERVER, Policy(priority=1, superset_tags=["remote"])),
            "unknown": ("no-such-scheme://x", Policy(min_bytes=1000)),
        }
    )
    assert opened(multi) == set()
    key = await multi.put([b"object"])
    keys = await multi.put_batch([[b"one"], [b"two"]])
    await multi.put([b"named"], key="name")
    assert await multi.get_batch([key, *keys, "name"]) == [b"object", b"one", b"two", b"named"]
    assert await multi.evict("name") is True
    assert opened(multi) == {"files"}
    with pytest.raises(ConnectorUnavailableError):
        await multi.put([b"object"], tags=["remote"])
    with pytest.raises(UnknownSchemeError, match="no-such-scheme"):
        await multi.put([bytes(1000)])
    assert await multi.get(key) == b"object"
    # It may have been on its way when the connection broke, so there may be something to clear.
    with pytest.raises(ConnectorUnavailableError):
        await multi.aclose(clear=True)
    assert list((tmp_path / "objects").glob("[0-9a-f]*")) == []


async def test_closing_leaves_dormant_connectors_alone(monkeypatch):
    """Closing does not make a connector, only to close it."""
    monkeypatch.setattr(multi_parts, "connector_from_url", None)
    multi = MultiConnector({"server": NO_SERVER})
    await multi.aclose(clear=True)
    with pytest.raises(ConnectorClosedError):
        await multi.get("key")
    assert opened(multi) == set()


async def test_connectors_of_other_hosts_stay_dormant(tmp_path, monkeypatch):
    """What they hold is an error here that says where it can be had; the others work."""
    multi = MultiConnector(
        {"there": (f"file://{tmp_path}/there", ELSEWHERE), "here": f"file://{tmp_path}/here"}
    )
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "no-such-host-1")
        remote = connector_from_url(multi.url)
        key = await remote.put([b"object"])
        await remote.put([bytes(5000)], key="name")
        assert opened(remote) == {"there", "here"}
    mine = await multi.put([b"mine"])
    for call in (
        multi.get(key),
        multi.exists(key),
        multi.evict(key),
        multi.get_batch([key]),
        multi.evict_batch([mine, "absent", key]),
        multi.put([b"x"], key=key),
        multi.get("name"),
        multi.evict("name"),
    ):
        with pytest.raises(ConnectorUnavailableError, match="'there'.*no-such-host-.*and this is"):
            await call
    assert await multi.get(mine) == b"mine"
    assert opened(multi) == {"here"}
    assert await remote.get_batch([key, "name", mine]) == [b"object", bytes(5000), b"mine"]


def test_threads_make_one_connector(tmp_path, monkeypatch):
    """Of many threads that need a dormant connector at once, all get the same."""
    made, barrier = [], threading.Barrier(8)

    def slowly(url):
        barrier.wait(30)
        made.append(CoroutinesOnly(connector_from_url(url)))
        return made[-1]

    monkeypatch.setattr(multi_parts, "connector_from_url", slowly)
    multi = MultiConnector({"files": f"file://{tmp_path}/objects"})
    used = []

    def work():
        part = multi._parts._ranked[0]
        used.append(asyncio.run(multi._parts.open(part)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert (len(made), len(used), len(set(used))) == (8, 8, 1)
    closed = [one for one in made if one.inner._closed]
    assert (len(closed), used[0] in closed) == (7, False)


async def test_closed_while_a_connector_is_made(tmp_path, monkeypatch):
    """A connector that comes too late is closed, and its caller learns why."""
    entered, go_on, made = threading.Event(), threading.Event(), []

    def slowly(url):
        entered.set()
        assert go_on.wait(30)
        made.append(connector_from_url(url))
        return made[-1]

    monkeypatch.setattr(multi_parts, "connector_from_url", slowly)
    multi = MultiConnector({"files": f"file://{tmp_path}/objects"})
    putting = asyncio.ensure_future(multi.put([b"x"]))
    await asyncio.to_thread(entered.wait)
    await multi.aclose()
    go_on.set()
    with pytest.raises(ConnectorClosedError):
        await putting
    assert made[0]._closed


async def test_closing_closes_all(tmp_path):
    """Connectors that were given are closed, those of other hosts too."""
    files, local = FileConnector(tmp_path), LocalConnector()
    multi = MultiConnector({"a": files, "b": (local, ELSEWHERE)})
    async with Store("closing", multi):
        pass
    assert (files._closed, local._closed) == (True, True)


async def test_local_objects_live_as_long_as_the_multi_connector():
    """A LocalConnector is not dormant: its objects would go with the last one that is open."""
    local = LocalConnector()
    multi = MultiConnector({"memory": local})
    key = await multi.put([b"object"])
    other = connector_from_url(multi.url)
    await multi.aclose()
    assert await other.get(key) == b"object"


# -- keys --------------------------------------------------------------------------------------


async def test_chosen_keys_are_where_every_process_finds_them():
    """They stand in the first that takes small things from anywhere, if one does."""
    homes = [
        ({"a": LocalConnector(), "b": NO_SERVER}, "b"),
        ({"a": (NO_SERVER, Policy(host_pattern=".*")), "b": LocalConnector(), "c": NO_SERVER}, "c"),
        ({"a": (NO_SERVER, Policy(priority=-1)), "b": NO_SERVER}, "b"),
        (
            {
                "a": (NO_SERVER, Policy(superset_tags=["x"])),
                "b": (NO_SERVER, Policy(min_bytes=999)),
                "c": NO_SERVER,
            },
            "c",
        ),
        ({"a": LocalConnector(), "b": (NO_SERVER, Policy(superset_tags=["x"]))}, "b"),
        ({"a": LocalConnector()}, "a"),
        ({"a": (NO_SERVER, ELSEWHERE)}, "a"),
    ]
    assert [MultiConnector(one)._parts.home.name for one, _ in homes] == [name for _, name in homes]


async def test_a_chosen_key_is_taken_once_whatever_the_size():
    """A small and a large object go to different connectors, and cannot both have a key."""
    multi, made = recorders(small=Policy(max_bytes=100), large=Policy())
    other = connector_from_url(multi.url)
    bodies = [bytes([number]) * (50 if number % 2 else 5000) for number in range(20)]
    puts = [(multi, other)[i % 3 == 0].put([body], key="key") for i, body in enumerate(bodies)]
    ended = await asyncio.gather(*puts, return_exceptions=True)
    (won,) = [i for i, one in enumerate(ended) if one == "key"]
    assert {type(one) for one in ended} == {str, KeyExistsError}
    assert await multi.get("key") == bodies[won]
    # What the others had stored for their records is gone.
    large = made["large"].inner._medium.entries
    assert len(large) == (len(bodies[won]) > 100)
    assert await other.evict("key") is True
    assert len(large) == 0


async def test_a_made_key_is_put_again():
    """Where it says, whatever the size; a taken one is told as the caller knows it."""
    multi, made = recorders(small=Policy(max_bytes=100), large=Policy())
    key = await multi.put([b"object"])
    with pytest.raises(KeyExistsError, match=key):
        await multi.put([b"x"], key=key)
    await multi.evict(key)
    assert await multi.put([bytes(5000)], key=key) == key
    assert await multi.get(key) == bytes(5000)
    assert made["large"].calls == []


async def test_many_evict_a_chosen_key():
    """Of many who evict a large object under a chosen key, one learns that it was there."""
    multi, made = recorders(small=Policy(max_bytes=100), large=Policy())
    for _ in range(5):
        await multi.put([bytes(5000)], key="key")
        batches = [multi.evict_batch(["key", "key"]) for _ in range(5)]
        answers = await asyncio.gather(*(multi.evict("key") for _ in range(5)), *batches)
        flat = [
            one for answer in answers for one in (answer if isinstance(answer, list) else [answer])
        ]
        assert sorted(flat) == [False] * 14 + [True]
        assert not made["large"].inner._medium.entries
        assert await multi.exists("key") is False


async def test_a_record_whose_object_is_gone():
    """Nothing is there, and the key is free when its record is evicted."""
    multi, made = recorders(small=Policy(max_bytes=100), large=Policy())
    await multi.put([bytes(5000)], key="key")
    made["large"].inner._medium.entries.clear()
    assert await multi.exists("key") is False
    assert await multi.get("key") is None
    assert await multi.get_batch(["key"]) == [None]
    with pytest.raises(KeyExistsError):
        await multi.put([b"x"], key="key")
    assert await multi.evict("key") is True
    assert await multi.put([b"x"], key="key") == "key"


async def test_keys_of_a_connector_that_is_not_described():
    """They are an error, in every operation; as chosen keys they can be used."""
    media = {"a": LocalConnector(), "b": LocalConnector()}
    key = await MultiConnector(media).put([b"object"])
    multi = MultiConnector({"b": media["b"]})
    for call in (
        multi.get(key),
        multi.exists(key),
        multi.evict(key),
        multi.get_batch(["absent", key]),
        multi.evict_batch([key]),
        multi.set(key, [b"x"]),
        multi.wait(key, 0),
    ):
        with pytest.raises(NoConnectorError, match="not among those of this MultiConnector: b"):
            await call
    assert await multi.put([b"chosen"], key=key) == key
    assert await multi.get(key) == b"chosen"
    with pytest.raises(KeyExistsError):
        await multi.set(key, [b"x"])
    await multi.wait(key, 0)
    assert await multi.evict(key) is True
    # More connectors, in another order, do not change what keys say.
    assert await MultiConnector({"c": NO_SERVER, **media}).get(key) == b"object"


async def test_foreign_bytes_under_a_chosen_key():
    """What no multi-connector put there is an error, and not taken for an object."""
    files = LocalConnector()
    multi = MultiConnector({"a": files})
    await files.put([b"foreign"], key="key")
    with pytest.raises(pp.exceptions.ConnectorError, match="'key'.*not put by a MultiConnector"):
        await multi.get("key")


async def test_a_multi_connector_in_a_multi_connector(tmp_path):
    """Tags go inwards, keys come out, and another process finds all of it."""
    tagged = LocalConnector()
    inner = MultiConnector(
        {
            "a": (tagged, Policy(superset_tags=["x"])),
            "b": FileConnector(tmp_path),
        }
    )
    outer = MultiConnector({"inner": (inner, Policy(min_bytes=5)), "rest": LocalConnector()})
    again = connector_from_url(outer.url)
    keys = [
        await outer.put([b"object"], tags=["x"]),
        await outer.put([b"object"]),
        await outer.put([b"tiny"]),
        await outer.put([bytes(9000)], key="name"),
        *await outer.put_batch([[b"object"], [b"tiny"]], tags=["x"]),
        *await outer.put_batch([[b"again"]], tags=["x"]),
    ]
    assert len(tagged._medium.entries) == 3
    found = await again.get_batch(keys)
    assert found == [b"object", b"object", b"tiny", bytes(9000), b"object", b"tiny", b"again"]
    assert await again.evict_batch(keys) == [True] * 7
    future = await outer.new_key(tags=["x"])
    assert len(tagged._medium.pending) == 1
    await again.set(future, [b"later"])
    await outer.wait(future, 30)
    assert await outer.get(future) == b"later"
