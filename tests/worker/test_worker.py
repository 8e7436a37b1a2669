"""What a worker does for its groups when they are gone: their last events, and its own end."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from dunnage.api import events_pb2, node_pb2
from dunnage.config import Config
from dunnage.container.facts import IO, Checkpoint, Options
from dunnage.errors import FailedPrecondition
from dunnage.keeper.client import Inherited, Keeper
from dunnage.linux.attributes import Attributes
from dunnage.service.node import SERVICE
from dunnage.ttrpc.client import Client
from dunnage.worker import main as main_module
from dunnage.worker import worker as worker_module
from dunnage.worker.control import LaunchRequest
from dunnage.worker.launches import Launches
from dunnage.worker.served import Launch, ServedGroup
from dunnage.worker.worker import Worker

IDLE_S = 0.1


class Keep:
    """A keeper that only keeps, and hears when its worker has nothing left."""

    name = "node"
    keeper_pid = 1

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.fds: dict[str, int] = {}
        self.children: dict[int, str] = {}
        self.idle_after = asyncio.Event()
        self.idle_said: list[float | None] = []

    def store(self, name: str, fd: int) -> None:
        self.stored.append(name)
        self.release(name)
        self.fds[name] = os.dup(fd)

    def release(self, name: str) -> None:
        if name in self.fds:
            os.close(self.fds.pop(name))

    def accept_on(self, name: str) -> None:
        """Nobody connects."""

    def stop_accepting(self, name: str) -> None:
        """Nothing was accepted."""

    def idle(self, after_s: float | None) -> None:
        self.idle_after.set()
        self.idle_said.append(after_s)

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


def test_a_worker_that_is_idle_says_when_it_has_a_group_again(tmp_path: Path) -> None:
    async def scenario(worker: Worker, keep: Keep) -> None:
        make_group(worker, tmp_path)
        assert keep.idle_said == []
        worker.consider_idling()
        assert keep.idle_said == [], "there is a group"
        idle = Worker(worker.keeper, worker.config, state=worker.state, on_idle=None, log=worker.log)
        idle.consider_idling()
        make_group(idle, tmp_path)
        assert keep.idle_said == [IDLE_S, None]

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


def make_group(worker: Worker, directory: Path) -> ServedGroup:
    launch = Launch({"FROM": "group"}, Attributes.of(os.getpid()))
    served = worker.make_group(
        "default", "pod", f"unix://{directory}/s", launch=launch, containerd_address="", ttrpc_address=""
    )
    worker.announce(served, "c1", launch._replace(env={"FROM": "c1"}))
    return served


def test_what_a_launcher_handed_down_is_never_in_no_store(tmp_path: Path) -> None:
    async def scenario(worker: Worker, keep: Keep) -> None:
        served = make_group(worker, tmp_path)
        container = worker._make_container(served, served.group, "c1", str(tmp_path), IO(), (), Options(), Checkpoint())
        assert container.env == {"FROM": "c1"}
        assert keep.stored.index("bundle:default/c1") < keep.stored.index("group:default/pod")
        container.close()

    perform(tmp_path, scenario)


def test_a_group_whose_start_was_answered_by_a_create_waits_for_its_shutdown(tmp_path: Path) -> None:
    async def scenario(worker: Worker, keep: Keep) -> None:
        served = make_group(worker, tmp_path)
        served.group.begin_create("c1")
        served.group.end_create("c1", None)
        worker._expire(served)
        assert worker.groups, "nothing expired"
        served.group.announce("c2", 0)
        worker._expire(served)
        assert not worker.groups

    perform(tmp_path, scenario)


def test_a_create_without_a_bundle_leaves_no_launch_behind(tmp_path: Path) -> None:
    async def scenario(worker: Worker, keep: Keep) -> None:
        served = make_group(worker, tmp_path)
        with pytest.raises(FailedPrecondition):
            worker._make_container(
                served, served.group, "c1", str(tmp_path / "none"), IO(), (), Options(), Checkpoint()
            )
        assert not served.launches

    perform(tmp_path, scenario)


def test_a_container_that_is_gone_is_forgotten_also_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*anything: object, dir_fd: int | None = None) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def scenario(worker: Worker, keep: Keep) -> None:
        served = make_group(worker, tmp_path)
        container = worker._make_container(served, served.group, "c1", str(tmp_path), IO(), (), Options(), Checkpoint())
        served.group.containers["c1"] = container
        monkeypatch.setattr(os, "pwrite", refuse)
        monkeypatch.setattr(os, "unlink", refuse)
        worker.forget(served, container)
        monkeypatch.undo()
        assert not served.group.containers
        assert "bundle:default/c1" not in keep.fds
        assert "the end of container default/c1 is not remembered" in caplog.text
        assert "keeps what was written of its container" in caplog.text

    perform(tmp_path, scenario)


def test_a_start_that_cannot_be_written_down_leaves_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next start would find a group at whose address nobody accepts."""

    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def scenario(worker: Worker, keep: Keep) -> None:
        (tmp_path / "config.json").write_text("{}")
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        worker.state = "."
        monkeypatch.setattr(os, "memfd_create", refuse)
        launches = Launches(worker, others=None, log=worker.log)
        argv = ("shim", "-namespace", "default", "-id", "c1", "-address", "", "start")
        answer = await launches.answer(LaunchRequest(argv, {}, str(tmp_path), b"", os.getpid(), 0))
        assert answer.status == 1
        assert b"Too many open files" in answer.stderr
        assert not worker.groups
        assert not os.listdir("s")

    perform(tmp_path, scenario)


def test_a_start_that_no_create_follows_is_dropped_with_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(worker: Worker, keep: Keep) -> None:
        (tmp_path / "config.json").write_text("{}")
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        worker.state = "."
        worker.config = dataclasses.replace(worker.config, create_timeout_s=0.1)
        launches = Launches(worker, others=None, log=worker.log)
        argv = ("shim", "-namespace", "default", "-id", "c1", "-address", "", "start")
        answer = await launches.answer(LaunchRequest(argv, {}, str(tmp_path), b"", os.getpid(), 0))
        assert answer.status == 0
        assert len(os.listdir("s")) == 1
        await keep.idle_after.wait()
        assert not worker.groups
        assert not os.listdir("s")
        assert not [name for name in keep.fds if not name.startswith("journal:")]
        assert "no create came for container c1: its start is dropped" in caplog.text

    perform(tmp_path, scenario)


def test_a_worker_that_was_given_no_socket_ends(tmp_path: Path) -> None:
    assert main_module.main({}, Inherited(cast(socket.socket, None), {}, {}, 1, "pod x")) == 0


def test_a_node_s_socket_does_not_spin_while_there_are_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    def refuse(listener: socket.socket) -> tuple[socket.socket, str]:
        nonlocal tried
        tried += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def scenario(worker: Worker, keep: Keep) -> None:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        monkeypatch.setattr(socket.socket, "accept", refuse)
        listener = main_module._open_node(worker, None, "node")
        client = await Client.connect("node", timeout_s=5)
        asking = asyncio.create_task(
            client.call(SERVICE, "Status", node_pb2.StatusRequest(), node_pb2.StatusResponse, timeout_s=10)
        )
        for _ in range(20):
            await asyncio.sleep(0)
        assert tried == 1
        monkeypatch.undo()
        assert (await asking).worker_pid == os.getpid()
        client.close()
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()

    perform(tmp_path, scenario)


def test_a_container_keeps_the_runtime_that_was_configured_when_it_was_made(tmp_path: Path) -> None:
    """Also where nobody knows the configuration: what is in ``options`` goes to the bundle (``write_options``)."""

    async def scenario(worker: Worker, keep: Keep) -> None:
        def options_of(made: Options) -> tuple[str, str]:
            served = make_group(worker, tmp_path)
            container = worker._make_container(served, served.group, "c1", str(tmp_path), IO(), (), made, Checkpoint())
            container.close()
            return container.options.binary_name, container.options.root

        assert options_of(Options()) == ("", ""), "as every shim does where nothing is said"
        worker.config = dataclasses.replace(worker.config, runtime="crun", runtime_root="/run/crun")
        assert options_of(Options()) == ("crun", "/run/crun")
        assert options_of(Options(binary_name="youki", root="/run/y")) == ("youki", "/run/y")

    perform(tmp_path, scenario)
