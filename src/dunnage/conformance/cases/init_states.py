"""Every call on a container in every state: the documented state machine, cell by cell, then the calls it leaves out.

The Go shim's own text for a deleted init (``cannot start a deleted process`` and so on) is never seen from outside:
Delete takes the container out of the list, and a container that is not in the list is one that was not created.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dunnage.conformance import programs, reference
from dunnage.conformance.case import Area
from dunnage.conformance.cases import states
from dunnage.conformance.cases.states import Cell, Enter, Outside, Row, Table, fill, fill_from
from dunnage.conformance.check import ZERO_TIME_S, equal, refused, that
from dunnage.conformance.scene import RESOURCES_URL, Scene, Status, Task, any_of_json
from dunnage.ttrpc.errors import RpcError

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


async def created_from_a_real_checkpoint(scene: Scene) -> Task:
    image = await scene.checkpoint()
    task = await scene.task(scene.bundle())
    await task.create(checkpoint=str(image))
    return task


async def running(scene: Scene) -> Task:
    return await scene.running()


async def paused(scene: Scene) -> Task:
    return await scene.paused()


async def stopped(scene: Scene) -> Task:
    return await scene.stopped("sh", "-c", "exit 7")


async def deleted(scene: Scene) -> Task:
    """The connection stays; without any container, Shutdown is all that is left for the shim."""
    return await scene.deleted()


STATES: Final[Mapping[str, Enter]] = {
    "created": created,
    "created (checkpoint)": created_from_a_checkpoint,
    "running": running,
    "paused": paused,
    "stopped": stopped,
    "deleted": deleted,
}
TABLE: Final = Table(AREA, "container", STATES, exec_id="", gone=UNKNOWN)


async def update(task: Task) -> None:
    await task.call("Update", resources=any_of_json(RESOURCES_URL, {"pids": {"limit": 77}}))


async def exec_and_take_back(task: Task) -> None:
    await task.exec("e1")
    equal("the exec's status", await task.status("e1"), Status.CREATED)
    await task.call("Delete", exec_id="e1")


async def checkpoint(task: Task) -> None:
    image = task.scene.directory / "dump"
    await task.call("Checkpoint", path=str(image))
    that((image / "inventory.img").exists(), "the image is there")


async def end(task: Task) -> None:
    """From outside the shim; what has ended before is waited for again. A frozen process of cgroup v1 ends when it
    is thawed, which is what Kill sees to."""
    state = await task.call("State")
    if state.status == Status.PAUSED:
        await task.call("Kill", signal=signal.SIGKILL)
    elif state.status != Status.STOPPED:
        os.kill(state.pid, signal.SIGKILL)
    await task.call("Wait")


def simple(method: str, **fields: Any) -> Any:
    async def do(task: Task) -> None:
        await task.call(method, **fields)

    return do


CALLS: Final = {
    "Start": simple("Start"),
    "Delete": simple("Delete"),
    "Pause": simple("Pause"),
    "Resume": simple("Resume"),
    "Update": update,
    "Checkpoint": checkpoint,
    "Exec": exec_and_take_back,
    "Kill": simple("Kill", signal=0),
    "SetExited": end,
}
FROM_IMAGE: Final = "created (checkpoint)"
INSTEAD: Final[Mapping[Cell, str]] = {
    # The runtime is asked, and has no container of that name before Start.
    ("Update", FROM_IMAGE): "runc did not terminate successfully: exit status 1: …",
    ("Kill", FROM_IMAGE): "no such container: not found",
    # The runtime is asked, and says that it is not running.
    ("Kill", "stopped"): "process already finished: not found",
}
UNSEEN: Final[Mapping[Cell, str]] = {
    ("SetExited", FROM_IMAGE): "there is no process yet that could exit",
}
ENTER: Final[Mapping[Cell, Enter]] = {("Start", FROM_IMAGE): created_from_a_real_checkpoint}
NEEDS: Final[Mapping[Cell, str]] = {
    ("Start", FROM_IMAGE): programs.CRIU,
    ("Checkpoint", "running"): programs.CRIU,
    ("Checkpoint", "paused"): programs.CRIU,
}
fill_from(TABLE, reference.cells("init"), Outside(CALLS, INSTEAD, UNSEEN, ENTER, NEEDS))

# The calls that the state machine leaves out.


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


# fmt: off
ROWS: Final[Sequence[Row]] = (
    Row("State", state, ("ok", "ok", "ok", "ok", "ok", UNKNOWN)),
    Row("Connect", connect_any, ("ok", "ok", "ok", "ok", "ok", "ok")),
    Row("CloseIO", simple("CloseIO", stdin=True), ("ok", "ok", "ok", "ok", "ok", UNKNOWN)),
    Row("ResizePty", simple("ResizePty", width=80, height=24), ("ok", "ok", "ok", "ok", "ok", UNKNOWN)),
    Row("Pids", pids, (
        "ok", "runc did not terminate successfully: exit status 1: …", "ok", "ok", "ok", UNKNOWN)),
    Row("Stats", stats, ("ok", "cgroup does not exist: not found", "ok", "ok", "ok", UNKNOWN)),
)
# fmt: on
fill(TABLE, ROWS, {})


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


def shutdown_in(state: str, enter: Enter) -> None:
    @AREA.case(f"Shutdown of a shim whose container is {state} ends nothing")
    async def play(scene: Scene) -> None:
        task = await enter(scene)
        await task.call("Shutdown", now=True)
        await states.expect_state(task, TABLE, state)


for state_name, enter_state in STATES.items():
    if state_name != states.GONE:
        shutdown_in(state_name, enter_state)
