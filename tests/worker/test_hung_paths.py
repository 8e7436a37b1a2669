"""A path on a file system that never answers holds up the container that it is of, and nobody else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.containerd.fuse import HungFilesystem
from tests.worker.house import House, Task, open_house
from tests.worker.test_info import ask

from dunnage.api import options_pb2
from dunnage.api.anys import pack_bare
from dunnage.api.runtime_info_pb2 import RuntimeInfo
from dunnage.ttrpc.errors import RpcError

pytestmark = pytest.mark.real


def perform(
    directory: Path, rootfs: Path, hung: Path, scenario: Callable[[House, HungFilesystem], Awaitable[None]]
) -> None:
    async def whole() -> None:
        with HungFilesystem(hung) as file_system:
            async with asyncio.timeout(60), open_house(directory, rootfs) as house:
                await scenario(house, file_system)

    asyncio.run(whole())


async def made(house: House, container: str) -> Task:
    """A container that is made in a moment."""
    task = await house.start_shim(container, ["true"])
    async with asyncio.timeout(5):
        await task.create()
    return task


async def unmade(task: Task) -> None:
    await task.call("Shutdown")
    assert (await task.house.launch("delete", task.id)).status == 0


@pytest.mark.parametrize("what", ["stdin", "stdout", "terminal", "runtime"])
def test_a_create_that_hangs_hangs_nobody_else(directory: Path, rootfs: Path, what: str) -> None:
    async def scenario(house: House, hung: HungFilesystem) -> None:
        path = hung.directory / "path"
        fields = {"stdout": str(path), "terminal": True} if what == "terminal" else {what: str(path)}
        task = await house.start_shim("c1", ["true"])
        creating = asyncio.create_task(task.create(path) if what == "runtime" else task.create(**fields))
        other = await made(house, "c2")
        assert not creating.done()
        hung.let_go()
        with pytest.raises(RpcError, match=r"transport endpoint is not connected|connection abort"):
            await creating
        await other.call("Delete")
        for one in (task, other):
            await unmade(one)

    perform(directory, rootfs, directory / "hung", scenario)


def test_an_info_that_hangs_hangs_nobody_else(directory: Path, rootfs: Path) -> None:
    async def scenario(house: House, hung: HungFilesystem) -> None:
        runtime = pack_bare(options_pb2.Options(binary_name=f"{hung.directory}/runc"))
        asking = asyncio.create_task(ask(house, runtime))
        other = await made(house, "c2")
        assert not asking.done()
        hung.let_go()
        assert not RuntimeInfo.FromString((await asking).stdout).HasField("features")
        await other.call("Delete")
        await unmade(other)

    perform(directory, rootfs, directory / "hung", scenario)


def test_a_rootfs_that_hangs_is_unmounted_by_a_delete(directory: Path, rootfs: Path) -> None:
    async def scenario(house: House, hung: HungFilesystem) -> None:
        bundle = house.bundle("c1")
        async with asyncio.timeout(10):
            assert (await house.launch("delete", "c1")).status == 0
        assert f" {hung.directory} " not in Path("/proc/self/mountinfo").read_text()
        assert os.listdir(bundle) == ["rootfs"]

    perform(directory, rootfs, directory / "c1" / "rootfs", scenario)
