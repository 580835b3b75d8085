"""What happens when somebody is about to block a thread that runs an event loop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import warnings
from collections.abc import Callable

from proxyplane._runtime.io_thread import on_io_thread
from proxyplane.config import OnBlocking, default_on_blocking
from proxyplane.exceptions import BlockingCallError, BlockingResolveWarning

# pathlib takes three milliseconds to import, and nothing else here needs it.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def about_to_block(what: Callable[[], str], policy: OnBlocking | None = None) -> None:
    """Applies the policy for blocking calls on a thread with a running event loop.

    Args:
        what: Describes the call, for the message; called only when there is one.
        policy: ``"warn"``, ``"raise"`` or ``"allow"``; by default `PROXYPLANE_ON_BLOCKING`,
            else ``"warn"``.

    Raises:
        BlockingCallError: The policy is ``"raise"``, or this is the library's own loop thread.
    """
    if asyncio._get_running_loop() is None:
        return
    if on_io_thread():
        raise BlockingCallError(
            f"{what()} on proxyplane's own event-loop thread would wait for itself",
            hint="code that runs there (a connector, Factory.acall) must await instead",
        )
    if policy is None:
        policy = default_on_blocking()
    if policy == "allow" or _in_notebook_cell():
        return
    message = f"{what()} blocks the running event loop"
    hint = "await it instead, or set PROXYPLANE_ON_BLOCKING=allow if the stall is meant"
    if policy == "raise":
        raise BlockingCallError(message, hint=hint)
    warnings.warn(f"{message}; {hint}", BlockingResolveWarning, stacklevel=_caller_level())


def _in_notebook_cell() -> bool:
    # A notebook's kernel runs each cell inside its loop, which serves nobody else meanwhile:
    # blocking there is what the user of a notebook asks for.
    kernel = sys.modules.get("ipykernel.kernelapp")
    return (
        kernel is not None
        and threading.current_thread() is threading.main_thread()
        and kernel.IPKernelApp.initialized()
    )


def _caller_level() -> int:
    """The stack level of the first frame outside of the package, as seen from our caller."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    return level
