"""What the package shows, what importing it costs, and how its modules depend on each other."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import proxyplane

PACKAGE = Path(proxyplane.__file__).parent
ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(("proxyplane", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Modules of one line may import each other and what stands above; "x.*" is all of a package.
LAYERS = [
    ["exceptions"],
    [
        "_ttl",
        "abc",
        "_runtime",
        "_runtime.executor",
        "_runtime.fork",
        "_runtime.io_thread",
        "_runtime.per_loop",
        "_runtime.progress",
        "_runtime.workers",
    ],
    ["_secrets", "_policies", "_toml", "_urls", "_registry", "config", "cache"],
    ["_codecs", "_cost", "_frames", "_plain_codecs", "_tensors", "_trust", "serialization"],
    ["connectors.*"],
    ["_runtime.*"],
    [
        "_forward",
        "_frameworks",
        "_gather",
        "_observing",
        "_operations",
        "_progress",
        "_records",
        "_resolving",
        "_slots",
        "_store_names",
        "_stored",
        "_stores",
        "factory",
        "hints",
        "locker",
        "metrics",
        "proxy",
    ],
    ["failures", "future"],
    ["_store_leases", "_store_trust"],
    ["_evictions", "_references", "_renewals", "_stakes", "lifetimes", "ownership", "scopes"],
    [
        "_store_base",
        "_store_checks",
        "_store_core",
        "_store_futures",
        "_store_gets",
        "_store_life",
        "_store_puts",
        "_store_short",
        "store",
    ],
    ["registry"],
    ["policies", "executor"],
    ["sync"],
    ["__init__"],
    [
        "_mypy_calls",
        "_server",
        "__main__",
        "_cli_endpoint",
        "_cli_sweep",
        "cli",
        "demo.*",
        "endpoint.*",
        "mypy_plugin",
        "testing.*",
    ],
]
# A connector sees the contract, the helpers of the runtime that know nothing of proxies, the
# private modules beside it, its own package and its driver.
CONNECTORS_SEE = [
    "abc",
    "exceptions",
    "_policies",
    "_registry",
    "_secrets",
    "_ttl",
    "_urls",
    "_runtime",
    "_runtime.fork",
    "_runtime.io_thread",
    "_runtime.per_loop",
    "_runtime.progress",
    "_runtime.workers",
    "connectors",
]

EXPORTED = """
    BlockingResolveWarning Connector ContextLifetime DeferrableConnector EndpointConnector Factory
    FileConnector LeaseLifetime LocalConnector MultiConnector OwnedProxy Proxy ProxyAlways
    ProxyFuture ProxyLocker ProxyNever ProxyOr ProxyPlaneError ProxyResolveError ProxySize ProxyType
    RedisConnector RedisFactory RefMutProxy RefProxy Serializer StaticLifetime Store StoreConfig
    StoreExecutor StoreFactory StoreTaskGroup aclone adrop aevict aextract aresolve as_completed
    ato_proxy aupdate borrow clone drop evict exceptions extract gather get_factory get_key
    get_or_create_store get_size get_store into_owned is_resolved mut_borrow prefetch progress_bar
    register_connector register_store resolve resolve_async set_default_store store_registration
    sync to_proxy unregister_store update wait
""".split()


def _exported() -> list[str]:
    """What the package re-exports as ``X as X``, which is what type checkers take as public."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    return [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]


def _short(module: str) -> str:
    return module.removeprefix("proxyplane").removeprefix(".") or "__init__"


def _matches(name: str, pattern: str) -> bool:
    base = pattern.removesuffix(".*")
    return name == base or (pattern.endswith(".*") and name.startswith(base + "."))


def _layer(module: str) -> int:
    name = _short(module)
    for exact in (True, False):
        for number, patterns in enumerate(LAYERS):
            for pattern in patterns:
                if name == pattern if exact else _matches(name, pattern):
                    return number
    pytest.fail(f"{module} has no place in LAYERS of {Path(__file__).name}")


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _nodes(other)
        else:
            yield child
            yield from _nodes(child)


def _imports(module: str, path: Path) -> set[str]:
    """The modules of the package that a module imports, at its top or on first use."""
    found = set()
    for node in _nodes(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}".rstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return {name for name in found if name in MODULES and name != module}


IMPORTS = {module: _imports(module, path) for module, path in MODULES.items()}


def test_exported_names():
    """The public names are these and no others; a change here is a change for users."""
    assert EXPORTED == sorted(_exported())


def test_exported_names_are_there():
    """Each public name exists at run time, is told by `dir`, and there are no others."""
    assert [] == [name for name in EXPORTED if not hasattr(proxyplane, name)]
    seen = {
        name
        for name in dir(proxyplane)
        if not name.startswith("_") and not inspect.ismodule(getattr(proxyplane, name))
    }
    internal = {"annotations", "TYPE_CHECKING", "Any"}
    modules = {name for name in EXPORTED if inspect.ismodule(getattr(proxyplane, name))}
    assert {*EXPORTED} - modules == seen - internal


def _undocumented(name: str, obj: object) -> Iterator[str]:
    if inspect.isclass(obj):
        if not obj.__dict__.get("__doc__"):
            yield name
        for member, value in vars(obj).items():
            if member.startswith("_") or not (
                inspect.isroutine(value) or isinstance(value, property | classmethod | staticmethod)
            ):
                continue
            if not inspect.getdoc(getattr(obj, member)):
                yield f"{name}.{member}"
    elif inspect.isroutine(obj) and not inspect.getdoc(obj):
        yield name


def test_every_public_name_is_documented():
    """Classes, their public methods, and functions each have a docstring."""
    bare = [found for name in EXPORTED for found in _undocumented(name, getattr(proxyplane, name))]
    assert [] == bare


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_documented(module):
    """A module says in its first line what it is for."""
    assert ast.get_docstring(ast.parse(MODULES[module].read_text("utf-8")))


def test_import_is_light():
    """`import proxyplane` loads no driver, no array library and nothing slow of Python's own.

    What it takes is printed by benchmarks/import_time.py.
    """
    script = (
        "import asyncio, sys; before = set(sys.modules); import {}; "
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = set()
    for module in ("proxyplane", "proxyplane.sync"):
        done = subprocess.run(
            [sys.executable, "-c", script.format(module)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (0, "") == (done.returncode, done.stderr)
        loaded |= set(done.stdout.split())
    assert "proxyplane.store" in loaded
    heavy = {
        "anyio",
        "asyncinotify",
        "cloudpickle",
        "hiredis",
        "importlib.metadata",
        "multiprocessing",
        "numpy",
        "pandas",
        "pathlib",
        "redis",
        "secrets",
        "urllib.parse",
        "uvloop",
    }
    assert set() == heavy & loaded


def test_version_is_that_of_the_distribution():
    """`__version__` is what an installer sees."""
    try:
        installed = importlib.metadata.version("proxyplane")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed, on the path only")
    assert installed == proxyplane.__version__


def test_types_are_shipped():
    """The marker that makes type checkers read the annotations is part of the package."""
    assert (PACKAGE / "py.typed").exists()


def test_no_module_is_long():
    """No module has more than 500 lines."""
    paths = [
        *PACKAGE.rglob("*.py"),
        *(
            path
            for room in ("tests", "benchmarks", "examples")
            for path in ROOT.glob(f"{room}/**/*.py")
        ),
    ]
    long = {
        str(path): lines
        for path in paths
        if (lines := len(path.read_text("utf-8").splitlines())) > 500
    }
    assert {} == long


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    """A module imports only what stands in its own layer or above it."""
    own = _layer(module)
    wrong = {name for name in IMPORTS[module] if _layer(name) > own}
    assert set() == wrong


@pytest.mark.parametrize("module", [name for name in MODULES if ".connectors." in name])
def test_connectors_see_little(module):
    """A connector sees the contract, a few helpers, its own room and its driver."""
    room = module.split(".")[2]
    wrong = {
        name
        for name in map(_short, IMPORTS[module])
        if name not in CONNECTORS_SEE
        and not name.startswith("connectors._")
        and not _matches(name, f"connectors.{room}.*")
    }
    assert set() == wrong


def test_no_import_cycles():
    """No module imports itself through others, neither at its top nor on first use."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            pytest.fail(" -> ".join((*path[path.index(module) :], module)))
        if module not in done:
            for name in sorted(IMPORTS[module]):
                # A package runs before its modules; that it re-exports them is no cycle.
                if not module.startswith(name + "."):
                    visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
