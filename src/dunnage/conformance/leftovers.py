"""What a scene may not leave on the machine: processes, mounts, cgroups, the runtime's state, sockets, temporary files.

A scene's namespace is a name that nothing else on the machine has, so whatever carries it is the scene's.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
RUNTIME_ROOT: Final = Path("/run/containerd/runc")


def find(namespace: str, directory: Path) -> list[str]:
    """One line for each thing that is left."""
    return [
        *(f"process {pid}: {command}" for pid, command in processes(namespace, directory)),
        *(f"mount {target}" for target in mounts(directory)),
        *(f"cgroup {cgroup}" for cgroup in cgroups(namespace)),
        *(f"state of the runtime {path}" for path in _children(RUNTIME_ROOT / namespace)),
        *(f"temporary file {path}" for path in _children(directory / "tmp")),
    ]


def processes(namespace: str, directory: Path) -> Iterator[tuple[int, str]]:
    """Those that name the namespace, work below the directory, or are in the namespace's cgroups."""
    marks = (namespace.encode(), os.fspath(directory).encode())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            cgroup = (entry / "cgroup").read_bytes()
            cwd = os.readlink(os.fsencode(entry / "cwd"))
        except OSError:
            continue  # it is gone, or a zombie
        if any(mark in command or mark in cwd for mark in marks) or b"/" + marks[0] + b"/" in cgroup:
            yield int(entry.name), command.decode(errors="replace").strip()


def mounts(directory: Path) -> list[str]:
    """The innermost first."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()  # of text, they would end at more than newlines
    targets = [os.fsdecode(line.split(b" ")[4]) for line in lines]
    return [target for target in reversed(targets) if target.startswith(f"{directory}/")]


def cgroups(namespace: str) -> list[Path]:
    """Of containers; the directory of the namespace itself is nobody's but the scene's."""
    return [path for root in (CGROUPS, *_children(CGROUPS)) for path in _children(root / namespace) if path.is_dir()]


def sweep(namespace: str, directory: Path) -> None:
    """End and remove all of it, by force, and what a tidy scene leaves too: empty directories of the namespace."""
    found = [pid for pid, _ in processes(namespace, directory)]
    sockets = [path for pid in found for path in _sockets_of(pid)]
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for path in sockets:
        path.unlink(missing_ok=True)
    for target in mounts(directory):
        _unmount(target)
    for root in (CGROUPS, *_children(CGROUPS)):
        for path in (*_children(root / namespace), root / namespace):
            _remove_directory(path)
    for path in _children(RUNTIME_ROOT / namespace):
        for file in _children(path):
            file.unlink(missing_ok=True)
        _remove_directory(path)
    _remove_directory(RUNTIME_ROOT / namespace)


def _sockets_of(pid: int) -> list[Path]:
    """The paths of the unix sockets that the process has bound, or has a connection of."""
    try:
        links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        table = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text(errors="replace").split("\n")[1:]]
    except OSError:
        return []  # it is gone
    return [Path(row[7]) for row in table if len(row) > 7 and row[7][0] == "/" and f"socket:[{row[6]}]" in links]


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _remove_directory(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        pass  # it is not there, or a file of the hierarchy, or still in use: the next look will find it


@contextmanager
def tmpfs(directory: Path, size_bytes: int) -> Iterator[None]:
    """A small one there, for as long as it lasts."""
    target = os.fsencode(directory)
    if ctypes.CDLL(None, use_errno=True).mount(b"tmpfs", target, b"tmpfs", 0, f"size={size_bytes}".encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fspath(directory))
    try:
        yield
    finally:
        _unmount(os.fspath(directory))


def _unmount(target: str) -> None:
    ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(target), _MNT_DETACH)


_MNT_DETACH: Final = 2  # linux/fs.h
