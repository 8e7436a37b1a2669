"""A shim that is killed: the action `delete` takes its container away, from the bundle's files, and says how it was.

A shim that comes back by itself is asked the same: containerd may have seen the connection close, and runs `delete`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from dunnage.api import task_pb2
from dunnage.conformance import leftovers
from dunnage.conformance.bundle import Bundle
from dunnage.conformance.case import Area
from dunnage.conformance.check import equal, that, wait_until
from dunnage.conformance.scene import Scene, Task

AREA: Final = Area("crash")


async def kill_shim(task: Task) -> Bundle:
    """What containerd sees then is that the connection closes; a shim that survives is left by its client."""
    pid = (await task.call("Connect")).shim_pid
    task.scene.is_killed = True
    os.kill(pid, signal.SIGKILL)
    task.connection.close()
    return task.bundle


async def delete(scene: Scene, bundle: Bundle) -> task_pb2.DeleteResponse:
    ran = await scene.run_delete(bundle)
    equal("the exit status", ran.status, 0)
    return task_pb2.DeleteResponse.FromString(ran.stdout)


def gone(pid: int) -> bool:
    """Whether it is no more, or a zombie that nobody has reaped yet."""
    return not os.path.exists(f"/proc/{pid}/exe")


Enter = Callable[[Scene], Awaitable[Task]]
STATES: Final[dict[str, Enter]] = {
    "created": lambda scene: scene.created(),
    "running": lambda scene: scene.running(),
    "running with an exec": lambda scene: with_exec(scene),
}


async def with_exec(scene: Scene) -> Task:
    task = await scene.running()
    await task.started_exec("e1")
    return task


def ends(state: str, enter: Enter) -> None:
    @AREA.case(f"delete after a kill of the shim ends a container that was {state}, and answers its pid and 137")
    async def play(scene: Scene) -> None:
        task = await enter(scene)
        pid = int(task.bundle.text("init.pid"))
        answer = await delete(scene, await kill_shim(task))
        await wait_until(lambda: gone(pid), "the init is gone")
        equal("the pid", answer.pid, pid)
        equal("the container's exit status", answer.exit_status, 137)
        that(answer.exited_at.seconds > 0, "there is a time of exit")


for state, enter in STATES.items():
    ends(state, enter)


@AREA.case("delete after a kill of the shim unmounts the rootfs")
async def unmounts(scene: Scene) -> None:
    from dunnage.api.mount_pb2 import Mount

    task = await scene.task(scene.bundle(rootfs=False))
    await task.create(rootfs=[Mount(type="bind", source=str(scene.host.rootfs), options=["rbind", "rw"])])
    await task.call("Start")
    await delete(scene, await kill_shim(task))
    equal("the mounts", leftovers.mounts(scene.directory), [])


@AREA.case("delete after a kill of the shim finds the runtime's state by the root in options.json")
async def uses_root(scene: Scene) -> None:
    root = scene.directory / "root"
    task = await scene.running(options=scene.options(root=str(root)))
    state = root / scene.namespace / "c1"
    that(state.exists(), "the runtime's state is there")
    await delete(scene, await kill_shim(task))
    that(not state.exists(), "the runtime's state is gone")


@AREA.case("delete after a kill of the shim uses the runtime that the file runtime names")
async def uses_runtime(scene: Scene) -> None:
    import shutil

    runtime = scene.directory / "my-runtime"
    log = scene.directory / "calls"
    runtime.write_text(f'#!/bin/sh\necho "$@" >>{log}\nexec {shutil.which(scene.host.runtime)} "$@"\n')
    runtime.chmod(0o755)
    task = await scene.running(options=scene.options(binary_name=str(runtime)))
    bundle = await kill_shim(task)
    await delete(scene, bundle)
    that(any(" delete " in line for line in log.read_text().splitlines()), "the runtime was called to delete")


@AREA.case("delete after a kill of the shim goes by the working directory and the id, and not by -bundle")
async def goes_by_id(scene: Scene) -> None:
    task = await scene.running()
    pid = int(task.bundle.text("init.pid"))
    bundle = await kill_shim(task)
    arguments = [*scene.arguments("c1"), "-bundle", "/nowhere", "delete"]
    ran = await scene.shim.run(*arguments, cwd=bundle.path, env=scene.environment)
    equal("the exit status", ran.status, 0)
    equal("the pid", task_pb2.DeleteResponse.FromString(ran.stdout).pid, pid)


@AREA.case("delete after a kill of the shim does not touch another container of the namespace")
async def other_stays(scene: Scene) -> None:
    other = await scene.running(id="other")
    task = await scene.running()
    before = int(other.bundle.text("init.pid"))
    await delete(scene, await kill_shim(task))
    that(Path(f"/proc/{before}/exe").exists(), "the other one runs")


@AREA.case("delete after a kill of the shim leaves removing the bundle to containerd")
async def bundle_stays(scene: Scene) -> None:
    bundle = await kill_shim(await scene.running())
    await delete(scene, bundle)
    that({"config.json", "rootfs", "log"} <= bundle.names, "the bundle is there")


@AREA.case("a second delete after a kill of the shim is answered too")
async def twice(scene: Scene) -> None:
    bundle = await kill_shim(await scene.running())
    first = await delete(scene, bundle)
    equal("the second pid", (await delete(scene, bundle)).pid, first.pid)


@AREA.case("after a kill of the shim and its delete, start of the same id makes another container")
async def start_again(scene: Scene) -> None:
    bundle = await kill_shim(await scene.running())
    await delete(scene, bundle)
    scene.forget(bundle)
    task = await scene.running("sh", "-c", "exit 5")
    equal("the exit status", (await task.call("Wait")).exit_status, 5)


@AREA.case("delete after a kill of the shim tells nothing on stdout but its answer")
async def only_answer(scene: Scene) -> None:
    bundle = await kill_shim(await scene.running())
    ran = await scene.run_delete(bundle)
    answer = task_pb2.DeleteResponse.FromString(ran.stdout)
    equal("stdout", answer.SerializeToString(), ran.stdout)
