"""What a mount needs, as values."""

from __future__ import annotations

import pytest

from dunnage.errors import Error, InvalidArgument, Unimplemented
from dunnage.linux import mount
from dunnage.linux.mount import OPTIONS, Step, mount_plan, mount_points, relative_lowerdirs

PAGE = 4096


def plan(fstype: str, source: str, *options: str) -> mount.Plan:
    return mount_plan(fstype, source, options, page_bytes=PAGE)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_flag_option_is_a_flag_and_no_data(option: str) -> None:
    sets, _ = OPTIONS[option]
    steps = plan("tmpfs", "t", option, "size=1m").steps
    assert steps[0] == Step("t", "tmpfs", sets, "size=1m")


def test_later_option_wins() -> None:
    assert plan("tmpfs", "t", "ro", "noexec", "exec", "rw").steps == (Step("t", "tmpfs", 0, ""),)


def test_what_is_no_flag_is_data_in_order() -> None:
    assert plan("overlay", "o", "lowerdir=/a:/b", "ro", "index=off").steps == (
        Step("o", "overlay", mount.MS_RDONLY, "lowerdir=/a:/b,index=off"),
    )


def test_read_only_bind_is_mounted_and_then_remounted() -> None:
    flags = mount.MS_BIND | mount.MS_REC | mount.MS_RDONLY
    assert plan("bind", "/s", "rbind", "ro").steps == (
        Step("/s", "bind", flags, ""),
        Step("", "", flags | mount.MS_REMOUNT, ""),
    )


def test_remount_without_data_is_no_first_mount() -> None:
    assert plan("bind", "/s", "bind", "ro", "remount").steps == (
        Step("", "", mount.MS_BIND | mount.MS_RDONLY | mount.MS_REMOUNT, ""),
    )
    assert plan("tmpfs", "t", "remount", "size=2m").steps == (Step("t", "tmpfs", mount.MS_REMOUNT, "size=2m"),)


def test_option_of_the_mount_manager_is_refused() -> None:
    with pytest.raises(Error, match=r'mount option "X-containerd\.a=b" was not consumed by the mount manager'):
        plan("bind", "/s", "X-containerd.a=b")


def test_id_mapped_mount_is_refused_clearly() -> None:
    with pytest.raises(Unimplemented, match="id-mapped mounts are not implemented"):
        plan("bind", "/s", "uidmap=0:1000:1")


def test_options_longer_than_a_page_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="mount options is too long"):
        plan("tmpfs", "t", "x" * (PAGE + 1))
    assert plan("tmpfs", "t", "x" * PAGE).steps


def test_loop_and_direct_io_are_the_devices() -> None:
    assert plan("ext4", "/image", "loop").loop == 4
    assert plan("ext4", "/image", "loop", "ro").loop == 4 | 1
    assert plan("ext4", "/image", "loop", "ro", "direct-io").loop == 4 | 1 | 16
    assert plan("ext4", "/image", "ro").loop is None
    assert plan("x", "/image", "direct-io").steps[0].data == "direct-io"


def test_fuse_goes_through_its_helper() -> None:
    assert plan("fuse3.kind", "source", "a=b", "ro").helper == (
        "mount.fuse3", "source", "-o", "a=b", "-o", "ro", "-t", "kind",
    )  # fmt: skip


def test_long_overlay_options_become_relative_to_a_common_directory() -> None:
    layers = [f"/var/lib/containerd/snapshots/{number}/fs" for number in range(100)]
    got = plan("overlay", "overlay", "lowerdir=" + ":".join(layers), "upperdir=/u", "workdir=/w")
    assert got.directory == "/var/lib/containerd/snapshots"
    assert got.steps[0].data.startswith("lowerdir=0/fs:1/fs:2/fs:")
    assert got.steps[0].data.endswith(":99/fs,upperdir=/u,workdir=/w")
    assert plan("overlay", "overlay", "lowerdir=/a/b:/a/c").directory is None


def test_lower_directories_keep_escapes_and_empty_parts() -> None:
    assert relative_lowerdirs([r"lowerdir=/a/x\:y/1:/a/x\:y/2::/a/x\:y/data"]) == (
        "/a/x:y",
        ["lowerdir=1:2::data"],
    )
    assert relative_lowerdirs(["lowerdir=/a/1:/b/1"])[0] is None
    assert relative_lowerdirs(["lowerdir=/a/1"])[0] is None
    assert relative_lowerdirs(["lowerdir=a/1:a/2"])[0] is None
    assert relative_lowerdirs(["lowerdir=/a/b:/a/b/c"]) == ("/a", ["lowerdir=b:b/c"])


def test_mount_points_are_unescaped_and_deepest_first() -> None:
    mountinfo = (
        rb"1 0 0:1 / / rw - ext4 /dev/a rw" + b"\n"
        rb"2 1 0:2 / /run/a\040b/rootfs rw shared:1 - overlay overlay rw" + b"\n"
        rb"3 2 0:3 / /run/a\040b/rootfs/data rw - fuse.x x rw" + b"\n"
        rb"4 2 0:3 / /run/a\040b/rootfs/data rw - tmpfs x rw" + b"\n"
        rb"5 1 0:4 / /run/a\040b/rootfs2 rw - tmpfs x rw" + b"\n"
    )
    assert mount_points(mountinfo, "/run/a b/rootfs") == [
        ("/run/a b/rootfs/data", "tmpfs"),
        ("/run/a b/rootfs", "overlay"),
    ]
