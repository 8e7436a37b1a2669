"""Limits, and what comes of them: OOM, Update, and containers that are paused."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any, Final

from dunnage.conformance.case import Area, Difference
from dunnage.conformance.cases.measured import measure
from dunnage.conformance.check import equal, refused, that
from dunnage.conformance.scene import RESOURCES_URL, Scene, Status, Task, any_of_json

AREA: Final = Area("limits")
LIMIT_BYTES: Final = 16 << 20
EAT: Final = "dd if=/dev/zero of=/dev/null bs=64M count=1"
"""One block of more than the limit, written to by the kernel."""

LATE: Final = Difference(
    "go *",
    "its watcher and its reaper are told by the kernel in no order, and hand on what they are told as it comes",
    "the case",
    "containerd pull request 12714, in 2.3.0: TaskOOM always before TaskExit",
    always=False,
)


async def limited(scene: Scene, *args: str, id: str = "c1", **resources: Any) -> Task:
    """A container with limits, created."""
    spec = scene.spec(args, id=id)
    spec["linux"]["resources"].update({"memory": {"limit": LIMIT_BYTES}, **resources})
    task = await scene.task(scene.bundle(id=id, spec=spec))
    await task.create()
    return task


async def update(task: Task, resources: Mapping[str, Any]) -> None:
    await task.call("Update", resources=any_of_json(RESOURCES_URL, resources))


async def told_of_oom(scene: Scene) -> None:
    """Before its exit; more than once if the kernel says so more than once."""
    await scene.events.wait_for("exit", "c1")
    once = [line for line, _ in groupby(scene.events.lines)]
    equal("the events", once, ["create c1", "start c1", "oom c1", "exit c1"])


@AREA.case("a container that is killed for its memory shows 137, and its OOM is told before its exit", LATE)
async def oom(scene: Scene) -> None:
    task = await limited(scene, "sh", "-c", f"sleep 0.3; exec {EAT}")
    await task.call("Start")
    equal("the exit status", (await task.call("Wait")).exit_status, 137)
    await told_of_oom(scene)


@AREA.case(
    "an OOM within the first moments of a container is told too",
    Difference(
        "go *",
        "its watch begins in Start, after the process; what was before it is not seen",
        "the case",
        "containerd pull request 12380, in 2.2.0: the watch begins after Create",
        always=False,
    ),
)
async def early_oom(scene: Scene) -> None:
    task = await limited(scene, *EAT.split())
    await task.call("Start")
    equal("the exit status", (await task.call("Wait")).exit_status, 137)
    await told_of_oom(scene)


@AREA.case("an exec that is killed for its memory shows 137, and the container runs on")
async def oom_of_exec(scene: Scene) -> None:
    task = await limited(scene, "sleep", "100000")
    await task.call("Start")
    await task.stopped_exec("e1", *EAT.split())
    equal("the exit status", (await task.call("Wait", exec_id="e1")).exit_status, 137)
    await scene.events.wait_for("oom", "c1")
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case("a container that is killed by hand tells no OOM")
async def no_oom(scene: Scene) -> None:
    task = await limited(scene, "sleep", "100000")
    await task.call("Start")
    await task.call("Kill", signal=9)
    await task.call("Wait")
    await task.call("Delete")
    await scene.events.wait_for("delete", "c1")
    equal("the events", scene.events.lines, ["create c1", "start c1", "exit c1", "delete c1"])


@AREA.case("an OOM in one container of a group is told of no other")
async def oom_of_one(scene: Scene) -> None:
    one = await limited(scene, "sh", "-c", f"sleep 0.3; exec {EAT}", id="c1")
    two = await limited(scene, "sleep", "100000", id="c2")
    for task in (two, one):
        await task.call("Start")
    await one.call("Wait")
    await scene.events.wait_for("oom", "c1")
    equal("OOMs of the other", scene.events.of("oom", "c2"), [])
    equal("its status", await two.status(), Status.RUNNING)


@AREA.case("Update changes the limit of memory")
async def update_memory(scene: Scene) -> None:
    task = await limited(scene, "sleep", "100000")
    await task.call("Start")
    await update(task, {"memory": {"limit": 64 << 20}})
    equal("the limit", (await measure(task)).memory_limit, 64 << 20)


@AREA.case("Update of a created container changes its limit")
async def update_created(scene: Scene) -> None:
    task = await limited(scene, "sleep", "100000")
    await update(task, {"pids": {"limit": 55}})
    equal("the limit", (await measure(task)).pids_limit, 55)


@AREA.case("Update leaves alone what it does not name")
async def update_one(scene: Scene) -> None:
    task = await limited(scene, "sleep", "100000", pids={"limit": 99})
    await task.call("Start")
    await update(task, {"memory": {"limit": 32 << 20}})
    measured = await measure(task)
    equal("the limits", (measured.pids_limit, measured.memory_limit), (99, 32 << 20))


@AREA.case("a limit that the kernel refuses is refused, and the container goes on")
async def bad_update(scene: Scene) -> None:
    task = await limited(scene, "sleep", "100000")
    await task.call("Start")
    await refused(update(task, {"cpu": {"cpus": "9999"}}), "…")
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case("a limit of processes is one")
async def pids_limit(scene: Scene) -> None:
    task = await limited(scene, "sh", "-c", "sleep 1000 & sleep 1000 & sleep 1000 & wait", pids={"limit": 2})
    await task.call("Start")
    that((await task.call("Wait")).exit_status, "the process that could not fork has failed")


@AREA.case("Update is not told")
async def silent(scene: Scene) -> None:
    task = await limited(scene, "sleep", "100000")
    await update(task, {"pids": {"limit": 55}})
    await task.end()
    await scene.events.wait_for("delete", "c1")
    equal("TaskStart", scene.events.of("start"), [])
    equal("the topics", {line.split()[0] for line in scene.events.lines} - {"exit"}, {"create", "delete"})


@AREA.case("a paused container does nothing until it is resumed")
async def frozen(scene: Scene) -> None:
    fifos = scene.fifos(stdin=True)
    task = await scene.running("sh", "-c", "while read line; do echo got $line; done", fifos=fifos)
    await task.call("Pause")
    fifos.write(b"it\n")
    equal("the status", await task.status(), Status.PAUSED)
    equal("what it says meanwhile", bytes(fifos.out.got), b"")
    await task.call("Resume")
    await fifos.out.wait_for(b"got it\n")


@AREA.case("Kill with SIGKILL ends a paused container, also where it has to be thawed for it")
async def kill_paused(scene: Scene) -> None:
    task = await scene.paused()
    await task.call("Kill", signal=9)
    equal("the exit status", (await task.call("Wait", timeout_s=10)).exit_status, 137)
    equal("the status", await task.status(), Status.STOPPED)


@AREA.case("a paused container with execs ends with all of them, and each is told")
async def kill_paused_execs(scene: Scene) -> None:
    task = await scene.running()
    for number in range(3):
        await task.started_exec(f"e{number}")
    await task.call("Pause")
    await task.call("Kill", signal=9)
    equal("the exit status", (await task.call("Wait", timeout_s=10)).exit_status, 137)
    await scene.events.wait_until(lambda: len(scene.events.of("exit")) == 4, "exit of all four")


@AREA.case("pause and resume twenty times over, and the container is as before")
async def pause_often(scene: Scene) -> None:
    task = await scene.running()
    for _ in range(20):
        await task.call("Pause")
        await task.call("Resume")
    await task.stopped_exec("e1")
    equal("the pauses told", len(scene.events.of("paused")), 20)
    equal("the status", await task.status(), Status.RUNNING)
