"""Files under chosen keys: where names cannot be exchanged, and where leases end meanwhile."""

from __future__ import annotations

import os
import threading

import proxyplane as pp
from proxyplane.connectors import _file_leases
from proxyplane.connectors._file_io import file_name
from proxyplane.connectors._file_leases import Leases
from support.names import no_exchange


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
    monkeypatch.setattr(_file_leases, "_LOCK_SECONDS", 60)
    monkeypatch.setattr(Leases, "_take", take_later)
    monkeypatch.setattr(os, "link", watching)
    assert sweeper._leases.remove_ended(path) is not None
    thread.join()
    assert taken_away == []
    assert connector.get_sync("name") == b"2"
