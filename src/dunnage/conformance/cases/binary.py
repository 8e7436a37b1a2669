"""The binary as containerd runs it: `start`, `delete`, `-v`, their inputs, and the files they leave in the bundle."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from typing import Final

from dunnage.api import task_pb2
from dunnage.conformance import leftovers
from dunnage.conformance.case import Area, Difference
from dunnage.conformance.cases.differences import GROUP_SOCKET
from dunnage.conformance.check import ZERO_TIME_S, contains, equal, that, wait_until
from dunnage.conformance.scene import Scene, Status
from dunnage.conformance.shim import Address

AREA: Final = Area("binary")
NO_PID: Final = 4294967295
"""The pid in delete's answer when init.pid cannot be read: Go's −1 in 32 bits."""


@AREA.case("-v names the version and exits with 0")
async def version(scene: Scene) -> None:
    ran = await scene.shim.run("-v", cwd=scene.directory)
    equal("the exit status", ran.status, 0)
    contains("stdout", ran.stdout, b"  Version:")
    contains("stdout", ran.stdout, b"  Revision:")
    that(ran.stdout.splitlines()[0].endswith(b":"), "the first line is a name and a colon")


@AREA.case("an unknown flag is usage on stderr and status 2")
async def unknown_flag(scene: Scene) -> None:
    ran = await scene.shim.run("-no-such-flag", "start", cwd=scene.directory)
    equal("the exit status", ran.status, 2)
    that(ran.stderr, "stderr says something")
    equal("stdout", ran.stdout, b"")


@AREA.case("start without a namespace fails and says so")
async def no_namespace(scene: Scene) -> None:
    bundle = scene.bundle()
    ran = await scene.shim.run("-id", "c1", "start", cwd=bundle.path, env=scene.environment)
    equal("the exit status", ran.status, 1)
    contains("the output", ran.stdout + ran.stderr, b"shim namespace cannot be empty")


@AREA.case("start without config.json fails, and leaves no shim")
async def no_config(scene: Scene) -> None:
    bundle = scene.bundle()
    (bundle.path / "config.json").unlink()
    ran = await scene.run_start(bundle)
    equal("the exit status", ran.status, 1)
    contains("the output", ran.stdout + ran.stderr, b"config.json")
    await no_process(scene)


@AREA.case("start with a config.json that is no JSON fails, and leaves no shim")
async def bad_config(scene: Scene) -> None:
    bundle = scene.bundle()
    (bundle.path / "config.json").write_text("{")
    equal("the exit status", (await scene.run_start(bundle)).status, 1)
    await no_process(scene)


async def no_process(scene: Scene) -> None:
    def is_gone() -> bool:
        return not list(leftovers.processes(scene.namespace, scene.directory))

    await wait_until(is_gone, "no process is left")


@AREA.case("start prints an address of a socket and nothing else, on neither stream")
async def prints_address(scene: Scene) -> None:
    bundle = scene.bundle()
    ran = await scene.run_start(bundle)
    equal("the exit status", ran.status, 0)
    equal("stderr", ran.stderr, b"")
    address = Address.parse(ran.stdout)
    scene.addresses.append(address)
    that(stat.S_ISSOCK(os.stat(address.path).st_mode), "the address is that of a socket")
    equal("the mode of the socket", stat.S_IMODE(os.stat(address.path).st_mode), 0o600)
    await (await scene.task(bundle)).end()


@AREA.case("the address is the hash of containerd's address, the namespace and the id")
async def address_is_a_hash(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    digest = hashlib.sha256(f"{scene.host.address}/{scene.namespace}/c1".encode()).hexdigest()
    equal("the address", task.address.address, f"unix:///run/containerd/s/{digest}")


@AREA.case("start again for the same container gives the same address and the same shim")
async def start_again(scene: Scene) -> None:
    task = await scene.running()
    ran = await scene.run_start(task.bundle)
    equal("the exit status", ran.status, 0)
    equal("the address", Address.parse(ran.stdout), task.address)
    equal("the status", await task.status(), Status.RUNNING)


def annotated(annotation: str) -> None:
    @AREA.case(f"containers with one value of {annotation} share a shim, which ends after the last", GROUP_SOCKET)
    async def grouped(scene: Scene) -> None:
        annotations = {annotation: "pod"}
        one = await scene.running(id="c1", annotations=annotations)
        two = await scene.running(id="c2", annotations=annotations)
        equal("the second address", two.address, one.address)
        pids = [(await task.call("Connect")).shim_pid for task in (one, two)]
        equal("the second shim", pids[1], pids[0])
        await one.end()
        equal("the status of the other", await two.status(), Status.RUNNING)


annotated("io.containerd.runc.v2.group")
annotated("io.kubernetes.cri.sandbox-id")


@AREA.case("the group's annotation goes before the pod's", GROUP_SOCKET)
async def precedence(scene: Scene) -> None:
    annotations = {"io.containerd.runc.v2.group": "g", "io.kubernetes.cri.sandbox-id": "s"}
    task = await scene.task(scene.bundle(annotations=annotations))
    digest = hashlib.sha256(f"{scene.host.address}/{scene.namespace}/g".encode()).hexdigest()
    equal("the name of the socket", task.address.path.name, digest)


@AREA.case("a shim that speaks version 2 leaves its address in the bundle")
async def address_file(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    if task.address.version == 2:
        equal("the file address", task.bundle.text("address"), task.address.address)


@AREA.case("start with nothing on stdin makes a shim with default options")
async def empty_stdin(scene: Scene) -> None:
    bundle = scene.bundle()
    ran = await scene.run_start(bundle, stdin=None if scene.shim.wants_bootstrap else b"")
    equal("the exit status", ran.status, 0)
    scene.addresses.append(Address.parse(ran.stdout))
    task = await scene.task(bundle)
    await task.create()
    equal("the status", await task.status(), Status.CREATED)


@AREA.case("a socket that nobody listens at is replaced")
async def stale_socket(scene: Scene) -> None:
    import socket

    digest = hashlib.sha256(f"{scene.host.address}/{scene.namespace}/c1".encode()).hexdigest()
    stale = socket.socket(socket.AF_UNIX)
    os.makedirs("/run/containerd/s", mode=0o700, exist_ok=True)
    stale.bind(f"/run/containerd/s/{digest}")
    stale.close()
    task = await scene.created()
    equal("the status", await task.status(), Status.CREATED)


@AREA.case("Create writes options.json, runtime and init.pid into the bundle")
async def files(scene: Scene) -> None:
    task = await scene.created()
    equal("init.pid", task.bundle.text("init.pid"), str((await task.call("State")).pid))
    equal("runtime", task.bundle.text("runtime"), "" if scene.host.runtime == "runc" else scene.host.runtime)
    if scene.host.runtime == "runc":
        equal("options.json", task.bundle.text("options.json"), "{}")
    equal("its mode", stat.S_IMODE((task.bundle.path / "options.json").stat().st_mode), 0o600)


@AREA.case("the bundle holds what containerd knows, and files that have the shim's own name in front")
async def no_other_files(scene: Scene) -> None:
    task = await scene.running()
    known = {
        "config.json",
        "rootfs",
        "work",
        "log",
        "log.json",
        "options.json",
        "runtime",
        "init.pid",
        "address",
        "s",
    }
    own = {name for name in task.bundle.names if name.startswith(scene.shim.name)}
    equal("further files", task.bundle.names - known - own, set())


@AREA.case(
    "delete after a normal end answers with the init's pid and 137",
    Difference(
        "dunnage *",
        "it remembers how the container ended, and answers that",
        "the shim",
        "containerd issues 4769 and 8381: the 137 is no exit's, and has been taken for one",
    ),
)
async def delete_after_end(scene: Scene) -> None:
    task = await scene.stopped()
    pid = (await task.call("State")).pid
    await task.end()
    ran = await scene.run_delete(task.bundle)
    answer = task_pb2.DeleteResponse.FromString(ran.stdout)
    equal("the exit status", ran.status, 0)
    equal("pid", answer.pid, pid)
    equal("the container's exit status", answer.exit_status, 137)
    that(abs(answer.exited_at.seconds - time.time()) < 60, "exited_at is now")


@AREA.case("delete of a container that was never created answers with no pid and 137")
async def delete_of_nothing(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    await task.end()
    (task.bundle.path / "runtime").write_text("")
    answer = task_pb2.DeleteResponse.FromString((await scene.run_delete(task.bundle)).stdout)
    equal("pid", answer.pid, NO_PID)
    equal("the container's exit status", answer.exit_status, 137)


@AREA.case(
    "delete of a bundle in which Create wrote nothing yet is no error",
    Difference(
        "go 1.*",
        "it insists on the file runtime, which only Create writes",
        "the case",
        "containerd pull request 11043, in 2.1.0",
    ),
)
async def delete_without_runtime(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    await task.end()
    ran = await scene.run_delete(task.bundle)
    equal("the exit status", ran.status, 0)
    equal("the container's exit status", task_pb2.DeleteResponse.FromString(ran.stdout).exit_status, 137)


@AREA.case("delete takes less than the five seconds that containerd allows")
async def delete_is_quick(scene: Scene) -> None:
    task = await scene.stopped()
    await task.end()
    ran = await scene.run_delete(task.bundle)
    that(ran.took_s < 5, f"{ran.took_s:.1f} s are less than 5 s")


@AREA.case("delete again answers again")
async def delete_again(scene: Scene) -> None:
    task = await scene.stopped()
    await task.end()
    for _ in range(2):
        equal("the exit status", (await scene.run_delete(task.bundle)).status, 0)


@AREA.case("Shutdown while a container runs ends nothing")
async def shutdown_is_ignored(scene: Scene) -> None:
    task = await scene.running()
    await task.call("Shutdown")
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case("Shutdown after the last Delete closes the connection and removes the socket")
async def shutdown_ends(scene: Scene) -> None:
    task = await scene.deleted()
    await task.end_without_closing()
    await wait_until(task.connection.closed.is_set, "the shim has closed the connection", 10)
    await wait_until(lambda: not task.address.path.exists(), "the socket is gone", 10)


@AREA.case("Shutdown of a shim that never had a container ends it")
async def shutdown_of_unused(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    await task.end_without_closing()
    await wait_until(task.connection.closed.is_set, "the shim has closed the connection", 10)


@AREA.case("a connection that closes ends neither shim nor container")
async def disconnect(scene: Scene) -> None:
    from dunnage.conformance.shim import Connection

    task = await scene.running()
    task.connection.close()
    task.connection = await Connection.open(task.address, scene.namespace)
    answer = await task.call("State")
    equal("the status", answer.status, Status.RUNNING)
    equal("exited_at", answer.exited_at.seconds, ZERO_TIME_S)


@AREA.case("rootfs mounts are mounted by Create and unmounted by Delete")
async def rootfs_mount(scene: Scene) -> None:
    from dunnage.api.mount_pb2 import Mount

    task = await scene.task(scene.bundle(("sh", "-c", "exit 6"), rootfs=False))
    await task.create(rootfs=[Mount(type="bind", source=str(scene.host.rootfs), options=["rbind", "rw"])])
    equal("the mounts", leftovers.mounts(scene.directory), [f"{task.bundle.path}/rootfs"])
    await task.call("Start")
    equal("the exit status", (await task.call("Wait")).exit_status, 6)
    await task.call("Delete")
    equal("the mounts", leftovers.mounts(scene.directory), [])
