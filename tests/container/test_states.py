"""The two tables of states, row by row as the reference has them (shim v2, §5.2 and §5.4)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from dunnage import errors
from dunnage.container import states
from dunnage.container.states import Operation, State

ALLOWED = "-"

INIT_STATES = ("created", "created-checkpoint", "running", "paused", "stopped", "deleted")
INIT = {
    "start": (
        ALLOWED,
        ALLOWED,
        "cannot start a running process",
        "cannot start a paused process",
        "cannot start a stopped process",
        "cannot start a deleted process",
    ),
    "delete": (
        ALLOWED,
        ALLOWED,
        "cannot delete a running process",
        "cannot delete a paused process",
        ALLOWED,
        "cannot delete a deleted process: not found",
    ),
    "pause": (
        "cannot pause task in created state",
        "cannot pause task in created state",
        ALLOWED,
        "cannot pause a paused container",
        "cannot pause a stopped container",
        "cannot pause a deleted process",
    ),
    "resume": (
        "cannot resume task in created state",
        "cannot resume task in created state",
        "cannot resume a running process",
        ALLOWED,
        "cannot resume a stopped container",
        "cannot resume a deleted process",
    ),
    "update": (
        ALLOWED,
        ALLOWED,
        ALLOWED,
        ALLOWED,
        "cannot update a stopped container",
        "cannot update a deleted process",
    ),
    "checkpoint": (
        "cannot checkpoint a task in created state",
        "cannot checkpoint a task in created state",
        ALLOWED,
        ALLOWED,
        "cannot checkpoint a stopped container",
        "cannot checkpoint a deleted process",
    ),
    "exec": (
        ALLOWED,
        "cannot exec in a created state",
        ALLOWED,
        "cannot exec in a paused state",
        "cannot exec in a stopped state",
        "cannot exec in a deleted state",
    ),
    "kill": (ALLOWED, ALLOWED, ALLOWED, ALLOWED, ALLOWED, "cannot kill a deleted process: not found"),
}

EXEC_STATES = ("created", "running", "stopped", "deleted")
EXEC = {
    "start": (
        ALLOWED,
        "cannot start a running process",
        "cannot start a stopped process",
        "cannot start a deleted process",
    ),
    "delete": (
        ALLOWED,
        "cannot delete a running process",
        ALLOWED,
        "cannot delete a deleted process: not found",
    ),
    "kill": (
        "process not created: failed precondition",
        ALLOWED,
        "process already finished: not found",
        "cannot kill a deleted process: not found",
    ),
    "resize": (ALLOWED, ALLOWED, "cannot resize a stopped container", "cannot resize a deleted process"),
}


def rows(table: Mapping[str, tuple[str, ...]], columns: tuple[str, ...]) -> list[tuple[str, str, str]]:
    return [
        (operation, state, answer)
        for operation, answers in table.items()
        for state, answer in zip(columns, answers, strict=True)
    ]


def answer_of(table: states.Table, operation: str, state: str) -> str:
    """The refusal with the words of its class, as a client sees them."""
    try:
        states.check(table, Operation(operation), State(state))
    except errors.Error as error:
        return f"{error}: {error.kind}" if error.kind else str(error)
    return ALLOWED


@pytest.mark.parametrize(("operation", "state", "answer"), rows(INIT, INIT_STATES))
def test_an_init_allows_and_refuses(operation: str, state: str, answer: str) -> None:
    assert answer_of(states.INIT, operation, state) == answer


@pytest.mark.parametrize(("operation", "state", "answer"), rows(EXEC, EXEC_STATES))
def test_an_exec_allows_and_refuses(operation: str, state: str, answer: str) -> None:
    assert answer_of(states.EXEC, operation, state) == answer


def test_nothing_is_allowed_that_is_not_in_the_table() -> None:
    assert answer_of(states.EXEC, "pause", "running") == "cannot pause a process that is running"
    assert answer_of(states.EXEC, "start", "paused") == "cannot start a process that is paused"


def test_every_state_has_its_answer_to_every_operation_on_an_init() -> None:
    for operation in set(Operation) - {Operation.RESIZE}:  # an init's terminal has its size whatever the state
        assert set(states.INIT[operation]) == set(State)
