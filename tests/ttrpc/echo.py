"""What the tests of server and client share: a service that waits on demand, a raw client, tests as coroutines."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from dunnage.api.ttrpc_pb2 import Response
from dunnage.ttrpc.errors import Code, RpcError
from dunnage.ttrpc.frames import Decoder, Frame
from dunnage.ttrpc.server import Call, Method, Server

LOG = logging.getLogger("test")


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test is a coroutine, with ten seconds for it."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 10))

    return run


class Echo:
    """A service whose calls wait until they are let go."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.arrived: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.calls: list[Call] = []

    def now(self, message: StringValue, call: Call) -> StringValue:
        self.calls.append(call)
        return StringValue(value=message.value)

    async def wait(self, message: StringValue, call: Call) -> StringValue:
        self.arrived.put_nowait(message.value)
        try:
            await self.gates.setdefault(message.value, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(message.value)
            raise
        return StringValue(value=message.value)

    async def fail(self, message: StringValue, call: Call) -> Empty:
        raise RpcError(Code.NOT_FOUND, f"{message.value}: not found")

    def break_(self, message: StringValue, call: Call) -> Empty:
        raise KeyError(message.value)

    def empty(self, message: StringValue, call: Call) -> Empty:
        return Empty()

    def bytes(self, message: BytesValue, call: Call) -> BytesValue:
        return message

    def methods(self) -> dict[str, Method]:
        return {
            "Now": Method(StringValue, self.now),
            "Wait": Method(StringValue, self.wait),
            "Fail": Method(StringValue, self.fail),
            "Break": Method(StringValue, self.break_),
            "Empty": Method(StringValue, self.empty),
            "Bytes": Method(BytesValue, self.bytes),
        }


class Wire:
    """The client's end of a connection, for frames that no proper client sends."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def response(self) -> tuple[int, int, str]:
        while not self._frames:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
            if not data:
                raise EOFError
            self._frames += [frame for frame in self._decoder.receive(data) if isinstance(frame, Frame)]
        frame = self._frames.pop(0)
        response = Response.FromString(frame.data)
        return frame.stream_id, response.status.code, response.status.message


@asynccontextmanager
async def served(echo: Echo | None = None, **options: Any) -> AsyncIterator[tuple[Server, socket.socket]]:
    """A server on one end of a socket pair, and the other end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    server = Server({"echo": (echo or Echo()).methods()}, log=LOG, **options)
    server.attach(theirs, "c1")
    try:
        yield server, ours
    finally:
        ours.close()
        await server.close()
