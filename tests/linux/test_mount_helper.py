"""FUSE, which other programs mount and unmount for us."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.linux.mounting import in_child, mount, mounted, unmount

from dunnage.linux.attributes import Attributes
from dunnage.linux.mount import mount_all

MOUNTS_TMPFS = 'printf "%s|" "$0" "$@" "umask $(umask)" "$WHOSE" > "$NOTES"; /bin/mount -t tmpfs fake "$2"'
# umount(8) asks the file system what it is, which is never answered here
_UMOUNT = "import ctypes, os, sys; ctypes.CDLL(None).umount2(os.fsencode(sys.argv[2]), 0)"
UMOUNT = f"{sys.executable} -I -S -c '{_UMOUNT}' \"$@\""


class Programs:
    """A directory of made-up helpers, and what a launcher hands down to have them found."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.notes = directory / "notes"
        self.env = {"PATH": f"{directory}", "NOTES": str(self.notes), "WHOSE": "the launcher's"}
        self.launch: dict[str, Any] = {
            "env": self.env,
            "attributes": Attributes.of(os.getpid())._replace(umask=0o27).to_json(),
        }

    def write(self, name: str, script: str) -> None:
        path = self.directory / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    (tmp_path / "bin").mkdir()
    return Programs(tmp_path / "bin")


def test_helper_mounts_with_what_the_launcher_handed_down(rootfs: Path, programs: Programs) -> None:
    programs.write("mount.fuse3", MOUNTS_TMPFS)
    options = ["lowerdir=/a:/b", "ro"]
    assert mount(rootfs, ("fuse3.fuse-overlayfs", "overlay", "", options), launch=programs.launch) == (0, "")
    assert mounted(rootfs) == [str(rootfs)]
    assert programs.notes.read_bytes().decode().split("|")[:-1] == [
        f"{programs.directory}/mount.fuse3",
        "overlay", str(rootfs), "-o", "lowerdir=/a:/b", "-o", "ro", "-t", "fuse-overlayfs",
        "umask 0027", "the launcher's",
    ]  # fmt: skip


def test_helper_is_told_no_path_with_a_link_that_leads_out_of_the_rootfs(
    rootfs: Path, programs: Programs, tmp_path: Path
) -> None:
    programs.write("mount.fuse", MOUNTS_TMPFS)
    for place in (tmp_path / "outside", rootfs / "outside"):
        place.mkdir()
    (rootfs / "link").symlink_to("../../outside")
    assert mount(rootfs, ("fuse.x", "s", "link", []), launch=programs.launch) == (0, "")
    assert mounted(tmp_path) == [f"{rootfs}/outside"]


def test_helper_is_looked_for_in_the_path_of_the_launcher(rootfs: Path, programs: Programs) -> None:
    assert mount(rootfs, ("fuse.x", "s", "", ["a"]), launch=programs.launch) == (
        1,
        f'mount helper [mount.fuse [s {rootfs} -o a -t x]] failed: "": '
        'exec: "mount.fuse": executable file not found in $PATH',
    )


def test_what_a_failing_helper_says_is_told(rootfs: Path, programs: Programs) -> None:
    programs.write("mount.fuse", 'echo "no such server" >&2; echo more; exit 7')
    assert mount(rootfs, ("fuse.x", "s", "", []), launch=programs.launch) == (
        1,
        f'mount helper [mount.fuse [s {rootfs} -t x]] failed: "no such server\\nmore\\n": exit status 7',
    )
    programs.write("mount.fuse", "kill -9 $$")
    assert mount(rootfs, ("fuse.x", "s", "", []), launch=programs.launch)[1].endswith('failed: "": signal: killed')
    programs.write("mount.fuse", "/usr/bin/yes | /usr/bin/head -c 1000000; exit 1")
    status, text = mount(rootfs, ("fuse.x", "s", "", []), launch=programs.launch)
    assert (status, 16384 < len(text) < 32768 + 1000) == (1, True)


def test_helper_that_fails_after_it_has_mounted_leaves_nothing(rootfs: Path, programs: Programs) -> None:
    programs.write("mount.fuse", f"{MOUNTS_TMPFS}; exit 3")
    status, text = mount(rootfs, ("tmpfs", "t", "", []), ("fuse.x", "s", "", []), launch=programs.launch)
    assert (status, mounted(rootfs)) == (1, [])
    assert text.endswith("exit status 3")


def test_failure_after_it_takes_a_fuse_mount_back(rootfs: Path, programs: Programs) -> None:
    programs.write("mount.fuse", MOUNTS_TMPFS)
    status, _ = mount(rootfs, ("fuse.x", "s", "", []), ("tmpfs", "t", "missing", []), launch=programs.launch)
    assert (status, mounted(rootfs)) == (1, [])


def test_file_system_that_keeps_the_helpers_output_open_is_not_waited_for(rootfs: Path, programs: Programs) -> None:
    programs.write("mount.fuse", f'{MOUNTS_TMPFS}; /bin/sleep 1000 & echo $! > "$NOTES"')
    try:
        assert mount(rootfs, ("fuse.x", "s", "", []), launch=programs.launch) == (0, "")
    finally:
        os.kill(int(programs.notes.read_text()), signal.SIGKILL)


def test_killed_with_its_process_group_a_mount_leaves_no_helper(rootfs: Path, programs: Programs) -> None:
    os.mkfifo(programs.notes)
    programs.write("mount.fuse", 'echo ready > "$NOTES"; /bin/cat "$NOTES"; /bin/sleep 1000')
    argument = {
        "rootfs": str(rootfs),
        "mounts": [{"type": "fuse.x", "source": "s", "target": "", "options": []}],
        "launch": programs.launch,
    }
    pid = os.fork()
    if pid == 0:
        try:
            mount_all(argument, {})
        finally:
            os._exit(0)
    with open(programs.notes) as notes:
        assert notes.read() == "ready\n"
    assert os.getpgid(pid) == pid
    writing = os.open(programs.notes, os.O_WRONLY)  # once the helper's own child reads
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        while True:  # until nobody is left that reads
            os.write(writing, b"x" * 4096)
    except BrokenPipeError:
        pass
    finally:
        os.close(writing)


@pytest.mark.parametrize(
    ("there", "used"), [(("fusermount3", "fusermount"), "fusermount3"), (("fusermount",), "fusermount")]
)
def test_fuse_is_unmounted_by_its_helper(rootfs: Path, programs: Programs, there: tuple[str, ...], used: str) -> None:
    for name in there:
        programs.write(name, f'echo "$0 $@" >> "$NOTES"; exec {UMOUNT}')
    with Fuse(rootfs):
        assert unmount(rootfs, programs.env) == (0, "")
        assert mounted(rootfs) == []
    assert programs.notes.read_bytes().decode() == f"{programs.directory}/{used} -u {rootfs}\n"


def test_fuse_whose_helper_fails_is_unmounted_by_the_system_call(rootfs: Path, programs: Programs) -> None:
    for name in ("fusermount3", "fusermount"):
        programs.write(name, f'echo {name} >> "$NOTES"; exit 1')
    with Fuse(rootfs):
        assert unmount(rootfs, programs.env) == (0, "")
        assert mounted(rootfs) == []
    assert programs.notes.read_text() == "fusermount3\nfusermount\n"


def test_what_lies_below_a_fuse_mount_is_unmounted_too(rootfs: Path, programs: Programs) -> None:
    programs.write("fusermount3", f"exec {UMOUNT}")
    assert mount(rootfs, ("tmpfs", "t", "", [])) == (0, "")
    with Fuse(rootfs):
        assert len(mounted(rootfs)) == 2
        assert unmount(rootfs, programs.env) == (0, "")
        assert mounted(rootfs) == []


class Fuse:
    """A FUSE file system, which nobody serves."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        self._fd = os.open("/dev/fuse", os.O_RDWR)
        options = [f"fd={self._fd}", "rootmode=40000", "user_id=0", "group_id=0"]
        argument = {
            "rootfs": str(self.directory),
            "mounts": [{"type": "fuse", "source": "served by nobody", "target": "", "options": options}],
        }
        assert in_child(mount_all, argument) == (0, "")

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
