"""Random histories of whole containers: whatever comes when, what is told and answered keeps the contract (§4.2)."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.property import life
from tests.property.history import History
from tests.property.life import ID

from dunnage.api import task_pb2
from dunnage.cgroups.paths import V1Cgroup
from dunnage.container import cgroup, exits
from dunnage.container.container import Container
from dunnage.container.exits import Exits
from dunnage.container.facts import Ended, Exited
from dunnage.container.ordering import INIT, ExitOrder
from dunnage.container.process import Process
from dunnage.container.states import State
from dunnage.container.telling import Telling

HISTORIES = 5000
LONGEST = 32  # steps
NEEDED = {
    "a worker died",
    "a worker died in a call of the runtime",
    "a worker died before it answered",
    "a create failed",
    "a start failed",
    "a restore failed",
    "a exec failed",
    "a pause failed",
    "a delete failed",
    "a process ended while its create went on",
    "a process ended while its exec went on",
    "the init ended while its start went on",
    "the init ended before an exec",
    "the init was seen dead before an exec",
    "the init was killed for want of memory",
    "an exec was killed for want of memory",
    "a container was deleted in the end",
}
"""What must have happened in some of them, else they show nothing about it."""

Play = Callable[[bytes], History]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """Plays a history to its end; AssertionError where it may not be."""
    monkeypatch.setattr(cgroup, "cgroup_of", lambda pid, unified: V1Cgroup({}))  # no such process is on this host
    monkeypatch.setattr(life.LOG, "disabled", True)
    loop = asyncio.new_event_loop()

    def run(choices: bytes) -> History:
        history = History(str(tmp_path), choices)
        loop.run_until_complete(history.play())
        return history

    yield run
    loop.close()


def any_choices(number: int, longest: int = LONGEST) -> bytes:
    chance = random.Random(number)
    return chance.randbytes(chance.randrange(longest))


def test_every_exit_is_told_once_and_in_order_however_a_container_s_history_goes(play: Play) -> None:
    seen: Counter[str] = Counter()
    for number in range(HISTORIES):
        choices = any_choices(number)
        try:
            seen.update(play(choices).seen.keys())
        except AssertionError as error:
            raise AssertionError(f"history {number}: play(bytes.fromhex('{choices.hex()}')): {error}") from error
    print(f"{HISTORIES} histories:", *(f"{count:5} {what}" for what, count in seen.most_common()), sep="\n")
    assert seen.keys() >= NEEDED


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(
    max_examples=2 * HISTORIES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a history leaves nothing to the next
)
@given(choices=st.binary(max_size=3 * LONGEST))
def test_long_histories_too(play: Play, choices: bytes) -> None:
    play(choices)


async def begin(directory: Path) -> History:
    """A container that was created, whose start has failed once."""
    history = History(str(directory), b"")
    history.world.files["config.json"] = "{}"
    history._ask("Create", task_pb2.CreateTaskRequest(id=ID, bundle=str(directory)))
    await history._finish_calls()
    await start_in_vain(history, "")
    return history


async def start_in_vain(history: History, exec_id: str) -> None:
    history._ask("Start", task_pb2.StartRequest(id=ID, exec_id=exec_id))
    await history._settle()
    history.world.fail(history.world.in_flight[0])
    await history._settle()


def test_an_exec_that_a_former_worker_was_starting_again_is_waited_for(play: Play, tmp_path: Path) -> None:
    async def scenario() -> None:
        history = await begin(tmp_path)
        history._add_exec("e1")
        await start_in_vain(history, "e1")
        history._add_exec("e2")  # for which all is written down
        await history._settle()
        history._ask("Start", task_pb2.StartRequest(id=ID, exec_id="e1"))
        await history._settle()
        history._worker_will_die(0)
        history.world.succeed(history.world.in_flight[0])
        await history._settle()
        history._ask("Wait", task_pb2.WaitRequest(id=ID, exec_id="e1"))
        await history._settle()
        assert history.requests[-1].answer is None, "it runs"
        await history._finish()
        history._check()
        history._life.close()

    asyncio.run(scenario())


def test_a_worker_may_die_before_any_effect_of_a_delete(play: Play, tmp_path: Path) -> None:
    async def scenario(effects: int) -> bool:
        history = await begin(tmp_path)
        for process in history.world.alive:
            history.world.die(process, 3)
        await history._finish_calls()
        history._worker_will_die(effects)
        history._ask("Delete", task_pb2.DeleteRequest(id=ID))
        await history._finish_calls()
        died = history._life.number > 1
        await history._finish()
        history._check()
        history._life.close()
        return died

    effects = 1
    while asyncio.run(scenario(effects)):
        effects += 1
    assert effects > 10, "a delete has many"


def test_a_worker_may_die_before_any_effect_of_taking_starts_up(play: Play, tmp_path: Path) -> None:
    async def scenario(effects: int) -> bool:
        history = await begin(tmp_path)
        for exec_id in ("e1", "e2"):
            history._add_exec(exec_id)
        await history._settle()
        for exec_id in ("", "e1", "e2"):
            history._ask("Start", task_pb2.StartRequest(id=ID, exec_id=exec_id))
        await history._settle()
        history._worker_will_die(0)
        history._worker_will_die(effects)
        for call in history.world.in_flight:
            history.world.succeed(call)
        history.world.run_out_of_memory(history.world.alive[-1])
        await history._finish_calls()
        died = history._life.number > 2
        await history._finish()
        history._check()
        history._life.close()
        assert [type(fact).__name__ for fact in history.world.events].count("ExecStarted") == 2
        return died

    effects = 1
    while asyncio.run(scenario(effects)):
        effects += 1
    assert effects > 10, "a taking-up has many"


# The test of the test: each of these faults is found in a few of the histories.


def tell_the_init_first(patch: pytest.MonkeyPatch) -> None:
    tellable = ExitOrder._tellable

    def wrong(order: ExitOrder) -> list[str]:
        if order._phases.keys() > {INIT} and INIT in order._seen and not order.is_starting(INIT):
            order._seen.remove(INIT)
            del order._phases[INIT]
            return [INIT, *tellable(order)]
        return tellable(order)

    patch.setattr(ExitOrder, "_tellable", wrong)


def tell_an_exit_before_its_start(patch: pytest.MonkeyPatch) -> None:
    exited = ExitOrder.exited

    def wrong(order: ExitOrder, process: str) -> list[str]:
        started = order.started(process)
        return [*started, *exited(order, process)]

    patch.setattr(ExitOrder, "exited", wrong)


def lose_an_exit_when_a_start_fails(patch: pytest.MonkeyPatch) -> None:
    start_failed = ExitOrder.start_failed

    def wrong(order: ExitOrder, process: str, *, lives: bool = False) -> list[str]:
        return start_failed(order, process, lives=False)

    patch.setattr(ExitOrder, "start_failed", wrong)


def invent_an_exit_of_a_start_that_failed(patch: pytest.MonkeyPatch) -> None:
    start_failed = ExitOrder.start_failed

    def wrong(order: ExitOrder, process: str, *, lives: bool = False) -> list[str]:
        invented = [process] if process != INIT and not lives else []
        return [*invented, *start_failed(order, process, lives=lives)]

    patch.setattr(ExitOrder, "start_failed", wrong)


def start_execs_of_a_dead_init(patch: pytest.MonkeyPatch) -> None:
    starting = ExitOrder.starting

    def wrong(order: ExitOrder, process: str) -> bool:
        order._init_died = False
        return starting(order, process)

    patch.setattr(ExitOrder, "starting", wrong)
    patch.setattr(Process, "has_exited", property(lambda process: process.exited_at is not None and process.id != INIT))


def tell_before_it_is_in_the_record(patch: pytest.MonkeyPatch) -> None:
    def wrong(telling: Telling, *facts: object) -> None:
        for fact in facts:
            telling._tell(fact)  # type: ignore[arg-type]
        telling._save(())

    patch.setattr(Telling, "publish", wrong)


def tell_a_second_time_after_a_death(patch: pytest.MonkeyPatch) -> None:
    save = Telling._save

    def wrong(telling: Telling, facts: object) -> None:
        telling._events_written = lambda: 0
        save(telling, facts)  # type: ignore[arg-type]

    patch.setattr(Telling, "_save", wrong)


def do_not_watch_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Exits, "watch_again", lambda exits, process: None)


def forget_what_was_seen_of_an_end(patch: pytest.MonkeyPatch) -> None:
    restore = Process.restore

    def wrong(process: Process, record: dict[str, object]) -> None:
        restore(process, {**record, "status": 0})

    patch.setattr(Process, "restore", wrong)


def tell_something_after_the_delete(patch: pytest.MonkeyPatch) -> None:
    publish_last = Telling.publish_last

    def wrong(telling: Telling, fact: object) -> None:
        publish_last(telling, fact)  # type: ignore[arg-type]
        telling._tell(Exited("", Ended(1, 0, 1)))

    patch.setattr(Telling, "publish_last", wrong)


def leave_those_that_a_dead_init_leaves(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Exits, "_in_background", lambda exits, work: work.close())


def release_no_waiter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Process, "release_waiters", lambda process: None)


def look_for_kills_after_the_exit(patch: pytest.MonkeyPatch) -> None:
    tell = Exits.tell

    def wrong(told: Exits, process_ids: list[str]) -> None:
        look, told.cgroup.look = told.cgroup.look, lambda: None  # type: ignore[method-assign]
        tell(told, process_ids)
        told.cgroup.look = look  # type: ignore[method-assign]

    patch.setattr(exits.Exits, "tell", wrong)


def tell_a_kill_apart_from_the_exit(patch: pytest.MonkeyPatch) -> None:
    tell = Exits.tell

    def wrong(told: Exits, process_ids: list[str]) -> None:
        if process_ids:
            told.cgroup.look()
        tell(told, process_ids)

    patch.setattr(Exits, "tell", wrong)


def answer_a_start_that_never_was(patch: pytest.MonkeyPatch) -> None:
    was_started = property(lambda process: process.state is not State.CREATED, lambda process, value: None)
    patch.setattr(Process, "was_started", was_started, raising=False)


def leave_a_stray(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("dunnage.container.execs.Execs._end_stray", lambda execs, exec_id: None)


def start_again_when_it_is_asked_again(patch: pytest.MonkeyPatch) -> None:
    async def wrong(*_: object) -> int:
        return 0

    patch.setattr("dunnage.container.takeover.Takeover.pid_if_started", wrong)


def keep_the_store(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Container, "close", lambda container: container.bundle.close())


FAULTS = [
    tell_the_init_first,
    tell_an_exit_before_its_start,
    lose_an_exit_when_a_start_fails,
    invent_an_exit_of_a_start_that_failed,
    start_execs_of_a_dead_init,
    tell_before_it_is_in_the_record,
    tell_a_second_time_after_a_death,
    do_not_watch_again,
    forget_what_was_seen_of_an_end,
    tell_something_after_the_delete,
    leave_those_that_a_dead_init_leaves,
    release_no_waiter,
    look_for_kills_after_the_exit,
    tell_a_kill_apart_from_the_exit,
    answer_a_start_that_never_was,
    leave_a_stray,
    start_again_when_it_is_asked_again,
    keep_the_store,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_order_is_found(
    play: Play, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    fault(monkeypatch)
    for number in range(HISTORIES):
        try:
            play(any_choices(number))
        except AssertionError as error:
            print(f"found by history {number}: {error}")
            return
    pytest.fail("no history shows it")
