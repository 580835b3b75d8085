"""The directory of a file connector: which one by default, whether it is safe, what it can do.

Objects are pickles more often than not, so whoever can plant a file in the directory can run code
in every reader. A directory that another user may write to is therefore refused, never repaired.
"""

from __future__ import annotations

import os
import stat

from proxyplane.exceptions import ConfigError, ConnectorUnavailableError

UNPUBLISHED = ".unpublished"
"""Name of the sub-directory for files that are not published yet. No key maps to it."""

PENDING = ".pending"
"""Name of the sub-directory for the registrations of keys whose object is still to come."""

LEASES = ".leases"
"""Name of the sub-directory for the index of leases."""

SWAPPING = ".swapping"
"""How the names of sub-directories begin for files that are about to replace others."""

LOCK = ".lock"
"""Name of the file that is locked where files cannot be replaced and had in one step."""

ROOM_BYTES = 1 << 30
"""A default directory should have this much room, in bytes."""

_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
# A call on these may take as long as a network, or as another program, likes.
_REMOTE = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "daos", "davfs", "gfs2", "glusterfs", "gpfs", "lustre",
    "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "smb2", "smb3", "smbfs", "virtiofs",
    "wekafs",
})  # fmt: skip
# Here the free room that the system reports is firm. Others compress, or share it with snapshots.
_FIRM = frozenset({"ext4", "tmpfs", "xfs"})


class Directory:
    """One directory as one connector sees it.

    Attributes:
        path: Absolute path.
        remote: Whether calls on it may stall, because it is on a network or in user space.
        firm: Whether what does not fit into the free room is sure to fail.
        file_mode: Permission bits of the files in it; group readers only if the directory has them.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.remote = False
        self.firm = False
        self.file_mode = 0o600
        self._device: int | None = None

    def look(self) -> bool:
        """Learns what the directory can do; False when it does not exist.

        Raises:
            ConfigError: It is no directory, or others may write to it.
            ConnectorUnavailableError: It cannot be looked at.
        """
        try:
            check_safe(self.path)
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise ConnectorUnavailableError(
                f"cannot look at the directory {self.path}: {exc.strerror}"
            ) from exc
        kind = file_system(found.st_dev)
        self.remote = is_remote(kind)
        self.firm = kind in _FIRM
        self.file_mode = 0o600 | (found.st_mode & 0o040)
        self._device = found.st_dev
        return True

    def make(self) -> None:
        """Creates the directory, mode 0700, unless it is there.

        Raises:
            ConfigError: It is no directory, or others may write to it.
            ConnectorUnavailableError: It cannot be created.
        """
        parent = os.path.dirname(self.path)
        try:
            if self._device is None:
                os.makedirs(parent, exist_ok=True)
            elif os.stat(parent).st_dev != self._device:
                # It was there before; where its file system was mounted, there is another now.
                raise FileNotFoundError(2, "its file system is no longer mounted there")
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            pass
        except OSError as exc:
            raise ConnectorUnavailableError(
                f"cannot create the directory {self.path}: {exc.strerror}",
                hint="check its parent, or choose another directory: FileConnector(directory)",
            ) from exc
        if not self.look():
            raise self.gone()

    def share(self, folder: str) -> None:
        """Lets a new sub-directory be used by those who share the directory."""
        shared = stat.S_IMODE(os.stat(self.path).st_mode) & 0o2070
        if shared & 0o070:
            os.chmod(folder, 0o700 | shared)

    def gone(self) -> ConnectorUnavailableError:
        """The error for a directory that is not there."""
        return ConnectorUnavailableError(
            f"there is no directory {self.path} on host {os.uname().nodename!r}",
            hint="nothing was put there yet, it was removed, its file system is not mounted, or "
            "the object was written on another host: share the directory between the hosts, or "
            "use a RedisConnector",
        )


def check_safe(path: str, *, private: bool = False) -> None:
    """Refuses a directory through which another user could plant files.

    Args:
        path: A directory that exists.
        private: Demand what holds for a default directory: owned by this user, mode 0700, no
            symbolic link. A directory that the user chose may be shared with a group.

    Raises:
        ConfigError: It is refused; the message says why.
        OSError: It cannot be looked at.
    """
    me = os.geteuid()
    link, found = os.lstat(path), os.stat(path)
    others = os.stat(os.path.dirname(path)).st_mode & stat.S_IWOTH
    why = ""
    if not stat.S_ISDIR(found.st_mode):
        why = "it is not a directory"
    elif private and stat.S_ISLNK(link.st_mode):
        why = "it is a symbolic link"
    elif private and found.st_uid != me:
        why = f"it belongs to user {found.st_uid}"
    elif private and found.st_mode & 0o077:
        why = f"others may enter it (mode {stat.S_IMODE(found.st_mode):04o})"
    elif found.st_mode & stat.S_IWOTH:
        why = f"everyone may write to it (mode {stat.S_IMODE(found.st_mode):04o})"
    elif others and not {link.st_uid, found.st_uid} <= {me, 0}:
        # In a directory like /tmp anyone can be first to make a directory, or a link, of any name.
        why = f"another user (id {link.st_uid}) made it where everyone may make directories"
    if why:
        raise ConfigError(
            f"{path} cannot hold objects safely: {why}",
            hint="choose a directory that only you can write to, with FileConnector(directory) or "
            f"PROXYPLANE_DIR; a new one in it will do, like {os.path.join(path, 'proxyplane')}",
        )


def default_directory() -> str:
    """The directory of ``FileConnector()``.

    ``PROXYPLANE_DIR`` if it is set. Otherwise the best of: ``proxyplane-<uid>`` in ``$TMPDIR`` (or
    ``/tmp``) and ``/var/tmp``, ``proxyplane`` in the user's cache, ``proxyplane-<uid>`` in
    ``/dev/shm``. A disk beats memory, memory beats a network; a directory with less than 1 GiB of
    room comes last. A directory that exists and is not safe is passed over.

    Raises:
        ConfigError: None is usable; the message says why for each.
    """
    chosen = os.environ.get("PROXYPLANE_DIR")
    if chosen:
        return os.path.abspath(chosen)
    own = f"proxyplane-{os.geteuid()}"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    candidates = [
        os.path.join(os.environ.get("TMPDIR") or "/tmp", own),  # noqa: S108  checked below
        os.path.join("/var/tmp", own),  # noqa: S108
        os.path.join(cache, "proxyplane"),
        os.path.join("/dev/shm", own),  # noqa: S108
    ]
    reasons = []
    ranked: list[tuple[tuple[bool, bool, bool, int], str]] = []
    for path in dict.fromkeys(map(os.path.abspath, candidates)):
        try:
            ranked.append((_rank(path), path))
        except (ConfigError, OSError) as exc:
            reasons.append(str(exc.args[0]) if isinstance(exc, ConfigError) else f"{path}: {exc}")
    if not ranked:
        raise ConfigError(
            "no default directory is usable: " + "; ".join(reasons),
            hint="choose one: FileConnector(directory) or PROXYPLANE_DIR",
        )
    # The sort is stable: among equals the earlier candidate wins.
    return min(ranked, key=lambda one: one[0])[1]


def _rank(path: str) -> tuple[bool, bool, bool, int]:
    if os.path.lexists(path):
        check_safe(path, private=True)
    existing = path
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{existing} is not writable")
    room, kind = free_bytes(existing), file_system(os.stat(existing).st_dev)
    cramped = room < ROOM_BYTES
    return (cramped, is_remote(kind), kind in _IN_MEMORY, -room if cramped else 0)


def free_bytes(path: str) -> int:
    """Bytes that this user can still write where `path` is."""
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


def file_system(device: int) -> str:
    """Type of the file system with this device number, "" when the system does not tell."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                fields = line.split()
                if fields[2] == number:
                    return fields[fields.index("-", 6) + 1]
    except (OSError, ValueError, IndexError):
        pass
    return ""


def is_remote(kind: str) -> bool:
    """Whether calls on a file system of this type may stall."""
    return kind in _REMOTE or kind.startswith("fuse")
