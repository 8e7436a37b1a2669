"""The client without await is the same client."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.conftest import LAUNCHER
from tests.client.shim import Shim

from dunnage import errors
from dunnage.client import Settings, Stdio, pipes
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
