"""Makes cases of a table: what each call answers in each state a process may be in, one case for every cell.

A cell is what is to come of the call: ``→ running`` (it is answered, and State then says that), ``→ stopped 137`` (with
that exit status), ``ok`` (answered, and the state is as before), or the error's text, whose class at the end gives the
code; an ellipsis at its end leaves the rest open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dunnage.conformance.case import Area, Difference
from dunnage.conformance.check import Failed, equal, refused
from dunnage.conformance.scene import Scene, Status, Task
from dunnage.ttrpc.errors import RpcError

Enter = Callable[[Scene], Awaitable[Task]]
Do = Callable[[Task], Awaitable[Any]]

GONE = "deleted"
STATUSES: Mapping[str, int] = {
    "created": Status.CREATED,
    "created from a checkpoint": Status.CREATED,
    "running": Status.RUNNING,
    "paused": Status.PAUSED,
    "stopped": Status.STOPPED,
}


class Row(NamedTuple):
    call: str
    do: Do
    cells: Sequence[str]


def fill(
    area: Area,
    *,
    thing: str,
    states: Mapping[str, Enter],
    rows: Sequence[Row],
    exec_id: str,
    gone: str,
    differences: Mapping[tuple[str, str], Sequence[Difference]],
) -> None:
    """Add a case for every row and state. `gone` is what State says of the deleted."""
    for row in rows:
        for (state, enter), cell in zip(states.items(), row.cells, strict=True):
            name = f"{row.call} of {'an' if thing == 'exec' else 'a'} {thing} that is {state} gives {cell!r}"
            play = _play(row.do, enter, cell, state, exec_id, gone)
            area.add(name, play, *differences.get((row.call, state), ()))
    unused = differences.keys() - {(row.call, state) for row in rows for state in states}
    if unused:
        raise ValueError(f"differences of no cell: {sorted(unused)}")


def _play(do: Do, enter: Enter, cell: str, state: str, exec_id: str, gone: str) -> Callable[[Scene], Awaitable[None]]:
    async def play(scene: Scene) -> None:
        task = await enter(scene)
        if cell.startswith("→ "):
            after, _, exit_status = cell[2:].partition(" ")
            await do(task)
            await expect_state(task, exec_id, after, gone, exit_status)
        else:
            await (do(task) if cell == "ok" else refused(do(task), cell))
            await expect_state(task, exec_id, state, gone)

    return play


async def expect_state(task: Task, exec_id: str, state: str, gone: str, exit_status: str = "") -> None:
    try:
        answer = await task.call("State", exec_id=exec_id)
    except RpcError as error:
        if state == GONE and error.message == gone:
            return
        raise Failed(f"State says {error.message!r} where it is to be {state}") from error
    if state == GONE:
        raise Failed("State still knows what is deleted")
    equal("the status", answer.status, STATUSES[state])
    if exit_status:
        equal("the exit status", answer.exit_status, int(exit_status))
