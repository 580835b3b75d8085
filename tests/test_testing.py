"""The public testing tools: the suite notices every flaw, and the wrappers do what they say."""

from __future__ import annotations

import asyncio
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import proxyplane
from proxyplane import Store
from proxyplane.abc import Connector, DeferrableConnector, SupportsSync
from proxyplane.connectors.local import LocalConnector
from proxyplane.exceptions import ConfigError, ConnectorLostError
from proxyplane.proxy import aresolve
from proxyplane.testing import (
    ConnectorTests,
    CoroutinesOnly,
    FailingConnector,
    Recorder,
    SlowConnector,
    Wrapper,
    cancelled_at,
    in_forked_child,
)
from support import flawed

pytest_plugins = ["pytester"]

HEAD = """\
import os, shutil
import pytest
from hypothesis import Phase, settings
from proxyplane.connectors.file.publish import file_name
from proxyplane.testing import ConnectorTests
from support import flawed

# The rare flaw is then found always or never, and not in most runs.
settings.register_profile("same", derandomize=True, phases=[Phase.generate])
settings.load_profile("same")

class Files(ConnectorTests):
    @pytest.fixture
    def connector(self, tmp_path):
        self.directory = tmp_path / "objects"
        return self.flawed(self.directory)

    def read_raw(self, key):
        path = self.directory / file_name(key)
        return path.read_bytes() if path.exists() else None

    def write_raw(self, key, data):
        (self.directory / file_name(key)).write_bytes(data)

    def delete_raw(self, key):
        (self.directory / file_name(key)).unlink()

    def count_raw(self):
        return len([name for name in os.listdir(self.directory) if name[0] != "."])

    def break_medium(self):
        shutil.rmtree(self.directory)
        self.directory.write_bytes(b"not a directory any more")
"""
ONE = """
class Test{0}(Files):
    flawed = flawed.{0}
"""


def run_suite(pytester, wanted: dict[str, tuple[str, ...]]) -> dict[tuple[str, str], set[str]]:
    """Runs tests of the suite, for each of some flawed connectors, in a process of its own.

    Returns:
        (connector, test) -> outcomes: "passed", "failure", "error", "skipped".
    """
    pytester.makepyfile(test_flawed=HEAD + "".join(map(ONE.format, wanted)))
    # Without asyncio_mode: the suite must not depend on it.
    pytester.makeini(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    nodes = [
        f"test_flawed.py::Test{name}::{test}" for name, tests in wanted.items() for test in tests
    ]
    pytester.runpytest_subprocess("-q", "--junitxml=results.xml", "-p", "no:cacheprovider", *nodes)
    outcomes: dict[tuple[str, str], set[str]] = {}
    for case in ET.parse(pytester.path / "results.xml").iter("testcase"):
        name = case.get("classname").rpartition(".Test")[2]
        test = case.get("name").partition("[")[0]
        outcome = {child.tag for child in case if child.tag != "properties"} or {"passed"}
        outcomes.setdefault((name, test), set()).update(outcome)
    return outcomes


@pytest.fixture
def importable(monkeypatch):
    """What these tests import is importable in a new process too."""
    paths = [Path(__file__).parent, Path(proxyplane.__file__).parents[1]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("importable")
def test_every_flaw_is_noticed(pytester):
    """For each flaw those tests of the suite fail that look for it, and not by accident."""
    wanted = {cls.__name__: tests for cls, tests in flawed.NOTICED_BY.items() if tests}
    outcomes = run_suite(pytester, wanted)
    missed = {
        (name, test): outcomes.get((name, test))
        for name, tests in wanted.items()
        for test in tests
        if "failure" not in outcomes.get((name, test), ()) or "error" in outcomes[name, test]
    }
    assert {} == missed


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("importable")
def test_the_same_tests_pass_without_the_flaw(pytester):
    """The connector that all flawed ones are made of passes those tests."""
    tests = tuple({test for tests in flawed.NOTICED_BY.values() for test in tests})
    outcomes = run_suite(pytester, {"Sound": tests})
    assert {("Sound", test): {"passed"} for test in tests} == outcomes


@pytest.mark.usefixtures("importable")
def test_what_must_be_overridden_says_so(pytester):
    """A subclass without its fixture or helpers fails with a sentence, and is not skipped."""
    pytester.makepyfile(
        test_bare="""
        import pytest
        from proxyplane import FileConnector
        from proxyplane.testing import ConnectorTests

        class TestBare(ConnectorTests):
            pass

        class TestHelpless(ConnectorTests):
            @pytest.fixture
            def connector(self, tmp_path):
                return FileConnector(tmp_path)
        """
    )
    done = pytester.runpytest_subprocess("-q", "-k", "test_frames_in or test_get_reads or removed")
    done.assert_outcomes(errors=4, failed=3, passed=1)
    done.stdout.fnmatch_lines_random(
        ["*TestBare must override the fixture `connector`*", "*must override write_raw*"]
    )


# A connector that cannot defer, and does nothing else either.
Plain = type("Plain", (Connector,), dict.fromkeys(Connector.__abstractmethods__))


def test_wrappers_are_as_capable_as_what_is_inside():
    """A wrapper is deferrable exactly when its connector is, and never has the shortcut."""
    for wrap in (Wrapper, CoroutinesOnly, Recorder, lambda inner: SlowConnector(inner, 0)):
        plain, later = wrap(Plain()), wrap(LocalConnector())
        assert (False, True) == tuple(isinstance(x, DeferrableConnector) for x in (plain, later))
        assert (False, False) == tuple(isinstance(x, SupportsSync) for x in (plain, later))
        assert type(later).__name__ == type(plain).__name__
        assert later.url == later.inner.url
    with pytest.raises(ConfigError, match="describes no Recorder"):
        Recorder.from_url("file:///tmp")


async def test_a_slow_connector_waits_first():
    """The operation has not begun as long as the wrapper sleeps; others may be left as they are."""
    inner = LocalConnector()
    slow = SlowConnector(inner, 3600, operations=["put"])
    putting = asyncio.ensure_future(slow.put([b"x"], key="key"))
    await asyncio.sleep(0.01)
    assert (False, False) == (putting.done(), await slow.exists("key"))
    putting.cancel()
    key = await SlowConnector(inner, 0.001).put([b"x"])
    assert b"x" == await inner.get(key)


async def test_a_failing_connector_fails_once():
    """The nth call raises, and those before and after it work."""
    failing = FailingConnector(LocalConnector(), 3, ConnectorLostError("cable"), operations=["put"])
    keys = [await failing.put([b"%d" % number]) for number in (1, 2)]
    assert await failing.exists(keys[0])
    with pytest.raises(ConnectorLostError, match="cable"):
        await failing.put([b"3"], key="third")
    assert not await failing.exists("third")
    keys.append(await failing.put([b"4"]))
    assert [b"1", b"2", b"4"] == await failing.get_batch(keys)
    assert 4 == failing.calls


async def test_a_failing_connector_fails_too_late():
    """With too_late the operation is done, and only its reply is lost."""
    error = ConnectorLostError("cable")
    failing = FailingConnector(LocalConnector(), 1, error, too_late=True)
    with pytest.raises(ConnectorLostError):
        await failing.put([b"x"], key="key")
    assert b"x" == await failing.get("key")


async def test_a_recorder_shows_that_one_fetch_serves_all():
    """Twenty tasks that await one proxy of a store make one get."""
    recorder = Recorder(LocalConnector())
    async with Store("recorded", recorder, cache_size=0) as store:
        proxy = await store.proxy([1, 2], populate_target=False)
        assert [[1, 2]] * 20 == await asyncio.gather(*(aresolve(proxy) for _ in range(20)))
    assert ["put", "get", "aclose"] == [call.operation for call in recorder.calls]
    assert {"clear": False} == recorder.calls[-1].kwargs
    assert 1 == recorder.count("get")


async def test_cancelled_at_reaches_every_suspension():
    """The coroutine is cancelled at the nth suspension, and runs to its end if there is none."""
    steps = []

    async def walk():
        for step in range(3):
            steps.append(step)
            await asyncio.sleep(0)
        steps.append("end")

    for nth, seen in [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, "end"])]:
        steps.clear()
        assert (nth < 4) == await cancelled_at(walk(), nth)
        assert seen == steps


async def test_cancelled_at_passes_on_what_the_coroutine_does():
    """What it raises comes out, also in place of the cancellation; its caller can be cancelled."""

    async def stubborn():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise ValueError("instead") from None

    with pytest.raises(ValueError, match="instead"):
        await cancelled_at(stubborn(), 1)
    waiting = asyncio.ensure_future(cancelled_at(asyncio.sleep(3600), 2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_in_forked_child():
    """The result comes back; an error, a death or a hang of the child is told."""
    parent = os.getpid()
    assert parent == in_forked_child(os.getppid)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        in_forked_child(lambda: 1 / 0)
    with pytest.raises(AssertionError, match="died"):
        in_forked_child(lambda: os._exit(3))
    with pytest.raises(AssertionError, match="not done after"):
        in_forked_child(lambda: __import__("time").sleep(3600), timeout=0.1)


def test_the_suite_is_documented():
    """Each test of the suite states in its docstring what a connector must do."""
    bare = [
        name
        for name in dir(ConnectorTests)
        if name.startswith("test_") and not getattr(ConnectorTests, name).__doc__
    ]
    assert [] == bare
