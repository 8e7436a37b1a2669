"""A request that a former worker took and did not answer is served again: what it asked for is done once."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.service.stage import Stage

from dunnage.api import task_pb2
from dunnage.container.bundle import Bundle
from dunnage.container.facts import IO, Ended, Options
from dunnage.ttrpc.errors import RpcError

pytestmark = pytest.mark.real

Perform = Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]


def test_what_was_done_is_answered_and_not_done_again(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        pid = await stage.create("c1", ["sleep", "100"])
        create = task_pb2.CreateTaskRequest(id="c1", bundle=str(stage.directory / "c1"))
        assert (await stage.call("Create", create, replayed=True)).pid == pid
        start = task_pb2.StartRequest(id="c1")
        for _ in range(2):
            assert (await stage.call("Start", start, replayed=True)).pid == pid
        add = task_pb2.ExecProcessRequest(id="c1", exec_id="e1")
        add.spec.value = b'{"args": ["true"], "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}}'
        for _ in range(2):
            await stage.call("Exec", add, replayed=True)
        start_exec = task_pb2.StartRequest(id="c1", exec_id="e1")
        exec_pid = (await stage.call("Start", start_exec, replayed=True)).pid
        await stage.wait("c1", "e1")
        assert (await stage.call("Start", start_exec, replayed=True)).pid == exec_pid
        delete = task_pb2.DeleteRequest(id="c1", exec_id="e1")
        deleted = [await stage.call("Delete", delete, replayed=True) for _ in range(2)]
        assert deleted[0] == deleted[1]
        assert deleted[0].pid == exec_pid
        await stage.kill("c1")
        await stage.wait("c1")
        await stage.call("Kill", task_pb2.KillRequest(id="c1", signal=signal.SIGTERM), replayed=True)
        assert stage.told("c1") == ["Created", "Started", "ExecAdded e1", "ExecStarted e1", "Exited e1", "Exited"]

    perform(scenario)


def test_the_same_request_of_a_client_is_refused(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        create = task_pb2.CreateTaskRequest(id="c1", bundle=str(stage.directory / "c1"))
        assert (await stage.refusal("Create", create))[0] == 6
        assert (await stage.refusal("Start", task_pb2.StartRequest(id="c1")))[1] == "cannot start a running process"
        await stage.exec("c1", "e1", ["true"])
        await stage.start("c1", "e1")
        await stage.wait("c1", "e1")
        await stage.delete("c1", "e1")
        assert (await stage.refusal("Delete", task_pb2.DeleteRequest(id="c1", exec_id="e1")))[0] == 5
        stage.recalled["gone"] = Ended(1, 2, 3)
        assert (await stage.refusal("Delete", task_pb2.DeleteRequest(id="gone")))[0] == 5
        assert (await stage.call("Delete", task_pb2.DeleteRequest(id="gone"), replayed=True)).exit_status == 2

    perform(scenario)


def test_a_start_that_failed_has_not_begun_for_the_next_worker(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.create("c1", ["sleep", "100"])
        record = stage.directory / "c1/dunnage.json"
        began: list[str] = []

        async def fail() -> None:
            began.append(json.loads(record.read_text())["init"]["began"])
            raise TimeoutError

        stage.spawner.before["start"] = fail
        with pytest.raises(RpcError, match="did not end within"):
            await stage.start("c1")
        assert began == ["start"]
        assert json.loads(record.read_text())["init"]["began"] is None
        await stage.kill("c1")
        await stage.wait("c1")

    perform(scenario)


def inherits(stage: Stage, monkeypatch: pytest.MonkeyPatch, verb: str, status: int | None) -> asyncio.Event:
    """A former worker's call of the runtime for c1, which ends with ``status`` when the event is set."""
    over = asyncio.Event()

    async def wait_inherited(call: str) -> int | None:
        if call != f"runtime:default/c1:{verb}":
            return None
        await over.wait()
        return status

    monkeypatch.setattr(stage.host, "wait_inherited", wait_inherited)
    return over


@pytest.mark.parametrize("status", [0, 1, None])
def test_a_delete_that_a_former_worker_began_is_not_begun_beside_it(
    perform: Perform, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["true"])
        await stage.wait("c1")
        if status == 0:
            await stage.group.container("c1")._runtime.delete("c1")
        over = inherits(stage, monkeypatch, "delete", status)
        deletes: list[bool] = []

        async def note() -> None:
            deletes.append(over.is_set())

        stage.spawner.before["delete"] = note
        deleting = asyncio.create_task(stage.call("Delete", task_pb2.DeleteRequest(id="c1"), replayed=True))
        asyncio.get_running_loop().call_later(0.1, over.set)
        assert (await deleting).exit_status == 0
        assert deletes == ([] if status == 0 else [True])
        assert stage.told("c1") == ["Created", "Started", "Exited", "Deleted"]

    perform(scenario)


def test_a_delete_by_a_launcher_waits_for_a_former_worker_s(perform: Perform, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        over = inherits(stage, monkeypatch, "delete", 0)
        deletes: list[bool] = []

        async def note() -> None:
            deletes.append(over.is_set())

        stage.spawner.before["delete"] = note
        asyncio.get_running_loop().call_later(0.1, over.set)
        assert (await stage.group.container("c1").destroy()).status == 137
        assert deletes == [True], "who it was for is not known: it may have been one before this container"

    perform(scenario)


def test_a_kill_does_not_wait_for_a_former_worker_s_checkpoint(
    perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        over = inherits(stage, monkeypatch, "checkpoint", 0)
        request = task_pb2.CheckpointTaskRequest(id="c1", path=str(stage.directory / "image"))
        checkpointing = asyncio.create_task(stage.call("Checkpoint", request, replayed=True))
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(20):
                await stage.kill("c1")
                await stage.wait("c1")
            assert not checkpointing.done()
        finally:
            over.set()
        await checkpointing
        assert (await stage.delete("c1")).exit_status == 137

    perform(scenario)


def test_a_checkpoint_that_was_begun_after_one_at_the_same_place_is_not_taken_for_it(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        request = task_pb2.CheckpointTaskRequest(id="c1", path=str(stage.directory / "image"))
        stage.group.container("c1").init.checkpointed = request.path
        await stage.call("Checkpoint", request, replayed=True)
        records: list[Any] = []

        async def fail() -> None:
            records.append(json.loads((stage.directory / "c1/dunnage.json").read_text())["init"])
            raise TimeoutError

        stage.spawner.before["checkpoint"] = fail
        with pytest.raises(RpcError, match="did not end within"):
            await stage.call("Checkpoint", request)
        assert (records[0]["began"], records[0]["checkpointed"]) == ("checkpoint", "")

    perform(scenario)


def test_nobody_waits_for_the_end_of_an_exec_that_failed_to_start_under_a_former_worker(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        record = stage.directory / "c1/dunnage.json"
        await stage.exec("c1", "e1", ["no-such-program"])
        assert not json.loads(record.read_text())["execs"]["e1"]["over"]
        with pytest.raises(RpcError, match="OCI runtime exec failed"):
            await stage.start("c1", "e1")
        assert json.loads(record.read_text())["execs"]["e1"]["over"]
        await stage.exec("c1", "e2", ["true"])
        await stage.kill("c1")
        await stage.wait("c1")
        with pytest.raises(RpcError, match="init process is not running"):
            await stage.start("c1", "e2")
        assert json.loads(record.read_text())["execs"]["e2"]["over"]

    perform(scenario)


def test_a_next_worker_waits_for_all_starts_of_execs_at_once(perform: Perform, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        for name in ("e1", "e2"):
            await stage.exec("c1", name, ["true"])
        waiting = asyncio.Barrier(2)

        async def wait_inherited(call: str) -> int | None:
            if call.endswith(":exec"):
                await waiting.wait()
            return None

        monkeypatch.setattr(stage.host, "wait_inherited", wait_inherited)
        bundle = Bundle.open(str(stage.directory / "c1"))
        record = bundle.read_record()
        assert record is not None
        taken_up = stage.container("c1", bundle, io=IO(), rootfs=(), options=Options())
        async with asyncio.timeout(20):
            await taken_up.restore(record, {})
        assert list(taken_up.execs) == ["e1", "e2"]
        taken_up.close()

    perform(scenario)
