"""Hundreds of execs whose container is killed in their midst: no exit is lost, doubled or invented, nothing is left."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.worker.house import LIMIT_S, House, Task, children, open_house

from dunnage.api import events_pb2
from dunnage.ttrpc.errors import RpcError

pytestmark = pytest.mark.real

IN_FLIGHT = 16
RUNTIME = "crun"
# what an exec does, and the status it ends with if it is let
PROGRAMS: list[tuple[list[str], int]] = [
    (["true"], 0),
    (["sh", "-c", "exit 7"], 7),
    (["sh", "-c", "kill -15 $$"], 143),
    (["sleep", "0.05"], 0),
    (["sleep", "1000"], 137),
    (["no-such-program"], -1),
]


@dataclass
class Fate:
    """What a client was told of one exec."""

    status: int
    added: bool = False
    pid: int = 0
    refused: str = ""
    waited: Any = None


@dataclass
class Storm:
    """Execs on one container, some of which go on for ever, until its init is killed when ``kill_at`` have started."""

    task: Task
    kill_at: int
    chance: random.Random
    fates: dict[str, Fate] = field(default_factory=dict)
    started: int = 0

    async def run(self, count: int, init_pid: int) -> None:
        limit = asyncio.Semaphore(IN_FLIGHT)
        programs = self.chance.choices(PROGRAMS, weights=[4, 4, 2, 6, 6, 1], k=count)
        self.fates = {f"e{number}": Fate(status) for number, (_, status) in enumerate(programs)}
        execs = [self._live(limit, f"e{number}", args) for number, (args, _) in enumerate(programs)]
        killed = asyncio.create_task(self._kill(init_pid))
        await asyncio.gather(*execs)
        await killed

    async def _live(self, limit: asyncio.Semaphore, exec_id: str, args: list[str]) -> None:
        fate = self.fates[exec_id]
        try:
            async with limit:
                await self.task.exec(exec_id, args)
                fate.added = True
                fate.pid = (await self.task.call("Start", exec_id=exec_id)).pid
                self.started += 1
        except RpcError as error:
            fate.refused = error.message
        if fate.added:
            fate.waited = await self.task.call("Wait", exec_id=exec_id)

    async def _kill(self, init_pid: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while self.started < self.kill_at:  # noqa: ASYNC110 - the moment is meant to be any
                await asyncio.sleep(self.chance.random() * 0.01)
        if self.chance.random() < 0.5:
            os.kill(init_pid, 9)
        else:
            await self.task.call("Kill", signal=9, all=self.chance.random() < 0.5)

    def check(self, init_pid: int) -> Counter[str]:
        """Compare with what was told; how many there were of each kind."""
        told = [event for event in self.task.house.events if getattr(event, "container_id", "") == self.task.id]
        exits = [event for event in told if isinstance(event, events_pb2.TaskExit)]
        starts = {event.exec_id: event.pid for event in told if isinstance(event, events_pb2.TaskExecStarted)}
        assert len([event for event in told if isinstance(event, events_pb2.TaskExecStarted)]) == len(starts)
        assert starts == {exec_id: fate.pid for exec_id, fate in self.fates.items() if fate.pid}
        assert Counter(exit.id for exit in exits) == Counter([*starts, self.task.id]), "an exit is lost or doubled"
        assert exits[-1].id == self.task.id, "the init's exit is not the last"
        assert (exits[-1].pid, exits[-1].exit_status) == (init_pid, 137)
        added = [event.exec_id for event in told if isinstance(event, events_pb2.TaskExecAdded)]
        assert Counter(added) == Counter(exec_id for exec_id, fate in self.fates.items() if fate.added)
        kinds: Counter[str] = Counter()
        by_id = {exit.id: exit for exit in exits}
        for exec_id, fate in self.fates.items():
            if fate.pid:
                exit = by_id[exec_id]
                assert exit.pid == fate.pid
                assert exit.exit_status in (fate.status, 137), exec_id
                assert (fate.waited.exit_status, fate.waited.exited_at) == (exit.exit_status, exit.exited_at)
                kinds["killed" if exit.exit_status == 137 else "ended by itself"] += 1
            else:
                kinds["not started" if fate.added else "not added"] += 1
                if fate.added:
                    assert fate.waited.exited_at.seconds < 0, f"a wait for {exec_id} tells of an end"
        return kinds


async def wait_nothing_runs(house: House) -> None:
    """The keeper has no child but its worker; nothing tells of a reaping."""
    async with asyncio.timeout(LIMIT_S):
        while children(house.keeper.pid) != [house.worker()]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def play_round(house: House, name: str, count: int, chance: random.Random) -> Counter[str]:
    task = await house.start_shim(name, ["sleep", "1000"], host_pids=chance.random() < 0.3)
    init_pid = await task.create(Path(RUNTIME))
    await task.call("Start")
    waiting = asyncio.create_task(task.call("Wait"))
    storm = Storm(task, chance.randrange(count // 10, count // 2), chance)
    await storm.run(count, init_pid)
    assert (await waiting).exit_status == 137
    for exec_id, fate in storm.fates.items():
        if fate.added and chance.random() < 0.7:  # the others go with their container
            deleted = await task.call("Delete", exec_id=exec_id)
            assert (deleted.pid, deleted.exit_status) == (fate.pid, fate.waited.exit_status)
    await task.call("Delete")
    await task.call("Shutdown")
    answer = await house.launch("delete", name)
    assert answer.status == 0, answer
    await house.wait_told(name, "Delete")
    assert not [file for file in os.listdir(house.bundle(name)) if file.startswith(("process", "dunnage"))]
    await wait_nothing_runs(house)
    async with asyncio.timeout(LIMIT_S):
        while not task.client.closed:  # noqa: ASYNC110 - the group has ended, and what the keeper held for it
            await asyncio.sleep(0.01)
    return storm.check(init_pid)


def play(directory: Path, rootfs: Path, rounds: int, count: int) -> None:
    async def whole() -> None:
        async with open_house(directory, rootfs) as house:
            try:
                await play_round(house, "warm", 3, random.Random(0))
                worker, baseline = house.worker(), house.descriptors(house.worker())
                kept = count_descriptors(house.keeper.pid)
                for number in range(rounds):
                    began = time.monotonic()
                    kinds = await play_round(house, f"c{number}", count, random.Random(number))
                    print(f"round {number}: {count} execs in {time.monotonic() - began:.1f} s: {dict(kinds)}")
                    assert kinds["killed"], "the container was not killed in their midst"
                    assert kinds["not started"] + kinds["not added"], "the container was killed after them all"
                assert house.worker() == worker
                assert house.descriptors(worker) == baseline
                async with asyncio.timeout(LIMIT_S):
                    while count_descriptors(house.keeper.pid) > kept:  # noqa: ASYNC110 - it closes the last ones now
                        await asyncio.sleep(0.01)
                assert "unforeseen" not in house.log()
            except BaseException:
                print(house.log()[-10000:])
                raise

    asyncio.run(whole())


def test_execs_whose_container_is_killed_lose_and_double_no_exit(directory: Path, rootfs: Path) -> None:
    play(directory, rootfs, rounds=1, count=60)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_five_hundred_execs_whose_container_is_killed_lose_and_double_no_exit_ten_times(
    directory: Path, rootfs: Path
) -> None:
    play(directory, rootfs, rounds=10, count=500)
