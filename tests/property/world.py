"""What outlives a worker, played by the test: the kernel's processes, the runtime's calls, the keeper's store, events.

Nothing happens here by itself: a history (``tests.property.history``) says what, and when.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dunnage.container.facts import Fact
from dunnage.container.host import Death

KILLED = 137


@dataclass(eq=False)
class Process:
    """The init (``name`` empty) or an exec, from its making to its reaping."""

    pid: int
    name: str
    alive: bool = True
    status: int = 0
    reaped: bool = False
    stray: bool = False
    """The call that made it has failed: it is nobody's, and its end is nobody's exit."""


@dataclass(eq=False)
class RuntimeCall:
    """One run of the runtime: it may outlive the worker that began it."""

    name: str
    argv: list[str]
    worker: int
    made: Process | None = None
    output: str = ""
    status: int | None = None
    """None while it runs; 128 + a signal where one ended it."""
    over: list[asyncio.Future[None]] = field(default_factory=list)
    waited_for: bool = False

    @property
    def verb(self) -> str:
        return self.name.rpartition(":")[2]

    @property
    def process(self) -> str:
        """The exec's id; empty for the init's calls."""
        parts = self.name.split(":")[1].split("/")
        return parts[2] if len(parts) > 2 else ""

    async def end(self) -> int:
        if self.status is None:
            self.over.append(asyncio.get_running_loop().create_future())
            await self.over[-1]
        assert self.status is not None
        return self.status


class World:
    def __init__(self, *, private_pids: bool) -> None:
        self.private_pids = private_pids
        self.processes: dict[int, Process] = {}
        self.calls: list[RuntimeCall] = []
        self.files: dict[str, str] = {}
        """The bundle's, by name."""
        self.store: set[str] = set()
        self.events: list[Fact] = []
        self.watched: dict[int, Callable[[Death], None]] = {}
        """By pid, of the worker that lives now."""
        self.claimed: set[int] = set()
        """Not reaped yet, and some worker has watched it."""
        self.oom_kills = 0
        """The kernel's count for the container's cgroup."""
        self.oom_killed: list[tuple[int, int]] = []
        """Whom, and how many events there were then."""
        self.paused = False
        self.known = False
        """The runtime knows the container."""
        self.started = False

    # What there is

    @property
    def in_flight(self) -> list[RuntimeCall]:
        return [call for call in self.calls if call.status is None]

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes.values() if process.alive]

    @property
    def unseen(self) -> list[Process]:
        """Dead, watched, and not told to the worker yet."""
        return [process for process in self.processes.values() if not process.alive and process.pid in self.watched]

    @property
    def init(self) -> Process | None:
        inits = [process for process in self.processes.values() if not process.name and not process.stray]
        return inits[-1] if inits else None

    def is_init_alive(self) -> bool:
        return self.init is not None and self.init.alive

    # What the kernel does

    def die(self, process: Process, status: int) -> None:
        if not process.alive:
            return
        process.alive, process.status = False, status
        if not process.name and self.private_pids:
            self.kill_all()

    def run_out_of_memory(self, process: Process) -> None:
        """The kernel counts the kill before it sends the signal."""
        self.oom_kills += 1
        self.oom_killed.append((process.pid, len(self.events)))
        self.die(process, KILLED)

    def kill_all(self) -> None:
        for process in self.alive:
            self.die(process, KILLED)

    # What the runtime does

    def appear(self, call: RuntimeCall) -> None:
        """A create or an exec has made its process, and goes on."""
        pid = 100 + len(self.processes)
        call.made = self.processes[pid] = Process(pid, call.process)
        self.known = True

    def may_succeed(self, call: RuntimeCall) -> bool:
        match call.verb:
            case "create" | "restore":
                return call.made is not None or not self.known
            case "exec":
                return self.is_init_alive() or call.made is not None
            case "kill":
                return bool(self.alive)
            case "delete":
                return "--force" in call.argv or not self.started or not self.is_init_alive()
            case "start" | "pause" | "resume":
                return self.known
        return True

    def succeed(self, call: RuntimeCall) -> None:
        match call.verb:
            case "create" | "restore" | "exec":
                if call.made is None:
                    self.appear(call)
                self._write_pid(call)
                self.started = self.started or call.verb == "restore"
            case "start":
                self.started = True
            case "kill":
                if "--all" in call.argv:
                    self.kill_all()
                elif self.init is not None:
                    self.die(self.init, KILLED)
            case "delete":
                self.kill_all()
                self.known = self.started = self.paused = False
            case "pause" | "resume":
                self.paused = call.verb == "pause"
            case "state":
                call.output = json.dumps({"status": self._status()})
            case "ps":
                call.output = str([process.pid for process in self.alive])
        self._end(call, 0)

    def fail(self, call: RuntimeCall) -> None:
        """By itself: it takes back what it has made."""
        if call.made is not None:
            call.made.stray = True
            self.die(call.made, KILLED)
        if call.verb in ("kill", "delete", "state") and not self.known:
            call.output = "container does not exist"
        elif call.verb == "kill":
            call.output = "container not running"
        self._end(call, 1)

    def kill(self, call: RuntimeCall, *, late: bool) -> None:
        """By a signal: it takes back nothing. ``late``: after it has written the pid."""
        if call.made is None and late:
            self.appear(call)
        if call.made is not None:
            call.made.stray = True
            if late:
                self._write_pid(call)
            else:
                self.die(call.made, KILLED)
        self._end(call, KILLED)

    def _status(self) -> str:
        if not self.is_init_alive():
            return "stopped"
        return "running" if self.started else "created"

    def _write_pid(self, call: RuntimeCall) -> None:
        assert call.made is not None
        path = call.argv[call.argv.index("--pid-file") + 1]
        self.files[os.path.basename(path)] = str(call.made.pid)

    def _end(self, call: RuntimeCall, status: int) -> None:
        call.status = status
        for future in call.over:
            if not future.done():
                future.set_result(None)

    # What a new worker finds

    def inherited(self, name: str, worker: int) -> Iterator[RuntimeCall]:
        for call in self.calls:
            if call.name == name and call.worker != worker and not call.waited_for:
                yield call

    def write_output(self, call: RuntimeCall, fd: int) -> None:
        os.write(fd, call.output.encode())
