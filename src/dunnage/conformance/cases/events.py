"""Events: which, in which order, what is in them, and which there may not be."""

from __future__ import annotations

import time
from typing import Final

from dunnage.api.mount_pb2 import Mount
from dunnage.conformance.case import Area, Difference
from dunnage.conformance.check import ZERO_TIME_S, equal, refused, that
from dunnage.conformance.scene import Scene

AREA: Final = Area("events")


@AREA.case("a container's life is create, start, exit, delete")
async def life(scene: Scene) -> None:
    task = await scene.stopped()
    await task.call("Delete")
    await scene.events.wait_for("delete", "c1")
    equal("the events", scene.events.lines, ["create c1", "start c1", "exit c1", "delete c1"])


@AREA.case("an exec's life is added, started, exit, and no delete")
async def exec_life(scene: Scene) -> None:
    task = await scene.running()
    await task.deleted_exec("e1")
    await task.end()
    await scene.events.wait_for("delete", "c1")
    wanted = ["create c1", "start c1", "exec-added e1", "exec-started e1", "exit e1", "exit c1", "delete c1"]
    equal("the events", scene.events.lines, wanted)


@AREA.case("pause and resume are told, and change nothing of the rest")
async def pause(scene: Scene) -> None:
    task = await scene.paused()
    await task.call("Resume")
    await task.end()
    await scene.events.wait_for("delete", "c1")
    wanted = ["create c1", "start c1", "paused c1", "resumed c1", "exit c1", "delete c1"]
    equal("the events", scene.events.lines, wanted)


@AREA.case("TaskCreate has the bundle, the mounts, the stdio and the pid")
async def create(scene: Scene) -> None:
    fifos = scene.fifos(stdin=True)
    task = await scene.task(scene.bundle(rootfs=False))
    mount = Mount(type="bind", source=str(scene.host.rootfs), options=["rbind", "rw"])
    pid = (await task.create(rootfs=[mount], **fifos.fields)).pid
    message = (await scene.events.wait_for("create")).message
    equal("the bundle", message.bundle, str(task.bundle.path))
    equal("the mounts", list(message.rootfs), [mount])
    equal("the pid", message.pid, pid)
    stdio = {name: getattr(message.io, name) for name in ("stdin", "stdout", "stderr", "terminal")}
    equal("the stdio", stdio, fifos.fields)


@AREA.case("TaskStart has the pid that Start answers")
async def start(scene: Scene) -> None:
    task = await scene.created()
    pid = (await task.call("Start")).pid
    equal("the pid", (await scene.events.wait_for("start")).message.pid, pid)
    equal("Create's pid", (await scene.events.wait_for("create")).message.pid, pid)


@AREA.case("TaskExit of the init has both ids, the pid, the status and the time that Wait answers")
async def exit_of_init(scene: Scene) -> None:
    task = await scene.running("sh", "-c", "exit 42")
    waited = await task.call("Wait")
    message = (await scene.events.wait_for("exit")).message
    equal("the container", message.container_id, "c1")
    equal("the id", message.id, "c1")
    equal("the pid", message.pid, (await task.call("State")).pid)
    equal("the status", message.exit_status, 42)
    equal("the time", message.exited_at, waited.exited_at)
    that(abs(message.exited_at.seconds - time.time()) < 60, "the time is now")


@AREA.case("TaskExit of an exec has the exec's id")
async def exit_of_exec(scene: Scene) -> None:
    task = await scene.running()
    pid = await task.stopped_exec("e1", "sh", "-c", "exit 3")
    message = (await scene.events.wait_for("exit")).message
    equal("what it says", (message.container_id, message.id, message.pid, message.exit_status), ("c1", "e1", pid, 3))


@AREA.case("TaskDelete has the same status and time as TaskExit, and no id")
async def delete(scene: Scene) -> None:
    task = await scene.running("sh", "-c", "exit 9")
    await task.call("Wait")
    answer = await task.call("Delete")
    gone = (await scene.events.wait_for("delete")).message
    exited = (await scene.events.wait_for("exit")).message
    equal("the status", (gone.exit_status, answer.exit_status), (9, 9))
    equal("the time", gone.exited_at, exited.exited_at)
    equal("the time in the answer", answer.exited_at, exited.exited_at)
    equal("the pid", gone.pid, exited.pid)
    equal("the id", gone.id, "")


@AREA.case("the envelope has the namespace, a time, and the bare name of the type")
async def envelope(scene: Scene) -> None:
    await scene.created()
    envelope = (await scene.events.wait_for("create")).envelope
    equal("the namespace", envelope.namespace, scene.namespace)
    equal("the type", envelope.event.type_url, "containerd.events.TaskCreate")
    that(abs(envelope.timestamp.seconds - time.time()) < 60, "the time is now")


@AREA.case("a signal's exit status is 128 and its number")
async def signal(scene: Scene) -> None:
    task = await scene.running()
    await task.call("Kill", signal=9)
    equal("Wait's", (await task.call("Wait")).exit_status, 137)
    equal("the event's", (await scene.events.wait_for("exit")).message.exit_status, 137)


@AREA.case("an exec's signal is told in the same way")
async def signal_of_exec(scene: Scene) -> None:
    task = await scene.running()
    await task.started_exec("e1")
    await task.call("Kill", exec_id="e1", signal=15)
    equal("the event's", (await scene.events.wait_for("exit", "e1")).message.exit_status, 143)


@AREA.case("a Create that fails tells nothing")
async def failed_create(scene: Scene) -> None:
    task = await scene.task(scene.bundle(("no-such-program",)))
    await refused(task.create(), "OCI runtime create failed: …")
    witness = await scene.stopped(id="c2")
    await witness.call("Delete")
    await scene.events.wait_for("delete", "c2")
    equal("the events", [line for line in scene.events.lines if line.endswith("c1")], [])


@AREA.case("an exec whose Start fails is added, and neither started nor ended")
async def failed_exec(scene: Scene) -> None:
    task = await scene.running()
    await task.exec("e1", "no-such-program")
    await refused(task.call("Start", exec_id="e1"), "OCI runtime exec failed: …")
    answer = await task.call("Wait", exec_id="e1")
    equal("what Wait answers", (answer.exit_status, answer.exited_at.seconds), (0, ZERO_TIME_S))
    await task.call("Delete", exec_id="e1")
    await task.end()
    await scene.events.wait_for("delete", "c1")
    equal("the events", [line for line in scene.events.lines if line.endswith("e1")], ["exec-added e1"])


@AREA.case("a container that ends at once is told as started before it is told as ended")
async def short_life(scene: Scene) -> None:
    for number in range(5):
        task = await scene.stopped(id=f"c{number}")
        await task.call("Delete")
        await scene.events.wait_for("delete", task.id)
        lines = [line for line in scene.events.lines if line.endswith(task.id)]
        equal("the events", [line.split()[0] for line in lines], ["create", "start", "exit", "delete"])


@AREA.case("kill, resizing, closing and shutting down are not told")
async def silent(scene: Scene) -> None:
    task = await scene.running()
    await task.call("Kill", signal=0)
    await task.call("ResizePty", width=1, height=1)
    await task.call("CloseIO", stdin=True)
    await task.call("Shutdown")
    await task.deleted_exec("e1")
    equal(
        "the topics",
        {line.split()[0] for line in scene.events.lines} - {"exit"},
        {"create", "start", "exec-added", "exec-started"},
    )


@AREA.case("Delete of a created container is told after its create, and tells no start")
async def delete_of_created(scene: Scene) -> None:
    task = await scene.created()
    await task.call("Delete")
    await scene.events.wait_for("delete", "c1")
    lines = scene.events.lines
    that(lines.index("create c1") < lines.index("delete c1"), "create is told before delete")
    that("start c1" not in lines, "no start is told")


@AREA.case(
    "the last delete is told also when Shutdown follows it at once",
    Difference(
        "go *",
        "what has not been sent when Shutdown comes is now and then dropped",
        "the case",
        "containerd pull request 13052, which settles events against Shutdown in one more place",
        always=False,
    ),
)
async def last_delete(scene: Scene) -> None:
    for number in range(5):
        task = await scene.stopped(id=f"c{number}")
        await task.call("Delete")
        await task.end()
        await scene.events.wait_for("delete", task.id)
