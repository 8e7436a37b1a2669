"""What a container takes from its shim (attributes, network, mounts) is what it would take from the Go shim."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.containerd.harness import Containerd, Shim

pytestmark = pytest.mark.real

SHOW = """\
ulimit -a; ulimit -Ha; umask; env | sort; cat /proc/self/oom_score_adj
grep -E '^(Sig(Blk|Ign)|Cap|NoNewPrivs|Seccomp|Cpus_allowed)' /proc/self/status
"""


@pytest.fixture
def containerd_of_go(go_shim: Shim, image_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    with Containerd(tmp_path_factory.mktemp("g"), go_shim, image_tar=image_tar) as running:
        yield running


@pytest.fixture
def containerd_apart(shim: Shim, image_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """One in network and mount namespaces of its own."""
    prefix = ["unshare", "--mount", "--net", "--propagation", "slave"]
    with Containerd(tmp_path_factory.mktemp("u"), shim, image_tar=image_tar, prefix=prefix) as running:
        yield running


def test_limits_umask_environment_and_oom_score_are_those_under_the_go_shim(
    containerd: Containerd, containerd_of_go: Containerd
) -> None:
    if containerd.shim.oci_runtime == "crun":
        containerd_of_go.shim = containerd_of_go.shim._replace(oci_runtime="crun")
    shown = [
        (one.run("c1", "sh", "-c", SHOW, check=True).stdout, exec_shows(one)) for one in (containerd, containerd_of_go)
    ]
    assert shown[0] == shown[1]


def exec_shows(containerd: Containerd) -> bytes:
    containerd.run_detached("c2", "sleep", "1000")
    status, shown, _ = containerd.exec("c2", "sh", "-c", SHOW)
    containerd.remove("c2")
    assert status == 0
    return shown


def test_what_is_containerds_own_is_what_containers_inherit(
    shim: Shim, image_tar: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """crun and runc leave niceness and CPU affinity as they are; the specification of ctr sets no umask."""
    prefix = ["sh", "-c", 'umask 027; exec nice -n 5 taskset -c 0 "$@"', "-"]
    with Containerd(tmp_path_factory.mktemp("c"), shim, image_tar=image_tar, prefix=prefix) as containerd:
        shown = containerd.run(
            "c1", "sh", "-c", "cut -d' ' -f19 /proc/self/stat; grep Cpus_allowed_list /proc/self/status; umask"
        ).stdout
    assert shown.split() == [b"5", b"Cpus_allowed_list:", b"0", b"0022"]


def test_one_id_may_live_in_two_namespaces_at_once(containerd: Containerd) -> None:
    other = f"{containerd.namespace}-b"
    containerd.run_detached("same", "sleep", "1000")
    with containerd.in_namespace(other):
        containerd.ctr("image", "import", str(containerd.image_tar))
        containerd.run_detached("same", "sleep", "2000")
        assert b"sleep 2000" in containerd.exec("same", "ps").stdout
    assert b"sleep 1000" in containerd.exec("same", "ps").stdout
    containerd.remove("same")
    with containerd.in_namespace(other):
        assert containerd.exec("same", "echo", "still").stdout == b"still\n"
        containerd.remove("same")
        assert containerd.leftovers() == []


def test_two_containerds_one_apart_each_keep_their_own_network_and_mounts(
    containerd: Containerd, containerd_apart: Containerd
) -> None:
    here, apart = (network_of(one) for one in (containerd, containerd_apart))
    assert here == interfaces_of(os.getpid())
    assert apart == interfaces_of(containerd_apart.pid) == {"lo"}
    for one in (containerd, containerd_apart):
        one.run_detached("c1", "sleep", "1000")
        assert mounted_in(one.pid, one), "the rootfs is mounted where containerd lives"
    assert not mounted_in(os.getpid(), containerd_apart), "and nowhere else"
    for one in (containerd, containerd_apart):
        one.remove("c1")


def network_of(containerd: Containerd) -> set[str]:
    """The interfaces a container sees that shares its host's network."""
    shown = containerd.run("net", "cat", "/proc/net/dev", options=["--net-host"], check=True).stdout.decode()
    return interfaces(shown)


def interfaces_of(pid: int) -> set[str]:
    return interfaces(Path(f"/proc/{pid}/net/dev").read_text())


def interfaces(text: str) -> set[str]:
    return set(re.findall(r"^\s*(\S+):", text, re.MULTILINE))


def mounted_in(pid: int, containerd: Containerd) -> list[str]:
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return [line for line in lines if f"{containerd.directory}/" in line.split()[4]]


def test_a_keeper_leaves_session_cgroup_and_directory_of_who_started_it(
    containerd: Containerd, dunnage_alone: None
) -> None:
    containerd.run("c1", "true", check=True)
    keeper = containerd.keeper().pid
    assert os.getsid(keeper) == keeper or os.getsid(keeper) != os.getsid(containerd.pid)
    assert os.readlink(f"/proc/{keeper}/cwd") == "/"
    stat = subprocess.run(["ps", "-o", "tty=", "-p", str(keeper)], capture_output=True, text=True, check=True).stdout
    assert stat.strip() == "?"
