"""The runtime's options: where they come from, what they change, and what is no option."""

from __future__ import annotations

import json
from typing import Final

from google.protobuf.any_pb2 import Any

from dunnage.api import metrics_v1_pb2, metrics_v2_pb2, options_pb2
from dunnage.conformance.case import Area
from dunnage.conformance.cases.differences import OPTIONS_TYPE
from dunnage.conformance.check import equal, that
from dunnage.conformance.scene import RESOURCES_URL, Scene, Status, any_of_json, pack
from dunnage.ttrpc.errors import RpcError

AREA: Final = Area("options and stats")


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
    import shutil

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


async def numbers(scene: Scene) -> tuple[int, int]:
    """How many processes and how many bytes of memory Stats says that there are."""
    task = scene.tasks[0]
    any = (await task.call("Stats")).stats
    if any.type_url == "io.containerd.cgroups.v1.Metrics":
        one = metrics_v1_pb2.Metrics.FromString(any.value)
        return one.pids.current, one.memory.usage.usage
    equal("the type", any.type_url, "io.containerd.cgroups.v2.Metrics")
    two = metrics_v2_pb2.Metrics.FromString(any.value)
    return two.pids.current, two.memory.usage


@AREA.case("Stats counts the container's processes")
async def stats_pids(scene: Scene) -> None:
    task = await scene.running()
    equal("how many", (await numbers(scene))[0], 1)
    await task.started_exec("e1")
    equal("how many", (await numbers(scene))[0], 2)


@AREA.case("Stats has the container's memory")
async def stats_memory(scene: Scene) -> None:
    await scene.running()
    that(0 < (await numbers(scene))[1] < 1 << 30, "it is more than nothing and less than a gigabyte")


@AREA.case("Stats has the limit that Update gave")
async def stats_limit(scene: Scene) -> None:
    task = await scene.running()
    await task.call("Update", resources=any_of_json(RESOURCES_URL, {"pids": {"limit": 77}}))
    any = (await task.call("Stats")).stats
    message = (
        metrics_v1_pb2.Metrics.FromString(any.value)
        if any.type_url.endswith("v1.Metrics")
        else metrics_v2_pb2.Metrics.FromString(any.value)
    )
    equal("pids.limit", message.pids.limit, 77)


@AREA.case("Stats of a container that has used the processor says so")
async def stats_cpu(scene: Scene) -> None:
    fifos = scene.fifos()
    task = await scene.running(
        "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000", fifos=fifos
    )
    await fifos.out.wait_for(b"done")
    any = (await task.call("Stats")).stats
    if any.type_url.endswith("v1.Metrics"):
        that(metrics_v1_pb2.Metrics.FromString(any.value).cpu.usage.total > 0, "there is time in it")
    else:
        that(metrics_v2_pb2.Metrics.FromString(any.value).cpu.usage_usec > 0, "there is time in it")
