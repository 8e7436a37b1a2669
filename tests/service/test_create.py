"""A Create that fails says why, and leaves nothing (shim v2, §4.1 and §4.2)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.service.conftest import Scenario
from tests.service.stage import Stage

from dunnage.api import mount_pb2, options_pb2, task_pb2
from dunnage.ttrpc.errors import RpcError

pytestmark = pytest.mark.real
Perform = Callable[[Scenario], None]

NOT_CREATED = (5, "container not created: not found")


def assert_nothing_is_left(stage: Stage, container: str) -> None:
    assert stage.told(container) == []
    assert not stage.host.keep.names
    assert not stage.host.watches
    assert stage.group.is_empty
    left = set(os.listdir(stage.directory / container))
    assert left <= {"config.json", "log.json", "options.json", "runtime", "rootfs", "dunnage-failures.json"}
    root = stage.directory / "root"
    assert not root.exists() or not os.listdir(root)
    assert str(stage.directory / container) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("oci_runtime", ["runc", "crun"])
def test_a_create_that_fails_leaves_nothing(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        before = os.listdir("/proc/self/fd")
        rootfs = [mount_pb2.Mount(type="bind", source=str(stage.rootfs), options=["rbind"])]
        fifos = [stage.directory / name for name in ("in", "out", "err")]
        for fifo in fifos:
            os.mkfifo(fifo)
        stdin, stdout, stderr = map(str, fifos)
        with pytest.raises(RpcError) as told:
            await stage.create(
                "c1", ["nope"], rootfs=rootfs, rootfs_path="rootfs", stdin=stdin, stdout=stdout, stderr=stderr
            )
        assert told.value.code == 2
        assert told.value.message.startswith("OCI runtime create failed: ")
        assert "nope" in told.value.message
        assert_nothing_is_left(stage, "c1")
        assert os.listdir("/proc/self/fd") == before
        assert await stage.refusal("Delete", task_pb2.DeleteRequest(id="c1")) == NOT_CREATED

    perform(scenario)


def test_a_second_create_after_a_failed_one_is_as_good_as_the_first(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        with pytest.raises(RpcError):
            await stage.create("c1", ["nope"])
        (stage.directory / "c1").rename(stage.directory / "before")
        await stage.run("c1", ["sh", "-c", "exit 4"])
        assert (await stage.wait("c1")).exit_status == 4

    perform(scenario)


def test_a_mount_that_fails_is_named_and_those_before_it_are_taken_back(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        rootfs = [
            mount_pb2.Mount(type="bind", source=str(stage.rootfs), options=["rbind"]),
            mount_pb2.Mount(type="bind", source="/nowhere", options=["rbind"]),
        ]
        with pytest.raises(RpcError, match="failed to mount rootfs component") as told:
            await stage.create("c1", ["true"], rootfs=rootfs, rootfs_path="rootfs")
        assert told.value.code == 2
        assert_nothing_is_left(stage, "c1")
        assert stage.spawner.names == [], "the runtime is not asked"

    perform(scenario)


def test_a_mount_that_hangs_is_a_deadline(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        stage.host.hanging_mount = asyncio.Event()
        rootfs = [mount_pb2.Mount(type="bind", source=str(stage.rootfs), options=["rbind"])]
        with pytest.raises(RpcError, match="did not end within") as told:
            await stage.create("c1", ["true"], rootfs=rootfs, rootfs_path="rootfs")
        assert told.value.code == 4
        assert_nothing_is_left(stage, "c1")

    perform(scenario)


def test_a_stdio_that_cannot_be_opened_is_named(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        failure = "failed to create init process I/O: "
        with pytest.raises(RpcError) as told:
            await stage.create("c1", ["true"], stdout="/nowhere/out")
        copying = "failed to start io pipe copy: unable to copy pipes: containerd-shim: opening file"
        assert told.value.message == f'{copying} "/nowhere/out" failed: open /nowhere/out: no such file or directory'
        assert_nothing_is_left(stage, "c1")
        with pytest.raises(RpcError) as told:
            await stage.create("c2", ["true"], stdout="pipe://x")
        assert (told.value.code, told.value.message) == (2, f"{failure}unknown STDIO scheme pipe")
        assert_nothing_is_left(stage, "c2")

    perform(scenario)


def test_a_runtime_that_is_not_there_is_named(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        request = task_pb2.CreateTaskRequest(id="c1", bundle=str(stage.bundle("c1", ["true"])))
        request.options.type_url = "containerd.runc.v1.Options"
        request.options.value = options_pb2.Options(binary_name="no-runc").SerializeToString()
        code, text = await stage.refusal("Create", request)
        assert code == 2
        assert text.endswith('exec: "no-runc": executable file not found in $PATH')
        assert_nothing_is_left(stage, "c1")

    perform(scenario)


def test_bad_input_of_a_create_is_refused(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        bundle = stage.bundle("c1", ["true"])
        for container in ("", ".", "..", "a/b", "a\0b"):
            code, text = await stage.refusal("Create", task_pb2.CreateTaskRequest(id=container, bundle=str(bundle)))
            assert (code, text) == (3, f"container id {container!r} is not usable as a name: invalid argument")
        code, text = await stage.refusal("Create", task_pb2.CreateTaskRequest(id="c1", bundle="relative"))
        assert (code, text) == (3, "bundle 'relative' is not an absolute path: invalid argument")
        code, text = await stage.refusal("Create", task_pb2.CreateTaskRequest(id="c1", bundle="/nowhere"))
        assert (code, text) == (
            9,
            "bundle /nowhere cannot be opened: No such file or directory: failed precondition",
        )
        (bundle / "config.json").unlink()
        code, text = await stage.refusal("Create", task_pb2.CreateTaskRequest(id="c1", bundle=str(bundle)))
        assert (code, text) == (
            3,
            f"{bundle}/config.json cannot be read: No such file or directory: invalid argument",
        )
        request = task_pb2.CreateTaskRequest(id="c1", bundle=str(bundle))
        request.options.type_url, request.options.value = "containerd.runc.v1.Options", b"\xff"
        assert (await stage.refusal("Create", request))[0] == 3
        assert_nothing_is_left(stage, "c1")

    perform(scenario)


def test_an_id_that_is_there_is_not_created_again(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        request = task_pb2.CreateTaskRequest(id="c1", bundle=str(stage.bundle("c1", ["true"])))
        answers = await asyncio.gather(*(stage.call("Create", request) for _ in range(3)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, RpcError)]
        assert [(error.code, error.message) for error in refused] == [(6, "container c1: already exists")] * 2
        assert stage.told("c1") == ["Created"]

    perform(scenario)


def test_a_runtime_that_hangs_is_a_deadline_and_its_work_is_taken_back(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        async def hang() -> None:
            raise TimeoutError  # after it has done all

        stage.spawner.after["create"] = hang
        code, text = await stage.refusal(
            "Create", task_pb2.CreateTaskRequest(id="c1", bundle=str(stage.bundle("c1", ["sleep", "100"])))
        )
        assert (code, text) == (
            4,
            "runc create of container c1 did not end within 30 s: context deadline exceeded",
        )
        assert_nothing_is_left(stage, "c1")

    perform(scenario)


@pytest.mark.parametrize("verb", ["create", "exec"])
def test_what_a_runtime_has_made_that_is_killed_then_is_taken_back(perform: Perform, verb: str) -> None:
    """As the kernel does, out of memory."""

    async def scenario(stage: Stage) -> None:
        runtime = stage.directory / "runtime"
        runtime.write_text(f'#!/bin/sh\nrunc "$@" || exit\ncase " $* " in *" {verb} "*) kill -9 $$;; esac\n')
        runtime.chmod(0o755)
        stage.command = str(runtime)
        if verb == "create":
            with pytest.raises(RpcError, match="exit status 137"):
                await stage.create("c1", ["sleep", "100"])
            assert_nothing_is_left(stage, "c1")
            return
        pid = await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["sleep", "200"])
        with pytest.raises(RpcError, match="exit status 137"):
            await stage.start("c1", "e1")
        await asyncio.gather(*(watch.over.wait() for watch in stage.host.watches if watch.pid != pid))
        assert [process.pid for process in (await stage.call("Pids", task_pb2.PidsRequest(id="c1"))).processes] == [pid]
        assert "ExecStarted e1" not in stage.told("c1")

    perform(scenario)


def test_a_delete_waits_for_the_create_that_its_client_has_given_up(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        holding, release = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            holding.set()
            await release.wait()

        stage.spawner.after["create"] = hold
        creating = asyncio.create_task(stage.create("c1", ["sleep", "100"]))
        await holding.wait()
        creating.cancel()
        deleting = asyncio.create_task(stage.delete("c1"))
        await asyncio.sleep(0)
        assert not deleting.done()
        release.set()
        assert (await deleting).exit_status == 137
        assert stage.told("c1") == ["Created", "Exited", "Deleted"]
        assert stage.group.is_empty

    perform(scenario)
