"""Ids that name nothing: NotFound from every call that needs one, and nothing begun on their behalf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dunnage.conformance.bundle import process
from dunnage.conformance.case import Area
from dunnage.conformance.cases.differences import PLAIN_ERROR
from dunnage.conformance.check import equal, refused, that
from dunnage.conformance.scene import PROCESS_URL, RESOURCES_URL, Scene, Status, any_of_json

AREA: Final = Area("unknown ids")
NO_CONTAINER: Final = "container not created: not found"

FIELDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "State": {},
    "Start": {},
    "Delete": {},
    "Pids": {},
    "Pause": {},
    "Resume": {},
    "Checkpoint": {"path": "/nowhere"},
    "Kill": {"signal": 9},
    "Exec": {"exec_id": "e1", "spec": any_of_json(PROCESS_URL, process(["true"]))},
    "ResizePty": {"width": 1, "height": 1},
    "CloseIO": {"stdin": True},
    "Update": {"resources": any_of_json(RESOURCES_URL, {})},
    "Wait": {},
    "Stats": {},
}


def of_no_container(method: str) -> Any:
    async def play(scene: Scene) -> None:
        task = await scene.running()
        await refused(task.call(method, **{**FIELDS[method], "id": "nobody"}), NO_CONTAINER)
        equal("the status of the other container", await task.status(), Status.RUNNING)
        that(not [told for told in scene.events if told.message.container_id == "nobody"], "no event names it")

    return play


def of_no_exec(method: str) -> Any:
    async def play(scene: Scene) -> None:
        task = await scene.running()
        fields = {**FIELDS[method], "exec_id": "ghost"}
        await refused(task.call(method, **fields), "process does not exist ghost: not found")
        equal("the status of the container", await task.status(), Status.RUNNING)

    return play


def before_create(method: str) -> Any:
    async def play(scene: Scene) -> None:
        task = await scene.task(scene.bundle())
        await refused(task.call(method, **FIELDS[method]), NO_CONTAINER)

    return play


for method in FIELDS:
    AREA.add(f"{method} of a container that nobody created is NotFound", of_no_container(method))
for method in ("State", "Start", "Delete", "Kill", "ResizePty", "CloseIO", "Wait"):
    AREA.add(
        f"{method} of an exec that nobody added is NotFound",
        of_no_exec(method),
        *((PLAIN_ERROR,) if method == "CloseIO" else ()),
    )
for method in ("State", "Kill", "Wait"):
    AREA.add(f"{method} before Create is NotFound", before_create(method))


@AREA.case("Connect with an id that nobody created answers with the shim's pid and no task's")
async def connect(scene: Scene) -> None:
    task = await scene.running()
    answer = await task.call("Connect", id="nobody")
    equal("task_pid", answer.task_pid, 0)
    equal("shim_pid", answer.shim_pid, (await task.call("Connect")).shim_pid)


@AREA.case("Shutdown with an id that nobody created ends nothing while there is a container")
async def shutdown(scene: Scene) -> None:
    task = await scene.running()
    await task.call("Shutdown", id="nobody")
    await task.call("Shutdown", id="nobody", now=True)
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case("the same id in another namespace is another container")
async def namespaces(scene: Scene) -> None:
    task = await scene.running()
    other = scene.host.scene()
    try:
        stranger = await other.created()
        await stranger.call("Delete")
        await refused(stranger.call("State"), NO_CONTAINER)
        await other.close()
    finally:
        await other.abandon(failed=False)
    equal("the status", await task.status(), Status.RUNNING)
