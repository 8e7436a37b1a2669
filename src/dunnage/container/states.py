"""Which operation a process allows in which state: two tables, and nothing that is not in them is allowed.

Source: the states of containerd's Init and Exec (shim v2, §5.2 and §5.4); the texts are the ones its clients match.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from dunnage.errors import Error, FailedPrecondition, NotFound


class State(Enum):
    """The value is the word that goes into ``dunnage.json``."""

    CREATED = "created"
    CREATED_CHECKPOINT = "created-checkpoint"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


class Operation(Enum):
    START = "start"
    DELETE = "delete"
    PAUSE = "pause"
    RESUME = "resume"
    UPDATE = "update"
    CHECKPOINT = "checkpoint"
    EXEC = "exec"
    KILL = "kill"
    RESIZE = "resize"


class Refusal(NamedTuple):
    text: str
    error: type[Error] = Error


Table = Mapping[Operation, Mapping[State, Refusal | None]]

CREATED, CHECKPOINT, RUNNING = State.CREATED, State.CREATED_CHECKPOINT, State.RUNNING
PAUSED, STOPPED, DELETED = State.PAUSED, State.STOPPED, State.DELETED

INIT: Table = {
    Operation.START: {
        CREATED: None,
        CHECKPOINT: None,
        RUNNING: Refusal("cannot start a running process"),
        PAUSED: Refusal("cannot start a paused process"),
        STOPPED: Refusal("cannot start a stopped process"),
        DELETED: Refusal("cannot start a deleted process"),
    },
    Operation.DELETE: {
        CREATED: None,
        CHECKPOINT: None,
        RUNNING: Refusal("cannot delete a running process"),
        PAUSED: Refusal("cannot delete a paused process"),
        STOPPED: None,
        DELETED: Refusal("cannot delete a deleted process", NotFound),
    },
    Operation.PAUSE: {
        CREATED: Refusal("cannot pause task in created state"),
        CHECKPOINT: Refusal("cannot pause task in created state"),
        RUNNING: None,
        PAUSED: Refusal("cannot pause a paused container"),
        STOPPED: Refusal("cannot pause a stopped container"),
        DELETED: Refusal("cannot pause a deleted process"),
    },
    Operation.RESUME: {
        CREATED: Refusal("cannot resume task in created state"),
        CHECKPOINT: Refusal("cannot resume task in created state"),
        RUNNING: Refusal("cannot resume a running process"),
        PAUSED: None,
        STOPPED: Refusal("cannot resume a stopped container"),
        DELETED: Refusal("cannot resume a deleted process"),
    },
    Operation.UPDATE: {
        CREATED: None,
        CHECKPOINT: None,
        RUNNING: None,
        PAUSED: None,
        STOPPED: Refusal("cannot update a stopped container"),
        DELETED: Refusal("cannot update a deleted process"),
    },
    Operation.CHECKPOINT: {
        CREATED: Refusal("cannot checkpoint a task in created state"),
        CHECKPOINT: Refusal("cannot checkpoint a task in created state"),
        RUNNING: None,
        PAUSED: None,
        STOPPED: Refusal("cannot checkpoint a stopped container"),
        DELETED: Refusal("cannot checkpoint a deleted process"),
    },
    Operation.EXEC: {
        CREATED: None,
        CHECKPOINT: Refusal("cannot exec in a created state"),
        RUNNING: None,
        PAUSED: Refusal("cannot exec in a paused state"),
        STOPPED: Refusal("cannot exec in a stopped state"),
        DELETED: Refusal("cannot exec in a deleted state"),
    },
    Operation.KILL: {
        CREATED: None,
        CHECKPOINT: None,
        RUNNING: None,
        PAUSED: None,
        STOPPED: None,
        DELETED: Refusal("cannot kill a deleted process", NotFound),
    },
}

EXEC: Table = {
    Operation.START: {
        CREATED: None,
        RUNNING: Refusal("cannot start a running process"),
        STOPPED: Refusal("cannot start a stopped process"),
        DELETED: Refusal("cannot start a deleted process"),
    },
    Operation.DELETE: {
        CREATED: None,
        RUNNING: Refusal("cannot delete a running process"),
        STOPPED: None,
        DELETED: Refusal("cannot delete a deleted process", NotFound),
    },
    Operation.KILL: {
        CREATED: Refusal("process not created", FailedPrecondition),
        RUNNING: None,
        STOPPED: Refusal("process already finished", NotFound),
        DELETED: Refusal("cannot kill a deleted process", NotFound),
    },
    Operation.RESIZE: {
        CREATED: None,
        RUNNING: None,
        STOPPED: Refusal("cannot resize a stopped container"),
        DELETED: Refusal("cannot resize a deleted process"),
    },
}


def check(table: Table, operation: Operation, state: State) -> None:
    """Return if ``table`` allows ``operation`` in ``state``; raise its refusal otherwise."""
    row = table.get(operation, {})
    if state not in row:
        raise Error(f"cannot {operation.value} a process that is {state.value}")
    refusal = row[state]
    if refusal is not None:
        raise refusal.error(refusal.text)
