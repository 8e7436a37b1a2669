"""Mounts that show other owners than are stored."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.linux.mounting import in_namespaces, mount, mounted, unmount
from tests.linux.test_mount import flags_of

from dunnage.linux import idmap
from dunnage.linux.mount_plan import IdMap, IdRange, quoted

IDS = ["uidmap=0:100000:1000,1000:500000:1", "gidmap=0:200000:1000"]


def owners(*paths: Path) -> list[tuple[int, int]]:
    return [(path.stat().st_uid, path.stat().st_gid) for path in paths]


def owned(path: Path, uid: int, gid: int) -> Path:
    path.touch()
    os.chown(path, uid, gid)
    return path


def mounts_of(path: Path) -> list[str]:
    """Wherever the file system of ``path`` is mounted, or a part of it."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = Path("/proc/self/mountinfo").read_bytes().decode().split("\n")
    return [line.split()[4] for line in lines if line.split()[2:3] == [number]]


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.fixture
def source(stage: Path) -> Path:
    (stage / "source").mkdir()
    owned(stage / "source" / "root", 0, 0)
    owned(stage / "source" / "user", 1000, 7)
    return stage / "source"


@pytest.mark.parametrize("options", [["rbind"], ["bind"], ["bind", "ro", "nosuid"]])
def test_bind_mount_shows_the_mapped_owners(rootfs: Path, source: Path, options: list[str]) -> None:
    assert mount(rootfs, ("bind", str(source), "", [*options, *IDS])) == (0, "")
    assert mounted(rootfs) == [str(rootfs)]
    assert owners(rootfs / "root", rootfs / "user") == [(100000, 200000), (500000, 200007)]
    assert owners(source / "root") == [(0, 0)]
    assert bool(os.statvfs(rootfs).f_flag & os.ST_RDONLY) == ("ro" in options)
    assert unmount(rootfs) == (0, "")


def test_recursive_bind_maps_what_lies_in_it(rootfs: Path, source: Path) -> None:
    (source / "inner").mkdir()
    assert mount(source, ("tmpfs", "t", "inner", [])) == (0, "")
    try:
        for kind, owner in (("rbind", 100000), ("bind", None)):
            assert mount(rootfs, ("bind", str(source), "", [kind, *IDS])) == (0, "")
            assert (f"{rootfs}/inner" in mounted(rootfs)) == (owner is not None)
            if owner is not None:
                assert owners(rootfs / "inner") == [(owner, 200000)]
            assert unmount(rootfs) == (0, "")
        assert mounted(source) == [f"{source}/inner"]
    finally:
        unmount(source)


def test_new_file_system_shows_the_mapped_owners(rootfs: Path, ext4_image: Path) -> None:
    assert mount(rootfs, ("ext4", str(ext4_image), "", ["loop", "noexec", *IDS])) == (0, "")
    assert mounted(rootfs) == [str(rootfs)]
    assert owners(rootfs, rootfs / "lost+found") == [(100000, 200000)] * 2
    assert os.statvfs(rootfs).f_flag & os.ST_NOEXEC
    assert unmount(rootfs) == (0, "")


def test_overlay_shows_the_mapped_owners_of_its_lower_directories(stage: Path, tmp_path: Path) -> None:
    for name in ("snapshots/1/fs", "snapshots/2/fs", "upper", "work"):
        (stage / name).mkdir(parents=True)
    owned(stage / "snapshots/1/fs/root", 0, 0)
    owned(stage / "snapshots/2/fs/user", 1000, 7)
    os.chown(stage / "upper", 100000, 200000)
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    options = [
        "noexec", *IDS, f"workdir={stage}/work", f"upperdir={stage}/upper",
        f"lowerdir={stage}/snapshots/1/fs:{stage}/snapshots/2/fs",
    ]  # fmt: skip
    assert mount(rootfs, ("overlay", "overlay", "", options)) == (0, "")
    try:
        assert mounted(rootfs) == [str(rootfs)]
        assert mounts_of(stage) == [str(stage)]  # the mapped directory is detached
        assert owners(rootfs / "root", rootfs / "user", rootfs) == [
            (100000, 200000), (500000, 200007), (100000, 200000),
        ]  # fmt: skip
        assert flags_of(rootfs) == {"rw", "noexec", "relatime"}
        (rootfs / "user").write_text("copied up")
        assert owners(stage / "upper" / "user", rootfs / "user") == [(500000, 200007)] * 2
        assert owners(stage / "snapshots/2/fs/user") == [(1000, 7)]
    finally:
        assert unmount(rootfs) == (0, "")


def test_eighty_mapped_lower_directories(rootfs: Path, stage: Path) -> None:
    layers = [stage / "io.containerd.snapshotter.v1.overlayfs" / "snapshots" / str(n) / "fs" for n in range(80)]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        owned(layer / f"file{number}", 0, 0)
    options = ["lowerdir=" + ":".join(map(str, layers)), *IDS]
    assert mount(rootfs, ("overlay", "overlay", "", options)) == (0, "")
    assert set(owners(*(rootfs / f"file{number}" for number in range(80)))) == {(100000, 200000)}
    assert mounted(rootfs) == [str(rootfs)]
    assert unmount(rootfs) == (0, "")


def test_one_mapped_lower_directory(rootfs: Path, source: Path, stage: Path) -> None:
    (stage / "upper").mkdir()
    (stage / "work").mkdir()
    options = [f"lowerdir={source}", f"upperdir={stage}/upper", f"workdir={stage}/work", *IDS]
    assert mount(rootfs, ("overlay", "overlay", "", options)) == (0, "")
    assert owners(rootfs / "root") == [(100000, 200000)]
    assert unmount(rootfs) == (0, "")


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("bind", ["bind", "uidmap=0:1:1,0:2:1", "gidmap=0:1:1"], "invalid argument"),  # id 0 twice
        ("bind", ["bind", "uidmap=0:1:0", "gidmap=0:1:1"], "invalid argument"),
        ("overlay", ["upperdir=/no/such", "workdir=/no", "lowerdir={stage}/source/a", *IDS], "no such file"),
        ("overlay", ["lowerdir={stage}/none/a:{stage}/none/b", *IDS], "no such file or directory"),
        ("proc", IDS, "invalid argument"),
        ("tmpfs", ["size=x", *IDS], "invalid argument"),
    ],
)
def test_failure_leaves_nothing(
    rootfs: Path, stage: Path, source: Path, kind: str, options: list[str], reason: str
) -> None:
    (source / "a").mkdir()
    options = [option.format(stage=stage) for option in options]
    status, text = mount(rootfs, (kind, str(source), "", options))
    assert status == 1
    assert reason in text
    assert quoted(str(rootfs)) in text
    assert mounts_of(stage) == [str(stage)]
    assert mounted(rootfs) == []


def test_failure_after_it_takes_a_mapped_mount_back(rootfs: Path, source: Path) -> None:
    (source / "data").mkdir()
    status, _ = mount(rootfs, ("bind", str(source), "", ["bind", *IDS]), ("no-such", "x", "data", []))
    assert status == 1
    assert mounted(rootfs) == []


def test_user_namespace_outlives_the_process_that_made_it_which_is_gone() -> None:
    fds, running = os.listdir("/proc/self/fd"), children()
    with idmap.user_namespace(IdMap((IdRange(0, 1000, 5),), (IdRange(0, 2000, 5),))) as namespace:
        assert os.readlink(f"/proc/self/fd/{namespace}").startswith("user:[")
        assert children() == running
    assert os.listdir("/proc/self/fd") == fds
    with pytest.raises(OSError, match="Invalid argument"), idmap.user_namespace(IdMap((IdRange(0, 0, 0),), ())):
        pass
    assert (os.listdir("/proc/self/fd"), children()) == (fds, running)


def test_host_that_allows_no_user_namespace_says_so(tmp_path: Path) -> None:
    source, rootfs = tmp_path / "source", tmp_path / "rootfs"
    source.mkdir()
    rootfs.mkdir()
    assert in_namespaces(
        ["-U", "-r"],
        f"""
from pathlib import Path
from tests.linux.mounting import mount
Path("/proc/sys/user/max_user_namespaces").write_text("0")
print(mount(Path({str(rootfs)!r}), ("bind", {str(source)!r}, "", ["bind", "uidmap=0:0:1", "gidmap=0:0:1"])))
""",
    ) == (
        f"""(1, 'id-mapped mount of "{source}" on "{rootfs}": a user namespace cannot be made: """
        """no space left on device')\n"""
    )
