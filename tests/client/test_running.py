"""What a client says of a container that runs: pause, limits, statistics, and execs that nobody waits for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.client.conftest import Test
from tests.client.shim import Shim

from dunnage import errors
from dunnage.api import metrics_v2_pb2
from dunnage.client import LOCAL_KEY, Listed, Node, Resources, Settings, Status, pipes

WithShim = Callable[[Test], None]
ROOT = Path("/")
SLEEP = Settings(args=["/bin/sleep", "1000"], rootfs=ROOT)


def test_a_container_is_paused_and_goes_on(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(SLEEP, id="web")
        await container.start()
        await container.pause()
        assert (await container.state()).status is Status.PAUSED
        with pytest.raises(errors.Error, match="cannot pause a paused container"):
            await container.pause()
        with pytest.raises(errors.FailedPrecondition, match="container web is paused: stop it first, or use force"):
            await container.remove()
        await container.resume()
        assert (await container.state()).status is Status.RUNNING
        await container.remove(force=True)

    with_shim(test)


def test_limits_are_told_in_the_specification_s_words(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(SLEEP)
        await container.update(Resources(memory_bytes=1 << 20, cpus=1.5))
        await container.update({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]})
        assert {request.resources.type_url for request in shim.updated} == {
            "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
        }
        assert [json.loads(request.resources.value) for request in shim.updated] == [
            {"memory": {"limit": 1048576}, "cpu": {"quota": 150000, "period": 100000}},
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]},
        ]
        with pytest.raises(errors.InvalidArgument):
            await container.update(Resources(pids=0))
        assert len(shim.updated) == 2
        await container.remove()

    with_shim(test)


def listed(node: Node, id: str, *execs: str, key: str = LOCAL_KEY) -> Listed:
    return Listed(
        key, "default", id, Status.RUNNING, 1, None, Path("/b"), execs=execs, address=str(node.state / "socket")
    )


def test_statistics_are_had_of_a_container_and_of_one_of_a_list(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(SLEEP, id="web")
        shim.metrics = metrics_v2_pb2.Metrics(pids=metrics_v2_pb2.PidsStat(current=7))
        assert (await container.stats()).pids.current == 7
        assert (await node.stats(listed(node, "web"))).pids.current == 7
        await container.remove()
        with pytest.raises(errors.NotFound, match="container not created"):
            await node.stats(listed(node, "web"))
        with pytest.raises(errors.NotFound, match="container web has no worker any more"):
            await node.stats(listed(node, "web")._replace(address=""))

    with_shim(test)


def test_execs_that_nobody_waits_for_are_forgotten_when_they_have_ended(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(SLEEP, id="web")
        await container.start()
        ended = await container.exec(["/bin/true"], detached=True)
        running = await container.exec(["/bin/sleep", "1000"], detached=True)
        waited_for = await container.exec(["/bin/true"], stdio=pipes())
        for process in (ended, running, waited_for):
            await process.start()
        await asyncio.gather(ended.wait(), waited_for.wait())
        ids = (ended.exec_id, running.exec_id, waited_for.exec_id, "detached-gone")
        found = listed(node, "web", *ids)
        elsewhere = listed(node, "web", *ids, key="of-a-containerd")
        assert await node.delete_ended([found, elsewhere]) == [found._replace(execs=ids[1:3]), elsewhere]
        assert {exec_id for _, exec_id in shim.children} == {"", *ids[1:3]}
        await running.kill(9)
        await running.wait()
        await container.remove(force=True)
        found = listed(node, "web", running.exec_id)
        assert await node.delete_ended([found]) == [found._replace(execs=())]
        shim.path.unlink()
        assert await node.delete_ended([found]) == [found]

    with_shim(test)


def test_a_node_that_is_closed_during_a_create_leaves_nothing(with_shim: WithShim, tmp_path: Path) -> None:
    async def test(node: Node, shim: Shim) -> None:
        is_asked, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            is_asked.set()
            await go_on.wait()

        shim.before["Create"] = wait
        creating = asyncio.ensure_future(node.create(SLEEP, id="web"))
        await is_asked.wait()
        await node.close()
        go_on.set()
        with pytest.raises(errors.FailedPrecondition, match="the node is closed"):
            await creating
        assert not shim.children
        assert shim.shut_down == ["web"]
        assert node.local_ids() == []

    with_shim(test)
