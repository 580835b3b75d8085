"""Files under chosen keys: where names cannot be exchanged, and where leases end meanwhile."""

from __future__ import annotations

import os
import threading
import time

import pytest

import proxyplane as pp
from proxyplane.connectors.file import leases as file_leases
from proxyplane.connectors.file import swap as file_swap
from proxyplane.connectors.file.leases import Leases
from proxyplane.connectors.file.publish import file_name
from proxyplane.connectors.file.swap import Swapper
from support.names import no_exchange
from support.waiting import LONG


def test_who_only_evicts_waits_for_the_lock(tmp_path, monkeypatch):
    """Also one who has never put anything, and so cannot know that there is no exchange."""
    no_exchange(monkeypatch)
    writer, other = pp.FileConnector(tmp_path), pp.FileConnector(tmp_path)
    writer.swap_sync("name", [b"1"])
    writer.swap_sync("name", [b"2"])
    for evict in (lambda: other.swap_sync("name", None), lambda: other.evict_sync("name")):
        writer.swap_sync("name", [b"3"])
        thread = threading.Thread(target=evict)
        with writer._swapper.alone():
            thread.start()
            thread.join(0.2)
            assert writer.get_sync("name") == b"3"
        thread.join()
        assert writer.get_sync("name") is None


def test_a_sweep_does_not_take_what_was_put_meanwhile(tmp_path, monkeypatch):
    """Between a sweep's look at a name and its removal, nobody replaces the name."""
    connector = pp.FileConnector(tmp_path)
    sweeper = pp.FileConnector(tmp_path)
    take, link = Leases._take, os.link
    taken_away = []
    thread = threading.Thread(target=lambda: connector.swap_sync("name", [b"2"]))

    def take_later(self, path, found):
        thread.start()
        thread.join(0.2)
        return take(self, path, found)

    def watching(source, target, **options):
        taken_away.extend([source] if "passing" in source else [])
        link(source, target, **options)

    connector.swap_sync("name", [b"1"], ttl=600)
    path = str(tmp_path / file_name("name"))
    os.utime(path, (0, 0))  # ended; but what sweeps in the background knows it not
    assert connector.get_sync("name") is None
    monkeypatch.setattr(file_leases, "_LOCK_SECONDS", 60)
    monkeypatch.setattr(Leases, "_take", take_later)
    monkeypatch.setattr(os, "link", watching)
    assert sweeper._leases.remove_ended(path) is not None
    thread.join()
    assert taken_away == []
    assert connector.get_sync("name") == b"2"


def test_a_sweep_does_not_meet_one_who_evicts(tmp_path, monkeypatch):
    """Whose look came before the end of a lease, and whose removal after it, and a put after that.

    The name never holds nothing once that put has returned.
    """
    connector, sweeper = pp.FileConnector(tmp_path), pp.FileConnector(tmp_path)
    connector.put_sync([b"1"], key="name", ttl=600)
    path = str(tmp_path / file_name("name"))
    looked, go_on = threading.Event(), threading.Event()
    unlink, rename, take = os.unlink, os.rename, Leases._take
    gone = []

    def evict_and_put():
        assert connector.evict_sync("name")
        connector.put_sync([b"2"], key="name")

    thread = threading.Thread(target=evict_and_put)

    def unlink_later(name, **options):
        if name == path and threading.current_thread() is thread:
            looked.set()
            assert go_on.wait(LONG)
        unlink(name, **options)

    def take_late(self, *args):
        go_on.set()
        thread.join()
        return take(self, *args)

    def rename_and_look(source, target, **options):
        rename(source, target, **options)
        gone.extend([target] if source == path and connector.get_sync("name") is None else [])

    monkeypatch.setattr(os, "unlink", unlink_later)
    monkeypatch.setattr(os, "rename", rename_and_look)
    monkeypatch.setattr(Leases, "_take", take_late)
    thread.start()
    assert looked.wait(LONG)
    os.utime(path, (0, 0))  # it ends
    sweeper._leases.remove_ended(path)
    go_on.set()
    thread.join()
    assert gone == []
    assert connector.get_sync("name") == b"2"


def test_what_a_killed_sweep_took_by_mistake_is_put_back(tmp_path, monkeypatch):
    """A sweep that was stopped for so long that nobody waited for its lock, and then killed."""
    connector = pp.FileConnector(tmp_path)
    connector.put_sync([b"1"], key="other", ttl=600)  # so that there is a folder of leases
    connector.put_sync([b"2"], key="name", ttl=600)
    path = str(tmp_path / file_name("name"))
    os.utime(path, (0, 0))
    found, rename = os.lstat(path), os.rename

    def replaced_first(source, target):
        connector.put_sync([b"3"], key="name")
        rename(source, target)
        raise KeyboardInterrupt

    def make_way(self, path, wait):
        os.unlink(path)  # without the lock
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Leases, "make_way", make_way)
        patch.setattr(os, "rename", replaced_first)
        with pytest.raises(KeyboardInterrupt):
            connector._leases._take(path, found)
    assert connector.get_sync("name") is None
    connector._sweep_sync()
    assert connector.get_sync("name") == b"3"


# -- those who exchange names beside those who cannot ---------------------------------------------


def test_both_kinds_heed_the_same_lock(tmp_path, monkeypatch):
    """One who has exchanged names before waits for one who cannot, and each gets what was there."""
    able, unable = pp.FileConnector(tmp_path), pp.FileConnector(tmp_path)
    unable._swapper.exchanges = False
    able.swap_sync("name", [b"0"])
    able.swap_sync("name", [b"1"])  # now it knows that it can
    got = []
    thread = threading.Thread(target=lambda: got.append(able.swap_sync("name", [b"3"])))
    had = Swapper._had

    def had_and_wait(self, *args):
        was = had(self, *args)
        if self is unable._swapper:
            thread.start()
            thread.join(0.2)
        return was

    monkeypatch.setattr(Swapper, "_had", had_and_wait)
    got.append(unable.swap_sync("name", [b"2"]))
    thread.join()
    assert got == [b"1", b"2"]
    assert able.get_sync("name") == b"3"


def test_the_first_who_cannot_lets_those_end_who_began(tmp_path, monkeypatch):
    """Who looked for the lock before there was one may still be about to exchange."""
    able, unable = pp.FileConnector(tmp_path), pp.FileConnector(tmp_path)
    unable._swapper.exchanges = False
    able.swap_sync("name", [b"1"])
    got = []
    thread = threading.Thread(target=lambda: got.append(able.swap_sync("name", [b"2"])))
    looked, go_on = threading.Event(), threading.Event()
    exchange, had, sleep = file_swap._exchange, Swapper._had, time.sleep

    def exchange_late(*args):
        looked.set()
        assert go_on.wait(LONG)
        exchange(*args)

    def others_go_on(seconds):
        go_on.set()
        thread.join()

    def had_and_go_on(self, *args):
        was = had(self, *args)
        if self is unable._swapper:
            others_go_on(0)
        return was

    monkeypatch.setattr(file_swap, "_exchange", exchange_late)
    monkeypatch.setattr(time, "sleep", others_go_on)
    monkeypatch.setattr(Swapper, "_had", had_and_go_on)
    thread.start()
    assert looked.wait(LONG)
    got.append(unable.swap_sync("name", [b"3"]))
    monkeypatch.setattr(time, "sleep", sleep)
    assert got == [b"1", b"2"]
    assert able.get_sync("name") == b"3"
