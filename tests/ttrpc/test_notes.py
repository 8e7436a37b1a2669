"""Requests outlive the process that serves them: noted before they are consumed, replayed by the next one."""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import socket
import termios
from collections.abc import Callable, Sequence

import pytest
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from tests.ttrpc.echo import LOG, Echo, Wire, asynchronous, served

from dunnage.ttrpc.connection import ClientConnection
from dunnage.ttrpc.errors import ConnectionClosed
from dunnage.ttrpc.frames import MAX_DATA_BYTES, Type, encode
from dunnage.ttrpc.server import WINDOW_BYTES, Server


class Ledger:
    """Notes in this process, which also looks at the socket while it notes."""

    def __init__(self) -> None:
        self.ever_noted: list[bytes] = []
        self.events: list[str] = []
        self.looks: list[int] = []
        self.look: Callable[[], int] | None = None
        self.told: asyncio.Queue[str] = asyncio.Queue()
        self.broken = False

    def note(self, connection: str, stream_id: int, frame: bytes) -> None:
        if self.broken:
            raise OSError("no space left")
        self._look()
        self.ever_noted.append(frame)
        self._tell(f"note {stream_id}")

    def partial(self, connection: str, data: bytes) -> None:
        if self.broken:
            raise OSError("no space left")
        self._look()
        self.events.append("partial")

    def answered(self, connection: str, stream_id: int) -> None:
        self._tell(f"answered {stream_id}")

    def disconnected(self, connection: str) -> None:
        self._tell("disconnected")

    def _look(self) -> None:
        if self.look is not None:
            self.looks.append(self.look())

    def _tell(self, event: str) -> None:
        self.events.append(event)
        self.told.put_nowait(event)


def unread_bytes(sock: socket.socket) -> int:
    size = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, size)
    return size[0]


async def turn_until(is_true: Callable[[], bool]) -> None:
    """Let the loop turn: what is waited for here has no event, for nothing is to be seen of it."""
    while not is_true():  # noqa: ASYNC110
        await asyncio.sleep(0)


class Client:
    """Makes the frames of calls."""

    def __init__(self) -> None:
        self._protocol = ClientConnection()

    def frame(self, method: str, text: str = "") -> bytes:
        return self._protocol.call("echo", method, StringValue(value=text).SerializeToString())[1]

    def frame_of(self, size: int) -> bytes:
        return self._protocol.call("echo", "Bytes", BytesValue(value=os.urandom(size)).SerializeToString())[1]


def recovered(sock: socket.socket, echo: Echo, **noted: object) -> Server:
    """The server of the next process, on the same connection."""
    server = Server({"echo": echo.methods()}, log=LOG, notes=Ledger())
    server.attach(sock, "c1", **noted)  # type: ignore[arg-type]  # the keywords are the tests'
    return server


def call_texts(echo: Echo) -> list[str]:
    return [call._event.request.payload[2:].decode() for call in echo.calls]


@asynchronous
async def test_a_request_is_noted_while_it_is_still_in_the_socket() -> None:
    ledger, client = Ledger(), Client()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ledger.look = lambda: unread_bytes(theirs)
    server = Server({"echo": Echo().methods()}, log=LOG, notes=ledger)
    server.attach(theirs, "c1")
    frames = [client.frame("Now", "a"), client.frame("Now", "b")]
    wire = Wire(ours)
    await wire.send(b"".join(frames))
    assert [await wire.response() for _ in range(2)] == [(1, 0, ""), (3, 0, "")]
    assert ledger.looks == [sum(map(len, frames))] * 2
    assert ledger.events == ["note 1", "note 3", "answered 1", "answered 3"]
    assert unread_bytes(theirs) == 0
    ours.close()
    while await ledger.told.get() != "disconnected":
        pass
    await server.close()


@asynchronous
async def test_what_is_not_served_is_not_noted() -> None:
    ledger = Ledger()
    async with served(notes=ledger) as (_, sock):
        wire = Wire(sock)
        await wire.send(encode(2, Type.REQUEST, 0, b"") + encode(1, 99, 0, b"") + encode(1, Type.DATA, 0, b""))
        assert [(await wire.response())[:2] for _ in range(2)] == [(2, 3), (1, 3)]
    assert [event for event in ledger.events if event != "disconnected"] == []


@asynchronous
async def test_a_partial_frame_waits_in_the_socket() -> None:
    ledger, client = Ledger(), Client()
    async with served(notes=ledger) as (server, sock):
        wire, connection = Wire(sock), server._connections["c1"]
        frame = client.frame("Now", "slow")
        for piece in (frame[:4], frame[4:12], frame[12:-1]):
            await wire.send(piece)
            length = unread_bytes(connection._sock)
            await turn_until(lambda: connection._stalled_bytes == length and connection._retry is not None)  # noqa: B023
        assert ledger.events == []
        await wire.send(frame[-1:] + client.frame("Now", "next"))
        assert [(await wire.response())[0] for _ in range(2)] == [1, 3]
        assert ledger.events == ["note 1", "note 3", "answered 1", "answered 3"]


@asynchronous
async def test_an_end_inside_a_frame_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    async with served(notes=ledger) as (server, sock):
        await Wire(sock).send(Client().frame("Now")[:-1])
        sock.shutdown(socket.SHUT_WR)
        assert await ledger.told.get() == "disconnected"
        assert not server.attached("c1")


@asynchronous
@pytest.mark.parametrize("size", [WINDOW_BYTES, 300_000, MAX_DATA_BYTES - 64])
async def test_a_frame_longer_than_a_peek_is_noted_in_pieces_and_then_whole(size: int) -> None:
    ledger, client = Ledger(), Client()
    async with served(notes=ledger) as (_, sock):
        wire = Wire(sock)
        frame = client.frame_of(size)
        small = client.frame("Now")
        sending = asyncio.create_task(wire.send(frame + small))
        assert await ledger.told.get() == "note 1"
        assert ledger.ever_noted == [frame]
        await sending
        assert sorted([await wire.response() for _ in range(2)]) == [(1, 0, ""), (3, 0, "")]
        assert await ledger.told.get() in ("note 3", "answered 1")
        assert ledger.events.count("partial") >= size // WINDOW_BYTES


@asynchronous
async def test_too_large_a_frame_is_not_noted_and_the_connection_lives() -> None:
    ledger, client = Ledger(), Client()
    async with served(notes=ledger) as (_, sock):
        wire = Wire(sock)
        client.frame("Now")
        length = MAX_DATA_BYTES + 1
        await wire.send(length.to_bytes(4, "big") + bytes.fromhex("00000001 01 00") + bytes(length))
        assert (await wire.response())[:2] == (1, 8)
        await wire.send(client.frame("Now"))
        assert (await wire.response())[:2] == (3, 0)
        assert ledger.events == ["note 3", "answered 3"]


@asynchronous
async def test_a_request_that_cannot_be_noted_is_served(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    ledger.broken = True
    async with served(notes=ledger) as (_, sock):
        wire = Wire(sock)
        await wire.send(Client().frame("Now"))
        assert await wire.response() == (1, 0, "")
    assert "request 1 of connection c1 is not noted" in caplog.text


@asynchronous
async def test_an_answer_counts_when_the_kernel_has_all_of_it() -> None:
    ledger, client = Ledger(), Client()
    async with served(notes=ledger) as (_, sock):
        wire = Wire(sock)
        await wire.send(client.frame_of(2 << 20))
        assert await ledger.told.get() == "note 1"
        await wire.send(client.frame("Wait"))
        assert await ledger.told.get() == "note 3"
        assert "answered 1" not in ledger.events
        assert (await wire.response())[0] == 1
        assert await ledger.told.get() == "answered 1"


@asynchronous
async def test_a_handler_that_ends_with_its_loop_leaves_its_note_to_the_next_process() -> None:
    echo, ledger = Echo(), Ledger()
    async with served(echo, notes=ledger) as (server, sock):
        await Wire(sock).send(Client().frame("Wait", "a"))
        await echo.arrived.get()
        task = server._connections["c1"]._running[1].task
        task.cancel()  # as asyncio.run does at its end
        await asyncio.wait((task,))
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        assert ledger.events == ["note 1"]


@asynchronous
async def test_notes_are_replayed_and_what_is_still_in_the_socket_is_dropped() -> None:
    echo, client = Echo(), Client()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = Wire(ours)
    consumed, unconsumed, new = (client.frame("Now", text) for text in ("consumed", "unconsumed", "new"))
    await wire.send(unconsumed + new)
    server = recovered(theirs, echo, replay=[unconsumed, consumed])
    assert [(await wire.response())[0] for _ in range(3)] == [1, 3, 5]
    assert call_texts(echo) == ["consumed", "unconsumed", "new"]
    await wire.send(unconsumed)
    assert (await wire.response())[2] == "StreamID cannot be re-used and must increment"
    ours.close()
    await server.close()


@asynchronous
async def test_ids_known_to_be_used_are_not_used_again() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = Wire(ours)
    server = recovered(theirs, Echo(), last_stream_id=7)
    await wire.send(encode(7, Type.REQUEST, 0, Client().frame("Now")[10:]))
    await wire.send(encode(9, Type.REQUEST, 0, Client().frame("Now")[10:]))
    assert [(await wire.response())[:2] for _ in range(2)] == [(7, 3), (9, 0)]
    ours.close()
    await server.close()


@asynchronous
@pytest.mark.parametrize("left", [0, 1, 3], ids=["all pieces consumed", "last piece in the socket", "rest to come"])
async def test_an_unfinished_frame_is_finished_by_the_next_process(left: int) -> None:
    echo, client = Echo(), Client()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = Wire(ours)
    frame = client.frame_of(3 * WINDOW_BYTES)
    pieces: Sequence[bytes] = [frame[start : start + WINDOW_BYTES] for start in range(0, len(frame), WINDOW_BYTES)]
    noted, in_socket = {0: (pieces, b""), 1: (pieces, pieces[-1]), 3: (pieces[:2], frame[WINDOW_BYTES:])}[left]
    sending = asyncio.create_task(wire.send(in_socket + client.frame("Now", "behind")))
    await asyncio.sleep(0)
    server = recovered(theirs, echo, partial=noted)
    assert sorted([(await wire.response())[:2] for _ in range(2)]) == [(1, 0), (3, 0)]
    await sending
    ours.close()
    await server.close()


@asynchronous
async def test_a_connection_that_ended_meanwhile_cancels_what_is_replayed() -> None:
    echo = Echo()
    ours, theirs = socket.socketpair()
    ours.close()
    server = recovered(theirs, echo, replay=[Client().frame("Wait", "a")])
    assert await echo.arrived.get() == "a"
    assert await echo.cancelled.get() == "a"
    assert not server.attached("c1")


def test_a_closed_connection_is_an_os_error() -> None:
    assert isinstance(ConnectionClosed(), OSError)
