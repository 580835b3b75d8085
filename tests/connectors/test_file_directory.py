"""The directory of a FileConnector: its URL, its permissions, the default one, traps, losses."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyplane.connectors.file import FileConnector
from proxyplane.connectors.file.directory import (
    LOCK,
    ROOM_BYTES,
    UNPUBLISHED,
    default_directory,
    file_system,
    free_bytes,
    is_remote,
)
from proxyplane.connectors.file.publish import Publisher
from proxyplane.exceptions import ConfigError, ConnectorUnavailableError
from proxyplane.testing import in_forked_child
from support.mounts import mounted, need_root, small_disk

NOBODY = 65534


@pytest.fixture(params=[True, False], ids=["without a name", "named"])
def anonymous(request):
    """Both ways of keeping what is not published yet."""
    return request.param


@pytest.fixture
def connector(tmp_path, anonymous):
    made = FileConnector(tmp_path / "objects")
    made._publisher.anonymous = anonymous
    return made


def test_permissions(tmp_path):
    """Directory and files are private, whatever the umask; a group directory shares its files."""
    old = os.umask(0)
    try:
        private = FileConnector(tmp_path / "private")
        group = tmp_path / "group"
        group.mkdir(0o770)
        shared = FileConnector(group)
        for connector, of_directory, of_file in ((private, 0o700, 0o600), (shared, 0o770, 0o640)):
            for anonymous in (True, False):
                connector._publisher.anonymous = anonymous
                path = Path(connector.directory, connector.put_sync([b"x"]))
                assert path.stat().st_mode & 0o777 == of_file
            assert Path(connector.directory).stat().st_mode & 0o777 == of_directory
    finally:
        os.umask(old)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_url_round_trip(tmp_path_factory, name):
    """The URL of any path leads back to it, and is plain ASCII."""
    path = tmp_path_factory.getbasetemp() / "none" / "".join(name[:60].replace("/", "|").split("."))
    first = FileConnector.from_url("file:///x")
    first._directory.path = os.path.abspath(path)
    assert first.url.isascii()
    second = FileConnector.from_url(first.url)
    assert second.directory == first.directory
    assert second.url == first.url


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("file:///tmp/x?mode=rw", "query"),
        ("file:///tmp/x#top", "fragment"),
        ("file://server/share", "server"),
        ("file://", "form"),
        ("file:/tmp/x", "form"),
        ("/tmp/x", "form"),
        ("file:///tmp/%00", "path"),
    ],
)
def test_bad_url(url, part):
    """A URL that describes no directory here is refused, and the message names the part."""
    with pytest.raises(ConfigError, match=part):
        FileConnector.from_url(url)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_bad_path(path):
    """An empty path, or one with NUL, is refused."""
    with pytest.raises(ConfigError):
        FileConnector(path)


def test_relative_path(tmp_path, monkeypatch):
    """A relative path is that of the moment of construction."""
    monkeypatch.chdir(tmp_path)
    connector = FileConnector("a/../objects")
    monkeypatch.chdir("/")
    assert connector.directory == str(tmp_path / "objects")
    assert connector.get_sync(connector.put_sync([b"x"])) == b"x"


async def test_from_url_makes_the_directory_on_put(tmp_path):
    """A connector made from a URL creates its directory when it first writes."""
    connector = FileConnector.from_url(f"file://{tmp_path}/a/b")
    assert not (tmp_path / "a").exists()
    assert await connector.get(await connector.put([b"x"])) == b"x"


# Directories that are gone, closed to us, or traps


async def test_directory_gone(connector):
    """Without its directory a read is an error, and a put makes the directory again."""
    key = await connector.put([b"x"])
    shutil.rmtree(connector.directory)
    for call in (connector.get(key), connector.exists(key), connector.evict(key)):
        with pytest.raises(ConnectorUnavailableError, match="there is no directory"):
            await call
    assert await connector.get(await connector.put([b"y"])) == b"y"


async def test_file_system_unmounted(tmp_path, anonymous):
    """A put does not write to what lies below a mount point whose file system is gone."""
    need_root()
    with mounted(tmp_path / "mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none") as path:
        connector = FileConnector(path / "objects")
        connector._publisher.anonymous = anonymous
        key = await connector.put([b"x"])
        subprocess.run(["umount", str(path)], check=True)
        for call in (connector.get(key), connector.put([b"x"])):
            with pytest.raises(ConnectorUnavailableError):
                await call
        assert os.listdir(path) == []


async def test_wrong_host(tmp_path):
    """A reader on a host without the directory learns that, not that the key is missing."""
    reader = FileConnector.from_url(f"file://{tmp_path}/none")
    with pytest.raises(ConnectorUnavailableError, match=os.uname().nodename):
        await reader.get("0" * 32)


async def test_read_only(tmp_path):
    """A read-only file system can be read, and a put there is a typed error."""
    need_root()
    with mounted(tmp_path / "ro", "-t", "tmpfs", "-o", "size=2m,mode=700", "none") as path:
        connector = FileConnector(path)
        key = await connector.put([b"x"])
        subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
        reader = FileConnector(path)
        assert await reader.get(key) == b"x"
        with pytest.raises(ConnectorUnavailableError, match="Read-only"):
            await reader.put([b"y"])
        with pytest.raises(ConnectorUnavailableError, match="Read-only"):
            await reader.evict(key)


@contextlib.contextmanager
def another_user():
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("made", [0o660, 0o640, None])
def test_a_group_shares_the_lock(made):
    """Users of one group take the lock that one of them made, whatever the umask."""
    need_root()
    with tempfile.TemporaryDirectory() as above:  # where others may look, as pytest's is not
        os.chmod(above, 0o755)
        group = Path(above, "group")
        group.mkdir()
        os.chown(group, 0, NOBODY)
        group.chmod(0o2770)

        def use(user, exchanges):
            os.umask(0o022)
            os.setgroups([])
            os.setegid(NOBODY)
            os.seteuid(user)
            connector = FileConnector(group)
            connector._swapper.exchanges = exchanges
            key = connector.put_sync([b"x"], key=f"of {user}")
            return connector.swap_sync(key, [b"y"]), connector.evict_sync(key)

        assert in_forked_child(lambda: use(1001, False)) == (b"x", True)
        if made is not None:
            (group / LOCK).chmod(made)
        for exchanges in (True, False):
            assert in_forked_child(partial(use, 1002, exchanges)) == (b"x", True)


async def test_no_permission(connector):
    """A directory that this user may not enter is a typed error for every operation."""
    need_root()
    key = await connector.put([b"x"])
    with another_user():
        with pytest.raises(ConnectorUnavailableError):
            FileConnector.from_url(connector.url)
        for call in (
            connector.get(key),
            connector.put([b"x"]),
            connector.exists(key),
            connector.evict(key),
        ):
            with pytest.raises(ConnectorUnavailableError):
                await call
        with pytest.raises(ConnectorUnavailableError):
            FileConnector(Path(connector.directory) / "sub")
    assert await connector.get(key) == b"x"


@pytest.fixture
def common(tmp_path):
    """A directory like /tmp: everyone may make things in it."""
    path = tmp_path / "common"
    path.mkdir()
    path.chmod(0o1777)
    return path


def test_trap_directory(common):
    """A directory that another user made where everyone may is refused, and left as it is."""
    need_root()
    trap = common / "objects"
    trap.mkdir(0o700)
    os.chown(trap, NOBODY, NOBODY)
    for make in (FileConnector, lambda path: FileConnector.from_url(f"file://{path}")):
        with pytest.raises(ConfigError, match="another user"):
            make(trap)
    assert trap.stat().st_uid == NOBODY
    assert trap.stat().st_mode & 0o777 == 0o700


def test_trap_link(common, tmp_path):
    """A symbolic link that another user made where everyone may is refused."""
    need_root()
    target = tmp_path / "mine"
    target.mkdir(0o700)
    trap = common / "objects"
    trap.symlink_to(target)
    os.lchown(trap, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match="another user"):
        FileConnector(trap)


def test_own_link(tmp_path):
    """A symbolic link of one's own, where nobody else can make one, is followed."""
    (tmp_path / "target").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    connector = FileConnector(tmp_path / "link")
    assert connector.get_sync(connector.put_sync([b"x"])) == b"x"


def test_directory_open_to_everyone(common):
    """A directory that everyone can write to is refused, and its mode is not touched."""
    with pytest.raises(ConfigError, match="everyone may write") as caught:
        FileConnector(common)
    assert f"{common}/proxyplane" in str(caught.value)
    assert common.stat().st_mode & 0o7777 == 0o1777


def test_not_a_directory(tmp_path):
    """A file in the place of the directory is refused."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", "/dev/full"):
        with pytest.raises(ConfigError, match="not a directory"):
            FileConnector(path)
    with pytest.raises(ConnectorUnavailableError):
        FileConnector(tmp_path / "file" / "below")


# The default directory


def test_environment_chooses(tmp_path, monkeypatch):
    """PROXYPLANE_DIR beats every candidate."""
    monkeypatch.setenv("PROXYPLANE_DIR", str(tmp_path / "chosen"))
    connector = FileConnector()
    assert connector.directory == str(tmp_path / "chosen")
    assert os.stat(connector.directory).st_mode & 0o777 == 0o700


@pytest.fixture
def elsewhere(common, monkeypatch):
    """Candidates of the default directory below a directory of the test."""
    monkeypatch.delenv("PROXYPLANE_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(common))
    if free_bytes(str(common)) < ROOM_BYTES:
        pytest.skip("no disk with room here")
    return common / f"proxyplane-{os.geteuid()}"


def test_default_is_ours_alone(elsewhere):
    """The default directory carries the user's id, and is made with mode 0700."""
    connector = FileConnector()
    assert connector.directory == str(elsewhere)
    assert elsewhere.stat().st_mode & 0o777 == 0o700
    assert FileConnector().directory == str(elsewhere)


def unchanged(path):
    """What tells that nobody changed it; to look at a link changes the time of its last access."""
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_uid, found.st_size, found.st_mtime_ns


@pytest.mark.parametrize("trap", ["link", "mode", "file", "owner"])
def test_default_passes_over_a_trap(elsewhere, tmp_path, trap):
    """What another may have planted under that name is neither used nor changed."""
    if trap == "link":
        (tmp_path / "target").mkdir(0o700)
        elsewhere.symlink_to(tmp_path / "target")
    elif trap == "file":
        elsewhere.touch()
    else:
        elsewhere.mkdir(0o700)
        if trap == "mode":
            elsewhere.chmod(0o755)
        else:
            need_root()
            os.chown(elsewhere, NOBODY, NOBODY)
    before = unchanged(elsewhere)
    assert default_directory() != str(elsewhere)
    assert unchanged(elsewhere) == before


def test_default_has_room(tmp_path, monkeypatch):
    """A candidate on a disk without room is passed over for one that has it."""
    need_root()
    monkeypatch.delenv("PROXYPLANE_DIR", raising=False)
    with small_disk(tmp_path / "small", 8 << 20) as path:
        monkeypatch.setenv("TMPDIR", str(path))
        assert not default_directory().startswith(str(path))
        assert not os.path.lexists(path / f"proxyplane-{os.geteuid()}")


def test_default_prefers_a_disk(tmp_path, monkeypatch):
    """A candidate in memory is passed over for a disk that has room."""
    need_root()
    monkeypatch.delenv("PROXYPLANE_DIR", raising=False)
    if not any(free_bytes(path) > ROOM_BYTES for path in ("/var/tmp", os.path.expanduser("~"))):
        pytest.skip("no disk with room here")
    with mounted(tmp_path / "memory", "-t", "tmpfs", "-o", "size=2g,mode=700", "none") as path:
        monkeypatch.setenv("TMPDIR", str(path))
        assert not default_directory().startswith(str(path))


def test_file_system_is_recognised(tmp_path):
    """The type of a file system is that of its mount, and a network is told from a disk."""
    need_root()
    with mounted(tmp_path / "memory", "-t", "ramfs", "none") as path:
        assert file_system(os.stat(path).st_dev) == "ramfs"
    assert file_system(os.makedev(4095, 1048575)) == ""
    assert [is_remote(kind) for kind in ("nfs4", "fuse.sshfs", "ext4", "")] == [
        True,
        True,
        False,
        False,
    ]


def test_publisher_takes_the_better_way(tmp_path):
    """On a file system that has files without a name, they are used."""
    connector = FileConnector(tmp_path / "objects")
    connector.put_sync([b"x"])
    assert connector._publisher.anonymous is Publisher(connector._directory).anonymous
    if connector._publisher.anonymous:
        assert not Path(connector.directory, UNPUBLISHED).exists()
