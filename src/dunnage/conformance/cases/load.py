"""Many at once: order holds under load, nothing is lost or told twice, and nobody waits for a stranger."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from dunnage.conformance.case import Area, Difference
from dunnage.conformance.cases.differences import GROUP_SOCKET
from dunnage.conformance.check import equal, that
from dunnage.conformance.events import Events
from dunnage.conformance.scene import Scene, Status, Task, together
from dunnage.ttrpc.errors import RpcError

AREA: Final = Area("load")
LIFE: Final = ["create", "start", "exit", "delete"]
EXEC_LIFE: Final = ["exec-added", "exec-started", "exit"]
STATE_LIMIT_S: Final = 2.0
"""What containerd allows a State call."""


def life_of(events: Events, container: str, exec_id: str = "") -> list[str]:
    """The topics told of one process, in order."""
    return [
        told.topic.removeprefix("/tasks/")
        for told in events
        if told.message.container_id == container and told.subject == (exec_id or container)
    ]


async def short_exec(task: Task, exec_id: str, status: int = 0) -> None:
    await task.exec(exec_id, "sh", "-c", f"exit {status}")
    await task.call("Start", exec_id=exec_id, timeout_s=60)
    answer = await task.call("Wait", exec_id=exec_id, timeout_s=60)
    equal(f"the exit status of {exec_id}", answer.exit_status, status)


def raised(answers: Sequence[object]) -> list[object]:
    return [answer for answer in answers if isinstance(answer, BaseException)]


@AREA.case("twenty execs at once each have one life in order, with the status of their own")
async def execs(scene: Scene) -> None:
    task = await scene.running()
    names = [f"e{number}" for number in range(20)]
    equal("what goes wrong", raised(await together(*(short_exec(task, f"e{n}", n) for n in range(20)))), [])
    for name in names:
        await scene.events.wait_for("exit", name)
        equal(f"the events of {name}", life_of(scene.events, "c1", name), EXEC_LIFE)
    equal("the statuses", [scene.events.of("exit", name)[0].message.exit_status for name in names], list(range(20)))


@AREA.case("six containers of one group at once each have one life in order", GROUP_SOCKET)
async def group(scene: Scene) -> None:
    async def live(number: int) -> None:
        task = await scene.stopped(id=f"c{number}", annotations={"io.containerd.runc.v2.group": "g"})
        await task.call("Delete")

    first = await scene.running(id="first", annotations={"io.containerd.runc.v2.group": "g"})
    equal("what goes wrong", raised(await together(*(live(number) for number in range(6)))), [])
    for number in range(6):
        await scene.events.wait_for("delete", f"c{number}")
        equal(f"the events of c{number}", life_of(scene.events, f"c{number}"), LIFE)
    equal("the status of the first", await first.status(), Status.RUNNING)


@AREA.case("six containers with shims of their own at once each have one life in order")
async def alone(scene: Scene) -> None:
    async def live(number: int) -> None:
        task = await scene.stopped(id=f"c{number}")
        await task.call("Delete")

    equal("what goes wrong", raised(await together(*(live(number) for number in range(6)))), [])
    for number in range(6):
        await scene.events.wait_for("delete", f"c{number}")
        equal(f"the events of c{number}", life_of(scene.events, f"c{number}"), LIFE)


@AREA.case("State is answered in time while execs start")
async def state_meanwhile(scene: Scene) -> None:
    task = await scene.running()
    execs = asyncio.ensure_future(together(*(short_exec(task, f"e{number}") for number in range(15))))
    slowest = 0.0
    while not execs.done():
        began = time.monotonic()
        await task.status()
        slowest = max(slowest, time.monotonic() - began)
    equal("what goes wrong", raised(await execs), [])
    that(slowest < STATE_LIMIT_S, f"the slowest State took {slowest:.2f} s, less than {STATE_LIMIT_S:g} s")


@AREA.case("a Wait keeps no other call of its connection waiting")
async def wait_blocks_nobody(scene: Scene) -> None:
    task = await scene.running()
    waits = [asyncio.ensure_future(task.call("Wait", timeout_s=60)) for _ in range(50)]
    equal("the status", await task.status(), Status.RUNNING)
    await task.stopped_exec("e1")
    await task.call("Kill", signal=9)
    equal("what all hear", {answer.exit_status for answer in await asyncio.gather(*waits)}, {137})


@AREA.case("a hundred State calls at once on one connection are all answered")
async def states(scene: Scene) -> None:
    task = await scene.running()
    answers = await together(*(task.status() for _ in range(100)))
    equal("the answers", Counter(answers), Counter({Status.RUNNING: 100}))


@AREA.case(
    "the init's exit is told after those of all its execs",
    Difference(
        "go 1.6.20*",
        "exits are told in the order in which they are reaped, and the kernel gives that of no order in particular",
        "the case",
        "containerd pull requests 9828, 9999 and 10651, in 1.6.36",
        always=False,
    ),
)
async def init_last(scene: Scene) -> None:
    task = await scene.running()
    for number in range(8):
        await task.started_exec(f"e{number}")
    await task.call("Kill", signal=9)
    await task.call("Wait")
    await scene.events.wait_until(lambda: len(scene.events.of("exit")) == 9, "exit of all nine")
    equal("the last exit", scene.events.of("exit")[-1].subject, "c1")
    equal("the exits told", Counter(told.subject for told in scene.events.of("exit")).most_common(1)[0][1], 1)


@AREA.case("a container without a pid namespace takes what it leaves behind along")
async def kill_all(scene: Scene) -> None:
    task = await scene.running("sh", "-c", "sleep 100000 & sleep 100000 & exit 0", private_pids=False)
    equal("the exit status", (await task.call("Wait")).exit_status, 0)
    await task.call("Delete")


@AREA.case("a kill in the middle of exec starts loses no exit and tells none twice")
async def killed_in_the_middle(scene: Scene) -> None:
    task = await scene.running()
    for number in range(12):
        await task.exec(f"e{number}")
    starts = asyncio.ensure_future(
        together(*(task.call("Start", exec_id=f"e{number}", timeout_s=60) for number in range(12)))
    )
    await scene.events.wait_for("exec-started")
    await task.call("Kill", signal=9, timeout_s=60)
    await task.call("Wait", timeout_s=60)
    answers = await starts
    started = {f"e{number}" for number, answer in enumerate(answers) if not isinstance(answer, BaseException)}
    that(all(isinstance(error, RpcError) for error in raised(answers)), "every Start is answered")

    def all_told() -> bool:
        return {told.subject for told in scene.events.of("exit")} >= started | {"c1"}

    await scene.events.wait_until(all_told, "exit of all that were started")
    told = Counter(told.subject for told in scene.events.of("exit"))
    equal("how often each exit is told", set(told.values()), {1})
    equal(
        "exits of what was not told as started",
        set(told) - {"c1"} - {e.subject for e in scene.events.of("exec-started")},
        set(),
    )
    for name in started:
        equal(f"the events of {name}", life_of(scene.events, "c1", name), EXEC_LIFE)


@AREA.case("an answer that is slow does not hold back one that is quick")
async def out_of_order(scene: Scene) -> None:
    task = await scene.running()
    order: list[str] = []

    async def wait() -> None:
        await task.call("Wait")
        order.append("Wait")

    async def state() -> None:
        await task.status()
        order.append("State")

    waiting = asyncio.ensure_future(wait())
    await state()
    await task.call("Kill", signal=9)
    await waiting
    equal("the order of the answers", order, ["State", "Wait"])


@AREA.case("five containers one after the other on one address leave nothing of one to the next")
async def in_a_row(scene: Scene) -> None:
    for number in range(5):
        task = await scene.running("sh", "-c", f"exit {number}", id=f"c{number}")
        equal("the exit status", (await task.call("Wait")).exit_status, number)
        await task.end()


@AREA.case("ten clients that go away while they wait do no harm")
async def clients_go(scene: Scene) -> None:
    from dunnage.conformance.shim import Connection

    task = await scene.running()
    for _ in range(10):
        connection = await Connection.open(task.address, scene.namespace)
        waiting = asyncio.ensure_future(together(connection.call("Wait", id=task.id)))
        await connection.call("State", id=task.id)
        connection.close()
        await waiting
    await task.call("Kill", signal=9)
    equal("the exit status", (await task.call("Wait")).exit_status, 137)
