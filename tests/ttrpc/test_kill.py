"""The serving process is killed at any instant, again and again, and the client notices nothing but an answer twice."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import struct
import time

from google.protobuf.wrappers_pb2 import BytesValue, UInt32Value

from dunnage.ttrpc.connection import Answered, ClientConnection, Dropped
from dunnage.ttrpc.server import Call, Method, Server

KILLS = 60
HEADER = struct.Struct(">BII")
NOTE, PARTIAL, ANSWERED = range(3)


class FileNotes:
    """Notes in a memfd that outlives the process; each is one write."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def note(self, connection: str, stream_id: int, frame: bytes) -> None:
        self._write(NOTE, stream_id, frame)

    def partial(self, connection: str, data: bytes) -> None:
        self._write(PARTIAL, 0, data)

    def answered(self, connection: str, stream_id: int) -> None:
        self._write(ANSWERED, stream_id, b"")

    def disconnected(self, connection: str) -> None:
        pass

    def _write(self, kind: int, stream_id: int, data: bytes) -> None:
        os.write(self._fd, HEADER.pack(kind, stream_id, len(data)) + data)

    def read(self) -> tuple[dict[int, bytes], list[bytes], int]:
        """The frames without an answer, the pieces of an unfinished one, and the highest id seen."""
        frames: dict[int, bytes] = {}
        pieces: list[bytes] = []
        last = offset = 0
        log = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        while offset + HEADER.size <= len(log):
            kind, stream_id, length = HEADER.unpack_from(log, offset)
            data = log[offset + HEADER.size : offset + HEADER.size + length]
            if len(data) < length:
                break  # the write that the kill cut short
            offset += HEADER.size + length
            last = max(last, stream_id)
            if kind == NOTE:
                frames[stream_id] = data
                pieces = []
            elif kind == PARTIAL:
                pieces.append(data)
            else:
                frames.pop(stream_id, None)
        os.ftruncate(self._fd, offset)
        os.lseek(self._fd, offset, os.SEEK_SET)
        return frames, pieces, last


async def measure(message: BytesValue, _call: Call) -> UInt32Value:
    await asyncio.sleep(0)
    return UInt32Value(value=len(message.value))


async def serve(sock: socket.socket, notes: FileNotes) -> None:
    server = Server({"s": {"Measure": Method(BytesValue, measure)}}, log=logging.getLogger("test"), notes=notes)
    frames, pieces, last = notes.read()
    server.attach(sock, "c1", replay=list(frames.values()), last_stream_id=last, partial=pieces)
    await asyncio.Event().wait()


def fork_server(sock: socket.socket, notes: FileNotes) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(serve(sock, notes))
        finally:
            os._exit(1)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "the server ended by itself"


def test_every_call_is_answered_however_often_its_server_is_killed() -> None:
    chance = random.Random(20)
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    notes = FileNotes(os.memfd_create("notes"))
    client = ClientConnection()
    dropped = 0
    pid = fork_server(theirs, notes)
    for _ in range(KILLS):
        expected = {}
        for size in chance.choices([0, 10, 3000, 100_000], weights=[4, 4, 2, 1], k=4):
            payload = BytesValue(value=chance.randbytes(size)).SerializeToString()
            stream_id, raw = client.call("s", "Measure", payload)
            expected[stream_id] = size
            ours.sendall(raw)
        killed_at = time.monotonic() + chance.random() * 0.006
        while time.monotonic() < killed_at:
            pass  # the instant is meant to be any: there is nothing to wait for
        kill(pid)
        pid = fork_server(theirs, notes)
        while expected:
            for event in client.receive(ours.recv(65536)):
                if isinstance(event, Dropped):
                    dropped += 1
                    continue
                assert isinstance(event, Answered), event
                assert UInt32Value.FromString(event.payload).value == expected.pop(event.stream_id)
    kill(pid)
    assert dropped < KILLS
    ours.close()
    theirs.close()
