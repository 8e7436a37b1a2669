"""One container: its init, its execs, and every change a client may ask of them.

A change of one process takes its turn after the one before; an exit takes none: it is written down when it is seen, and
told when ``ordering`` says so. Owns the processes' stdio and watches, and the bundle; everything else is handed in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dunnage import stdio
from dunnage.container.bundle import Bundle, Record, has_private_pid_namespace
from dunnage.container.facts import (
    IO,
    Created,
    Deleted,
    Ended,
    ExecAdded,
    ExecStarted,
    Exited,
    Fact,
    Mount,
    Options,
    Started,
    fact_to_json,
)
from dunnage.container.host import Death, Host
from dunnage.container.launch import ProcessLaunch
from dunnage.container.ordering import INIT, ExitOrder
from dunnage.container.process import UNKNOWN_STATUS, Exec, Init, Process
from dunnage.container.rootfs import Rootfs
from dunnage.container.states import Operation, State
from dunnage.container.takeover import Takeover, io_name
from dunnage.errors import AlreadyExists, Error, FailedPrecondition, NotFound
from dunnage.runtime.arguments import Create
from dunnage.runtime.client import Runtime
from dunnage.runtime.failures import CommandFailed

DELETED_EXECS = 8
LAST_EXIT_TIMEOUT_S = 2.0  # how long a Delete waits for the end of what the runtime has just killed

KILL = 9


class Container:
    """A container from its Create to its Delete.

    ``tell`` gets each fact, in the order the world may learn it, and writes it down as an event; ``events_written`` is
    how many it ever has, of all containers: by that a next worker knows what was told (``bundle.untold``).
    """

    def __init__(
        self,
        namespace: str,
        container_id: str,
        bundle: Bundle,
        *,
        io: IO,
        rootfs: Sequence[Mount],
        options: Options,
        runtime: Runtime,
        host: Host,
        tell: Callable[[Fact], None],
        events_written: Callable[[], int],
        log: logging.Logger,
        env: Mapping[str, str],
        io_drain_timeout_s: float,
    ) -> None:
        self.namespace = namespace
        self.id = container_id
        self.bundle = bundle
        self.options = options
        self.init = Init(io)
        self.execs: dict[str, Exec] = {}
        self.deleted_execs: dict[str, Ended] = {}
        """The last few that were deleted, for a Delete that is asked again because its answer was lost."""
        self.log = log
        self.env = env
        self.created_at = time.time_ns()
        self._runtime = runtime
        self._host = host
        self._tell = tell
        self._events_written = events_written
        self._io_drain_timeout_s = io_drain_timeout_s
        self._rootfs = Rootfs(self.name, bundle, rootfs, host)
        self._order = ExitOrder()
        self._kills_all = True
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """How the keeper's store and log lines call it."""
        return f"{self.namespace}/{self.id}"

    @property
    def runtime_command(self) -> str:
        return self._runtime.command

    def process(self, exec_id: str) -> Process:
        """The init for an empty id, else the exec. Raises NotFound."""
        if not exec_id:
            return self.init
        if exec_id not in self.execs:
            raise NotFound(f"process does not exist {exec_id}")
        return self.execs[exec_id]

    # Create, Start, Exec

    async def create(self) -> int:
        """Mount the rootfs, have the runtime create the container, and return its init's pid; on failure undo it all.

        Nothing is told of a Create that failed.
        """
        self._kills_all = not has_private_pid_namespace(self.bundle.read_spec())
        self.save()
        async with self.init.turn:
            self._order.starting(INIT)
            try:
                await self._rootfs.mount()
                await self._create_init()
            except BaseException:
                self._order.start_failed(INIT)
                self.init.close()
                self._release_client_ends(self.init)
                await self._undo_create()
                raise
            self._publish(Created(self.bundle.path, self._rootfs.mounts, self.init.io, "", self.init.pid))
            self._tell_exits(self._order.started(INIT))
        return self.init.pid

    async def start(self, exec_id: str) -> int:
        """Start the init or an exec; return its pid. Its start is told before anything else of it."""
        process = self.process(exec_id)
        async with process.turn:
            if isinstance(process, Exec):
                return await self._start_exec(process)
            return await self._start_init()

    async def add_exec(self, exec_id: str, io: IO, spec: dict[str, Any]) -> None:
        """Note a further process; nothing runs before its Start."""
        if exec_id in self.execs:
            raise AlreadyExists(f"id {exec_id}")
        self.init.check(Operation.EXEC)
        stdio.plan(io.stdin, io.stdout, io.stderr, terminal=io.terminal)
        self.execs[exec_id] = Exec(exec_id, io, spec)
        self.deleted_execs.pop(exec_id, None)
        self._publish(ExecAdded(exec_id))

    # What happens to those that run

    async def kill(self, exec_id: str, number: int, *, everyone: bool = False, again: bool = False) -> None:
        """Send a signal to the init (through the runtime), to all of the container, or to an exec. ``again``: a former
        worker may have sent it; where its runtime's call succeeded, or the process has ended, it has."""
        try:
            await self._kill(self.process(exec_id), number, everyone, again)
        except NotFound:
            if not again:
                raise

    async def _kill(self, process: Process, number: int, everyone: bool, again: bool) -> None:
        if not isinstance(process, Exec):
            async with process.turn:
                process.check(Operation.KILL)
                if again and await self._host.wait_inherited(f"runtime:{self.name}:kill") == 0:
                    return
                await self._runtime.kill(self.id, number, all=everyone)
            return
        async with process.turn:
            process.check(Operation.KILL)
            if process.watch is None:
                raise NotFound("process already finished")
            try:
                process.watch.signal(number)
            except ProcessLookupError as error:
                raise NotFound("process already finished") from error
            except OSError as error:
                raise Error(f"exec kill error: unknown error after kill: {error.strerror}") from error

    async def pids(self) -> list[tuple[int, str]]:
        """Every process in the container as the runtime lists it, each with its exec id or an empty one."""
        pids = await self._runtime.ps(self.id)
        execs = {process.pid: process.id for process in self.execs.values() if process.pid}
        return [(pid, execs.get(pid, "")) for pid in pids]

    async def close_stdin(self, exec_id: str) -> None:
        """End the shim's own hold on a process's stdin: it sees its end when every client has let go too."""
        process = self.process(exec_id)
        if process.stdio is not None:
            await process.stdio.close_stdin()

    def resize(self, exec_id: str, width: int, height: int) -> None:
        """Set a terminal's size in columns and rows; a process without one is left alone, and an init whatever its
        state."""
        process = self.process(exec_id)
        if isinstance(process, Exec):
            process.check(Operation.RESIZE)
        if process.io.terminal and process.stdio is not None:
            try:
                process.stdio.resize(width & 0xFFFF, height & 0xFFFF)
            except FailedPrecondition:
                pass  # it has just ended: as for a process that has none

    # Delete

    async def delete(self, exec_id: str) -> Ended:
        """Delete an exec, or the container with everything that is left of it but its files (``bundle.forget``)."""
        process = self.process(exec_id)
        async with process.turn:
            process.check(Operation.DELETE)
            if isinstance(process, Exec):
                return await self._delete_exec(process)
            return await self._delete_init()

    async def destroy(self) -> Ended:
        """End the container whatever its state: for a client that is gone (the ``delete`` action). Tells nothing.
        What is said of ``delete`` holds here too."""
        self._tell = _tell_nobody
        async with self.init.turn:
            if self.init.state is not State.DELETED:
                await self._force_delete()
        return self.init.ended

    # Between two lives of a worker

    def save(self) -> None:
        """Write down what a next worker needs to go on with this container; after its deletion, nothing."""
        if self.init.state is not State.DELETED:
            self._save()

    def _publish(self, *facts: Fact) -> None:
        """Tell facts, in one step with the change they tell of: they are in the record first, and a next worker, before
        it does anything else, tells those that were not written down as events yet."""
        if self._tell is _tell_nobody:
            self.save()
            return
        self._save(facts)
        for fact in facts:
            self._tell(fact)

    def _save(self, telling: Sequence[Fact] = ()) -> None:
        facts = [fact_to_json(fact) for fact in telling]
        try:
            self.bundle.save({**self.record(), "telling": {"after": self._events_written(), "facts": facts}})
        except OSError as error:
            # the container goes on: only a death of this worker would now cost something
            self.log.error("failed to save the state of container %s: %s", self.id, error)

    def record(self) -> Record:
        return {
            "namespace": self.namespace,
            "id": self.id,
            "bundle": self.bundle.path,
            "created_at": self.created_at,
            "rootfs": [list(mount) for mount in self._rootfs.mounts],
            "options": self.options._asdict(),
            "kills_all": self._kills_all,
            "init": self.init.record(),
            "execs": {process.id: process.record() for process in self.execs.values()},
            "untold": list(self._order.waiting),
            "deleted_execs": {exec_id: list(ended) for exec_id, ended in self.deleted_execs.items()},
        }

    async def restore(self, record: Record, fds: dict[str, int]) -> None:
        """Go on where the last worker stopped. ``fds``: what the store holds for ``io:<this name>``, by the rest of its
        name, all its own from now on. Watches what ran; an exit that was not told yet is told when its time comes. A
        container that was deleted, but not forgotten yet, comes back as deleted."""
        self.created_at = record["created_at"]
        self._kills_all = record["kills_all"]
        self.init.restore(record["init"])
        for exec_id, saved in record["execs"].items():
            self.execs[exec_id] = Exec(exec_id, IO(*saved["io"]), saved["spec"])
            self.execs[exec_id].restore(saved)
        self.deleted_execs = {exec_id: Ended(*ended) for exec_id, ended in record.get("deleted_execs", {}).items()}
        for exec_id in record["untold"]:
            if self.process(exec_id).pid:
                self._order.starting(exec_id)
                self._order.started(exec_id)
        takeover = Takeover(
            self.name, self.id, fds, bundle=self.bundle, runtime=self._runtime, host=self._host, log=self.log
        )
        if self.init.state is not State.DELETED:
            await self._take_up(takeover)
        self.bundle.remove_unfinished()
        takeover.let_go_of_the_rest()

    async def _take_up(self, takeover: Takeover) -> None:
        processes = [self.init, *self.execs.values()]
        started = []
        for process in processes:
            pid = await takeover.pid_if_started(process)
            if pid:
                process.pid, process.state = pid, State.RUNNING
                self._order.starting(process.id)
                started.append(process)
        for process in processes:
            process.stdio = takeover.take_stdio(process, partial(self._plan, process.io))
            self._watch_again(process)
        for process in started:
            self._publish(ExecStarted(process.id, process.pid) if process.id else Started(process.pid))
            self._tell_exits(self._order.started(process.id))

    def _watch_again(self, process: Process) -> None:
        if process.has_exited:
            if process.stdio is not None:
                process.stdio.exited()
            if process.id in self._order.waiting:
                self._died(process, Death(process.status, process.exited_at or time.time_ns()))
        elif process.pid:
            try:
                process.watch = self._host.watch(process.pid, lambda death: self._died(process, death))
            except ProcessLookupError:
                self.log.error("process %d ended and its exit status is not known", process.pid)
                self._died(process, Death(UNKNOWN_STATUS, time.time_ns()))

    def close(self) -> None:
        """Give back every descriptor of a container that is deleted or was never made."""
        for process in [self.init, *self.execs.values()]:
            process.close()
        self._host.keep.release(f"bundle:{self.name}")
        self.bundle.close()

    # Helpers

    def _launch(self, process: Process) -> ProcessLaunch:
        return ProcessLaunch(
            process,
            lambda: self._plan(process.io),
            io_name=io_name(self.name, process.id),
            host=self._host,
            env=self.env,
            log=self.log,
        )

    async def _create_init(self) -> None:
        init = self.init
        async with self._launch(init) as launch:
            arguments = Create(
                self.bundle.path,
                self.bundle.init_pid_path,
                launch.console_path,
                no_pivot=self.options.no_pivot_root,
                no_new_keyring=self.options.no_new_keyring,
            )
            try:
                await self._runtime.create(self.id, arguments, launch.runtime_stdio)
                await launch.succeeded()
                init.pid = self.bundle.read_pid(INIT)
                init.watch = self._host.watch(init.pid, lambda death: self._died(init, death))
            except BaseException as error:
                if not _is_refusal(error):
                    await self._forget_in_runtime()
                raise

    async def undo_create(self) -> None:
        """Take back what a Create that a former worker began has left: in the runtime, in the rootfs, in the bundle."""
        await self._forget_in_runtime()
        await self._undo_create()

    async def _undo_create(self) -> None:
        failure = await self._rootfs.unmount()
        if failure is not None:
            self.log.error("after a failed create: %s", failure)
        self.bundle.remove("init.pid")
        self.bundle.forget()

    async def _start_init(self) -> int:
        init = self.init
        init.check(Operation.START)
        self._order.starting(INIT)
        init.start_began = True
        self.save()
        try:
            await self._runtime.start(self.id)
        except BaseException:
            init.start_began = False
            self.save()
            self._tell_exits(self._order.start_failed(INIT, lives=True))
            raise
        if init.state is State.CREATED:  # else it is over already
            init.state = State.RUNNING
        self._publish(Started(init.pid))
        self._tell_exits(self._order.started(INIT))
        return init.pid

    async def _start_exec(self, process: Exec) -> int:
        process.check(Operation.START)
        if self.init.has_exited or not self._order.starting(process.id):
            process.release_waiters()
            raise FailedPrecondition(f"container {self.id} init process is not running")
        process.hold_waiters()
        pid_file = self.bundle.exec_pid_path(process.id)
        self.bundle.remove(f"{process.id}.pid")
        try:
            async with self._launch(process) as launch:
                await self._runtime.exec(
                    self.id,
                    process.id,
                    process.spec,
                    pid_file=pid_file,
                    console_socket=launch.console_path,
                    stdio=launch.runtime_stdio,
                )
                await launch.succeeded()
                process.check(Operation.START)  # the container may have been ended meanwhile
                pid = self.bundle.read_pid(process.id)
                process.watch = self._host.watch(pid, lambda death: self._died(process, death))
                process.pid = pid
        except BaseException as error:
            if not _is_refusal(error):
                self._end_stray(process.id)
            self._release_client_ends(process)
            process.release_waiters()
            self._tell_exits(self._order.start_failed(process.id))
            raise
        process.state = State.RUNNING
        self._publish(ExecStarted(process.id, process.pid))
        self._tell_exits(self._order.started(process.id))
        return process.pid

    async def _delete_exec(self, process: Exec) -> Ended:
        await self._drain(process)
        process.state = State.DELETED
        process.close()
        if not process.pid:
            self._release_client_ends(process)
        process.release_waiters()
        self.bundle.remove(f"{process.id}.pid")
        del self.execs[process.id]
        self.deleted_execs[process.id] = process.ended
        while len(self.deleted_execs) > DELETED_EXECS:
            del self.deleted_execs[next(iter(self.deleted_execs))]
        self.save()
        return process.ended

    async def _delete_init(self) -> Ended:
        init = self.init
        ended_before = init.has_exited
        if ended_before:
            await self._drain(init)
        try:
            await self._runtime.delete(self.id)
            await self._await_last_exit()
            if not ended_before:
                await self._drain(init)
        finally:
            failure = await self._leave_rootfs()
        if failure is not None:
            raise failure
        self._deleted()
        return init.ended

    async def _force_delete(self) -> None:
        try:
            await self._runtime.delete(self.id, force=True)
        except Error as error:
            self.log.warning("failed to remove runc container: %s", error)
        await self._await_last_exit()
        failure = await self._leave_rootfs()
        if failure is not None:
            self.log.warning("%s", failure)
        self._deleted()

    async def _leave_rootfs(self) -> Error | None:
        """Close the init's stdio and unmount the rootfs, also where the runtime's delete has failed."""
        if self.init.stdio is not None:
            self.init.stdio.close()
            self.init.stdio = None
        return await self._rootfs.unmount()

    async def _await_last_exit(self) -> None:
        """The runtime has killed what ran: see it end, so that its exit is told before the deletion."""
        if self.init.pid and not self.init.is_over:
            try:
                await asyncio.wait_for(self.init.wait(), LAST_EXIT_TIMEOUT_S)
            except TimeoutError:
                self.log.error("init process %d of a deleted container did not end", self.init.pid)

    def _deleted(self) -> None:
        for process in [self.init, *self.execs.values()]:
            process.state = State.DELETED
            process.release_waiters()
        self._publish(Deleted(self.init.ended))
        self._tell = _tell_nobody  # nothing comes after it

    async def _drain(self, process: Process) -> None:
        if process.stdio is not None and not await process.stdio.wait_drained(self._io_drain_timeout_s):
            self.log.error("failed to drain %s process %s io", "exec" if process.id else "init", process.id or self.id)

    async def _forget_in_runtime(self) -> None:
        try:
            await self._runtime.delete(self.id, force=True)
        except Error as error:
            self.log.error("failed to delete a container that was created in vain: %s", error)

    def _end_stray(self, exec_id: str) -> None:
        """A start was given up whose process may be there all the same: nobody would ever know it."""
        try:
            pid = self.bundle.read_pid(exec_id)
            self._host.watch(pid, lambda death: None).signal(KILL)
        except (Error, ProcessLookupError):
            pass  # nothing was made, or it has ended
        self.bundle.remove(f"{exec_id}.pid")

    def _died(self, process: Process, death: Death) -> None:
        """A process was seen dead. When this returns, its end is in the record."""
        process.set_exited(death)
        if process.stdio is not None:
            process.stdio.exited()
        if process is self.init and self._kills_all:
            self._order.init_dying()
            self.save()
            self._in_background(self._end_the_rest())
            return
        may_be_told = self._order.exited(process.id)
        if may_be_told:
            self._tell_exits(may_be_told)
        else:
            self.save()

    async def _end_the_rest(self) -> None:
        """Kill what an init without a pid namespace of its own leaves behind, then let its exit be told."""
        try:
            await self._runtime.kill(self.id, KILL, all=True)
        except NotFound:
            pass  # nothing was left
        except Error as error:
            self.log.warning("failed to kill init's children: %s", error)
        self._tell_exits(self._order.exited(INIT))

    def _tell_exits(self, process_ids: Sequence[str]) -> None:
        processes = [self.process(process_id) for process_id in process_ids]
        for process in processes:
            process.finish()
        if processes:
            self._publish(*(Exited(process.id, process.ended) for process in processes))

    def _release_client_ends(self, process: Process) -> None:
        """No start of this process will be tried again: let go of what a former worker's may have left open."""
        for end in stdio.CLIENT_ENDS:
            self._host.keep.release(f"{io_name(self.name, process.id)}:{end}")

    def _plan(self, io: IO) -> stdio.Plan:
        options = self.options
        return stdio.plan(
            io.stdin, io.stdout, io.stderr, terminal=io.terminal, io_uid=options.io_uid, io_gid=options.io_gid
        )

    def _in_background(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_refusal(error: BaseException) -> bool:
    """True if the runtime has failed by itself, and so has cleaned up; False if it was given up or killed, or what
    followed failed."""
    return isinstance(error.__cause__, CommandFailed) and not error.__cause__.killed


def _tell_nobody(fact: Fact) -> None:
    """For a container whose client is gone."""
