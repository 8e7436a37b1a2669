"""What goes wrong on ttrpc: a status the other side gave, bytes cut inside a frame, a connection that ended."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """gRPC's status codes, which ttrpc uses (google/rpc/code.proto)."""

    OK = 0
    CANCELED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call's status other than OK. ``code`` is a plain int where the peer sent one that gRPC does not define."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = Code(code) if code in _CODES else code
        self.message = message

    def __repr__(self) -> str:
        return f"RpcError({self.code!r}, {self.message!r})"


class ProtocolError(Exception):
    """The bytes received end where no frame ends; nothing else can be wrong with a frame."""


class ConnectionClosed(ConnectionError):
    """The connection ended before the call was answered, or had ended before it was made."""

    def __init__(self, message: str = "ttrpc: closed") -> None:
        super().__init__(message)


_CODES = frozenset(Code)
