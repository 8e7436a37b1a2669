"""A random history of one container: its client, its processes, the runtime's calls and the worker's deaths in any
order, and what must be true of it however it went (shim v2, §4.2).

A history is decided by bytes, one for each step: what may happen next is listed, and the byte picks. It ends when the
bytes do: then everything that is under way comes to its end, and the container is deleted.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.property.life import ID, Dead, Life, Request
from tests.property.world import Process, RuntimeCall, World

from dunnage.api import task_pb2
from dunnage.container.bundle import FAILURES
from dunnage.container.facts import (
    Created,
    Deleted,
    Ended,
    ExecAdded,
    ExecStarted,
    Exited,
    Fact,
    OutOfMemory,
    Paused,
    Resumed,
    Started,
)
from dunnage.container.states import State
from dunnage.ttrpc.errors import Code

MAKERS = ("create", "restore", "exec")
EXECS = ("e1", "e2", "e3")
REFUSALS = (Code.UNKNOWN, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED)
LAST_TURNS = 2000
_TURNS = (0, 1, 2, 3)
"""Of the loop, before the next step: what one step set going often has not ended when the next is taken."""
_DEATHS = {7: 0, 77: 1, 127: 2, 177: 4, 227: 7}
"""The bytes at which the worker dies, and before how many effects more."""

Step = Callable[[], object]


class History:
    """``directory`` is the bundle's, and stays empty."""

    def __init__(self, directory: str, choices: bytes) -> None:
        self._directory = directory
        self._choices = iter(choices)
        kind = next(self._choices, 0)
        self.world = World(private_pids=kind % 2 == 0)
        self._checkpoint = "/image" if kind % 8 == 7 else ""
        self._calm_steps = kind >> 3
        """So long the init is left alone, so that there is time for its execs."""
        self.requests: list[Request] = []
        self.seen: Counter[str] = Counter()
        """What has happened how often, so that a test can see that histories have everything in them."""
        self._asked: defaultdict[tuple[str, str], list[Request]] = defaultdict(list)
        self._ended: dict[str, Ended] = {}
        self._life = Life(self.world, directory, 1, self._ended)
        self._unforeseen: list[BaseException] = []

    async def play(self) -> None:
        """Raises AssertionError for a history that may not be."""
        asyncio.get_running_loop().set_exception_handler(self._on_unforeseen)
        namespaces = [{"type": "pid"}] if self.world.private_pids else []
        self.world.files["config.json"] = json.dumps({"linux": {"namespaces": namespaces}})
        try:
            self._create()
            for byte in self._choices:
                self._calm_steps -= 1
                if byte in _DEATHS:
                    self._worker_will_die(_DEATHS[byte])
                    continue
                steps = list(self._happens() if byte & 1 else self._asks())
                if steps:
                    self._do(steps[(byte >> 1) % len(steps)])
                for _ in range(_TURNS[byte >> 6]):
                    await asyncio.sleep(0)
            await self._finish()
            assert not self._unforeseen, self._unforeseen
            self._check()
        finally:
            self._life.close()
        assert not self._unforeseen, self._unforeseen

    # What may happen

    def _happens(self) -> Iterator[Step]:
        """What the runtime and the kernel may do. Some more than once: they are likelier."""
        world = self.world
        for call in world.in_flight:
            if call.verb in MAKERS and call.made is None and (call.verb != "exec" or self._init_lives()):
                yield partial(world.appear, call)
            if world.may_succeed(call):
                yield from [partial(self._succeed, call)] * 6
            if (call.verb == "create" and self._calm_steps > 0) or "--force" in call.argv:
                continue
            yield partial(self._fail, call)
            if call.verb in MAKERS:
                yield partial(world.kill, call, late=world.may_succeed(call))
        for process in world.alive:
            if process.name or self._calm_steps <= 0:
                yield partial(self._die, process)
                yield partial(self._run_out_of_memory, process)
        if world.oom_killed:
            yield self._life.oom.look
        for process in world.unseen:
            yield from [partial(self._see, process.pid)] * 3

    def _asks(self) -> Iterator[Step]:
        """What the client may ask; most of it makes sense."""
        if self._may_ask("Create"):
            yield self._create
        yield from self._changes("")
        if not self._was_done("Create", ""):
            return
        for exec_id in EXECS:
            if self._may_ask("Exec", exec_id):
                yield from [partial(self._add_exec, exec_id)] * 6
            if not self._was_done("Exec", exec_id):
                break
            yield from self._changes(exec_id)
        freezing = "Resume" if self.world.paused else "Pause"
        if self.world.started and self._may_ask(freezing):
            yield partial(self._ask, freezing, getattr(task_pb2, f"{freezing}Request")(id=ID))

    def _changes(self, exec_id: str) -> Iterator[Step]:
        """Of the init or an exec."""
        if self._may_ask("Start", exec_id, 2):
            yield from [partial(self._ask, "Start", task_pb2.StartRequest(id=ID, exec_id=exec_id))] * 4
        if self._was_done("Start", exec_id) and self._may_ask("Wait", exec_id):
            yield partial(self._ask, "Wait", task_pb2.WaitRequest(id=ID, exec_id=exec_id))
        if self._calm_steps > 0 and not exec_id:
            return
        if self._asked["Start", exec_id] and self._may_ask("Kill", exec_id, 2):
            yield partial(self._ask, "Kill", task_pb2.KillRequest(id=ID, exec_id=exec_id, signal=9, all=not exec_id))
        if self._may_ask("Delete", exec_id):
            yield partial(self._ask, "Delete", task_pb2.DeleteRequest(id=ID, exec_id=exec_id))

    def _may_ask(self, method: str, exec_id: str = "", times: int = 1) -> bool:
        """No such call is under way, and not so many have succeeded."""
        asked = self._asked[method, exec_id]
        return not asked or (len(asked) < times + 2 and asked[-1].answer is not None and self._succeeded(asked) < times)

    def _was_done(self, method: str, exec_id: str) -> bool:
        return self._succeeded(self._asked[method, exec_id]) > 0

    def _succeeded(self, requests: list[Request]) -> int:
        return len([request for request in requests if request.answer is not None and request.answer.error is None])

    def _init_lives(self) -> bool:
        return self.world.is_init_alive()

    # What happens

    def _do(self, step: Step) -> None:
        try:
            step()
        except Dead:
            pass  # in the middle of something that was told to it
        if self._life.is_over:
            self._new_worker()

    def _ask(self, method: str, message: Any) -> None:
        request = Request(method, message)
        self.requests.append(request)
        self._asked[method, getattr(message, "exec_id", "")].append(request)
        self._life.serve(request)

    def _create(self) -> None:
        message = task_pb2.CreateTaskRequest(id=ID, bundle=self._directory, checkpoint=self._checkpoint)
        self._ask("Create", message)

    def _add_exec(self, exec_id: str) -> None:
        message = task_pb2.ExecProcessRequest(id=ID, exec_id=exec_id)
        message.spec.value = b'{"args": ["true"]}'
        self._ask("Exec", message)

    def _succeed(self, call: RuntimeCall) -> None:
        if call.made is not None and not call.made.alive:
            self.seen[f"a process ended while its {call.verb} went on"] += 1
        if call.verb == "start" and not self._init_lives():
            self.seen["the init ended while its start went on"] += 1
        self.world.succeed(call)

    def _fail(self, call: RuntimeCall) -> None:
        self.seen[f"a {call.verb} failed"] += 1
        self.world.fail(call)

    def _die(self, process: Process) -> None:
        if not process.name and [other for other in self.world.alive if other.name]:
            self.seen["the init ended before an exec"] += 1
        self.world.die(process, process.pid % 7)

    def _run_out_of_memory(self, process: Process) -> None:
        self.seen[f"{'an exec' if process.name else 'the init'} was killed for want of memory"] += 1
        self.world.run_out_of_memory(process)

    def _see(self, pid: int) -> None:
        if not self.world.processes[pid].name and [exec_ for exec_ in self.world.unseen if exec_.name]:
            self.seen["the init was seen dead before an exec"] += 1
        if self.world.processes[pid].name in [call.process for call in self.world.in_flight if call.verb == "exec"]:
            self.seen["an exec was seen dead while its start went on"] += 1
        self._life.see(pid)

    def _worker_will_die(self, effects: int) -> None:
        """Before its next effect but so many; 0 is now, between two of them."""
        if effects:
            self._life.fuse = effects
        else:
            self._life.is_over = True
            self._new_worker()

    def _new_worker(self) -> None:
        self.seen["a worker died"] += 1
        if self.world.in_flight:
            self.seen["a worker died in a call of the runtime"] += 1
        if [request for request in self.requests if request.answer is None]:
            self.seen["a worker died before it answered"] += 1
        self._life.close()
        self._life = Life(self.world, self._directory, self._life.number + 1, self._ended)
        self._life.take_up([request for request in self.requests if request.answer is None])

    def _on_unforeseen(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or AssertionError(context["message"])
        if not isinstance(error, Dead):
            self._unforeseen.append(error)

    # The end

    async def _settle(self) -> None:
        """Turn the loop until nothing is left to do by itself."""
        for _ in range(LAST_TURNS):
            await asyncio.sleep(0)
            if self._life.is_over:
                self._new_worker()
            elif not asyncio.get_running_loop()._ready:  # type: ignore[attr-defined]  # what says that it is quiet
                return
        raise AssertionError("the worker is never quiet")

    async def _finish(self) -> None:
        """Every call ends, then every process, then the container."""
        self._life.fuse = None
        await self._finish_calls()
        self._check_strays()
        await self._end_processes()
        container = self._life.container
        if container is None:
            return
        over = (State.STOPPED, State.CREATED_CHECKPOINT)
        assert container.init.state in over, "the init's exit is lost"
        self.seen["a container was deleted in the end"] += 1
        self._ask("Delete", task_pb2.DeleteRequest(id=ID))
        await self._finish_calls()
        answer = self.requests[-1].answer
        assert answer is not None
        assert answer.error is None, f"a stopped container is not deleted: {answer.error}"

    async def _finish_calls(self) -> None:
        await self._settle()
        while self.world.in_flight or self.world.unseen:
            for process in self.world.unseen:
                self._do(partial(self._see, process.pid))
            for call in self.world.in_flight:
                if self.world.may_succeed(call):
                    self.world.succeed(call)
                else:
                    self.world.fail(call)
            await self._settle()

    async def _end_processes(self) -> None:
        while self.world.alive or self.world.unseen or self.world.in_flight:
            for process in self.world.alive:
                self.world.die(process, process.pid % 7)
            await self._finish_calls()

    # What must be true

    def _check_strays(self) -> None:
        """Nobody runs whom the container does not know."""
        container = self._life.container
        known = [] if container is None else [container.init, *container.execs.values()]
        live = (State.CREATED, State.CREATED_CHECKPOINT, State.RUNNING, State.PAUSED)
        running = {process.pid for process in known if process.state in live}
        strays = [process.pid for process in self.world.alive if process.pid not in running]
        assert not strays, f"left running: {strays}"

    def _check(self) -> None:
        told = self.world.events
        check_order(told)
        self._check_processes(told)
        self._check_answers(told)
        assert self.world.store == set(), "left in the store"
        left = {name for name in self.world.files if name.startswith("dunnage")}
        assert left <= (set() if told else {FAILURES}), f"left in the bundle: {left}"

    def _check_processes(self, told: list[Fact]) -> None:
        """Every exit is that of a process which was started, with its status, and all of those have ended."""
        if not told:
            return
        created = next(fact for fact in told if isinstance(fact, Created))
        starts = [fact.pid for fact in told if isinstance(fact, Started)]
        init_pid = created.pid or (starts[0] if starts else 0)  # 0: to be restored from a checkpoint, and never was
        started = {init_pid: ""} if init_pid else {}
        started |= {fact.pid: fact.exec_id for fact in told if isinstance(fact, ExecStarted)}
        exits = {fact.ended.pid: fact for fact in told if isinstance(fact, Exited)}
        assert {pid: fact.exec_id for pid, fact in exits.items()} == started, "an exit is lost or invented"
        for pid, exited in exits.items():
            assert exited.ended.status == self.world.processes[pid].status, f"exit of {pid}: {exited}"
            assert self.world.processes[pid].reaped, f"{pid} is not reaped"
        assert set(starts) <= {init_pid}
        for pid, before in self.world.oom_killed:
            if pid in exits:
                kills = [fact for fact in told[before : told.index(exits[pid])] if isinstance(fact, OutOfMemory)]
                assert kills, f"the exit of {pid} is told before its kill"
        told_kills = len([fact for fact in told if isinstance(fact, OutOfMemory)])
        assert told_kills <= self.world.oom_kills, "a kill is told twice"

    def _check_answers(self, told: list[Fact]) -> None:
        """Every call is answered, and no answer contradicts what is told."""
        exits = {fact.exec_id: fact.ended for fact in told if isinstance(fact, Exited)}
        starts = {"": [fact.pid for fact in told if isinstance(fact, Started)]}
        for fact in told:
            if isinstance(fact, ExecStarted):
                starts.setdefault(fact.exec_id, []).append(fact.pid)
        for request in self.requests:
            exec_id = getattr(request.message, "exec_id", "")
            assert request.answer is not None, f"{request.method} {exec_id} is not answered"
            message: Any = request.answer.message
            match request.method:
                case _ if request.answer.error is not None:
                    assert request.answer.error.code in REFUSALS, request.answer
                case "Start":
                    assert starts.get(exec_id) == [message.pid], f"a start of {message.pid} is not told"
                case "Wait" if message.exited_at.seconds > 0:
                    assert message.exit_status == exits[exec_id].status, "a wait says otherwise than the exit"
                case "Wait":
                    before = told[: request.answer.events]
                    assert not [fact for fact in before if isinstance(fact, ExecStarted) and fact.exec_id == exec_id]
                    assert exec_id or Started not in map(type, before), "a wait ends before the exit"
                case "Delete" if message.exited_at.seconds > 0:
                    assert (message.pid, message.exit_status) == exits[exec_id][:2], "a delete says otherwise"
        for exec_id, pids in starts.items():
            assert len(pids) <= 1, f"{exec_id or 'the init'} was started twice"
            answered = self._was_done("Start", exec_id) or self._was_done("Delete", exec_id)
            assert not pids or answered, f"a start of {pids} is told that has failed"


def check_order(told: list[Fact]) -> None:
    """The order in which facts may be told of one container."""
    kinds = [type(fact).__name__ for fact in told]
    if not told:
        return
    assert kinds[0] == "Created", "something is told before the Create"
    assert kinds[-1] == "Deleted", "something is told after the Delete, or no Delete"
    for once in ("Created", "Started", "Deleted"):
        assert kinds.count(once) <= 1, f"{once} is told twice"
    exits = [fact.exec_id for fact in told if isinstance(fact, Exited)]
    assert len(exits) == len(set(exits)), "an exit is told twice"
    if kinds == ["Created", "Deleted"]:
        return  # restored from a checkpoint, or rather not
    assert exits[-1:] == [""], "the init's exit is not the last"
    if "Started" in kinds:
        assert kinds.index("Started") < kinds.index("Exited") or exits[0] != "", "an exit is told before its start"
        init_exit = next(n for n, fact in enumerate(told) if isinstance(fact, Exited) and not fact.exec_id)
        assert kinds.index("Started") < init_exit, "the init's exit is told before its start"
    for exec_id in {fact.exec_id for fact in told if isinstance(fact, ExecAdded | ExecStarted)} | set(exits) - {""}:
        own = [type(fact) for fact in told if getattr(fact, "exec_id", None) == exec_id]
        assert own in ([ExecAdded], [ExecAdded, ExecStarted, Exited]), f"{exec_id}: {own}"
    freezing = [type(fact) for fact in told if isinstance(fact, Paused | Resumed)]
    assert freezing == [Paused, Resumed] * (len(freezing) // 2) + [Paused] * (len(freezing) % 2), freezing
    ended = next(fact.ended for fact in told if isinstance(fact, Deleted))
    exit_of_init = next(fact.ended for fact in told if isinstance(fact, Exited) and not fact.exec_id)
    assert ended == exit_of_init, "the Delete says otherwise than the exit"
