"""Somebody waits for an object that does not come, when the process exits, forks, or gets Ctrl-C.

Each row has a variant in which the defence is switched off, and which then must go wrong.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from support.soak import SOAK, defended_or_not, tally, times

EAGER_OFF = {"PROXYPLANE_EAGER": "0"}


@pytest.fixture(params=["local", "file", "redis"])
def medium(request, tmp_path):
    """The URL of a medium on which one can wait; of the memory of the script itself, "local"."""
    if request.param == "file":
        return (tmp_path / "objects").as_uri()
    return "local" if request.param == "local" else request.getfixturevalue("redis_url")


# The thread of the library's loop, as one for which the interpreter waits.
NOT_A_DAEMON = """
import types
from proxyplane._runtime import io_thread as module
class NotADaemon(threading.Thread):
    def __init__(self, *args, daemon, **kwargs):
        super().__init__(*args, daemon=False, **kwargs)
module.threading = types.SimpleNamespace(**{**vars(threading), "Thread": NotADaemon})
"""
WAYS = {
    "awaited": "thread(lambda: asyncio.run(wait()), daemon=True)",
    "blocked": "thread(future.result, daemon=True)",
    "touched": "thread(lambda: len(proxy), daemon=True)",
    "in the background": "proxy = fresh(proxy)",
    "on a loop that ends": "asyncio.run(wait_and_leave())",
}
EXITS = """
store, connector = open_store(URL)
future = store.future()
proxy = future.proxy()
async def wait():
    await future
async def wait_and_leave():
    task = asyncio.ensure_future(wait())
    while not waited_for(connector):
        await asyncio.sleep(0.01)
    say("waits")
{way}
if "leave" not in {way!r}:
    wait_until(lambda: waited_for(connector))
    say("waits")
"""


@pytest.mark.row("exit while waiting")
@pytest.mark.parametrize("way", WAYS)
def test_exit(start, medium, way):
    """The process ends promptly, with status 0 and without a word, however somebody waits."""
    took = []
    for _ in range(times("exit while waiting")):
        env = {} if way == "in the background" else EAGER_OFF
        script = start(EXITS.format(way=WAYS[way]), medium, env)
        script.expect("waits")
        began = time.monotonic()
        assert script.end() == ""
        took.append(time.monotonic() - began)
    tally.recovered += took
    # A busy machine makes it longer, never shorter; and only of many tries is one undisturbed.
    assert not SOAK or min(took) < 2


@pytest.mark.row("exit while waiting")
@pytest.mark.parametrize("defended", [False], ids=["undefended"])
def test_exit_undefended(start, medium, defended):
    """If the interpreter had to wait for the library's thread, it would never end."""
    script = start(NOT_A_DAEMON + EXITS.format(way=WAYS["blocked"]), medium, EAGER_OFF)
    script.expect("waits")
    with pytest.raises(subprocess.TimeoutExpired):
        script.process.wait(3)


INTERRUPTS = """
{before}
store, connector = open_store(URL)
def one_round(n):
    future = store.future()
    proxy = future.proxy()
    thread(lambda: (wait_until(lambda: waited_for(connector)), say("waits")))
    try:
        {call}
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError
    {check}
    future.set_result([n])
    assert {call} == 1 and proxy == [n] and future.result() == [n]
one_round(0)
before = descriptors()
for n in range(TIMES):
    one_round(n)
assert descriptors() <= before, (descriptors(), before)
assert not flights._process.flights and not flights._process.waits
store.close(clear=True)
say("done")
"""


@pytest.mark.row("interrupt while waiting")
@defended_or_not
@pytest.mark.parametrize("call", ["len(future.result())", "len(proxy)"], ids=["result", "touch"])
def test_interrupt(start, medium, call, defended):
    """Ctrl-C ends the wait: nobody waits any more, nothing is held, and the future works."""
    count = times("interrupt while waiting") if defended else 0
    before = f"TIMES = {count}\n"
    check = "wait_until(lambda: not waited_for(connector))"
    if not defended:
        before += (
            "from proxyplane._runtime import io_thread as module\n"
            "module.CLEANUP_TIMEOUT = 0.2\n"
            "module.Spawned.cancel = lambda self: None\n"
        )
        check = "time.sleep(0.5); assert waited_for(connector); say('leaks'); os._exit(0)"
    source = INTERRUPTS.format(before=before, call=call, check=check)
    script = start(source, medium, EAGER_OFF)
    for _ in range(count + 1):
        script.expect("waits")
        script.interrupt()
    script.expect("done" if defended else "leaks")
    script.end()


FORKS = """
warnings.filterwarnings("ignore", message=".*multi-threaded.*fork")
store, connector = open_store(URL)
future = store.future()
got = []
waiter = thread(lambda: got.append(future.result()), daemon=True)
wait_until(lambda: waited_for(connector))
{before}
def child():
    assert not waited_for(connector)
    if URL == "local":
        try:
            store.future()
        except proxyplane.exceptions.WrongProcessError:
            return
        raise AssertionError
    mine = store.future()
    mine_too = fresh(mine.proxy())
    thread(lambda: (wait_until(lambda: waited_for(connector)), mine.set_result([1])))
    assert mine_too == [1] and mine.result() == [1]
for _ in range({count}):
    status = in_child(child)
    assert (status == 0) is {defended}, status
    assert waited_for(connector) == 1 and not got
future.set_result([2])
waiter.join()
assert got == [[2]]
store.close(clear=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.row("fork while waiting")
@defended_or_not
def test_fork(run, medium, defended):
    """A child begins with nobody who waits, waits for its own, and the parent's wait goes on."""
    before = ""
    if not defended:
        before = (
            "from proxyplane._runtime.per_loop import PerLoop\n"
            "from proxyplane.connectors._waiters import Waiters\n"
            "PerLoop.after_fork_in_child = Waiters.after_fork_in_child = lambda self: None\n"
            "from proxyplane.connectors.file import watch as file_watch\n"
            "file_watch.Place.after_fork_in_child = lambda self: None\n"
        )
    count = times("fork while waiting") if defended else 1
    source = FORKS.format(before=before, count=count, defended=defended)
    run(source, medium, stderr="" if defended else None)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.row("fork while fetching")
@defended_or_not
def test_fork_while_a_fetch_is_in_the_air(run, url, defended):
    """A child fetches anew what its parent is fetching; else it would take it for its own."""
    run(
        f"""
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork")
        from proxyplane.config import connector_from_url
        from proxyplane.testing.faults import SlowConnector
        slow = SlowConnector(connector_from_url(URL), FOR_EVER, operations={{"get"}})
        store = sync.Store("s", slow, register=True, cache_size=0)
        p = store.proxy([7], populate_target=False)
        waiter = thread(lambda: list(p), daemon=True)
        wait_until(lambda: flights._process.waits)
        if not {defended}:
            flights._process.after_fork_in_child = lambda: None
        def child():
            signal.alarm(20)
            slow.seconds = 0.0
            assert p == [7]
        for _ in range({times("fork while fetching") if defended else 1}):
            assert (in_child(child) == 0) is {defended}
            assert waiter.is_alive()
        """,
        url,
        EAGER_OFF,
        stderr=None,  # the store is left open
    )
