from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunnage.cgroups import CgroupDeleted, V1Cgroup, V2Cgroup, cgroup_of, is_unified
from dunnage.cgroups.files import BadFormat
from dunnage.cgroups.paths import HierarchyMount, from_json, parse_membership, parse_mountinfo, to_json, v1_directories
from dunnage.errors import Error

MEMBERSHIP = """\
12:pids:/system.slice/docker-ab.scope
5:cpu,cpuacct:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-ab.scope
4:memory:/with:colon
1:name=systemd:/init.scope
0::/unified/path
"""
MOUNTINFO = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/ab /sys/fs/cgroup/memory rw,relatime shared:1 master:2 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:39 / /sys/fs/cgroup/a\\040b rw - cgroup systemd rw,xattr,name=systemd
broken line
"""
STAT = "7 (a b) c) S 1 7 7 0 -1 4194304 0"


def mount(controller: str, root: str = "/", point: str = "/c") -> HierarchyMount:
    return HierarchyMount(root, point, frozenset({controller}))


def write_proc(
    tmp_path: Path, membership: str = "", mountinfo: str = "", stat: str = STAT, pid: int = 7
) -> dict[str, str]:
    for name, text in (
        (f"{pid}/cgroup", membership),
        (f"{pid}/stat", stat),
        ("self/mountinfo", mountinfo),
    ):
        (tmp_path / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / name).write_text(text)
    return {"proc": str(tmp_path / "proc"), "root": str(tmp_path / "cgroup")}


def test_every_line_of_a_membership_is_read_and_a_systemd_name_stays_as_it_is() -> None:
    v1, v2 = parse_membership(MEMBERSHIP)
    scope = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-ab.scope"
    assert v1 == {
        "pids": "/system.slice/docker-ab.scope",
        "cpu": scope,
        "cpuacct": scope,
        "memory": "/with:colon",
        "name=systemd": "/init.scope",
    }
    assert v2 == "/unified/path"


def test_the_v1_hierarchies_are_found_among_the_mounts() -> None:
    assert [(found.root, found.point) for found in parse_mountinfo(MOUNTINFO)] == [
        ("/", "/sys/fs/cgroup/cpu,cpuacct"),
        ("/docker/ab", "/sys/fs/cgroup/memory"),
        ("/", "/sys/fs/cgroup/a b"),
    ]


@given(st.text() | st.text(alphabet="0123:,/name=.-\n \\", max_size=60))
def test_any_text_gives_a_value_or_a_named_error(text: str) -> None:
    try:
        membership, _ = parse_membership(text)
    except BadFormat:
        return
    v1_directories(membership, parse_mountinfo(text))


@pytest.mark.parametrize(
    ("path", "mounts", "directory"),
    [
        ("/x/y", [mount("memory")], "/c/x/y"),
        ("/", [mount("memory")], "/c"),
        ("/docker/ab/x", [mount("memory", "/docker/ab")], "/c/x"),
        ("/docker/ab", [mount("memory", "/docker/ab")], "/c"),
        ("/docker/abc", [mount("memory", "/docker/ab")], None),
        ("/x", [mount("memory", "/docker/ab"), mount("memory", "/", "/d")], "/d/x"),
        ("/x", [mount("cpu"), mount("memory", "/", "/d")], "/d/x"),
        ("/x", [mount("memory"), mount("memory", "/", "/d")], "/c/x"),
        ("/x", [mount("cpu")], None),
        ("/../x", [mount("memory")], None),
    ],
)
def test_a_v1_path_is_made_relative_to_what_is_mounted(
    path: str, mounts: list[HierarchyMount], directory: str | None
) -> None:
    assert v1_directories({"memory": path}, mounts).get("memory") == directory


def test_v1_controllers_without_a_directory_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "memory/x").mkdir(parents=True)
    places = write_proc(
        tmp_path,
        "2:memory:/x\n1:cpu:/x\n",
        f"1 1 0:1 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
        f"1 1 0:1 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu\n",
    )
    assert cgroup_of(7, unified=False, **places) == V1Cgroup({"memory": f"{tmp_path}/memory/x"})


def test_without_any_v1_directory_the_cgroup_is_deleted(tmp_path: Path) -> None:
    places = write_proc(tmp_path, "2:memory:/x\n", f"1 1 0:1 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n")
    with pytest.raises(CgroupDeleted, match=r"^cgroup deleted$"):
        cgroup_of(7, unified=False, **places)


@pytest.mark.parametrize("stat", ["7 (x) Z 1 7 7 0 -1 4194304 0", "7 (x) R 1 7 7 0 -1 4194308 0"])
def test_an_exiting_process_has_no_v1_cgroup_though_the_kernel_shows_the_root(tmp_path: Path, stat: str) -> None:
    places = write_proc(tmp_path, "2:memory:/\n", f"1 1 0:1 / {tmp_path} rw - cgroup cgroup rw,memory\n", stat)
    with pytest.raises(CgroupDeleted, match="process 7 has exited"):
        cgroup_of(7, unified=False, **places)


def test_a_v2_cgroup_is_the_path_below_the_mount(tmp_path: Path) -> None:
    places = write_proc(tmp_path, "0::/system.slice/cri-containerd-ab.scope\n")
    assert cgroup_of(7, unified=True, **places) == V2Cgroup(f"{tmp_path}/cgroup/system.slice/cri-containerd-ab.scope")
    assert cgroup_of(7, unified=True, **write_proc(tmp_path, "0::/\n")) == V2Cgroup(f"{tmp_path}/cgroup")


@pytest.mark.parametrize("path", ["/../x", "x", "/a//b", "/a/"])
def test_a_v2_path_that_is_not_below_the_mount_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(Error, match="invalid group path"):
        cgroup_of(7, unified=True, **write_proc(tmp_path, f"0::{path}\n"))


def test_a_v2_membership_without_its_line_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"^cgroup path not found$"):
        cgroup_of(7, unified=True, **write_proc(tmp_path, "1:cpu:/x\n"))


def test_a_removed_v2_cgroup_is_deleted(tmp_path: Path) -> None:
    with pytest.raises(CgroupDeleted):
        cgroup_of(7, unified=True, **write_proc(tmp_path, "0::/x (deleted)\n"))


@pytest.mark.parametrize("unified", [True, False])
def test_the_cgroup_of_no_process_is_deleted(unified: bool) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(CgroupDeleted, match="does not exist"):
        cgroup_of(child.pid, unified=unified)


@pytest.mark.parametrize("cgroup", [V1Cgroup({"memory": "/a", "name=systemd": "/b"}), V2Cgroup("/c")])
def test_a_cgroup_comes_back_from_its_note(cgroup: V1Cgroup | V2Cgroup) -> None:
    assert from_json(to_json(cgroup)) == cgroup
    with pytest.raises(BadFormat):
        from_json({"v3": "/x"})


def test_the_mode_is_that_of_the_file_system(tmp_path: Path) -> None:
    points = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for point in [fields[1] for fields in points if fields[2] == "cgroup2"]:
        assert is_unified(point)
    assert not is_unified(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        is_unified(f"{tmp_path}/none")


def test_the_own_cgroup_has_this_process_in_it() -> None:
    cgroup = cgroup_of(os.getpid(), unified=is_unified())
    directories = [cgroup.directory] if isinstance(cgroup, V2Cgroup) else cgroup.directories.values()
    for directory in directories:
        assert str(os.getpid()) in Path(directory, "cgroup.procs").read_text().split()
