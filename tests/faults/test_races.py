"""Two who set a key at the same time, and one who evicts it meanwhile, at the worst moment."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading

import pytest

from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file import waiting as file_waiting
from proxyplane.connectors.file.publish import Publisher
from proxyplane.connectors.file.waiting import Registrations
from proxyplane.connectors.redis import RedisConnector, client
from proxyplane.connectors.redis.later import WAS_SET, record_name
from proxyplane.connectors.redis.resp import command
from proxyplane.exceptions import KeyExistsError, ObjectLostError
from support.soak import defended_or_not, tally
from support.waiting import LONG, on_thread


def is_right(tried, found):
    """Whether one of two sets succeeded, the other one was told, and the object is the first's."""
    winners = [number for number, raised in enumerate(tried) if raised is None]
    return (
        len(winners) == 1
        and found == b"%d" % winners[0]
        and isinstance(tried[1 - winners[0]], KeyExistsError)
    )


@pytest.mark.row("set racing set")
@defended_or_not
@pytest.mark.parametrize("anonymous", [True, False])
async def test_two_setters_who_saw_it_unset(tmp_path, monkeypatch, anonymous, defended):
    """Of two who both found a file not there, one gives it its name: a link is made once.

    Without the lock, and with a name that is taken over, both do.
    """
    connector = FileConnector(tmp_path / "objects")
    connector._publisher.anonymous = anonymous and defended
    look, count, both = Registrations.refuse_set, itertools.count(), threading.Barrier(2)

    def refuse_set(self, key):
        look(self, key)
        if next(count) < (2 if defended else 4):
            both.wait(LONG)

    monkeypatch.setattr(Registrations, "refuse_set", refuse_set)
    if not defended:
        monkeypatch.setattr(file_waiting, "lock_or_stall", lambda fd, wait: None)

        def rename(self, temporary, target, unique):
            os.rename(temporary, target)

        monkeypatch.setattr(Publisher, "_link_named", rename)
    key = await connector.new_key()
    setting = [on_thread(lambda n=n: connector.set(key, [b"%d" % n])) for n in range(2)]
    tried = await asyncio.gather(*map(asyncio.wrap_future, setting), return_exceptions=True)
    assert is_right(tried, await connector.get(key)) is defended, tried
    tally.tries = 1


@pytest.mark.row("set racing set")
@defended_or_not
async def test_two_setters_at_a_server(redis_url, monkeypatch, defended):
    """Of two transactions that set a key one finds the record, which it takes away.

    Without a record that must be there, and a name that must not, the second one replaces it.
    """
    connector = RedisConnector(redis_url)
    if not defended:

        def setting(name, body, *, cluster=False):
            return [
                command("MULTI"),
                *body.set_command(record_name(name)),
                command("RENAME", record_name(name), name),
                command("EXISTS", name),
                command("PUBLISH", name, WAS_SET),
                command("EXEC"),
            ]

        monkeypatch.setattr(client, "setting", setting)
        monkeypatch.setattr(client, "what_was_set", lambda replies: "set")
    key = await connector.new_key()
    setting_both = (connector.set(key, [b"%d" % number]) for number in range(2))
    tried = await asyncio.gather(*setting_both, return_exceptions=True)
    assert is_right(tried, await connector.get(key)) is defended, tried
    tally.tries = 1
    await connector.aclose(clear=True)


@pytest.mark.row("set racing evict")
@defended_or_not
@pytest.mark.parametrize("anonymous", [True, False])
async def test_evicted_just_before_it_is_published(tmp_path, monkeypatch, anonymous, defended):
    """A set whose key is evicted after its last look withdraws its object, and raises.

    Without a look at what became of the registration, an evicted key holds an object.
    """
    connector, other = FileConnector(tmp_path / "objects"), FileConnector(tmp_path / "objects")
    connector._publisher.anonymous = anonymous
    if not defended:
        monkeypatch.setattr(Registrations, "settle", lambda self, key, wrote: self.remove(key))
    key = await connector.new_key()
    publish, evicted = connector._publisher.publish, []

    def late(name, bodies, *, unique, check):
        def evict():
            ends = check()
            evicted.append(other.evict_sync(key))
            return ends

        return publish(name, bodies, unique=unique, check=evict)

    monkeypatch.setattr(connector._publisher, "publish", late)
    (raised,) = await asyncio.gather(connector.set(key, [b"x"]), return_exceptions=True)
    assert evicted == [False]
    assert isinstance(raised, ObjectLostError) is defended
    assert await connector.get(key) == (None if defended else b"x")
    tally.tries = 1
