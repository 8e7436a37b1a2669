"""Delete, in every state, and the end by force (shim v2, §4.1 and §5.2)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.service.conftest import Scenario
from tests.service.stage import Stage

from dunnage.api import mount_pb2, task_pb2
from dunnage.container.facts import Ended
from dunnage.errors import DeadlineExceeded
from dunnage.ttrpc.errors import RpcError

pytestmark = pytest.mark.real
Perform = Callable[[Scenario], None]

ZERO_S = -62135596800


def test_a_running_process_is_not_deleted(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["sleep", "100"])
        await stage.start("c1", "e1")
        refused = (2, "cannot delete a running process")
        assert await stage.refusal("Delete", task_pb2.DeleteRequest(id="c1")) == refused
        assert await stage.refusal("Delete", task_pb2.DeleteRequest(id="c1", exec_id="e1")) == refused

    perform(scenario)


@pytest.mark.parametrize("oci_runtime", ["runc", "crun"])
@pytest.mark.parametrize("host_pids", [False, True])
def test_a_created_container_is_deleted_with_its_init(perform: Perform, host_pids: bool) -> None:
    async def scenario(stage: Stage) -> None:
        fifo = stage.directory / "out"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        stage.drain_s = 600  # its end is not waited for before the runtime has killed it
        pid = await stage.create("c1", ["sleep", "100"], host_pids=host_pids, stdout=str(fifo), stderr=str(fifo))
        async with asyncio.timeout(30):
            deleted = await stage.delete("c1")
        assert (deleted.pid, deleted.exit_status) == (pid, 137)
        assert stage.told("c1") == ["Created", "Exited", "Deleted"]
        assert not stage.host.keep.names
        os.close(reader)

    perform(scenario)


def test_a_process_that_never_ran_is_deleted_without_status_and_time(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["true"])
        deleted = await stage.delete("c1", "e1")
        assert (deleted.pid, deleted.exit_status, deleted.exited_at.seconds) == (0, 0, ZERO_S)
        told = await stage.refusal("State", task_pb2.StateRequest(id="c1", exec_id="e1"))
        assert told == (5, "process does not exist e1: not found")
        await stage.exec("c1", "e1", ["true"])

    perform(scenario)


@pytest.mark.parametrize("by_force", [False, True])
def test_what_a_former_worker_kept_for_a_start_that_never_came_goes_with_the_container(
    perform: Perform, by_force: bool
) -> None:
    """Else the clients would read on for ever."""

    async def scenario(stage: Stage) -> None:
        await stage.create("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["true"])
        request = task_pb2.CreateTaskRequest(id="c2", checkpoint=str(stage.directory / "image"))
        request.bundle = str(stage.bundle("c2", ["sleep", "100"]))
        await stage.call("Create", request)
        stage.host.keep.names |= {"io:default/c1/e1:stdout.sink", "io:default/c2:stdout.sink"}
        for name in ("c1", "c2"):
            container = stage.group.container(name)
            if by_force:
                await container.destroy()
                stage._on_deleted(stage.group, container)
            else:
                await stage.delete(name)
        assert not stage.host.keep.names

    perform(scenario)


def test_an_exec_whose_output_never_ends_is_deleted_after_a_while(
    perform: Perform, caplog: pytest.LogCaptureFixture
) -> None:
    """Its child keeps the pipe open (§5.10)."""

    async def scenario(stage: Stage) -> None:
        stage.drain_s = 0.2
        await stage.run("c1", ["sleep", "100"])
        fifo = stage.directory / "out"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        await stage.exec("c1", "e1", ["sh", "-c", "sleep 50 & echo done"], stdout=str(fifo), stderr=str(fifo))
        await stage.start("c1", "e1")
        assert (await stage.wait("c1", "e1")).exit_status == 0
        await stage.delete("c1", "e1")
        assert os.read(reader, 100) == b"done\n"
        assert os.read(reader, 100) == b"", "nobody writes any more"
        os.close(reader)
        assert [record.getMessage() for record in caplog.records] == ["failed to drain exec process e1 io"]
        assert {name for name in stage.host.keep.names if name.startswith("io:")} == set()

    perform(scenario)


def test_a_delete_whose_unmount_hangs_says_so_and_can_be_tried_again(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(stage: Stage) -> None:
        rootfs = [mount_pb2.Mount(type="bind", source=str(stage.rootfs), options=["rbind"])]
        await stage.run("c1", ["true"], rootfs=rootfs, rootfs_path="rootfs")
        await stage.wait("c1")

        async def hang(name: str, rootfs: str) -> None:
            raise DeadlineExceeded(f"unmounting the rootfs {rootfs} did not end within 0 s")

        with monkeypatch.context() as hanging:
            hanging.setattr(stage.host, "unmount", hang)
            code, text = await stage.refusal("Delete", task_pb2.DeleteRequest(id="c1"))
        assert code == 4
        assert text.startswith("failed rootfs umount: unmounting the rootfs")
        await stage.delete("c1")
        assert stage.told("c1")[-1] == "Deleted"

    perform(scenario)


def test_of_two_deletes_one_deletes(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["true"])
        await stage.wait("c1")
        answers = await asyncio.gather(stage.delete("c1"), stage.delete("c1"), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, RpcError)]
        assert [(error.code, error.message) for error in refused] == [(5, "cannot delete a deleted process: not found")]
        assert stage.told("c1").count("Deleted") == 1

    perform(scenario)


def test_a_delete_that_the_runtime_refuses_can_be_tried_again(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        rootfs = [mount_pb2.Mount(type="bind", source=str(stage.rootfs), options=["rbind"])]
        await stage.run("c1", ["true"], rootfs=rootfs, rootfs_path="rootfs")
        await stage.wait("c1")

        async def fail() -> None:
            raise TimeoutError

        stage.spawner.before["delete"] = fail
        assert (await stage.refusal("Delete", task_pb2.DeleteRequest(id="c1")))[0] == 4
        assert str(stage.directory / "c1") not in Path("/proc/self/mountinfo").read_text()
        stage.spawner.before.clear()
        await stage.delete("c1")
        assert stage.told("c1") == ["Created", "Started", "Exited", "Deleted"]

    perform(scenario)


def test_an_end_by_force_ends_a_running_container_and_tells_nothing(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        pid = await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["sleep", "100"])
        await stage.start("c1", "e1")
        before = stage.told("c1")
        ended = await stage.group.container("c1").destroy()
        assert (ended.pid, ended.status) == (pid, 137)
        assert stage.told("c1") == before

    perform(scenario)


def test_an_exec_that_starts_while_its_container_is_ended_leaves_nothing(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        # in a pid namespace of its own the init could not end before the exec, which nobody reaps while it starts
        await stage.run("c1", ["sleep", "100"], host_pids=True)
        fifo = stage.directory / "out"
        os.mkfifo(fifo)
        await stage.exec("c1", "e1", ["sleep", "100"], stdout=str(fifo), stderr=str(fifo))

        async def destroy() -> None:
            container = stage.group.container("c1")
            await container.destroy()
            stage._on_deleted(stage.group, container)

        stage.spawner.after["exec"] = destroy
        with pytest.raises(RpcError):
            await stage.start("c1", "e1")
        assert not stage.host.keep.names

    perform(scenario)


def test_a_delete_that_a_former_worker_did_is_answered(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        stage.recalled["c1"] = Ended(42, 137, 1_000_000_001)
        deleted = await stage.call("Delete", task_pb2.DeleteRequest(id="c1"), replayed=True)
        assert (deleted.pid, deleted.exit_status, deleted.exited_at.nanos) == (42, 137, 1)
        told = await stage.refusal("Delete", task_pb2.DeleteRequest(id="c1", exec_id="e1"))
        assert told == (5, "container not created: not found")

    perform(scenario)
