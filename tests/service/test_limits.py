"""Update, Stats, and what the kernel kills for want of memory (shim v2, §3.8, §4.4, §5.3)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.service.conftest import Scenario
from tests.service.stage import Stage

from dunnage.api import anys, metrics_v1_pb2, metrics_v2_pb2, task_pb2, task_types_pb2
from dunnage.cgroups import is_unified

pytestmark = [pytest.mark.real, pytest.mark.parametrize("oci_runtime", ["runc", "crun"])]
Perform = Callable[[Scenario], None]

MIB = 1 << 20
EAT = ["sh", "-c", "exec tail /dev/zero"]  # it keeps the one line that never ends in memory
STATS = task_pb2.StatsRequest(id="c1")


def update(resources: object) -> task_pb2.UpdateTaskRequest:
    request = task_pb2.UpdateTaskRequest(id="c1")
    request.resources.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    request.resources.value = json.dumps(resources).encode()
    return request


def memory_limit(pid: int) -> int:
    lines = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    if "memory" in lines:
        return int(Path(f"/sys/fs/cgroup/memory{lines['memory']}/memory.limit_in_bytes").read_text())
    return int(Path(f"/sys/fs/cgroup{lines['']}/memory.max").read_text())


def limited(stage: Stage, container: str, args: list[str], limit: int, **settings: object) -> Path:
    """A bundle whose container may have ``limit`` bytes, and no swap."""
    path = stage.bundle(container, args, **settings)
    spec = json.loads((path / "config.json").read_text())
    spec["linux"]["resources"]["memory"] = {"limit": limit, "swap": limit}
    stage.write_spec(path, spec)
    return path


async def create_limited(stage: Stage, args: list[str], limit: int = 16 * MIB, **settings: object) -> int:
    request = task_pb2.CreateTaskRequest(id="c1", bundle=str(limited(stage, "c1", args, limit, **settings)))
    return int((await stage.call("Create", request)).pid)


def test_limits_are_changed_while_it_runs_and_when_it_is_created(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        pid = await stage.create("c1", ["sleep", "100"])
        for limit in (64 * MIB, 32 * MIB):
            await stage.call("Update", update({"memory": {"limit": limit, "swap": limit}}))
            assert memory_limit(pid) == limit
            if limit == 64 * MIB:
                await stage.start("c1")
        assert stage.told("c1") == ["Created", "Started"]

    perform(scenario)


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"7", b"\xff"])
def test_resources_that_are_none_are_an_invalid_argument(perform: Perform, value: bytes) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        request = task_pb2.UpdateTaskRequest(id="c1")
        request.resources.value = value
        code, text = await stage.refusal("Update", request)
        assert code == 3
        assert text.startswith("the resources of an update are not")
        assert (await stage.state("c1")).status == task_types_pb2.RUNNING

    perform(scenario)


def test_an_update_that_the_runtime_refuses_says_why(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        code, text = await stage.refusal("Update", update({"cpu": {"cpus": "4000"}}))
        assert code == 2
        assert text.startswith(f"{stage.command} did not terminate successfully: exit status 1: ")
        await stage.kill("c1")
        await stage.wait("c1")
        assert await stage.refusal("Update", update({})) == (2, "cannot update a stopped container")

    perform(scenario)


def test_stats_are_there_from_create_to_delete(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await create_limited(stage, ["sh", "-c", "while :; do :; done"])
        kind = metrics_v2_pb2.Metrics if is_unified() else metrics_v1_pb2.Metrics

        async def stats() -> metrics_v1_pb2.Metrics:
            found = (await stage.call("Stats", STATS)).stats
            assert found.type_url == kind.DESCRIPTOR.full_name
            return anys.unpack(found, [kind])  # type: ignore[return-value]  # both have what is asked for here

        assert (await stats()).pids.current >= 1  # runc's init has threads
        await stage.start("c1")
        running = await stats()
        assert 0 < running.memory.usage.usage <= 16 * MIB == running.memory.usage.limit
        async with asyncio.timeout(20):
            while (await stats()).cpu.usage.total < running.cpu.usage.total + 10_000_000:
                pass  # the kernel counts 10 ms more soon
        await stage.kill("c1")
        await stage.wait("c1")
        assert (await stats()).pids.current == 0
        await stage.delete("c1")
        assert await stage.refusal("Stats", STATS) == (5, "container not created: not found")

    perform(scenario)


def test_a_container_without_a_cgroup_has_no_stats(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        async def kill_init() -> None:
            pid = int((stage.directory / "c1/init.pid").read_text())
            os.kill(pid, 9)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it is dead

        stage.spawner.after["create"] = kill_init
        await stage.create("c1", ["true"])
        await stage.wait("c1")
        assert await stage.refusal("Stats", STATS) == (5, "cgroup does not exist: not found")

    perform(scenario)


def test_an_init_that_eats_too_much_is_told_before_its_end(perform: Perform) -> None:
    """It does so at once, and its end is seen before the runtime's start returns as well as after it."""

    async def scenario(stage: Stage) -> None:
        for round_ in range(4):
            await create_limited(stage, EAT)
            died = stage.death_of_init("c1")
            if round_ % 2:

                async def wait_for_the_end(died: asyncio.Event = died) -> None:
                    await died.wait()

                stage.spawner.after["start"] = wait_for_the_end
            await stage.start("c1")
            assert (await stage.wait("c1")).exit_status == 137
            await stage.delete("c1")
            assert stage.told("c1") == ["Created", "Started", "OutOfMemory", "Exited", "Deleted"]
            stage.facts.clear()
            stage.spawner.after.clear()
            for file in (stage.directory / "c1").iterdir():
                file.unlink()
            (stage.directory / "c1").rmdir()

    perform(scenario)


def test_an_exec_that_eats_too_much_is_told_before_its_end(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await create_limited(stage, ["sleep", "100"])
        await stage.start("c1")
        await stage.exec("c1", "e1", EAT)
        await stage.start("c1", "e1")
        assert (await stage.wait("c1", "e1")).exit_status == 137
        await stage.wait_told("c1", "Exited e1")
        assert stage.told("c1") == ["Created", "Started", "ExecAdded e1", "ExecStarted e1", "OutOfMemory", "Exited e1"]
        assert (await stage.state("c1")).status == task_types_pb2.RUNNING

    perform(scenario)


def test_a_kill_of_somebody_else_in_it_is_told_while_it_runs(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await create_limited(stage, ["sh", "-c", "tail /dev/zero; exec sleep 100"])
        await stage.start("c1")
        await stage.wait_told("c1", "OutOfMemory")
        assert stage.told("c1") == ["Created", "Started", "OutOfMemory"]

    perform(scenario)


def test_what_was_told_of_kills_is_in_the_record(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await create_limited(stage, ["sh", "-c", "tail /dev/zero; exec sleep 100"])
        record = stage.directory / "c1/dunnage.json"
        assert json.loads(record.read_text())["cgroup"]["told"] == 0
        await stage.start("c1")
        await stage.wait_told("c1", "OutOfMemory")
        assert json.loads(record.read_text())["cgroup"]["told"] == 1

    perform(scenario)
