"""Real mounts, each in a forked child, as the keeper does it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dunnage.linux.mount import mount_all, mount_points, open_place, unmount_all

Entry = Callable[[Any, dict[str, int]], int]


def in_child(entry: Entry, argument: Any) -> tuple[int, str]:
    """Its exit status and its error text."""
    error = os.memfd_create("error")
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = entry(argument, {"error": error})
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    text = os.pread(error, 100_000, 0).decode()
    os.close(error)
    return os.waitstatus_to_exitcode(status), text


def mount(rootfs: Path, *mounts: tuple[str, str, str, list[str]]) -> tuple[int, str]:
    named = [dict(zip(("type", "source", "target", "options"), values, strict=True)) for values in mounts]
    return in_child(mount_all, {"rootfs": str(rootfs), "mounts": named})


def unmount(rootfs: Path) -> tuple[int, str]:
    return in_child(unmount_all, {"rootfs": str(rootfs)})


def mounted(below: Path) -> list[str]:
    return [point for point, _ in mount_points(Path("/proc/self/mountinfo").read_bytes(), str(below))]


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "a bundle\\with\todd 'names'" / "rootfs"
    path.mkdir(parents=True)
    yield path
    unmount(path)
    assert mounted(tmp_path) == []


def test_mounts_are_made_in_order_inside_each_other_and_unmounted(rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    assert mount(
        rootfs,
        ("bind", str(source), "", ["rbind", "rw"]),
        ("tmpfs", "tmpfs", "/data", ["nosuid", "size=64k"]),
    ) == (0, "")
    assert mounted(rootfs) == [f"{rootfs}/data", str(rootfs)]
    (rootfs / "data" / "file").write_text("x")
    assert list((source / "data").iterdir()) == []
    assert unmount(rootfs) == (0, "")
    assert mounted(rootfs) == []
    assert unmount(rootfs) == (0, "")


def test_missing_rootfs_is_unmounted_already(tmp_path: Path) -> None:
    assert unmount(tmp_path / "nothing" / "rootfs") == (0, "")
    assert in_child(unmount_all, {"rootfs": ""}) == (0, "")


def test_read_only_bind_is_read_only(rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    assert mount(rootfs, ("bind", str(source), "", ["bind", "ro"])) == (0, "")
    assert os.statvfs(rootfs).f_flag & os.ST_RDONLY
    assert not os.statvfs(source).f_flag & os.ST_RDONLY


def test_failure_unmounts_what_was_made_and_says_what_failed(rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    status, text = mount(
        rootfs,
        ("bind", str(source), "", ["bind"]),
        ("tmpfs", "tmpfs", "data", []),
        ("no-such-fs", "here", "data", ["ro", "a=b"]),
    )
    assert status == 1
    assert text == (
        f'mount source: "here", target: {quoted(f"{rootfs}/data")}, fstype: no-such-fs, flags: 1, data: "a=b", '
        "err: no such device"
    )
    assert mounted(rootfs) == []


@pytest.mark.parametrize(
    ("kind", "source", "target", "reason"),
    [
        ("fuse.broken", "here", "data", "mount helper mount.fuse: exec format error"),
        ("tmpfs", "a\0b", "data", "mount contains a zero byte"),
        ("tmpfs", "here", "da\0ta", "embedded null byte"),
    ],
)
def test_whatever_fails_unmounts_what_was_made(
    rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, source: str, target: str, reason: str
) -> None:
    helper = tmp_path / "mount.fuse"
    helper.write_text("no program")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (rootfs / "data").mkdir()
    status, text = mount(rootfs, ("bind", str(rootfs), "", ["bind"]), (kind, source, target, []))
    assert status == 1
    assert reason in text
    assert mounted(rootfs) == []


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace("\t", "\\t") + '"'


def test_missing_directories_are_named(rootfs: Path, tmp_path: Path) -> None:
    status, text = mount(rootfs, ("overlay", "overlay", "", ["lowerdir=/no/where:/no/there"]))
    assert status == 1
    assert text.endswith("err: no such file or directory")
    status, text = mount(rootfs, ("tmpfs", "t", "", []), ("tmpfs", "t", "missing", []))
    assert (status, text) == (1, f"mount target {quoted(f'{rootfs}/missing')}: no such file or directory")
    assert mounted(rootfs) == []


def test_no_link_leads_out_of_the_rootfs(rootfs: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "inner").mkdir()
    (rootfs / "absolute").symlink_to(outside)
    (rootfs / "relative").symlink_to("../../outside")
    (rootfs / "good").symlink_to("/inner")
    (rootfs / "loop").symlink_to("loop")
    for target in ("absolute", "relative", "loop"):
        status, text = mount(rootfs, ("tmpfs", "t", target, []))
        assert status == 1, text
    assert mount(rootfs, ("tmpfs", "t", "/../../good", [])) == (0, "")
    assert mounted(tmp_path) == [f"{rootfs}/inner"]


def test_target_may_be_a_file(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("from outside")
    (rootfs / "etc").mkdir()
    (rootfs / "etc" / "hosts").touch()
    assert mount(rootfs, ("bind", str(tmp_path / "hosts"), "etc/hosts", ["bind", "ro"])) == (0, "")
    assert (rootfs / "etc" / "hosts").read_text() == "from outside"


def test_hundred_overlay_layers_fit(rootfs: Path, tmp_path: Path) -> None:
    # an overlay on an overlay needs an upper directory elsewhere
    stage = tmp_path / "stage"
    stage.mkdir()
    assert mount(stage, ("tmpfs", "t", "", [])) == (0, "")
    try:
        layers = [stage / "snapshots-with-a-long-name-of-a-directory" / str(number) / "fs" for number in range(100)]
        for layer in layers:
            layer.mkdir(parents=True)
        (layers[0] / "top").write_text("0")
        (layers[99] / "bottom").write_text("99")
        options = ["lowerdir=" + ":".join(map(str, layers))]
        assert len(options[0]) > 4096
        assert mount(rootfs, ("overlay", "overlay", "", options)) == (0, "")
        assert (rootfs / "top").read_text() + (rootfs / "bottom").read_text() == "099"
        assert unmount(rootfs) == (0, "")
    finally:
        unmount(stage)


def test_path_of_four_thousand_characters(tmp_path: Path) -> None:
    depth = (4000 - len(str(tmp_path))) // 201
    bundle = tmp_path.joinpath(*["d" * 200] * depth)
    bundle = bundle / ("e" * (4000 - len(str(bundle)) - 1))
    assert len(str(bundle)) == 4000
    (bundle / "rootfs" / "data").mkdir(parents=True)
    assert mount(bundle / "rootfs", ("tmpfs", "t", "", []), ("proc", "p", "", [])) == (0, "")
    assert mounted(tmp_path) == [str(bundle / "rootfs")]
    assert unmount(bundle / "rootfs") == (0, "")
    assert mounted(tmp_path) == []
    shutil.rmtree(tmp_path / ("d" * 200))


def test_stacked_mounts_are_all_unmounted(rootfs: Path) -> None:
    assert mount(rootfs, *[("tmpfs", "t", "", []) for _ in range(3)]) == (0, "")
    assert unmount(rootfs) == (0, "")
    assert mounted(rootfs) == []


def test_busy_mount_is_named_after_the_tries(rootfs: Path) -> None:
    assert mount(rootfs, ("tmpfs", "t", "", [])) == (0, "")
    with open(rootfs / "file", "w"):
        assert unmount(rootfs) == (1, f"failed to unmount target {rootfs}: device or resource busy")
    assert unmount(rootfs) == (0, "")


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs mkfs.ext4")
def test_loop_device_goes_with_its_mount(rootfs: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)

    def devices() -> list[str]:
        return subprocess.run(["losetup", "-j", image], capture_output=True, text=True).stdout.splitlines()

    assert mount(rootfs, ("ext4", str(image), "", ["loop"])) == (0, "")
    (rootfs / "file").write_text("x")
    assert len(devices()) == 1
    assert unmount(rootfs) == (0, "")
    assert devices() == []
    status, text = mount(rootfs, ("ext4", str(tmp_path / "missing"), "", ["loop"]))
    assert status == 1
    assert "no such file or directory" in text
    status, _ = mount(rootfs, ("xfs", str(image), "", ["loop", "ro"]))
    assert status == 1
    assert devices() == []


def test_place_keeps_no_fd_but_its_own(rootfs: Path) -> None:
    (rootfs / "a" / "b").mkdir(parents=True)
    (rootfs / "link").symlink_to("a/../a/b")
    before = len(os.listdir("/proc/self/fd"))
    place = open_place(str(rootfs), "link")
    assert place.name == "b"
    assert len(os.listdir("/proc/self/fd")) == before + 1
    os.close(place.directory)
    with pytest.raises(FileNotFoundError):
        open_place(str(rootfs), "a/none/x")
    assert len(os.listdir("/proc/self/fd")) == before


def test_read_only_bind_in_a_user_namespace_keeps_locked_flags(tmp_path: Path) -> None:
    """The source's nosuid and nodev are locked there: a remount without them is refused, and so is done with them."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    assert mount(source, ("tmpfs", "t", "", ["nosuid", "nodev", "noexec"])) == (0, "")
    code = f"""
import os
from dunnage.linux.mount import mount_all
mounts = [{{"type": "bind", "source": {str(source)!r}, "target": "", "options": ["bind", "ro"]}}]
status = mount_all({{"rootfs": {str(target)!r}, "mounts": mounts}}, {{"error": 2}})
flags = os.statvfs({str(target)!r}).f_flag
print(status, bool(flags & os.ST_RDONLY), bool(flags & os.ST_NOSUID), bool(flags & os.ST_NODEV))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    try:
        done = subprocess.run(
            ["unshare", "-U", "-r", "-m", sys.executable, "-c", code], env=env, capture_output=True, text=True
        )
        assert done.stdout == "0 True True True\n", done.stderr
    finally:
        unmount(source)
