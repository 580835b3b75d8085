"""Blocking calls of the Redis connector that are forked, interrupted, or not yet over at exit."""

from __future__ import annotations

import asyncio
import os

import pytest

from proxyplane.connectors.redis import RedisConnector
from proxyplane.testing import in_forked_child
from support.servers import admin
from support.tcp_proxy import TCPProxy
from support.waiting import run_code, until

KB = 1 << 10


@pytest.fixture
def connector(redis_url):
    made = RedisConnector(redis_url)
    yield made
    asyncio.run(made.aclose(clear=True))


def alive(connector):
    """The connections for threads that block."""
    return connector._blocking._alive()


# -- forked ----------------------------------------------------------------------------------------


def test_a_forked_child_has_connections_of_its_own(connector):
    """Both go on, and what the child gives back is its own."""
    key = connector.put_sync([b"x"])
    (wire,) = alive(connector)

    def in_child():
        assert wire.closed and not alive(connector)
        return [bytes(connector.get_sync(key)) for _ in range(50)]

    assert [b"x"] * 50 == in_forked_child(in_child)
    assert not wire.closed
    assert [b"x"] * 50 == [connector.get_sync(key) for _ in range(50)]
    assert [wire] == alive(connector)


async def test_forked_while_a_reply_is_on_its_way(redis_server, redis_url):
    """The child reads on a connection of its own; the parent's thread gets its reply."""
    namespace = redis_url.partition("=")[2]
    async with TCPProxy(redis_server.port) as proxy:
        connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
        data = os.urandom(100 * KB)
        key = await asyncio.to_thread(connector.put_sync, [data])
        proxy.cut("down", 30 * KB, "stall")
        asked = asyncio.ensure_future(asyncio.to_thread(connector.get_sync, key))
        await until(lambda: proxy._cut is None)

        def in_child():
            return bytes(connector.get_sync(key)) == data, connector.exists_sync("absent")

        assert (True, False) == await asyncio.to_thread(in_forked_child, in_child)
        assert not asked.done()
        proxy.reset_all()
        assert data == await asked
        await connector.aclose(clear=True)


FORK_FROM_A_SIGNAL = """
import os, signal, sys, threading, time
from proxyplane import RedisConnector
connector = RedisConnector(sys.argv[1])
key = connector.put_sync([b"x"])
os.kill(int(sys.argv[2]), signal.SIGSTOP)
child = None
def handler(*args):
    global child
    child = os.fork()
    if child:
        os.kill(int(sys.argv[2]), signal.SIGCONT)
signal.signal(signal.SIGUSR1, handler)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
found = connector.get_sync(key)
assert found == b"x", found
assert connector.exists_sync("absent") is False
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert connector.evict_sync(key)
    print("both")
else:
    os._exit(0)
"""


def test_forked_by_a_signal_in_the_middle_of_a_call(own_redis_server):
    """Both processes return from that call, each with a reply of its own."""
    server = own_redis_server()
    try:
        done = run_code(
            FORK_FROM_A_SIGNAL.replace("import os,", "import warnings, os,", 1).replace(
                "    child = os.fork()",
                "    warnings.simplefilter('ignore', DeprecationWarning)\n    child = os.fork()",
            ),
            server.url,
            server.pid,
        )
    finally:
        server.resume()
    assert ("both\n", "") == (done.stdout, done.stderr)


# -- interrupted -----------------------------------------------------------------------------------

INTERRUPT = """
import os, signal, sys, threading, time
from proxyplane import RedisConnector
url, pid, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
connector = RedisConnector(url)
connector.put_sync([b"there"], key="there")
connector.evict_sync("absent")  # its way is the loop's, whose connection is there now
calls = {
    "put": lambda: connector.put_sync([b"x" * 1000]),
    "put large": lambda: connector.put_sync([b"x" * (1 << 20)]),
    "put named": lambda: connector.put_sync([b"x"], key="named"),
    "get": lambda: connector.get_sync("there"),
    "evict": lambda: connector.evict_sync("there"),
}
os.kill(pid, signal.SIGSTOP)
def interrupt():
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    os.kill(pid, signal.SIGCONT)
thread = threading.Thread(target=interrupt)
thread.start()
try:
    calls[what]()
except KeyboardInterrupt:
    print("interrupted")
thread.join()
# What was sent has taken effect.
assert connector.exists_sync("named") is (what == "put named")
assert connector.exists_sync("there") is (what != "evict")
for i in range(20):
    key = connector.put_sync([b"%d" % i])
    assert connector.get_sync(key) == b"%d" % i
    assert connector.evict_sync(key)
for key in ("named", "there"):
    connector.evict_sync(key)
"""


@pytest.mark.parametrize("what", ["put", "put large", "put named", "get", "evict"])
def test_an_interrupted_call_leaves_nothing_behind(own_redis_server, what):
    """No reply for the next caller, no object that nobody knows; and what was sent is done."""
    server = own_redis_server()
    try:
        done = run_code(INTERRUPT, server.url, server.pid, what)
    finally:
        server.resume()
    assert ("interrupted\n", "") == (done.stdout, done.stderr)
    with admin(server) as client:
        assert [] == client.keys("*")


CLAIM = """
import os, signal, sys, threading, time
from proxyplane import sync
url, pid = sys.argv[1], int(sys.argv[2])
with sync.Store("s", url) as store:
    proxy = store.proxy([1, 2], evict=True)
    store.exists("absent")
    os.kill(pid, signal.SIGSTOP)
    def interrupt():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        os.kill(pid, signal.SIGCONT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        proxy[0]
    except KeyboardInterrupt:
        print("interrupted")
    thread.join()
    assert proxy[1] == 2
"""


def test_an_interrupted_claim_is_not_lost(own_redis_server):
    """A proxy that evicts still gets its object by the next touch."""
    server = own_redis_server()
    try:
        done = run_code(CLAIM, server.url, server.pid)
    finally:
        server.resume()
    assert ("interrupted\n", "") == (done.stdout, done.stderr)


AT_ANY_TIME = """
import signal, sys, time
from proxyplane import RedisConnector
class Stop(Exception):
    pass
def handler(*args):
    raise Stop
connector = RedisConnector(sys.argv[1])
signal.signal(signal.SIGALRM, handler)
# Of a handler that ran in a finaliser Python can tell nobody.
sys.unraisablehook = lambda it: it.exc_type is Stop or sys.__unraisablehook__(it)
stopped = 0
left = []
end = time.monotonic() + 3
turn = 0
while time.monotonic() < end or not stopped:
    turn += 1
    key = f"key {turn}"
    body = b"%d " % turn * (1 + turn % 400)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.00002 + turn % 50 * 0.000005)
        try:
            connector.put_sync([body], key=key)
            found = connector.get_sync(key)
            there = connector.exists_sync(key)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Stop:
        stopped += 1
        found = connector.get_sync(key)
        assert found is None or found == body, (found, body)
        connector.evict_sync(key)
    else:
        assert found == body and there and connector.evict_sync(key), (found, body)
print("stopped" if stopped else "never")
"""


def test_a_signal_at_any_time_mixes_up_no_replies(own_redis_server):
    """An exception of a signal handler may come between any two steps of a call."""
    server = own_redis_server()
    done = run_code(AT_ANY_TIME, server.url)
    assert ("stopped\n", "") == (done.stdout, done.stderr)
    with admin(server) as client:
        assert [] == client.keys("*")


EXIT = """
import sys
from proxyplane import RedisConnector, sync
connector = RedisConnector(sys.argv[1])
key = connector.put_sync([b"x"])
store = sync.Store("s", sys.argv[1])
proxy = store.proxy([1], populate_target=False)
assert proxy[0] == 1
store.evict_batch([key])
import atexit
atexit.register(lambda: (connector.exists_sync(key), print("ends")))
"""


def test_a_process_ends_without_a_word(redis_url):
    """What was never closed is closed by the system, and can be used until then."""
    done = run_code(EXIT, redis_url)
    assert ("ends\n", "") == (done.stdout, done.stderr)
