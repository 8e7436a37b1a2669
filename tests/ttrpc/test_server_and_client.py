"""Server and client over real unix sockets: concurrency, deadlines, cancellation, refusal, size."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from tests.ttrpc.echo import LOG, Echo, Wire, asynchronous, served

from dunnage.api.ttrpc_pb2 import Request
from dunnage.ttrpc.client import Client, ReconnectingClient, dial
from dunnage.ttrpc.connection import ClientConnection
from dunnage.ttrpc.errors import Code, ConnectionClosed, RpcError
from dunnage.ttrpc.frames import MAX_DATA_BYTES, Flag, Type, encode
from dunnage.ttrpc.server import Call, Method, Server


async def say(client: Client | ReconnectingClient, method: str, text: str, **options: Any) -> str:
    return (await client.call("echo", method, StringValue(value=text), StringValue, **options)).value


@asynchronous
async def test_a_call_is_answered_by_a_task_or_without_one() -> None:
    echo = Echo()
    echo.gates["a"] = asyncio.Event()
    echo.gates["a"].set()
    async with served(echo) as (_, sock):
        client = Client(sock)
        assert await say(client, "Now", "b") == "b"
        assert await say(client, "Wait", "a") == "a"
        assert await client.call("echo", "Empty", StringValue(), Empty) == Empty()


@asynchronous
async def test_calls_run_at_once_and_are_answered_as_they_finish() -> None:
    echo = Echo()
    async with served(echo) as (_, sock):
        client = Client(sock)
        first = asyncio.create_task(say(client, "Wait", "first"))
        second = asyncio.create_task(say(client, "Wait", "second"))
        assert [await echo.arrived.get() for _ in range(2)] == ["first", "second"]
        assert await say(client, "Now", "third") == "third"
        echo.gates["second"].set()
        assert await second == "second"
        assert not first.done()
        echo.gates["first"].set()
        assert await first == "first"


@asynchronous
async def test_many_calls_are_each_answered_with_their_own() -> None:
    async with served() as (_, sock):
        client = Client(sock)
        texts = [str(number) for number in range(500)]
        assert await asyncio.gather(*(say(client, "Now", text) for text in texts)) == texts


@asynchronous
async def test_metadata_peer_and_deadline_reach_the_handler() -> None:
    echo = Echo()
    async with served(echo) as (_, sock):
        client = Client(sock)
        before = asyncio.get_running_loop().time()
        await say(client, "Now", "x", timeout_s=5, metadata=[("containerd-namespace-ttrpc", "default")])
        await say(client, "Now", "x")
    with_deadline, without = echo.calls
    assert with_deadline.metadata == (("containerd-namespace-ttrpc", "default"),)
    assert (with_deadline.pid, with_deadline.connection) == (os.getpid(), "c1")
    assert with_deadline.deadline is not None
    assert 4.9 < with_deadline.deadline - before < 6
    assert without.deadline is None


@asynchronous
async def test_an_error_of_a_handler_is_the_status() -> None:
    async with served() as (_, sock):
        client = Client(sock)
        with pytest.raises(RpcError, match=r"^c1: not found$") as failed:
            await say(client, "Fail", "c1")
        assert failed.value.code is Code.NOT_FOUND


@asynchronous
async def test_another_exception_is_unknown_and_its_traceback_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (_, sock):
        client = Client(sock)
        with pytest.raises(RpcError, match=r"^'c1'$") as failed:
            await say(client, "Break", "c1")
        assert failed.value.code is Code.UNKNOWN
    assert "KeyError" in caplog.text
    assert "in break_" in caplog.text


@asynchronous
async def test_another_exception_is_translated_where_a_translation_is_handed_in() -> None:
    async with served(translate=lambda error: RpcError(Code.INTERNAL, repr(error))) as (_, sock):
        with pytest.raises(RpcError, match=r"^KeyError\('c1'\)$") as failed:
            await say(Client(sock), "Break", "c1")
        assert failed.value.code is Code.INTERNAL


@asynchronous
async def test_unknown_services_and_methods_are_unimplemented() -> None:
    async with served() as (_, sock):
        client = Client(sock)
        for service, method, text in [("nope", "Now", "service nope"), ("echo", "Nope", "method Nope")]:
            with pytest.raises(RpcError, match=f"^{text}$") as failed:
                await client.call(service, method, Empty(), Empty)
            assert failed.value.code is Code.UNIMPLEMENTED


@asynchronous
async def test_a_unary_method_is_not_opened_as_a_stream() -> None:
    async with served() as (_, sock):
        wire = Wire(sock)
        await wire.send(
            encode(1, Type.REQUEST, Flag.REMOTE_OPEN, Request(service="echo", method="Now").SerializeToString())
            + encode(1, Type.DATA, Flag.REMOTE_CLOSED | Flag.NO_DATA, b"")
        )
        assert await wire.response() == (1, Code.UNIMPLEMENTED, "method Now")
        assert await wire.response() == (1, Code.INVALID_ARGUMENT, "StreamID is no longer active")


@asynchronous
async def test_bad_frames_are_answered_and_the_connection_lives() -> None:
    async with served() as (_, sock):
        wire = Wire(sock)
        length = MAX_DATA_BYTES + 1
        await wire.send(length.to_bytes(4, "big") + bytes.fromhex("00000001 01 00"))
        await wire.send(bytes(length))
        assert await wire.response() == (1, 8, "message length 4194305 exceed maximum message size of 4194304")
        await wire.send(encode(2, Type.REQUEST, 0, b"") + encode(9, 77, 0, b"") + encode(3, Type.REQUEST, 0, b"\xff"))
        assert await wire.response() == (2, 3, "StreamID must be odd for client initiated streams")
        assert (await wire.response())[:2] == (3, 3)
        bad_payload = Request(service="echo", method="Now", payload=b"\xff").SerializeToString()
        await wire.send(encode(5, Type.REQUEST, 0, bad_payload))
        stream_id, code, text = await wire.response()
        assert (stream_id, code) == (5, Code.INTERNAL)
        assert text.startswith("ttrpc: error unmarshalling payload: ")
        await wire.send(encode(7, Type.REQUEST, 0, Request(service="echo", method="Empty").SerializeToString()))
        assert await wire.response() == (7, 0, "")


@asynchronous
async def test_a_frame_in_single_bytes_is_a_request() -> None:
    async with served() as (_, sock):
        wire = Wire(sock)
        for byte in ClientConnection().call("echo", "Empty", b"")[1]:
            await wire.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await wire.response() == (1, 0, "")


@asynchronous
async def test_the_largest_message_goes_both_ways() -> None:
    async with served() as (_, sock):
        client = Client(sock)
        sent = BytesValue(value=os.urandom(MAX_DATA_BYTES - 64))
        answers = [asyncio.create_task(client.call("echo", "Bytes", sent, BytesValue)) for _ in range(2)]
        assert await say(client, "Now", "behind") == "behind"
        assert [await answer for answer in answers] == [sent, sent]
        with pytest.raises(RpcError) as refused:
            await client.call("echo", "Bytes", BytesValue(value=bytes(MAX_DATA_BYTES)), BytesValue)
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        assert await say(client, "Now", "alive") == "alive"


@asynchronous
async def test_handlers_are_cancelled_when_their_connection_closes() -> None:
    echo = Echo()
    gone: asyncio.Queue[str] = asyncio.Queue()
    async with served(echo, on_disconnect=gone.put_nowait) as (server, sock):
        client = Client(sock)
        waiting = asyncio.create_task(say(client, "Wait", "a"))
        await echo.arrived.get()
        assert server.attached("c1")
        client.close()
        with pytest.raises(ConnectionClosed):
            await waiting
        assert await echo.cancelled.get() == "a"
        assert await gone.get() == "c1"
        assert not server.attached("c1")


@asynchronous
async def test_a_deadline_cancels_the_handler_and_is_answered() -> None:
    echo = Echo()
    async with served(echo) as (_, sock):
        wire = Wire(sock)
        payload = StringValue(value="a").SerializeToString()
        await wire.send(ClientConnection().call("echo", "Wait", payload, timeout_ns=10_000_000)[1])
        assert await wire.response() == (1, Code.DEADLINE_EXCEEDED, "context deadline exceeded")
        assert await echo.cancelled.get() == "a"


@asynchronous
async def test_a_handler_whose_own_wait_is_cancelled_is_answered_canceled() -> None:
    async def give_up(_message: Empty, _call: Call) -> Empty:
        raise asyncio.CancelledError

    ours, theirs = socket.socketpair()
    server = Server({"s": {"GiveUp": Method(Empty, give_up)}}, log=LOG)
    server.attach(theirs, "c1")
    with pytest.raises(RpcError, match="context canceled") as failed:
        await Client(ours).call("s", "GiveUp", Empty(), Empty)
    assert failed.value.code is Code.CANCELED
    await server.close()


@asynchronous
async def test_a_deadline_that_is_over_runs_nothing() -> None:
    echo = Echo()
    async with served(echo) as (_, sock):
        wire = Wire(sock)
        await wire.send(ClientConnection().call("echo", "Now", b"", timeout_ns=-1)[1])
        assert (await wire.response())[1] == Code.DEADLINE_EXCEEDED
    assert echo.calls == []


@asynchronous
async def test_a_deadline_ends_the_call_where_the_server_says_nothing() -> None:
    ours, theirs = socket.socketpair()
    client = Client(ours)
    with theirs:
        with pytest.raises(RpcError) as failed:
            await say(client, "Now", "x", timeout_s=0.01)
        assert failed.value.code is Code.DEADLINE_EXCEEDED
        with pytest.raises(RpcError):
            await say(client, "Now", "x", timeout_s=0)
        theirs.sendall(encode(1, Type.RESPONSE, 0, b""))
        late = asyncio.create_task(say(client, "Now", "y"))
        theirs.sendall(encode(3, Type.RESPONSE, 0, b""))
        assert await late == ""
    client.close()


@asynchronous
async def test_a_peer_of_another_user_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    gone: asyncio.Queue[str] = asyncio.Queue()
    async with served(peer=(os.geteuid() + 1, os.getegid()), on_disconnect=gone.put_nowait) as (server, sock):
        with pytest.raises((EOFError, ConnectionError)):
            await Wire(sock).response()
        assert await gone.get() == "c1"
        assert not server.attached("c1")
    assert "is refused" in caplog.text


@asynchronous
async def test_close_hands_over_what_is_answered_and_ends_the_connection_for_every_copy() -> None:
    async with served() as (server, sock):
        copy = sock.dup()
        client = Client(sock)
        sent = BytesValue(value=bytes(1 << 20))
        answer = asyncio.create_task(client.call("echo", "Bytes", sent, BytesValue))
        assert await say(client, "Now", "in between") == "in between"
        assert await answer == sent
        waiting = asyncio.create_task(say(client, "Wait", "a"))
        await asyncio.sleep(0)
        await server.close()
        with pytest.raises(ConnectionClosed):
            await waiting
        assert client.closed
        copy.close()


@asynchronous
async def test_a_handler_may_disconnect_its_own_connection() -> None:
    server: Server

    async def shutdown(_message: Empty, call: Call) -> Empty:
        await server.disconnect(call.connection)
        return Empty()

    ours, theirs = socket.socketpair()
    server = Server({"s": {"Shutdown": Method(Empty, shutdown)}}, log=LOG)
    server.attach(theirs, "c1")
    with pytest.raises(ConnectionClosed):
        await Client(ours).call("s", "Shutdown", Empty(), Empty)
    assert server.names == ()


@asynchronous
async def test_a_name_is_attached_once() -> None:
    async with served() as (server, sock):
        with pytest.raises(ValueError, match="attached already"):
            server.attach(sock.dup(), "c1")


class Listening:
    """A server on a path; it can be stopped and started again."""

    def __init__(self, path: str) -> None:
        self.server = Server({"echo": Echo().methods()}, log=LOG)
        self._accepted = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        self._accepted += 1
        self.server.attach(sock, f"c{self._accepted}")

    async def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        await self.server.close()


@asynchronous
async def test_a_dial_waits_for_the_socket_to_exist(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with pytest.raises(FileNotFoundError):
        await Client.connect(path, timeout_s=0)
    dialling = asyncio.create_task(Client.connect("unix://" + path, timeout_s=5))
    await asyncio.sleep(0)
    listening = Listening(path)
    client = await dialling
    assert await say(client, "Now", "x") == "x"
    client.close()
    await listening.stop()


@asynchronous
async def test_an_abstract_name_is_dialled() -> None:
    name = f"dunnage-test-{os.getpid()}"
    listening = Listening("\0" + name)
    client = await Client.connect("@" + name, timeout_s=1)
    assert await say(client, "Now", "x") == "x"
    client.close()
    await listening.stop()


@asynchronous
async def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with await dial(path, timeout_s=1):
            with pytest.raises(BlockingIOError):
                await dial(path, timeout_s=0)
            dialling = asyncio.create_task(dial(path, timeout_s=5))
            await asyncio.sleep(0)
            listener.accept()[0].close()
            (await dialling).close()


@asynchronous
async def test_a_reconnecting_client_dials_again_on_the_next_call(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listening = Listening(path)
    client = ReconnectingClient(path, dial_timeout_s=1)
    assert await asyncio.gather(*(say(client, "Now", text) for text in "abc")) == ["a", "b", "c"]
    assert listening.server.names == ("c1",)
    waiting = asyncio.create_task(say(client, "Wait", "x"))
    assert await say(client, "Now", "d") == "d"
    await listening.stop()
    with pytest.raises(ConnectionClosed):
        await waiting
    Path(path).unlink()
    listening = Listening(path)
    assert await say(client, "Now", "e") == "e"
    client.close()
    with pytest.raises(ConnectionClosed):
        await say(client, "Now", "f")
    await listening.stop()
