"""What a mount needs, as values."""

from __future__ import annotations

import pytest

from dunnage.errors import Error, InvalidArgument
from dunnage.linux import mount_plan as plans
from dunnage.linux.mount_plan import Helper, IdMap, IdRange, Loop, Step, mount_plan, quoted, relative_lowerdirs

PAGE = 4096
BIND, REC, RDONLY, REMOUNT = 4096, 16384, 1, 32

IDS = ["uidmap=0:1:2", "gidmap=0:1:2"]

# the numbers of linux/mount.h, written out: what an option sets, and what it clears
SETS = {
    "bind": BIND,
    "dirsync": 128,
    "mand": 64,
    "noatime": 1024,
    "nodev": 4,
    "nodiratime": 2048,
    "noexec": 8,
    "nosuid": 2,
    "rbind": BIND | REC,
    "relatime": 1 << 21,
    "remount": REMOUNT,
    "ro": RDONLY,
    "strictatime": 1 << 24,
    "sync": 16,
}
CLEARS = {
    "async": "sync",
    "atime": "noatime",
    "dev": "nodev",
    "diratime": "nodiratime",
    "exec": "noexec",
    "nomand": "mand",
    "norelatime": "relatime",
    "nostrictatime": "strictatime",
    "rw": "ro",
    "suid": "nosuid",
}


def plan(fstype: str, source: str, *options: str) -> plans.Plan:
    return mount_plan(fstype, source, options, page_bytes=PAGE)


def test_the_tables_are_of_the_same_options() -> None:
    assert set(plans.OPTIONS) == {*SETS, *CLEARS}


@pytest.mark.parametrize("option", SETS)
def test_option_sets_its_flags_and_is_no_data(option: str) -> None:
    assert plan("tmpfs", "t", option, "size=1m").steps[0] == Step("t", "tmpfs", SETS[option], "size=1m")


@pytest.mark.parametrize("option", CLEARS)
def test_option_clears_its_flag_if_it_comes_later(option: str) -> None:
    flag = SETS[CLEARS[option]]
    others = [other for other in ("nosuid", "noexec", "noatime") if other != CLEARS[option]]
    kept = sum(SETS[other] for other in others)
    assert plan("tmpfs", "t", *others, CLEARS[option], option).steps == (Step("t", "tmpfs", kept, ""),)
    assert plan("tmpfs", "t", option, CLEARS[option]).steps[0].flags == flag
    assert plan("tmpfs", "t", option).steps == (Step("t", "tmpfs", 0, ""),)


def test_what_is_no_flag_is_data_in_order() -> None:
    assert plan("overlay", "o", "lowerdir=/a:/b", "ro", "index=off").steps == (
        Step("o", "overlay", RDONLY, "lowerdir=/a:/b,index=off"),
    )
    words = ["defaults", "RO", "ro=1", "", "rshared", "private", 'context="a,b"', "X-mount.mkdir", "noauto"]
    assert plan("ext4", "/dev/x", "nodev", *words, "sync").steps == (
        Step("/dev/x", "ext4", 4 | 16, 'defaults,RO,ro=1,,rshared,private,context="a,b",X-mount.mkdir,noauto'),
    )


def test_read_only_bind_is_mounted_and_then_remounted() -> None:
    flags = BIND | REC | RDONLY
    assert plan("bind", "/s", "rbind", "ro").steps == (
        Step("/s", "bind", flags, ""),
        Step("", "", flags | REMOUNT, ""),
    )
    assert len(plan("bind", "/s", "rbind", "ro", "rw").steps) == 1


def test_remount_without_data_is_no_first_mount() -> None:
    assert plan("bind", "/s", "bind", "ro", "remount").steps == (Step("", "", BIND | RDONLY | REMOUNT, ""),)
    assert plan("tmpfs", "t", "remount", "size=2m").steps == (Step("t", "tmpfs", REMOUNT, "size=2m"),)
    assert plan("tmpfs", "t", "remount", "ro").steps == ()


def test_option_of_the_mount_manager_is_refused() -> None:
    with pytest.raises(Error, match=r'internal mount option "X-containerd\.a=b" was not consumed by the mount manager'):
        plan("bind", "/s", "X-containerd.a=b")


def test_options_longer_than_a_page_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="mount options is too long"):
        plan("tmpfs", "t", "x" * (PAGE - 2), "y")
    with pytest.raises(InvalidArgument, match="mount options is too long"):
        plan("tmpfs", "t", "é" * (PAGE // 2))
    assert plan("tmpfs", "t", "x" * (PAGE - 3), "y").steps


def test_loop_and_direct_io_are_the_devices() -> None:
    assert plan("ext4", "/image", "loop").loop == Loop(read_only=False, direct_io=False)
    assert plan("ext4", "/image", "loop", "ro").loop == Loop(read_only=True, direct_io=False)
    both = plan("ext4", "/image", "direct-io", "x", "loop", "ro")
    assert (both.loop, both.steps[0].data) == (Loop(read_only=True, direct_io=True), "x")
    assert plan("ext4", "/image", "ro").loop is None
    assert plan("x", "/image", "direct-io").steps[0].data == "direct-io"


def test_fuse_goes_through_its_helper() -> None:
    assert plan("fuse3.kind", "source", "a=b", "ro").helper == Helper(
        "mount.fuse3", "source", ("-o", "a=b", "-o", "ro", "-t", "kind")
    )
    assert plan("fuse.a.b", "", "uidmap=0:1:1").helper == Helper("mount.fuse", "", ("-o", "uidmap=0:1:1", "-t", "a.b"))
    assert plan("fuse", "f", "fd=3").helper is None
    assert plan("fuseblk.x", "f").helper is None


# long overlays


def test_long_overlay_options_become_relative_to_a_common_directory() -> None:
    layers = [f"/var/lib/containerd/snapshots/{number}/fs" for number in range(100)]
    got = plan("overlay", "overlay", "lowerdir=" + ":".join(layers), "upperdir=/u", "workdir=/w")
    assert got.directory == "/var/lib/containerd/snapshots"
    assert got.steps[0].data.startswith("upperdir=/u,workdir=/w,lowerdir=0/fs:1/fs:2/fs:")
    assert got.steps[0].data.endswith(":99/fs")
    assert plan("overlay", "overlay", "lowerdir=/a/b:/a/c").directory is None
    just = "x" * (PAGE - 512 - len("lowerdir=/a/b:/a/c") - 1)
    assert plan("overlay", "overlay", "lowerdir=/a/b:/a/c", just).directory is None
    assert plan("overlay", "overlay", "lowerdir=/a/b:/a/c", f"{just}x").directory == "/a"
    assert plan("ext4", "overlay", "lowerdir=/a/b:/a/c", f"{just}x").directory is None


def test_lower_directories_keep_escapes_and_empty_parts() -> None:
    assert relative_lowerdirs([r"lowerdir=/a/x\:y/1:/a/x\:y/2\,3::/a/x\:y/data", "ro"]) == (
        "/a/x:y",
        ["ro", r"lowerdir=1:2\,3::data"],
    )
    assert relative_lowerdirs(["lowerdir=/a/b\\\\:/a/c"]) == ("/a", ["lowerdir=b\\\\:c"])
    assert relative_lowerdirs(["lowerdir=/a/b:/a/b/c"]) == ("/a", ["lowerdir=b:b/c"])
    assert relative_lowerdirs(["lowerdir=/a/1/:/a/2/"]) == ("/a", ["lowerdir=1/:2/"])


@pytest.mark.parametrize(
    "option", ["/a/1:/b/1", "/1:/2", "/a/1", "a/1:a/2", "/a/1:b", "//a/1:/a/2", "", "/a/1:/a/../b/2"]
)
def test_what_has_no_common_directory_stays_as_it_is(option: str) -> None:
    directory, options = relative_lowerdirs([f"lowerdir={option}", "x"])
    if option == "/a/1:/a/../b/2":  # by the text, as the kernel walks it
        assert (directory, options) == ("/a", ["x", "lowerdir=1:../b/2"])
    else:
        assert (directory, options) == (None, [f"lowerdir={option}", "x"])


def test_overlay_without_lower_directories_stays_as_it_is() -> None:
    assert relative_lowerdirs(["upperdir=/a"]) == (None, ["upperdir=/a"])


# ids


def test_id_map_is_read_from_both_options() -> None:
    got = plan("bind", "/s", "uidmap=0:1000:1,1:5000:65535", "rbind", "gidmap=0:2000:10")
    assert got.id_map == IdMap((IdRange(0, 1000, 1), IdRange(1, 5000, 65535)), (IdRange(0, 2000, 10),))
    assert got.steps == (Step("/s", "bind", BIND | REC, ""),)
    assert plan("bind", "/s", "rbind").id_map is None


def test_id_mapped_overlay_is_always_relative() -> None:
    got = plan("overlay", "overlay", "lowerdir=/a/1/fs", "uidmap=0:1:2", "gidmap=0:1:2", "upperdir=/u")
    assert (got.directory, got.steps[0].data) == ("/a/1", "upperdir=/u,lowerdir=fs")
    with pytest.raises(InvalidArgument, match="no directory in common but the root"):
        plan("overlay", "overlay", "lowerdir=/a/1:/b/2", "uidmap=0:1:2", "gidmap=0:1:2")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["uidmap=0:1:2"], "id-mapped mount: there is a uidmap, but both uidmap and gidmap are needed"),
        (["gidmap=0:1:2"], "id-mapped mount: there is a gidmap, but both uidmap and gidmap are needed"),
        (["gidmap=0:1:2", "uidmap="], "there is a gidmap, but both"),
        (["uidmap=0:1", "gidmap=0:1:2"], 'uidmap "0:1" is not of the form container-id:host-id:size'),
        (["uidmap=0:1:2", "gidmap=0:1:2,"], 'gidmap "" is not of the form'),
        (["uidmap=0:-1:2", "gidmap=0:1:2"], 'uidmap "0:-1:2" is not of the form'),
        (["uidmap=0:1:2:3", "gidmap=0:1:2"], 'uidmap "0:1:2:3" is not of the form'),
        (["remount", *IDS], "id-mapped mount: a remount changes no ids"),
        (["remount", "size=1m", *IDS], "id-mapped mount: a remount changes no ids"),
        (["uidmap=0:x:²", "gidmap=0:1:2"], 'uidmap "0:x:²" is not of the form'),
    ],
)
def test_id_map_that_cannot_be_is_refused(options: list[str], text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        plan("bind", "/s", "bind", *options)
    assert text in str(refused.value)


def test_texts_are_quoted_as_in_go() -> None:
    assert quoted('a "b" \\c') == r'"a \"b\" \\c"'
    assert quoted("\a\b\f\n\r\t\v\0\x1b\x7f") == r'"\a\b\f\n\r\t\v\x00\x1b\x7f"'
    assert quoted("é日😀 ") == '"é日😀 "'
    assert quoted("\u00a0\u200b\U000e0001\udcff") == r'"\u00a0\u200b\U000e0001\xff"'
