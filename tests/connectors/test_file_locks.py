"""Locks on files: an event loop never waits for one, and a forked child keeps none."""

from __future__ import annotations

import asyncio
import fcntl
import threading
import time

import pytest

from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file.directory import LOCK, PENDING
from proxyplane.connectors.file.publish import file_name
from support.waiting import run_code


@pytest.mark.parametrize("how", ["extend", "put", "set", "swap", "take"])
async def test_the_loop_does_not_wait_for_a_lock(tmp_path, monkeypatch, how):
    """Of a file that another process has locked, and was stopped: a worker thread waits."""
    sleep, here = time.sleep, threading.get_ident()

    def not_here(seconds):
        assert threading.get_ident() != here
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", not_here)
    connector = FileConnector(tmp_path)
    if how == "set":
        key = await connector.new_key()
        path = tmp_path / PENDING / key
    else:
        ttl = {"put": 0.001, "swap": 60, "take": 60}.get(how)
        key = await connector.put([b"x"], key="key", ttl=ttl)
        path = tmp_path / file_name(key)
        await asyncio.sleep(0.01)
    with open(path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        # It stays locked until this loop gets its turn.
        asyncio.get_running_loop().call_later(0.05, fcntl.flock, held, fcntl.LOCK_UN)
        if how == "extend":
            assert await connector.extend([key], 60) == [True]
        elif how == "put":
            await connector.put([b"y"], key=key)
        elif how == "set":
            await connector.set(key, [b"y"])
        else:
            assert await connector.swap(key, [b"y"] if how == "swap" else None) == b"x"
    assert await connector.get(key) == {"extend": b"x", "take": None}.get(how, b"y")


@pytest.mark.parametrize("how", ["put", "swap", "take", "evict"])
async def test_the_loop_does_not_wait_where_names_are_locked(tmp_path, monkeypatch, how):
    """Where names cannot be exchanged, and somebody else changes one: a worker thread waits."""
    flock, here = fcntl.flock, threading.get_ident()

    def not_here(fd, operation):
        assert operation & (fcntl.LOCK_NB | fcntl.LOCK_UN) or threading.get_ident() != here
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", not_here)
    connector = FileConnector(tmp_path)
    connector._swapper.exchanges = False
    await connector.put([b"x"], key="key")
    with open(tmp_path / LOCK, "rb") as held:
        flock(held, fcntl.LOCK_EX)
        asyncio.get_running_loop().call_later(0.05, flock, held, fcntl.LOCK_UN)
        if how == "put":
            await connector.put([b"y"], key="other")
        elif how == "evict":
            assert await connector.evict("key")
        else:
            assert await connector.swap("key", [b"y"] if how == "swap" else None) == b"x"
    assert await connector.get("key") == {"put": b"x", "swap": b"y"}.get(how)


@pytest.mark.parametrize("how", ["extend", "set"])
def test_fork_while_a_lease_is_locked(tmp_path, how):
    """A child does not keep the lock, which would hold up sweeps for as long as it lives."""
    code = """
        import fcntl, os, sys, threading, warnings
        from proxyplane.connectors.file import FileConnector
        from proxyplane.connectors.file.publish import file_name
        from proxyplane.exceptions import ConnectorError
        warnings.simplefilter("ignore", DeprecationWarning)
        connector = FileConnector(sys.argv[1])
        locked, go_on = threading.Event(), threading.Event()
        def wait(*args):
            locked.set()
            go_on.wait()
            raise OSError(5, "it fails")
        if sys.argv[2] == "extend":
            key = connector.put_sync([b"x"], key="key", ttl=60)
            path = f"{connector.directory}/{file_name(key)}"
            connector._leases._write = wait
            call = lambda: connector._extend_sync([key], 90)
        else:
            key = connector._new_key_sync(60)
            path = f"{connector.directory}/.pending/{key}"
            connector._publisher._link_anonymous = connector._publisher._link_named = wait
            call = lambda: connector._set_sync([memoryview(b"x")], key, lambda: None)
        def fail():
            try:
                call()
            except ConnectorError:
                pass
        extending = threading.Thread(target=fail)
        extending.start()
        assert locked.wait(30)
        end_child, child_ends = os.pipe()
        begun, begins = os.pipe()
        child = os.fork()
        if not child:
            os.close(child_ends)
            os.write(begins, b"x")
            os.read(end_child, 1)
            os._exit(0)
        os.read(begun, 1)
        go_on.set()
        extending.join()
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(child_ends)
            os.waitpid(child, 0)
    """
    run_code(code, tmp_path / "objects", how)
