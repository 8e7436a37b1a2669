"""A failure's whole story is in the bundle before its client is told the first sentence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.service.conftest import Scenario
from tests.service.stage import Stage

from dunnage.api import mount_pb2, options_pb2, task_pb2
from dunnage.api.anys import pack_bare
from dunnage.ttrpc.errors import RpcError

pytestmark = pytest.mark.real
Perform = Callable[[Scenario], None]


def stories(stage: Stage, container: str) -> list[dict[str, Any]]:
    path = stage.directory / container / "dunnage-failures.json"
    return list(json.loads(path.read_text())) if path.exists() else []


@pytest.mark.parametrize("oci_runtime", ["runc", "crun"])
def test_a_failed_create_leaves_its_story_in_the_bundle(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        with pytest.raises(RpcError) as told:
            await stage.create("c1", ["nope"])
        (story,) = stories(stage, "c1")
        assert story["error"] == told.value.message
        assert (story["call"], story["step"], story["exit_status"]) == ("create", "runtime create", 1)
        assert story["hint"].startswith("nope is ")
        assert story["command"][1:4:2] == ["--root", "--log"]
        assert story["command"][-1] == "c1"
        assert story["records"][-1]["level"] == "error"
        assert story["records"][-1]["msg"] in told.value.message

    perform(scenario)


def test_a_mount_that_fails_has_its_story_too(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        with pytest.raises(RpcError):
            await stage.create("c1", ["true"], rootfs=[mount_pb2.Mount(type="bind", source="/nowhere")])
        (story,) = stories(stage, "c1")
        assert (story["step"], story["command"]) == ("mounting the rootfs", [])

    perform(scenario)


def test_a_container_keeps_the_failures_of_its_life_and_refusals_are_none(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "1000"])
        await stage.exec("c1", "e1", ["nope"])
        code, said = await stage.refusal("Start", task_pb2.StartRequest(id="c1", exec_id="e1"))
        assert code == 2
        assert said.startswith("OCI runtime exec failed: ")
        await stage.refusal("Delete", task_pb2.DeleteRequest(id="c1"))
        await stage.refusal("Start", task_pb2.StartRequest(id="c1"))
        (story,) = stories(stage, "c1")
        assert (story["call"], story["exec_id"], story["step"]) == ("start", "e1", "runtime exec")
        assert story["error"] == said
        await stage.kill("c1")
        await stage.wait("c1")
        await stage.refusal("Kill", task_pb2.KillRequest(id="c1", signal=9))
        assert len(stories(stage, "c1")) == 1
        await stage.delete("c1")
        assert not (stage.directory / "c1" / "dunnage-failures.json").exists()

    perform(scenario)


def test_two_starts_that_fail_at_once_tell_their_own_errors(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.run("c1", ["sleep", "1000"])
        ids = [f"e{number}" for number in range(6)]
        for exec_id in ids:
            await stage.exec("c1", exec_id, [f"no-{exec_id}"])
        starts = [stage.refusal("Start", task_pb2.StartRequest(id="c1", exec_id=exec_id)) for exec_id in ids]
        for exec_id, (_, said) in zip(ids, await asyncio.gather(*starts), strict=True):
            assert f'"no-{exec_id}"' in said
        assert sorted(story["exec_id"] for story in stories(stage, "c1")) == ids
        for story in stories(stage, "c1"):
            assert [f'"no-{story["exec_id"]}"' in record["msg"] for record in story["records"]] == [True]
        log = (stage.directory / "c1" / "log.json").read_text()
        assert [log.count(f'no-{exec_id}\\"') for exec_id in ids] == [1] * len(ids)

    perform(scenario)


def test_options_that_are_none_are_refused_before_anything_is_made(perform: Perform) -> None:
    async def scenario(stage: Stage) -> None:
        bundle = str(stage.bundle("c1", ["true"]))
        for options, said in (
            (options_pb2.CheckpointOptions(exit=True), "type 'containerd.runc.v1.CheckpointOptions' where"),
            (options_pb2.Options(root="\0"), "the runtime options: root has a NUL in it"),
        ):
            request = task_pb2.CreateTaskRequest(id="c1", bundle=bundle, options=pack_bare(options))
            code, message = await stage.refusal("Create", request)
            assert code == 3
            assert message.startswith(said)
        assert stage.group.is_empty

    perform(scenario)
