from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.linux.mounting import mount, mounted, unmount


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[Path]:
    """In a bundle whose path has all that mountinfo escapes, and a line's end that it does not."""
    path = tmp_path / "a bundle\\with\todd\r'names'\n#1 (deleted)" / "rootfs"
    path.mkdir(parents=True)
    yield path
    unmount(path)
    assert mounted(tmp_path) == []


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs: an overlay on an overlay would need its upper directory elsewhere."""
    path = tmp_path / "stage"
    path.mkdir()
    assert mount(path, ("tmpfs", "t", "", [])) == (0, "")
    yield path
    unmount(path)


@pytest.fixture
def ext4_image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with open(path, "wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    return path
