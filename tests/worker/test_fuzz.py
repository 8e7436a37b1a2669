"""A fuzzer over ttrpc: well-made calls of any kind at once, the same with bytes changed, frames that lie, connections
that end in the middle; against a real worker with real containers, which neither falls, leaks, nor is in doubt.

Hypothesis makes the input. The process of the worker lives through all of it, so nothing can be shrunk: a failure names
the examples it came after, and they are the same ones in each run.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.worker.fuzz_input import GUEST, OTHERS, Choices, Sent, any_frame, mutant_request
from tests.worker.house import LIMIT_S, House, Task, children, open_house
from tests.worker.wire import Wire

from dunnage.api import events_pb2, task_pb2, task_types_pb2

pytestmark = pytest.mark.real

WIRES = 3
MUTANTS = 6
GROWTH_BYTES = 6 << 20  # of the worker's and the keeper's memory from the warm-up to the end; noise is below 2 MiB


class Target:
    """A house with ``c0``, which nobody may disturb, and the group of ``c1``, whose socket gets it all."""

    def __init__(self, house: House, bystander: Task, guest: Task, address: str) -> None:
        self.house, self.bystander, self.guest, self.address = house, bystander, guest, address
        self.worker = house.worker()
        self.descriptors = house.descriptors(self.worker)
        self.wires = [Wire(address) for _ in range(WIRES)]
        self.seen: Counter[str] = Counter()
        self.examples = self.sent = 0
        self.slowest_s = 0.0

    async def play(self, sent: list[Sent], chance: random.Random) -> None:
        """Send them all, and ``MUTANTS`` of each, then see that each connection which was not left in the middle of a
        frame is served."""
        self.examples += 1
        in_step = [True] * WIRES
        for one in sent:
            wire = self.wires[one.wire]
            if not in_step[one.wire] or wire.ended.is_set():
                self._anew(one.wire)
                in_step[one.wire] = True
                wire = self.wires[one.wire]
            stream_id = wire.next_id() if one.own_id else 1
            frame = one.frame[:4] + stream_id.to_bytes(4, "big") + one.frame[8:] if len(one.frame) >= 8 else one.frame
            await wire.send(frame)
            in_step[one.wire] = one.keeps_step
            self.sent += 1
            if one.closes:
                self._anew(one.wire)
                in_step[one.wire] = True
            for _ in range(MUTANTS if in_step[one.wire] else 0):
                if one.mutable is None:
                    break
                self.sent += 1
                await self.wires[one.wire].send_request(mutant_request(one.mutable, chance))
        began = time.monotonic()
        for number in range(WIRES):
            if not in_step[number]:
                self._anew(number)
        payload = task_pb2.ConnectRequest(id=GUEST).SerializeToString()
        answers = await asyncio.gather(*(wire.call("Connect", payload, limit_s=10) for wire in self.wires))
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        shims = {task_pb2.ConnectResponse.FromString(answer.payload).shim_pid for answer in answers}
        assert shims == {self.worker}, "the worker is another"
        for wire in self.wires:
            self._count(wire)

    def _anew(self, number: int) -> None:
        self._count(self.wires[number])
        self.wires[number].close()
        self.wires[number] = Wire(self.address)

    def _count(self, wire: Wire) -> None:
        for _, answer in wire.strays:
            assert 0 <= answer.code <= 16, answer
            assert answer.message or not answer.code, answer
            self.seen[f"code {answer.code}"] += 1
        wire.strays.clear()

    async def clean_up(self) -> None:
        """End what the fuzzing made, by way of a connection of its own; only the guest is left, running."""
        for wire in self.wires:
            wire.close()
        wire = Wire(self.address)
        async with asyncio.timeout(LIMIT_S):  # what was sent last may be done only now
            while (await self.guest.call("State")).status != task_types_pb2.RUNNING or self._is_busy():
                await wire.call("Resume", task_pb2.ResumeRequest(id=GUEST).SerializeToString())
        for name in OTHERS:
            state = await wire.call("Delete", task_pb2.DeleteRequest(id=name).SerializeToString())
            while state.code:
                if state.message.startswith("container not created"):
                    break
                await wire.call("Resume", task_pb2.ResumeRequest(id=name).SerializeToString())
                await wire.call("Kill", task_pb2.KillRequest(id=name, signal=9, all=True).SerializeToString())
                await wire.call("Wait", task_pb2.WaitRequest(id=name).SerializeToString())
                state = await wire.call("Delete", task_pb2.DeleteRequest(id=name).SerializeToString())
        wire.close()

    def _is_busy(self) -> bool:
        """The worker has a call of the runtime under way."""
        calls = [Path(f"/proc/{pid}/comm") for pid in children(self.house.keeper.pid)]
        return "runc\n" in [comm.read_text() for comm in calls if comm.exists()]

    def check_told(self) -> None:
        """Each process has told of its one end."""
        for event in self.house.events:
            assert getattr(event, "container_id", "") in ("c0", GUEST, *OTHERS)
        for name in (GUEST, "c0"):
            told = self.house.told(name)
            assert told[:2] == ["Create", "Start"]
            assert told[-2:] == ["Exit", "Delete"], told[-5:]
            exits = [(e.id, e.pid) for e in self.house.events if isinstance(e, events_pb2.TaskExit)
                     and e.container_id == name]  # fmt: skip
            assert len(exits) == len(set(exits)), "an exit is told twice"
            starts = [one for one in told if one.startswith("ExecStarted")]
            assert len(exits) == len(starts) + 1, "an exit is lost or invented"


def memory_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def open_target(stack: AsyncExitStack, directory: Path, rootfs: Path) -> Target:
    house = await stack.enter_async_context(open_house(directory, rootfs))

    async def run(name: str) -> tuple[Task, str]:
        started = await house.launch("start", name, spec=house.spec(name, ["sleep", "1000"]))
        assert started.status == 0, started
        task = Task(house, name, await house.connect(started.stdout.decode()))
        await task.create()
        await task.call("Start")
        return task, started.stdout.decode()

    for name in OTHERS:
        house.bundle(name).mkdir()
        spec = house.spec(name, ["sh", "-c", "sleep 0.05; exit 4"])
        (house.bundle(name) / "config.json").write_text(json.dumps(spec))
    bystander, _ = await run("c0")
    guest, address = await run(GUEST)
    target = Target(house, bystander, guest, address)
    await guest.exec("e1", ["sleep", "1000"])
    await guest.call("Start", exec_id="e1")
    return target


async def close_target(target: Target) -> None:
    house = target.house
    await target.clean_up()
    assert (await target.bystander.call("State")).status == task_types_pb2.RUNNING
    assert (await target.guest.call("State")).status == task_types_pb2.RUNNING
    assert house.worker() == target.worker
    for name in (*[f"e{number}" for number in range(1, 5)],):
        request = task_pb2.KillRequest(id=GUEST, exec_id=name, signal=9).SerializeToString()
        wire = Wire(target.address)
        if (await wire.call("Kill", request)).code == 0:
            await wire.call("Wait", task_pb2.WaitRequest(id=GUEST, exec_id=name).SerializeToString())
        await wire.call("Delete", task_pb2.DeleteRequest(id=GUEST, exec_id=name).SerializeToString())
        wire.close()
    give_up = time.monotonic() + LIMIT_S
    while house.descriptors(target.worker) != target.descriptors and time.monotonic() < give_up:  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # a connection that ended just now
    assert house.descriptors(target.worker) == target.descriptors
    for task in (target.guest, target.bystander):
        await task.call("Kill", signal=9, all=True)
        await task.call("Wait")
        await task.call("Delete")
        await task.call("Shutdown")
        await house.wait_told(task.id, "Delete")
    async with asyncio.timeout(LIMIT_S):
        while children(house.keeper.pid) != [target.worker]:  # noqa: ASYNC110 - nothing tells of a reaping
            await asyncio.sleep(0.01)
    target.check_told()
    assert not os.listdir(house.directory / "root/default")
    assert str(house.directory) not in Path("/proc/self/mountinfo").read_text()
    unforeseen = [line for line in house.log().splitlines() if re.search("unforeseen|Traceback|not noted", line)]
    assert not unforeseen, "\n".join(line[:3000] for line in unforeseen[:5])


def fuzz(directory: Path, rootfs: Path, seconds: float) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        target = runner.run(open_target(stack, directory, rootfs))
        house = target.house
        try:
            warm, processes = 0.0, {"worker": target.worker, "keeper": house.keeper.pid}
            memory = {name: memory_bytes(pid) for name, pid in processes.items()}
            began = time.monotonic()
            for number in itertools.count():
                if time.monotonic() > began + seconds:
                    break
                if not warm and time.monotonic() > began + seconds / 3:
                    warm = time.monotonic() - began
                    memory = {name: memory_bytes(pid) for name, pid in processes.items()}

                @hypothesis.seed(number)
                @settings(
                    max_examples=50,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(st.binary(min_size=20, max_size=400))
                def play(data: bytes) -> None:
                    choices = Choices(data)
                    sent = [any_frame(choices, str(directory), WIRES) for _ in range(1 + choices.number(12))]
                    runner.run(target.play(sent, random.Random(data)))

                play()
            grown = {name: memory_bytes(pid) - memory[name] for name, pid in processes.items()}
            runner.run(close_target(target))
            print(
                f"{target.sent} frames of {target.examples} examples in {seconds:g} s;",
                f"answers: {dict(sorted(target.seen.items()))}; {len(house.events)} events;",
                f"memory grew by {grown} bytes after the first {warm:.0f} s;",
                f"a well-made call was answered after {target.slowest_s:.2f} s at most",
            )
            assert max(grown.values()) < GROWTH_BYTES, grown
        except BaseException:
            print(f"after {target.examples} examples\n{house.log()[-5000:]}")
            raise
        finally:
            runner.run(stack.aclose())


def test_five_seconds_of_anything_break_nothing(directory: Path, rootfs: Path) -> None:
    fuzz(directory, rootfs, 5)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_minute_of_anything_breaks_nothing(directory: Path, rootfs: Path) -> None:
    fuzz(directory, rootfs, 60)
