"""The client without await is the same client."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.conftest import LAUNCHER
from tests.client.shim import Shim

from dunnage import errors
from dunnage.api import metrics_v1_pb2
from dunnage.client import Resources, Settings, Status, Stdio, pipes
from dunnage.client.sync import Node


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> Shim:
        made = Shim(tmp_path / "socket")
        await made.begin()
        return made

    made = asyncio.run_coroutine_threadsafe(make(), loop).result()
    yield made
    asyncio.run_coroutine_threadsafe(made.end(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def node(shim: Shim, tmp_path: Path) -> Iterator[Node]:
    with Node(state=tmp_path, launcher=[sys.executable, "-c", LAUNCHER, str(shim.path)]) as node:
        yield node


def test_run_waits_for_the_end(node: Node) -> None:
    finished = node.run(Settings(args=["/bin/sh", "-c", "cat; exit 3"], rootfs=Path("/")), stdin=b"hello")
    assert finished == (3, b"hello", b"")


def test_a_container_lives_until_it_is_removed(node: Node) -> None:
    container = node.create(Settings(args=["/bin/sleep", "1000"], rootfs=Path("/")), id="web", stdio=Stdio())
    container.start()
    process = container.exec(["/bin/echo", "hi"], stdio=pipes())
    process.start()
    assert process.wait_output().stdout == b"hi\n"
    assert process.delete().status == 0
    assert node.local_ids() == ["web"]
    node.remove("web", force=True)
    with pytest.raises(errors.NotFound):
        node.get("web")


def test_the_thread_ends_with_the_node(shim: Shim, tmp_path: Path) -> None:
    with Node(state=tmp_path):
        assert "dunnage-client" in [thread.name for thread in threading.enumerate()]
    assert "dunnage-client" not in [thread.name for thread in threading.enumerate()]


def test_ctrl_c_in_a_run_leaves_nothing(node: Node, shim: Shim) -> None:
    async def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    shim.before["Start"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        node.run(Settings(args=["/bin/sleep", "1000"], rootfs=Path("/")))
    assert node.local_ids() == []
    assert not shim.children


def test_a_closed_node_says_so_to_whoever_calls_and_whoever_waits(node: Node) -> None:
    container = node.create(Settings(args=["/bin/sleep", "1000"], rootfs=Path("/")), id="web", stdio=Stdio())
    container.start()
    other = Node(state=node._node.state)
    found = other.get("web")
    is_waiting = threading.Event()
    said: list[BaseException] = []

    def wait() -> None:
        is_waiting.set()
        try:
            found.wait()
        except errors.Error as error:
            said.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    is_waiting.wait()
    events = other.events()
    other.close()
    waiting.join()
    assert [type(error) for error in said] == [errors.FailedPrecondition]
    for call in (found.state, other.containers, lambda: other.get("web"), lambda: next(events)):
        with pytest.raises(errors.FailedPrecondition, match="the node is closed"):
            call()
    other.close()
    container.remove(force=True)


def test_threads_may_share_a_node(node: Node) -> None:
    found: dict[int, bytes] = {}

    def run(number: int) -> None:
        found[number] = node.run(Settings(args=["/bin/echo", str(number)], rootfs=Path("/"))).stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"{number}\n".encode() for number in range(4)}


def test_a_container_is_frozen_limited_measured_and_written_down(node: Node, shim: Shim, tmp_path: Path) -> None:
    container = node.create(Settings(args=["/bin/sleep", "1000"], rootfs=Path("/")), id="web", stdio=Stdio())
    container.start()
    container.pause()
    assert container.state().status is Status.PAUSED
    container.resume()
    container.update(Resources(pids=7))
    assert [request.resources.value for request in shim.updated] == [b'{"pids": {"limit": 7}}']
    shim.metrics = metrics_v1_pb2.Metrics(pids=metrics_v1_pb2.PidsStat(current=3))
    assert container.stats().pids.current == 3
    container.checkpoint(tmp_path / "images", exit=True)
    assert container.wait().status == 137
    container.remove()
    again = node.restore(tmp_path / "images", detached=True)
    assert (again.id, shim.created[-1].checkpoint) == ("web", str(tmp_path / "images"))
    again.remove()
