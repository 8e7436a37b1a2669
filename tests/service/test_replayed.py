"""A request that a former worker took and did not answer is served again: what it asked for is done once."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.service.stage import Stage

from dunnage.api import task_pb2
from dunnage.container.facts import Ended
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
