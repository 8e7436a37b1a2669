"""Which controllers a v2 cgroup has is decided by every directory above it."""

from __future__ import annotations

import os

from dunnage.cgroups.paths import ROOT, V2Cgroup


def enable_controllers(cgroup: V2Cgroup, *, root: str = ROOT) -> list[str]:
    """Give ``cgroup`` every controller that the root has; gives back what did not work, in words.

    One write for each controller: a kernel refuses a list as a whole for one of them.
    """
    try:
        wanted = _words(f"{root}/cgroup.controllers")
    except OSError as error:
        return [f"{root}/cgroup.controllers: {error.strerror}"]
    failures = []
    directory = root
    for name in os.path.relpath(cgroup.directory, root).split("/"):
        path = f"{directory}/cgroup.subtree_control"
        for controller in wanted:
            try:
                if controller not in _words(path):
                    with open(path, "w", encoding="ascii") as file:
                        file.write(f"+{controller}")
            except OSError as error:
                failures.append(f"enable {controller} in {path}: {error.strerror}")
        directory = f"{directory}/{name}"
    return failures


def _words(path: str) -> list[str]:
    with open(path, encoding="ascii") as file:
        return file.read().split()
