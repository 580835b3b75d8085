"""Checks and tests: ``pip install nox && nox``. The Redis tests bring their own server.

The tests run against the built wheel, on every Python of 3.11 to 3.13 that is installed here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_external_run = True
# A Python that was found and cannot be used is a failure, not a session that is left out.
nox.options.error_on_missing_interpreters = True

VERSIONS = ("3.11", "3.12", "3.13")
ROOT = Path(__file__).parent
DIST = ROOT / ".nox" / "dist"
RESULTS = ROOT / ".nox" / "results"
PROBE = (
    "import sys; print('%d.%d' % sys.version_info[:2]);"
    "print(getattr(sys, '_base_executable', '') or sys.executable)"
)
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Most of the time a test waits: for a lease to end, a slow link, a process. So two tests for each
# core; not more than sixteen, since each worker collects all tests and starts servers of its own.
# Those that measure how long it takes until all is well again get a core each.
AT_ONCE = ("-n", str(max(CORES, min(2 * CORES, 16))), "--dist", "worksteal")


def candidates(version: str) -> list[str]:
    """Where a Python of a version may be; some of these exist and do not run (pyenv's shims)."""
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local/share/uv/python")
    found = [sys.executable]
    for directory in os.get_exec_path():
        for name in (f"python{version}", "python3", "python"):
            found.append(shutil.which(name, path=directory) or "")
    for versions, pattern in (
        (pyenv / "versions", f"{version}*/bin/python{version}"),
        (uv, f"cpython-{version}*/bin/python{version}"),
        (Path("/usr/local/bin"), f"python{version}"),
        (Path("/opt"), f"*/bin/python{version}"),
        (Path("/Library/Frameworks/Python.framework/Versions"), f"{version}/bin/python{version}"),
    ):
        found += sorted(map(str, versions.glob(pattern)), reverse=True)
    return [path for path in dict.fromkeys(found) if path]


def find_pythons() -> dict[str, str]:
    """The interpreter of each version that is installed, tried by running it."""
    found: dict[str, str] = {}
    for version in VERSIONS:
        for path in candidates(version):
            if version in found:
                break
            try:
                done = subprocess.run(
                    [path, "-I", "-c", PROBE],
                    capture_output=True,
                    text=True,
                    timeout=30,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired):
                continue
            lines = done.stdout.splitlines()
            if done.returncode == 0 and len(lines) == 2 and lines[0] in VERSIONS:
                found.setdefault(lines[0], lines[1])
    return {version: found[version] for version in VERSIONS if version in found}


PYTHONS = find_pythons()
OLDEST, *_, NEWEST = [*PYTHONS.values(), *PYTHONS.values()] or [sys.executable] * 2

nox.options.sessions = [
    "lint",
    "types",
    *(f"tests-{version}" for version in PYTHONS),
    "demo",
    "report",
]


def install(session: nox.Session, group: str, *packages: str) -> None:
    """Installs packages and a dependency group in one resolution."""
    session.install(*packages, *nox.project.dependency_groups(PROJECT, group))


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Style and likely bugs: ruff."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Strict mypy."""
    install(session, "types", "-e", ".")
    session.run("mypy")


@nox.session(python=NEWEST)
def build(session: nox.Session) -> None:
    """The wheel that the tests run against."""
    session.install("build")
    for old in (DIST, RESULTS):
        shutil.rmtree(old, ignore_errors=True)
    session.run("python", "-m", "build", "--wheel", "--outdir", str(DIST), ".", silent=True)


def the_wheel() -> Path:
    """What the session `build` built."""
    (wheel,) = DIST.glob("*.whl")
    return wheel


def install_wheel(session: nox.Session) -> dict[str, str | None]:
    """Installs the wheel and what the tests need; returns the environment to run them in."""
    wheel = the_wheel()
    install(session, "test", f"proxyplane[demo,uvloop] @ {wheel.as_uri()}")
    # In an environment that is used again (`nox -r`) a new wheel of the same version is not new.
    session.install("--force-reinstall", "--no-deps", str(wheel))
    # Neither the checkout nor a setting of this shell may stand in for the wheel.
    environment: dict[str, str | None] = {
        "PYTHONPATH": None,
        "PYTHONWARNINGS": None,
        "PYTEST_ADDOPTS": None,
        # Workers and processes of the tests, hundreds, need not compile again what another one has.
        "PYTHONDONTWRITEBYTECODE": None,
    }
    where = session.run(
        "python",
        "-c",
        "import proxyplane; print(proxyplane.__file__)",
        silent=True,
        env=environment,
    )
    if "site-packages" not in str(where):
        session.error(f"the tests would run against {where}, not against the wheel")
    return environment


def run_tests(session: nox.Session, version: str) -> None:
    """Runs the tests on one Python and leaves their count for the report.

    What fails is run once more, with nothing beside it: many tests stop servers, fill disks and
    kill processes, and a busy machine can upset one of them. The report says which needed it.
    """
    environment = install_wheel(session)
    RESULTS.mkdir(parents=True, exist_ok=True)
    result, again = RESULTS / f"{version}.xml", RESULTS / f"{version}-again.xml"
    for old in (result, again):
        old.unlink(missing_ok=True)
    session.run(
        *("python", "-m", "pytest", f"--junitxml={result}"),
        *AT_ONCE,
        *session.posargs,
        env=environment,
        success_codes=[0, 1],
    )
    if count_of(result)["bad"]:
        session.run(
            *("python", "-m", "pytest", f"--junitxml={again}"),
            *("--last-failed", "--last-failed-no-failures", "none"),
            *session.posargs,
            env=environment,
        )


def count_of(result: Path) -> dict[str, float]:
    """How many tests a run had, by outcome, and its seconds."""
    suite = next(ET.parse(result).iter("testsuite"))
    total, skipped, failures, errors = (
        int(suite.get(name, 0)) for name in ("tests", "skipped", "failures", "errors")
    )
    bad = failures + errors
    return {
        "passed": total - skipped - bad,
        "bad": bad,
        "skipped": skipped,
        "seconds": float(suite.get("time", 0)),
    }


for _version, _path in PYTHONS.items():

    @nox.session(name=f"tests-{_version}", python=_path, requires=["build"])
    def run_all(session: nox.Session, version: str = _version) -> None:
        """The tests on one Python."""
        run_tests(session, version)


@nox.session(python=OLDEST, requires=["build"], default=False)
def faults(session: nox.Session) -> None:
    """The same faults as in the tests, and the table of docs/faults.md, which is written anew."""
    session.run(
        *("python", "-m", "pytest", "-m", "row", "-n", "logical", "--dist", "worksteal"),
        *(f"--fault-table={ROOT / 'docs' / 'faults.md'}", *session.posargs),
        env=install_wheel(session),
    )


@nox.session(python=OLDEST, requires=["build"], default=False)
def soak(session: nox.Session) -> None:
    """The faults of tests/support/soak.py, each many times, and half an hour of mixed work."""
    session.run(
        *("python", "-m", "pytest", "-m", "row", "-n", "logical", "--dist", "worksteal"),
        *("--timeout=900", "-o", "faulthandler_timeout=3000"),
        f"--fault-table={ROOT / 'docs' / 'faults.md'}",
        *session.posargs,
        env={**install_wheel(session), "PROXYPLANE_SOAK": "1"},
    )


@nox.session(python=OLDEST, requires=["build"])
def demo(session: nox.Session) -> None:
    """The demo, as a user gets it: nothing is installed but what the package asks for."""
    session.install(f"proxyplane[demo] @ {the_wheel().as_uri()}")
    session.install("--force-reinstall", "--no-deps", str(the_wheel()))
    session.run("proxyplane", "demo", *session.posargs, env={"PYTHONPATH": None})


@nox.session(python=OLDEST, default=False)
def bench(session: nox.Session) -> None:
    """The benchmarks, beside the project that they are compared with; some twenty minutes.

    Figures and pictures go to .nox/figures; `nox -s bench -- --docs` puts them into the docs too.
    """
    session.install("-e", ".[demo,endpoint,uvloop]", "proxystore[endpoints]==1.1.0")
    arguments = [one for one in session.posargs if one != "--docs"]
    folder = ROOT / ".nox" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figures = str(folder / "figures.json")
    environment: dict[str, str | None] = {"PYTHONPATH": None}
    session.run("python", "-m", "benchmarks", "--json", figures, *arguments, env=environment)
    if len(arguments) < len(session.posargs):
        session.run("python", "-m", "benchmarks", "docs", figures, env=environment)


@nox.session(python=OLDEST, default=False, requires=["build"])
def large(session: nox.Session) -> None:
    """Objects of gigabytes; a test that has too little memory or disk says so and is skipped."""
    install(session, "test", f"proxyplane[demo,uvloop] @ {the_wheel().as_uri()}")
    session.install("--force-reinstall", "--no-deps", str(the_wheel()))
    environment: dict[str, str | None] = {"PYTHONPATH": None, "PROXYPLANE_TEST_LARGE": "1"}
    session.run("python", "-m", "pytest", "tests/large", *session.posargs, env=environment)


@nox.session(python=OLDEST, default=False, requires=["build"])
def frameworks(session: nox.Session) -> None:
    """Proxies and tensors in PyTorch and JAX, which are gigabytes to install."""
    environment = install_wheel(session)
    session.install("torch", "jax")
    environment["PROXYPLANE_TEST_FRAMEWORKS"] = "1"
    session.run("python", "-m", "pytest", "tests/frameworks", *session.posargs, env=environment)


@nox.session(python=False)
def report(session: nox.Session) -> None:
    """Which Pythons were found and what ran on each; fails if one is missing."""
    if not PYTHONS:
        session.error(f"none of Python {', '.join(VERSIONS)} is installed here")
    failed = False
    for version in VERSIONS:
        path = PYTHONS.get(version)
        result = RESULTS / f"{version}.xml"
        if path is None:
            session.log(f"Python {version}: not installed here")
        elif not result.exists():
            session.log(f"Python {version}: DID NOT RUN, though installed at {path}")
            failed = True
        else:
            count = count_of(result)
            again = RESULTS / f"{version}-again.xml"
            rerun = ""
            if count["bad"] and again.exists():
                second = count_of(again)
                count["passed"] += second["passed"]
                count["bad"] -= second["passed"]
                rerun = f", {second['passed']:.0f} of them only when run again, alone"
            session.log(
                f"Python {version}: {count['passed']:.0f} passed{rerun}, {count['bad']:.0f} "
                f"failed, {count['skipped']:.0f} skipped in {count['seconds']:.0f} s, with {path}"
            )
            failed = failed or count["bad"] > 0 or not count["passed"]
    if failed:
        session.error("not every installed Python passed")
