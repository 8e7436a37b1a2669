"""What a worker does for its groups when they are gone: their last events, and its own end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from dunnage.api import events_pb2
from dunnage.config import Config
from dunnage.keeper.client import Inherited, Keeper
from dunnage.worker import main as main_module
from dunnage.worker import worker as worker_module
from dunnage.worker.worker import Worker

IDLE_S = 0.1


class Keep:
    """A keeper that only keeps, and hears when its worker has nothing left."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        self.children: dict[int, str] = {}
        self.idle_after = asyncio.Event()

    def store(self, name: str, fd: int) -> None:
        self.release(name)
        self.fds[name] = os.dup(fd)

    def release(self, name: str) -> None:
        if name in self.fds:
            os.close(self.fds.pop(name))

    def idle(self, after_s: float | None) -> None:
        self.idle_after.set()

    def close(self) -> None:
        for name in list(self.fds):
            self.release(name)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_LOOK_S", IDLE_S / 10)


def perform(state: Path, scenario: Callable[[Worker, Keep], Awaitable[None]]) -> None:
    async def whole() -> None:
        keep = Keep()
        config = Config(idle_exit_s=IDLE_S)
        log = logging.getLogger("dunnage.tests.worker")
        worker = Worker(cast(Keeper, keep), config, state=str(state), on_idle=None, log=log)
        try:
            async with asyncio.timeout(20):
                await scenario(worker, keep)
        finally:
            keep.close()

    asyncio.run(whole())


def test_the_last_events_of_a_containerd_that_was_taken_away_keep_nobody_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = str(tmp_path / "gone")

    async def scenario(worker: Worker, keep: Keep) -> None:
        worker.publisher("default", gone).publish(events_pb2.TaskStart(container_id="c1"))
        await worker._release_publisher(("default", gone))
        assert keep.idle_after.is_set()
        assert f"1 events of namespace default are dropped: no containerd takes them at {gone}" in caplog.text
        later = Worker(worker.keeper, worker.config, state=worker.state, on_idle=None, log=worker.log)
        later.recover_events()
        assert not later._publishers

    perform(tmp_path, scenario)


def test_the_last_events_wait_for_a_containerd_whose_socket_is_there(tmp_path: Path) -> None:
    address = tmp_path / "socket"  # nobody listens there, as while containerd is being started again
    address.touch()

    async def scenario(worker: Worker, keep: Keep) -> None:
        publisher = worker.publisher("default", str(address))
        publisher.publish(events_pb2.TaskStart(container_id="c1"))
        began = asyncio.get_running_loop().time()
        releasing = worker.in_background(worker._release_publisher(("default", str(address))))
        while asyncio.get_running_loop().time() < began + 3 * IDLE_S:
            await publisher.flush(IDLE_S)
        assert publisher.waiting == 1
        assert not releasing.done()
        address.unlink()
        await releasing
        assert keep.idle_after.is_set()

    perform(tmp_path, scenario)


def test_a_worker_that_was_given_no_socket_ends(tmp_path: Path) -> None:
    assert main_module.main({}, Inherited(cast(socket.socket, None), {}, {}, 1, "pod x")) == 0
