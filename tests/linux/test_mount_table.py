"""mountinfo as values."""

from __future__ import annotations

from dunnage.linux.mount_table import Mounted, mounts_below, unmount_order


def test_mount_points_are_unescaped() -> None:
    mountinfo = (
        rb"1 0 0:1 / / rw - ext4 /dev/a rw" + b"\n"
        rb"2 1 0:2 / /run/a\040b/rootfs rw shared:17 master:1 - overlay overlay rw" + b"\n"
        rb"3 2 0:3 /x\040-\040y//deleted /run/a\040b/rootfs/d\134\011\012\043 rw master:2 - fuse.x x rw" + b"\n"
        b"4 2 0:3 / /run/a\\040b/rootfs/\r\xff rw - tmpfs x rw" + b"\n"
        rb"5 1 0:4 / /run/a\040b/rootfs2 rw - tmpfs x rw" + b"\n"
    )
    assert mounts_below(mountinfo, "/run/a b/rootfs") == [
        Mounted(2, 1, "/run/a b/rootfs", "overlay"),
        Mounted(3, 2, "/run/a b/rootfs/d\\\t\n#", "fuse.x"),
        Mounted(4, 2, "/run/a b/rootfs/\r\udcff", "tmpfs"),
    ]
    assert [mount.id for mount in mounts_below(mountinfo, "/")] == [1, 2, 3, 4, 5]


def test_fuse_is_known_by_its_type() -> None:
    kinds = {"fuse": True, "fuse.sshfs": True, "fuseblk": True, "fusectl": False, "tmpfs": False}
    assert {kind: Mounted(1, 0, "/", kind).is_fuse for kind in kinds} == kinds


def ids(*mounts: tuple[int, int, str]) -> list[int]:
    return [mount.id for mount in unmount_order([Mounted(*mount, "tmpfs") for mount in mounts])]


def test_deepest_are_unmounted_first() -> None:
    assert ids((1, 0, "/r"), (2, 1, "/r/a"), (3, 2, "/r/a/b"), (4, 1, "/r/long/name")) == [4, 3, 2, 1]
    assert ids((7, 0, "/r/a"), (8, 0, "/r/a/b/c")) == [8, 7]


def test_what_hides_others_is_unmounted_before_them() -> None:
    assert ids((1, 0, "/r"), (2, 1, "/r/data"), (3, 1, "/r"), (4, 3, "/r/data"), (5, 4, "/r/data")) == [5, 4, 3, 2, 1]


def test_a_thousand_on_one_point_are_ordered() -> None:
    assert ids(*((number, number - 1, "/r") for number in range(1, 1501))) == list(range(1500, 0, -1))
