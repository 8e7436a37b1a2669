"""Images mounted by a loop device, which goes with the mount."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.containerd.harness import wait_until
from tests.linux.mounting import mount, unmount

from dunnage.linux import loop
from dunnage.linux.mount_plan import quoted


def devices(image: Path) -> list[dict[str, Any]]:
    command = ["losetup", "--json", "-l", "-O", "NAME,AUTOCLEAR,RO,DIO", "-j", str(image)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: list[dict[str, Any]] = json.loads(listed)["loopdevices"] if listed else []
    return [{name: value for name, value in device.items() if name != "name"} for device in found]


def wait_gone(image: Path) -> None:
    """The kernel lets go of a device when its last user has gone, a moment after an unmount has returned."""
    wait_until(lambda: devices(image) == [], f"no loop device over {image}")


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (["loop"], {"autoclear": True, "ro": False, "dio": False}),
        (["loop", "ro"], {"autoclear": True, "ro": True, "dio": False}),
        (["loop", "direct-io"], {"autoclear": True, "ro": False, "dio": True}),
    ],
)
@pytest.mark.parametrize("kernel", ["new", "before 5.8"])
def test_device_goes_with_its_mount(
    rootfs: Path,
    ext4_image: Path,
    options: list[str],
    flags: dict[str, bool],
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kernel != "new":
        monkeypatch.setattr(loop, "LOOP_CONFIGURE", 0x4C7F)  # as unknown as the real one was then
    assert mount(rootfs, ("ext4", str(ext4_image), "", options)) == (0, "")
    assert devices(ext4_image) == [flags]
    if "ro" in options:
        with pytest.raises(OSError, match="Read-only"):
            (rootfs / "file").write_text("x")
    else:
        (rootfs / "file").write_text("x")
    assert unmount(rootfs) == (0, "")
    wait_gone(ext4_image)


def test_no_device_is_left_of_a_mount_that_fails(rootfs: Path, ext4_image: Path) -> None:
    status, text = mount(rootfs, ("xfs", str(ext4_image), "", ["loop", "ro"]))
    assert status == 1
    assert text.startswith(f"mount source: {quoted(str(ext4_image))}, target: ")
    wait_gone(ext4_image)
    status, text = mount(rootfs, ("ext4", str(ext4_image), "", ["loop"]), ("ext4", "/missing", "", ["loop"]))
    assert (status, text) == (1, 'loop device for "/missing": no such file or directory')
    wait_gone(ext4_image)


def test_no_device_is_left_where_the_old_calls_fail(ext4_image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOOP_CONFIGURE", 0x4C7F)
    monkeypatch.setattr(loop, "LOOP_SET_STATUS64", 0x4C7F)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Invalid argument"):
        loop.attach(str(ext4_image), read_only=False, direct_io=False)
    wait_gone(ext4_image)
    assert os.listdir("/proc/self/fd") == before


def test_device_that_nobody_mounted_goes_with_its_fd(ext4_image: Path) -> None:
    """Also when its maker is killed: it was never without autoclear."""
    fd, path = loop.attach(str(ext4_image), read_only=False, direct_io=False)
    assert path.startswith("/dev/loop")
    assert devices(ext4_image) == [{"autoclear": True, "ro": False, "dio": False}]
    os.close(fd)
    wait_gone(ext4_image)


def test_failure_leaves_no_fd(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="No such file"):
        loop.attach(str(tmp_path / "missing"), read_only=True, direct_io=False)
    with pytest.raises(OSError, match="Invalid argument"):
        loop.attach("/dev/null", read_only=True, direct_io=False)
    assert os.listdir("/proc/self/fd") == before
