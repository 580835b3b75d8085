"""Sites in networks of their own: namespaces that reach each other through a router alone.

For the superuser of Linux, with iproute2; whoever is not skips these tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys

import pytest

possible = sys.platform == "linux" and os.geteuid() == 0
needs_networks = pytest.mark.skipif(not possible, reason="only root can make networks")


def ip(*words: str) -> None:
    """Runs ``ip``."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Internet:
    """A router, and networks behind it, each a namespace with one address.

    A link is cut as a cable in the ground is: packets are dropped, and nobody is told.
    """

    def __init__(self, prefix: str) -> None:
        assert shutil.which("ip"), "iproute2 is needed: apt install iproute2"
        self.router = f"{prefix}r"
        self.networks: dict[str, str] = {}
        self._prefix = prefix

    def __enter__(self) -> Internet:
        ip("netns", "add", self.router)
        ip("-n", self.router, "link", "set", "lo", "up")
        inside = ["ip", "netns", "exec", self.router]
        subprocess.run([*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for name in (*self.networks, self.router):
            with contextlib.suppress(AssertionError):
                ip("netns", "del", name)

    def add(self) -> str:
        """Makes a network; returns the name of its namespace."""
        number = len(self.networks) + 1
        name, port = f"{self._prefix}{number}", f"port{number}"
        ip("netns", "add", name)
        self.networks[name] = f"10.209.{number}.2"
        ip("link", "add", "up0", "netns", name, "type", "veth", "peer", port, "netns", self.router)
        for where, device, address in (
            (self.router, port, f"10.209.{number}.1/30"),
            (name, "up0", f"10.209.{number}.2/30"),
        ):
            ip("-n", where, "addr", "add", address, "dev", device)
            ip("-n", where, "link", "set", device, "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "route", "add", "default", "via", f"10.209.{number}.1")
        return name

    def address(self, name: str) -> str:
        """The address of a network."""
        return self.networks[name]

    def deafen(self, name: str) -> None:
        """Drops what goes to a network; what comes from it arrives."""
        ip("-n", self.router, "route", "replace", "blackhole", f"{self.networks[name]}/32")

    def cut(self) -> None:
        """Drops everything between the networks."""
        for name in self.networks:
            self.deafen(name)

    def join(self) -> None:
        """Mends all that was cut."""
        for address in self.networks.values():
            with contextlib.suppress(AssertionError):
                ip("-n", self.router, "route", "del", "blackhole", f"{address}/32")

    def slow(self, name: str, rate: str) -> None:
        """Lets no more than so much go to a network, as ``8mbit``."""
        device = f"port{name.removeprefix(self._prefix)}"
        words = f"qdisc replace dev {device} root tbf rate {rate} burst 64kb latency 500ms"
        done = subprocess.run(
            ["tc", "-n", self.router, *words.split()], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
