"""Files: every system call of every operation fails once, and a full /dev/shm.

The calls fail in a process of its own, by strace, as the kernel would have them fail.
"""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file import swap as file_swap
from proxyplane.connectors.file.directory import PENDING, SWAPPING, UNPUBLISHED
from proxyplane.connectors.file.publish import file_name, sweep
from support.soak import SOAK, tally

# Those that take a name or a descriptor. Not `close`, which frees a descriptor also when it fails,
# and does not when strace has it fail. Not `read` and `write`: those of the process are its orders.
CALLS = re.compile(
    r"^(open|stat|lstat|fstat|newfstatat|statx|statfs|fstatfs|access|faccessat2?|readlink"
    r"|writev|pwritev2?|preadv2?|pread64|link|rename|unlink|mkdir|rmdir|chmod|fchmod|utimens"
    r"|flock|getdents64|ftruncate|fsync)(at2?|at)?$"
)
MAKES = re.compile(r"^(open|writev|pwritev|link|rename|mkdir|utimens|fchmod)")

OPERATIONS = """
import json, os, sys
import proxyplane.connectors.file.swap as swap
from proxyplane.connectors.file.calls import go_on
from proxyplane.connectors._inline import views
from proxyplane.connectors.file import FileConnector
from proxyplane.exceptions import ProxyPlaneError

directory, anonymous, defended = sys.argv[1:]
connector = FileConnector(directory)
connector._publisher.anonymous = anonymous == "anonymous"
connector._leases.idle = True  # no sweep in the background, whose calls would be counted
connector.put_sync([b"first"])
connector._new_key_sync(None)
connector.swap_sync("first", [b"first"])
connector.swap_sync("first", [b"second"], ttl=3600)  # loads what is loaded late
if defended != "True":
    def replace(name, bodies, check, *, wait=True):
        fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.writev(fd, bodies)
            return None, (0, 0)
        finally:
            os.close(fd)
    connector._swapper.replace = replace

def registered(ttl=None):
    return connector._new_key_sync(ttl)

def named(ttl=None):
    key = f"name {os.urandom(4).hex()}"
    connector.swap_sync(key, [b"old"], ttl=ttl)
    return key

SMALL, LARGE = [b"new", b"er" * 500], [b"new", b"er" * 100_000]
# Each: what makes its key, and what is done with it.
operations = {
    "put": (lambda: None, lambda key: connector.put_sync(SMALL)),
    "put large": (lambda: None, lambda key: connector.put_sync([b"n" * (2 << 20)])),
    "put leased": (lambda: None, lambda key: connector.put_sync(SMALL, ttl=3600)),
    "put named": (lambda: f"name {os.urandom(4).hex()}",
                  lambda key: connector.put_sync(SMALL, key=key)),
    "swap": (named, lambda key: connector.swap_sync(key, SMALL)),
    "swap leased": (lambda: named(3600), lambda key: connector.swap_sync(key, SMALL, ttl=60)),
    "take": (named, lambda key: connector.swap_sync(key, None)),
    "register": (lambda: None, lambda key: connector._new_key_sync(None)),
    "register leased": (lambda: None, lambda key: connector._new_key_sync(3600)),
    "set": (registered, lambda key: connector._set_sync(views(SMALL), key, go_on)),
    "set leased": (lambda: registered(3600),
                   lambda key: connector._set_sync(views(SMALL), key, go_on)),
    "evict": (lambda: connector.put_sync([b"old"]), connector.evict_sync),
    "evict leased": (lambda: connector.put_sync([b"old"], ttl=60), connector.evict_sync),
    "evict named": (named, connector.evict_sync),
    "evict registered": (registered, connector.evict_sync),
    "extend": (lambda: connector.put_sync([b"old"], ttl=60),
               lambda key: connector._extend_sync([key], 600)),
    "get": (lambda: connector.put_sync([b"old"]), lambda key: bytes(connector.get_sync(key))),
    "get large": (lambda: connector.put_sync([b"old" * 100_000]),
                  lambda key: bytes(connector.get_sync(key)[:3])),
    "is set": (registered, connector._is_set_sync),
    "exists": (lambda: connector.put_sync([b"old"]), connector.exists_sync),
}
make = act = key = None
for line in sys.stdin:
    order = json.loads(line)
    if order != "go":
        make, act = operations[order]
        key = make()
        print(json.dumps(key), flush=True)
        continue
    try:
        told = act(key)
        how = ["done", told.decode() if isinstance(told, bytes) else told]
    except ProxyPlaneError as error:
        how = [type(error).__name__, None]
    except BaseException as error:
        how = ["untyped", repr(error)]
    print(json.dumps(how), flush=True)
"""


NAMES = re.findall(r'^    "([a-z ]+)": \(', OPERATIONS, re.MULTILINE)


class Operator:
    """A process that does operations on files, of whose system calls one fails.

    Args:
        directory: Where the files are.
        words: How it publishes, and whether defended.
    """

    def __init__(self, directory, *words):
        self.directory = directory
        self._strace = shutil.which("strace")
        if self._strace is None:
            pytest.skip("no strace")
        self._log = directory.parent / "calls"
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OPERATIONS, str(directory), *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._process.stdin.close()
        code = self._process.wait(20)
        self._process.stdout.close()
        assert code == 0 or exc_info[0] is not None

    def order(self, what):
        """Has it prepare an operation, or do it ("go"); returns its answer."""
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"it died: {self._process.wait(20)}"
        return json.loads(line)

    def traced(self, *options):
        """Has it do what it prepared, under strace; returns how that ended, and the calls."""
        command = [self._strace, "-p", str(self._process.pid), "-o", str(self._log), *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            said = tracer.stderr.readline()
            if "attached" not in said:
                pytest.skip(f"strace may not trace here: {said}")
            try:
                how = self.order("go")
            finally:
                tracer.terminate()
        return how, self._log.read_text().splitlines()

    def descriptors(self):
        """How many it has open."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def clear(self):
        """Removes objects and registrations."""
        for folder in (self.directory, self.directory / PENDING):
            for entry in os.scandir(folder):
                if entry.is_file() and entry.name != file_name("first"):
                    os.unlink(entry.path)

    def found(self):
        """What is on the disk: objects by file name, what is waited for, and what was left over."""
        objects = {
            entry.name: (self.directory / entry.name).read_bytes()
            for entry in os.scandir(self.directory)
            if entry.is_file()
        }
        folders = (PENDING, UNPUBLISHED, f"{SWAPPING}-{os.geteuid()}")
        waited_for, *left = (
            os.listdir(self.directory / name) if (self.directory / name).is_dir() else []
            for name in folders
        )
        return objects, set(waited_for), sum(left, [])


def faults(operator, names):
    """Each call of each operation, by its kind and number, and the errors to try at it."""
    for name in names:
        operator.order(name)
        (how, _), lines = operator.traced("-e", "trace=all")
        assert how == "done"
        kinds = collections.Counter(line.partition("(")[0] for line in lines)
        for kind, count in kinds.items():
            if CALLS.match(kind) or (kind == "mmap" and name == "get large"):
                for number in range(1, count + 1):
                    yield name, kind, number, "EIO"
                    if MAKES.match(kind):
                        yield name, kind, number, "ENOSPC"
                    if SOAK:
                        yield name, kind, f"{number}+", "EIO"  # and each one after it


SMALL = b"new" + b"er" * 500
BODIES = {"put large": b"n" * (2 << 20), "get large": b"old" * 100_000}


def damage(name, key, how, before, after):
    """What is wrong after an operation that ended so, or an empty text."""
    body, old = BODIES.get(name, SMALL), BODIES.get(name, b"old")
    (was, was_waited, _), (now, now_waited, _) = before, after
    file = file_name(key) if key else None
    for one, content in was.items():
        if one != file and now.get(one) != content:
            return "another object changed"
    new = [content for one, content in now.items() if one not in was or one == file]
    done = how == "done"
    if name.startswith("put"):
        whole = new == [body]
        # Only under a key that the caller knows may it be there all the same.
        good = whole if done else new == [] or (whole and key is not None)
    elif name.startswith("swap"):
        good = new == [body] or (new == [b"old"] and not done)
    elif name.startswith("take"):
        good = new == [] or (new == [b"old"] and not done)
    elif name.startswith("register"):
        good = len(now_waited - was_waited) == done
    elif name.startswith("set"):
        good = (new == [body] and (key not in now_waited or not done)) or (
            new == [] and key in now_waited and not done
        )
    elif name == "is set":
        good = new == [] and key in now_waited
    elif name == "evict registered":
        good = new == [] and (key not in now_waited or not done)
    elif name.startswith("evict"):
        good = new == [] or (new == [old] and not done)
    else:
        good = new == [old]
    return "" if good else f"objects {[one[:20] for one in new]}, registered: {key in now_waited}"


@pytest.mark.row("input/output error")
@pytest.mark.parametrize(
    ("how", "defended"),
    [("anonymous", True), ("named", True), ("anonymous", False)],
    ids=["anonymous", "named", "undefended"],
)
def test_each_call_fails(tmp_path, how, defended, monkeypatch):
    """Whichever system call fails: a typed error, or none; old or new objects, and nothing else.

    Without a publication in one step the old object is gone with the error.
    """
    monkeypatch.setattr(file_swap, "_STALE_SECONDS", 0)
    failures, tries = [], 0
    with Operator(tmp_path / "objects", how, defended) as operator:
        for name, kind, number, error in list(faults(operator, NAMES if defended else ["swap"])):
            key = operator.order(name)
            before, open_before = operator.found(), operator.descriptors()
            (ended, told), lines = operator.traced(
                *("-e", f"trace={kind}"), *("-e", f"inject={kind}:error={error}:when={number}")
            )
            tries += any("INJECTED" in line for line in lines)
            after = operator.found()
            wrong = damage(name, key, ended, before, after)
            if ended not in ("done", "ConnectorLostError" if error == "EIO" else "StoreFullError"):
                wrong += f" {told}"
            if ended == "done" and name.startswith("get") and told != "old":
                wrong += f" read {told}"
            if operator.descriptors() != open_before:
                wrong += f" {operator.descriptors() - open_before} descriptors leaked"
            if set(after[2]) - set(before[2]) and not kind.startswith("unlink"):
                wrong += f" left {after[2]}"
            again, told = operator.order("go")
            taken = name == "put named" or name.startswith("set")
            if again != "done" and not (taken and again == "KeyExistsError"):
                wrong += f" again {again} {told}"
            fresh = FileConnector(tmp_path / "objects")
            sweep(fresh._directory)
            fresh._swapper.sweep()
            if left := set(operator.found()[2]) - set(before[2]):
                wrong += f" not swept {left}"
            operator.clear()
            if wrong:
                failures.append((wrong, name, kind, number, error, ended))
    assert tries
    if defended:
        assert failures == []
    else:
        assert {one[2] for one in failures} == {"writev"}
    tally.tries = tries


FULL = """
import asyncio, json, mmap, os, sys
from proxyplane.connectors.file import swap as file_swap
from proxyplane.connectors.file import publish as file_io
from proxyplane.connectors.file import FileConnector
from proxyplane.exceptions import StoreFullError

defence, how = sys.argv[1:]
real = file_io.write_all
if defence == "short":
    file_io.write_all = lambda fd, bodies: os.writev(fd, bodies)
if defence == "mapped":
    def write_all(fd, bodies):
        size = sum(map(len, bodies))
        if size < 100_000:
            return real(fd, bodies)
        os.ftruncate(fd, size)
        with open(f"/proc/self/fd/{fd}", "r+b") as again:
            mmap.mmap(again.fileno(), size)[:] = b"".join(bodies)
    file_io.write_all = write_all

async def refused(call):
    try:
        return await call
    except StoreFullError as error:
        assert "/dev/shm" in str(error)
        return "refused"

async def main():
    connector = FileConnector("/dev/shm/objects")
    connector._publisher.anonymous = how == "anonymous"
    connector._directory.firm = False  # as where the room is not known in advance
    kept = await connector.put([b"k" * 500_000])
    map_ = await connector.get(kept)
    await connector.swap("name", [b"old"])
    later = await connector.new_key()
    waiting = asyncio.create_task(connector.wait(later))
    large = [await refused(connector.put([b"x" * 600_000])) for _ in range(4)]
    torn = [len(await connector.get(key)) for key in large if key != "refused"]
    assert torn == [600_000] * 2 or defence == "short", torn
    if defence == "short":
        print(json.dumps([size for size in torn if size != 600_000]))
        waiting.cancel()
        return
    while await refused(connector.put([bytes(4096)])) != "refused":
        pass
    assert [*os.scandir("/dev/shm/objects/.unpublished")] == [] if how == "named" else True
    told = [
        await refused(connector.put([b"x" * 9_000])),
        await refused(connector.put([b"x" * 9_000], key="mine")),
        await refused(connector.swap("name", [b"new" * 3_000])),
        await refused(connector.set(later, [b"x" * 9_000])),
    ]
    assert told == ["refused"] * 4, told
    assert bytes(await connector.get("name")) == b"old"
    assert await connector.get("mine") is None
    assert not waiting.done()
    # Its pages come from the file, and go to memory of our own: of either there is enough.
    assert bytes(map_) == b"k" * 500_000
    map_[:] = bytes(500_000)
    assert bytes(await connector.get(kept)) == b"k" * 500_000
    names = {*os.listdir("/dev/shm/objects")}
    assert not [name for name in names if name.startswith("k-") and name != "k-name"]
    await connector.evict(large[0])
    await connector.set(later, [b"x" * 9_000])
    await waiting
    assert await connector.swap("name", [b"new" * 3_000]) == b"old"
    print("well")

asyncio.run(main())
"""


@pytest.mark.row("disk full")
@pytest.mark.parametrize(
    ("defence", "how"),
    [
        ("all", "anonymous"),
        ("all", "named"),
        pytest.param("short", "anonymous", marks=pytest.mark.undefended),
        pytest.param("mapped", "anonymous", marks=pytest.mark.undefended),
    ],
)
def test_full_shm(defence, how):
    """In a full /dev/shm puts, swaps and sets are refused, and all that is there stays usable.

    Who takes a short write for a whole one stores half an object; who writes through a map dies.
    """
    private = ["unshare", "--mount"]
    if os.geteuid():
        private += ["--user", "--map-root-user"]
    mount = 'mount -t tmpfs -o size=2m,mode=700 none /dev/shm && exec "$@"'
    prefix = [*private, "sh", "-c", mount, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no mounts of one's own")
    done = subprocess.run(
        [*prefix, sys.executable, "-W", "error", "-c", FULL, defence, how],
        capture_output=True,
        text=True,
        timeout=50,
    )
    if defence == "mapped":
        assert done.returncode == -signal.SIGBUS
        return
    assert done.returncode == 0, done.stderr
    if defence == "short":
        (torn,) = json.loads(done.stdout)[:1]
        assert 0 < torn < 600_000
    else:
        assert done.stdout == "well\n"
