"""Whatever a client sends is refused with a fitting code, the same worker serves all others, and nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from tests.worker import bad_input
from tests.worker.house import LIMIT_S, House, Task, children, open_house
from tests.worker.wire import TASK, Wire

from dunnage.api import task_pb2, task_types_pb2
from dunnage.api.ttrpc_pb2 import Request
from dunnage.ttrpc.errors import Code
from dunnage.ttrpc.frames import MAX_DATA_BYTES, Type

pytestmark = pytest.mark.real

FEWEST_ROWS = 25


class Site:
    """A house with ``c0``, which has to go on undisturbed, and ``c1`` with its execs, of which bad things are asked."""

    def __init__(self, house: House, bystander: Task, task: Task, address: str) -> None:
        self.house, self.bystander, self.task, self.address = house, bystander, task, address
        self.worker = house.worker()

    def wire(self) -> Wire:
        return Wire(self.address)

    async def check_served(self) -> None:
        """The same worker serves another container."""
        assert (await self.bystander.call("State")).status == task_types_pb2.RUNNING
        assert self.house.worker() == self.worker


def play(directory: Path, rootfs: Path, scenario: Callable[[Site], Awaitable[None]]) -> None:
    """The scenario, and after it: all still run as before, can be deleted, and nothing is left of anything."""

    async def run(house: House, name: str) -> tuple[Task, str]:
        started = await house.launch("start", name, spec=house.spec(name, ["sleep", "1000"]))
        assert started.status == 0, started
        address = started.stdout.decode()
        task = Task(house, name, await house.connect(address))
        await task.create()
        await task.call("Start")
        return task, address

    async def end(task: Task) -> None:
        await task.call("Kill", signal=9, all=True)
        await task.call("Wait")
        await task.call("Delete")
        await task.call("Shutdown")
        answer = await task.house.launch("delete", task.id)
        assert answer.status == 0, answer

    async def whole() -> None:
        async with open_house(directory, rootfs) as house:
            try:
                bystander, _ = await run(house, "c0")
                task, address = await run(house, "c1")
                await task.exec("idle", ["true"])
                await task.exec("e1", ["sleep", "1000"])
                await task.call("Start", exec_id="e1")
                site = Site(house, bystander, task, address)
                before = house.descriptors(site.worker)
                await scenario(site)
                await site.check_served()
                assert (await task.call("State")).status == task_types_pb2.RUNNING
                assert (await task.call("State", exec_id="e1")).status == task_types_pb2.RUNNING
                assert (await task.call("State", exec_id="idle")).status == task_types_pb2.CREATED
                added = {f"ExecAdded bad{number}" for number in range(50)}
                assert set(house.told("c1")) - added == {
                    "Create",
                    "Start",
                    "ExecAdded idle",
                    "ExecAdded e1",
                    "ExecStarted e1",
                }
                assert set(house.told("c0")) == {"Create", "Start"}
                assert len(house.events) == len(house.told("c0")) + len(house.told("c1")), "told of something else"
                async with asyncio.timeout(LIMIT_S):
                    while house.descriptors(site.worker) != before:  # noqa: ASYNC110 - a connection that just ended
                        await asyncio.sleep(0.01)
                await end(task)
                await end(bystander)
                async with asyncio.timeout(LIMIT_S):
                    while children(house.keeper.pid) != [house.worker()]:  # noqa: ASYNC110 - nothing tells of a reaping
                        await asyncio.sleep(0.01)
                assert not os.listdir(directory / "root/default")
                unforeseen = [line for line in house.log().splitlines() if re.search("unforeseen|Traceback", line)]
                assert not unforeseen, "\n".join(line[:3000] for line in unforeseen)
            except BaseException:
                print(house.log()[-20000:])
                raise

    asyncio.run(whole())


def test_every_bad_request_is_refused_and_nobody_else_hears_of_it(directory: Path, rootfs: Path) -> None:
    async def scenario(site: Site) -> None:
        (directory / "new").mkdir()
        (directory / "new/config.json").write_text(json.dumps(site.house.spec("new", ["true"])))
        wire = site.wire()
        wrong = []
        for row in bad_input.rows(directory):
            try:
                answer = await wire.call(row.method, row.payload, timeout_ns=row.timeout_ns)
            except (ConnectionError, TimeoutError) as error:
                wrong.append(f"{row.method}, {row.what}: {error!r}")
                wire = site.wire()
                continue
            if answer.code not in row.codes:
                wrong.append(f"{row.method}, {row.what}: {answer}, not {row.codes}")
            elif answer.code and not answer.message:
                wrong.append(f"{row.method}, {row.what}: {answer} says nothing")
            await site.check_served()
        wire.close()
        assert not wrong, "\n".join(line[:400] for line in wrong)
        assert set(os.listdir(directory / "new")) <= {"config.json", "options.json", "runtime", "log.json", "rootfs",
            "dunnage-failures.json"}  # fmt: skip
        mounts = Path("/proc/self/mountinfo").read_text()
        assert f"{directory}/new" not in mounts

    play(directory, rootfs, scenario)


def test_no_call_is_without_its_bad_requests(tmp_path: Path) -> None:
    count = Counter(row.method for row in bad_input.rows(tmp_path))
    assert set(count) == set(task_pb2.DESCRIPTOR.services_by_name["Task"].methods_by_name)
    assert min(count.values()) >= FEWEST_ROWS, count


def frame(stream_id: int, data: bytes, *, kind: int = Type.REQUEST, flags: int = 0, length: int | None = None) -> bytes:
    """As ``encode``, which refuses to lie."""
    size = len(data) if length is None else length
    return size.to_bytes(4, "big") + stream_id.to_bytes(4, "big") + bytes([kind, flags]) + data


def state(container: str = "c1", *, service: str = TASK, method: str = "State") -> bytes:
    payload = task_pb2.StateRequest(id=container).SerializeToString()
    return Request(service=service, method=method, payload=payload).SerializeToString()


def test_every_bad_frame_is_refused_and_its_connection_lives_on(directory: Path, rootfs: Path) -> None:
    async def scenario(site: Site) -> None:
        wire = site.wire()

        async def refused(frame_of: Callable[[int], bytes], code: Code, text: str) -> None:
            stream_id = wire.next_id()
            answer = await wire.ask(stream_id, frame_of(stream_id))
            assert (answer.code, answer.message[: len(text)]) == (code, text)
            await served()

        async def served() -> None:
            answer = await wire.ask(stream_id := wire.next_id(), frame(stream_id, state()))
            assert task_pb2.StateResponse.FromString(answer.payload).status == task_types_pb2.RUNNING
            await site.check_served()

        padding = MAX_DATA_BYTES - len(state()) - 6
        longest = state() + b"\xfa\x7f" + _varint(padding) + bytes(padding)  # in a field that nobody knows
        assert len(longest) == MAX_DATA_BYTES
        answer = await wire.ask(stream_id := wire.next_id(), frame(stream_id, longest))
        assert answer.code == 0, "the longest frame that there may be"
        for size in (MAX_DATA_BYTES + 1, MAX_DATA_BYTES + 70_000, 3 * MAX_DATA_BYTES):
            text = f"message length {size} exceed maximum message size of 4194304"
            await refused(partial(frame, data=bytes(size)), Code.RESOURCE_EXHAUSTED, text)
        await refused(lambda i: frame(i, b"\xff" * 50), Code.INVALID_ARGUMENT, "unmarshal request error: ")
        await refused(lambda i: frame(i, b"\x0a\x02\xff\xfe"), Code.INVALID_ARGUMENT, "unmarshal request error: ")
        await refused(lambda i: frame(i, b""), Code.UNIMPLEMENTED, "service ")
        await refused(lambda i: frame(i, state(service="no.such.Service")), Code.UNIMPLEMENTED, "service no.such.Serv")
        await refused(lambda i: frame(i, state(method="NoSuch")), Code.UNIMPLEMENTED, "method NoSuch")
        await refused(lambda i: frame(i, state(method="")), Code.UNIMPLEMENTED, "method ")
        await refused(lambda i: frame(i, state(), flags=2), Code.UNIMPLEMENTED, "method State")
        await refused(lambda i: frame(i, b"x", kind=3), Code.INVALID_ARGUMENT, "StreamID is no longer active")
        for even in (0, 2, 1 << 31):
            text = "StreamID must be odd for client initiated streams"
            answer = await wire.ask(even, frame(even, state()))
            assert (answer.code, answer.message) == (Code.INVALID_ARGUMENT, text)
        answer = await wire.ask(1, frame(1, state()))
        assert (answer.code, answer.message) == (3, "StreamID cannot be re-used and must increment")
        for kind in (0, 2, 4, 9, 255):  # of no meaning to a server: passed over
            await wire.send(frame(wire.next_id(), state(), kind=kind))
            await served()
        last = (1 << 32) - 1
        assert (await wire.ask(last, frame(last, state()))).code == 0
        assert not wire.strays
        wire.close()

    play(directory, rootfs, scenario)


def test_connections_that_end_anywhere_leave_nothing(directory: Path, rootfs: Path) -> None:
    async def scenario(site: Site) -> None:
        whole = frame(1, state())
        for cut in (*range(len(whole)), None):
            wire = site.wire()
            await wire.send(whole[:cut])
            wire.close()
        for length in (100_000, MAX_DATA_BYTES, MAX_DATA_BYTES + 1, (1 << 32) - 1):
            for sent in (0, 1, 1000, 90_000):
                wire = site.wire()
                await wire.send(frame(1, bytes(sent), length=length))
                wire.close()
        waiting = [site.wire() for _ in range(20)]
        for wire in waiting:
            payload = task_pb2.WaitRequest(id="c1").SerializeToString()
            await wire.send(frame(1, Request(service=TASK, method="Wait", payload=payload).SerializeToString()))
            wire.close()
        await site.check_served()

    play(directory, rootfs, scenario)


def test_an_exec_of_almost_four_mebibytes_is_run_or_refused(directory: Path, rootfs: Path) -> None:
    """What is too much for execve(2) is the runtime's to refuse; the container can still be written down."""

    async def scenario(site: Site) -> None:
        wire = site.wire()
        sizes = {"one": [3_900_000], "many": [30] * 100_000, "long": [100_000] * 38}
        for name, lengths in sizes.items():
            process = {"args": ["true"], "cwd": "/", "env": ["PATH=/bin", *(f"A={'x' * size}" for size in lengths)]}
            request = task_pb2.ExecProcessRequest(id="c1", exec_id="e1", spec={"value": json.dumps(process).encode()})
            request.exec_id = f"huge-{name}"
            answer = await wire.call("Exec", request.SerializeToString())
            assert answer.code == 0, (name, answer)
            start = task_pb2.StartRequest(id="c1", exec_id=request.exec_id).SerializeToString()
            answer = await wire.call("Start", start)
            if answer.code:
                assert answer.message.startswith("OCI runtime exec failed: "), (name, answer)
            else:
                await site.task.call("Wait", exec_id=request.exec_id)
                await site.house.wait_told("c1", f"Exit huge-{name}")
            delete = task_pb2.DeleteRequest(id="c1", exec_id=request.exec_id).SerializeToString()
            assert (await wire.call("Delete", delete)).code == 0
            await site.check_served()
        wire.close()
        site.house.events = [event for event in site.house.events if "huge" not in str(event)]

    play(directory, rootfs, scenario)


def _varint(number: int) -> bytes:
    """In four bytes, whatever its size."""
    return bytes([number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14 & 0x7F | 0x80, number >> 21])
