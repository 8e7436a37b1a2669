"""The runtime's options: where they come from, what they change, and what is no option."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

from google.protobuf.any_pb2 import Any

from dunnage.api import options_pb2
from dunnage.conformance.case import Area
from dunnage.conformance.cases.differences import OPTIONS_TYPE
from dunnage.conformance.check import contains, equal, that
from dunnage.conformance.scene import Scene, Status, pack
from dunnage.ttrpc.errors import RpcError

AREA: Final = Area("options")


@AREA.case("Create without options makes a container")
async def none(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    await task.create(options=None)
    equal("the status", await task.status(), Status.CREATED)


@AREA.case("options with an empty value are the defaults")
async def empty(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    await task.create(options=Any(type_url="containerd.runc.v1.Options"))
    equal("the status", await task.status(), Status.CREATED)


@AREA.case("options of another type are refused and end nothing", OPTIONS_TYPE)
async def other_type(scene: Scene) -> None:
    witness = await scene.running(id="w", annotations={"io.containerd.runc.v2.group": "g"})
    task = await scene.task(scene.bundle(annotations={"io.containerd.runc.v2.group": "g"}))
    try:
        await task.create(options=pack(options_pb2.CheckpointOptions(exit=True)))
    except RpcError:
        pass
    else:
        that(False, "Create is refused")
    equal("the status of another container", await witness.status(), Status.RUNNING)


@AREA.case("root is where the runtime keeps its state, below it the namespace")
async def root(scene: Scene) -> None:
    root = scene.directory / "root"
    task = await scene.running(options=scene.options(root=str(root)))
    that((root / scene.namespace / "c1" / "state.json").exists(), "the runtime's state is there")
    equal("options.json", json.loads(task.bundle.text("options.json")).get("root"), str(root))


@AREA.case("binary_name may be an absolute path, and the bundle's file runtime has it")
async def binary_name(scene: Scene) -> None:
    path = shutil.which(scene.host.runtime)
    task = await scene.running(options=scene.options(binary_name=path))
    equal("runtime", task.bundle.text("runtime"), path)
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case("io_gid owns the pipes of the process; their uid is the process's, which the runtime sees to")
async def io_owner(scene: Scene) -> None:
    fifos = scene.fifos()
    task = await scene.task(
        scene.bundle(("sh", "-c", "stat -L -c %u:%g /proc/self/fd/1 || busybox stat -L -c %u:%g /proc/self/fd/1")),
        options=scene.options(io_uid=1234, io_gid=4321),
    )
    await task.create(**fifos.fields)
    await task.call("Start")
    await fifos.out.wait_for(b"0:4321")


@AREA.case("no_new_keyring and no_pivot_root make a container too")
async def switches(scene: Scene) -> None:
    task = await scene.running("true", options=scene.options(no_new_keyring=True, no_pivot_root=True))
    equal("the exit status", (await task.call("Wait")).exit_status, 0)
    wanted = {"no_new_keyring": True, "no_pivot_root": True}
    found = json.loads(task.bundle.text("options.json"))
    equal("options.json", {name: found.get(name) for name in wanted}, wanted)


@AREA.case("a type URL with a prefix means the same options, or is refused; the shim goes on")
async def prefixed(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    any = pack(scene.options())
    any.type_url = f"type.googleapis.com/{any.type_url}"
    try:
        await task.create(options=any)
    except RpcError:
        await task.create()
    equal("the status", await task.status(), Status.CREATED)


def recorder(scene: Scene, name: str = "my-runtime") -> tuple[Path, Path]:
    """A runtime that writes down how it is called before it does what is asked; and where it writes that."""
    runtime, calls = scene.directory / name, scene.directory / "calls"
    runtime.write_text(f'#!/bin/sh\necho "$@" >>{calls}\nexec {shutil.which(scene.host.runtime)} "$@"\n')
    runtime.chmod(0o755)
    return runtime, calls


async def calls_of(scene: Scene, **fields: object) -> dict[str, list[str]]:
    """How the runtime is called over a short life with these options, by subcommand."""
    runtime, calls = recorder(scene)
    task = await scene.stopped(options=scene.options(binary_name=str(runtime), **fields))
    await task.call("Delete")
    lines = [line.split() for line in calls.read_text().splitlines()]
    return {command: line for line in lines for command in ("create", "start", "delete") if command in line}


@AREA.case("binary_name without a slash is looked for in the PATH")
async def relative_name(scene: Scene) -> None:
    task = await scene.running(options=scene.options(binary_name=scene.host.runtime))
    equal("runtime", task.bundle.text("runtime"), scene.host.runtime)
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case("every call of the runtime has root, log and log format before its command")
async def global_flags(scene: Scene) -> None:
    calls = await calls_of(scene)
    bundle = scene.tasks[0].bundle.path
    wanted = f"--root /run/containerd/runc/{scene.namespace} --log {bundle}/log.json --log-format json"
    for command in ("create", "start", "delete"):
        equal(f"the flags of {command}", " ".join(calls[command][: calls[command].index(command)]), wanted)


@AREA.case("no_pivot_root and no_new_keyring are flags of create")
async def create_flags(scene: Scene) -> None:
    calls = await calls_of(scene, no_pivot_root=True, no_new_keyring=True)
    that({"--no-pivot", "--no-new-keyring"} <= set(calls["create"]), f"{calls['create']} has both flags")


@AREA.case("without them there are no such flags")
async def no_create_flags(scene: Scene) -> None:
    calls = await calls_of(scene)
    that(not {"--no-pivot", "--no-new-keyring"} & set(calls["create"]), f"{calls['create']} has neither flag")


@AREA.case("systemd_cgroup is a flag of every call, and without systemd the runtime's refusal is the answer")
async def systemd_cgroup(scene: Scene) -> None:
    runtime, calls = recorder(scene)
    spec = scene.spec(("sleep", "100000"))
    spec["linux"]["cgroupsPath"] = f"system.slice:{scene.namespace}:c1"
    task = await scene.task(
        scene.bundle(spec=spec), options=scene.options(binary_name=str(runtime), systemd_cgroup=True)
    )
    try:
        await task.create()
    except RpcError as error:
        contains("the error", error.message, "OCI runtime create failed: ")
    contains("the call", calls.read_text().splitlines()[0], " --systemd-cgroup create ")
    equal("options.json", json.loads(task.bundle.text("options.json")).get("systemd_cgroup"), True)


@AREA.case("root with a namespace of its own keeps two containers of one id apart")
async def roots(scene: Scene) -> None:
    root = scene.directory / "root"
    task = await scene.running(options=scene.options(root=str(root)))
    that(not Path(f"/run/containerd/runc/{scene.namespace}/c1").exists(), "the default root has no such state")
    await task.call("Kill", signal=9)
    await task.call("Wait")
    await task.call("Delete")
    that(not (root / scene.namespace / "c1").exists(), "the runtime's state is gone")


@AREA.case("options.json has the fields that are set, by their names in the protocol, and no others")
async def only_set(scene: Scene) -> None:
    task = await scene.running(options=scene.options(io_uid=7, criu_work_path="/nowhere"))
    found = json.loads(task.bundle.text("options.json"))
    found.pop("binary_name", None)
    equal("options.json", found, {"io_uid": 7, "criu_work_path": "/nowhere"})


@AREA.case("an exec's pipes belong to io_gid as well")
async def exec_owner(scene: Scene) -> None:
    task = await scene.running(options=scene.options(io_gid=4321))
    fifos = scene.fifos("e1")
    await task.started_exec("e1", "busybox", "stat", "-L", "-c", "%g", "/proc/self/fd/1", fifos=fifos)
    await fifos.out.wait_for(b"4321")
