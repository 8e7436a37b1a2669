"""ttrpc itself: what is no request, a method that is none, and how an empty answer looks on the wire."""

from __future__ import annotations

import asyncio
import struct
from typing import Final

from google.protobuf.empty_pb2 import Empty

from dunnage.api import task_pb2, ttrpc_pb2
from dunnage.conformance.case import Area
from dunnage.conformance.check import equal, limit, refused, that
from dunnage.conformance.scene import Scene, Status, Task
from dunnage.conformance.shim import VERSIONS
from dunnage.ttrpc.errors import Code

AREA: Final = Area("wire")
HEADER: Final = struct.Struct(">IIBB")
REQUEST: Final = 1
RESPONSE: Final = 2
MAX_BYTES: Final = 4 << 20


class Wire:
    """Frames by hand."""

    def __init__(self, task: Task, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.service = VERSIONS[task.address.version]
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, task: Task) -> Wire:
        wire = cls(task, *await asyncio.open_unix_connection(task.address.path))
        task.scene.closers.append(wire.close)
        return wire

    def request(self, method: str, payload: bytes, timeout_ns: int = 0) -> bytes:
        request = ttrpc_pb2.Request(service=self.service, method=method, payload=payload, timeout_nano=timeout_ns)
        return request.SerializeToString()

    def send(self, stream_id: int, data: bytes, kind: int = REQUEST) -> None:
        self.writer.write(HEADER.pack(len(data), stream_id, kind, 0) + data)

    async def receive(self) -> tuple[int, ttrpc_pb2.Response, int]:
        """Stream, response, and how many bytes it had."""
        async with asyncio.timeout(limit()):
            length, stream_id, kind, _ = HEADER.unpack(await self.reader.readexactly(HEADER.size))
            data = await self.reader.readexactly(length)
        equal("the frame's type", kind, RESPONSE)
        return stream_id, ttrpc_pb2.Response.FromString(data), length

    async def expect(self, stream_id: int, code: Code, text: str) -> None:
        stream, response, _ = await self.receive()
        equal("the stream", stream, stream_id)
        equal("the code", response.status.code, code)
        that(response.status.message.startswith(text), f"{response.status.message!r} begins with {text!r}")

    def close(self) -> None:
        self.writer.close()


STATE: Final = task_pb2.StateRequest(id="c1").SerializeToString()


@AREA.case("an answer that is empty is a frame of no bytes")
async def empty(scene: Scene) -> None:
    wire = await Wire.open(await scene.running())
    wire.send(1, wire.request("CloseIO", task_pb2.CloseIORequest(id="c1").SerializeToString()))
    stream_id, _, length = await wire.receive()
    equal("stream and length", (stream_id, length), (1, 0))
    wire.close()


@AREA.case("an answer has a payload and no status")
async def success(scene: Scene) -> None:
    wire = await Wire.open(await scene.running())
    wire.send(1, wire.request("State", STATE))
    _, response, _ = await wire.receive()
    that(not response.HasField("status"), "there is no status")
    equal("the status in it", task_pb2.StateResponse.FromString(response.payload).status, Status.RUNNING)
    wire.close()


@AREA.case("an error has a status and no payload")
async def error(scene: Scene) -> None:
    wire = await Wire.open(await scene.running())
    wire.send(1, wire.request("State", task_pb2.StateRequest(id="x").SerializeToString()))
    _, response, _ = await wire.receive()
    equal("the code", response.status.code, Code.NOT_FOUND)
    equal("the payload", response.payload, b"")
    wire.close()


@AREA.case("a method that is none is Unimplemented")
async def no_method(scene: Scene) -> None:
    task = await scene.running()
    await refused(task.connection.ask("Dance", Empty(), Empty), "…", Code.UNIMPLEMENTED)
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case("a service that is none is Unimplemented")
async def no_service(scene: Scene) -> None:
    task = await scene.running()
    await refused(task.connection.ask("State", Empty(), Empty, service="no.Service"), "…", Code.UNIMPLEMENTED)
    equal("the status", await task.status(), Status.RUNNING)


@AREA.case("an even stream id is InvalidArgument")
async def even(scene: Scene) -> None:
    wire = await Wire.open(await scene.running())
    wire.send(2, wire.request("State", STATE))
    await wire.expect(2, Code.INVALID_ARGUMENT, "StreamID must be odd")
    wire.close()


@AREA.case("a request that is no message is InvalidArgument, and the next is answered")
async def no_message(scene: Scene) -> None:
    wire = await Wire.open(await scene.running())
    wire.send(1, b"\xff\xff\xff")
    await wire.expect(1, Code.INVALID_ARGUMENT, "unmarshal request error: ")
    wire.send(3, wire.request("State", STATE))
    equal("the next stream", (await wire.receive())[0], 3)
    wire.close()


@AREA.case("a payload that is not the method's message is refused, and the next is answered")
async def bad_payload(scene: Scene) -> None:
    wire = await Wire.open(await scene.running())
    wire.send(1, wire.request("State", b"\xff\xff\xff"))
    _, response, _ = await wire.receive()
    that(response.status.code in (Code.INTERNAL, Code.INVALID_ARGUMENT, Code.UNKNOWN), "it is an error")
    wire.send(3, wire.request("State", STATE))
    equal("the next stream", (await wire.receive())[0], 3)
    wire.close()


@AREA.case("a frame that is too long is ResourceExhausted, and the next is answered")
async def too_long(scene: Scene) -> None:
    wire = await Wire.open(await scene.running())
    wire.send(1, bytes(MAX_BYTES + 1))
    await wire.expect(
        1, Code.RESOURCE_EXHAUSTED, f"message length {MAX_BYTES + 1} exceed maximum message size of {MAX_BYTES}"
    )
    wire.send(3, wire.request("State", STATE))
    equal("the next stream", (await wire.receive())[0], 3)
    wire.close()


@AREA.case("a frame of an unknown type is ignored")
async def unknown_type(scene: Scene) -> None:
    wire = await Wire.open(await scene.running())
    wire.send(1, b"whatever", kind=99)
    wire.send(3, wire.request("State", STATE))
    equal("the stream of the first answer", (await wire.receive())[0], 3)
    wire.close()


@AREA.case("requests in one write are all answered")
async def many(scene: Scene) -> None:
    wire = await Wire.open(await scene.running())
    for stream_id in range(1, 41, 2):
        wire.send(stream_id, wire.request("State", STATE))
    equal("the streams", {(await wire.receive())[0] for _ in range(20)}, set(range(1, 41, 2)))
    wire.close()


@AREA.case("a request that comes byte by byte is answered")
async def byte_by_byte(scene: Scene) -> None:
    wire = await Wire.open(await scene.running())
    data = wire.request("State", STATE)
    for byte in HEADER.pack(len(data), 1, REQUEST, 0) + data:
        wire.writer.write(bytes([byte]))
        await wire.writer.drain()
        await asyncio.sleep(0)
    equal("the stream", (await wire.receive())[0], 1)
    wire.close()


@AREA.case("a connection that ends in the middle of a frame harms no other")
async def cut(scene: Scene) -> None:
    task = await scene.running()
    wire = await Wire.open(task)
    wire.writer.write(HEADER.pack(100, 1, REQUEST, 0) + b"half")
    await wire.writer.drain()
    wire.close()
    equal("the status", await task.status(), Status.RUNNING)
