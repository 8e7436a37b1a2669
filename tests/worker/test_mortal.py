"""A worker killed before any one of its effects, from its first breath to the end of a container's life: every call is
answered as if nothing had happened, every event is told in order, and nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from tests import newer
from tests.worker import mortal
from tests.worker.house import NAMESPACE, House, Task, open_house

from dunnage.api import options_pb2, task_types_pb2
from dunnage.api.anys import pack_bare

pytestmark = pytest.mark.real

NEEDED = {"config.json", "init.pid", "log.json", "options.json", "runtime", "address"}
MIB = 1 << 20


class Life(NamedTuple):
    """What a client does, and what it is told of each container."""

    lead: Callable[[House], Awaitable[None]]
    told: Mapping[str, Sequence[str]]
    stride: int  # of the effects that the default run tries
    long_stride: int = 1  # of those that a run of the whole suite tries
    left: frozenset[str] = frozenset()


async def run(house: House) -> None:
    """The life of a container with an exec, as containerd leads it."""
    out = house.directory / "out"
    os.mkfifo(out)
    reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    task = await house.start_shim("c1", ["sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done"])
    pid = await task.create(stdout=str(out), stderr=str(out))
    waiting = asyncio.create_task(task.call("Wait"))
    assert (await task.call("Start")).pid == pid
    await task.exec("e1", ["sh", "-c", "echo once; exit 3"], stdout=str(out), stderr=str(out))
    exec_pid = (await task.call("Start", exec_id="e1")).pid
    assert (await task.call("Wait", exec_id="e1")).exit_status == 3
    deleted = await task.call("Delete", exec_id="e1")
    assert (deleted.pid, deleted.exit_status) == (exec_pid, 3)
    state = await task.call("State")
    assert (state.pid, state.status) == (pid, 2)
    await task.call("Kill", signal=signal.SIGTERM)
    assert (await waiting).exit_status == 5
    await end(task, pid, 5)
    said = os.read(reader, 100)
    os.close(reader)
    assert sorted(said.split()) == [b"once", b"up"], "each said once, whoever was first"


async def limit(house: House) -> None:
    """Paused and resumed, given less memory than its exec eats, and killed while it is paused."""
    task = await house.start_shim("c1", ["sleep", "100"])
    pid = await task.create()
    await task.call("Start")
    await task.call("Pause")
    assert (await task.call("State")).status == task_types_pb2.PAUSED
    await task.call("Resume")
    assert (await task.call("State")).status == task_types_pb2.RUNNING
    resources = {"memory": {"limit": 16 * MIB, "swap": 16 * MIB}}
    await task.call("Update", resources=AnyMessage(value=json.dumps(resources).encode()))
    assert (await task.call("Stats")).stats.value
    await task.exec("e1", ["sh", "-c", "exec tail /dev/zero"])
    await task.call("Start", exec_id="e1")
    assert (await task.call("Wait", exec_id="e1")).exit_status == 137
    await task.call("Delete", exec_id="e1")
    await task.call("Pause")
    await task.call("Kill", signal=signal.SIGKILL)
    assert (await task.call("Wait")).exit_status == 137
    await end(task, pid, 137)


async def move(house: House) -> None:
    """Checkpointed, and restored as another container."""
    image = str(house.directory / "image")
    task = await house.start_shim("c1", ["sleep", "100"])
    pid = await task.create()
    await task.call("Start")
    options = pack_bare(options_pb2.CheckpointOptions(exit=True))
    await task.call("Checkpoint", path=image, options=options)
    assert (await task.call("Wait")).exit_status == 137
    await end(task, pid, 137)
    task = await house.start_shim("c2", ["sleep", "100"])
    assert await task.create(checkpoint=image) == 0
    pid = (await task.call("Start")).pid
    assert (await task.call("State")).pid == pid
    await task.call("Kill", signal=signal.SIGKILL)
    assert (await task.call("Wait")).exit_status == 137
    await end(task, pid, 137)


async def end(task: Task, pid: int, status: int) -> None:
    deleted = await task.call("Delete")
    assert (deleted.pid, deleted.exit_status) == (pid, status)
    await task.call("Shutdown")
    answer = await task.house.launch("delete", task.id)
    assert answer.status == 0, answer
    await task.house.wait_told(task.id, "Delete")


LIVES = {
    "run": Life(run, {"c1": ["Create", "Start", "ExecAdded e1", "ExecStarted e1", "Exit e1", "Exit", "Delete"]}, 23),
    "limit": Life(
        limit,
        {
            "c1": [
                *("Create", "Start", "Paused", "Resumed", "ExecAdded e1", "ExecStarted e1", "OOM", "Exit e1"),
                *("Paused", "Exit", "Delete"),
            ]
        },
        37,
        long_stride=2,
    ),
    "move": Life(
        move,
        {"c1": ["Create", "Start", "Exit", "Delete"], "c2": ["Create", "Start", "Exit", "Delete"]},
        37,
        long_stride=2,
        left=frozenset({"work"}),
    ),
}


@pytest.fixture(autouse=True)
def criu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime finds it in the PATH of its launcher."""
    monkeypatch.setenv("PATH", f"{newer.directory('criu')}:{os.environ['PATH']}")


def die_at(effect: int, life: Life, directory: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the worker came to that effect, and so was killed."""
    number = directory / "effect"
    number.write_text(str(effect))
    monkeypatch.setenv(mortal.FILE, str(number))

    async def whole() -> bool:
        async with asyncio.timeout(60), open_house(directory, rootfs, worker="tests.worker.mortal:main") as house:
            try:
                await life.lead(house)
                for container, told in life.told.items():
                    check(house, container, told)
                    assert set(os.listdir(house.bundle(container))) <= NEEDED | life.left
            except BaseException:
                print(f"killed before effect {effect}, told {[house.told(name) for name in life.told]}\n{house.log()}")
                raise
            assert not os.listdir(directory / "root" / NAMESPACE)
            return "ended with -9" in house.log()

    return asyncio.run(whole())


def check(house: House, container: str, expected: Sequence[str]) -> None:
    """All was told, in order, and only what was being sent may have come twice."""
    told = house.told(container)
    again = [event for event, next in pairwise(told) if event == next]
    once = [event for event, next in pairwise([*told, None]) if event != next]
    if "OOM" in once:  # the kill may be seen before the exec's start has returned, and is told before its end
        assert once.index("ExecAdded e1") < once.index("OOM") < once.index("Exit e1")
        once.remove("OOM")
        once.insert(once.index("Exit e1"), "OOM")
    assert once == list(expected)
    assert len(again) <= 1


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LIVES)
def test_a_worker_may_die_before_any_of_its_effects(
    directory: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    effect = 1
    while die_at(effect, LIVES[name], _room(directory, effect), rootfs, monkeypatch):
        effect += LIVES[name].long_stride
    assert effect > 100, "the life of a container has hundreds"


@pytest.mark.parametrize(
    ("name", "effect"), [(name, n * life.stride) for name, life in LIVES.items() for n in range(1, 8)]
)
def test_a_worker_may_die_before_some_of_its_effects(
    directory: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch, name: str, effect: int
) -> None:
    assert die_at(effect, LIVES[name], directory, rootfs, monkeypatch)


def _room(directory: Path, effect: int) -> Path:
    room = directory / str(effect)
    room.mkdir()
    return room
