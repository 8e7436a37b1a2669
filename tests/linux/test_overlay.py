"""Overlays of many lower directories, and of such whose names need an escape."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.linux.mounting import mount, mounted, unmount


def layers_of(directory: Path, count: int) -> list[Path]:
    """Each with a file of its own, and one that only the first one's hides."""
    layers = [directory / str(number) / "fs" for number in range(count)]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / f"file{number}").write_text(str(number))
        (layer / "same").write_text(str(number))
    return layers


def test_eighty_lower_directories_fit(rootfs: Path, stage: Path) -> None:
    layers = layers_of(stage / "io.containerd.snapshotter.v1.overlayfs" / "snapshots", 80)
    for name in ("upper", "work"):
        (stage / name).mkdir()
    options = [f"workdir={stage}/work", f"upperdir={stage}/upper", "lowerdir=" + ":".join(map(str, layers))]
    assert len(options[2]) > 4096
    assert mount(rootfs, ("overlay", "overlay", "", options)) == (0, "")
    assert [(rootfs / f"file{number}").read_text() for number in range(80)] == [str(number) for number in range(80)]
    assert (rootfs / "same").read_text() == "0"
    (rootfs / "new").touch()
    assert (stage / "upper" / "new").exists()
    assert unmount(rootfs) == (0, "")


@pytest.mark.parametrize("count", [2, 60])
def test_names_with_colons_commas_and_backslashes(rootfs: Path, stage: Path, count: int) -> None:
    odd = stage / ("a:b,c\\d" * 8)
    layers = [odd / f"{number}:,\\" for number in range(count)]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / f"file{number}").touch()
    escaped = [re.sub(r"([\\,:])", r"\\\1", str(layer)) for layer in layers]
    lower = ":".join(escaped)
    assert (len(lower) > 4096) == (count > 2)
    assert mount(rootfs, ("overlay", "overlay", "", [f"lowerdir={lower}"])) == (0, "")
    assert {path.name for path in rootfs.iterdir()} == {f"file{number}" for number in range(count)}
    assert unmount(rootfs) == (0, "")


def test_lower_directories_without_a_common_one_are_mounted_as_they_are(rootfs: Path, stage: Path) -> None:
    for name in ("upper", "work", "lower"):
        (stage / name).mkdir()
    (stage / "lower" / "here").touch()
    room = 4096 - 512 - len(f"lowerdir=/mnt:{stage}/lower")
    lower = f"{stage}/lower" + "/." * (room // 2 + 20)
    assert mount(rootfs, ("overlay", "overlay", "", [f"lowerdir=/mnt:{lower}"])) == (0, "")
    assert (rootfs / "here").exists()
    assert unmount(rootfs) == (0, "")
    lower += "/." * 300
    status, text = mount(rootfs, ("overlay", "overlay", "", [f"lowerdir=/mnt:{lower}"]))
    assert (status, text, mounted(rootfs)) == (1, "mount options is too long", [])
