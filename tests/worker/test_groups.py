"""The cgroup that a worker of its own joins (shim v2, §1.5.10), in trees that have a hierarchy's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dunnage.errors import Error
from dunnage.worker.groups import join_cgroup


def tree(root: Path, cgroups: Sequence[str]) -> Path:
    for cgroup in cgroups:
        (root / cgroup).mkdir(parents=True)
        (root / cgroup / "cgroup.procs").touch()
    return root


def joined(root: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(root)) for path in root.rglob("cgroup.procs") if path.read_text() == "0")


def test_of_version_2_there_is_one_hierarchy(tmp_path: Path) -> None:
    root = tree(tmp_path, ["shims/a", "a"])
    (root / "cgroup.controllers").touch()
    join_cgroup("/shims/a", str(root))
    assert joined(root) == ["shims/a"]


@pytest.mark.parametrize("path", ["shims/a", "/shims/../a", "/shims//a", "/a/", "{root}/a"])
def test_of_version_2_a_path_must_be_clean(tmp_path: Path, path: str) -> None:
    root = tree(tmp_path, ["shims/a", "a"])
    (root / "cgroup.controllers").touch()
    path = path.format(root=root)
    with pytest.raises(Error, match=f"^failed to load cgroup {path}: "):
        join_cgroup(path, str(root))
    assert joined(root) == []


def test_of_version_2_a_missing_cgroup_is_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    with pytest.raises(Error, match=f"^failed to join cgroup /shims: {tmp_path}/shims: No such file"):
        join_cgroup("/shims", str(tmp_path))


@pytest.mark.parametrize("path", ["/shims/a", "shims/a"])
def test_of_version_1_each_hierarchy_that_has_it_is_joined(tmp_path: Path, path: str) -> None:
    root = tree(tmp_path, ["memory/shims/a", "cpu/shims/a", "pids/shims", "unified/shims/a"])
    join_cgroup(path, str(root))
    assert joined(root) == ["cpu/shims/a", "memory/shims/a", "unified/shims/a"]
    with pytest.raises(Error, match=r"^failed to load cgroup /none: no hierarchy has it$"):
        join_cgroup("/none", str(root))
