"""A rootfs taken away, whatever lies in it and however it is called."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.containerd.fuse import HungFilesystem
from tests.linux.mounting import in_child, mount, mounted, unmount

from dunnage.linux import unmount as unmounting
from dunnage.linux.mount import unmount_all


def test_missing_rootfs_is_unmounted_already(tmp_path: Path) -> None:
    assert unmount(tmp_path / "nothing" / "rootfs") == (0, "")
    assert in_child(unmount_all, {"rootfs": ""}) == (0, "")


def test_rootfs_may_be_a_link(tmp_path: Path, rootfs: Path) -> None:
    (tmp_path / "link").symlink_to(rootfs)
    assert mount(tmp_path / "link", ("tmpfs", "t", "", [])) == (0, "")
    assert mounted(tmp_path) == [str(rootfs)]
    assert unmount(tmp_path / "link") == (0, "")
    assert mounted(tmp_path) == []


def test_stacked_mounts_are_all_unmounted(rootfs: Path) -> None:
    assert mount(rootfs, *[("tmpfs", "t", "", []) for _ in range(3)]) == (0, "")
    assert len(mounted(rootfs)) == 3
    assert unmount(rootfs) == (0, "")
    assert mounted(rootfs) == []


def test_mount_hidden_by_a_later_one_is_unmounted(rootfs: Path) -> None:
    (rootfs / "data").mkdir()
    began = time.monotonic()
    assert mount(
        rootfs, ("bind", str(rootfs), "", ["bind"]), ("tmpfs", "t", "data", []), ("tmpfs", "t", "", [])
    ) == (0, "")  # fmt: skip
    assert mounted(rootfs) == [str(rootfs), f"{rootfs}/data", str(rootfs)]
    assert unmount(rootfs) == (0, "")
    assert mounted(rootfs) == []
    assert time.monotonic() - began < unmounting.BUSY_TRIES * unmounting.BUSY_PAUSE_S


def test_what_only_begins_with_the_same_characters_stays(rootfs: Path) -> None:
    other = rootfs.with_name("rootfs2")
    other.mkdir()
    assert mount(other, ("tmpfs", "t", "", [])) == (0, "")
    assert unmount(rootfs) == (0, "")
    assert mounted(other) == [str(other)]
    assert unmount(other) == (0, "")


def test_mount_whose_source_was_deleted_is_unmounted(rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    assert mount(rootfs, ("bind", str(source), "", ["bind"])) == (0, "")
    source.rmdir()
    assert "//deleted" in Path("/proc/self/mountinfo").read_text()
    assert unmount(rootfs) == (0, "")
    assert mounted(rootfs) == []


def test_busy_mount_is_named_after_the_tries(rootfs: Path) -> None:
    assert mount(rootfs, ("tmpfs", "t", "", [])) == (0, "")
    began = time.monotonic()
    with open(rootfs / "file", "w"):
        assert unmount(rootfs) == (1, f"failed to unmount target {rootfs}: device or resource busy")
    assert 2.4 <= time.monotonic() - began < 4  # 50 × 50 ms
    assert unmount(rootfs) == (0, "")


def test_only_the_outermost_mount_has_to_go(rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy inner one keeps the outer one busy: that one is named."""
    monkeypatch.setattr(unmounting, "BUSY_TRIES", 2)
    (rootfs / "data").mkdir()
    assert mount(rootfs, ("bind", str(rootfs), "", ["bind"]), ("tmpfs", "t", "data", [])) == (0, "")
    with open(rootfs / "data" / "file", "w"):
        assert unmount(rootfs) == (1, f"failed to unmount target {rootfs}: device or resource busy")
    assert unmount(rootfs) == (0, "")


def test_dead_file_system_is_unmounted_without_being_asked(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    with HungFilesystem(bundle / "rootfs"):
        assert unmount(bundle / "rootfs", env={"PATH": ""}) == (0, "")
        assert mounted(tmp_path) == []
