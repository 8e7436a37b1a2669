"""Every event has its topic."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from dunnage.api import events_pb2 as events
from dunnage.events.topics import TOPICS, topic_of


@pytest.mark.parametrize(
    ("message", "topic"),
    [
        (events.TaskCreate(), "/tasks/create"),
        (events.TaskStart(), "/tasks/start"),
        (events.TaskExit(), "/tasks/exit"),
        (events.TaskDelete(), "/tasks/delete"),
        (events.TaskOOM(), "/tasks/oom"),
        (events.TaskExecAdded(), "/tasks/exec-added"),
        (events.TaskExecStarted(), "/tasks/exec-started"),
        (events.TaskPaused(), "/tasks/paused"),
        (events.TaskResumed(), "/tasks/resumed"),
        (events.TaskCheckpointed(), "/tasks/checkpointed"),
    ],
)
def test_an_event_has_its_topic(message: Message, topic: str) -> None:
    assert topic_of(message) == topic


def test_every_task_event_is_in_the_table() -> None:
    names = {name for name in events.DESCRIPTOR.message_types_by_name if name != "TaskIO"}
    assert {message_class.DESCRIPTOR.name for message_class in TOPICS} == names


def test_another_message_is_no_event() -> None:
    with pytest.raises(ValueError, match=r"containerd\.events\.TaskIO is not an event"):
        topic_of(events.TaskIO())
