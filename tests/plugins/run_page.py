"""Runs the blocks of one documentation page in order, as a reader would; used by test_docs.

Usage: ``python run_page.py PAGE`` with a list of [kind, first line, text] as JSON on stdin. Python
blocks share one namespace and one event loop, and may await. A block whose first line is a comment
that names a file is written to that file. Commands run in the same directory.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import json
import linecache
import re
import subprocess
import sys
import types
from pathlib import Path

FILE = re.compile(r"#\s*([\w./-]+\.(?:py|toml|json|txt))\s*\n")


def main() -> None:
    page, blocks = sys.argv[1], json.load(sys.stdin)
    # What the page defines is importable as __main__, so it can be pickled.
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=page, __builtins__=builtins)
    sys.modules["__main__"] = module
    sys.path.insert(0, "")
    with asyncio.Runner() as runner:
        for kind, line, text in blocks:
            named = FILE.match(text)
            if named is not None:
                Path(named[1]).write_text(text, "utf-8")
            if kind == "console":
                # The page's loop stands still meanwhile, as it does for a reader.
                subprocess.run(["bash", "-ec", text], check=True, stdin=subprocess.DEVNULL)
            elif named is None or "__main__" not in text:
                run(page, line, text, module, runner)


def run(page: str, line: int, text: str, module: types.ModuleType, runner: asyncio.Runner) -> None:
    """Runs one block, with the line numbers of the page in its traceback."""
    source = "\n" * (line - 1) + text
    linecache.cache[page] = (len(source), None, source.splitlines(keepends=True), page)
    code = compile(source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:

        async def block() -> None:
            await types.FunctionType(code, module.__dict__)()

        runner.run(block())
    else:
        types.FunctionType(code, module.__dict__)()


if __name__ == "__main__":
    main()
