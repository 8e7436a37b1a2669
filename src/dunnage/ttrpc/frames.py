"""Bytes to frames and back, and nothing else: no socket, no message, no stream.

A frame is a header of ten bytes (length, stream id, type, flags) and ``length`` bytes of data. Every run of bytes is a
run of frames, whatever its cuts; only its end can be wrong.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from dunnage.ttrpc.errors import Code, ProtocolError, RpcError

HEADER_BYTES = 10
MAX_DATA_BYTES = 4 << 20  # ttrpc channel.go: messageLengthMax, inclusive
MAX_STREAM_ID = 0xFFFFFFFF


class Type(IntEnum):
    """The frame types that are defined; a frame's ``type`` is a plain int, for others must be ignored."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Flag(IntFlag):
    """What the flags of a frame say; a unary call has none."""

    REMOTE_CLOSED = 0x01
    REMOTE_OPEN = 0x02
    NO_DATA = 0x04


class Frame(NamedTuple):
    """A whole frame."""

    stream_id: int
    type: int
    flags: int
    data: bytes


class Oversized(NamedTuple):
    """A frame whose data was longer than ``MAX_DATA_BYTES`` and has been thrown away to its end."""

    stream_id: int
    type: int
    flags: int
    length: int


def encode(stream_id: int, frame_type: int, flags: int, data: bytes) -> bytes:
    """The bytes of a frame; ``RpcError`` RESOURCE_EXHAUSTED where the data is too long to send."""
    if len(data) > MAX_DATA_BYTES:
        raise RpcError(Code.RESOURCE_EXHAUSTED, oversize_text(len(data)))
    return _HEADER.pack(len(data), stream_id, frame_type, flags) + data


def oversize_text(length: int) -> str:
    """The text of RESOURCE_EXHAUSTED, for either direction."""
    return f"message length {length} exceed maximum message size of {MAX_DATA_BYTES}"


def split(data: bytes) -> tuple[list[Frame], int]:
    """The whole frames at the front of ``data`` and how many bytes they take; it stops before one that is oversized."""
    frames: list[Frame] = []
    position = 0
    size = len(data)
    while size - position >= HEADER_BYTES:
        length, stream_id, frame_type, flags = _HEADER.unpack_from(data, position)
        end = position + HEADER_BYTES + length
        if end > size or length > MAX_DATA_BYTES:
            break
        frames.append(Frame(stream_id, frame_type, flags, data[position + HEADER_BYTES : end]))
        position = end
    return frames, position


def first_frame_bytes(data: bytes) -> int | None:
    """How long, header and data, the frame at the front of ``data`` is; None where its header is not whole."""
    if len(data) < HEADER_BYTES:
        return None
    return HEADER_BYTES + int.from_bytes(data[:4], "big")


class Decoder:
    """Frames out of bytes that come in any cuts. It holds at most one unfinished frame, and never an oversized one."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed_bytes = 1
        self._oversized: Oversized | None = None
        self._discard_bytes = 0

    @property
    def unfinished(self) -> bytes:
        """What has been received of a frame that is not whole."""
        return bytes(self._buffer)

    @property
    def discarding(self) -> bool:
        """Whether the bytes that come next belong to an oversized frame."""
        return self._oversized is not None

    @property
    def missing_bytes(self) -> int:
        """How many bytes the frame (or header) under way still needs; 0 between two frames."""
        if self._oversized is not None:
            return self._discard_bytes
        return self._needed_bytes - len(self._buffer) if self._buffer else 0

    def receive(self, data: bytes) -> list[Frame | Oversized]:
        """Take the next bytes and return the frames that they finish."""
        received: list[Frame | Oversized] = []
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed_bytes:
                return received
            data = bytes(self._buffer)
            self._buffer.clear()
        while data:
            if self._oversized is not None:
                discarded = min(self._discard_bytes, len(data))
                self._discard_bytes -= discarded
                data = data[discarded:]
                if self._discard_bytes:
                    break
                received.append(self._oversized)
                self._oversized = None
            frames, used = split(data)
            received += frames
            data = data[used:]
            if len(data) < HEADER_BYTES:
                self._needed_bytes = HEADER_BYTES
                break
            length, stream_id, frame_type, flags = _HEADER.unpack_from(data)
            if length <= MAX_DATA_BYTES:
                self._needed_bytes = HEADER_BYTES + length
                break
            self._oversized = Oversized(stream_id, frame_type, flags, length)
            self._discard_bytes = length
            data = data[HEADER_BYTES:]
        self._buffer += data
        return received

    def end(self) -> None:
        """The bytes have come to their end; ``ProtocolError`` where that is inside a frame."""
        missing = self.missing_bytes
        if missing:
            raise ProtocolError(f"connection ended {missing} bytes before the end of a frame")


_HEADER = struct.Struct(">IIBB")
