"""The events of containerd's task API and the topic that each is published on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.message import Message

from dunnage.api import events_pb2

# containerd, core/runtime/events.go. TaskCheckpointed has a topic, but containerd's own shim never publishes it.
TOPICS: Final[Mapping[type[Message], str]] = {
    events_pb2.TaskCreate: "/tasks/create",
    events_pb2.TaskStart: "/tasks/start",
    events_pb2.TaskExit: "/tasks/exit",
    events_pb2.TaskDelete: "/tasks/delete",
    events_pb2.TaskOOM: "/tasks/oom",
    events_pb2.TaskExecAdded: "/tasks/exec-added",
    events_pb2.TaskExecStarted: "/tasks/exec-started",
    events_pb2.TaskPaused: "/tasks/paused",
    events_pb2.TaskResumed: "/tasks/resumed",
    events_pb2.TaskCheckpointed: "/tasks/checkpointed",
}


def topic_of(message: Message) -> str:
    """The topic of an event; ``ValueError`` for a message that is none."""
    topic = TOPICS.get(type(message))
    if topic is None:
        raise ValueError(f"{message.DESCRIPTOR.full_name} is not an event")
    return topic
