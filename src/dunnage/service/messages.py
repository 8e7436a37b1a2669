"""From the wire's messages to values and back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from dunnage.api import anys, events_pb2, mount_pb2, options_pb2, task_types_pb2
from dunnage.container.container import Container
from dunnage.container.facts import (
    IO,
    CheckpointOptions,
    Created,
    Deleted,
    ExecAdded,
    ExecStarted,
    Exited,
    Fact,
    Mount,
    OutOfMemory,
    Paused,
    Resumed,
    Started,
)
from dunnage.container.process import Init, Process
from dunnage.container.states import State
from dunnage.errors import InvalidArgument

ZERO_TIME_S = -62_135_596_800
"""Go's zero time, which is how containerd knows that a process has not exited (shim v2, §3.1)."""

STATUS = {
    State.CREATED: task_types_pb2.CREATED,
    State.CREATED_CHECKPOINT: task_types_pb2.CREATED,
    State.RUNNING: task_types_pb2.RUNNING,
    State.PAUSED: task_types_pb2.PAUSED,
    State.STOPPED: task_types_pb2.STOPPED,
    State.DELETED: task_types_pb2.STOPPED,
}


def init_status(init: Init) -> task_types_pb2.Status:
    """What a client is told of the init; while the runtime is pausing it, that."""
    if init.is_pausing and init.state is State.RUNNING:
        return task_types_pb2.PAUSING
    return STATUS[init.state]


def status(container: Container, process: Process) -> task_types_pb2.Status:
    """What a client is told of a process: an exec is paused with its container (shim v2, §4.1)."""
    of_container = init_status(container.init)
    if process is container.init or of_container in (task_types_pb2.PAUSED, task_types_pb2.PAUSING):
        return of_container
    return STATUS[process.state]


def timestamp(nanoseconds: int | None) -> Timestamp:
    """A time in nanoseconds since the epoch; None: Go's zero time."""
    if nanoseconds is None:
        return Timestamp(seconds=ZERO_TIME_S)
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


def mounts(messages: Iterable[mount_pb2.Mount]) -> tuple[Mount, ...]:
    return tuple(Mount(m.type, m.source, m.target, tuple(m.options)) for m in messages)


def process_spec(packed: AnyMessage) -> dict[str, Any]:
    """The OCI Process of an Exec: JSON, whatever its type URL (shim v2, §3.3)."""
    return _json_object(packed.value, "the process spec of an exec is")


def checkpoint_options(packed: AnyMessage) -> CheckpointOptions:
    """The options of a Checkpoint. Absent or empty: the defaults. Raises InvalidArgument for another type or bad
    bytes."""
    if not packed.type_url and not packed.value:
        return CheckpointOptions()
    message = anys.unpack(packed, [options_pb2.CheckpointOptions])
    values = {name: getattr(message, name) for name in CheckpointOptions._fields}
    return CheckpointOptions(**{**values, "empty_namespaces": tuple(message.empty_namespaces)})


def resources(packed: AnyMessage) -> bytes:
    """The OCI LinuxResources of an Update: JSON, whatever its type URL (shim v2, §3.3)."""
    _json_object(packed.value, "the resources of an update are")
    return packed.value


def event(container_id: str, fact: Fact) -> Message:
    """The event of containerd that tells this fact."""
    match fact:
        case Created(bundle, rootfs, io, checkpoint, pid):
            return events_pb2.TaskCreate(
                container_id=container_id,
                bundle=bundle,
                rootfs=[
                    mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in rootfs
                ],
                io=_task_io(io),
                checkpoint=checkpoint,
                pid=pid,
            )
        case Started(pid):
            return events_pb2.TaskStart(container_id=container_id, pid=pid)
        case ExecAdded(exec_id):
            return events_pb2.TaskExecAdded(container_id=container_id, exec_id=exec_id)
        case ExecStarted(exec_id, pid):
            return events_pb2.TaskExecStarted(container_id=container_id, exec_id=exec_id, pid=pid)
        case Paused():
            return events_pb2.TaskPaused(container_id=container_id)
        case Resumed():
            return events_pb2.TaskResumed(container_id=container_id)
        case OutOfMemory():
            return events_pb2.TaskOOM(container_id=container_id)
        case Exited(exec_id, ended):
            return events_pb2.TaskExit(
                container_id=container_id,
                id=exec_id or container_id,
                pid=ended.pid,
                exit_status=ended.status,
                exited_at=timestamp(ended.exited_at),
            )
        case Deleted(ended):
            return events_pb2.TaskDelete(
                container_id=container_id,
                pid=ended.pid,
                exit_status=ended.status,
                exited_at=timestamp(ended.exited_at),
            )


def _json_object(text: bytes, what: str) -> dict[str, Any]:
    """Raises InvalidArgument for text that is none, or nested so deep that it could not be written down again."""
    try:
        value = json.loads(text.decode())
    except RecursionError as error:
        raise InvalidArgument(f"{what} nested too deep") from error
    except ValueError as error:
        raise InvalidArgument(f"{what} not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArgument(f"{what} not a JSON object")
    level: list[Any] = [value]
    for _ in range(_JSON_DEPTH):
        level = [
            part
            for parts in level
            for part in (parts.values() if isinstance(parts, dict) else parts)
            if isinstance(part, dict | list)
        ]
        if not level:
            return value
    raise InvalidArgument(f"{what} nested too deep")


_JSON_DEPTH = 100  # the specification has ten; json takes about 990 less the depth of the stack


def _task_io(io: IO) -> events_pb2.TaskIO:
    return events_pb2.TaskIO(stdin=io.stdin, stdout=io.stdout, stderr=io.stderr, terminal=io.terminal)
