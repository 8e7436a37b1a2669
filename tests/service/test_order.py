"""What is told comes in order, whenever a process ends (shim v2, §4.2)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NoReturn

import pytest
from tests.service.conftest import Scenario
from tests.service.stage import Stage

from dunnage.api import task_types_pb2

pytestmark = pytest.mark.real
Perform = Callable[[Scenario], None]


def test_an_exit_before_start_has_returned_is_told_after_the_start(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.create("c1", ["true"])
        died = stage.death_of_init("c1")

        async def wait_for_the_end() -> None:
            await died.wait()

        stage.spawner.after["start"] = wait_for_the_end
        pid = await stage.start("c1")
        await stage.wait("c1")
        assert pid
        assert stage.told("c1") == ["Created", "Started", "Exited"]
        assert (await stage.state("c1")).status == task_types_pb2.STOPPED

    perform(scenario)


def test_an_init_that_dies_during_create_is_told_after_it(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        async def kill_init() -> None:
            os.kill(int((stage.directory / "c1/init.pid").read_text()), 9)

        stage.spawner.after["create"] = kill_init
        await stage.create("c1", ["true"])
        assert (await stage.wait("c1")).exit_status == 137
        assert stage.told("c1") == ["Created", "Exited"]
        await stage.delete("c1")
        assert stage.told("c1") == ["Created", "Exited", "Deleted"]

    perform(scenario)


def test_an_exec_that_starts_while_the_init_dies_is_told_before_it(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        # in a pid namespace of its own it could not end before the exec, which nobody reaps while it starts
        init_pid = await stage.run("c1", ["sleep", "100"], host_pids=True)
        await stage.exec("c1", "e1", ["sleep", "100"])
        died = stage.death_of_init("c1")

        async def kill_init() -> None:
            os.kill(init_pid, 9)
            await died.wait()

        stage.spawner.after["exec"] = kill_init
        await stage.start("c1", "e1")
        await stage.wait("c1")
        assert stage.told("c1") == ["Created", "Started", "ExecAdded e1", "ExecStarted e1", "Exited e1", "Exited"]

    perform(scenario)


def test_what_an_init_in_the_host_s_pid_namespace_leaves_is_killed_before_its_exit_is_told(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"], host_pids=True)
        await stage.exec("c1", "e1", ["sleep", "100"])
        await stage.start("c1", "e1")
        await stage.kill("c1")
        await stage.wait("c1")
        assert (await stage.wait("c1", "e1")).exit_status == 137
        assert stage.told("c1")[-2:] == ["Exited e1", "Exited"]
        killed = [name for name in stage.spawner.names if name.endswith(":kill")]
        assert len(killed) == 2, "the client's, and the one for the rest"

    perform(scenario)


def test_an_exit_is_told_when_there_is_no_descriptor_to_kill_the_rest_with(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(stage: Stage) -> None:
        pid = await stage.run("c1", ["sleep", "100"], host_pids=True)

        def fail(name: str) -> NoReturn:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patched:
            patched.setattr("dunnage.runtime.client._memfd", fail)
            os.kill(pid, 9)
            assert (await stage.wait("c1")).exit_status == 137
        assert stage.told("c1") == ["Created", "Started", "Exited"]

    perform(scenario)


def test_an_init_with_a_pid_namespace_of_its_own_needs_no_further_kill(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["true"])
        await stage.wait("c1")
        assert not [name for name in stage.spawner.names if name.endswith(":kill")]

    perform(scenario)
