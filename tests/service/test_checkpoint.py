"""Checkpoint and restore by a criu of today (shim v2, §5.3)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import newer
from tests.service.conftest import Scenario
from tests.service.stage import Stage

from dunnage.api import anys, options_pb2, task_pb2, task_types_pb2

pytestmark = pytest.mark.real
Perform = Callable[[Scenario], None]

COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"


@pytest.fixture(autouse=True)
def criu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime finds it in the PATH, which the stage hands on."""
    monkeypatch.setenv("PATH", f"{newer.directory('criu')}:{os.environ['PATH']}")


def read_count(log: Path) -> int:
    """The last number that was written whole."""
    lines = log.read_text().split("\n")[:-1]
    return int(lines[-1]) if lines else 0


async def wait_counted(log: Path, at_least: int) -> int:
    async with asyncio.timeout(30):
        while (count := read_count(log)) < at_least:  # noqa: ASYNC110 - the kernel has no event for a file that grows
            await asyncio.sleep(0.01)
    return count


def checkpoint(path: Path, **options: object) -> task_pb2.CheckpointTaskRequest:
    request = task_pb2.CheckpointTaskRequest(id="c1", path=str(path))
    if options:
        request.options.CopyFrom(anys.pack_bare(options_pb2.CheckpointOptions(**options)))  # type: ignore[arg-type]
    return request


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.touch()
    return path


async def count(stage: Stage, log: Path) -> int:
    pid = await stage.run("c1", ["sh", "-c", COUNT], stdout=str(log), stderr=str(log))
    await wait_counted(log, 3)
    return pid


async def create_restored(stage: Stage, container: str, image: Path, log: Path, **settings: object) -> int:
    request = task_pb2.CreateTaskRequest(id=container, checkpoint=str(image), stdout=str(log), stderr=str(log))
    request.bundle = str(stage.bundle(container, ["sh", "-c", COUNT], **settings))
    return int((await stage.call("Create", request)).pid)


def test_a_counter_goes_on_in_a_new_container(perform: Perform, tmp_path: Path, log: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await count(stage, log)
        image = tmp_path / "image"
        await stage.call("Checkpoint", checkpoint(image, exit=True))
        assert (await stage.wait("c1")).exit_status == 137
        assert (image / "inventory.img").is_file()
        assert not (stage.directory / "c1" / "work" / "criu-work").exists()
        await stage.delete("c1")
        assert stage.told("c1") == ["Created", "Started", "Exited", "Deleted"]
        reached = read_count(log)
        again = tmp_path / "again"
        again.touch()

        assert await create_restored(stage, "c2", image, again) == 0
        assert (await stage.state("c2")).status == task_types_pb2.CREATED
        assert await stage.refusal("Pause", task_pb2.PauseRequest(id="c2")) == (2, "cannot pause task in created state")
        add = task_pb2.ExecProcessRequest(id="c2", exec_id="e1")
        add.spec.value = b"{}"
        assert await stage.refusal("Exec", add) == (2, "cannot exec in a created state")
        pid = await stage.start("c2")
        assert pid == int((stage.directory / "c2/init.pid").read_text())
        await wait_counted(again, reached + 3)
        first = int(again.read_text().split("\n")[0])
        assert reached <= first <= reached + 1, "it has begun anew, or lost some"
        assert (await stage.call("Stats", task_pb2.StatsRequest(id="c2"))).stats.value
        await stage.exec("c2", "e1", ["true"])
        await stage.start("c2", "e1")
        assert (await stage.wait("c2", "e1")).exit_status == 0
        await stage.kill("c2")
        assert (await stage.wait("c2")).exit_status == 137
        await stage.delete("c2")
        assert stage.told("c2") == [
            *("Created", "Started", "ExecAdded e1", "ExecStarted e1", "Exited e1", "Exited", "Deleted")
        ]

    perform(scenario)


def test_a_container_that_is_left_running_counts_on(perform: Perform, tmp_path: Path, log: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await count(stage, log)
        work = tmp_path / "criu"
        await stage.call("Checkpoint", checkpoint(tmp_path / "image", work_path=str(work)))
        assert (work / "dump.log").is_file(), "what the client has named stays"
        await wait_counted(log, read_count(log) + 3)
        assert (await stage.state("c1")).status == task_types_pb2.RUNNING
        assert stage.told("c1") == ["Created", "Started"]

    perform(scenario)


def test_a_paused_container_stays_paused(perform: Perform, tmp_path: Path, log: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await count(stage, log)
        await stage.call("Pause", task_pb2.PauseRequest(id="c1"))
        await stage.call("Checkpoint", checkpoint(tmp_path / "image"))
        assert (await stage.state("c1")).status == task_types_pb2.PAUSED
        await stage.call("Resume", task_pb2.ResumeRequest(id="c1"))
        await wait_counted(log, read_count(log) + 3)

    perform(scenario)


def test_a_checkpoint_that_fails_leaves_criu_s_log(perform: Perform, tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        # an empty namespace of a kind that criu cannot leave out
        code, text = await stage.refusal("Checkpoint", checkpoint(tmp_path / "image", file_locks=True, terminal=True,
                                                                 empty_namespaces=["nonsense"]))  # fmt: skip
        assert code == 2
        assert text.startswith("runc did not terminate successfully: exit status 1: ")
        assert text.endswith(f" path= {stage.directory}/c1/criu-dump.log")
        assert "\n" not in text
        assert (await stage.state("c1")).status == task_types_pb2.RUNNING

    perform(scenario)


def test_criu_s_own_failure_is_in_the_bundle(perform: Perform, tmp_path: Path, log: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await count(stage, log)
        image = tmp_path / "image"
        image.mkdir()
        (image / "inventory.img").mkdir()  # in the way
        code, text = await stage.refusal("Checkpoint", checkpoint(image))
        assert code == 2
        kept = stage.directory / "c1/criu-dump.log"
        assert text.endswith(f" path= {kept}")
        assert "inventory.img" in kept.read_text()
        assert not (stage.directory / "c1" / "work" / "criu-work").exists()
        await wait_counted(log, read_count(log) + 3)

    perform(scenario)


def test_a_kill_does_not_wait_for_a_checkpoint(perform: Perform, tmp_path: Path, log: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await count(stage, log)

        async def kill() -> None:
            await stage.kill("c1")
            await stage.wait("c1")

        stage.spawner.before["checkpoint"] = kill
        async with asyncio.timeout(20):
            code, _ = await stage.refusal("Checkpoint", checkpoint(tmp_path / "image"))
        assert code == 2
        assert stage.told("c1") == ["Created", "Started", "Exited"]

    perform(scenario)


def test_a_restore_that_fails_can_be_tried_again(perform: Perform, tmp_path: Path, log: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await count(stage, log)
        image = tmp_path / "image"
        await stage.call("Checkpoint", checkpoint(image, exit=True))
        await stage.wait("c1")
        await stage.delete("c1")
        hidden = image.rename(tmp_path / "hidden")
        await create_restored(stage, "c2", image, log)
        code, text = await stage.refusal("Start", task_pb2.StartRequest(id="c2"))
        assert code == 2
        assert text.startswith("OCI runtime restore failed: ")
        assert (await stage.state("c2")).status == task_types_pb2.CREATED
        hidden.rename(image)
        await stage.start("c2")
        await wait_counted(log, read_count(log) + 3)
        assert stage.told("c2") == ["Created", "Started"]

    perform(scenario)


def test_a_container_that_is_never_restored_is_deleted(perform: Perform, tmp_path: Path, log: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await create_restored(stage, "c2", tmp_path / "none", log)
        deleted = await stage.delete("c2")
        assert (deleted.pid, deleted.exit_status) == (0, 0)
        assert stage.told("c2") == ["Created", "Deleted"]

    perform(scenario)


def test_a_checkpoint_that_a_former_worker_took_is_not_taken_again(perform: Perform, tmp_path: Path, log: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await count(stage, log)
        request = checkpoint(tmp_path / "image", exit=True)
        await stage.call("Checkpoint", request)
        assert json.loads((stage.directory / "c1/dunnage.json").read_text())["init"]["checkpointed"] == request.path
        await stage.wait("c1")
        await stage.call("Checkpoint", request, replayed=True)
        assert await stage.refusal("Checkpoint", request) == (2, "cannot checkpoint a stopped container")

    perform(scenario)


@pytest.mark.parametrize("type_url", ["containerd.runc.v1.Options", "no.such.Type"])
def test_options_of_another_type_are_an_invalid_argument(perform: Perform, tmp_path: Path, type_url: str) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        request = checkpoint(tmp_path / "image")
        request.options.type_url = type_url
        assert (await stage.refusal("Checkpoint", request))[0] == 3
        assert (await stage.refusal("Checkpoint", task_pb2.CheckpointTaskRequest(id="c1", path="image")))[0] == 3
        assert not (tmp_path / "image").exists()

    perform(scenario)
