"""Every call on an exec in every state: the documented state machine, cell by cell, then the calls it leaves out.

A deleted exec is taken out of its container's list, so from outside it is one that does not exist.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dunnage.conformance import reference
from dunnage.conformance.case import Area, Difference
from dunnage.conformance.cases.differences import PLAIN_ERROR, STARTED_TWICE
from dunnage.conformance.cases.states import Cell, Enter, Outside, Row, Table, fill, fill_from
from dunnage.conformance.check import ZERO_TIME_S, equal, refused, that
from dunnage.conformance.scene import Scene, Status, Task

AREA: Final = Area("exec states")
ID: Final = "e1"
UNKNOWN: Final = f"process does not exist {ID}: not found"


async def created(scene: Scene) -> Task:
    task = await scene.running()
    await task.exec(ID)
    return task


async def running(scene: Scene) -> Task:
    task = await scene.running()
    await task.started_exec(ID)
    return task


async def stopped(scene: Scene) -> Task:
    task = await scene.running()
    await task.stopped_exec(ID, "sh", "-c", "exit 7")
    return task


async def deleted(scene: Scene) -> Task:
    task = await scene.running()
    await task.deleted_exec(ID)
    return task


STATES: Final[Mapping[str, Enter]] = {"created": created, "running": running, "stopped": stopped, "deleted": deleted}
TABLE: Final = Table(AREA, "exec", STATES, exec_id=ID, gone=UNKNOWN)


def simple(method: str, **fields: Any) -> Any:
    async def do(task: Task) -> None:
        await task.call(method, exec_id=ID, **fields)

    return do


async def end(task: Task) -> None:
    """The kernel's doing, and not a call; what has ended before is waited for again."""
    state = await task.call("State", exec_id=ID)
    if state.status != Status.STOPPED:
        os.kill(state.pid, signal.SIGKILL)
    await task.call("Wait", exec_id=ID)


CALLS: Final = {
    "Start": simple("Start"),
    "Delete": simple("Delete"),
    "Kill": simple("Kill", signal=0),
    "Resize": simple("ResizePty", width=80, height=24),
    "SetExited": end,
}
UNSEEN: Final[Mapping[Cell, str]] = {
    ("SetExited", "created"): "there is no process yet that could exit",
}
DIFFERENCES: Final[Mapping[Cell, Sequence[Difference]]] = {("Start", "running"): (STARTED_TWICE,)}
fill_from(TABLE, reference.cells("exec"), Outside(CALLS, {}, UNSEEN, {}, {}), DIFFERENCES)

# The calls that the state machine leaves out.


async def state(task: Task) -> None:
    answer = await task.call("State", exec_id=ID)
    equal("the id, which is the exec's", answer.id, ID)
    equal("the bundle", answer.bundle, str(task.bundle.path))
    if answer.status == Status.CREATED:
        equal("the pid of what has not run", answer.pid, 0)
    else:
        that(answer.pid, "it has a pid")
    if answer.status == Status.STOPPED:
        equal("the exit status", answer.exit_status, 7)
        that(answer.exited_at.seconds > 0, "exited_at is a time")
    else:
        equal("exited_at of what has not exited", answer.exited_at.seconds, ZERO_TIME_S)


async def exec_again(task: Task) -> None:
    await task.exec(ID)


async def connect(task: Task) -> None:
    """Connect knows nothing of execs."""
    equal("task_pid", (await task.call("Connect")).task_pid, (await task.call("State")).pid)


TAKEN: Final = f"id {ID}: already exists"

# fmt: off
ROWS: Final[Sequence[Row]] = (
    Row("State", state, ("ok", "ok", "ok", UNKNOWN)),
    Row("CloseIO", simple("CloseIO", stdin=True), ("ok", "ok", "ok", UNKNOWN)),
    Row("Exec with the same id", exec_again, (TAKEN, TAKEN, TAKEN, "→ created")),
    Row("Connect", connect, ("ok", "ok", "ok", "ok")),
)
# fmt: on
fill(TABLE, ROWS, {("CloseIO", "deleted"): (PLAIN_ERROR,)})


@AREA.case("Wait of an exec that is stopped answers at once, again and again")
async def wait_of_stopped(scene: Scene) -> None:
    task = await stopped(scene)
    for _ in range(2):
        equal("the exit status", (await task.call("Wait", exec_id=ID)).exit_status, 7)


@AREA.case("Wait of an exec that is deleted is refused")
async def wait_of_deleted(scene: Scene) -> None:
    task = await deleted(scene)
    await refused(task.call("Wait", exec_id=ID), UNKNOWN)


@AREA.case("an exit of an exec that is running stops it, and every waiter hears of it")
async def exit_of_running(scene: Scene) -> None:
    task = await running(scene)
    waits = [asyncio.ensure_future(task.call("Wait", exec_id=ID)) for _ in range(3)]
    await task.call("Kill", exec_id=ID, signal=9)
    equal("what the waiters hear", {answer.exit_status for answer in await asyncio.gather(*waits)}, {137})
    equal("the status", await task.status(ID), Status.STOPPED)


@AREA.case("Wait of an exec that is created lasts until it was started and has ended")
async def wait_of_created(scene: Scene) -> None:
    task = await scene.running()
    await task.exec(ID, "sh", "-c", "exit 9")
    wait = asyncio.ensure_future(task.call("Wait", exec_id=ID))
    await task.call("State", exec_id=ID)
    that(not wait.done(), "Wait still waits")
    await task.call("Start", exec_id=ID)
    equal("the exit status", (await wait).exit_status, 9)


@AREA.case("the answer to Delete of an exec has its pid, exit status and time of exit")
async def delete_answers(scene: Scene) -> None:
    task = await stopped(scene)
    state = await task.call("State", exec_id=ID)
    answer = await task.call("Delete", exec_id=ID)
    equal("pid", answer.pid, state.pid)
    equal("exit status", answer.exit_status, 7)
    equal("exited_at", answer.exited_at, state.exited_at)


@AREA.case("the answer to Delete of an exec that never ran has no pid, status 0 and the zero time")
async def delete_of_created_answers(scene: Scene) -> None:
    task = await created(scene)
    answer = await task.call("Delete", exec_id=ID)
    equal("pid", answer.pid, 0)
    equal("exit status", answer.exit_status, 0)
    equal("exited_at", answer.exited_at.seconds, ZERO_TIME_S)


@AREA.case("an exec of a paused container says that it is paused")
async def exec_of_paused(scene: Scene) -> None:
    task = await running(scene)
    await task.call("Pause")
    equal("the exec's status", await task.status(ID), Status.PAUSED)
    await task.call("Resume")
    equal("the exec's status", await task.status(ID), Status.RUNNING)


@AREA.case("an exec can be started in a container that was created and not started")
async def exec_in_created(scene: Scene) -> None:
    task = await scene.created()
    await task.stopped_exec(ID, "sh", "-c", "exit 4")
    equal("the exit status", (await task.call("Wait", exec_id=ID)).exit_status, 4)
    equal("the container's status", await task.status(), Status.CREATED)


@AREA.case("Pids names the execs by their ids, and the init by none")
async def pids_name_execs(scene: Scene) -> None:
    from dunnage.api.options_pb2 import ProcessDetails

    task = await running(scene)
    pid = (await task.call("State", exec_id=ID)).pid
    processes = (await task.call("Pids")).processes
    that(not processes[0].HasField("info"), "the init gets no info")
    (info,) = [process.info for process in processes if process.pid == pid]
    equal("the type of the info", info.type_url, "containerd.runc.v1.ProcessDetails")
    equal("the exec in it", ProcessDetails.FromString(info.value).exec_id, ID)


@AREA.case("the pid file of an exec lies in the bundle until its Delete")
async def pid_file(scene: Scene) -> None:
    task = await stopped(scene)
    equal(f"{ID}.pid", task.bundle.text(f"{ID}.pid"), str((await task.call("State", exec_id=ID)).pid))
    await task.call("Delete", exec_id=ID)
    that(f"{ID}.pid" not in task.bundle.names, "the pid file is gone")
