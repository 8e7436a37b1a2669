"""The texts of errors, which clients and their tests look for: the shim's own first words, then the runtime's."""

from __future__ import annotations

import json
from typing import Any, Final

from dunnage.api.mount_pb2 import Mount
from dunnage.conformance.case import Area, Difference
from dunnage.conformance.check import contains, equal, refused, that
from dunnage.conformance.scene import PROCESS_URL, RESOURCES_URL, Scene, Status, any_of_json
from dunnage.ttrpc.errors import Code

AREA: Final = Area("error texts")
CREATE: Final = "OCI runtime create failed: "
EXEC: Final = "OCI runtime exec failed: "


def spec_of(scene: Scene, *args: str, **process: Any) -> dict[str, Any]:
    spec = scene.spec(args or ("true",))
    spec["process"].update(process)
    return spec


@AREA.case("a program that is not there fails Create with the runtime's own words")
async def no_program(scene: Scene) -> None:
    task = await scene.task(scene.bundle(("no-such-program",)))
    error = await refused(task.create(), f"{CREATE}…")
    contains("the error", error.message, 'exec: "no-such-program": executable file not found in $PATH')


@AREA.case("the runtime's last error record is the text, word for word")
async def last_record(scene: Scene) -> None:
    task = await scene.task(scene.bundle(("no-such-program",)))
    error = await refused(task.create(), f"{CREATE}…")
    records = [json.loads(line) for line in task.bundle.text("log.json").splitlines()]
    wanted = [record["msg"].strip() for record in records if record["level"] == "error"][-1]
    equal("the error", error.message, CREATE + wanted)


@AREA.case("a working directory that is not there fails Create")
async def no_cwd(scene: Scene) -> None:
    task = await scene.task(
        scene.bundle(spec=spec_of(scene, cwd="/no/such/place", user={"uid": 1000, "gid": 1000}, args=["no-such"]))
    )
    await refused(task.create(), f"{CREATE}…")


@AREA.case("a config without args fails Create")
async def no_args(scene: Scene) -> None:
    task = await scene.task(scene.bundle(spec=spec_of(scene, args=[])))
    await refused(task.create(), f"{CREATE}…")


@AREA.case("a rootfs that is not there fails Create")
async def no_rootfs(scene: Scene) -> None:
    task = await scene.task(scene.bundle(spec={**spec_of(scene), "root": {"path": "nowhere"}}))
    await refused(task.create(), f"{CREATE}…")


@AREA.case("a runtime that is not there is named")
async def no_runtime(scene: Scene) -> None:
    options = scene.options(binary_name="no-runc")
    task = await scene.task(scene.bundle(), options=options)
    error = await refused(task.create(), f"{CREATE}unable to retrieve OCI runtime error (open …")
    contains("the error", error.message, 'exec: "no-runc": executable file not found in $PATH')
    (task.bundle.path / "runtime").write_text("")


@AREA.case("a Create that failed leaves the container unknown, and the same id can be created")
async def create_again(scene: Scene) -> None:
    task = await scene.task(scene.bundle(("no-such-program",)))
    await refused(task.create(), f"{CREATE}…")
    await refused(task.call("State"), "container not created: not found")
    spec = {**task.bundle.spec, "process": {**task.bundle.spec["process"], "args": ["true"]}}
    (task.bundle.path / "config.json").write_text(json.dumps(spec))
    await task.create()
    equal("the status", await task.status(), Status.CREATED)


@AREA.case("a program that is not there fails an exec's Start with the runtime's own words")
async def no_exec_program(scene: Scene) -> None:
    task = await scene.running()
    await task.exec("e1", "no-such-program")
    error = await refused(task.call("Start", exec_id="e1"), f"{EXEC}…")
    contains("the error", error.message, 'exec: "no-such-program": executable file not found in $PATH')


@AREA.case("an exec without args fails its Start")
async def no_exec_args(scene: Scene) -> None:
    task = await scene.running()
    await task.call("Exec", exec_id="e1", spec=any_of_json(PROCESS_URL, {"cwd": "/", "args": []}))
    await refused(task.call("Start", exec_id="e1"), f"{EXEC}…")


@AREA.case("a mount that cannot be is named as a component of the rootfs, and nothing of it stays")
async def bad_mount(scene: Scene) -> None:
    task = await scene.task(scene.bundle(rootfs=False))
    good = Mount(type="bind", source=str(scene.host.rootfs), options=["rbind", "rw"])
    bad = Mount(type="no-such-filesystem", source="none")
    await refused(task.create(rootfs=[good, bad]), "failed to mount rootfs component…")


@AREA.case("a signal that there is none of is refused")
async def bad_signal(scene: Scene) -> None:
    task = await scene.running()
    await refused(task.call("Kill", signal=200), "unknown error after kill: …")
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case("Kill of a container that has ended says that the process has finished")
async def kill_of_ended(scene: Scene) -> None:
    task = await scene.stopped()
    await refused(task.call("Kill", signal=9), "process already finished: not found")


@AREA.case("resources that are no JSON are refused, and the container goes on")
async def bad_resources(scene: Scene) -> None:
    task = await scene.running()
    resources = any_of_json(RESOURCES_URL, {})
    resources.value = b"{"
    await refused(task.call("Update", resources=resources), "…", Code.UNKNOWN, Code.INVALID_ARGUMENT)
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case(
    "an exec of a container whose init has ended fails its Start with that as the reason",
    Difference(
        "go 1.6.20*",
        "it asks the runtime, and hands on what that says",
        "the case",
        "containerd pull request 10651, in 1.6.36 and 1.7.22",
    ),
)
async def exec_after_the_end(scene: Scene) -> None:
    task = await scene.running()
    await task.exec("e1")
    await task.call("Kill", signal=9)
    await task.call("Wait")
    await refused(task.call("Start", exec_id="e1"), "container c1 init process is not running: failed precondition")


@AREA.case("an error's words do not name files of another container")
async def own_words(scene: Scene) -> None:
    one = await scene.task(scene.bundle(("no-such-one",), id="c1"))
    two = await scene.task(scene.bundle(("no-such-two",), id="c2"))
    await refused(one.create(), f"{CREATE}…")
    error = await refused(two.create(), f"{CREATE}…")
    that("no-such-one" not in error.message, "the second error is of the second container")
