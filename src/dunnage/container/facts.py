"""What a container is asked to be, and what it tells the world, as values: the service makes messages of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


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


class Options(NamedTuple):
    """The runtime options of one container (shim v2, §3.2), each called as in ``options.json``; empty: the default."""

    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""
    io_uid: int = 0
    io_gid: int = 0
    binary_name: str = ""
    root: str = ""
    systemd_cgroup: bool = False
    criu_work_path: str = ""
    criu_path: str = ""


class Checkpoint(NamedTuple):
    """Where a container that was checkpointed is to be restored from; an empty ``path``: it is made new."""

    path: str = ""
    parent: str = ""


class CheckpointOptions(NamedTuple):
    """What a Checkpoint is to be like (shim v2, §3.2)."""

    exit: bool = False
    open_tcp: bool = False
    external_unix_sockets: bool = False
    terminal: bool = False
    file_locks: bool = False
    empty_namespaces: tuple[str, ...] = ()
    work_path: str = ""
    parent_path: str = ""


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


class Paused(NamedTuple):
    pass


class Resumed(NamedTuple):
    pass


class OutOfMemory(NamedTuple):
    """The kernel has killed in the container for want of memory, once or more often."""


class Deleted(NamedTuple):
    ended: Ended


Fact = Created | Started | ExecAdded | ExecStarted | Paused | Resumed | OutOfMemory | Exited | Deleted


def fact_to_json(fact: Fact) -> list[Any]:
    """A fact in JSON values, for ``fact_from_json``."""
    return [type(fact).__name__, *fact]


def fact_from_json(value: Sequence[Any]) -> Fact:
    """Raises ValueError for what is no fact."""
    match value:
        case ["Created", bundle, rootfs, io, checkpoint, pid]:
            mounts = tuple(Mount(m[0], m[1], m[2], tuple(m[3])) for m in rootfs)
            return Created(bundle, mounts, IO(*io), checkpoint, pid)
        case ["Started", pid]:
            return Started(pid)
        case ["ExecAdded", exec_id]:
            return ExecAdded(exec_id)
        case ["ExecStarted", exec_id, pid]:
            return ExecStarted(exec_id, pid)
        case ["Paused"]:
            return Paused()
        case ["Resumed"]:
            return Resumed()
        case ["OutOfMemory"]:
            return OutOfMemory()
        case ["Exited", exec_id, ended]:
            return Exited(exec_id, Ended(*ended))
        case ["Deleted", ended]:
            return Deleted(Ended(*ended))
    raise ValueError(f"{value!r} is no fact about a container")
