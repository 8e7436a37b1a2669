"""Pause and Resume: what is frozen, what a client sees of it, and how it ends (shim v2, §5.2)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.service.conftest import Scenario
from tests.service.stage import Stage

from dunnage.api import task_pb2, task_types_pb2
from dunnage.cgroups import Cgroup, is_unified
from dunnage.container.bundle import Bundle
from dunnage.container.facts import IO, Options
from dunnage.container.states import State
from dunnage.errors import Error

pytestmark = [pytest.mark.real, pytest.mark.parametrize("oci_runtime", ["runc", "crun"])]
Perform = Callable[[Scenario], None]

PAUSE, RESUME = task_pb2.PauseRequest(id="c1"), task_pb2.ResumeRequest(id="c1")


def freezer_state(pid: int) -> str:
    """What the kernel says of a process's cgroup, on v1 and v2."""
    lines = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    if "freezer" in lines:
        return Path(f"/sys/fs/cgroup/freezer{lines['freezer']}/freezer.state").read_text().strip()
    return {"1": "FROZEN", "0": "THAWED"}[Path(f"/sys/fs/cgroup{lines['']}/cgroup.freeze").read_text().strip()]


def test_what_is_paused_is_frozen_until_it_is_resumed(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        pid = await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["sleep", "100"])
        await stage.start("c1", "e1")
        await stage.call("Pause", PAUSE)
        assert freezer_state(pid) == "FROZEN"
        for exec_id in ("", "e1"):
            assert (await stage.state("c1", exec_id)).status == task_types_pb2.PAUSED
        assert await stage.refusal("Pause", PAUSE) == (2, "cannot pause a paused container")
        add = task_pb2.ExecProcessRequest(id="c1", exec_id="e2")
        add.spec.value = b"{}"
        assert await stage.refusal("Exec", add) == (2, "cannot exec in a paused state")
        await stage.call("Resume", RESUME)
        assert freezer_state(pid) == "THAWED"
        for exec_id in ("", "e1"):
            assert (await stage.state("c1", exec_id)).status == task_types_pb2.RUNNING
        assert await stage.refusal("Resume", RESUME) == (2, "cannot resume a running process")
        assert stage.told("c1")[-2:] == ["Paused", "Resumed"]

    perform(scenario)


def test_a_container_is_pausing_while_the_runtime_pauses_it(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        seen: list[int] = []

        async def look() -> None:
            seen.append((await stage.state("c1")).status)

        stage.spawner.before["pause"] = look
        await stage.call("Pause", PAUSE)
        assert seen == [task_types_pb2.PAUSING]

    perform(scenario)


def test_a_pause_that_fails_leaves_the_container_running(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])

        async def fail() -> None:
            raise TimeoutError

        stage.spawner.before["pause"] = fail
        code, text = await stage.refusal("Pause", PAUSE)
        assert code == 4
        assert "pause of container c1 did not end within" in text
        assert (await stage.state("c1")).status == task_types_pb2.RUNNING
        assert stage.told("c1") == ["Created", "Started"]

    perform(scenario)


def test_a_pause_that_is_given_up_leaves_nothing_frozen(perform: Perform) -> None:
    """It is running, so that nobody could resume it."""

    async def scenario(stage: Stage) -> None:
        pid = await stage.run("c1", ["sleep", "100"])
        seen: list[str] = []

        async def hang() -> None:
            seen.append(freezer_state(pid))
            raise TimeoutError

        stage.spawner.after["pause"] = hang
        assert (await stage.refusal("Pause", PAUSE))[0] == 4
        assert (seen, freezer_state(pid)) == (["FROZEN"], "THAWED")
        assert (await stage.state("c1")).status == task_types_pb2.RUNNING

    perform(scenario)


def test_the_start_of_an_exec_that_was_frozen_under_a_former_worker_ends_and_the_container_stays_paused(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(stage: Stage) -> None:
        pid = await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["true"])
        await stage.call("Pause", PAUSE)

        async def wait_inherited(call: str) -> int | None:
            if call.endswith(":exec"):
                while freezer_state(pid) != "THAWED":  # noqa: ASYNC110 - the kernel has no event for it
                    await asyncio.sleep(0.01)
            return None

        monkeypatch.setattr(stage.host, "wait_inherited", wait_inherited)
        bundle = Bundle.open(str(stage.directory / "c1"))
        record = bundle.read_record()
        assert record is not None
        taken_up = stage.container("c1", bundle, io=IO(), rootfs=(), options=Options())
        async with asyncio.timeout(20):
            await taken_up.restore(record, {})
        assert (taken_up.init.state, freezer_state(pid)) == (State.PAUSED, "FROZEN")
        taken_up.close()

    perform(scenario)


def test_a_paused_container_is_killed(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        await stage.call("Pause", PAUSE)
        await stage.kill("c1")
        assert (await stage.wait("c1")).exit_status == 137
        assert (await stage.state("c1")).status == task_types_pb2.STOPPED
        assert (await stage.delete("c1")).exit_status == 137
        assert stage.told("c1") == ["Created", "Started", "Paused", "Exited", "Deleted"]

    perform(scenario)


def test_a_signal_other_than_sigkill_waits_for_the_resume(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        script = "trap 'exit 9' TERM; while :; do sleep 0.1; done"
        pid = await stage.run("c1", ["sh", "-c", script])
        await stage.call("Pause", PAUSE)
        await stage.kill("c1", number=15)
        assert freezer_state(pid) == "FROZEN"
        await stage.call("Resume", RESUME)
        # without a handler yet, the first process of a pid namespace is spared: the signal may have come too early
        while (await stage.state("c1")).status == task_types_pb2.RUNNING:
            await stage.call("Kill", task_pb2.KillRequest(id="c1", signal=15), replayed=True)
        assert (await stage.wait("c1")).exit_status == 9

    perform(scenario)


def test_what_a_paused_container_s_init_leaves_behind_does_not_stay_frozen(perform: Perform) -> None:
    """Without a pid namespace of its own, and as its child is frozen, only a thaw lets the kill of the rest through."""

    async def scenario(stage: Stage) -> None:
        pid = await stage.run("c1", ["sh", "-c", "sleep 100 & exec sleep 100"], host_pids=True)
        await stage.call("Pause", PAUSE)
        children = [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        pidfds = [os.pidfd_open(child) for child in children]
        await stage.kill("c1")
        assert (await stage.wait("c1")).exit_status == 137
        for pidfd in pidfds:
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(pidfd, ended.set)
            async with asyncio.timeout(20):
                await ended.wait()
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        for child in children:
            os.waitpid(child, 0)  # noqa: ASYNC222 - it has ended
        await stage.delete("c1")
        assert stage.told("c1")[-3:] == ["Paused", "Exited", "Deleted"]

    perform(scenario)


def test_an_init_that_ends_while_it_is_being_paused_is_never_told_as_paused(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        pid = await stage.run("c1", ["sleep", "100"])

        async def die() -> None:
            stage.group.container("c1")._exits.cgroup.thaw()
            died = stage.death_of_init("c1")
            os.kill(pid, 9)
            await died.wait()

        stage.spawner.after["pause"] = die
        assert await stage.refusal("Pause", PAUSE) == (2, "cannot pause a stopped container")
        assert (await stage.wait("c1")).exit_status == 137
        assert stage.told("c1") == ["Created", "Started", "Exited"]
        await stage.delete("c1")

    perform(scenario)


def test_a_change_of_a_former_worker_is_answered_as_done(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        for _ in range(2):
            await stage.call("Pause", PAUSE, replayed=True)
        for _ in range(2):
            await stage.call("Resume", RESUME, replayed=True)
        assert stage.told("c1") == ["Created", "Started", "Paused", "Resumed"]

    perform(scenario)


def test_a_thaw_that_fails_is_no_failure_of_the_kill(
    perform: Perform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        await stage.call("Pause", PAUSE)

        def fail(cgroup: Cgroup) -> None:
            raise Error("thaw: no")

        with monkeypatch.context() as patched:
            patched.setattr("dunnage.container.cgroup.thaw", fail)
            await stage.kill("c1")
            if not is_unified():
                assert "what is left in container default/c1 may stay frozen: thaw: no" in caplog.text
        stage.group.container("c1")._exits.cgroup.thaw()
        assert (await stage.wait("c1")).exit_status == 137

    perform(scenario)


def test_what_a_kill_of_all_has_thawed_is_resumed(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        pid = await stage.run("c1", ["sleep", "100"])
        await stage.call("Pause", PAUSE)
        await stage.call("Kill", task_pb2.KillRequest(id="c1", signal=18, all=True))
        await stage.call("Resume", RESUME)
        assert freezer_state(pid) == "THAWED"
        assert (await stage.state("c1")).status == task_types_pb2.RUNNING
        assert stage.told("c1")[-2:] == ["Paused", "Resumed"]
        assert (await stage.refusal("Resume", RESUME))[1] == "cannot resume a running process"

    perform(scenario)
