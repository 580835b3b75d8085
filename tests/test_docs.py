"""Every block of code in README.md and docs/ runs, or is listed in docs_untested.txt with a reason.

The blocks of one page run in order, in one process and one empty directory: Python in one
namespace where ``await`` is allowed, commands with bash. A block that starts with a comment naming
a file (``# shelf.py``) is written to that file, and runs too unless it has a ``__main__`` guard.
What a page needs and a reader need not see stands in a comment: ``<!-- setup``, code, ``-->``.
Pages may use the Redis server at ``redis://localhost:6379``, and the cluster at the ports 7000 to
7002; they get those of the tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
UNTESTED = Path(__file__).parent / "docs_untested.txt"
RUNNER = Path(__file__).parent / "plugins" / "run_page.py"
PAGES = [path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))) if path.exists()]

KINDS = {
    "python": "python",
    "py": "python",
    "setup": "python",
    "console": "console",
    "bash": "console",
    "sh": "console",
    "shell": "console",
}
# Not code: output, drawings, and the files of other tools.
NOT_CODE = {"text", "mermaid", "toml", "json", "diff"}
BLOCK = re.compile(
    r"^(?P<indent>[ ]*)(?:(?P<fence>```+|~~~+)[ ]*(?P<label>[^\s`]*)[^\n]*\n(?P<text>.*?)"
    r"^[ ]*(?P=fence)[ ]*$"
    r"|<!--[ ]*setup[ ]*\n(?P<setup>.*?)-->)",
    re.MULTILINE | re.DOTALL,
)
REDIS = re.compile(r"redis://localhost:6379(?:/0)?")
CLUSTER = "redis+cluster://localhost:7000,localhost:7001,localhost:7002"
# Warnings are errors, but that a process pool forks is the default of Python before 3.14.
WARNINGS = ["error", "ignore:This process:DeprecationWarning"]


class Block(NamedTuple):
    """A block of a page."""

    kind: str
    line: int
    text: str

    @property
    def first_line(self) -> str:
        return next((line.strip() for line in self.text.splitlines() if line.strip()), "")


def commands(text: str) -> str:
    """The commands of a console block: what follows ``$``, with its continuation lines."""
    if not re.search(r"^\$ ", text, re.MULTILINE):
        return text
    found, more = [], False
    for line in text.splitlines():
        if line.startswith("$ ") or more:
            found.append(line.removeprefix("$ ") if not more else line.removeprefix("> "))
            more = line.endswith("\\")
    return "\n".join(found) + "\n"


def blocks(page: str) -> list[Block]:
    """The blocks of code of a page; labels that are not known fail."""
    found = []
    for match in BLOCK.finditer(page):
        label = "setup" if match["setup"] is not None else match["label"].lower()
        line = page.count("\n", 0, match.start()) + 2
        if label in NOT_CODE:
            continue
        assert label in KINDS, f"line {line - 1}: a block is labelled {label!r}; known: {[*KINDS]}"
        text = textwrap.dedent(match["setup"] if label == "setup" else match["text"])
        kind = KINDS[label]
        found.append(Block(kind, line, commands(text) if kind == "console" else text))
    return found


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def untested() -> dict[tuple[str, str], str]:
    """(page, first line of the block) -> reason."""
    found = {}
    for line in UNTESTED.read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            page, first, reason = re.split(r" \| ", line)
            found[page.strip(), first.strip()] = reason.strip()
    return found


def _run(page, todo, directory, **more):
    """Runs blocks in a directory, with the `python` and `proxyplane` of this environment."""
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    modules = [
        os.path.abspath(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one
    ]
    return subprocess.run(
        [sys.executable, str(RUNNER), page],
        input=json.dumps(todo),
        cwd=directory,
        env={
            **os.environ,
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join(modules),
            **more,
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page(page, tmp_path, request):
    """The blocks of a page run in order without an error or a warning."""
    skip = untested()
    todo = [
        one
        for one in blocks(page.read_text("utf-8"))
        if (name_of(page), one.first_line) not in skip
    ]
    if any(REDIS.search(one.text) for one in todo):
        url = request.getfixturevalue("redis_server").url.removesuffix("/0")
        todo = [one._replace(text=REDIS.sub(url, one.text)) for one in todo]
    if any(CLUSTER in one.text for one in todo):
        url = request.getfixturevalue("redis_cluster").url
        todo = [one._replace(text=one.text.replace(CLUSTER, url)) for one in todo]
    done = _run(name_of(page), todo, tmp_path, PYTHONWARNINGS=",".join(WARNINGS))
    assert 0 == done.returncode, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def test_untested_blocks_exist_and_have_reasons():
    """The list of blocks that no test runs names blocks that exist, each with a reason."""
    existing = {
        (name_of(page), one.first_line) for page in PAGES for one in blocks(page.read_text("utf-8"))
    }
    assert set() == set(untested()) - existing
    assert all(len(reason) > 10 for reason in untested().values())


PAGE = """\
# A page
<!-- setup
import asyncio
number = 1
-->
1. In a list:
   ```python
   # helper.py
   value = 41
   ```
```py
import helper
await asyncio.sleep(0)
assert helper.value + number == 42
def task(x): return x + number
```
```text
not ( code
```
```console
$ python -c 'import helper; \\
> print(helper.value)'
41
```
~~~python
# script.py
if __name__ == "__main__":
    raise SystemExit("runs only as a script")
~~~
```sh
! python script.py 2> log
grep -q 'only as a script' log
```
```python
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(1) as pool:
    assert pool.submit(task, 1).result() == 2
```
"""


def test_runner_runs_a_page(tmp_path):
    """Setup, files, awaits, commands and pickled functions work, with their effects in order."""
    done = _run("page.md", blocks(PAGE), tmp_path)
    assert (0, "41\n", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\n\n```python\nx = 1\nassert x == 2\n```\n", 'File "page.md", line 5'),
        ("```python\nawait nothing\n```\n", 'File "page.md", line 2'),
        ("```console\n$ false\n$ true\n```\n", "non-zero exit status 1"),
    ],
)
def test_runner_notices(tmp_path, text, message):
    """A block that fails fails its page, and the error names the line of the page."""
    done = _run("page.md", blocks(text), tmp_path)
    assert 0 != done.returncode
    assert message in done.stderr


def test_unlabelled_and_misspelt_blocks_are_refused():
    """A block cannot escape by its label."""
    for label in ("", "pyhton"):
        with pytest.raises(AssertionError, match="line 1"):
            blocks(f"```{label}\nx = 1\n```\n")
