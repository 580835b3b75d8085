"""``proxyplane sweep``: gives back what ended leases and dead writers have left."""

from __future__ import annotations

import argparse
import asyncio
import sys

from proxyplane.abc import SupportsSweep, Swept
from proxyplane.config import connector_from_url
from proxyplane.exceptions import ConfigError, ProxyPlaneError

__all__ = ["add_sweep"]

Commands = argparse._SubParsersAction  # the type of what add_subparsers() gives


def add_sweep(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "sweep",
        help="remove objects whose lease has ended, and what dead writers left behind",
        description="Removes the objects of a connector whose lease has ended, and what writers "
        "that died had not published yet. Every process with an open store does the same in the "
        "background, so this is for when there is none. What has a lease, or none, stays.",
        epilog="Exit code: 0 for success, 1 for a failure on the way, 2 for a URL that is none.",
    )
    parser.add_argument("url", metavar="URL", help="a connector's, such as file:///data/objects")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        print(asyncio.run(_sweep(options.url)))
    except ConfigError as error:
        print(f"proxyplane sweep: {error}", file=sys.stderr)
        return 2
    except ProxyPlaneError as error:
        print(f"proxyplane sweep: {error}", file=sys.stderr)
        return 1
    return 0


async def _sweep(url: str) -> str:
    connector = connector_from_url(url)
    try:
        if isinstance(connector, SupportsSweep):
            return _told(await connector.sweep())
        name = type(connector).__name__
        if connector.takes_ttl:
            return f"nothing to sweep: the medium of {name} removes objects when their lease ends"
        return f"nothing to sweep: {name} keeps no leases"
    finally:
        await connector.aclose()


def _told(swept: Swept) -> str:
    return (
        f"removed {_count(swept.objects, 'object')} ({_count(swept.size, 'byte')}), "
        f"{_count(swept.registrations, 'future')} that nobody set, and "
        f"{_count(swept.temporaries, 'temporary', 'temporaries')} of dead writers"
    )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
