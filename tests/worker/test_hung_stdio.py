"""A client's stdio paths on a file system that never answers hang their own container, and nobody else."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.containerd.fuse import HungFilesystem
from tests.worker.house import House, open_house

from dunnage.ttrpc.errors import RpcError

pytestmark = pytest.mark.real


@pytest.mark.parametrize("stream", ["stdin", "stdout", "terminal"])
def test_a_stdio_path_that_hangs_hangs_nobody_else(directory: Path, rootfs: Path, stream: str) -> None:
    async def scenario(house: House, hung: HungFilesystem) -> None:
        task = await house.start_shim("c1", ["true"])
        path = str(hung.directory / "path")
        streams = {"stdout": path, "terminal": True} if stream == "terminal" else {stream: path}
        creating = asyncio.create_task(task.create(**streams))
        other = await house.start_shim("c2", ["true"])
        began = time.monotonic()
        async with asyncio.timeout(10):
            await other.create()
        assert time.monotonic() - began < 5
        assert not creating.done()
        hung.let_go()
        with pytest.raises(RpcError, match=r"transport endpoint is not connected|connection aborted"):
            await creating
        await other.call("Delete")
        for one in (task, other):
            await one.call("Shutdown")
            assert (await house.launch("delete", one.id)).status == 0

    async def whole() -> None:
        with HungFilesystem(directory / "hung") as hung:
            async with asyncio.timeout(60), open_house(directory, rootfs) as house:
                await scenario(house, hung)

    asyncio.run(whole())
