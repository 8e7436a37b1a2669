"""Recorded cgroup directories of each version, and copies of them that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

from dunnage.cgroups import V1Cgroup, V2Cgroup

TREES = Path(__file__).parent / "trees"
HUGEPAGES = str(TREES / "hugepages")
PROC = str(TREES / "proc")


def v1_cgroup(tree: Path = TREES / "v1") -> V1Cgroup:
    return V1Cgroup({directory.name: str(directory) for directory in tree.iterdir()})


def v2_cgroup(tree: Path = TREES / "v2") -> V2Cgroup:
    return V2Cgroup(str(tree))


def copied(version: str, to: Path) -> Path:
    return Path(shutil.copytree(TREES / version, to / version))
