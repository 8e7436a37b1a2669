"""The directory of one container as containerd makes it: config.json, a root filesystem, the fifo for the shim's log.

The root filesystem is a static busybox under every name that the cases call.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

APPLETS: Final = (
    "sh",
    "sleep",
    "cat",
    "echo",
    "true",
    "false",
    "kill",
    "stty",
    "head",
    "dd",
    "env",
    "id",
    "mkdir",
    "tty",
)
LOG_BYTES: Final = 64 << 10


class BusyboxIsMissing(Exception):
    """There is no static busybox on this machine to make a root filesystem of."""


def make_rootfs(directory: Path, busybox: Path | None = None) -> None:
    found = busybox or next((path for path in map(Path, _BUSYBOXES) if path.exists()), None)
    if found is None:
        raise BusyboxIsMissing(f"none of {', '.join(_BUSYBOXES)} exists; Debian has it in busybox-static")
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(found, directory / "bin/busybox")
    for applet in APPLETS:
        (directory / "bin" / applet).symlink_to("busybox")


def process(args: Sequence[str], *, env: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """An OCI process as containerd writes it: what is empty is left out."""
    variables = {"PATH": "/bin", **(env or {})}
    return {
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "env": [f"{name}={value}" for name, value in variables.items()],
        "cwd": "/",
        **more,
    }


def config(args: Sequence[str], *, cgroup: str, terminal: bool, private_pids: bool = True) -> dict[str, Any]:
    namespaces = [{"type": kind} for kind in ("ipc", "uts", "mount", *(("pid",) if private_pids else ()))]
    return {
        "ociVersion": "1.0.2",
        "process": {**process(args), **({"terminal": True} if terminal else {})},
        "root": {"path": "rootfs"},
        "hostname": "conformance",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": True, "access": "rwm"}]},
        },
    }


class Bundle:
    """`path` is ``<state>/io.containerd.runtime.v2.task/<namespace>/<id>``; `work` is where its link ``work`` leads."""

    def __init__(self, path: Path, spec: Mapping[str, Any], rootfs: Path | None, work: Path) -> None:
        self.path = path
        self.spec = spec
        self.log = bytearray()
        path.mkdir(parents=True, mode=0o700)
        (path / "config.json").write_text(json.dumps(spec))
        (path / "rootfs").mkdir(mode=0o711)
        if rootfs is not None:
            shutil.copytree(rootfs, path / "rootfs", symlinks=True, dirs_exist_ok=True)
        work.mkdir(parents=True, mode=0o711)
        (path / "work").symlink_to(work)
        os.mkfifo(path / "log", 0o700)
        self._log_fd = os.open(path / "log", os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._log_fd, self._read_log)

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def names(self) -> set[str]:
        return set(os.listdir(self.path))

    def text(self, name: str) -> str:
        return (self.path / name).read_text()

    def close(self) -> None:
        """Forget it; the directory goes with its scene."""
        if self._log_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._log_fd)
            os.close(self._log_fd)
            self._log_fd = -1

    def _read_log(self) -> None:
        try:
            self.log += os.read(self._log_fd, LOG_BYTES)
        except BlockingIOError:
            pass
        del self.log[:-LOG_BYTES]


_BUSYBOXES: Final = ("/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static", "/usr/bin/busybox.static")
