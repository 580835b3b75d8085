"""What type checkers see: the files of tests/typing, line by line.

In a file of expectations a line with ``reveal_type`` ends with the type as a comment, without the
names of modules. A line that must be refused ends with ``# error CODE[, CODE]: part of the
message``, or names the code of each checker. All other lines must pass in strict mode.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import proxyplane

FILES = Path(__file__).parent / "typing"
SOURCE = Path(proxyplane.__file__).parents[1]
INSTALLED = "site-packages" in SOURCE.parts

pytestmark = pytest.mark.timeout(300)  # a checker reads NumPy, on a machine that may be busy

REVEALED = re.compile(r"^\s*reveal_type\(.*\)  # (?P<type>.+)$")
ERROR = re.compile(r"  # error (?P<codes>[\w-]+(?:, [\w-]+)*): (?P<text>.+)$")
ERROR_OF_EACH = re.compile(r"  # mypy (?P<mypy>[\w-]+), pyright (?P<pyright>\w+)$")


def _environment():
    """The environment of a checker that finds the package, installed or not."""
    paths = [] if INSTALLED else [str(SOURCE)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "MYPYPATH": os.pathsep.join(paths),
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
    }


def _run(*command, cwd):
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


class Mypy:
    """Strict mypy with a cache of its own."""

    def __init__(self, directory, plugins):
        self.directory = directory
        self.config = directory / "mypy.ini"
        listed = f"plugins = {', '.join(plugins)}\n" if plugins else ""
        self.config.write_text(f"[mypy]\nstrict = true\n{listed}", "utf-8")

    def __call__(self, *paths):
        """(file, line) -> what was said of it: types revealed, (code, message) of errors."""
        done = _run(
            "mypy",
            f"--config-file={self.config}",
            "--cache-dir=cache",
            "--output=json",
            "--show-traceback",
            *map(str, paths),
            cwd=self.directory,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        assert "" == done.stderr
        types, errors = {}, {}
        for said in map(json.loads, filter(None, done.stdout.splitlines())):
            place = Path(said["file"]).name, said["line"]
            revealed = re.fullmatch(r'Revealed type is "(.*)"', said["message"])
            if revealed:
                types.setdefault(place, []).append(_short(revealed[1]))
            elif said["severity"] == "error":
                errors.setdefault(place, []).append((said["code"], said["message"]))
        return types, errors


def _pyright(directory, *paths):
    """As `Mypy` gives it."""
    for path in paths:
        (directory / path.name).write_text(path.read_text("utf-8"), "utf-8")
    settings = {
        "include": [path.name for path in paths],
        "typeCheckingMode": "strict",
        "extraPaths": [] if INSTALLED else [str(SOURCE)],
        "reportMissingModuleSource": False,
    }
    (directory / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    done = _run(
        "pyright", "-p", str(directory), "--pythonpath", sys.executable, "--outputjson",
        cwd=directory,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert len(paths) == found["summary"]["filesAnalyzed"]
    types, errors = {}, {}
    for said in found["generalDiagnostics"]:
        place = Path(said["file"]).name, said["range"]["start"]["line"] + 1
        revealed = re.fullmatch(r'Type of ".*" is "(.*)"', said["message"], re.DOTALL)
        if revealed:
            types.setdefault(place, []).append(_short(revealed[1]))
        else:
            errors.setdefault(place, []).append((said.get("rule", ""), said["message"]))
    return types, errors


def _short(name):
    """A type without the names of modules and of the scopes of type variables."""
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=\w)|@\w+", "", name)


def _expected(*names):
    types, errors, each = {}, {}, {}
    for name in names:
        for number, line in enumerate((FILES / name).read_text("utf-8").splitlines(), start=1):
            place = name, number
            if found := REVEALED.match(line):
                types[place] = [found["type"]]
            elif found := ERROR.search(line):
                errors[place] = set(found["codes"].split(", ")), found["text"]
            elif found := ERROR_OF_EACH.search(line):
                each[place] = found.groupdict()
            else:
                assert "reveal_type(" not in line, f"{name}:{number} expects nothing"
    return types, errors, each


def _codes(errors):
    return {place: {code for code, _ in said} for place, said in errors.items()}


def _anys(types):
    return {place for place, said in types.items() if re.search(r"\b(Any|Unknown)\b", str(said))}


@pytest.fixture(scope="module")
def with_plugin(tmp_path_factory):
    return Mypy(tmp_path_factory.mktemp("with"), ["proxyplane.mypy_plugin"])


@pytest.fixture(scope="module")
def without_plugin(tmp_path_factory):
    return Mypy(tmp_path_factory.mktemp("without"), [])


# -- the files of expectations --------------------------------------------------------------------


def test_mypy_with_plugin(with_plugin):
    """A proxy has the members of its target, of the same types, and a missing one is an error."""
    types, errors, _ = _expected("both.py", "members.py")
    revealed, refused = with_plugin(FILES / "both.py", FILES / "members.py")
    assert types == revealed
    assert {place: codes for place, (codes, _) in errors.items()} == _codes(refused)
    unsaid = {
        place: refused[place]
        for place, (_, text) in errors.items()
        if not any(text in message for _, message in refused[place])
    }
    assert {} == unsaid


def test_mypy_cache(with_plugin):
    """A second run, which reads what the first one kept of the package, says the same."""
    paths = FILES / "both.py", FILES / "members.py"
    first = with_plugin(*paths)
    # Read again, while the package comes out of the cache.
    copy = with_plugin.directory / "members.py"
    copy.write_text((FILES / "members.py").read_text("utf-8"), "utf-8")
    assert first == with_plugin(paths[0], copy)
    assert first == with_plugin(paths[0], copy)


def test_mypy_without_plugin(without_plugin):
    """What needs no plugin has the same types; the rest are errors, and nothing is `Any`."""
    types, _, errors = _expected("both.py", "unresolved.py")
    revealed, refused = without_plugin(FILES / "both.py", FILES / "unresolved.py")
    assert types == revealed
    assert {place: {codes["mypy"]} for place, codes in errors.items()} == _codes(refused)


def test_mypy_without_plugin_names_await(without_plugin):
    """Without the plugin the error about a member names the proxy's type."""
    _, refused = without_plugin(FILES / "unresolved.py")
    messages = [message for said in refused.values() for _, message in said]
    assert '"Proxy[Table]" has no attribute "mean"' in messages


def test_pyright(tmp_path):
    """Pyright sees what mypy sees without the plugin."""
    types, _, errors = _expected("both.py", "unresolved.py")
    revealed, refused = _pyright(tmp_path, FILES / "both.py", FILES / "unresolved.py")
    assert types == revealed
    # In strict mode an unknown attribute is followed by complaints that its type is unknown.
    strict = {"reportUnknownMemberType", "reportUnknownVariableType", "reportUnknownArgumentType"}
    assert {place: {codes["pyright"]} for place, codes in errors.items()} == {
        place: codes - strict for place, codes in _codes(refused).items()
    }


def test_nothing_expected_is_any():
    """No expected type holds `Any`, except of members of a `Proxy[Any]`."""
    types, _, _ = _expected("both.py", "members.py")
    lines = (FILES / "members.py").read_text("utf-8").splitlines()
    start = next(n for n, line in enumerate(lines, 1) if line.startswith("def any_only_where"))
    allowed = {("members.py", n) for n in range(start, len(lines) + 1)}
    assert _anys(types) <= allowed
    assert _anys(types)


# -- a proxy and its target side by side ----------------------------------------------------------

TARGETS = {
    "np.ndarray[tuple[int, int], np.dtype[np.float64]]": """
        x.mean()  x.sum(axis=0)  x.shape  x.shape[0]  x.dtype  x.T  x[0]  x[0, 0]  x[x > 0]  x[:, 1]
        x + 1  1 + x  x * 2.5  x @ x  -x  x == x  x < 1  x.astype(np.int64)  x.argmax()  x.tolist()
        x.reshape(-1)  len(x)  np.sum(x)  np.sqrt(x)  np.asarray(x)  np.concatenate([x,x])
        x.view()  abs(x)  divmod(x, 2)  [row for row in x]  x.flags.writeable  x.nope
    """,
    "dict[str, list[int]]": """
        x["a"]  x.get("a")  x.get("a", None)  x.get("a", 1)  x.items()  sorted(x)  x | x  x["a"][0]
        x.pop("a")  x.setdefault("a", [])  len(x)  "a" in x  [k for k in x]  x[1]  x == {}  {**x}
        list(x.values())  dict(x)  x.nope
    """,
    "list[str]": """
        x[0]  x[1:]  x + ["a"]  ["a"] + x  x * 2  x.index("a")  ",".join(x)  set(x)  tuple(x)
        list(zip(x, x))  list(map(len, x))  max(x, key=len)  any(x)  x.append("a")  x.append(1)
        print(*x)  x["a"]
    """,
    "str": """
        x.split()  x + "a"  "a" + x  x % 3  x[0]  x.encode()  int(x)  x < "b"  "a" in x  x * 2
        f"{x}"  open(x).read()  x.join(["a"])  x + 1  float(x)  len(x)  x.nope
    """,
    "int": """
        x + 1  1 + x  x / 2  2.5 * x  x ** 2  x // 2  -x  ~x  x & 1  x << 2  x < 2  x == 2  x != 2
        range(x)  [1, 2][x]  round(x)  float(x)  hex(x)  x.bit_length()  x.real  x + "a"  "a" * x
        divmod(x, 2)  bytes(x)  x.nope
    """,
    "tuple[int, str]": "x[0]  x[1]  x[-1]  len(x)  x.count(1)  x == (1, 'a')",
    "Callable[[int], list[str]]": "x(1)  x(1)[0]  x('a')",
    "type[Path]": "x('a')  x('a').parent  x.cwd()  x.nope",
    "Path": "x / 'a'  x.parent  x.exists()  open(x)  os.fspath(x)  Path(x)  x < x  x.nope  'a' / x",
}


def test_what_a_member_gives_is_what_the_target_gives(with_plugin):
    """Each expression gives the same type, or is refused, whether ``x`` is a target or a proxy."""
    head = """
import os
from collections.abc import Callable
from pathlib import Path
import numpy as np
from proxyplane import Proxy
"""
    lines, where = head.splitlines(), {}
    for number, (target, expressions) in enumerate(TARGETS.items()):
        for kind, annotation in (("target", target), ("proxy", f"Proxy[{target}]")):
            lines.append(f"def {kind}_{number}(x: {annotation}) -> None:")
            for expression in re.split(r"\s{2,}", expressions.strip()):
                lines.append(f"    reveal_type({expression})")
                where.setdefault((target, expression), []).append(("pairs.py", len(lines)))
    path = with_plugin.directory / "pairs.py"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    types, errors = with_plugin(path)
    different = {
        f"{target}: {expression}": (types.get(plain), types.get(proxied), errors.get(proxied))
        for (target, expression), (plain, proxied) in where.items()
        if (types.get(plain), plain in errors) != (types.get(proxied), proxied in errors)
    }
    assert {} == different


# -- beside others --------------------------------------------------------------------------------

OTHER_PLUGIN = """
from mypy.plugin import Plugin

def as_bytes(ctx):
    return ctx.api.named_generic_type("builtins.bytes", [])

def takes_bytes(ctx):
    return ctx.default_signature.copy_modified(arg_types=[as_bytes(ctx)])

class Other(Plugin):
    def get_method_hook(self, fullname):
        return as_bytes if fullname == "thing.Thing.get" else None
    def get_method_signature_hook(self, fullname):
        return takes_bytes if fullname == "thing.Thing.put" else None
    def get_function_signature_hook(self, fullname):
        return takes_bytes if fullname == "thing.put" else None

def plugin(version):
    return Other
"""
THING = """
from proxyplane import Proxy
class Thing:
    def get(self) -> str: return ""
    def put(self, value: str) -> None: ...
def put(value: str) -> None: ...
def use(p: Proxy[Thing], t: Thing, b: Proxy[bytes]) -> None:
    reveal_type(p.get())
    reveal_type(t.get())
    p.put(b"")
    t.put(b)
    put(b)
    p.put("")
    put("")
"""


def test_other_plugins_are_asked(tmp_path):
    """A plugin that stands behind this one is asked, about calls through a proxy too."""
    (tmp_path / "other.py").write_text(OTHER_PLUGIN, "utf-8")
    (tmp_path / "thing.py").write_text(THING, "utf-8")
    mypy = Mypy(tmp_path, ["proxyplane.mypy_plugin", str(tmp_path / "other.py")])
    types, errors = mypy("thing.py")
    assert {("thing.py", 8): ["bytes"], ("thing.py", 9): ["bytes"]} == types
    assert {("thing.py", 13): {"arg-type"}, ("thing.py", 14): {"arg-type"}} == _codes(errors)


TARGET = "class Target:\n    def get(self) -> {}: ...\n    def __add__(self, n: int) -> {}: ...\n"
MAKER = "from proxyplane import Proxy\nfrom target import Target\np = Proxy(Target)\n"
USER = """\
from maker import p
def takes(n: int) -> None: ...
def calls() -> None:
    takes(p.get())
def adds() -> None:
    takes(p + 1)
"""
# What the target's methods give, and where the user is then wrong. Of different lengths, because
# mypy may overlook a change that leaves a file as long as it was, within one second.
CHANGES = [("int", "int", []), ("bytes", "int", [4]), ("int", "complex", [6])]


def _write_program(directory):
    (directory / "maker.py").write_text(MAKER, "utf-8")
    (directory / "user.py").write_text(USER, "utf-8")
    return directory / "target.pyi", Mypy(directory, ["proxyplane.mypy_plugin"])


def test_change_behind_a_proxy(tmp_path):
    """A module that uses a proxy is checked again when its target changed, which it never names."""
    target, mypy = _write_program(tmp_path)
    for first, second, lines in CHANGES:
        target.write_text(TARGET.format(first, second), "utf-8")
        _, errors = mypy("user.py")
        assert {("user.py", line): {"arg-type"} for line in lines} == _codes(errors)


def test_change_behind_a_proxy_in_the_daemon(tmp_path):
    """So does the daemon, which checks function by function, for methods and operators."""
    target, mypy = _write_program(tmp_path)
    daemon = "mypy.dmypy", f"--status-file={tmp_path / 'status.json'}"
    started = _run(*daemon, "start", "--", f"--config-file={mypy.config}", cwd=tmp_path)
    assert 0 == started.returncode, started.stdout + started.stderr
    try:
        for first, second, lines in CHANGES:
            target.write_text(TARGET.format(first, second), "utf-8")
            said = _run(*daemon, "check", "user.py", "maker.py", "target.pyi", cwd=tmp_path).stdout
            assert lines == [int(line) for line in re.findall(r"user\.py:(\d+): error", said)], said
    finally:
        _run(*daemon, "stop", cwd=tmp_path)
