"""Execs that are refused or cannot start (shim v2, §4.1)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.service.conftest import Scenario
from tests.service.stage import Stage

from dunnage.api import task_pb2, task_types_pb2
from dunnage.ttrpc.errors import RpcError

pytestmark = pytest.mark.real
Perform = Callable[[Scenario], None]

ZERO_S = -62135596800


def test_of_many_execs_with_one_id_one_is_added(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        answers = await asyncio.gather(*(stage.exec("c1", "e1", ["true"]) for _ in range(5)), return_exceptions=True)
        refused = [answer for answer in answers if answer is not None]
        assert [str(error) for error in refused] == ["id e1: already exists"] * 4
        assert [error.code for error in refused if isinstance(error, RpcError)] == [6] * 4
        assert stage.told("c1").count("ExecAdded e1") == 1

    perform(scenario)


def test_a_refused_exec_frees_its_id(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        request = task_pb2.ExecProcessRequest(id="c1", exec_id="e1")
        request.spec.value = b"{"
        assert (await stage.refusal("Exec", request))[0] == 3
        await stage.exec("c1", "e1", ["true"])
        await stage.start("c1", "e1")
        assert (await stage.wait("c1", "e1")).exit_status == 0

    perform(scenario)


@pytest.mark.parametrize(
    ("stdio", "code", "text"),
    [
        ({"stdout": "pipe://x"}, 2, "unknown STDIO scheme pipe"),
        ({"stdout": "out"}, 3, "stdout path out is not absolute: invalid argument"),
        ({"stdin": "/a\0b"}, 3, r"stdin path '/a\x00b' contains a zero byte: invalid argument"),
        ({"stdout": "binary://"}, 3, "binary:// names no path: invalid argument"),
        ({"terminal": True}, 2, "stat : no such file or directory"),
    ],
)
def test_an_exec_is_asked_for_its_stdio_when_it_starts(
    perform: Perform, stdio: dict[str, Any], code: int, text: str
) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["true"], **stdio)
        refused = await stage.refusal("Start", task_pb2.StartRequest(id="c1", exec_id="e1"))
        failure = "start console copy" if "terminal" in stdio else "create init process I/O"
        assert refused == (code, f"failed to {failure}: {text}")
        assert (await stage.wait("c1", "e1")).exited_at.seconds == ZERO_S
        await stage.delete("c1", "e1")
        assert stage.told("c1") == ["Created", "Started", "ExecAdded e1"]

    perform(scenario)


def test_the_spec_of_an_exec_is_kept_until_it_has_started(perform: Perform) -> None:
    """Every save of a container writes all of its execs."""

    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["sleep", "100"])

        def saved() -> Any:
            return json.loads((stage.directory / "c1/dunnage.json").read_text())["execs"]["e1"]["spec"]

        assert saved()["args"] == ["sleep", "100"]
        await stage.start("c1", "e1")
        assert saved() == {}

    perform(scenario)


def test_an_exec_that_cannot_start_stays_and_nobody_waits_for_it(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["nope"])
        waiting = asyncio.create_task(stage.wait("c1", "e1"))
        with pytest.raises(RpcError, match=r"^OCI runtime exec failed: ") as told:
            await stage.start("c1", "e1")
        assert told.value.code == 2
        ended = await waiting
        assert (ended.exit_status, ended.exited_at.seconds) == (0, ZERO_S)
        assert (await stage.wait("c1", "e1")).exited_at.seconds == ZERO_S
        state = await stage.state("c1", "e1")
        assert (state.status, state.pid, state.exited_at.seconds) == (task_types_pb2.CREATED, 0, ZERO_S)
        deleted = await stage.delete("c1", "e1")
        assert (deleted.pid, deleted.exit_status, deleted.exited_at.seconds) == (0, 0, ZERO_S)
        assert stage.told("c1") == ["Created", "Started", "ExecAdded e1"]
        assert {name for name in stage.host.keep.names if "e1" in name} == set()

    perform(scenario)


def test_an_exec_started_again_after_a_failure_is_waited_for_again(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        stdout = stage.directory / "out"
        await stage.exec("c1", "e1", ["sleep", "100"], stdout=str(stdout), stderr=str(stdout))
        with pytest.raises(RpcError):
            await stage.start("c1", "e1")
        assert (await stage.wait("c1", "e1")).exit_status == 0
        stdout.touch()
        await stage.start("c1", "e1")
        waiting = asyncio.create_task(stage.wait("c1", "e1"))
        await asyncio.sleep(0)
        await stage.state("c1", "e1")
        assert not waiting.done()
        await stage.kill("c1", "e1")
        assert (await waiting).exit_status == 137

    perform(scenario)


def test_an_exec_of_a_dead_init_is_refused(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        await stage.exec("c1", "e1", ["true"])
        await stage.kill("c1")
        await stage.wait("c1")
        told = await stage.refusal("Start", task_pb2.StartRequest(id="c1", exec_id="e1"))
        assert told == (9, "container c1 init process is not running: failed precondition")
        assert (await stage.wait("c1", "e1")).exited_at.seconds == ZERO_S
        request = task_pb2.ExecProcessRequest(id="c1", exec_id="e2")
        request.spec.value = b"{}"
        assert await stage.refusal("Exec", request) == (2, "cannot exec in a stopped state")

    perform(scenario)


def test_a_process_starts_once(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "100"])
        assert await stage.refusal("Start", task_pb2.StartRequest(id="c1")) == (2, "cannot start a running process")
        await stage.exec("c1", "e1", ["sleep", "100"])
        answers = await asyncio.gather(stage.start("c1", "e1"), stage.start("c1", "e1"), return_exceptions=True)
        assert [str(answer) for answer in answers if isinstance(answer, RpcError)] == ["cannot start a running process"]
        assert stage.told("c1").count("ExecStarted e1") == 1

    perform(scenario)
