"""What ``proxyplane endpoint`` accepts; what it does is in `proxyplane.endpoint.command`."""

from __future__ import annotations

import argparse

__all__ = ["add_endpoint"]

Commands = argparse._SubParsersAction  # the type of what add_subparsers() gives


def add_endpoint(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "endpoint",
        help="run the daemon of a site, which holds objects and asks those of other sites",
        description="An endpoint holds the objects of a site and asks those of other sites for "
        "theirs. Processes of this machine use it through EndpointConnector.",
        epilog="Exit code: 0 for success, 1 for a failure on the way, or for 'no', 2 for what has "
        "to be corrected or installed first.",
    )
    parser.set_defaults(run=_run)
    whats = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="what")
    _add_configure(whats)
    start = _add(whats, "start", "run one, in the background unless told otherwise")
    start.add_argument("--front", action="store_true", help="stay in front, until Ctrl-C")
    start.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    _add(whats, "stop", "stop one, when what is under way is done")
    listing = whats.add_parser("list", help="the endpoints of this machine, their ids and states")
    listing.set_defaults(what="list")
    status = _add(whats, "status", "what one holds, and whether its peers are up")
    status.add_argument("--json", action="store_true", help="print it as JSON")
    _add(whats, "remove", "delete one, with its identity and its objects")
    _add_test(whats)


def _add(whats: Commands[argparse.ArgumentParser], name: str, help: str) -> argparse.ArgumentParser:
    parser = whats.add_parser(name, help=help, description=help)
    parser.add_argument("name", metavar="NAME", help="what it is called on this machine")
    return parser


def _add_configure(whats: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(whats, "configure", "make one, or change it; prints its id")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="where peers reach it; by default they do not"
    )
    parser.add_argument(
        "--port",
        type=_port,
        metavar="PORT",
        help="serve processes of this machine on this loopback port, with a token; by default, "
        "and with 0, on a Unix socket",
    )
    parser.add_argument("--memory", metavar="SIZE", help="of objects in memory (default: 1GiB)")
    parser.add_argument("--disk", metavar="SIZE", help="of objects in files (default: 1TiB)")
    parser.add_argument("--max-object", metavar="SIZE", help="of the largest one (default: 1TiB)")
    parser.add_argument(
        "--persist",
        action=argparse.BooleanOptionalAction,
        help="keep objects in files, so that they survive a restart",
    )
    parser.add_argument(
        "--silence",
        type=_seconds,
        metavar="SECONDS",
        help="of a peer, after which it counts as lost (default: 6; at least 2)",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=ID@HOST:PORT",
        help="another endpoint: what to call it, its id, where it listens",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME=RIGHTS",
        help="what a peer may do here: some of read,write,wait (default: all)",
    )
    parser.add_argument(
        "--forget", action="append", default=[], metavar="NAME", help="a peer that is none any more"
    )


def _add_test(whats: Commands[argparse.ArgumentParser]) -> None:
    parser = whats.add_parser(
        "test",
        help="put, get, look for or evict an object, to see whether it works",
        description="Puts, gets, looks for or evicts an object at an endpoint of this machine or "
        "at a peer of one.",
    )
    parser.add_argument("operation", choices=("put", "get", "exists", "evict"))
    parser.add_argument(
        "name", metavar="NAME", help="an endpoint of this machine, a peer, or an id"
    )
    parser.add_argument("key", nargs="?", help="of the object; for put a new one by default")
    parser.add_argument("--data", help="what to put; by default what comes from the standard input")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="without progress (default: 30)"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 2 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds of at least 2")
    return value


def _run(options: argparse.Namespace) -> int:
    from proxyplane.endpoint.command import run

    return run(options)
