"""Real mounts, each in a forked child, as the keeper does it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.linux.mounting import in_namespaces, mount, mounted, unmount

from dunnage.linux.mount_plan import quoted


def flags_of(point: Path) -> set[str]:
    """Its own ones, as mountinfo has them."""
    words = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().split("\n")]
    return next(set(word[5].split(",")) for word in words if len(word) > 5 and word[4] == str(point))


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


def test_flags_are_those_of_the_mount(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    wanted = {
        "ro": ["ro", "noexec", "nosuid", "nodev", "noatime"],
        "rw": ["ro", "rw", "noexec", "exec", "nosuid", "suid", "nodev", "dev", "nodiratime"],
    }
    got = {}
    for name, options in wanted.items():
        assert mount(tmp_path / "rootfs", ("tmpfs", "t", "", options)) == (0, "")
        got[name] = flags_of(tmp_path / "rootfs")
        assert unmount(tmp_path / "rootfs") == (0, "")
    assert got == {
        "ro": {"ro", "noexec", "nosuid", "nodev", "noatime"},
        "rw": {"rw", "nodiratime", "relatime"},
    }


def test_defaults_are_data_as_in_the_go_shim(rootfs: Path) -> None:
    # tmpfs knows no such option
    assert mount(rootfs, ("tmpfs", "t", "", ["defaults", "ro"])) == (
        1,
        f'mount source: "t", target: {quoted(str(rootfs))}, fstype: tmpfs, flags: 1, data: "defaults", '
        "err: invalid argument",
    )


def test_read_only_bind_is_read_only(rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    assert mount(rootfs, ("bind", str(source), "", ["bind", "ro"])) == (0, "")
    assert os.statvfs(rootfs).f_flag & os.ST_RDONLY
    assert not os.statvfs(source).f_flag & os.ST_RDONLY


def test_plain_bind_has_the_directory_alone_and_a_recursive_one_what_lies_in_it(rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    assert mount(source, ("tmpfs", "t", "inner", [])) == (0, "")
    try:
        assert mount(rootfs, ("bind", str(source), "", ["bind"])) == (0, "")
        assert mounted(rootfs) == [str(rootfs)]
        assert unmount(rootfs) == (0, "")
        assert mount(rootfs, ("bind", str(source), "", ["rbind", "ro"])) == (0, "")
        assert mounted(rootfs) == [f"{rootfs}/inner", str(rootfs)]
        assert unmount(rootfs) == (0, "")
        assert mounted(source) == [f"{source}/inner"]
    finally:
        unmount(source)


def test_what_is_done_in_a_bind_mount_is_not_done_to_its_source() -> None:
    """Where the host's mounts are shared, as systemd has them, each is the other's peer: unmounted here, a mount that
    lies in the source would be unmounted there."""
    assert in_namespaces(
        ["--propagation", "shared"],
        """
import os, tempfile
from pathlib import Path
from tests.linux.mounting import mount, mounted, unmount
with tempfile.TemporaryDirectory() as directory:
    source, rootfs = Path(directory, "source"), Path(directory, "rootfs")
    source.mkdir(), rootfs.mkdir()
    print(mount(source, ("tmpfs", "t", "", [])))
    (source / "host").mkdir(), (source / "new").mkdir(), (source / "later").mkdir()
    print(mount(source, ("tmpfs", "t", "host", [])))
    print(mount(rootfs, ("bind", str(source), "", ["rbind"]), ("tmpfs", "t", "new", [])))
    print(mount(source, ("tmpfs", "t", "later", [])))
    print([path[len(str(rootfs)):] for path in mounted(rootfs)])
    print([path[len(str(source)):] for path in mounted(source)])
    print(unmount(rootfs), mounted(rootfs))
    print([path[len(str(source)):] for path in mounted(source)])
    unmount(source)
""",
    ).splitlines() == [
        "(0, '')",
        "(0, '')",
        "(0, '')",
        "(0, '')",
        "['/later', '/host', '/new', '']",
        "['/later', '/host', '']",
        "(0, '') []",
        "['/later', '/host', '']",
    ]


def test_remount_changes_what_is_there(tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    try:
        assert mount(rootfs, ("tmpfs", "t", "", ["size=64k"]), ("tmpfs", "t", "", ["remount", "size=128k"])) == (0, "")
        assert mounted(rootfs) == [str(rootfs)]
        assert os.statvfs(rootfs).f_blocks * os.statvfs(rootfs).f_frsize == 128 << 10
        assert mount(rootfs, ("bind", "", "", ["bind", "remount", "ro", "nosuid"])) == (0, "")
        assert flags_of(rootfs) == {"ro", "nosuid", "relatime"}
        assert mount(rootfs, ("tmpfs", "t", "", ["remount"])) == (0, "")  # nothing to change: nothing is called
        status, text = mount(rootfs, ("tmpfs", "t", "", ["remount", "no=such"]))
        assert (status, mounted(rootfs)) == (1, [str(rootfs)])
        assert text.endswith('fstype: tmpfs, flags: 32, data: "no=such", err: invalid argument')
    finally:
        unmount(rootfs)


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
        ("fuse.broken", "here", "data", "exec format error"),
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


def test_failure_that_nobody_foresaw_unmounts_what_was_made_too(rootfs: Path) -> None:
    (rootfs / "data").mkdir()
    broken: tuple[str, str, str, list[str]] = ("tmpfs", "t", "data", None)  # type: ignore[assignment]
    status, _ = mount(rootfs, ("bind", str(rootfs), "", ["bind"]), broken)
    assert status == 99
    assert mounted(rootfs) == []


def test_missing_directories_are_named(rootfs: Path) -> None:
    status, text = mount(rootfs, ("overlay", "overlay", "", ["lowerdir=/no/where:/no/there"]))
    assert status == 1
    assert text.endswith("err: no such file or directory")
    status, text = mount(rootfs, ("tmpfs", "t", "", []), ("tmpfs", "t", "missing", []))
    place = quoted(f"{rootfs}/missing")
    assert (status, text) == (
        1,
        f'mount source: "t", target: {place}, fstype: tmpfs, flags: 0, data: "", err: no such file or directory',
    )
    assert mounted(rootfs) == []


def test_no_link_leads_out_of_the_rootfs(rootfs: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "inner").mkdir()
    (rootfs / "absolute").symlink_to(outside)
    (rootfs / "relative").symlink_to("../../outside")
    (rootfs / "good").symlink_to("/inner")
    (rootfs / "chain").symlink_to("inner/../chain2/.")
    (rootfs / "chain2").symlink_to("/../chain3")
    (rootfs / "chain3").symlink_to("../../../../../inner")
    (rootfs / "middle").symlink_to("..")
    (rootfs / "loop").symlink_to("loop")
    for target in ("absolute", "relative", "loop", "middle/outside"):
        status, text = mount(rootfs, ("tmpfs", "t", target, []))
        assert status == 1, text
    for target in ("/../../good", "chain", "middle/inner", "../inner/../inner", "middle/../middle/good/"):
        assert mount(rootfs, ("tmpfs", "t", target, [])) == (0, ""), target
        assert mounted(tmp_path) == [f"{rootfs}/inner"], target
        assert unmount(rootfs) == (0, "")


def test_links_of_a_mount_made_before_lead_nowhere_either(rootfs: Path, tmp_path: Path) -> None:
    outside, image = tmp_path / "outside", tmp_path / "image"
    outside.mkdir()
    image.mkdir()
    (image / "data").symlink_to(outside)
    status, text = mount(rootfs, ("bind", str(image), "", ["rbind"]), ("tmpfs", "t", "data/../x", []))
    assert status == 1
    place = quoted(f"{rootfs}{outside}/../x")
    assert text == (
        f'mount source: "t", target: {place}, fstype: tmpfs, flags: 0, data: "", err: no such file or directory'
    )
    assert mounted(tmp_path) == []


def test_target_may_be_a_file(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("from outside")
    (rootfs / "etc").mkdir()
    (rootfs / "etc" / "hosts").touch()
    assert mount(rootfs, ("bind", str(tmp_path / "hosts"), "etc/hosts", ["bind", "ro"])) == (0, "")
    assert (rootfs / "etc" / "hosts").read_text() == "from outside"


def test_path_of_four_thousand_characters(tmp_path: Path) -> None:
    depth = (4000 - len(str(tmp_path))) // 201
    bundle = tmp_path.joinpath(*["d" * 200] * depth)
    bundle = bundle / ("e" * (4000 - len(str(bundle)) - 1))
    assert len(str(bundle)) == 4000
    (bundle / "rootfs" / "data").mkdir(parents=True)
    assert mount(bundle / "rootfs", ("tmpfs", "t", "", []), ("proc", "p", "", [])) == (0, "")
    assert mounted(tmp_path) == [str(bundle / "rootfs")] * 2
    assert unmount(bundle / "rootfs") == (0, "")
    assert mounted(tmp_path) == []
    shutil.rmtree(tmp_path / ("d" * 200))


def test_read_only_bind_in_a_user_namespace_keeps_the_flags_of_its_source(tmp_path: Path) -> None:
    """Those that the source had outside are locked there, and a remount without them is refused."""
    locked = tmp_path / "locked"
    locked.mkdir()
    assert mount(locked, ("tmpfs", "t", "", ["nosuid", "nodev", "noexec"])) == (0, "")
    try:
        assert in_namespaces(
            ["-U", "-r"],
            f"""
from pathlib import Path
from tests.linux.mounting import mount
from tests.linux.test_mount import flags_of
locked, own = Path({str(locked)!r}), Path({str(tmp_path)!r}, "own")
for directory in (own, own.with_name("1"), own.with_name("2")):
    directory.mkdir()
print(mount(own, ("tmpfs", "t", "", ["nosuid", "noatime"])))
for source, target in ((locked, own.with_name("1")), (own, own.with_name("2"))):
    print(mount(target, ("bind", str(source), "", ["bind", "ro"])), *sorted(flags_of(target)))
""",
        ).splitlines() == [
            "(0, '')",
            "(0, '') nodev noexec nosuid relatime ro",
            "(0, '') noatime nosuid ro",
        ]
    finally:
        unmount(locked)
