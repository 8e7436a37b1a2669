"""Makes cases of a table: what each call answers in each state a process may be in, one case for every cell.

What a cell asks: ``→ running`` (it is answered, and State then says that), ``→ stopped 137`` (with that exit status),
``ok`` (answered, and the state is as before), or the error's text, whose class at the end gives the code; an ellipsis
at its end leaves the rest open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from dunnage.conformance.case import Area, Difference
from dunnage.conformance.check import Failed, equal, refused
from dunnage.conformance.reference import Cells
from dunnage.conformance.scene import Scene, Status, Task
from dunnage.ttrpc.errors import RpcError

Enter = Callable[[Scene], Awaitable[Task]]
Do = Callable[[Task], Awaitable[Any]]
Cell = tuple[str, str]
"""An operation and a state."""

GONE: Final = "deleted"
STATUSES: Final[Mapping[str, int]] = {
    "created": Status.CREATED,
    "created (checkpoint)": Status.CREATED,
    "running": Status.RUNNING,
    "paused": Status.PAUSED,
    "stopped": Status.STOPPED,
}


class Row(NamedTuple):
    """A call with what it is to give in each of the states, in their order."""

    call: str
    do: Do
    cells: Sequence[str]


class Table(NamedTuple):
    """What all rows have in common. `gone` is what every call says of the deleted, which is out of the shim's list."""

    area: Area
    thing: str
    states: Mapping[str, Enter]
    exec_id: str
    gone: str


class Outside(NamedTuple):
    """How the cells of a documented table look to a client."""

    calls: Mapping[str, Do]
    """By the operation's name in the table."""
    instead: Mapping[Cell, str]
    """What a client sees where that does not follow from the cell's words."""
    unseen: Mapping[Cell, str]
    """Cells that a client cannot reach, and why."""
    enter: Mapping[Cell, Enter]
    """Where the state has to be entered otherwise than for the other rows."""
    needs: Mapping[Cell, str]
    """Programs without which the cell cannot be asked about."""


def read(cell: str, state: str, gone: str) -> str:
    """What a client is to see, of a cell in the words of the documented table."""
    if state == GONE:
        return gone
    if cell.startswith("`"):
        return cell.strip("`")
    _, arrow, after = cell.partition("→ ")
    if arrow:
        return "→ stopped 137" if after.startswith("stopped") else f"→ {after}"
    return "ok"


def fill_from(
    table: Table, documented: Cells, outside: Outside, differences: Mapping[Cell, Sequence[Difference]] | None = None
) -> None:
    """A case for every cell of a documented table; one that cannot be asked about has its reason in `outside`."""
    known = {(op, state) for op, row in documented.items() for state in row}
    differences = differences or {}
    for told in (outside.instead, outside.unseen, outside.enter, outside.needs, differences):
        if told.keys() - known:
            raise ValueError(f"cells of no table: {sorted(told.keys() - known)}")
    for op, row in documented.items():
        for state, cell in row.items():
            if (op, state) in outside.unseen:
                continue
            enter = outside.enter.get((op, state), table.states[state])
            wanted = outside.instead.get((op, state)) or read(cell, state, table.gone)
            needs = outside.needs.get((op, state), "")
            found = differences.get((op, state), ())
            _add(table, op, outside.calls[op], state, enter, wanted, *found, needs=needs)


def fill(table: Table, rows: Sequence[Row], differences: Mapping[Cell, Sequence[Difference]]) -> None:
    """A case for every row and state."""
    unused = differences.keys() - {(row.call, state) for row in rows for state in table.states}
    if unused:
        raise ValueError(f"differences of no cell: {sorted(unused)}")
    for row in rows:
        for (state, enter), wanted in zip(table.states.items(), row.cells, strict=True):
            _add(table, row.call, row.do, state, enter, wanted, *differences.get((row.call, state), ()))


def _add(
    table: Table, call: str, do: Do, state: str, enter: Enter, wanted: str, *differences: Difference, needs: str = ""
) -> None:
    async def play(scene: Scene) -> None:
        task = await enter(scene)
        if wanted.startswith("→ "):
            after, _, exit_status = wanted[2:].partition(" ")
            await do(task)
            await expect_state(task, table, after, exit_status)
        else:
            await (do(task) if wanted == "ok" else refused(do(task), wanted))
            await expect_state(task, table, state)

    article = "an" if table.thing == "exec" else "a"
    table.area.add(
        f"{call} of {article} {table.thing} that is {state} gives {wanted!r}", play, *differences, needs=needs
    )


async def expect_state(task: Task, table: Table, state: str, exit_status: str = "") -> None:
    try:
        answer = await task.call("State", exec_id=table.exec_id)
    except RpcError as error:
        if state == GONE and error.message == table.gone:
            return
        raise Failed(f"State says {error.message!r} where it is to be {state}") from error
    if state == GONE:
        raise Failed("State still knows what is deleted")
    equal("the status", answer.status, STATUSES[state])
    if exit_status:
        equal("the exit status", answer.exit_status, int(exit_status))
