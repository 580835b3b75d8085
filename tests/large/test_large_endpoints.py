"""A gigabyte between two endpoints, and the memory that it takes on each side."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from support.endpoints import free_port, introduce
from support.large import GIB

pytestmark = pytest.mark.timeout(900)

CLIENT = """
import asyncio, sys
from proxyplane import EndpointConnector

def most():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

async def main(key, size):
    connector = EndpointConnector("far")
    await connector.exists("anything")
    if not key:
        body = bytearray(b"object..") * (size // 8)
        before = most()
        print(await connector.put([body]), most() - before)
    else:
        before = most()
        body = await connector.get(key)
        with memoryview(body) as view:
            assert len(view) == size and view[:8] == view[-8:] == b"object.."
        print(key, most() - before)
    await connector.aclose()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def most(site):
    """The most memory that an endpoint ever had, in bytes."""
    with open(f"/proc/{site.process.pid}/status", encoding="ascii") as lines:
        return next(int(one.split()[1]) * 1024 for one in lines if one.startswith("VmHWM"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory(make_site, need):
    """The one that has it, and the one that reads it, hold it once; on the way there is little."""
    need(memory=4 * GIB)
    near, far = (
        make_site(name, "--memory", "2GiB", listen=f"127.0.0.1:{free_port()}")
        for name in ("near", "far")
    )
    introduce(near, far)
    for site in (near, far):
        site.start()
    before = [most(site) for site in (near, far)]

    def run(key):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(CLIENT), key, str(GIB)],
            env=near.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        key, more = done.stdout.split()
        return key, int(more)

    key, more = run("")
    assert more < 0.2 * GIB  # beside the object that it had
    _, more = run(key)
    assert more < 1.2 * GIB
    grown = [most(site) - one for site, one in zip((near, far), before, strict=True)]
    assert grown[0] < 0.2 * GIB
    assert grown[1] < 1.2 * GIB
