"""What dead keepers, workers and clients left on a machine: state directories, sockets, mounts, bundles."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from dunnage.cli.finding import Finding, note, ok
from dunnage.client import DEFAULT_STATE

_LOCAL = "local"


def findings(state: Path = DEFAULT_STATE) -> Iterator[Finding]:
    """Everything left over below the state directory; one `ok` where there is nothing."""
    try:
        found = list(_all(state))
    except PermissionError as error:
        found = [note("leftovers", f"{error.filename} cannot be read", "run dunnage doctor as root")]
    yield from found or [ok("leftovers", "none")]


def _all(state: Path) -> Iterator[Finding]:
    try:
        keys = sorted(entry.name for entry in os.scandir(state) if entry.is_dir())
    except FileNotFoundError:
        return
    for key in keys:
        directory = state / key
        lives = is_locked(directory / "lock")
        if not lives:
            yield from _of_dead_keeper(directory)
        yield from _stale_sockets(directory / "s", lives)
    yield from _mounts(state)


def _of_dead_keeper(directory: Path) -> Iterator[Finding]:
    bundles = [path for path in (directory / "bundles").glob("*/*") if path.is_dir()]
    for path in bundles:
        yield note(
            "leftovers",
            f"bundle {path} has no keeper any more",
            f"dunnage --namespace {path.parent.name} rm -f {path.name}",
        )
    if (directory / "control").exists():
        yield note(
            "leftovers",
            f"the keeper of {directory} has died; what is here is used again by the next one",
            "nothing to do; it may be removed while no container runs",
        )


def _stale_sockets(directory: Path, lives: bool) -> Iterator[Finding]:
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if path.is_socket() and not _is_listening(path):
            why = "although its keeper lives" if lives else "as its keeper has died"
            yield note("leftovers", f"nobody listens on {path}, {why}", f"rm {path}")


def _mounts(state: Path) -> Iterator[Finding]:
    for line in Path("/proc/self/mountinfo").read_bytes().removesuffix(b"\n").split(b"\n"):  # a path may have all else
        name = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), line.split(b" ")[4])
        point = Path(os.fsdecode(name))
        bundle = _bundle_of(point, state / _LOCAL / "bundles")
        if bundle is not None and not (bundle / "client.json").exists():
            yield note("leftovers", f"{point} is mounted, and its container is gone", f"umount {point}")


def _bundle_of(point: Path, bundles: Path) -> Path | None:
    """The bundle that a mount point lies in: its second level below the directory of all bundles."""
    if not point.is_relative_to(bundles):
        return None
    parts = point.relative_to(bundles).parts
    return bundles.joinpath(*parts[:2]) if len(parts) > 2 else None


def is_locked(path: Path) -> bool:
    """Whether a keeper holds this lock file; False where there is none."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as peer:
        try:
            peer.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True
