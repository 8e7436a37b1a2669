"""Requests that were taken and not answered yet, so that a next worker can serve them (ttrpc's ``Notes``)."""

from __future__ import annotations

import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from dunnage.worker.journal import Journal

_HEADER = struct.Struct("<HI")  # length of the connection's name, stream id; 0 for a part of a frame


class Unanswered(NamedTuple):
    """What a connection was served last: whole frames without an answer, and the beginning of one."""

    frames: tuple[bytes, ...] = ()
    last_stream_id: int = 0
    partial: tuple[bytes, ...] = ()


class Pending(NamedTuple):
    """A request without an answer, and when it came in the time of ``time.monotonic``; None: to a former worker."""

    connection: str
    stream_id: int
    frame: bytes
    noted_at: float | None


class RequestNotes:
    """Writes each request to ``journal`` and strikes it out when it is answered."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._requests: dict[str, dict[int, int]] = defaultdict(dict)
        self._partials: dict[str, list[int]] = defaultdict(list)
        self._noted_at: dict[int, float] = {}

    def unanswered(self) -> dict[str, Unanswered]:
        """What the journal holds of a former worker, by connection; it is noted here as before."""
        frames: dict[str, dict[int, bytes]] = defaultdict(dict)
        partials: dict[str, list[bytes]] = defaultdict(list)
        for number, record in self._journal.live.items():
            length, stream_id = _HEADER.unpack_from(record)
            connection = record[_HEADER.size : _HEADER.size + length].decode()
            data = record[_HEADER.size + length :]
            if stream_id:
                frames[connection][stream_id] = data
                self._requests[connection][stream_id] = number
            else:
                partials[connection].append(data)
                self._partials[connection].append(number)
        return {
            connection: Unanswered(
                tuple(frames[connection].values()), max(frames[connection], default=0), tuple(partials[connection])
            )
            for connection in {*frames, *partials}
        }

    def pending(self) -> Iterator[Pending]:
        """What is served now, oldest first on each connection."""
        live = self._journal.live
        for connection, requests in self._requests.items():
            for stream_id, number in requests.items():
                if number in live:
                    length, _ = _HEADER.unpack_from(live[number])
                    frame = live[number][_HEADER.size + length :]
                    yield Pending(connection, stream_id, frame, self._noted_at.get(number))

    def note(self, connection: str, stream_id: int, frame: bytes) -> None:
        before = self._requests[connection].get(stream_id)
        noted = self._requests[connection][stream_id] = self._append(connection, stream_id, frame)
        self._noted_at[noted] = time.monotonic()
        if before is not None:
            self._done(before)
        for number in self._partials.pop(connection, ()):
            self._done(number)

    def partial(self, connection: str, data: bytes) -> None:
        self._partials[connection].append(self._append(connection, 0, data))

    def answered(self, connection: str, stream_id: int) -> None:
        number = self._requests[connection].pop(stream_id, None)
        if number is not None:
            self._done(number)

    def disconnected(self, connection: str) -> None:
        for number in [*self._requests.pop(connection, {}).values(), *self._partials.pop(connection, ())]:
            self._done(number)

    def _done(self, number: int) -> None:
        self._noted_at.pop(number, None)
        self._journal.done(number)

    def _append(self, connection: str, stream_id: int, data: bytes) -> int:
        name = connection.encode()
        return self._journal.append(_HEADER.pack(len(name), stream_id) + name + data)
