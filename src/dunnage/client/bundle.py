"""A local bundle: the directory that stands for one container when there is no containerd to make one.

    <state>/local/bundles/<namespace>/<id>/     0700
        config.json     the OCI runtime specification
        client.json     what this client needs to know again: `Record`
        address         where the container's worker listens; the launcher writes it
        stdio/          fifos between a client and the worker
        output.log      what a detached container wrote
        scratch/        upper and work directory of the overlay over the host's /

Whoever makes a bundle removes it; a bundle without a living container is what `dunnage doctor` calls a leftover.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dunnage import errors

DEFAULT_STATE = Path("/run/dunnage")
LOCAL_KEY = "local"
DEFAULT_NAMESPACE = "default"

# containerd's own rule for identifiers (its package identifiers), which the worker may rely on
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_IDENTIFIER_LIMIT = 76

_MNT_DETACH = 2


@dataclass(frozen=True)
class Record:
    """What the client that made a container leaves for the next one."""

    id: str
    namespace: str
    created_at: str
    command: Sequence[str]
    root: str
    runtime: str
    detached: bool
    terminal: bool
    log: str | None = None
    remove_when_stopped: bool = False


def check_identifier(name: str, what: str = "container id") -> str:
    """`name` if containerd would accept it too; else InvalidArgument."""
    if len(name) > _IDENTIFIER_LIMIT:
        raise errors.InvalidArgument(f"{what} {name[:16]}… is longer than {_IDENTIFIER_LIMIT} characters")
    if not _IDENTIFIER.fullmatch(name):
        raise errors.InvalidArgument(
            f"{what} {name!r} must be letters and digits, with single dots, dashes or underscores between them"
        )
    return name


def new_id() -> str:
    """An id nobody has: 12 hexadecimal digits."""
    return os.urandom(6).hex()


class Bundle:
    """One bundle directory. Nothing is read or made before a method says so."""

    def __init__(self, state: Path, namespace: str, id: str) -> None:
        self.state = state
        self.namespace = check_identifier(namespace, "namespace")
        self.id = check_identifier(id)
        self.path = bundles_directory(state) / namespace / id

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r})"

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def record_path(self) -> Path:
        return self.path / "client.json"

    @property
    def log_path(self) -> Path:
        return self.path / "output.log"

    @property
    def stdio_path(self) -> Path:
        return self.path / "stdio"

    @property
    def scratch_path(self) -> Path:
        return self.path / "scratch"

    @property
    def upper_path(self) -> Path:
        """What a container on the host's root has changed there."""
        return self.scratch_path / "upper"

    @property
    def exists(self) -> bool:
        return self.path.is_dir()

    @contextlib.contextmanager
    def being_made(self) -> Iterator[None]:
        """Have others see that its container is not there yet, but will be; the kernel ends it with our process."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    @property
    def is_being_made(self) -> bool:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def check_exists(self) -> None:
        """NotFound where there is no such container, or no longer."""
        if not self.exists:
            raise errors.NotFound(f"container {self.id} does not exist")

    def make(self) -> None:
        """Make the directory; AlreadyExists where a container of this name is there."""
        try:
            self._make_directory()
            try:
                self.stdio_path.mkdir(mode=0o700)
            except OSError:
                self.path.rmdir()  # else its name would be taken
                raise
        except FileExistsError:
            raise errors.AlreadyExists(f"container {self.id} already exists") from None
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _make_directory(self) -> None:
        while True:
            _make_private(self.path.parent)
            try:
                self.path.mkdir(mode=0o700)
            except FileNotFoundError:
                continue  # whoever removed the namespace's last container just now removed its directory too
            return

    def _inode(self) -> int | None:
        try:
            return self.path.stat().st_ino
        except FileNotFoundError:
            return None

    def make_scratch(self) -> tuple[Path, Path]:
        """Upper and work directory for an overlay over the host's `/`, on another filesystem than `/` itself.

        Where the state directory lies on the filesystem of `/`, a tmpfs is mounted: the kernel leaves undefined what an
        overlay does whose upper directory lies in its lower one.
        """
        self.scratch_path.mkdir(mode=0o700)
        if os.stat(self.scratch_path).st_dev == os.stat("/").st_dev:
            _mount_tmpfs(self.scratch_path)
        upper, work = self.upper_path, self.scratch_path / "work"
        upper.mkdir(mode=0o755)
        work.mkdir(mode=0o700)
        return upper, work

    def write_config(self, spec: Mapping[str, Any]) -> None:
        _write_json(self.config_path, spec)

    def read_config(self) -> dict[str, Any]:
        config = self._read_json(self.config_path)
        return config if isinstance(config, dict) else {}

    def write_record(self, record: Record) -> None:
        _write_json(self.record_path, asdict(record))

    def read_record(self) -> Record:
        """What was written at the container's creation; NotFound where there is no such container."""
        try:
            return Record(**self._read_json(self.record_path))
        except TypeError as error:
            raise errors.FailedPrecondition(f"{self.record_path} is not of this version: {error}") from error

    def read_address(self) -> str:
        """Where the container's worker listens: a path, without ``unix://``."""
        try:
            address = (self.path / "address").read_text()
        except OSError as error:
            raise self._missing(error) from error
        return address.strip().removeprefix("unix://")

    def remove(self) -> None:
        """Remove everything of the bundle, also where another does so just now. The container must be gone already."""
        for mounted in (self.path / "rootfs", self.scratch_path):
            try:
                if os.path.ismount(mounted):
                    unmount(mounted)
            except errors.Internal:
                if os.path.ismount(mounted):  # else another was faster
                    raise
        inode = self._inode()
        while inode is not None and self._inode() == inode:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.path)
        try:
            self.path.parent.rmdir()
        except OSError:
            pass  # other containers of the namespace

    def _read_json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise self._missing(error) from error

    def _missing(self, error: OSError | ValueError) -> errors.Error:
        if not self.exists:
            return errors.NotFound(f"container {self.id} does not exist")
        return errors.FailedPrecondition(f"container {self.id} was not completely created: {error}")


def bundles_directory(state: Path) -> Path:
    return state / LOCAL_KEY / "bundles"


def find_bundles(state: Path, namespace: str) -> list[Bundle]:
    """Every local bundle of a namespace, by name."""
    try:
        names = sorted(entry.name for entry in os.scandir(bundles_directory(state) / namespace) if entry.is_dir())
    except FileNotFoundError:
        return []
    return [Bundle(state, namespace, name) for name in names]


def host_filesystems(mountinfo: str | None = None) -> list[str]:
    """Mount points of the host that hold files of its system besides `/` itself (a separate /usr, /home, /nix…).

    An overlay over `/` shows none of them. Only what lies on a block device counts: the container gets its own /proc,
    /sys, /dev, and what the host keeps in /run is not for it.
    """
    if mountinfo is None:
        mountinfo = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    found: list[str] = []
    for line in mountinfo.removesuffix("\n").split("\n"):  # a path may hold what else ends a line of text
        before, _, after = line.partition(" - ")
        root, point = (_unescape(field) for field in before.split(" ")[3:5])
        kind, source = after.split(" ")[:2]
        is_whole = root == "/" or kind == "btrfs"  # else a bind mount of a part: somebody's sandbox or container
        if is_whole and source.startswith("/dev/") and point != "/" and not point.startswith(_NOT_FOR_CONTAINERS):
            found.append(point)
    return found


def host_files(resolver: str = "/etc/resolv.conf") -> list[str]:
    """Files of the host's /run that its own programs need: a resolv.conf that is a link there."""
    path = os.path.realpath(resolver)
    return [path] if path.startswith("/run/") and os.path.isfile(path) else []


_NOT_FOR_CONTAINERS = ("/proc/", "/sys/", "/dev/", "/run/", "/var/lib/containerd/", "/var/lib/docker/", "/boot")


def _make_private(path: Path) -> None:
    """Make the directory and every missing one above it for their owner alone (`mkdir -p` opens the parents to all)."""
    if not path.is_dir():
        _make_private(path.parent)
        with contextlib.suppress(FileExistsError):  # another's; what pathlib asks then may be gone again
            path.mkdir(mode=0o700)


def unmount(path: Path) -> None:
    """Detach what is mounted at `path`; an error says where it still is."""
    _mount_call("umount2", os.fsencode(path), _MNT_DETACH, what=f"unmount {path}")


def _mount_tmpfs(path: Path) -> None:
    _mount_call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", ctypes.c_ulong(0), b"mode=0700", what=f"mount {path}")


def _mount_call(name: str, *arguments: object, what: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        kind = errors.PermissionDenied if number == 1 else errors.Internal
        raise kind(f"{what}: {os.strerror(number).lower()}")


def _write_json(path: Path, value: object) -> None:
    with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(value, file)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _unwritable(path: Path, error: OSError) -> errors.Error:
    kind = errors.PermissionDenied if isinstance(error, PermissionError) else errors.FailedPrecondition
    return kind(f"{path}: {(error.strerror or str(error)).lower()}")
