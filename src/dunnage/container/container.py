"""One container: its init, its execs, and every change a client may ask of them.

A change of one process takes its turn after the one before; an exit takes none (``exits``). Owns the processes' stdio
and watches, and the bundle; everything else is handed in.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from dunnage import stdio
from dunnage.cgroups import Metrics
from dunnage.container import checkpoint as checkpoints
from dunnage.container.bundle import Bundle, Record, has_private_pid_namespace
from dunnage.container.execs import Execs
from dunnage.container.exits import KILL, Exits
from dunnage.container.facts import (
    IO,
    Checkpoint,
    CheckpointOptions,
    Created,
    Deleted,
    Ended,
    ExecStarted,
    Fact,
    Mount,
    Options,
    Paused,
    Resumed,
    Started,
)
from dunnage.container.host import Host
from dunnage.container.means import Means, is_refusal
from dunnage.container.ordering import INIT
from dunnage.container.process import Exec, Init, Process
from dunnage.container.rootfs import Rootfs
from dunnage.container.states import Operation, State
from dunnage.container.takeover import Takeover
from dunnage.container.telling import Telling
from dunnage.errors import Error, FailedPrecondition, NotFound
from dunnage.runtime.arguments import Create
from dunnage.runtime.client import Runtime

FROZEN_START_S = 1.0  # how long the start of an exec by a former worker may take where the container may be frozen


class Container:
    """A container from its Create to its Delete.

    ``tell`` gets each fact, in the order the world may learn it, and writes it down as an event; ``events_written`` is
    how many it ever has, of all containers (``telling``). With a ``checkpoint`` the container is made by its Start.
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
        drivers: Callable[[str], stdio.Drivers] | None = None,
        checkpoint: Checkpoint = Checkpoint(),  # noqa: B008 - a value
    ) -> None:
        self.namespace = namespace
        self.id = container_id
        self.bundle = bundle
        self.options = options
        self.checkpoint = checkpoint
        self.init = Init(io)
        self.log = log
        self.env = env
        self.created_at = time.time_ns()
        self._runtime = runtime
        self._host = host
        means = Means(namespace, container_id, bundle, options, runtime, host, log, env, io_drain_timeout_s, drivers)
        self._means = means
        self._rootfs = Rootfs(self.name, bundle, rootfs, host)
        self._telling = Telling(
            container_id, bundle, record=self.record, tell=tell, events_written=events_written, log=log
        )
        self._exits = Exits(means, self._telling, self.init, find=self.process)
        self._execs = Execs(means, self._telling, self._exits, self.init)

    @property
    def name(self) -> str:
        """How the keeper's store and log lines call it."""
        return f"{self.namespace}/{self.id}"

    @property
    def runtime_command(self) -> str:
        return self._runtime.command

    @property
    def execs(self) -> Mapping[str, Exec]:
        return self._execs.by_id

    @property
    def deleted_execs(self) -> Mapping[str, Ended]:
        """The last few, for a Delete that is asked again because its answer was lost."""
        return self._execs.deleted

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
        One that is restored from a checkpoint has no init, and pid 0, before its Start.

        Nothing is told of a Create that failed.
        """
        self._exits.kills_all = not has_private_pid_namespace(self.bundle.read_spec())
        self.save()
        async with self.init.turn:
            self._exits.order.starting(INIT)
            try:
                await self._rootfs.mount()
                if self.checkpoint.path:
                    self._means.plan(self.init.io)
                    self.init.state = State.CREATED_CHECKPOINT
                else:
                    await self._create_init()
            except BaseException:
                self._exits.order.start_failed(INIT)
                self.init.close()
                self._means.release_client_ends(self.init)
                await self._undo_create()
                raise
            if self.checkpoint.path:
                self._exits.order.start_failed(INIT)  # it has nothing yet that could exit
            self._telling.publish(
                Created(self.bundle.path, self._rootfs.mounts, self.init.io, self.checkpoint.path, self.init.pid)
            )
            self._exits.cgroup.watch()
            self._exits.tell(self._exits.order.started(INIT))
        return self.init.pid

    async def start(self, exec_id: str) -> int:
        """Start the init or an exec; return its pid. Its start is told before anything else of it."""
        process = self.process(exec_id)
        async with process.turn:
            if isinstance(process, Exec):
                return await self._execs.start(process)
            self.init.check(Operation.START)
            return await self._start_init()

    async def add_exec(self, exec_id: str, io: IO, spec: dict[str, Any]) -> None:
        """Note a further process; nothing runs before its Start."""
        self._execs.add(exec_id, io, spec)

    # What happens to those that run

    async def pause(self) -> None:
        """Freeze all of the container. Its state is pausing meanwhile."""
        async with self.init.turn:
            self.init.check(Operation.PAUSE)
            try:
                await self._change(Operation.PAUSE, self._runtime.pause)
            except BaseException as error:
                if not is_refusal(error):
                    self._exits.cgroup.thaw()  # else it may be frozen, and as it is running, nobody could resume it
                raise
            if self.init.has_exited:
                self._exits.cgroup.thaw()
                raise Error("cannot pause a stopped container")
            self._paused()

    async def resume(self) -> None:
        """Let what was paused go on. The runtime may have done so before: its kill of all thaws (cgroup v1)."""
        async with self.init.turn:
            self.init.check(Operation.RESUME)
            try:
                await self._change(Operation.RESUME, self._runtime.resume)
            except Error:
                if not await self._runs():
                    raise
            if not self.init.has_exited:
                self._resumed()

    async def update(self, resources: bytes, *, again: bool = False) -> None:
        """Change the container's limits: ``resources`` is an OCI LinuxResources as JSON. ``again``: a former worker may
        have done so."""
        async with self.init.turn:
            self.init.check(Operation.UPDATE)
            if again and await self._host.wait_inherited(self._call("update")) == 0:
                return
            await self._runtime.update(self.id, resources)

    async def take_checkpoint(self, path: str, options: CheckpointOptions, *, again: bool = False) -> None:
        """Write the container's state to the directory ``path``. ``again``: a former worker may have done so. A kill
        does not wait for it."""
        async with self.init.turn:
            if not (again and await self._has_taken_checkpoint(path)):
                self.init.check(Operation.CHECKPOINT)
                self.init.checkpointed = ""
                await self._change(Operation.CHECKPOINT, partial(self._take_checkpoint, path, options))
            await checkpoints.tidy_up(self._means, options, keep_log=False)

    async def kill(self, exec_id: str, number: int, *, everyone: bool = False, again: bool = False) -> None:
        """Send a signal to the init (through the runtime), to all of the container, or to an exec. ``again``: a former
        worker may have sent it; where its runtime's call succeeded, or the process has ended, it has."""
        process = self.process(exec_id)
        try:
            async with nullcontext() if self._is_dumping(process) else process.turn:
                process.check(Operation.KILL)
                if isinstance(process, Exec):
                    process.kill(number)
                elif not again or await self._host.wait_inherited(self._call("kill")) != 0:
                    await self._kill_init(number, everyone)
        except NotFound:
            if not again:
                raise

    async def pids(self) -> list[tuple[int, str]]:
        """Every process in the container as the runtime lists it, each with its exec id or an empty one."""
        pids = await self._runtime.ps(self.id)
        # the pid of one that has ended may be another's by now
        execs = {process.pid: process.id for process in self.execs.values() if not process.has_exited}
        return [(pid, execs.get(pid, "")) for pid in pids]

    def metrics(self) -> Metrics:
        """What it uses, in the kernel's words. Raises NotFound where its cgroup was never known."""
        return self._exits.cgroup.metrics()

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

    async def delete(self, exec_id: str, *, again: bool = False) -> Ended:
        """Delete an exec, or the container with everything that is left of it but its files (``bundle.forget``).
        ``again``: a former worker may have begun with it."""
        process = self.process(exec_id)
        async with process.turn:
            process.check(Operation.DELETE)
            if isinstance(process, Exec):
                return await self._execs.delete(process)
            return await self._delete_init(again)

    async def destroy(self) -> Ended:
        """End the container whatever its state: for a client that is gone (the ``delete`` action). Tells nothing.
        What is said of ``delete`` holds here too."""
        self._telling.silence()
        async with self.init.turn:
            if self.init.state is not State.DELETED:
                await self._force_delete()
        return self.init.ended

    def close(self) -> None:
        """Give back every descriptor of a container that is deleted or was never made."""
        for process in [self.init, *self.execs.values()]:
            process.close()
        self._exits.cgroup.close()
        self._host.keep.release(f"bundle:{self.name}")
        self.bundle.close()

    # Between two lives of a worker

    def save(self) -> None:
        """Write down what a next worker needs to go on with this container; after its deletion, nothing."""
        self._telling.save()

    def record(self) -> Record:
        return {
            "namespace": self.namespace,
            "id": self.id,
            "bundle": self.bundle.path,
            "created_at": self.created_at,
            "rootfs": [list(mount) for mount in self._rootfs.mounts],
            "options": self.options._asdict(),
            "checkpoint": list(self.checkpoint),
            "init": self.init.record(),
            **self._execs.record(),
            **self._exits.record(),
        }

    async def restore(self, record: Record, fds: dict[str, int]) -> None:
        """Go on where the last worker stopped. ``fds``: what the store holds for ``io:<this name>``, by the rest of its
        name, all its own from now on. Watches what ran; an exit that was not told yet is told when its time comes. A
        container that was deleted, but not forgotten yet, comes back as deleted."""
        self.created_at = record["created_at"]
        self.checkpoint = Checkpoint(*record["checkpoint"])
        self.init.restore(record["init"])
        self._execs.restore(record)
        self._exits.restore(record)
        takeover = Takeover(
            self.name,
            self.id,
            fds,
            bundle=self.bundle,
            runtime=self._runtime,
            host=self._host,
            drivers_of=self._means.drivers_of,
            log=self.log,
        )
        if self.init.state is not State.DELETED:
            await self._take_up(takeover)
        self.bundle.remove_unfinished()
        takeover.let_go_of_the_rest()

    async def undo_create(self) -> None:
        """Take back what a Create that a former worker began has left: in the runtime, in the rootfs, in the bundle."""
        await self._means.forget_in_runtime()
        await self._undo_create()

    async def _take_up(self, takeover: Takeover) -> None:
        processes: list[Process] = [self.init, *self.execs.values()]
        started: list[Process] = []
        pids, has_thawed = await self._pids_of_started(takeover, processes)
        for process, pid in zip(processes, pids, strict=True):
            if pid:
                process.pid, process.state = pid, State.RUNNING
                process.hold_waiters()  # a start of it that failed before had let them go
                process.was_started = True
                self._exits.order.starting(process.id)
                started.append(process)
        if self.init in started and self.checkpoint.path:
            self._exits.cgroup.find(self.init.pid)
        if started:  # all of them, before anything else of them is written down
            self._telling.publish(*(ExecStarted(one.id, one.pid) if one.id else Started(one.pid) for one in started))
        began = self.init.began
        if self.init.state is State.CREATED_CHECKPOINT and began is Operation.START:
            await self._host.wait_inherited(self._call("delete"))
            await self._means.forget_in_runtime()  # what is there of it cannot be restored into
        for process in processes:
            process.stdio = takeover.take_stdio(process, partial(self._means.plan, process.io))
        if self.init.pid and not self.init.is_over:
            self._exits.cgroup.watch()
        for process in processes:
            self._exits.watch_again(process)
        for process in started:
            self._exits.tell(self._exits.order.started(process.id))
        if began in (Operation.PAUSE, Operation.RESUME) and not self.init.has_exited:
            await self._take_up_freezing(takeover, began)
        self.init.began = None
        if has_thawed and self.init.state is State.PAUSED and not self.init.has_exited:
            await self._freeze_again()

    async def _freeze_again(self) -> None:
        try:
            await self._runtime.pause(self.id)
        except Error as error:
            self.log.warning("container %s, which was paused, goes on: %s", self.id, error)
            if not self.init.has_exited:
                self._resumed()

    async def _pids_of_started(self, takeover: Takeover, processes: list[Process]) -> tuple[list[int], bool]:
        """The pids, 0 for what has not started, and whether the container was thawed for it: a runtime that starts an
        exec may have been frozen with what it starts, and nobody else can resume it now."""
        has_thawed = False

        def thaw() -> None:
            nonlocal has_thawed
            has_thawed = True
            self._exits.cgroup.thaw()

        may_be_frozen = self.init.state is State.PAUSED or self.init.began in (Operation.PAUSE, Operation.RESUME)
        timer = asyncio.get_running_loop().call_later(FROZEN_START_S, thaw) if may_be_frozen else None
        try:
            pids = await asyncio.gather(*map(takeover.pid_if_started, processes))  # at once, as each may hang
        finally:
            if timer is not None:
                timer.cancel()
        return pids, has_thawed

    async def _take_up_freezing(self, takeover: Takeover, began: Operation) -> None:
        paused = await takeover.is_paused(began, was=self.init.state is State.PAUSED)
        self.init.began = None
        if self.init.has_exited:
            self._exits.cgroup.thaw()
        elif paused and began is Operation.PAUSE:
            self._paused()
        elif not paused and began is Operation.RESUME:
            self._resumed()

    # Helpers

    def _call(self, verb: str) -> str:
        """How the keeper knows a call of the runtime for this container."""
        return f"runtime:{self.name}:{verb}"

    async def _change(self, operation: Operation, change: Callable[..., Any]) -> None:
        """Ask the runtime for a change; a next worker knows that it was begun."""
        self.init.began = operation
        self.save()
        try:
            await (change() if operation is Operation.CHECKPOINT else change(self.id))
        except BaseException:
            self.init.began = None
            self.save()
            raise
        self.init.began = None

    async def _runs(self) -> bool:
        """The runtime says so."""
        try:
            return (await self._runtime.state(self.id)).get("status") == "running"
        except Error:
            return False

    def _paused(self) -> None:
        self.init.state = State.PAUSED
        self._telling.publish(Paused())

    def _resumed(self) -> None:
        self.init.state = State.RUNNING
        self._telling.publish(Resumed())

    async def _take_checkpoint(self, path: str, options: CheckpointOptions) -> None:
        await checkpoints.take(self._means, path, options)
        self.init.checkpointed, self.init.began = path, None
        self.save()

    async def _has_taken_checkpoint(self, path: str) -> bool:
        """Whether a former worker has; its call may be under way still."""
        if self.init.checkpointed == path:
            return True
        self.init.began = Operation.CHECKPOINT
        try:
            return await self._host.wait_inherited(self._call("checkpoint")) == 0
        finally:
            self.init.began = None

    def _is_dumping(self, process: Process) -> bool:
        return process is self.init and self.init.began is Operation.CHECKPOINT

    async def _kill_init(self, number: int, everyone: bool) -> None:
        if everyone and number > signal.SIGRTMAX:  # the runtime would send it to nobody, and say that all is well
            raise Error(f"unknown error after kill: signal {number} does not exist")
        await self._runtime.kill(self.id, number, all=everyone)
        if number == KILL and self.init.state is State.PAUSED:
            self._exits.cgroup.let_kill_through()

    async def _create_init(self) -> None:
        init = self.init
        async with self._means.launch(init) as launch:
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
                self._exits.watch(init, self.bundle.read_pid(INIT))
            except BaseException as error:
                if not is_refusal(error):
                    await self._means.forget_in_runtime()
                raise
        self._exits.cgroup.find(init.pid)

    async def _undo_create(self) -> None:
        failure = await self._rootfs.unmount()
        if failure is not None:
            self.log.error("after a failed create: %s", failure)
        self.bundle.remove("init.pid")
        self.bundle.forget()

    async def _start_init(self) -> int:
        init, order = self.init, self._exits.order
        restores = init.state is State.CREATED_CHECKPOINT
        order.starting(INIT)
        try:
            await self._change(Operation.START, self._restore_init if restores else self._runtime.start)
        except BaseException:
            self._exits.tell(order.start_failed(INIT, lives=not restores))
            raise
        if init.state in (State.CREATED, State.CREATED_CHECKPOINT):  # else it is over already
            init.state = State.RUNNING
        init.was_started = True
        self._telling.publish(Started(init.pid))
        if restores:
            self._exits.cgroup.watch()
        self._exits.tell(order.started(INIT))
        return init.pid

    async def _restore_init(self, container_id: str) -> None:
        """Make the container of its checkpoint."""
        init = self.init
        self.bundle.make_work()
        self.bundle.remove("init.pid")
        try:
            async with self._means.launch(init) as launch:
                arguments = checkpoints.restore_arguments(
                    self.bundle, self.options, self.checkpoint, launch.console_path
                )
                await self._runtime.restore(container_id, arguments, launch.runtime_stdio)
                await launch.succeeded()
                self._exits.watch(init, self.bundle.read_pid(INIT))
        except BaseException:
            await self._means.forget_in_runtime()
            self.bundle.remove("init.pid")
            raise
        self._exits.cgroup.find(init.pid)

    async def _delete_init(self, again: bool) -> Ended:
        init = self.init
        ended_before = init.has_exited
        if ended_before:
            await self._means.drain(init)
        try:
            if not again or await self._host.wait_inherited(self._call("delete")) != 0:
                await self._runtime.delete(self.id)
            await self._exits.await_last()
            if not ended_before:
                await self._means.drain(init)
        finally:
            failure = await self._leave_rootfs()
        if failure is not None:
            raise failure
        self._deleted()
        return init.ended

    async def _force_delete(self) -> None:
        await self._host.wait_inherited(self._call("delete"))
        try:
            await self._runtime.delete(self.id, force=True)
        except Error as error:
            self.log.warning("failed to remove runc container: %s", error)
        await self._exits.await_last()
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

    def _deleted(self) -> None:
        for process in [self.init, *self.execs.values()]:
            process.state = State.DELETED
            process.release_waiters()
            if not process.pid:
                self._means.release_client_ends(process)
        self._exits.cgroup.close()
        self._telling.publish_last(Deleted(self.init.ended))
