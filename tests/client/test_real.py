"""The library against the real worker and runc."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.machine import LIMIT_S, Machine, make_rootfs

pytestmark = pytest.mark.real


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.end()


def run_script(machine: Machine, script: str, *arguments: str) -> list[str]:
    """The lines that a Python program prints on that machine."""
    command = machine.inside(sys.executable, "-c", script, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


ASYNCHRONOUS = """
import asyncio, pathlib, signal, sys
from dunnage import errors
from dunnage.client import OPEN, Node, Settings, Status, Stdio, pipes

async def main():
    root = pathlib.Path(sys.argv[1])
    async with Node() as node:
        print(await node.run(Settings(args=["cat"], rootfs=root), stdin=b"hello"))
        open_ended = Stdio(stdin=OPEN, stdout=OPEN, stderr=OPEN)
        made = await node.create(Settings(args=["sh", "-c", "read x; echo got $x; exit 8"], rootfs=root),
                                 id="web", stdio=open_ended)
        await made.start()
        found = await node.get("web")
        print((await found.state()).status is Status.RUNNING, len(await found.pids()))
        process = await found.exec(["sh", "-c", "exit 3"], stdio=pipes())
        await process.start()
        print((await process.wait()).status, (await process.delete()).status)
        attached = await found.attach(pipes(stdin=True))
        attached.stdin.write(b"it\\n")
        print(await attached.stdout.readline(), (await attached.wait()).status)
        await attached.close()
        await found.remove()
        try:
            await node.get("web")
        except errors.NotFound as error:
            print(error)
        try:
            await node.create(Settings(args=["no-such-command"], rootfs=root))
        except errors.Error as error:
            print("no-such-command" in str(error), node.local_ids())

asyncio.run(main())
"""


def test_the_asynchronous_library_runs_execs_attaches_and_removes(machine: Machine, tmp_path: Path) -> None:
    root = make_rootfs(tmp_path / "rootfs")
    assert run_script(machine, ASYNCHRONOUS, str(root)) == [
        "Finished(status=0, stdout=b'hello', stderr=b'')",
        "True 1",
        "3 3",
        "b'got it\\n' 8",
        "container web does not exist",
        "True []",
    ]


SYNCHRONOUS = """
import pathlib, sys
from dunnage.client import Settings
from dunnage.client.sync import Node

root = pathlib.Path(sys.argv[1])
with Node() as node:
    print(node.run(Settings(args=["sh", "-c", "echo out; exit 2"], rootfs=root)))
    container = node.create(Settings(args=["sleep", "1000"], rootfs=root), id="web", detached=True)
    container.start()
    print([one.id for one in node.containers()], node.status()[0].containers)
    container.kill(9)
    print(container.wait().status)
    container.remove()
    events = node.events(history=True)
    print([next(events).topic for _ in range(8)][4:])
    events.close()
"""


def test_the_synchronous_library_does_the_same(machine: Machine, tmp_path: Path) -> None:
    root = make_rootfs(tmp_path / "rootfs")
    assert run_script(machine, SYNCHRONOUS, str(root)) == [
        "Finished(status=2, stdout=b'out\\n', stderr=b'')",
        "['web'] 1",
        "137",
        "['/tasks/create', '/tasks/start', '/tasks/exit', '/tasks/delete']",
    ]
