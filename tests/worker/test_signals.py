"""SIGUSR1 has a worker say what it is doing, and a signal that ends it costs no container anything."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from tests.worker.house import LIMIT_S, House, Task, open_house

from dunnage.api import task_pb2

pytestmark = pytest.mark.real

RUNNING = 2
SECRET = "hunter2-hunter2"


def perform(
    directory: Path,
    rootfs: Path,
    scenario: Callable[[House], Awaitable[None]],
    *,
    worker: str = "dunnage.worker.main:main",
) -> None:
    async def whole() -> None:
        async with asyncio.timeout(90), open_house(directory, rootfs, worker=worker) as house:
            try:
                await scenario(house)
            except BaseException:
                print(house.log()[-20_000:])
                raise

    asyncio.run(whole())


async def finish(task: Task) -> None:
    if (await task.call("State")).status == RUNNING:
        await task.call("Kill", signal=9)
    await task.call("Wait")
    await task.call("Delete")
    await task.call("Shutdown")
    assert (await task.house.launch("delete", task.id)).status == 0
    await task.house.wait_told(task.id, "Delete")


async def state_of(house: House, *parts: str) -> str:
    """What the worker says of itself: asked until it has said all of ``parts``, since it may be busy with getting
    there."""
    pid = house.worker()
    assert pid
    async with asyncio.timeout(10):
        while True:
            begun = len(house.log())
            os.kill(pid, signal.SIGUSR1)
            while f"=== end of the state of process {pid}" not in (said := house.log()[begun:]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if all(part in said for part in parts):
                return said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_ends_the_worker_leaves_containers_and_clients_alone(
    directory: Path, rootfs: Path, number: signal.Signals
) -> None:
    async def scenario(house: House) -> None:
        task = await house.start_shim("c1", ["sh", "-c", "trap 'exit 5' TERM; echo; while :; do sleep 0.01; done"])
        pid = await task.create()
        await task.call("Start")
        waiting = asyncio.create_task(task.call("Wait"))
        await task.call("State")
        first = house.worker()
        os.kill(first, number)
        await house.wait_gone(first)
        state = await task.call("State")
        assert (state.pid, state.status) == (pid, RUNNING)
        assert house.worker() not in (0, first)
        await task.call("Kill", signal=signal.SIGTERM)
        assert (await waiting).exit_status == 5
        await finish(task)
        told = house.told("c1")  # the one that was being sent may come twice
        assert list(dict.fromkeys(told)) == ["Create", "Start", "Exit", "Delete"]

    perform(directory, rootfs, scenario)


def test_sigusr1_says_what_the_worker_is_doing_and_stops_nothing(directory: Path, rootfs: Path) -> None:
    async def scenario(house: House) -> None:
        out = directory / "out"
        os.mkfifo(out)
        reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
        task = await house.start_shim("c1", ["sleep", "100"])
        pid = await task.create(stdout=str(out), stderr=str(out))
        await task.call("Start")
        process = {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh", "-c", f": {SECRET}; echo on; exec sleep 100"],
            "env": ["PATH=/bin", f"PASSWORD={SECRET}"],
            "cwd": "/",
        }
        request = task_pb2.ExecProcessRequest(id="c1", exec_id="e1", stdout=str(out))
        request.spec.value = json.dumps(process).encode()
        await task.client.call("containerd.task.v2.Task", "Exec", request, Empty, timeout_s=LIMIT_S)
        exec_pid = (await task.call("Start", exec_id="e1")).pid
        waiting = asyncio.create_task(task.call("Wait", exec_id="e1"))
        worker = house.worker()
        said = await state_of(
            house,
            f"=== state of process {worker} at ",
            f"worker node of keeper {house.keeper.pid}, state {house.state}",
            "group default/c1 at unix://",
            "connections: listener:default/c1#1",
            f"  container c1, bundle {house.bundle('c1')}\n",
            f"    init: running, pid {pid}\n      fifo io, open: stderr.pipe ",
            "stdout of default/c1: 0 bytes moved, waits for bytes",
            f"    exec e1: running, pid {exec_pid}\n",
            "call Wait c1 e1, 0.",
            "events of default for /",
            "  bundle:default/c1\n",
            "  journal:requests\n",
            "it was interrupted at, innermost first\n  ",
            "worker/main.py:",
            "container/process.py:",
        )
        assert SECRET not in said
        assert all(part.isprintable() for part in said.splitlines())
        assert house.worker() == worker
        os.kill(exec_pid, signal.SIGKILL)
        assert (await waiting).exit_status == 137
        await finish(task)
        os.close(reader)

    perform(directory, rootfs, scenario)


def test_the_state_says_whose_turn_it_is(directory: Path, rootfs: Path) -> None:
    release = directory / "release"
    slow = directory / "slow"
    wait = f"until [ -e {release} ]; do sleep 0.01; done"
    slow.write_text(f'#!/bin/sh\ncase " $* " in *" kill "*) {wait};; esac\nexec runc "$@"\n')
    slow.chmod(0o755)

    async def scenario(house: House) -> None:
        task = await house.start_shim("c1", ["sleep", "100"])
        await task.create(slow)
        await task.call("Start")
        kills = [asyncio.create_task(task.call("Kill", signal=signal.SIGWINCH)) for _ in range(2)]
        said = await state_of(house, "call Kill c1, ", ", 1 wait\n")
        holder = re.search(r"init: running, pid \d+, its turn is (\S+)'s, 1 wait\n", said)
        assert holder
        # and where that one is
        assert re.search(rf"  {holder[1]}\n(    .*\n)*    runtime/client.py:\d+ Runtime\.kill\n", said), said
        first = house.worker()
        house.kill_worker()
        await house.wait_gone(first)
        while not house.worker():  # noqa: ASYNC110 - it is being forked
            await asyncio.sleep(0.01)
        said = await state_of(house, "inherited call runtime:default/c1:kill, process ", "since a former worker")
        release.touch()
        await asyncio.gather(*kills)
        await finish(task)

    perform(directory, rootfs, scenario)


def test_a_worker_says_it_at_every_moment_of_its_life_and_of_a_recovery(directory: Path, rootfs: Path) -> None:
    async def scenario(house: House) -> None:
        task = await house.start_shim("c1", ["sleep", "100"])
        await task.create()
        await task.call("Start")

        async def exec_one(number: int) -> None:
            exec_id = f"e{number}"
            await task.exec(exec_id, ["sh", "-c", f"exit {number}"])
            await task.call("Start", exec_id=exec_id)
            assert (await task.call("Wait", exec_id=exec_id)).exit_status == number
            await task.call("Delete", exec_id=exec_id)

        await asyncio.gather(*(exec_one(number) for number in range(4)))
        first = house.worker()
        os.kill(first, signal.SIGKILL)
        await house.wait_gone(first)
        await asyncio.gather(*(exec_one(number) for number in range(4)))
        second = house.worker()
        await finish(task)
        log = house.log()
        assert "ended with -10" not in log, "SIGUSR1 has ended a worker"
        assert "cannot be described" not in log
        # the log keeps its end only
        assert f"=== state of process {second} at " in log

    perform(directory, rootfs, scenario, worker="tests.worker.dumping:main")


def test_a_worker_that_has_only_been_forked_says_so(directory: Path, rootfs: Path) -> None:
    async def scenario(house: House) -> None:
        assert (await house.launch("delete", "c0", spec={})).status == 0
        assert "there is no worker yet" in house.log()
        assert "ended with -10" not in house.log()

    perform(directory, rootfs, scenario, worker="tests.worker.dumping:main")
