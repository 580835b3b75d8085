"""A Redis cluster for the tests: three real servers that serve a third of the slots each."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence

from redis import Redis
from redis.crc import key_slot

from proxyplane._server import EmbeddedServer
from proxyplane.exceptions import ConnectorUnavailableError
from support.servers import make_server

SLOTS = 16384
NODES = 3
SECONDS = 50.0


class Cluster:
    """The servers. Blocking, so async tests call it in a thread.

    Attributes:
        nodes: The servers.
        clients: A plain client of each, which follows nobody to another node.
    """

    def __init__(self, args: Sequence[str] = ()) -> None:
        self._args = args
        self._stack = contextlib.ExitStack()
        self.nodes: list[EmbeddedServer] = []
        self.clients: list[Redis] = []

    @property
    def url(self) -> str:
        """The URL for a connector; names all nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as stack:
            self.nodes = [self._start(stack) for _ in range(NODES)]
            self.clients = [
                stack.enter_context(Redis(unix_socket_path=node.socket_path)) for node in self.nodes
            ]
            for i, client in enumerate(self.clients):
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
                first, end = (SLOTS * part // NODES for part in (i, i + 1))
                client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
            for node in self.nodes[1:]:
                self.clients[0].execute_command(
                    "CLUSTER MEET", "127.0.0.1", node.port, _bus_port(node)
                )
            self.settle()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _start(self, stack: contextlib.ExitStack) -> EmbeddedServer:
        for _ in range(5):
            # By default it is 10,000 above the other, which may be no port, or somebody's.
            args = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
            node = make_server(args=[*args, *self._args])
            with contextlib.suppress(ConnectorUnavailableError):
                return stack.enter_context(node)
        raise RuntimeError("no node of a cluster can be started")

    def settle(self) -> None:
        """Returns when every node knows all nodes and that all slots are served, and hears them."""
        for client in self.clients:
            _until(lambda client=client: self._is_whole(client))
        for client in self.clients:
            self._hear_all(client)

    def _hear_all(self, client: Redis) -> None:
        """Returns when a node has passed on a message of each node.

        What is published before their connections are made is lost.
        """
        with client.pubsub(ignore_subscribe_messages=True) as listening:
            listening.subscribe("who is there")
            silent = {*range(NODES)}

            def all_heard() -> bool:
                for i in silent:
                    self.clients[i].publish("who is there", i)
                while message := listening.get_message(timeout=0.05):
                    silent.discard(int(message["data"]))
                return not silent

            _until(all_heard)

    def _is_whole(self, client: Redis) -> bool:
        info = client.execute_command("CLUSTER INFO")
        slots = client.execute_command("CLUSTER SLOTS")
        if isinstance(info, bytes):
            info = dict(line.split(":") for line in info.decode().split())
        reached = {link[2][1] for link in _ranges(slots)}
        return (
            info["cluster_state"] == "ok"
            and sum(last - first + 1 for first, last, _ in _ranges(slots)) == SLOTS
            and reached == {node.port for node in self.nodes}
        )

    def place(self, name: bytes | str) -> int:
        """The place of the node that serves a key, as that node says."""
        slot = key_slot(name if isinstance(name, bytes) else name.encode())
        for i, client in enumerate(self.clients):
            ranges = _ranges(client.execute_command("CLUSTER SLOTS"))
            if any(
                first <= slot <= last and at[1] == self.nodes[i].port for first, last, at in ranges
            ):
                return i
        raise LookupError(slot)

    def at(self, name: bytes | str) -> Redis:
        """A plain client of the node that serves a key."""
        return self.clients[self.place(name)]

    # -- a slot on its way ----------------------------------------------------------------------

    def ids(self) -> list[bytes]:
        """The id of each node."""
        return [client.execute_command("CLUSTER MYID") for client in self.clients]

    def begin_move(self, slot: int, source: int, target: int) -> None:
        """Marks a slot as being moved; its keys are where they were."""
        ids = self.ids()
        self.clients[target].execute_command(f"CLUSTER SETSLOT {slot} IMPORTING", ids[source])
        self.clients[source].execute_command(f"CLUSTER SETSLOT {slot} MIGRATING", ids[target])

    def move_keys(self, slot: int, source: int, target: int, *, count: int = 10) -> int:
        """Moves some keys of a slot; returns how many."""
        keys = self.clients[source].execute_command("CLUSTER GETKEYSINSLOT", slot, count)
        if keys:
            port = self.nodes[target].port
            command = ("MIGRATE", "127.0.0.1", port, "", 0, int(SECONDS * 1000), "KEYS", *keys)
            self.clients[source].execute_command(*command)
        return len(keys)

    def end_move(self, slot: int, source: int, target: int) -> None:
        """Hands a slot over, the new node first."""
        ids = self.ids()
        for i in (target, source, *range(NODES)):
            self.clients[i].execute_command(f"CLUSTER SETSLOT {slot} NODE", ids[target])

    def move(self, slot: int, source: int, target: int) -> None:
        """Moves a slot with its keys, while others may use it."""
        self.begin_move(slot, source, target)
        while self.move_keys(slot, source, target):
            pass
        self.end_move(slot, source, target)


def _ranges(slots: object) -> list[tuple[int, int, Sequence[object]]]:
    """What CLUSTER SLOTS says, as redis-py parses it or not."""
    if isinstance(slots, dict):
        return [(first, last, found["primary"]) for (first, last), found in slots.items()]
    return [(first, last, primary) for first, last, primary, *_ in slots]


def _bus_port(node: EmbeddedServer) -> int:
    return int(node._args[node._args.index("--cluster-port") + 1])


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the cluster does not come together")
        time.sleep(0.01)
