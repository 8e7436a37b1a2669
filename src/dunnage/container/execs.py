"""A container's further processes: added, started, deleted."""

from __future__ import annotations

from typing import Any

from dunnage.container.bundle import Record
from dunnage.container.exits import KILL, Exits
from dunnage.container.facts import IO, Ended, ExecAdded, ExecStarted
from dunnage.container.means import Means, is_refusal
from dunnage.container.process import Exec, Init
from dunnage.container.states import Operation, State
from dunnage.container.telling import Telling
from dunnage.errors import AlreadyExists, Error, FailedPrecondition

DELETED_EXECS = 8


class Execs:
    """One container's, ``by_id``. Who starts or deletes one has its turn."""

    def __init__(self, means: Means, telling: Telling, exits: Exits, init: Init) -> None:
        self.by_id: dict[str, Exec] = {}
        self.deleted: dict[str, Ended] = {}
        """The last few that were deleted, for a Delete that is asked again because its answer was lost."""
        self._means = means
        self._telling = telling
        self._exits = exits
        self._init = init

    def add(self, exec_id: str, io: IO, spec: dict[str, Any]) -> None:
        """Note a further process; nothing runs before its Start."""
        if exec_id in self.by_id:
            raise AlreadyExists(f"id {exec_id}")
        self._init.check(Operation.EXEC)
        self.by_id[exec_id] = Exec(exec_id, io, spec)
        self.deleted.pop(exec_id, None)
        self._telling.publish(ExecAdded(exec_id))

    async def start(self, process: Exec) -> int:
        """Start it; return its pid. Its start is told before anything else of it."""
        process.check(Operation.START)
        means, order = self._means, self._exits.order
        if self._init.has_exited or not order.starting(process.id):
            process.release_waiters()
            self._telling.save()
            raise FailedPrecondition(f"container {means.id} init process is not running")
        process.hold_waiters()
        means.bundle.remove(f"{process.id}.pid")
        try:
            async with means.launch(process) as launch:
                await means.runtime.exec(
                    means.id,
                    process.id,
                    process.spec,
                    pid_file=means.bundle.exec_pid_path(process.id),
                    console_socket=launch.console_path,
                    stdio=launch.runtime_stdio,
                )
                await launch.succeeded()
                process.check(Operation.START)  # the container may have been ended meanwhile
                self._exits.watch(process, means.bundle.read_pid(process.id))
        except BaseException as error:
            if not is_refusal(error):
                self._end_stray(process.id)
            means.release_client_ends(process)
            process.release_waiters()
            self._exits.tell(order.start_failed(process.id))
            self._telling.save()  # else a next worker would have somebody wait for its end
            raise
        process.state, process.was_started = State.RUNNING, True
        self._telling.publish(ExecStarted(process.id, process.pid))
        self._exits.tell(order.started(process.id))
        return process.pid

    async def delete(self, process: Exec) -> Ended:
        await self._means.drain(process)
        process.state = State.DELETED
        process.close()
        if not process.pid:
            self._means.release_client_ends(process)
        process.release_waiters()
        self._means.bundle.remove(f"{process.id}.pid")
        del self.by_id[process.id]
        self.deleted[process.id] = process.ended
        while len(self.deleted) > DELETED_EXECS:
            del self.deleted[next(iter(self.deleted))]
        self._telling.save()
        return process.ended

    def record(self) -> Record:
        """What ``restore`` needs, in JSON values."""
        return {
            "execs": {process.id: process.record() for process in self.by_id.values()},
            "deleted_execs": {exec_id: list(ended) for exec_id, ended in self.deleted.items()},
        }

    def restore(self, record: Record) -> None:
        for exec_id, saved in record["execs"].items():
            self.by_id[exec_id] = Exec(exec_id, IO(*saved["io"]), saved["spec"])
            self.by_id[exec_id].restore(saved)
        self.deleted = {exec_id: Ended(*ended) for exec_id, ended in record["deleted_execs"].items()}

    def _end_stray(self, exec_id: str) -> None:
        """A start was given up whose process may be there all the same: nobody would ever know it."""
        try:
            pid = self._means.bundle.read_pid(exec_id)
            self._means.host.watch(pid, lambda death: None).signal(KILL)
        except (Error, ProcessLookupError):
            pass  # nothing was made, or it has ended
        self._means.bundle.remove(f"{exec_id}.pid")
