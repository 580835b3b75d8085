"""The guide to endpoints: its commands, as they stand there, between two sites."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.endpoints import SECONDS, Site, free_port
from support.networks import Internet, possible
from test_docs import blocks

GUIDE = Path(__file__).parents[2] / "docs" / "endpoints.md"
HOSTS = {"laboratory": "lab.example.org:7117", "cluster": "cluster.example.org:7117"}
NAMES = {"laboratory": "lab", "cluster": "cluster"}


@pytest.fixture
def sites(tmp_path_factory, short_path):
    """The two sites: networks that share a link between their endpoints and nothing else.

    Whoever may not make networks has them on the loopback interface.
    """
    with Internet(f"pg{os.getpid()}-") if possible else _Loopback() as internet:
        made = {}
        for place in HOSTS:
            made[place] = Site(short_path, f"guide-{place[0]}", internet.add())
            made[place].address = internet.address(made[place].network)
            made[place].work = tmp_path_factory.mktemp(place)
        yield made
        for place, site in made.items():
            site.run("stop", NAMES[place], check=False)
            shutil.rmtree(site.directory, ignore_errors=True)


class _Loopback:
    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    def add(self):
        return ""

    def address(self, name):
        return "127.0.0.1"


def run(site, commands):
    """Runs the commands of a block at a site; returns what they print."""
    environment = {
        **site.environment,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    del environment["PROXYPLANE_ENDPOINT"]  # there is one at each site
    done = subprocess.run(
        site.command("bash", "-ec", commands),
        env=environment,
        cwd=site.work,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_guide(sites, monkeypatch):
    """What the guide says to type moves a proxy and a result between two sites."""
    text = GUIDE.read_text("utf-8")
    said = dict.fromkeys(sites, "")
    stand_for = {}
    for place, site in sites.items():
        port = 7117 if site.network else free_port()
        stand_for[HOSTS[place]] = f"{site.address}:{port}"
    for block in blocks(text):
        if block.kind == "python":
            for site in sites.values():
                name = re.match(r"# (\w+\.py)\n", block.text)[1]
                (site.work / name).write_text(block.text, "utf-8")
    consoles = re.findall(r"```console\n# at the (\w+)[^\n]*\n(.*?)```", text, re.DOTALL)
    assert [place for place, _ in consoles].count("cluster") == 3
    for place, console in consoles:
        commands = "\n".join(re.findall(r"^\$ (.*)$", console, re.MULTILINE))
        for what, other in stand_for.items():
            commands = commands.replace(what, other)
        # The package that is tested, which may not be installed.
        commands = commands.replace("proxyplane endpoint", "python -W error -m proxyplane endpoint")
        printed = run(sites[place], commands)
        said[place] += printed
        if "--listen" in commands:
            stand_for["LAB_ID" if place == "laboratory" else "CLUSTER_ID"] = printed.strip()
        if "produce.py" in commands:
            # By whatever carries messages.
            assert (sites["laboratory"].work / "message.pickle").stat().st_size < 1000
            shutil.copy(sites["laboratory"].work / "message.pickle", sites["cluster"].work)
    assert "hello from the laboratory" in said["laboratory"]
    assert said["laboratory"].strip().endswith(str(sum(range(1_000_000))))
    assert "0 to come" in said["laboratory"]


def test_the_picture():
    """The picture is XML, and names the port that the commands do."""
    picture = (GUIDE.parent / "pictures" / "endpoints.svg").read_text("utf-8")
    assert "7117" in picture
    import xml.etree.ElementTree as ET

    assert ET.fromstring(picture).tag.endswith("svg")
