"""What a node's own socket says, as values."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from dunnage.api import events_pb2, forward_pb2, node_pb2
from dunnage.client.values import Event, Listed, Status, read_time


class WorkerProcess(NamedTuple):
    """One worker of a node and the group it serves."""

    name: str
    pid: int


class NodeStatus(NamedTuple):
    """The processes behind one key, and how many containers they have."""

    key: str
    version: str
    keeper_pid: int
    worker_pid: int
    worker_started: datetime | None
    containerd_address: str
    containers: int
    workers: tuple[WorkerProcess, ...]


def listed(key: str, one: node_pb2.Container) -> Listed:
    status = Status.of_number(one.status)
    return Listed(
        key=key,
        namespace=one.namespace,
        id=one.id,
        status=status,
        pid=one.pid,
        exit_status=one.exit_status if status is Status.STOPPED else None,
        bundle=Path(one.bundle),
        runtime=one.runtime,
        created_at=read_time(one.created_at),
        exited_at=read_time(one.exited_at) if status is Status.STOPPED else None,
        execs=tuple(one.exec_ids),
        address=one.address.removeprefix("unix://"),
    )


def node_status(answer: node_pb2.StatusResponse) -> NodeStatus:
    return NodeStatus(
        key=answer.key,
        version=answer.version,
        keeper_pid=answer.keeper_pid,
        worker_pid=answer.worker_pid,
        worker_started=read_time(answer.worker_started),
        containerd_address=answer.containerd_address,
        containers=answer.containers,
        workers=tuple(WorkerProcess(worker.name, worker.pid) for worker in answer.workers),
    )


def event(key: str, envelope: forward_pb2.Envelope) -> Event:
    return Event(
        at=read_time(envelope.timestamp),
        key=key,
        namespace=envelope.namespace,
        topic=envelope.topic,
        fields=_event_fields(envelope.event.type_url, envelope.event.value),
    )


def _event_fields(type_url: str, value: bytes) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    name = type_url.rpartition("/")[2].rpartition(".")[2]
    message_class = getattr(events_pb2, name, None)
    if message_class is None:
        return {"type_url": type_url}
    fields: dict[str, Any] = MessageToDict(
        message_class.FromString(value), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return fields
