"""Which namespaces a process is in."""

from __future__ import annotations

import os
from collections.abc import Mapping

KINDS = ("mnt", "net", "ipc", "uts", "pid", "cgroup", "user", "time")


def namespaces(pid: int | str) -> Mapping[str, tuple[int, int]]:
    """Kind → (device, inode) of the namespaces of ``pid`` (or ``"self"``); a kind the kernel lacks is left out.

    Raises ProcessLookupError when the process is gone.
    """
    found: dict[str, tuple[int, int]] = {}
    for kind in KINDS:
        try:
            status = os.stat(f"/proc/{pid}/ns/{kind}")
        except FileNotFoundError:
            continue
        found[kind] = (status.st_dev, status.st_ino)
    if not found:
        raise ProcessLookupError(f"process {pid} is gone")
    return found
