"""A config.json as a literal, and as runc and crun understand it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.local import Bundle, wait_for_exit

from dunnage import errors
from dunnage.runtime import arguments
from dunnage.runtime.client import Stdio
from dunnage.spec import Mount, make_spec, parse_mount

Make = Callable[..., Bundle]


def test_what_was_asked_for_is_said() -> None:
    spec = make_spec(
        ["sleep", "1"],
        env=["A=b", "C="],
        cwd="/tmp",
        user="7:8",
        terminal=True,
        hostname="web",
        mounts=[parse_mount("/a:/b:ro")],
        memory_bytes=64 << 20,
        cpus=0.5,
        pids=9,
        network="none",
        read_only=True,
        rootfs_path="/r",
        cgroups_path="/c/d",
        annotations={"k": "v"},
        unified=False,
    )
    process = spec["process"]
    assert (process["args"], process["env"], process["cwd"]) == (["sleep", "1"], ["A=b", "C="], "/tmp")
    assert process["user"] == {"uid": 7, "gid": 8, "additionalGids": [8]}
    assert process["terminal"] is True
    assert spec["hostname"] == "web"
    assert spec["root"] == {"path": "/r", "readonly": True}
    assert spec["mounts"][-1] == {"destination": "/b", "type": "bind", "source": "/a", "options": ["rbind", "ro"]}
    assert spec["annotations"] == {"k": "v"}
    assert spec["linux"]["cgroupsPath"] == "/c/d"
    assert spec["linux"]["resources"] == {
        "devices": [{"allow": False, "access": "rwm"}],
        "memory": {"limit": 67108864},
        "cpu": {"quota": 50000, "period": 100000},
        "pids": {"limit": 9},
    }
    assert [entry["type"] for entry in spec["linux"]["namespaces"]] == ["pid", "ipc", "uts", "mount", "network"]


def test_what_was_not_asked_for_is_left_to_the_host() -> None:
    spec = make_spec(["true"], unified=True)
    assert spec["linux"]["resources"] == {"devices": [{"allow": False, "access": "rwm"}]}
    assert [entry["type"] for entry in spec["linux"]["namespaces"]] == ["pid", "ipc", "uts", "mount", "cgroup"]
    assert "rlimits" not in spec["process"]
    assert not {"hostname", "annotations"} & set(spec)
    assert "cgroupsPath" not in spec["linux"]


def test_a_mount_replaces_the_default_one_at_its_place() -> None:
    spec = make_spec(["true"], mounts=[Mount("/run", "bind", "/x", ("rbind",))])
    assert [mount["type"] for mount in spec["mounts"] if mount["destination"] == "/run"] == ["bind"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"args": []}, "^no command to run$"),
        ({"args": [""]}, "^no command to run$"),
        ({"args": ["a\0"]}, "^a zero byte in"),
        ({"cwd": "tmp"}, "^working directory 'tmp' is not an absolute path$"),
        ({"env": ["A"]}, "^environment variable 'A' is not of the form NAME=value$"),
        ({"env": ["=b"]}, "^environment variable '=b' is not"),
        ({"pids": 0}, "^a limit of 0 processes"),
        ({"network": "bridge"}, "^network 'bridge' is neither host nor none$"),
    ],
)
def test_what_no_container_can_have_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=reason):
        make_spec(**{"args": ["true"]} | change)


def test_the_defaults_are_containerd_s() -> None:
    """Debian's containerd 1.6 is asked; it knows one masked path less, and runs with limits."""
    ctr = subprocess.run(["ctr", "oci", "spec"], capture_output=True, check=True, timeout=20)
    theirs = json.loads(ctr.stdout)
    ours = make_spec(["true"], network="none", unified=False)
    assert ours["mounts"] == theirs["mounts"]
    assert ours["process"]["capabilities"] == theirs["process"]["capabilities"]
    assert ours["process"]["noNewPrivileges"] == theirs["process"]["noNewPrivileges"]
    assert set(ours["linux"]["maskedPaths"]) >= set(theirs["linux"]["maskedPaths"])
    assert ours["linux"]["readonlyPaths"] == theirs["linux"]["readonlyPaths"]
    assert ours["linux"]["resources"] == theirs["linux"]["resources"]
    kinds = {entry["type"] for entry in theirs["linux"]["namespaces"]}
    assert {entry["type"] for entry in ours["linux"]["namespaces"]} == kinds - {"cgroup"}


def run(bundle: Bundle) -> str:
    """What the container says, once it has ended well."""
    read, write = os.pipe()
    options = arguments.Create(str(bundle.directory), str(bundle.pid_file))
    with open(read) as output:
        with open(write, "wb", buffering=0):
            asyncio.run(bundle.runtime.create(bundle.container, options, Stdio(None, write, write)))
        asyncio.run(bundle.runtime.start(bundle.container))
        said = output.read()
    assert wait_for_exit(bundle.pid) == 0, said
    asyncio.run(bundle.runtime.delete(bundle.container))
    return said


@pytest.mark.real
def test_a_container_is_what_was_asked_for(make_bundle: Make, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/file").write_text("from the host\n")
    script = (
        "id; hostname; pwd; echo $A; cat /mnt/file; touch /mnt/x 2>/dev/null || echo mnt ro;"
        " touch /x 2>/dev/null || echo root ro; touch /tmp/x && echo tmp rw; cat /proc/net/dev"
    )
    bundle = make_bundle(
        ["sh", "-c", script],
        env=["PATH=/bin", "A=b c"],
        cwd="/root",
        user="web",
        hostname="box",
        mounts=[parse_mount(f"{tmp_path}/shared:/mnt:ro"), parse_mount("type=tmpfs,target=/tmp,tmpfs-mode=1777")],
        network="none",
        read_only=True,
        users_root=rootfs,
    )
    (rootfs / "mnt").mkdir(exist_ok=True)
    (rootfs / "root").chmod(0o755)
    said = run(bundle).splitlines()
    assert said[:8] == [
        "uid=33(web) gid=44(web) groups=44(web),55(logs)",
        "box",
        "/root",
        "b c",
        "from the host",
        "mnt ro",
        "root ro",
        "tmp rw",
    ]
    assert [line.split(":")[0].strip() for line in said[8:] if ":" in line] == ["lo"]


@pytest.mark.real
def test_limits_are_the_cgroup_s(make_bundle: Make) -> None:
    bundle = make_bundle(["sleep", "100"], memory_bytes=64 << 20, cpus=0.5, pids=9)
    asyncio.run(
        bundle.runtime.create(bundle.container, arguments.Create(str(bundle.directory), str(bundle.pid_file)), Stdio())
    )
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():
        files = {"memory.max": "67108864", "cpu.max": "50000 100000", "pids.max": "9"}
        found = {name: (top / bundle.container / name).read_text().strip() for name in files}
    else:
        files = {
            "memory/memory.limit_in_bytes": "67108864",
            "cpu/cpu.cfs_quota_us": "50000",
            "cpu/cpu.cfs_period_us": "100000",
            "pids/pids.max": "9",
        }
        paths = {name: top / name.replace("/", f"/{bundle.container}/") for name in files}
        found = {name: path.read_text().strip() for name, path in paths.items()}
    assert found == files


@pytest.mark.real
@pytest.mark.parametrize("network", ["host", "none"])
def test_the_network_is_the_host_s_or_none(make_bundle: Make, network: str) -> None:
    said = run(make_bundle(["cat", "/proc/self/mountinfo", "/proc/net/dev"], network=network))
    host = {line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines() if ":" in line}
    inside = {line.split(":")[0].strip() for line in said.partition("Inter-")[2].splitlines() if ":" in line}
    assert inside == (host if network == "host" else {"lo"})


@pytest.mark.real
def test_a_missing_mount_source_is_told(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(["true"], mounts=[parse_mount(f"{tmp_path}/none:/mnt")])
    with pytest.raises(errors.Error, match=r"^OCI runtime create failed: .*none.*[Nn]o such file or directory"):
        run(bundle)


@pytest.mark.parametrize(("args", "env"), [("ls -l", ()), (["ls", 1], ()), (["ls"], "A=b"), (7, ())])
def test_a_text_is_not_a_list_of_letters(args: Any, env: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"is not a (list of texts|text)"):
        make_spec(args, env=env)
