"""Both ends of a connection without its socket: bytes in, events out; answers and calls in, bytes out.

The owner moves the bytes and acts on the events, in their order. No bytes make these classes raise anything but
``ProtocolError``, and that only from ``end``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from google.protobuf.message import DecodeError

from dunnage.api.ttrpc_pb2 import KeyValue, Request, Response
from dunnage.ttrpc.errors import Code, RpcError
from dunnage.ttrpc.frames import Decoder, Flag, Frame, Oversized, Type, encode, oversize_text
from dunnage.ttrpc.streams import ClientStreams, ServerStreams

Metadata = tuple[tuple[str, str], ...]


class Requested(NamedTuple):
    """A request to be served: its stream is open until ``ServerConnection.answer`` or ``refuse``."""

    stream_id: int
    request: Request
    streaming: bool

    @property
    def metadata(self) -> Metadata:
        return tuple((pair.key, pair.value) for pair in self.request.metadata)


class Refused(NamedTuple):
    """A frame that breaks a rule: ``frame`` holds the bytes that tell the client so."""

    stream_id: int
    error: RpcError
    frame: bytes


class ServerConnection:
    """A server's side of one connection."""

    def __init__(self) -> None:
        self.decoder = Decoder()
        self.streams = ServerStreams()

    def receive(self, data: bytes) -> list[Requested | Refused]:
        """What the next bytes of the client mean."""
        events = (self.judge(frame) for frame in self.decoder.receive(data))
        return [event for event in events if event is not None]

    def judge(self, frame: Frame | Oversized) -> Requested | Refused | None:
        """What one frame means; None where it has to be ignored. The order of the checks is that of ttrpc 1.2."""
        stream_id = frame.stream_id
        if isinstance(frame, Oversized):
            return self._refused(stream_id, Code.RESOURCE_EXHAUSTED, oversize_text(frame.length))
        if stream_id % 2 and frame.type not in (Type.REQUEST, Type.DATA):
            return None
        refusal = self.streams.receive(stream_id, frame.type)
        if refusal is not None:
            return self._refused(stream_id, Code.INVALID_ARGUMENT, refusal)
        try:
            request = Request.FromString(frame.data)
        except DecodeError as error:
            self.streams.close(stream_id)
            return self._refused(stream_id, Code.INVALID_ARGUMENT, f"unmarshal request error: {error}")
        return Requested(stream_id, request, frame.flags & _REMOTE_OPEN != 0)

    def answer(self, stream_id: int, payload: bytes) -> bytes | None:
        """The bytes of a result; None where the stream has been answered already. An empty one has no data."""
        if not self.streams.close(stream_id):
            return None
        try:
            return encode(stream_id, Type.RESPONSE, 0, Response(payload=payload).SerializeToString())
        except RpcError as error:
            return encode_error(stream_id, error)

    def refuse(self, stream_id: int, error: RpcError) -> bytes | None:
        """The bytes of an error; None where the stream has been answered already."""
        return encode_error(stream_id, error) if self.streams.close(stream_id) else None

    def _refused(self, stream_id: int, code: Code, text: str) -> Refused:
        error = RpcError(code, text)
        return Refused(stream_id, error, encode_error(stream_id, error))


class Answered(NamedTuple):
    """A call has its result."""

    stream_id: int
    payload: bytes


class Failed(NamedTuple):
    """A call has its error."""

    stream_id: int
    error: RpcError


class Dropped(NamedTuple):
    """A response came that no call waits for."""

    stream_id: int


class ClientConnection:
    """A client's side of one connection."""

    def __init__(self) -> None:
        self.decoder = Decoder()
        self.streams = ClientStreams()

    def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout_ns: int = 0,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> tuple[int, bytes]:
        """Open a stream: its id and the bytes to send. ``RpcError`` RESOURCE_EXHAUSTED where they would be too many."""
        request = Request(service=service, method=method, payload=payload, timeout_nano=timeout_ns)
        request.metadata.extend(KeyValue(key=key, value=value) for key, value in metadata)
        stream_id = self.streams.open()
        try:
            return stream_id, encode(stream_id, Type.REQUEST, 0, request.SerializeToString())
        except RpcError:
            self.streams.close(stream_id)
            raise

    def forget(self, stream_id: int) -> None:
        """Nobody waits for this call any longer."""
        self.streams.close(stream_id)

    def receive(self, data: bytes) -> list[Answered | Failed | Dropped]:
        """What the next bytes of the server mean."""
        events = (self.judge(frame) for frame in self.decoder.receive(data))
        return [event for event in events if event is not None]

    def judge(self, frame: Frame | Oversized) -> Answered | Failed | Dropped | None:
        """What one frame means; None where it has to be ignored. No call of ours streams, so data ends one in error."""
        stream_id = frame.stream_id
        if frame.type not in (Type.RESPONSE, Type.DATA):
            return None
        if not self.streams.close(stream_id):
            return Dropped(stream_id)
        if isinstance(frame, Oversized):
            return Failed(stream_id, RpcError(Code.RESOURCE_EXHAUSTED, oversize_text(frame.length)))
        if frame.type == Type.DATA:
            return Failed(stream_id, RpcError(Code.INTERNAL, "stream data received for a unary call"))
        try:
            response = Response.FromString(frame.data)
        except DecodeError as error:
            return Failed(stream_id, RpcError(Code.INTERNAL, f"unmarshal response error: {error}"))
        if response.HasField("status") and response.status.code != Code.OK:
            return Failed(stream_id, RpcError(response.status.code, response.status.message))
        return Answered(stream_id, response.payload)


def encode_error(stream_id: int, error: RpcError) -> bytes:
    """A response frame with a status; a text too long for a frame is cut, and surrogates (of a file name) escaped."""
    response = Response()
    response.status.code = int(error.code)
    response.status.message = error.message[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()
    return encode(stream_id, Type.RESPONSE, 0, response.SerializeToString())


_REMOTE_OPEN = int(Flag.REMOTE_OPEN)  # an IntFlag's own arithmetic costs a tenth of the whole request
_MAX_TEXT = 64 << 10  # of a status: runtimes' output may be quoted in it, and a frame has its bound
