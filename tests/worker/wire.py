"""A connection to a group's socket on which anything may be sent, whether a proper client would or not."""

from __future__ import annotations

import asyncio
import socket
from typing import NamedTuple

from dunnage.api.ttrpc_pb2 import Request, Response
from dunnage.ttrpc.frames import Decoder, Frame, Type, encode

TASK = "containerd.task.v2.Task"
LIMIT_S = 30.0


class Answer(NamedTuple):
    code: int
    message: str
    payload: bytes


class Wire:
    """Calls may be made at once; each gets its own answer. ``ended`` is set when the other side has closed."""

    def __init__(self, address: str) -> None:
        self.ended = asyncio.Event()
        self.strays: list[tuple[int, Answer]] = []
        """Answers that nobody waits for, with their stream's id."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.connect(address.removeprefix("unix://"))
        self._sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._last_id = -1
        self._sending = asyncio.Lock()
        self._loop.add_reader(self._sock, self._read)

    async def call(
        self, method: str, payload: bytes, *, timeout_ns: int = 0, service: str = TASK, limit_s: float = LIMIT_S
    ) -> Answer:
        """TimeoutError where no answer comes; ConnectionError where the connection ends first."""
        request = Request(service=service, method=method, payload=payload, timeout_nano=timeout_ns)
        stream_id = self.next_id()
        return await self.ask(stream_id, encode(stream_id, Type.REQUEST, 0, request.SerializeToString()), limit_s)

    async def ask(self, stream_id: int, frame: bytes, limit_s: float = LIMIT_S) -> Answer:
        """Send bytes, and wait for the answer on a stream."""
        self._waiting[stream_id] = self._loop.create_future()
        await self.send(frame)
        async with asyncio.timeout(limit_s):
            return await self._waiting[stream_id]

    async def send_request(self, data: bytes) -> None:
        """Whatever it is, in a proper frame; its answer is one of the ``strays``."""
        await self.send(encode(self.next_id(), Type.REQUEST, 0, data))

    def next_id(self) -> int:
        self._last_id += 2
        return self._last_id

    def use_up(self, stream_id: int) -> None:
        """Ids up to this one are used."""
        self._last_id = max(self._last_id, stream_id | 1)

    async def send(self, data: bytes) -> None:
        async with self._sending:
            await self._loop.sock_sendall(self._sock, data)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _read(self) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._loop.remove_reader(self._sock)
            self.ended.set()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError("the shim closed the connection"))
            return
        for frame in self._decoder.receive(data):
            assert isinstance(frame, Frame), "the shim sends what is too long"
            response = Response.FromString(frame.data)
            answer = Answer(response.status.code, response.status.message, response.payload)
            waiting_for = self._waiting.pop(frame.stream_id, None)
            if waiting_for is None or waiting_for.done():
                self.strays.append((frame.stream_id, answer))
            else:
                waiting_for.set_result(answer)
