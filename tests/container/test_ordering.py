"""The order of exits, for any interleaving of starts and deaths (shim v2, §4.2)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dunnage.container.ordering import INIT, ExitOrder

EXECS = ("e1", "e2", "e3")


class World:
    """Processes as the kernel and the runtime have them, an ``ExitOrder``, and what it let be told."""

    def __init__(self) -> None:
        self.order = ExitOrder()
        self.calls: set[str] = set()  # a runtime call that starts it is in flight
        self.alive: set[str] = set()
        self.dead: set[str] = set()
        self.unseen: set[str] = set()  # dead, and nobody has looked yet
        self.told: list[tuple[str, str]] = []
        self.created = False
        self.init_death_seen = False

    def begin(self, process: str) -> None:
        if process in self.calls or process in self.alive | self.dead:
            return
        if process != INIT and not self.created:
            return
        if self.order.starting(process):
            assert process == INIT or not self.init_death_seen, "an exec starts after the init's death"
            self.calls.add(process)
        else:
            assert self.init_death_seen, "an exec was refused while the init lives"

    def appear(self, process: str) -> None:
        """The runtime has made it, but its call goes on."""
        if process in self.calls and process not in self.alive | self.dead:
            self.alive.add(process)

    def succeed(self, process: str) -> None:
        if process not in self.calls:
            return
        self.appear(process)
        self.calls.remove(process)
        self.told.append(("start", process))
        self.created = self.created or process == INIT
        self.tell(self.order.started(process))

    def fail(self, process: str) -> None:
        if process not in self.calls:
            return
        self.calls.remove(process)
        for where in (self.alive, self.dead, self.unseen):
            where.discard(process)
        self.tell(self.order.start_failed(process))

    def die(self, process: str) -> None:
        if process in self.alive:
            self.alive.remove(process)
            self.dead.add(process)
            self.unseen.add(process)

    def see(self, process: str) -> None:
        if process in self.unseen:
            self.unseen.remove(process)
            self.init_death_seen = self.init_death_seen or process == INIT
            self.tell(self.order.exited(process))

    def see_again(self, process: str) -> None:
        if process in self.dead and process not in self.unseen:
            self.tell(self.order.exited(process))

    def init_dying(self, process: str) -> None:
        """The death of an init was seen whose children have yet to be killed; its exit is seen after that."""
        if INIT in self.unseen:
            self.init_death_seen = True
            self.order.init_dying()

    def tell(self, processes: list[str]) -> None:
        self.told += [("exit", process) for process in processes]

    def finish(self) -> None:
        """Everything ends, in the end."""
        for process in sorted(self.calls):
            self.succeed(process)
        for process in sorted(self.alive, reverse=True):
            self.die(process)
        for process in sorted(self.unseen, reverse=True):
            self.see(process)


STEPS = ("begin", "appear", "succeed", "fail", "die", "see", "see_again", "init_dying")
interleavings = st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from((INIT, *EXECS))), max_size=60)


def check(told: list[tuple[str, str]]) -> None:
    for process in (INIT, *EXECS):
        assert told.count(("exit", process)) <= 1, "told twice"
        if ("exit", process) in told:
            assert told.index(("start", process)) < told.index(("exit", process)), "told before its start"
    if ("exit", INIT) in told:
        after = told[told.index(("exit", INIT)) + 1 :]
        assert not [event for event in after if event[0] == "exit"], "an exec's exit after the init's"


@settings(max_examples=600, deadline=None)
@given(interleavings)
def test_every_exit_is_told_once_and_in_order(steps: list[tuple[str, str]]) -> None:
    world = World()
    world.begin(INIT)
    for step, process in steps:
        getattr(world, step)(process)
        check(world.told)
    world.finish()
    check(world.told)
    started = {process for kind, process in world.told if kind == "start"}
    exited = {process for kind, process in world.told if kind == "exit"}
    assert exited == started, "an exit is lost"
    assert world.order.waiting == ()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(("appear", "die", "see", "see_again")), max_size=8))
def test_a_create_that_fails_tells_nothing(steps: list[str]) -> None:
    world = World()
    world.begin(INIT)
    for step in steps:
        getattr(world, step)(INIT)
    world.fail(INIT)
    world.see(INIT)
    assert world.told == []
    assert world.order.waiting == ()


def test_an_exit_during_the_start_is_told_after_it() -> None:
    order = ExitOrder()
    order.starting(INIT)
    assert order.exited(INIT) == []
    assert order.started(INIT) == [INIT]


def test_a_start_of_an_init_that_fails_leaves_its_exit_to_be_told() -> None:
    order = ExitOrder()
    order.starting(INIT)
    order.started(INIT)
    order.starting(INIT)
    assert order.exited(INIT) == []
    assert order.start_failed(INIT, lives=True) == [INIT]


def test_the_init_waits_for_the_last_exec() -> None:
    order = ExitOrder()
    for process in (INIT, "e1", "e2"):
        order.starting(process)
        order.started(process)
    assert order.exited(INIT) == []
    assert order.exited("e1") == ["e1"]
    assert order.exited("e2") == ["e2", INIT]


def test_an_exec_that_is_starting_holds_the_init_back_until_its_start_has_failed() -> None:
    order = ExitOrder()
    order.starting(INIT)
    order.started(INIT)
    order.starting("e1")
    assert order.exited(INIT) == []
    assert order.init_died
    assert not order.starting("e2")
    assert order.start_failed("e1") == [INIT]


def test_an_exec_whose_start_failed_may_be_started_again() -> None:
    order = ExitOrder()
    order.starting(INIT)
    order.started(INIT)
    order.starting("e1")
    order.start_failed("e1")
    assert order.starting("e1")
    assert order.started("e1") == []
    assert order.exited("e1") == ["e1"]


def test_no_exec_starts_while_the_children_of_a_dead_init_are_killed() -> None:
    order = ExitOrder()
    order.starting(INIT)
    order.started(INIT)
    order.init_dying()
    assert not order.starting("e1")
    assert order.exited(INIT) == [INIT]
