"""Messages and values: zero times, bare type URLs out and both forms in, and what bad bytes are called."""

from __future__ import annotations

import json

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from dunnage.api import events_pb2, mount_pb2, task_pb2
from dunnage.container.facts import (
    IO,
    Created,
    Deleted,
    Ended,
    ExecAdded,
    ExecStarted,
    Exited,
    Fact,
    Mount,
    Started,
)
from dunnage.errors import InvalidArgument
from dunnage.service import messages

ZERO = -62135596800


def test_what_has_not_exited_has_go_s_zero_time() -> None:
    zero = messages.timestamp(None)
    assert (zero.seconds, zero.nanos) == (ZERO, 0)
    assert zero.SerializeToString().hex(" ") == "08 80 92 b8 c3 98 fe ff ff ff 01"
    response = task_pb2.StateResponse(exited_at=zero)
    assert response.HasField("exited_at")


def test_a_time_has_its_nanoseconds() -> None:
    time = messages.timestamp(1_700_000_000_123_456_789)
    assert (time.seconds, time.nanos) == (1_700_000_000, 123_456_789)
    epoch = messages.timestamp(0)
    assert (epoch.seconds, epoch.nanos) == (0, 0)


def any_of(message: Message, prefix: str = "") -> AnyMessage:
    return AnyMessage(type_url=f"{prefix}{message.DESCRIPTOR.full_name}", value=message.SerializeToString())


def test_an_exec_s_spec_is_json_whatever_its_type_url() -> None:
    for type_url in ("", "types.containerd.io/opencontainers/runtime-spec/1/Process", "odd"):
        packed = AnyMessage(type_url=type_url, value=json.dumps({"args": ["true"]}).encode())
        assert messages.process_spec(packed) == {"args": ["true"]}


@pytest.mark.parametrize("value", [b"", b"{", b"\xff", b"[]", b"null", b"1"])
def test_an_exec_s_spec_that_is_none_is_an_invalid_argument(value: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"^the process spec of an exec is not "):
        messages.process_spec(AnyMessage(value=value))


def test_mounts_keep_their_order_and_options() -> None:
    wire = [
        mount_pb2.Mount(type="overlay", source="overlay", target="", options=["lowerdir=/a:/b", "ro"]),
        mount_pb2.Mount(type="bind", source="/x", target="/y"),
    ]
    assert messages.mounts(wire) == (
        Mount("overlay", "overlay", "", ("lowerdir=/a:/b", "ro")),
        Mount("bind", "/x", "/y", ()),
    )


ENDED = Ended(42, 137, 1_000_000_001)
NEVER_RAN = Ended(42, 0, None)
MOUNT = Mount("bind", "/x", "", ("rbind",))


@pytest.mark.parametrize(
    ("fact", "event"),
    [
        (
            Created("/b", (MOUNT,), IO("/in", "/out", "/err", True), "", 42),
            events_pb2.TaskCreate(
                container_id="c1",
                bundle="/b",
                rootfs=[mount_pb2.Mount(type="bind", source="/x", options=["rbind"])],
                io=events_pb2.TaskIO(stdin="/in", stdout="/out", stderr="/err", terminal=True),
                pid=42,
            ),
        ),
        (Started(42), events_pb2.TaskStart(container_id="c1", pid=42)),
        (ExecAdded("e1"), events_pb2.TaskExecAdded(container_id="c1", exec_id="e1")),
        (ExecStarted("e1", 43), events_pb2.TaskExecStarted(container_id="c1", exec_id="e1", pid=43)),
        (
            Exited("", ENDED),
            events_pb2.TaskExit(
                container_id="c1", id="c1", pid=42, exit_status=137, exited_at=messages.timestamp(1_000_000_001)
            ),
        ),
        (
            Exited("e1", ENDED),
            events_pb2.TaskExit(
                container_id="c1", id="e1", pid=42, exit_status=137, exited_at=messages.timestamp(1_000_000_001)
            ),
        ),
        (
            Deleted(ENDED),
            events_pb2.TaskDelete(
                container_id="c1", pid=42, exit_status=137, exited_at=messages.timestamp(1_000_000_001)
            ),
        ),
        (
            Deleted(NEVER_RAN),
            events_pb2.TaskDelete(container_id="c1", pid=42, exit_status=0, exited_at=messages.timestamp(None)),
        ),
    ],
)
def test_a_fact_is_told_as_containerd_s_event(fact: Fact, event: Message) -> None:
    assert messages.event("c1", fact) == event
