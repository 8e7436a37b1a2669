"""An exec's id is reserved before anything is done for it, by one caller, and free again if nothing comes of it."""

from __future__ import annotations

from typing import Any, Final

from dunnage.conformance.bundle import process
from dunnage.conformance.case import Area
from dunnage.conformance.cases.differences import STARTED_TWICE
from dunnage.conformance.check import equal, refused, that
from dunnage.conformance.scene import PROCESS_URL, Scene, Status, any_of_json, together
from dunnage.conformance.shim import Connection
from dunnage.ttrpc.errors import Code, RpcError

AREA: Final = Area("exec ids")


def won(answers: list[Any]) -> list[Any]:
    """The answers that are no errors; every error must be that the id is taken."""
    for error in answers:
        if isinstance(error, BaseException):
            that(isinstance(error, RpcError), f"{error!r} is an error of the shim")
            equal("the error", str(error), "id e1: already exists")
            equal("its code", error.code, Code.ALREADY_EXISTS)  # type: ignore[attr-defined]  # an RpcError, as checked
    return [answer for answer in answers if not isinstance(answer, BaseException)]


@AREA.case("of twenty Execs of one id at once one wins and the others hear that it exists")
async def race(scene: Scene) -> None:
    task = await scene.running()
    answers = await together(*(task.exec("e1", "sh", "-c", f"exit {number}") for number in range(20)))
    equal("how many win", len(won(answers)), 1)
    await scene.events.wait_for("exec-added", "e1")
    await task.call("Start", exec_id="e1")
    await task.call("Wait", exec_id="e1")
    equal("how many were told", len(scene.events.of("exec-added", "e1")), 1)


@AREA.case("of Execs of one id on two connections one wins")
async def race_on_two_connections(scene: Scene) -> None:
    task = await scene.running()
    spec = any_of_json(PROCESS_URL, process(["true"]))
    second = await Connection.open(task.address, scene.namespace)
    calls = [
        connection.call("Exec", id=task.id, exec_id="e1", spec=spec) for connection in (task.connection, second) * 5
    ]
    answers = await together(*calls)
    second.close()
    equal("how many win", len(won(answers)), 1)


@AREA.case("twenty Execs of different ids at once all win")
async def different(scene: Scene) -> None:
    task = await scene.running()
    await_all = await together(*(task.exec(f"e{number}") for number in range(20)))
    equal("the answers", await_all, [None] * 20)
    equal("the statuses", {await task.status(f"e{number}") for number in range(20)}, {Status.CREATED})


@AREA.case("of ten Starts of one exec at once one wins", STARTED_TWICE)
async def start_race(scene: Scene) -> None:
    task = await scene.running()
    await task.exec("e1")
    answers = await together(*(task.call("Start", exec_id="e1") for _ in range(10)))
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    equal("how many win", len(answers) - len(errors), 1)
    equal("what the others hear", {str(error) for error in errors}, {"cannot start a running process"})
    equal("how many were told", len(scene.events.of("exec-started", "e1")), 1)


@AREA.case("of ten Deletes of one stopped exec at once one wins")
async def delete_race(scene: Scene) -> None:
    task = await scene.running()
    await task.stopped_exec("e1")
    answers = await together(*(task.call("Delete", exec_id="e1") for _ in range(10)))
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    equal("how many win", len(answers) - len(errors), 1)
    equal("their code", {getattr(error, "code", None) for error in errors}, {Code.NOT_FOUND})


@AREA.case("an Exec whose spec is no JSON leaves its id free")
async def bad_spec(scene: Scene) -> None:
    task = await scene.running()
    spec = any_of_json(PROCESS_URL, {})
    spec.value = b"{"
    await refused(task.call("Exec", exec_id="e1", spec=spec), "…", Code.UNKNOWN, Code.INVALID_ARGUMENT)
    await refused(task.call("State", exec_id="e1"), "process does not exist e1: not found")
    await task.exec("e1")


@AREA.case("an Exec that the container's state refuses leaves its id free")
async def refused_by_state(scene: Scene) -> None:
    task = await scene.paused()
    await refused(task.exec("e1"), "cannot exec in a paused state")
    await task.call("Resume")
    await task.exec("e1")


@AREA.case("an exec that could not be started keeps its id, and Delete frees it")
async def failed_start(scene: Scene) -> None:
    task = await scene.running()
    await task.exec("e1", "no-such-program")
    await refused(task.call("Start", exec_id="e1"), "OCI runtime exec failed: …")
    equal("its status", await task.status("e1"), Status.CREATED)
    await refused(task.exec("e1"), "id e1: already exists")
    await task.call("Delete", exec_id="e1")
    equal("the exit status of a second try", (await run(task)).exit_status, 0)


async def run(task: Any) -> Any:
    await task.stopped_exec("e1")
    return await task.call("Wait", exec_id="e1")


@AREA.case("an id is free again after Delete, ten times over")
async def reuse(scene: Scene) -> None:
    task = await scene.running()
    pids = {await task.deleted_exec("e1") for _ in range(10)}
    that(len(pids) > 1, "each was a process of its own")
    await scene.events.wait_for("exit", "e1", count=10)


@AREA.case("the same exec id in two containers means two execs")
async def two_containers(scene: Scene) -> None:
    one, two = await scene.running(id="c1"), await scene.running(id="c2")
    await one.stopped_exec("e1", "sh", "-c", "exit 1")
    await two.stopped_exec("e1", "sh", "-c", "exit 2")
    equal("the first one's status", (await one.call("State", exec_id="e1")).exit_status, 1)
    equal("the second one's status", (await two.call("State", exec_id="e1")).exit_status, 2)


@AREA.case("an exec may have the id of its container")
async def id_of_the_container(scene: Scene) -> None:
    task = await scene.running()
    await task.stopped_exec("c1", "sh", "-c", "exit 3")
    equal("the exec's status", (await task.call("State", exec_id="c1")).exit_status, 3)
    equal("the container's status", await task.status(), Status.RUNNING)


@AREA.case("an id as long as containerd allows makes an exec like any other")
async def long_id(scene: Scene) -> None:
    task = await scene.running()
    name = "x" * 76
    await task.stopped_exec(name)
    await task.call("Delete", exec_id=name)
    await scene.events.wait_for("exit", name)


@AREA.case("execs that were added and not started go with their container")
async def go_with_the_container(scene: Scene) -> None:
    task = await scene.running()
    for number in range(3):
        await task.exec(f"e{number}")
    await task.call("Kill", signal=9)
    await task.call("Wait")
    await task.call("Delete")
    await refused(task.call("State", exec_id="e0"), "container not created: not found")
