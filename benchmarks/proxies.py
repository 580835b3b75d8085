"""What a proxy costs that is no transfer: to touch it, to make it, to pickle it.

Ours and ProxyStore's execute the same statement in blocks that take turns; a round's figure is its
fastest block, because nothing that interrupts a block has to do with proxies.
"""

from __future__ import annotations

import gc
import itertools
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import proxyplane
from benchmarks._report import Report
from benchmarks.harness import REFERENCE, has_reference
from proxyplane.sync import Store

Env = dict[str, Any]
Block = Callable[[], float]
Limit = tuple[Literal["<=", ">=", "=="], float] | None

PER_LIST = 100
# From 3.12 on Python looks a missing attribute up without making an exception of it, which is most
# of what an attribute of the reference's proxy costs before.
MISSES_RAISE = sys.version_info < (3, 12)


class Thing:
    """A target, with an attribute of the instance and a method."""

    def __init__(self) -> None:
        self.x = 1

    def method(self) -> int:
        """Returns at once."""
        return 1


class Known:
    """A factory that has its target."""

    def __init__(self, target: object) -> None:
        self.target = target

    def __call__(self) -> object:
        """The target."""
        return self.target


def block(statement: str, env: Env, number: int) -> Block:
    """What executes a statement in a loop, and returns the nanoseconds for each time."""
    source = (
        f"def run(times, now):\n start = now()\n for _ in times: {statement}\n return now() - start"
    )
    names = dict(env)
    exec(source, names)
    run = names["run"]
    return lambda: run(itertools.repeat(None, number), time.perf_counter_ns) / number


class Measurement:
    """Blocks that take turns, and their figures, round by round."""

    def __init__(self, report: Report) -> None:
        self.turns = 2 if report.settings.quick else 25
        self.scale = 0.02 if report.settings.quick else 1.0
        self.rounds = report.settings.rounds

    def take(self, statement: str, envs: dict[str, Env], number: int) -> dict[str, list[float]]:
        """Nanoseconds for each execution, in each round, of a statement with different names."""
        number = max(2, int(number * self.scale))
        blocks = {name: block(statement, env, number) for name, env in envs.items()}
        found: dict[str, list[float]] = {name: [] for name in envs}
        gc.collect()
        gc.disable()
        try:
            for _ in range(self.rounds):
                fastest = dict.fromkeys(envs, float("inf"))
                for _ in range(self.turns):
                    for name, run in blocks.items():
                        fastest[name] = min(fastest[name], run())
                for name, took in fastest.items():
                    found[name].append(took)
        finally:
            gc.enable()
        return found


def add(
    report: Report,
    experiment: str,
    what: str,
    found: dict[str, list[float]],
    limit: Limit = None,
    each: int = 1,
) -> None:
    """Adds a row for ours, by the reference's if that is there, and one for the reference's."""
    ours = [took / each for took in found["ours"]]
    if "theirs" not in found:
        report.add(experiment, what, "ns", ours)
        return
    theirs = [took / each for took in found["theirs"]]
    report.add(experiment, what, "ns", ours, by=theirs, base="ProxyStore's", target=limit)
    report.add(experiment, "  ProxyStore's", "ns", theirs)


def touches() -> dict[str, tuple[Any, str, Limit]]:
    """What is done to a resolved proxy: its target, the statement, and what is asked of it."""
    import numpy as np

    attribute: Limit = ("<=", 0.75 if MISSES_RAISE else 0.4)
    array = np.arange(10.0)
    return {
        "an attribute of the object: p.x": (Thing(), "p.x", attribute),
        "an attribute of its class: array.shape": (array, "p.shape", attribute),
        "a method: p.method()": (Thing(), "p.method()", None),
        "an item: p[1]": ([1, 2, 3], "p[1]", ("<=", 0.4)),
        "len(p)": ([1, 2, 3], "len(p)", ("<=", 0.45)),
        "p + 1": (1, "p + 1", None),
        "p == 1": (1, "p == 1", None),
        "1 in p": ([1, 2, 3], "1 in p", None),
        "isinstance(p, Thing)": (Thing(), "isinstance(p, Thing)", None),
        "for _ in p: 100 items": ([1] * 100, "\n  for _ in p: pass", None),
        "a NumPy ufunc, 10 numbers: np.sin(p)": (array, "sin(p)", ("<=", 0.35)),
        "the same with two operands: np.add(p, p)": (array, "add(p, p)", ("<=", 0.35)),
        "the same of 1000 numbers: np.sin(p)": (np.arange(1000.0), "sin(p)", None),
        "array.sum()": (array, "p.sum()", None),
    }


def run_touches(report: Report, measurement: Measurement) -> None:
    """Resolved proxies, beside the bare object."""
    import numpy as np

    experiment = "touching a resolved proxy"
    shared = {"Thing": Thing, "sin": np.sin, "add": np.add}
    for what, (target, statement, limit) in touches().items():
        made = proxyplane.Proxy(Known(target))
        proxyplane.resolve(made)
        envs = {"ours": {**shared, "p": made}, "bare": {**shared, "p": target}}
        if has_reference():
            from proxystore.proxy import Proxy, resolve

            reference = Proxy(Known(target))
            resolve(reference)
            envs["theirs"] = {**shared, "p": reference}
        found = measurement.take(statement, envs, 2000)
        add(report, experiment, what, found, limit)
        report.add(experiment, "  the bare object", "ns", found["bare"])


def stores(name: str) -> dict[str, Any]:
    """Stores over the memory of this process, without caches."""
    found: dict[str, Any] = {
        "ours": Store(name, proxyplane.LocalConnector(), cache_size=0, register=True)
    }
    if has_reference():
        from proxystore.connectors.local import LocalConnector
        from proxystore.store import Store as ReferenceStore

        found["theirs"] = ReferenceStore(name, LocalConnector(), cache_size=0, register=True)
    return found


def run_making(report: Report, measurement: Measurement) -> None:
    """Proxies from nothing, from a key, and from an object that is stored for them."""
    experiment = "making a proxy"
    classes: dict[str, Any] = {"ours": proxyplane.Proxy}
    if has_reference():
        from proxystore.proxy import Proxy

        classes["theirs"] = Proxy
    half: Limit = ("<=", 0.5)
    envs = {name: {"Proxy": one, "f": Known(1)} for name, one in classes.items()}
    add(report, experiment, "Proxy(factory)", measurement.take("Proxy(f)", envs, 2000), half)

    made = stores("making")
    obj = [1, 2, 3]
    envs = {name: {"s": one, "k": one.put(obj)} for name, one in made.items()}
    found = measurement.take("s.proxy_from_key(k)", envs, 500)
    add(report, experiment, "store.proxy_from_key(key)", found, half)

    envs = {
        f"{name} {method}": {"do": getattr(one, method), "more": more, "obj": obj}
        for name, one in made.items()
        for method, more in (("put", {}), ("proxy", {"populate_target": False}))
    }
    found = measurement.take("do(obj, **more)", envs, 200)
    both = {name: found[f"{name} proxy"] for name in made}
    alone = {
        name: [all_ - put for all_, put in zip(both[name], found[f"{name} put"], strict=True)]
        for name in made
    }
    # A smoke run's difference may be anything.
    alone = {name: [max(took, 1.0) for took in values] for name, values in alone.items()}
    add(report, experiment, "store.proxy(obj) less store.put(obj)", alone, half)
    add(report, experiment, "store.proxy(obj) in memory, with the put", both)
    for one in made.values():
        one.close()


def run_pickling(report: Report, measurement: Measurement) -> None:
    """Proxies of a store, one and a list of them, there and back."""
    experiment = "pickling a proxy"
    half: Limit = ("<=", 0.5)
    made = stores("pickling")
    objs = [[1, 2, 3]] * PER_LIST
    lists = {name: one.proxy_batch(objs, populate_target=False) for name, one in made.items()}
    ones = {name: proxies[0] for name, proxies in lists.items()}
    add_pickling(report, measurement, experiment, "", ones, 500, half)
    each = f"of {PER_LIST} in a list, each"
    add_pickling(report, measurement, experiment, each, lists, 20, half, PER_LIST)
    lazy = {**ones, "ours": made["ours"].proxy([1, 2, 3], eager=False, populate_target=False)}
    add_pickling(report, measurement, experiment, "with eager=False", lazy, 500)
    size = {name: [len(pickle.dumps(one))] for name, one in ones.items()}
    report.add(experiment, "pickled size", "B", size["ours"], target=("<=", 250))
    if "theirs" in size:
        report.add(experiment, "pickled size, ProxyStore's", "B", size["theirs"])
    for one in made.values():
        one.close()


def add_pickling(
    report: Report,
    measurement: Measurement,
    experiment: str,
    which: str,
    values: dict[str, Any],
    number: int,
    limit: Limit = None,
    each: int = 1,
) -> None:
    """Two rows."""
    suffix = which and f", {which}"
    envs = {name: {"dumps": pickle.dumps, "v": value} for name, value in values.items()}
    found = measurement.take("dumps(v)", envs, number)
    add(report, experiment, f"pickle.dumps{suffix}", found, limit, each)
    envs = {name: {"loads": pickle.loads, "v": pickle.dumps(v)} for name, v in values.items()}
    found = measurement.take("loads(v)", envs, number)
    add(report, experiment, f"pickle.loads{suffix}", found, limit, each)


def run(report: Report) -> None:
    """Runs it with ours, and with the reference's."""
    measurement = Measurement(report)
    run_touches(report, measurement)
    run_making(report, measurement)
    run_pickling(report, measurement)
    if not has_reference():
        report.note(f"targets are ratios to ProxyStore {REFERENCE}, which is not installed")
