"""What a container tells the world, as values: the service makes containerd's events of them."""

from __future__ import annotations

from typing import NamedTuple


class Mount(NamedTuple):
    """A mount of the rootfs, as the client asked for it."""

    type: str
    source: str
    target: str
    options: tuple[str, ...]


class IO(NamedTuple):
    """Where a process's standard streams come from and go to: paths or URIs, empty for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Ended(NamedTuple):
    """A process's end. ``exited_at`` is in nanoseconds since the epoch; None: it never ran, or its time is unknown."""

    pid: int
    status: int
    exited_at: int | None


class Created(NamedTuple):
    bundle: str
    rootfs: tuple[Mount, ...]
    io: IO
    checkpoint: str
    pid: int


class Started(NamedTuple):
    pid: int


class ExecAdded(NamedTuple):
    exec_id: str


class ExecStarted(NamedTuple):
    exec_id: str
    pid: int


class Exited(NamedTuple):
    """``exec_id`` is empty for the init."""

    exec_id: str
    ended: Ended


class Deleted(NamedTuple):
    ended: Ended


Fact = Created | Started | ExecAdded | ExecStarted | Exited | Deleted
