"""The cache against a model, its limits, and what happens when objects die."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections import OrderedDict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxyplane.cache import MISSING, LRUCache

KEYS = st.sampled_from("abcdef")


class Thing:
    """An object that can be watched while it dies."""

    def __init__(self, on_death=None):
        self.on_death = on_death

    def __del__(self):
        if self.on_death is not None:
            self.on_death()


class AgainstModel(RuleBasedStateMachine):
    """A cache does what a list of (key, size) in order of use does."""

    @initialize(items=st.integers(0, 4), nbytes=st.integers(0, 20))
    def make(self, items, nbytes):
        self.cache = LRUCache(items, nbytes)
        self.model: OrderedDict[str, tuple[object, int]] = OrderedDict()

    @rule(key=KEYS, obj=st.one_of(st.none(), st.integers()), size=st.integers(0, 25))
    def put(self, key, obj, size):
        self.cache.put(key, obj, size)
        self.model.pop(key, None)
        if self.cache.max_items and self.cache.max_bytes and size <= self.cache.max_bytes:
            self.model[key] = (obj, size)
        while (
            len(self.model) > self.cache.max_items
            or sum(size for _, size in self.model.values()) > self.cache.max_bytes
        ):
            self.model.popitem(last=False)

    @rule(key=KEYS)
    def get(self, key):
        expected = self.model[key][0] if key in self.model else MISSING
        assert expected == self.cache.get(key)
        if key in self.model:
            self.model.move_to_end(key)

    @rule(key=KEYS)
    def pop(self, key):
        expected = self.model.pop(key, (MISSING, 0))[0]
        assert expected == self.cache.pop(key)

    @rule()
    def clear(self):
        self.cache.clear()
        self.model.clear()

    @invariant()
    def agrees(self):
        if not hasattr(self, "cache"):
            return
        assert len(self.model) == len(self.cache)
        assert sum(size for _, size in self.model.values()) == self.cache.nbytes
        assert {key for key in "abcdef" if key in self.model} == {
            key for key in "abcdef" if key in self.cache
        }


TestAgainstModel = AgainstModel.TestCase


def test_least_recently_used_goes_first():
    """A `get` saves an object from being the next to go."""
    cache = LRUCache(2, 100)
    cache.put("a", 1, 1)
    cache.put("b", 2, 1)
    cache.get("a")
    cache.put("c", 3, 1)
    assert (1, MISSING, 3) == (cache.get("a"), cache.get("b"), cache.get("c"))


@pytest.mark.parametrize("limits", [(0, 100), (100, 0), (0, 0)])
def test_zero_disables(limits):
    """A limit of 0 keeps nothing, not even an object of no bytes."""
    cache = LRUCache(*limits)
    cache.put("a", 1, 0)
    assert (MISSING, 0) == (cache.get("a"), len(cache))


def test_an_object_over_the_limit_pushes_nothing_out():
    """What cannot be kept does not cost what is kept, except its own old value."""
    cache = LRUCache(4, 10)
    cache.put("a", 1, 5)
    cache.put("b", 2, 5)
    cache.put("a", 3, 11)
    assert (MISSING, 2, 5) == (cache.get("a"), cache.get("b"), cache.nbytes)


def test_none_is_an_object():
    """A cached None is told from a missing key."""
    cache = LRUCache(1, 1)
    cache.put("a", None, 0)
    assert cache.get("a") is None
    assert cache.get("b") is MISSING
    assert "MISSING" == repr(MISSING)


def test_the_cache_holds_the_last_reference_no_longer_than_told():
    """An object that was pushed out, replaced, popped or cleared is collectable."""
    cache = LRUCache(1, 10)
    dead = []
    for leave in (
        lambda: cache.put("a", 0, 1),
        lambda: cache.put("b", 0, 1),
        lambda: cache.pop("a"),
        cache.clear,
    ):
        thing = Thing()
        dead.append(weakref.ref(thing))
        cache.put("a", thing, 1)
        del thing
        assert dead[-1]() is not None
        leave()
        assert dead[-1]() is None


@pytest.mark.parametrize("how", ["replace", "push out", "pop", "clear"])
def test_finaliser_may_use_the_cache_from_another_thread(how):
    """No lock is held while an object dies: its finaliser can wait for a user of the cache."""
    cache = LRUCache(2, 10)
    seen = []

    def on_death():
        worker = threading.Thread(target=lambda: seen.append(cache.get("other")), daemon=True)
        worker.start()
        worker.join(10)

    cache.put("a", Thing(on_death), 1)
    cache.put("other", "here", 1)
    if how == "replace":
        cache.put("a", 1, 1)
    elif how == "push out":
        cache.put("c", 1, 1)
    elif how == "pop":
        cache.pop("a")
    else:
        cache.clear()
    assert [MISSING if how == "clear" else "here"] == seen


@pytest.mark.parametrize("operation", ["put", "get", "pop", "clear"])
def test_finaliser_at_any_line_of_a_change(operation):
    """A finaliser that the collector runs between any two lines leaves the sum right."""
    cache = LRUCache(2, 10)
    nested = [
        lambda: cache.clear(),
        lambda: cache.pop("a"),
        lambda: cache.pop("b"),
        lambda: cache.put("a", 9, 7),
        lambda: cache.get("b"),
    ]
    calls = {
        "put": lambda: cache.put("a", 3, 4),
        "get": lambda: cache.get("a"),
        "pop": lambda: cache.pop("a"),
        "clear": cache.clear,
    }
    code = {
        function.__code__
        for function in (LRUCache.put, LRUCache.get, LRUCache.pop, LRUCache.clear, LRUCache._remove)
    }

    def run(at, action):
        """Runs the operation, with the action before its line number `at`; returns its length."""
        count = 0

        def trace(frame, event, arg):
            nonlocal count
            if frame.f_code not in code:
                return None
            if event == "line":
                count += 1
                if count == at:
                    sys.settrace(None)
                    action()
            return trace

        cache.clear()
        cache.put("a", 1, 3)
        cache.put("b", 2, 6)
        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            calls[operation]()
        finally:
            sys.settrace(previous)
        return count

    lines = run(0, None)
    assert lines > 1
    for action in nested:
        for at in range(1, lines + 1):
            run(at, action)
            assert sum(entry[1] for entry in cache._entries.values()) == cache.nbytes
            assert len(cache) <= cache.max_items and cache.nbytes <= cache.max_bytes


def test_collector_inside_the_lock_does_not_deadlock():
    """A cycle that is collected at the smallest threshold may use the cache in its finaliser."""
    cache = LRUCache(4, 100)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(300):
            thing = Thing(lambda: (cache.get("k1"), cache.pop("k2"), cache.put("k3", 0, 1)))
            thing.cycle = thing
            del thing
            cache.put(f"k{number % 6}", [number], 10)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert sum(entry[1] for entry in cache._entries.values()) == cache.nbytes


def test_fifty_threads_keep_the_sum_right():
    """However many threads use it at once, the bytes counted are those of what is inside."""
    cache = LRUCache(8, 64)
    start = threading.Barrier(50)
    errors = []

    def work(seed):
        start.wait()
        try:
            for turn in range(200):
                key = f"k{(seed * 7 + turn) % 20}"
                cache.put(key, turn, (seed + turn) % 20)
                cache.get(f"k{turn % 20}")
                if turn % 3 == 0:
                    cache.pop(key)
                if turn % 97 == 0:
                    cache.clear()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(50)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert [] == errors
    assert sum(entry[1] for entry in cache._entries.values()) == cache.nbytes
    assert len(cache) <= 8 and cache.nbytes <= 64


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_while_another_thread_holds_the_lock():
    """A child forked in the middle of a change can use the cache, and keeps what was inside."""
    cache = LRUCache(4, 100)
    cache.put("a", "kept", 10)
    held, release = threading.Event(), threading.Event()

    def hold():
        with cache._lock:
            cache._changing = True
            cache._nbytes += 5  # what an unfinished change looks like
            held.set()
            release.wait()
            cache._nbytes -= 5
            cache._changing = False

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            kept = cache.get("a")
            cache.put("b", "new", 1)
            code = 0 if (kept, cache.get("b"), cache.nbytes) == ("kept", "new", 11) else 2
        finally:
            os._exit(code)
    release.set()
    thread.join()
    _, status = os.waitpid(pid, 0)
    assert 0 == os.waitstatus_to_exitcode(status)
