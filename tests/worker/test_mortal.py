"""A worker killed before any one of its effects, from its first breath to the end of a container's life: every call is
answered as if nothing had happened, every event is told in order, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from tests.worker import mortal
from tests.worker.house import NAMESPACE, House, open_house

pytestmark = pytest.mark.real

NEEDED = {"config.json", "init.pid", "log.json", "options.json", "runtime", "address"}
TOLD = ["Create", "Start", "ExecAdded e1", "ExecStarted e1", "Exit e1", "Exit", "Delete"]
STRIDE = 23  # of the effects that the default run tries; each run of the whole suite tries all


async def live(house: House) -> None:
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
    deleted = await task.call("Delete")
    assert (deleted.pid, deleted.exit_status) == (pid, 5)
    await task.call("Shutdown")
    answer = await house.launch("delete", "c1")
    assert answer.status == 0, answer
    await house.wait_told("c1", "Delete")
    said = os.read(reader, 100)
    os.close(reader)
    assert sorted(said.split()) == [b"once", b"up"], "each said once, whoever was first"


def die_at(effect: int, directory: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the worker came to that effect, and so was killed."""
    number = directory / "effect"
    number.write_text(str(effect))
    monkeypatch.setenv(mortal.FILE, str(number))

    async def whole() -> bool:
        async with asyncio.timeout(60), open_house(directory, rootfs, worker="tests.worker.mortal:main") as house:
            try:
                await live(house)
            except BaseException:
                print(f"killed before effect {effect}, told {house.told('c1')}\n{house.log()}")
                raise
            told = house.told("c1")
            assert list(dict.fromkeys(told)) == TOLD
            again = [event for event, next in pairwise(told) if event == next]
            assert len(told) == len(TOLD) + len(again), "only what was being sent may come twice"
            assert len(again) <= 1
            assert set(os.listdir(house.bundle("c1"))) <= NEEDED
            assert not os.listdir(directory / "root" / NAMESPACE)
            return "ended with -9" in house.log()

    return asyncio.run(whole())


@pytest.mark.long
def test_a_worker_may_die_before_any_of_its_effects(
    directory: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    effect = 1
    while die_at(effect, _room(directory, effect), rootfs, monkeypatch):
        effect += 1
    assert effect > 100, "the life of a container has hundreds"


@pytest.mark.parametrize("effect", range(STRIDE, 8 * STRIDE, STRIDE))
def test_a_worker_may_die_before_some_of_its_effects(
    directory: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch, effect: int
) -> None:
    assert die_at(effect, directory, rootfs, monkeypatch)


def _room(directory: Path, effect: int) -> Path:
    room = directory / str(effect)
    room.mkdir()
    return room
