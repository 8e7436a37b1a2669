"""What `start` is given: its stdin, its environment, its flags, a socket that is there already; and `-info`."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Final

from google.protobuf.any_pb2 import Any

from dunnage.api import runtime_info_pb2
from dunnage.conformance.bundle import Bundle
from dunnage.conformance.case import Area, Difference
from dunnage.conformance.check import contains, equal, that, wait_until
from dunnage.conformance.scene import Scene, Status, Task, pack
from dunnage.conformance.shim import Address, Ran

AREA: Final = Area("start")
SOCKETS: Final = Path("/run/containerd/s")
OPTIONS: Final = "containerd.runc.v1.Options"
FEATURES: Final = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
CGROUPS: Final = Path("/sys/fs/cgroup")
PR_SCHED_CORE: Final = 62  # linux/prctl.h; its operation 0 reads a process's cookie


async def created_by(ran: Ran, bundle: Bundle, scene: Scene) -> Task:
    """A container, created by the shim that this run of `start` has left."""
    equal(f"start's exit status (stderr: {ran.stderr!r})", ran.status, 0)
    address = Address.parse(ran.stdout)
    scene.addresses.append(address)
    task = await scene.connected(bundle, address)
    await task.create()
    equal("the status", await task.status(), Status.CREATED)
    return task


def socket_of(scene: Scene, group: str = "c1") -> Path:
    SOCKETS.mkdir(mode=0o700, parents=True, exist_ok=True)
    return SOCKETS / hashlib.sha256(f"{scene.host.address}/{scene.namespace}/{group}".encode()).hexdigest()


@AREA.case("an Any with a type and no value on stdin is what ctr sends, and means the defaults")
async def empty_value(scene: Scene) -> None:
    bundle = scene.bundle()
    ran = await scene.run_start(bundle, stdin=Any(type_url=OPTIONS).SerializeToString())
    await created_by(ran, bundle, scene)


@AREA.case("an Any of options on stdin is taken")
async def options(scene: Scene) -> None:
    bundle = scene.bundle()
    ran = await scene.run_start(bundle, stdin=pack(scene.options(no_new_keyring=True)).SerializeToString())
    await created_by(ran, bundle, scene)


UNREADABLE: Final = Difference(
    "go 1.*",
    "it refuses to start",
    "the case",
    "containerd 1.7's manager_linux.go: options that cannot be read are none",
)


@AREA.case("bytes on stdin that are no message are ignored", UNREADABLE)
async def garbage(scene: Scene) -> None:
    bundle = scene.bundle()
    await created_by(await scene.run_start(bundle, stdin=b"\xff\xff\xff"), bundle, scene)


@AREA.case("BootstrapParams on stdin make a shim, which answers in its own way where it knows them", UNREADABLE)
async def bootstrap(scene: Scene) -> None:
    bundle = scene.bundle()
    ran = await scene.run_start(bundle, stdin=scene.bootstrap(bundle.id, pack(scene.options())))
    await created_by(ran, bundle, scene)


@AREA.case("BootstrapParams of another container are no options and no reason to fail", UNREADABLE)
async def foreign_bootstrap(scene: Scene) -> None:
    bundle = scene.bundle()
    ran = await scene.run_start(bundle, stdin=scene.bootstrap("another", pack(scene.options())))
    await created_by(ran, bundle, scene)


@AREA.case("start again with other options on stdin gives the same shim")
async def other_options(scene: Scene) -> None:
    bundle = scene.bundle()
    task = await created_by(await scene.run_start(bundle), bundle, scene)
    ran = await scene.run_start(bundle, options=scene.options(no_pivot_root=True))
    equal("the address", Address.parse(ran.stdout), task.address)


@AREA.case("shim_cgroup that is no cgroup fails start, or is left alone; no shim is lost either way")
async def no_shim_cgroup(scene: Scene) -> None:
    bundle = scene.bundle()
    ran = await scene.run_start(bundle, options=scene.options(shim_cgroup="no/such/group"))
    if ran.status == 0:
        await created_by(ran, bundle, scene)
    else:
        equal("the exit status", ran.status, 1)
        contains("the output", ran.stdout + ran.stderr, b"cgroup")


@AREA.case("shim_cgroup of the options on stdin is where the shim is put")
async def shim_cgroup(scene: Scene) -> None:
    root = CGROUPS if (CGROUPS / "cgroup.controllers").exists() else CGROUPS / "pids"
    group = root / scene.namespace / "shim"
    group.mkdir(parents=True)
    bundle = scene.bundle()
    path = f"/{scene.namespace}/shim"
    ran = await scene.run_start(bundle, options=scene.options(shim_cgroup=path))
    task = await created_by(ran, bundle, scene)
    pid = (await task.call("Connect")).shim_pid
    found = Path(f"/proc/{pid}/cgroup").read_text()
    await task.end()
    scene.tasks.remove(task)
    contains("the shim's cgroups", found, f"{path}\n")
    await wait_until(lambda: not (group / "cgroup.procs").read_text(), "the shim has left the cgroup")
    group.rmdir()


@AREA.case("SCHED_CORE gives the shim a domain of its own, or start fails where the kernel has none")
async def sched_core(scene: Scene) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    cookie = ctypes.c_ulong()
    bundle = scene.bundle()
    ran = await scene.run_start(bundle, SCHED_CORE="1")
    if libc.prctl(PR_SCHED_CORE, 0, 0, 0, ctypes.byref(cookie)):
        equal("the exit status", ran.status, 1)
        contains("the output", ran.stdout + ran.stderr, b"enable sched core support: ")
        return
    task = await created_by(ran, bundle, scene)
    pid = (await task.call("State")).pid
    that(libc.prctl(PR_SCHED_CORE, 0, pid, 0, ctypes.byref(cookie)) == 0 and cookie.value, "the init has a cookie")


@AREA.case("an empty SCHED_CORE asks for nothing")
async def no_sched_core(scene: Scene) -> None:
    bundle = scene.bundle()
    await created_by(await scene.run_start(bundle, SCHED_CORE=""), bundle, scene)


@AREA.case("a socket that somebody listens at is the shim's, and its address is all that start says")
async def socket_in_use(scene: Scene) -> None:
    path = socket_of(scene)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        other.listen(1)
        try:
            ran = await scene.run_start(scene.bundle())
            equal("the exit status", ran.status, 0)
            equal("the address", Address.parse(ran.stdout).path, path)
            that(path.exists(), "the socket is still there")
        finally:
            path.unlink(missing_ok=True)


@AREA.case("a file of another kind in the socket's place is replaced")
async def file_in_place(scene: Scene) -> None:
    path = socket_of(scene)
    path.write_text("")
    bundle = scene.bundle()
    await created_by(await scene.run_start(bundle), bundle, scene)


@AREA.case("an empty value of the group's annotation is a group like another")
async def empty_group(scene: Scene) -> None:
    bundle = scene.bundle(annotations={"io.containerd.runc.v2.group": ""})
    ran = await scene.run_start(bundle)
    equal("the exit status", ran.status, 0)
    address = Address.parse(ran.stdout)
    scene.addresses.append(address)
    joined = os.path.normpath(f"{scene.host.address}/{scene.namespace}/")
    equal("the name of the socket", address.path.name, hashlib.sha256(joined.encode()).hexdigest())
    await (await scene.connected(bundle, address)).end()
    address.path.unlink(missing_ok=True)


@AREA.case("annotations that are no object fail start")
async def bad_annotations(scene: Scene) -> None:
    bundle = scene.bundle()
    (bundle.path / "config.json").write_text(json.dumps({**bundle.spec, "annotations": ["x"]}))
    equal("the exit status", (await scene.run_start(bundle)).status, 1)


@AREA.case("flags may be written with two dashes, and with an equals sign")
async def flags(scene: Scene) -> None:
    bundle = scene.bundle()
    ran = await scene.shim.run(
        *(f"--namespace={scene.namespace}", "--address", os.fspath(scene.host.address), "-id=c1", "start"),
        cwd=bundle.path,
        env=scene.environment,
    )
    await created_by(ran, bundle, scene)


@AREA.case("-debug before start changes nothing of what start says")
async def debug(scene: Scene) -> None:
    bundle = scene.bundle()
    ran = await scene.shim.run(*scene.arguments("c1"), "-debug", "start", cwd=bundle.path, env=scene.environment)
    equal("stderr", ran.stderr, b"")
    await created_by(ran, bundle, scene)


@AREA.case("a config.json of a thousand annotations is read")
async def many_annotations(scene: Scene) -> None:
    bundle = scene.bundle(annotations={f"n{number}": "x" * 100 for number in range(1000)})
    await created_by(await scene.run_start(bundle), bundle, scene)


INFO: Final = Difference(
    "go 1.*", "it has no such flag, and says how it is used", "the case", "containerd pull request 9442, in 2.0.0"
)


async def info(scene: Scene, stdin: bytes = b"") -> runtime_info_pb2.RuntimeInfo:
    ran = await scene.shim.run("-info", cwd=scene.directory, stdin=stdin)
    equal(f"the exit status (stderr: {ran.stderr[:200]!r})", ran.status, 0)
    return runtime_info_pb2.RuntimeInfo.FromString(ran.stdout)


@AREA.case("-info needs no namespace, and names the runtime, its version and what it can do", INFO)
async def info_of_the_default(scene: Scene) -> None:
    said = await info(scene)
    that(said.name.startswith("io.containerd.") and said.name.endswith(".v2"), f"{said.name!r} names a runtime")
    contains("the version", scene.shim.version, said.version.version)
    equal("the type of the features", said.features.type_url, FEATURES)
    that("linux" in json.loads(said.features.value), "there are features")


@AREA.case("-info echoes the options that it is given on stdin", INFO)
async def info_echoes(scene: Scene) -> None:
    given = pack(scene.options(no_new_keyring=True))
    equal("the options", (await info(scene, given.SerializeToString())).options, given)


@AREA.case("-info with a runtime that is not there fails and names it", INFO)
async def info_of_none(scene: Scene) -> None:
    given = pack(scene.options(binary_name="no-runc"))
    ran = await scene.shim.run("-info", cwd=scene.directory, stdin=given.SerializeToString())
    equal("the exit status", ran.status, 1)
    contains("stderr", ran.stderr, b'failed to look up the path of "no-runc"')
