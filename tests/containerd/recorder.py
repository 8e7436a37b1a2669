"""What a shim tells containerd, taken down in its place: `ctr events` cannot subscribe before containerd is up."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import NamedTuple, Self

from dunnage.api import events_pb2, forward_pb2, ttrpc_pb2

_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE = 1, 2


class Exit(NamedTuple):
    container_id: str
    process_id: str
    status: int


class Recorder:
    """Listens where containerd would for events, acknowledges each, and remembers the exits."""

    def __init__(self, address: str) -> None:
        self.topics: list[str] = []
        self.exits: list[Exit] = []
        self._path = f"{address}.ttrpc"
        self._buffers: dict[socket.socket, bytes] = {}

    def __enter__(self) -> Self:
        if os.path.exists(self._path):
            os.unlink(self._path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self._path)
        self._listener.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (self._listener, *self._buffers):
            connection.close()
        os.unlink(self._path)

    def wait_for_exits(self, count: int, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while len(self.exits) < count:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"told: {self.topics} {self.exits}"
            for ready in select.select([self._listener, *self._buffers], [], [], left_s)[0]:
                if ready is self._listener:
                    self._buffers[ready.accept()[0]] = b""
                else:
                    self._take(ready)

    def _take(self, connection: socket.socket) -> None:
        chunk = connection.recv(1 << 16)
        if not chunk:
            del self._buffers[connection]
            connection.close()
            return
        buffer = self._buffers[connection] + chunk
        while len(buffer) >= _HEADER.size:
            length, stream, kind, _ = _HEADER.unpack(buffer[: _HEADER.size])
            if len(buffer) < _HEADER.size + length:
                break
            body, buffer = buffer[_HEADER.size : _HEADER.size + length], buffer[_HEADER.size + length :]
            if kind == _REQUEST:
                self._record(body)
                connection.sendall(_HEADER.pack(0, stream, _RESPONSE, 0))
        self._buffers[connection] = buffer

    def _record(self, body: bytes) -> None:
        payload = ttrpc_pb2.Request.FromString(body).payload
        envelope = forward_pb2.ForwardRequest.FromString(payload).envelope
        self.topics.append(envelope.topic)
        if envelope.topic == "/tasks/exit":
            told = events_pb2.TaskExit.FromString(envelope.event.value)
            self.exits.append(Exit(told.container_id, told.id, told.exit_status))
