"""The values a client of dunnage handles: states, exits, events. None of them holds a protobuf message."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

GO_ZERO_SECONDS = -62135596800
"""How the wire says "has not exited": Go's zero time, in seconds since 1970."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Status(enum.Enum):
    """What a process is doing; the words are those of ``runc state``."""

    UNKNOWN = "unknown"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    PAUSING = "pausing"

    @property
    def is_alive(self) -> bool:
        """Whether it is there and has not ended."""
        return self not in (Status.STOPPED, Status.UNKNOWN)

    @classmethod
    def of_number(cls, number: int) -> Status:
        """The status with this number on the wire (``containerd.v1.types.Status``)."""
        return _BY_NUMBER.get(number, cls.UNKNOWN)


_BY_NUMBER = {
    1: Status.CREATED,
    2: Status.RUNNING,
    3: Status.STOPPED,
    4: Status.PAUSED,
    5: Status.PAUSING,
}


class Exit(NamedTuple):
    """How a process ended: its exit code, or 128 plus the signal that ended it; ``at`` is None where nobody saw it."""

    status: int
    at: datetime | None


class State(NamedTuple):
    """What the worker says about one process; ``exit`` is None while it has not ended."""

    id: str
    pid: int
    status: Status
    exit: Exit | None
    terminal: bool
    bundle: Path
    stdin: str
    stdout: str
    stderr: str


class Finished(NamedTuple):
    """A process that ran to its end, and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes


class Listed(NamedTuple):
    """One container of a node, whoever drives it: ``key`` is ``local``, or the key of a containerd."""

    key: str
    namespace: str
    id: str
    status: Status
    pid: int
    exit_status: int | None
    bundle: Path
    runtime: str = ""
    created_at: datetime | None = None
    exited_at: datetime | None = None
    execs: tuple[str, ...] = ()
    address: str = ""
    """The path of the socket where its worker serves it; empty where it has none."""


class Event(NamedTuple):
    """One event of a node, in the order in which it was published; ``fields`` are those of the event's message."""

    at: datetime | None
    key: str
    namespace: str
    topic: str
    fields: Mapping[str, Any]


class WireTime(Protocol):
    """``google.protobuf.Timestamp``, as far as it is read here."""

    @property
    def seconds(self) -> int: ...

    @property
    def nanos(self) -> int: ...


def read_time(stamp: WireTime) -> datetime | None:
    """The moment a timestamp of the wire means; None for Go's zero time and for an empty message."""
    if stamp.seconds == GO_ZERO_SECONDS or (stamp.seconds == 0 and stamp.nanos == 0):
        return None
    return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)
