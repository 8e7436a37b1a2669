"""A worker killed at any call of the runtime: its clients have their answers, and nothing is lost or left."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.worker.house import LIMIT_S, House, Killer, Task, open_house

from dunnage.api import task_pb2
from dunnage.ttrpc.errors import Code, RpcError

pytestmark = pytest.mark.real

NEEDED = {"config.json", "init.pid", "log.json", "options.json", "runtime", "address"}


def perform(directory: Path, rootfs: Path, scenario: Callable[[House], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), open_house(directory, rootfs) as house:
            try:
                await scenario(house)
            except BaseException:
                print(house.log())
                raise

    asyncio.run(whole())


async def finish(task: Task) -> None:
    """Delete it as containerd does, and see that nothing is left."""
    house = task.house
    await task.call("Delete")
    await task.call("Shutdown")
    answer = await house.launch("delete", task.id)
    assert answer.status == 0, answer
    await house.wait_told(task.id, "Delete")
    assert set(os.listdir(house.bundle(task.id))) <= NEEDED


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("verb", ["create", "start", "exec", "delete"])
def test_a_worker_killed_at_a_call_of_the_runtime_is_not_missed(
    directory: Path, rootfs: Path, verb: str, moment: str
) -> None:
    killer = Killer(directory, verb, moment)

    async def scenario(house: House) -> None:
        first = house.worker()
        task = await house.start_shim("c1", ["sleep", "100"])
        pid = await task.create(killer.path)
        waiting = asyncio.create_task(task.call("Wait"))
        assert (await task.call("Start")).pid == pid
        await task.exec("e1", ["sh", "-c", "exit 3"])
        exec_pid = (await task.call("Start", exec_id="e1")).pid
        assert (await task.call("Wait", exec_id="e1")).exit_status == 3
        deleted = await task.call("Delete", exec_id="e1")
        assert (deleted.pid, deleted.exit_status) == (exec_pid, 3)
        await task.call("Kill", signal=9)
        assert (await waiting).exit_status == 137
        await finish(task)
        assert killer.done.exists()
        assert house.worker() != first
        assert list(dict.fromkeys(house.told("c1"))) == [
            "Create", "Start", "ExecAdded e1", "ExecStarted e1", "Exit e1", "Exit", "Delete",
        ]  # fmt: skip

    perform(directory, rootfs, scenario)


def test_an_exec_is_never_run_twice(directory: Path, rootfs: Path) -> None:
    killer = Killer(directory, "exec", "before")

    async def scenario(house: House) -> None:
        out = house.directory / "out"
        out.touch()
        task = await house.start_shim("c1", ["sleep", "100"])
        await task.create(killer.path)
        await task.call("Start")
        await task.exec("e1", ["echo", "once"], stdout=str(out), stderr=str(out))
        await task.call("Start", exec_id="e1")
        assert (await task.call("Wait", exec_id="e1")).exit_status == 0
        await task.call("Delete", exec_id="e1")
        assert out.read_text() == "once\n"
        await task.call("Kill", signal=9)
        await task.call("Wait")
        await finish(task)

    perform(directory, rootfs, scenario)


def test_a_worker_after_many_has_no_more_descriptors(directory: Path, rootfs: Path) -> None:
    async def scenario(house: House) -> None:
        task = await house.start_shim("c0", ["true"])
        await task.create()
        await task.call("Start")
        await task.call("Wait")
        await finish(task)
        baseline = house.descriptors(house.worker())
        fifo = house.directory / "out"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        task = await house.start_shim("c1", ["sleep", "100"])
        await task.create(stdout=str(fifo), stderr=str(fifo))
        await task.call("Start")
        for _ in range(3):
            house.kill_worker()
            await task.call("State")
        await task.call("Kill", signal=9)
        await task.call("Wait")
        await finish(task)
        await asyncio.sleep(0)
        assert os.read(reader, 1) == b"", "nobody holds the client's fifo"
        os.close(reader)
        assert house.descriptors(house.worker()) == baseline

    perform(directory, rootfs, scenario)


def test_a_create_that_hangs_keeps_no_other_client_waiting(directory: Path, rootfs: Path) -> None:
    release = directory / "release"
    os.mkfifo(release)
    hanging = directory / "hanging"
    hang = f"mkdir {directory}/once && read line < {release}"
    hanging.write_text(f'#!/bin/sh\ncase " $* " in *" create "*) {hang};; esac\nexec runc "$@"\n')
    hanging.chmod(0o755)

    async def scenario(house: House) -> None:
        other = await house.start_shim("c1", ["sleep", "100"])
        await other.create()
        await other.call("Start")
        task = await house.start_shim("c2", ["sleep", "100"])
        creating = asyncio.create_task(task.create(hanging))
        writer = await asyncio.to_thread(os.open, release, os.O_WRONLY)
        house.kill_worker()
        async with asyncio.timeout(2):
            await other.call("State")
        await other.call("Kill", signal=9)
        assert (await other.call("Wait")).exit_status == 137
        assert not creating.done()
        os.close(writer)
        pid = await creating
        assert (await task.call("Start")).pid == pid
        assert house.told("c2") == ["Create", "Start"]
        await task.call("Kill", signal=9)
        await task.call("Wait")
        await finish(task)
        await finish(other)

    perform(directory, rootfs, scenario)


def test_a_bundle_whose_record_cannot_be_read_stops_no_other(directory: Path, rootfs: Path) -> None:
    async def scenario(house: House) -> None:
        tasks = [await house.start_shim(name, ["sleep", "100"]) for name in ("c1", "c2")]
        for task in tasks:
            await task.create()
            await task.call("Start")
        (house.bundle("c1") / "dunnage.json").write_text('{"version": 99}')
        house.kill_worker()
        assert (await tasks[1].call("State")).pid
        assert "is of version 99" in house.log()
        await house.launch("delete", "c1")
        await tasks[1].call("Kill", signal=9)
        await tasks[1].call("Wait")
        await finish(tasks[1])

    perform(directory, rootfs, scenario)


def test_a_delete_by_a_launcher_ends_what_its_create_makes(directory: Path, rootfs: Path) -> None:
    """The client has given its Create up, and containerd asks for an end."""
    release = directory / "release"
    os.mkfifo(release)
    slow = directory / "slow"
    slow.write_text(
        f'#!/bin/sh\nrunc "$@"; status=$?\ncase " $* " in *" create "*) read line < {release};; esac\nexit $status\n'
    )
    slow.chmod(0o755)

    async def scenario(house: House) -> None:
        task = await house.start_shim("c1", ["sleep", "100"])
        creating = asyncio.create_task(task.create(slow))
        writer = await asyncio.to_thread(os.open, release, os.O_WRONLY)
        task.client.close()
        deleting = asyncio.create_task(house.launch("delete", "c1"))
        await asyncio.sleep(0)
        os.close(writer)
        assert (await deleting).status == 0
        with pytest.raises(ConnectionError):
            await creating
        assert not os.listdir(house.directory / "root/default")
        assert set(os.listdir(house.bundle("c1"))) <= NEEDED

    perform(directory, rootfs, scenario)


def test_a_pod_s_last_end_and_next_beginning_do_not_meet(directory: Path, rootfs: Path) -> None:
    async def scenario(house: House) -> None:
        last = await house.start_shim("c0", ["true"], group="pod")
        for number in range(1, 6):
            await last.create()
            await last.call("Start")
            await last.call("Wait")
            await last.call("Delete")
            spec = house.spec(f"c{number}", ["true"], group="pod")
            _, answer = await asyncio.gather(
                last.call("Shutdown"), house.launch("start", f"c{number}", spec=spec), return_exceptions=False
            )
            assert answer.status == 0
            last = Task(house, f"c{number}", await house.connect(answer.stdout.decode()))
        await last.create()
        await last.call("Start")
        await last.call("Wait")
        await finish(last)

    perform(directory, rootfs, scenario)


def test_a_container_that_hangs_while_it_is_taken_up_keeps_its_siblings_clients_not_waiting(
    directory: Path, rootfs: Path
) -> None:
    release = directory / "release"
    os.mkfifo(release)
    hanging = directory / "hanging"
    hanging.write_text(f'#!/bin/sh\ncase " $* " in *" start "*) read line < {release};; esac\nexec runc "$@"\n')
    hanging.chmod(0o755)

    async def scenario(house: House) -> None:
        sibling = await house.start_shim("c1", ["sleep", "100"], group="pod")
        await sibling.create()
        await sibling.call("Start")
        task = await house.start_shim("c2", ["sleep", "100"], group="pod")
        pid = await task.create(hanging)
        starting = asyncio.create_task(task.call("Start"))
        writer = await asyncio.to_thread(os.open, release, os.O_WRONLY)
        house.kill_worker()
        asked = [asyncio.create_task(task.call("State")), asyncio.create_task(task.call("Wait"))]
        async with asyncio.timeout(2):
            await Task(house, "c1", task.client).call("State")  # over the same connection, and asked later
            await sibling.call("State")
        await sibling.call("Kill", signal=9)
        assert (await sibling.call("Wait")).exit_status == 137
        assert not any(call.done() for call in [starting, *asked])
        os.close(writer)
        assert (await starting).pid == pid
        assert (await asked[0]).pid == pid
        assert house.told("c2") == ["Create", "Start"]
        await task.call("Kill", signal=9)
        assert (await asked[1]).exit_status == 137
        await finish(task)
        await finish(sibling)

    perform(directory, rootfs, scenario)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("dunnage.json", '{"version": 99}', "dunnage.json is of version 99"),
        ("dunnage.json", '{"version": 1}', "what is written of it is not understood"),
        ("dunnage-launch.json", "{", "dunnage-launch.json cannot be read"),
    ],
)
def test_a_container_that_cannot_be_taken_up_is_refused_and_left_alone_until_its_delete(
    directory: Path, rootfs: Path, file: str, text: str, reason: str
) -> None:
    async def scenario(house: House) -> None:
        sibling = await house.start_shim("c1", ["sleep", "100"], group="pod")
        task = await house.start_shim("c2", ["sh", "-c", "echo said; exec sleep 100"], group="pod")
        fifo = house.directory / "out"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        await sibling.create()
        pid = await task.create(stdout=str(fifo), stderr=str(fifo))
        await task.call("Start")
        assert await asyncio.to_thread(wait_readable, reader) == b"said\n"
        path = house.bundle("c2") / file
        written = path.read_text()
        path.write_text(text)
        house.kill_worker()
        await sibling.call("Kill", signal=9)
        await sibling.call("Wait")
        for method in ("State", "Wait", "Delete", "Start"):
            with pytest.raises(RpcError, match=f"container c2 cannot be taken up: .*{reason}") as refused:
                await task.call(method)
            assert refused.value.code is Code.FAILED_PRECONDITION
        await sibling.call("Delete")
        await sibling.call("Shutdown")
        await task.call("Shutdown")
        await house.launch("delete", "c1")
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        assert os.path.exists(f"/proc/{pid}")
        # a worker that can read it goes on with it
        path.write_text(written)
        house.kill_worker()
        assert (await task.call("State")).pid == pid
        path.write_text("")
        house.kill_worker()
        with pytest.raises(RpcError, match="cannot be taken up"):
            await task.call("State")
        ended = task_pb2.DeleteResponse.FromString((await house.launch("delete", "c2")).stdout)
        assert (ended.pid, ended.exit_status) == (pid, 137)
        await house.wait_gone(pid)
        assert os.read(reader, 1) == b"", "nobody holds the client's fifo"
        os.close(reader)
        with pytest.raises(ConnectionError):
            await task.call("State")

    perform(directory, rootfs, scenario)


def wait_readable(fd: int) -> bytes:
    select.select([fd], [], [], LIMIT_S)
    return os.read(fd, 100)
