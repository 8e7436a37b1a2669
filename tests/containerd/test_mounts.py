"""Rootfs mounts as containerd asks for them: what both shims make of them, and what hangs."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests import newer
from tests.containerd.direct import SPEC, Answer, Bundle, Connection, busybox_rootfs
from tests.containerd.fuse import HungFilesystem
from tests.containerd.harness import PATH, Containerd, Shim, wait_until
from tests.containerd.test_workers import CONFIGURED

from dunnage.api import mount_pb2, task_pb2
from dunnage.linux.mount_plan import OPTIONS

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("dunnage_alone")]

UNKNOWN, DEADLINE_EXCEEDED, NOT_FOUND = 2, 4, 5
MOUNT_TIMEOUT_S = 3


@pytest.fixture
def shim(shim_directories: dict[str, Path]) -> Shim:
    return Shim("io.containerd.dunnage.v2", "runc", shim_directories["runc"])


def mount(kind: str, source: object, *options: str, target: str = "") -> mount_pb2.Mount:
    return mount_pb2.Mount(type=kind, source=str(source), target=target, options=options)


# What both shims make of a request


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root and 80 lower directories; the name has what needs an escape in mountinfo."""
    path = tmp_path_factory.mktemp("a stage")
    busybox_rootfs(path / "root")
    (path / "root" / "out").symlink_to("../../../../sys")
    (path / "root" / "nowhere").symlink_to(path)
    for number in range(80):
        (path / f"a-snapshot-with-a-name-of-some-length-{number}" / "fs").mkdir(parents=True)
    return path


Ask = Callable[[Path, list[str]], list[mount_pb2.Mount]]
"""Given the stage, and what an overlay says of its upper directory."""

REQUESTS: dict[str, Ask] = {
    "bind": lambda stage, upper: [mount("bind", stage / "root", "rbind", "rw")],
    "read-only bind": lambda stage, upper: [mount("bind", stage / "root", "bind", "ro", "nosuid", "nodev", "noatime")],
    "overlay": lambda stage, upper: [mount("overlay", "overlay", "index=off", *upper, f"lowerdir={stage}/root")],
    "long overlay": lambda stage, upper: [mount("overlay", "overlay", *upper, lower_directories(stage))],
    "stack": lambda stage, upper: [
        mount("tmpfs", "tmpfs", "size=64k", "mode=750", "nosuid", "noexec", "sync"),
        mount("bind", stage / "root", "rbind", "strictatime"),
    ],
    "remount": lambda stage, upper: [
        mount("bind", stage / "root", "rbind"),
        mount("bind", "", "bind", "remount", "ro", "nosuid", "suid", "nodev"),
    ],
    # and what fails
    "defaults": lambda stage, upper: [mount("tmpfs", "tmpfs", "defaults", "ro", "nodev")],
    "unknown type": lambda stage, upper: [mount("bind", stage, "bind"), mount("no-such", 'a "b"\\', "x", "sync", "é")],
    "missing source": lambda stage, upper: [mount("bind", "/no/such", "rbind", "ro")],
    "missing layers": lambda stage, upper: [mount("overlay", "o", *upper, "lowerdir=/no/such:/no/more")],
    "missing layers of many": lambda stage, upper: [
        mount("overlay", "overlay", "ro", *upper, *[f"{lower_directories(stage)}x"], "index=on")
    ],
    "too long": lambda stage, upper: [mount("tmpfs", "tmpfs", *["x" * 100] * 50)],
    "no helper": lambda stage, upper: [mount("fuse3.no-such", "a", "b", "c=d")],
    "bad data": lambda stage, upper: [mount("tmpfs", "tmpfs", "size=64k", "huge=maybe")],
}


# what the Go shim of 1.6 does not know

IDS = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"]

NEWER_REQUESTS: dict[str, Ask] = {
    "target": lambda stage, upper: [mount("bind", stage / "root", "rbind"), mount("tmpfs", "t", "ro", target="/sys")],
    "target by links": lambda stage, upper: [mount("bind", stage / "root", "rbind"), mount("tmpfs", "t", target="out")],
    "missing target": lambda stage, upper: [
        mount("bind", stage / "root", "rbind"),
        mount("tmpfs", "t", "size=4k", "nodev", target="no/such"),
    ],
    "target that leads nowhere": lambda stage, upper: [
        mount("bind", stage / "root", "rbind"),
        mount("tmpfs", "t", target="nowhere"),
    ],
}

FLAGS = [
    "sync",
    "dirsync",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nosuid",
    "relatime",
    "ro",
    "strictatime",
]


def ask_for(options: list[str]) -> Ask:
    """Of a type that there is not: the error has the flags and the data."""
    return lambda stage, upper: [mount("no-such", "s", *options, "a=b")]


for option in [*OPTIONS, "defaults", "RO", "shared", "direct-io"]:
    clears = OPTIONS.get(option, (0, 0))[1]
    NEWER_REQUESTS[f"option {option}"] = ask_for([*FLAGS, option] if clears else [option])

# runc makes its devices there, also where the root is read-only
DEVICES = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
PROC = [{"destination": "/proc", "type": "proc", "source": "proc"}]


def lower_directories(stage: Path) -> str:
    numbers = (f"{stage}/a-snapshot-with-a-name-of-some-length-{number}/fs" for number in range(79, -1, -1))
    return "lowerdir=" + ":".join([f"{stage}/root", *numbers])


def made_of(bundle: Bundle, connection: Connection, ask: Ask, stage: Path) -> list[str] | str:
    """What is in mountinfo after Create, or Create's error."""
    place = bundle.path / "overlay"
    for name in ("upper", "work"):
        (place / name).mkdir(parents=True)
    mounts = ask(stage, [f"upperdir={place}/upper", f"workdir={place}/work"])
    answer = connection.call("Create", bundle.create(mounts))
    lines = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {bundle.path}/" in line]
    if not answer.code:
        assert connection.call("Delete", task_pb2.DeleteRequest(id=bundle.id)).code == 0
    assert bundle.mounts() == []
    shutil.rmtree(place)
    if answer.code:
        return f"{answer.code} {answer.message}".replace(str(bundle.path), "BUNDLE")
    numbers = re.compile(r"^\d+ \d+ \d+:\d+ |shared:\d+ |master:\d+ ")
    return [numbers.sub("", line).replace(str(bundle.path), "BUNDLE") for line in lines]


@contextmanager
def started(containerd: Containerd, launcher: Path | None = None) -> Iterator[tuple[Bundle, Connection]]:
    with Bundle(containerd, "c1", spec={**SPEC, "mounts": [*PROC, DEVICES]}) as bundle:
        bundle.launcher = str(launcher or bundle.launcher)
        told = bundle.launch().stdout.decode()
        address, service = told, "containerd.task.v2.Task"
        if told.startswith("{"):
            address, service = json.loads(told)["address"], "containerd.task.v3.Task"
        with Connection(address, service) as connection:
            yield bundle, connection
            connection.send("Shutdown", task_pb2.ShutdownRequest(id="c1"))


def without_the_story(made: list[str] | str) -> list[str] | str:
    """The Go shim of 1.6 says only why, and shows its own value; what mount it was is told since."""
    return f"{made.partition(' ')[0]} {made.rpartition(': ')[2]}" if isinstance(made, str) else made


def test_shims_make_the_same_of_a_request(containerd: Containerd, stage: Path) -> None:
    made: list[dict[str, list[str] | str]] = []
    for launcher in (Path(newer.GO_SHIM), newer.go_shim(), None):
        with started(containerd, launcher) as (bundle, connection):
            requests = {**REQUESTS, **NEWER_REQUESTS} if made else REQUESTS
            made.append({name: made_of(bundle, connection, ask, stage) for name, ask in requests.items()})
    go, newer_go, own = made
    assert own == newer_go
    # Go's own words for a program that is not there were others then
    same = [name for name in REQUESTS if name != "no helper"]
    assert {name: without_the_story(own[name]) for name in same} == {name: without_the_story(go[name]) for name in same}
    assert [name for name in REQUESTS if not isinstance(go[name], str)] == list(REQUESTS)[:6]


@pytest.mark.parametrize("kind", ["bind", "overlay"])
def test_id_mapped_root_shows_the_same_owners(containerd: Containerd, stage: Path, tmp_path: Path, kind: str) -> None:
    owners = []
    for launcher in (newer.go_shim(), None):
        upper = tmp_path / ("own" if launcher is None else "go")
        for name in ("upper", "work"):
            (upper / name).mkdir(parents=True)
        options = ["rbind"] if kind == "bind" else [f"upperdir={upper}/upper", f"workdir={upper}/work"]
        options += ["noexec"] if kind == "bind" else [f"lowerdir={stage}/root"]
        with started(containerd, launcher) as (bundle, connection):
            answer = connection.call("Create", bundle.create([mount(kind, stage / "root", *options, *IDS)]))
            assert answer.code == 0, answer
            status = (bundle.path / "rootfs/bin/busybox").stat()
            owners.append((status.st_uid, status.st_gid))
            assert len(bundle.mounts()) <= 2
            assert connection.call("Delete", task_pb2.DeleteRequest(id="c1")).code == 0
            assert bundle.mounts() == []
    assert owners == [(100000, 200000)] * 2
    assert (stage / "root/bin/busybox").stat().st_uid == 0


# What hangs


def test_mounts_that_hang_hang_nobody_else_and_leave_nothing(
    shim: Shim, image_tar: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("etc/upper/dunnage", "etc/work", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/upper/dunnage/config.toml").write_text(f"mount_timeout_s = {MOUNT_TIMEOUT_S}.0\n")
    prefix = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", CONFIGURED, f"{tmp_path}/etc"]
    os.mkfifo(tmp_path / "pids")
    helper = tmp_path / "bin" / "mount.fuse3"
    helper.write_text(f"#!/bin/sh\nsleep 1000 &\necho $$ $! > {tmp_path}/pids\nwait\n")
    helper.chmod(0o755)
    environment = {"PATH": f"{tmp_path}/bin:{shim.directory}:{PATH}"}
    root = busybox_rootfs(tmp_path / "root")

    with (
        HungFilesystem(tmp_path / "hung") as hung,
        Containerd(
            tmp_path_factory.mktemp("h"), shim, image_tar=image_tar, prefix=prefix, environment=environment
        ) as containerd,
        Bundle(containerd, "kernel") as of_kernel,
        Bundle(containerd, "helper") as of_helper,
        of_kernel.connect() as kernel,
        of_helper.connect() as helped,
    ):

        def live(name: str) -> float:
            began = time.monotonic()
            assert containerd.run(name, "echo", "new").stdout == b"new\n"
            return time.monotonic() - began

        usual_s = live("before")
        hangs = mount("bind", f"{hung.directory}/source", "rbind")
        creating = kernel.send("Create", of_kernel.create([root, hangs]))
        helping = helped.send("Create", of_helper.create([root, mount("fuse3.slow", "server", "port=1")]))
        helpers = (tmp_path / "pids").read_text().split()  # once it runs
        assert live("meanwhile") < 3 * usual_s + 1, f"{usual_s:.1f} s before"

        for bundle, answer in ((of_kernel, kernel.wait(creating)), (of_helper, helped.wait(helping))):
            assert_given_up(bundle, answer)
        for bundle, connection in ((of_kernel, kernel), (of_helper, helped)):
            assert connection.call("State", task_pb2.StateRequest(id=bundle.id)).code == NOT_FOUND
            assert connection.call("Delete", task_pb2.DeleteRequest(id=bundle.id)).code == NOT_FOUND
            assert bundle.launch("delete").returncode == 0
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in helpers), "the helper ends")
        assert [point for point in containerd.mounts() if "/bundles/" in point] == []
        assert live("after") < 3 * usual_s + 1


def assert_given_up(bundle: Bundle, answer: Answer) -> None:
    assert answer.code == DEADLINE_EXCEEDED
    assert answer.message.startswith(
        f"failed to mount rootfs component: mounting the rootfs {bundle.path}/rootfs "
        f"did not end within {MOUNT_TIMEOUT_S} s; process "
    )
