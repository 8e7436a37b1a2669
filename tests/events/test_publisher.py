"""Events against a real ttrpc server: order across outages, the bound, refusals, the journal."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from dunnage.api.events_pb2 import TaskDelete, TaskExecStarted, TaskExit, TaskIO, TaskStart
from dunnage.api.forward_pb2 import Envelope, ForwardRequest
from dunnage.events.publisher import Publisher
from dunnage.ttrpc.errors import Code, RpcError
from dunnage.ttrpc.server import Call, Method, Server

LOG = logging.getLogger("test")


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test is a coroutine, with twenty seconds for it."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 20))

    return run


class Containerd:
    """The event service of a containerd that can be stopped, started, made slow and made to refuse."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.got: list[int] = []
        self.envelopes: list[Envelope] = []
        self.metadata: list[tuple[tuple[str, str], ...]] = []
        self.arrived: asyncio.Queue[int] = asyncio.Queue()
        self.refuse: Callable[[int], RpcError | None] = lambda pid: None
        self.silent = False
        self._names = 0

    def start(self) -> Containerd:
        self.path.unlink(missing_ok=True)
        methods = {"Forward": Method(ForwardRequest, self._forward)}
        self._server = Server({"containerd.services.events.ttrpc.v1.Events": methods}, log=LOG)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        return self

    async def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        await self._server.close()

    def _accept(self) -> None:
        self._names += 1
        self._server.attach(self._listener.accept()[0], f"c{self._names}")

    async def _forward(self, request: ForwardRequest, call: Call) -> Empty:
        envelope = request.envelope
        pid = TaskStart.FromString(envelope.event.value).pid
        self.arrived.put_nowait(pid)
        if self.silent:
            await asyncio.Event().wait()
        refusal = self.refuse(pid)
        if refusal is not None:
            raise refusal
        self.got.append(pid)
        self.envelopes.append(envelope)
        self.metadata.append(call.metadata)
        return Empty()


class Ledger:
    """A journal in this process."""

    def __init__(self) -> None:
        self.records: dict[int, bytes] = {}
        self._last = 0

    def append(self, record: bytes) -> int:
        self._last += 1
        self.records[self._last] = record
        return self._last

    def done(self, entry: int) -> None:
        del self.records[entry]


def publisher(containerd: Containerd | None, journal: Ledger | None = None, **options: Any) -> Publisher:
    address = None if containerd is None else str(containerd.path)
    return Publisher(address, "default", journal=journal, log=LOG, **options)


def publish(to: Publisher, pids: range) -> None:
    for pid in pids:
        to.publish(TaskStart(container_id="c1", pid=pid))


@asynchronous
async def test_an_event_is_forwarded_as_containerd_reads_it(tmp_path: Path) -> None:
    containerd = Containerd(tmp_path / "s").start()
    to = publisher(containerd)
    before = time.time_ns()
    event = TaskStart(container_id="c1", pid=7)
    to.publish(event)
    after = time.time_ns()
    assert await to.flush(5)
    [envelope] = containerd.envelopes
    assert (envelope.namespace, envelope.topic) == ("default", "/tasks/start")
    assert (envelope.event.type_url, envelope.event.value) == ("containerd.events.TaskStart", event.SerializeToString())
    assert before <= envelope.timestamp.seconds * 10**9 + envelope.timestamp.nanos <= after
    assert containerd.metadata == [(("containerd-namespace-ttrpc", "default"),)]
    await to.close()
    await containerd.stop()


@asynchronous
async def test_order_holds_across_outages_and_nothing_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    containerd = Containerd(tmp_path / "s")
    to = publisher(containerd)
    publish(to, range(100))
    for outage in range(3):
        containerd.start()
        for _ in range(40):
            await containerd.arrived.get()
        await containerd.stop()  # in the middle of a stream of events
        publish(to, range(100 + outage * 100, 200 + outage * 100))
    containerd.start()
    assert await to.flush(10)
    # an event that was under way when containerd stopped may come again, at once
    assert list(dict.fromkeys(containerd.got)) == list(range(400))
    assert containerd.got == sorted(containerd.got)
    assert caplog.text.count("containerd takes no events") <= 4
    await to.close()
    await containerd.stop()


@asynchronous
async def test_the_oldest_is_dropped_by_name_when_too_many_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    containerd = Containerd(tmp_path / "s")
    ledger = Ledger()
    to = publisher(containerd, ledger, limit=10)
    to.publish(TaskExecStarted(container_id="web", exec_id="e1", pid=99))
    publish(to, range(10))
    assert "event /tasks/exec-started web e1 is dropped: more than 10 wait for containerd" in caplog.text
    await asyncio.sleep(0)  # the sender is at work on the first one now
    publish(to, range(10, 12))
    assert (to.waiting, len(ledger.records)) == (10, 10)
    containerd.start()
    assert await to.flush(5)
    assert containerd.got == list(range(2, 12))
    assert ledger.records == {}
    await to.close()
    await containerd.stop()


@asynchronous
async def test_an_exit_and_a_delete_are_never_dropped_however_many_wait(tmp_path: Path) -> None:
    containerd = Containerd(tmp_path / "s")
    ledger = Ledger()
    to = publisher(containerd, ledger, limit=4)
    for pid in range(6):
        to.publish(TaskStart(container_id="c1", pid=pid))
        to.publish(TaskExit(container_id="c1", id="c1", pid=pid))
        to.publish(TaskDelete(container_id="c1", pid=pid))
    assert (to.waiting, len(ledger.records)) == (12, 12)
    containerd.start()
    assert await to.flush(5)
    assert [(envelope.topic.rpartition("/")[2]) for envelope in containerd.envelopes] == ["exit", "delete"] * 6
    await to.close()
    await containerd.stop()


@asynchronous
async def test_a_journal_that_forgets_nothing_holds_up_no_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class FullLedger(Ledger):
        def done(self, entry: int) -> None:
            raise OSError(errno.ENOSPC, "no room")

    containerd = Containerd(tmp_path / "s").start()
    to = publisher(containerd, FullLedger())
    publish(to, range(3))
    assert await to.flush(5)
    assert containerd.got == [0, 1, 2]
    assert "record 1 stays in the journal" in caplog.text
    await to.close()
    await containerd.stop()


@asynchronous
async def test_ten_thousand_events_wait_for_containerd(tmp_path: Path) -> None:
    to = publisher(Containerd(tmp_path / "s"))
    publish(to, range(10_001))
    assert to.waiting == 10_000
    assert not await to.flush(0)
    await to.close()


@asynchronous
async def test_an_event_that_containerd_refuses_is_dropped_after_five_tries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    containerd = Containerd(tmp_path / "s").start()
    containerd.refuse = lambda pid: RpcError(Code.INVALID_ARGUMENT, "no such") if pid == 1 else None
    ledger = Ledger()
    to = publisher(containerd, ledger)
    publish(to, range(3))
    assert await to.flush(10)
    assert [containerd.arrived.get_nowait() for _ in range(7)] == [0, 1, 1, 1, 1, 1, 2]
    assert containerd.got == [0, 2]
    assert "event /tasks/start c1 is dropped: containerd refuses it: no such" in caplog.text
    assert ledger.records == {}
    await to.close()
    await containerd.stop()


@asynchronous
async def test_an_unavailable_containerd_is_one_that_is_away(tmp_path: Path) -> None:
    containerd = Containerd(tmp_path / "s").start()
    tries = iter(range(7))
    containerd.refuse = lambda pid: RpcError(Code.UNAVAILABLE, "starting") if next(tries, None) is not None else None
    to = publisher(containerd)
    publish(to, range(2))
    assert await to.flush(10)
    assert containerd.got == [0, 1]
    await to.close()
    await containerd.stop()


@asynchronous
async def test_a_containerd_that_does_not_answer_gets_the_event_again(tmp_path: Path) -> None:
    containerd = Containerd(tmp_path / "s").start()
    containerd.silent = True
    to = publisher(containerd, call_timeout_s=0.02)
    publish(to, range(2))
    assert [await containerd.arrived.get() for _ in range(2)] == [0, 0]
    containerd.silent = False
    assert await to.flush(10)
    assert containerd.got == [0, 1]
    await to.close()
    await containerd.stop()


@asynchronous
async def test_what_was_not_acknowledged_is_recovered_ahead_of_what_is_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    containerd = Containerd(tmp_path / "s")
    ledger = Ledger()
    dying = publisher(containerd, ledger)
    publish(dying, range(5))
    assert not await dying.flush(0)
    await dying.close()
    assert len(ledger.records) == 5
    entry = ledger.append(b"\xff")
    containerd.start()
    to = publisher(containerd, ledger)
    to.recover(sorted(ledger.records.items()))
    publish(to, range(5, 8))
    assert await to.flush(5)
    assert containerd.got == list(range(8))
    assert ledger.records == {}
    assert f"record {entry} of the journal is no event" in caplog.text
    await to.close()
    await containerd.stop()


@asynchronous
async def test_an_event_that_no_journal_takes_is_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Ledger):
        def append(self, record: bytes) -> int:
            raise OSError("no space left")

    containerd = Containerd(tmp_path / "s").start()
    to = publisher(containerd, Full())
    publish(to, range(1))
    assert await to.flush(5)
    assert containerd.got == [0]
    assert "event /tasks/start is not in the journal" in caplog.text
    await to.close()
    await containerd.stop()


@asynchronous
async def test_after_the_end_an_event_is_left_to_the_journal(tmp_path: Path) -> None:
    ledger = Ledger()
    to = publisher(Containerd(tmp_path / "s"), ledger)
    await to.close()
    publish(to, range(1))
    assert (to.waiting, len(ledger.records)) == (0, 1)


def test_listeners_hear_every_event_without_any_containerd(caplog: pytest.LogCaptureFixture) -> None:
    def fail(envelope: Envelope) -> None:
        raise KeyError(envelope.topic)

    heard: list[str] = []
    to = publisher(None, Ledger())
    to.subscribe(fail)
    unsubscribe = to.subscribe(lambda envelope: heard.append(envelope.topic))
    publish(to, range(2))
    unsubscribe()
    publish(to, range(1))
    assert heard == ["/tasks/start", "/tasks/start"]
    assert to.waiting == 0
    assert "listener failed on event /tasks/start" in caplog.text


def test_only_events_are_published() -> None:
    with pytest.raises(ValueError, match="is not an event"):
        publisher(None).publish(TaskIO())
