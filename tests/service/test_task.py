"""The Task service on a real runtime: what it answers, what it tells, and what it leaves (shim v2, §4 and §5)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
from tests.service.conftest import Scenario
from tests.service.stage import Stage

from dunnage.api import options_pb2, task_pb2, task_types_pb2

pytestmark = pytest.mark.real
Perform = Callable[[Scenario], None]

ZERO_S = -62135596800
NOT_CREATED = (5, "container not created: not found")


@pytest.mark.parametrize("oci_runtime", ["runc", "crun"])
def test_a_container_from_create_to_delete(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        stage.host.keep.store("other", 0)
        pid = await stage.create("c1", ["sh", "-c", "exit 7"])
        state = await stage.state("c1")
        assert (state.id, state.bundle, state.pid) == ("c1", str(stage.directory / "c1"), pid)
        assert (state.status, state.exit_status, state.exited_at.seconds) == (task_types_pb2.CREATED, 0, ZERO_S)
        assert await stage.start("c1") == pid
        ended = await stage.wait("c1")
        assert (ended.exit_status, ended.exited_at.seconds) == (7, 1_700_000_000)
        state = await stage.state("c1")
        assert (state.status, state.exit_status, state.pid) == (task_types_pb2.STOPPED, 7, pid)
        assert state.exited_at == ended.exited_at
        deleted = await stage.delete("c1")
        assert (deleted.pid, deleted.exit_status, deleted.exited_at) == (pid, 7, ended.exited_at)
        assert stage.told("c1") == ["Created", "Started", "Exited", "Deleted"]
        assert await stage.refusal("State", task_pb2.StateRequest(id="c1")) == NOT_CREATED
        left = set(os.listdir(stage.directory / "c1"))
        assert left <= {"config.json", "init.pid", "log.json", "options.json", "runtime"}
        assert stage.host.keep.names == {"other"}
        assert not stage.host.watches

    perform(scenario)


@pytest.mark.parametrize("oci_runtime", ["runc", "crun"])
def test_execs_run_in_a_container(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        init = await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["sh", "-c", "exit 3"])
        state = await stage.state("c1", "e1")
        assert (state.id, state.status, state.pid, state.exec_id) == ("e1", task_types_pb2.CREATED, 0, "")
        pid = await stage.start("c1", "e1")
        assert (await stage.wait("c1", "e1")).exit_status == 3
        assert (await stage.state("c1", "e1")).exit_status == 3
        await stage.exec("c1", "e2", ["sleep", "100"])
        second = await stage.start("c1", "e2")
        listed = (await stage.call("Pids", task_pb2.PidsRequest(id="c1"))).processes
        assert sorted(process.pid for process in listed) == sorted([init, second])
        by_pid = {process.pid: process.info for process in listed}
        assert not by_pid[init].type_url
        assert by_pid[second].type_url == "containerd.runc.v1.ProcessDetails"
        assert options_pb2.ProcessDetails.FromString(by_pid[second].value).exec_id == "e2"
        deleted = await stage.delete("c1", "e1")
        assert (deleted.pid, deleted.exit_status) == (pid, 3)
        assert not (stage.directory / "c1/e1.pid").exists()
        await stage.kill("c1")
        await stage.wait("c1")
        assert (await stage.wait("c1", "e2")).exit_status == 137
        await stage.delete("c1", "e2")
        await stage.delete("c1")
        assert stage.told("c1") == [
            "Created", "Started", "ExecAdded e1", "ExecStarted e1", "Exited e1",
            "ExecAdded e2", "ExecStarted e2", "Exited e2", "Exited", "Deleted",
        ]  # fmt: skip
        assert not stage.host.keep.names

    perform(scenario)


def test_a_process_with_the_pid_of_an_exec_that_has_ended_is_not_that_exec(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        init = await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["true"])
        ended = await stage.start("c1", "e1")
        await stage.wait("c1", "e1")

        async def ps(container: str) -> list[int]:
            return [init, ended]

        stage.group.container("c1")._runtime.ps = ps  # type: ignore[method-assign]  # as the kernel may have it
        listed = (await stage.call("Pids", task_pb2.PidsRequest(id="c1"))).processes
        assert [(process.pid, process.info.type_url) for process in listed] == [(init, ""), (ended, "")]

    perform(scenario)


# What is unknown


@pytest.mark.parametrize(
    ("method", "request_class"),
    [
        ("State", task_pb2.StateRequest),
        ("Start", task_pb2.StartRequest),
        ("Delete", task_pb2.DeleteRequest),
        ("Pids", task_pb2.PidsRequest),
        ("Pause", task_pb2.PauseRequest),
        ("Resume", task_pb2.ResumeRequest),
        ("Checkpoint", task_pb2.CheckpointTaskRequest),
        ("Kill", task_pb2.KillRequest),
        ("Exec", task_pb2.ExecProcessRequest),
        ("ResizePty", task_pb2.ResizePtyRequest),
        ("CloseIO", task_pb2.CloseIORequest),
        ("Update", task_pb2.UpdateTaskRequest),
        ("Wait", task_pb2.WaitRequest),
        ("Stats", task_pb2.StatsRequest),
    ],
)
def test_an_unknown_container_is_not_found(perform: Perform, method: str, request_class: type) -> None:
    async def scenario(stage: Stage) -> None:
        assert await stage.refusal(method, request_class(id="c1")) == NOT_CREATED

    perform(scenario)


def test_connect_and_shutdown_know_no_unknown_container(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        answer = await stage.call("Connect", task_pb2.ConnectRequest(id="none"))
        assert (answer.shim_pid, answer.task_pid, answer.version) == (os.getpid(), 0, "")
        await stage.call("Shutdown", task_pb2.ShutdownRequest(id="none", now=True))
        assert stage.shut_down == 1

    perform(scenario)


def test_an_unknown_exec_is_not_found(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.create("c1", ["true"])
        for method, request_class in (
            ("State", task_pb2.StateRequest),
            ("Start", task_pb2.StartRequest),
            ("Delete", task_pb2.DeleteRequest),
            ("Kill", task_pb2.KillRequest),
            ("ResizePty", task_pb2.ResizePtyRequest),
            ("CloseIO", task_pb2.CloseIORequest),
            ("Wait", task_pb2.WaitRequest),
        ):
            told = await stage.refusal(method, request_class(id="c1", exec_id="e9"))
            assert told == (5, "process does not exist e9: not found"), method

    perform(scenario)


# Kill


def test_a_kill_reaches_every_state_but_deleted(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.create("created", ["sleep", "100"])
        await stage.kill("created")
        assert (await stage.wait("created")).exit_status == 137
        await stage.run("running", ["sleep", "100"])
        await stage.kill("running")
        assert (await stage.wait("running")).exit_status == 137
        told = await stage.refusal("Kill", task_pb2.KillRequest(id="running", signal=9))
        assert told == (5, "process already finished: not found")
        await stage.delete("running")
        assert await stage.refusal("Kill", task_pb2.KillRequest(id="running", signal=9)) == NOT_CREATED

    perform(scenario)


def test_a_kill_of_an_exec_is_its_own(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["sleep", "100"])
        kill = task_pb2.KillRequest(id="c1", exec_id="e1", signal=9)
        assert await stage.refusal("Kill", kill) == (9, "process not created: failed precondition")
        await stage.start("c1", "e1")
        await stage.call("Kill", task_pb2.KillRequest(id="c1", exec_id="e1", signal=9, all=True))
        assert (await stage.wait("c1", "e1")).exit_status == 137
        assert await stage.refusal("Kill", kill) == (5, "process already finished: not found")
        assert (await stage.state("c1")).status == task_types_pb2.RUNNING
        bad = task_pb2.KillRequest(id="c1", exec_id="e1", signal=4711)
        assert await stage.refusal("Kill", bad) == (5, "process already finished: not found")

    perform(scenario)


def test_a_kill_of_an_exec_waits_for_its_start(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["sleep", "100"])
        killing: list[asyncio.Task[None]] = []

        async def kill() -> None:
            killing.append(asyncio.create_task(stage.kill("c1", "e1")))
            await asyncio.sleep(0)

        stage.spawner.before["exec"] = kill
        await stage.start("c1", "e1")
        await killing[0]
        assert (await stage.wait("c1", "e1")).exit_status == 137

    perform(scenario)


# What else a client may ask


def test_shutdown_is_nothing_while_there_is_a_container(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["true"])
        await stage.call("Shutdown", task_pb2.ShutdownRequest(id="c1"))
        assert stage.shut_down == 0
        await stage.wait("c1")
        await stage.delete("c1")
        stage.group.announce("c2", 1e9)
        await stage.call("Shutdown", task_pb2.ShutdownRequest(id="c1"))
        assert stage.shut_down == 0, "another is to come"
        await stage.call("Shutdown", task_pb2.ShutdownRequest(id="c2"))
        assert stage.shut_down == 1

    perform(scenario)


def test_connect_names_the_init(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        pid = await stage.create("c1", ["true"])
        assert (await stage.call("Connect", task_pb2.ConnectRequest(id="c1"))).task_pid == pid

    perform(scenario)


def test_resize_and_close_io_without_terminal_or_stdin_are_nothing(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        await stage.call("ResizePty", task_pb2.ResizePtyRequest(id="c1", width=80, height=25))
        await stage.call("CloseIO", task_pb2.CloseIORequest(id="c1", stdin=True))
        await stage.exec("c1", "e1", ["true"])
        await stage.start("c1", "e1")
        await stage.wait("c1", "e1")
        resize = task_pb2.ResizePtyRequest(id="c1", exec_id="e1", width=80, height=25)
        assert await stage.refusal("ResizePty", resize) == (2, "cannot resize a stopped container")
        await stage.kill("c1")
        await stage.wait("c1")
        await stage.call("ResizePty", task_pb2.ResizePtyRequest(id="c1", width=80, height=25))

    perform(scenario)


def test_a_slow_change_of_one_container_delays_no_other(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        holding, release = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            holding.set()
            await release.wait()

        stage.spawner.after["create"] = hold
        creating = asyncio.create_task(stage.create("c2", ["true"]))
        await holding.wait()
        assert (await stage.state("c1")).status == task_types_pb2.RUNNING
        await stage.kill("c1")
        assert (await stage.wait("c1")).exit_status == 137
        assert await stage.refusal("State", task_pb2.StateRequest(id="c2")) == NOT_CREATED
        release.set()
        await creating

    perform(scenario)


def test_a_change_whose_client_hangs_up_is_brought_to_its_end(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        holding, release = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            holding.set()
            await release.wait()

        stage.spawner.after["create"] = hold
        creating = asyncio.create_task(stage.create("c1", ["sleep", "100"]))
        await holding.wait()
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        release.set()
        await stage.wait_told("c1", "Created")
        await stage.start("c1")
        waiting = asyncio.create_task(stage.wait("c1"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await stage.state("c1")).status == task_types_pb2.RUNNING

    perform(scenario)
