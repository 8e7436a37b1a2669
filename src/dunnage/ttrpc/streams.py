"""Which stream may do what, on either side of a connection; pure.

Only the client opens streams: their ids are odd, rise, and are never used again. A stream that is not open has either
not been opened yet (its id is above the last) or is over; a frame is judged by that state and by the table below.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from dunnage.ttrpc.errors import ConnectionClosed
from dunnage.ttrpc.frames import MAX_STREAM_ID, Type

EVEN_ID: Final = "StreamID must be odd for client initiated streams"
REUSED_ID: Final = "StreamID cannot be re-used and must increment"
NOT_ACTIVE: Final = "StreamID is no longer active"
TAKES_NO_DATA: Final = "data handling error: the method is not streaming"


class State(Enum):
    """Of a stream, as a server sees it."""

    IDLE = auto()
    OPEN = auto()
    CLOSED = auto()


class ServerStreams:
    """The streams a client has opened: what it may send on each, and whether an answer is still wanted."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self.last_id = 0

    def receive(self, stream_id: int, frame_type: int) -> str | None:
        """A frame of type REQUEST or DATA came: None where it is allowed, else why it is refused."""
        if stream_id % 2 == 0:
            return EVEN_ID
        after, refusal = _RECEIVED[self._state(stream_id), frame_type]
        if after is State.OPEN:
            self.last_id = max(self.last_id, stream_id)
            self._open.add(stream_id)
        else:
            self._open.discard(stream_id)
        return refusal

    def close(self, stream_id: int) -> bool:
        """The stream is answered now; False where it has been already."""
        if stream_id not in self._open:
            return False
        self._open.remove(stream_id)
        return True

    def skip_to(self, stream_id: int) -> None:
        """Ids up to this one have been used before this server knew the connection."""
        self.last_id = max(self.last_id, stream_id)

    def _state(self, stream_id: int) -> State:
        if stream_id in self._open:
            return State.OPEN
        return State.CLOSED if stream_id <= self.last_id else State.IDLE


class ClientStreams:
    """The streams we have opened and that wait for an answer."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._next_id = 1

    def open(self) -> int:
        """A new stream's id; ``ConnectionClosed`` when this connection has used them all up."""
        if self._next_id > MAX_STREAM_ID:
            raise ConnectionClosed("connection has no stream id left")
        stream_id = self._next_id
        self._next_id += 2
        self._open.add(stream_id)
        return stream_id

    def close(self, stream_id: int) -> bool:
        """The stream is answered or given up; False where it was not open."""
        if stream_id not in self._open:
            return False
        self._open.remove(stream_id)
        return True


# (state, type of the frame that came) -> (state after it, refusal). What is refused on an open stream for using its id
# again leaves the stream alone: the answer to the first request still comes, as in Go.
_RECEIVED: Final[dict[tuple[State, int], tuple[State, str | None]]] = {
    (State.IDLE, Type.REQUEST): (State.OPEN, None),
    (State.IDLE, Type.DATA): (State.IDLE, NOT_ACTIVE),
    (State.OPEN, Type.REQUEST): (State.OPEN, REUSED_ID),
    (State.OPEN, Type.DATA): (State.CLOSED, TAKES_NO_DATA),
    (State.CLOSED, Type.REQUEST): (State.CLOSED, REUSED_ID),
    (State.CLOSED, Type.DATA): (State.CLOSED, NOT_ACTIVE),
}
