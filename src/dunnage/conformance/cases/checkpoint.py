"""Checkpoint and restore: what a container was at, it is at again; what is refused, and where criu's log is then."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from dunnage.api.mount_pb2 import Mount
from dunnage.api.options_pb2 import CheckpointOptions
from dunnage.conformance import leftovers, programs
from dunnage.conformance.case import Area
from dunnage.conformance.check import contains, equal, refused, that, wait_until
from dunnage.conformance.scene import Scene, Status, Task, pack
from dunnage.ttrpc.errors import Code

AREA: Final = Area("checkpoint")
COUNTER: Final = ("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.02; done")
ROOM_BYTES: Final = 16 << 10
"""Enough for what runc writes into an image before criu does."""
RESTORE: Final = "OCI runtime restore failed: "


def count(task: Task) -> int:
    """How far the counter is; its file is empty for a moment now and then."""
    path = task.bundle.path / "rootfs/count"
    return int((path.read_text() if path.exists() else "").strip() or 0)


async def counted_to(task: Task, number: int) -> None:
    await wait_until(lambda: count(task) >= number, f"the counter comes to {number}")


async def dump(task: Task, name: str = "image", **options: bool | str) -> Path:
    image = task.scene.directory / name
    await task.call("Checkpoint", path=str(image), options=pack(CheckpointOptions(**options)))  # type: ignore[arg-type]
    return image


@AREA.case("a container that is checkpointed runs on", needs=programs.CRIU)
async def runs_on(scene: Scene) -> None:
    task = await scene.running(*COUNTER)
    await counted_to(task, 5)
    image = await dump(task)
    that((image / "inventory.img").exists(), "the image is there")
    equal("the status", await task.status(), Status.RUNNING)
    await counted_to(task, count(task) + 5)


@AREA.case("with the option exit its container ends, and is told as any that ends", needs=programs.CRIU)
async def exits(scene: Scene) -> None:
    task = await scene.running()
    await dump(task, exit=True)
    answer = await task.call("Wait")
    equal("the exit status", answer.exit_status, 137)
    equal("the status", await task.status(), Status.STOPPED)
    equal("the event's", (await scene.events.wait_for("exit", "c1")).message.exit_status, 137)
    await task.call("Delete")


@AREA.case("a counter that is restored counts on", needs=programs.CRIU)
async def counts_on(scene: Scene) -> None:
    task = await scene.running(*COUNTER)
    await counted_to(task, 20)
    image = await dump(task, exit=True)
    await task.call("Wait")
    reached = count(task)
    again = await scene.task(scene.bundle(id="c2"))
    shutil.copy(task.bundle.path / "rootfs/count", again.bundle.path / "rootfs/count")  # the counter may have it open
    await again.create(checkpoint=str(image))
    equal("the status before Start", await again.status(), Status.CREATED)
    await again.call("Start")
    await wait_until(lambda: count(again) > reached, f"it counts on from {reached}")
    equal("the status", await again.status(), Status.RUNNING)


@AREA.case("Create with a checkpoint answers no pid, and Start the restored one's", needs=programs.CRIU)
async def pids(scene: Scene) -> None:
    image = await scene.checkpoint()
    task = await scene.task(scene.bundle())
    equal("Create's pid", (await task.create(checkpoint=str(image))).pid, 0)
    pid = (await task.call("Start")).pid
    that(pid, "Start answers a pid")
    equal("State's pid", (await task.call("State")).pid, pid)
    equal("init.pid", task.bundle.text("init.pid"), str(pid))


@AREA.case("create and start of a restored container are told with its checkpoint and its pid", needs=programs.CRIU)
async def events(scene: Scene) -> None:
    image = await scene.checkpoint(id="c0")
    task = await scene.task(scene.bundle())
    await task.create(checkpoint=str(image))
    pid = (await task.call("Start")).pid
    created = (await scene.events.wait_for("create", "c1")).message
    equal("TaskCreate", (created.checkpoint, created.pid), (str(image), 0))
    equal("TaskStart", (await scene.events.wait_for("start", "c1")).message.pid, pid)


@AREA.case("a checkpoint is not told", needs=programs.CRIU)
async def silent(scene: Scene) -> None:
    task = await scene.running()
    await dump(task)
    await task.end()
    await scene.events.wait_for("delete", "c1")
    equal("the events", scene.events.lines, ["create c1", "start c1", "exit c1", "delete c1"])


@AREA.case("a restored container can be killed, deleted and waited for as any other", needs=programs.CRIU)
async def ends(scene: Scene) -> None:
    image = await scene.checkpoint()
    task = await scene.task(scene.bundle())
    await task.create(checkpoint=str(image))
    await task.call("Start")
    await task.call("Kill", signal=9)
    equal("the exit status", (await task.call("Wait")).exit_status, 137)
    equal("Delete's", (await task.call("Delete")).exit_status, 137)


@AREA.case("a restored container takes execs", needs=programs.CRIU)
async def execs(scene: Scene) -> None:
    image = await scene.checkpoint()
    task = await scene.task(scene.bundle())
    await task.create(checkpoint=str(image))
    await task.call("Start")
    await task.stopped_exec("e1", "sh", "-c", "exit 3")
    equal("the exit status", (await task.call("Wait", exec_id="e1")).exit_status, 3)


@AREA.case("a restored container has the fifos of its new Create", needs=programs.CRIU)
async def fifos(scene: Scene) -> None:
    before = scene.fifos("c0", stdin=True)
    loop = ("sh", "-c", "while read line; do echo got $line; done; echo end")
    image = await scene.checkpoint(*loop, id="c0", fifos=before)
    after = scene.fifos("c1", stdin=True)
    task = await scene.task(scene.bundle(id="c1"))
    await task.create(checkpoint=str(image), **after.fields)
    await task.call("Start")
    after.write(b"it\n")
    await after.out.wait_for(b"got it\n")
    after.close_stdin()
    await task.call("CloseIO", stdin=True)
    equal("the exit status", (await task.call("Wait")).exit_status, 0)
    await task.call("Delete")
    contains("stdout", await after.out.read_all(), b"end\n")


@AREA.case("a Create with a checkpoint that is deleted before its Start leaves nothing", needs=programs.CRIU)
async def never_started(scene: Scene) -> None:
    image = await scene.checkpoint()
    task = await scene.task(scene.bundle(rootfs=False))
    mount = Mount(type="bind", source=str(scene.host.rootfs), options=["rbind", "rw"])
    await task.create(checkpoint=str(image), rootfs=[mount])
    await task.call("Delete")
    equal("the mounts", leftovers.mounts(scene.directory), [])
    await refused(task.call("State"), "container not created: not found")


@AREA.case("an image that is not there fails Start, and the container stays created")
async def no_image(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    await task.create(checkpoint=str(scene.directory / "no-image"))
    await refused(task.call("Start"), f"{RESTORE}…")
    equal("the status", await task.status(), Status.CREATED)
    await task.call("Delete")


@AREA.case("an image that finds no room fails the checkpoint, and criu's log is in the bundle", needs=programs.CRIU)
async def no_room(scene: Scene) -> None:
    task = await scene.running()
    image = scene.directory / "image"
    image.mkdir()
    with leftovers.tmpfs(image, ROOM_BYTES):
        await refuses(task, image)


async def refuses(task: Task, image: Path) -> None:
    error = await refused(task.call("Checkpoint", path=str(image), options=pack(CheckpointOptions())), "…")
    equal("its code", error.code, Code.UNKNOWN)
    log = task.bundle.path / "criu-dump.log"
    that(error.message.endswith(f" path= {log}"), f"{error.message!r} ends with the path of criu's log")
    contains("criu's log", log.read_text(errors="replace"), "Error (")
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case("Checkpoint without options means the defaults", needs=programs.CRIU)
async def no_options(scene: Scene) -> None:
    task = await scene.running()
    image = scene.directory / "image"
    await task.call("Checkpoint", path=str(image))
    that((image / "inventory.img").exists(), "the image is there")
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case("work_path is where criu works, and its log stays there", needs=programs.CRIU)
async def work_path(scene: Scene) -> None:
    task = await scene.running()
    work = scene.directory / "criu"
    work.mkdir()
    await dump(task, work_path=str(work))
    that((work / "dump.log").exists(), "criu's log is there")


@AREA.case("without work_path nothing stays of criu's work", needs=programs.CRIU)
async def no_work(scene: Scene) -> None:
    task = await scene.running()
    await dump(task)
    that(not (task.bundle.path / "work/criu-work").exists(), "work/criu-work is gone")


@AREA.case("criu_work_path of the options is where criu restores", needs=programs.CRIU)
async def criu_work_path(scene: Scene) -> None:
    image = await scene.checkpoint()
    work = scene.directory / "criu"
    work.mkdir()
    task = await scene.task(scene.bundle(), options=scene.options(criu_work_path=str(work)))
    await task.create(checkpoint=str(image))
    await task.call("Start")
    that((work / "restore.log").exists(), "criu's log is there")


@AREA.case("a paused container can be checkpointed, and is paused still", needs=programs.CRIU)
async def of_paused(scene: Scene) -> None:
    task = await scene.paused()
    await dump(task)
    equal("the status", await task.status(), Status.PAUSED)
    await task.call("Resume")
