"""A worker killed before a process runs: its client, which reads already, sees no end before there is one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.worker.house import House, Killer, Task
from tests.worker.test_recovery import perform

from dunnage.ttrpc.errors import RpcError

pytestmark = pytest.mark.real


async def reader_of(fifo: Path) -> asyncio.StreamReader:
    """As ctr reads: from before there is a writer until the last one has closed."""
    os.mkfifo(fifo)
    reader = asyncio.StreamReader()
    pipe = os.fdopen(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb")
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


async def end(task: Task) -> None:
    await task.call("Wait")
    await task.call("Delete")
    await task.call("Shutdown")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_output_is_read_whole_where_the_create_was_made_again(directory: Path, rootfs: Path, moment: str) -> None:
    killer = Killer(directory, "create", moment)

    async def scenario(house: House) -> None:
        out = await reader_of(house.directory / "out")
        task = await house.start_shim("c1", ["echo", "whole"])
        await task.create(killer.path, stdout=str(house.directory / "out"))
        await task.call("Start")
        await end(task)
        assert await out.read() == b"whole\n"
        assert killer.done.exists()

    perform(directory, rootfs, scenario)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_output_is_read_whole_where_the_start_of_an_exec_was_made_again(
    directory: Path, rootfs: Path, moment: str
) -> None:
    killer = Killer(directory, "exec", moment)

    async def scenario(house: House) -> None:
        out = await reader_of(house.directory / "out")
        task = await house.start_shim("c1", ["sleep", "100"])
        await task.create(killer.path)
        await task.call("Start")
        await task.exec("e1", ["echo", "whole"], stdout=str(house.directory / "out"))
        await task.call("Start", exec_id="e1")
        await task.call("Wait", exec_id="e1")
        await task.call("Delete", exec_id="e1")
        assert await out.read() == b"whole\n"
        assert killer.done.exists()
        await task.call("Kill", signal=9)
        await end(task)

    perform(directory, rootfs, scenario)


def test_a_create_that_fails_when_it_is_made_again_leaves_the_client_s_fifo(directory: Path, rootfs: Path) -> None:
    killer = Killer(directory, "create", "before")

    async def scenario(house: House) -> None:
        out = await reader_of(house.directory / "out")
        task = await house.start_shim("c1", ["no-such-command"])
        with pytest.raises(RpcError, match="no-such-command"):
            await task.create(killer.path, stdout=str(house.directory / "out"))
        assert await out.read() == b""
        await task.call("Shutdown")

    perform(directory, rootfs, scenario)
