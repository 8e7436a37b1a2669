"""Every call on a container in every state, from the table of the Go shim's init process and the rules for each call.

The Go shim's own text for a deleted init (``cannot start a deleted process`` and so on) is never seen from outside:
Delete takes the container out of the list, and a container that is not in the list is one that was not created.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dunnage.conformance.case import Area, Difference
from dunnage.conformance.cases.states import Enter, Row, fill
from dunnage.conformance.check import ZERO_TIME_S, equal, refused, that
from dunnage.conformance.scene import RESOURCES_URL, Scene, Status, Task, any_of_json
from dunnage.ttrpc.errors import Code, RpcError

AREA: Final = Area("init states")
UNKNOWN: Final = "container not created: not found"


async def created(scene: Scene) -> Task:
    return await scene.created()


async def created_from_a_checkpoint(scene: Scene) -> Task:
    """Create does not read the image, so an empty one will do until Start."""
    task = await scene.task(scene.bundle())
    image = scene.directory / "image"
    image.mkdir()
    await task.create(checkpoint=str(image))
    return task


async def running(scene: Scene) -> Task:
    return await scene.running()


async def paused(scene: Scene) -> Task:
    return await scene.paused()


async def stopped(scene: Scene) -> Task:
    return await scene.stopped("sh", "-c", "exit 7")


async def deleted(scene: Scene) -> Task:
    """The shim goes on for the sake of another container: without any, Shutdown is all that is left for it."""
    return await scene.deleted()


STATES: Final[Mapping[str, Enter]] = {
    "created": created,
    "created from a checkpoint": created_from_a_checkpoint,
    "running": running,
    "paused": paused,
    "stopped": stopped,
    "deleted": deleted,
}


async def update(task: Task) -> None:
    await task.call("Update", resources=any_of_json(RESOURCES_URL, {"pids": {"limit": 77}}))


async def exec_and_take_back(task: Task) -> None:
    await task.exec("e1")
    equal("the exec's status", await task.status("e1"), Status.CREATED)
    await task.call("Delete", exec_id="e1")


async def kill(task: Task) -> None:
    await task.call("Kill", signal=0)


async def checkpoint(task: Task) -> None:
    """Answered where criu can do it on this kernel; else the refusal says where criu's log is."""
    try:
        await task.call("Checkpoint", path=str(task.scene.directory / "dump"))
    except RpcError as error:
        if " path= " in error.message:
            equal("the end of the error", error.message.rpartition(" path= ")[2], f"{task.bundle.path}/criu-dump.log")
            equal("its code", error.code, Code.UNKNOWN)
            return
        raise


async def end_from_outside(task: Task) -> None:
    await task.call("Kill", signal=9)
    await task.call("Wait")


async def state(task: Task) -> None:
    answer = await task.call("State")
    equal("the id", answer.id, task.id)
    equal("the bundle", answer.bundle, str(task.bundle.path))
    that(not answer.exec_id, "exec_id is left empty")
    that(answer.HasField("exited_at"), "exited_at is always sent")
    if answer.status != Status.STOPPED:
        equal("exited_at of what has not exited", answer.exited_at.seconds, ZERO_TIME_S)
    else:
        equal("the exit status", answer.exit_status, 7)
        that(answer.exited_at.seconds > 0, "exited_at is a time")
        that(answer.pid, "the pid stays after the exit")


async def connect_known(task: Task) -> None:
    answer = await task.call("Connect")
    that(answer.shim_pid, "the shim has a pid")
    equal("task_pid", answer.task_pid, (await task.call("State")).pid)
    equal("version", answer.version, "")


async def connect_any(task: Task) -> None:
    try:
        await task.call("State")
    except RpcError as error:
        equal("task_pid of none", (await task.call("Connect")).task_pid, 0)
        equal("the error", str(error), UNKNOWN)
    else:
        await connect_known(task)


async def pids(task: Task) -> None:
    processes = (await task.call("Pids")).processes
    state = await task.call("State")
    wanted = [] if state.status == Status.STOPPED else [state.pid]
    equal("the pids", [process.pid for process in processes], wanted)
    that(not any(process.HasField("info") for process in processes), "the init gets no info")


async def wait_briefly(task: Task) -> None:
    """Only what has ended answers at once."""
    answer = await task.call("Wait", timeout_s=10)
    equal("the exit status", answer.exit_status, 7)


async def wait_over_a_kill(task: Task) -> None:
    waits = [asyncio.ensure_future(task.call("Wait")) for _ in range(3)]
    await task.call("Kill", signal=9)
    answers: list[Any] = await asyncio.gather(*waits)
    equal("what the waiters hear", {answer.exit_status for answer in answers}, {137})
    equal("the times they hear", len({(a.exited_at.seconds, a.exited_at.nanos) for a in answers}), 1)


async def stats(task: Task) -> None:
    any = (await task.call("Stats")).stats
    that(any.type_url in ("io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics"), "the type is bare")
    that(any.value, "there are numbers")


def simple(method: str, **fields: Any) -> Any:
    async def do(task: Task) -> None:
        await task.call(method, **fields)

    return do


IMAGE: Final = "OCI runtime restore failed: …"
NO_CONTAINER: Final = "no such container: not found"

# fmt: off
ROWS: Final[Sequence[Row]] = (
    Row("Start", simple("Start"), (
        "→ running", IMAGE, "cannot start a running process", "cannot start a paused process",
        "cannot start a stopped process", UNKNOWN)),
    Row("Delete", simple("Delete"), (
        "→ deleted", "→ deleted", "cannot delete a running process", "cannot delete a paused process",
        "→ deleted", UNKNOWN)),
    Row("Pause", simple("Pause"), (
        "cannot pause task in created state", "cannot pause task in created state", "→ paused",
        "cannot pause a paused container", "cannot pause a stopped container", UNKNOWN)),
    Row("Resume", simple("Resume"), (
        "cannot resume task in created state", "cannot resume task in created state",
        "cannot resume a running process", "→ running", "cannot resume a stopped container", UNKNOWN)),
    Row("Update", update, (
        "ok", "runc did not terminate successfully: exit status 1: …", "ok", "ok",
        "cannot update a stopped container", UNKNOWN)),
    Row("Checkpoint", checkpoint, (
        "cannot checkpoint a task in created state", "cannot checkpoint a task in created state", "ok", "ok",
        "cannot checkpoint a stopped container", UNKNOWN)),
    Row("Exec", exec_and_take_back, (
        "ok", "cannot exec in a created state", "ok", "cannot exec in a paused state",
        "cannot exec in a stopped state", UNKNOWN)),
    Row("Kill", kill, (
        "ok", NO_CONTAINER, "ok", "ok", "process already finished: not found", UNKNOWN)),
    Row("State", state, ("ok", "ok", "ok", "ok", "ok", UNKNOWN)),
    Row("Connect", connect_any, ("ok", "ok", "ok", "ok", "ok", "ok")),
    Row("CloseIO", simple("CloseIO", stdin=True), ("ok", "ok", "ok", "ok", "ok", UNKNOWN)),
    Row("ResizePty", simple("ResizePty", width=80, height=24), (
        "ok", "ok", "ok", "ok", "ok", UNKNOWN)),
    Row("Pids", pids, (
        "ok", "runc did not terminate successfully: exit status 1: …", "ok", "ok", "ok", UNKNOWN)),
    Row("Stats", stats, ("ok", "cgroup does not exist: not found", "ok", "ok", "ok", UNKNOWN)),
)
# fmt: on

DIFFERENCES: Final[Mapping[tuple[str, str], Sequence[Difference]]] = {}

fill(AREA, thing="container", states=STATES, rows=ROWS, exec_id="", gone=UNKNOWN, differences=DIFFERENCES)


@AREA.case("Wait of a container that is stopped answers at once, again and again")
async def wait_of_stopped(scene: Scene) -> None:
    task = await stopped(scene)
    await wait_briefly(task)
    await wait_briefly(task)


@AREA.case("Wait of a container that is deleted is refused")
async def wait_of_deleted(scene: Scene) -> None:
    task = await deleted(scene)
    await refused(task.call("Wait"), UNKNOWN)


for name, enter in (("created", created), ("running", running), ("paused", paused)):

    def exit_in(enter: Enter = enter) -> Any:
        async def play(scene: Scene) -> None:
            task = await enter(scene)
            await wait_over_a_kill(task)
            answer = await task.call("State")
            equal("the status", answer.status, Status.STOPPED)
            equal("the exit status", answer.exit_status, 137)

        return play

    AREA.add(f"an exit of a container that is {name} stops it, and every waiter hears of it", exit_in())
