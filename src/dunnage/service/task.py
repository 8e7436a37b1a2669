"""The Task service of one group: one method per RPC, in the order of the API (shim v2, §3.1 and §4.1).

A change that has begun is brought to its end also when its client hangs up or gives up: what the client sees next is
then true. Reads and Wait end with their client. A change that a former worker took and did not answer is served again
(``Call.replayed``): where it has had its effect, it has succeeded.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from google.protobuf.empty_pb2 import Empty

from dunnage.api import anys, options_pb2, task_pb2, task_types_pb2
from dunnage.container import stories
from dunnage.container.container import Container
from dunnage.container.facts import IO, Checkpoint, Ended, Mount, Options
from dunnage.container.group import Group
from dunnage.container.states import State
from dunnage.errors import Error, InvalidArgument
from dunnage.service import messages, metrics
from dunnage.service.options import ReadFile, options_file, read_options
from dunnage.ttrpc.server import Call, Method

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
"""Both versions have the same methods, messages and field numbers."""

T = TypeVar("T")


class MakeContainer(Protocol):
    """Makes the value of a container that is to be created; raises FailedPrecondition where it has no bundle."""

    def __call__(
        self,
        group: Group,
        container_id: str,
        path: str,
        io: IO,
        rootfs: tuple[Mount, ...],
        options: Options,
        checkpoint: Checkpoint,
        /,
    ) -> Container: ...


class TaskService:
    """``on_deleted`` and ``on_shutdown`` tell the worker what became of the group; the first takes its container.

    ``recall`` knows how a container ended that is gone: a former worker may have deleted it and not answered any more.
    """

    def __init__(
        self,
        group: Group,
        *,
        make_container: MakeContainer,
        on_deleted: Callable[[Group, Container], None],
        on_shutdown: Callable[[Group], None],
        recall: Callable[[str], Ended | None],
        read_file: ReadFile,
        log: logging.Logger,
    ) -> None:
        self._group = group
        self._make_container = make_container
        self._on_deleted = on_deleted
        self._on_shutdown = on_shutdown
        self._recall = recall
        self._read_file = read_file
        self._log = log
        self._changes: set[asyncio.Task[Any]] = set()

    def methods(self) -> Mapping[str, Method]:
        """What a ttrpc server serves under each name of ``SERVICES``."""
        return {
            "State": Method(task_pb2.StateRequest, self.state),
            "Create": Method(task_pb2.CreateTaskRequest, self._to_its_end(self.create)),
            "Start": Method(task_pb2.StartRequest, self._to_its_end(self.start)),
            "Delete": Method(task_pb2.DeleteRequest, self._to_its_end(self.delete)),
            "Pids": Method(task_pb2.PidsRequest, self.pids),
            "Pause": Method(task_pb2.PauseRequest, self._to_its_end(self.pause)),
            "Resume": Method(task_pb2.ResumeRequest, self._to_its_end(self.resume)),
            "Checkpoint": Method(task_pb2.CheckpointTaskRequest, self._to_its_end(self.checkpoint)),
            "Kill": Method(task_pb2.KillRequest, self._to_its_end(self.kill)),
            "Exec": Method(task_pb2.ExecProcessRequest, self._to_its_end(self.exec)),
            "ResizePty": Method(task_pb2.ResizePtyRequest, self.resize_pty),
            "CloseIO": Method(task_pb2.CloseIORequest, self.close_io),
            "Update": Method(task_pb2.UpdateTaskRequest, self._to_its_end(self.update)),
            "Wait": Method(task_pb2.WaitRequest, self.wait),
            "Stats": Method(task_pb2.StatsRequest, self.stats),
            "Connect": Method(task_pb2.ConnectRequest, self.connect),
            "Shutdown": Method(task_pb2.ShutdownRequest, self.shutdown),
        }

    def state(self, request: task_pb2.StateRequest, call: Call) -> task_pb2.StateResponse:
        container = self._group.container(request.id)
        process = container.process(request.exec_id)
        stopped = process.state in (State.STOPPED, State.DELETED)
        return task_pb2.StateResponse(
            id=process.id or container.id,
            bundle=container.bundle.path,
            pid=process.pid,
            status=messages.status(container, process),
            stdin=process.io.stdin,
            stdout=process.io.stdout,
            stderr=process.io.stderr,
            terminal=process.io.terminal,
            exit_status=process.status if stopped else 0,
            exited_at=messages.timestamp(process.exited_at if stopped else None),
        )

    async def create(self, request: task_pb2.CreateTaskRequest, call: Call) -> task_pb2.CreateTaskResponse:
        _check_id("container id", request.id)
        if call.replayed and request.id in self._group.containers:
            return task_pb2.CreateTaskResponse(pid=self._group.containers[request.id].init.pid)
        _check_path("bundle", request.bundle)
        if request.checkpoint:
            _check_path("checkpoint path", request.checkpoint)
        checkpoint = Checkpoint(request.checkpoint, request.parent_checkpoint if request.checkpoint else "")
        io = IO(request.stdin, request.stdout, request.stderr, request.terminal)
        self._group.begin_create(request.id)
        created = None
        try:
            options = await read_options(request.options, self._read_file)
            container = self._make_container(
                self._group, request.id, request.bundle, io, messages.mounts(request.rootfs), options, checkpoint
            )
            try:
                container.bundle.write_options(options_file(container.options), container.options.binary_name)
                await container.create()
            except BaseException as error:
                container.bundle.forget()
                stories.note(container.bundle, container.log, "create", "", error)
                container.close()
                raise
            created = container
        finally:
            self._group.end_create(request.id, created)
        return task_pb2.CreateTaskResponse(pid=created.init.pid)

    async def start(self, request: task_pb2.StartRequest, call: Call) -> task_pb2.StartResponse:
        container = self._group.container(request.id)
        process = container.process(request.exec_id)
        if call.replayed and process.was_started:
            return task_pb2.StartResponse(pid=process.pid)
        return task_pb2.StartResponse(pid=await container.start(request.exec_id))

    async def delete(self, request: task_pb2.DeleteRequest, call: Call) -> task_pb2.DeleteResponse:
        # a client that has given its Create up comes with this next: what it asks for is an end of what was begun
        await self._group.wait_created(request.id)
        if call.replayed and request.id not in self._group.containers and not request.exec_id:
            recalled = self._recall(request.id)
            if recalled is not None:
                return task_pb2.DeleteResponse(**_ended(recalled))
        container = self._group.container(request.id)
        if call.replayed and request.exec_id in container.deleted_execs:
            return task_pb2.DeleteResponse(**_ended(container.deleted_execs[request.exec_id]))
        ended = await container.delete(request.exec_id, again=call.replayed)
        if not request.exec_id:
            self._on_deleted(self._group, container)
        return task_pb2.DeleteResponse(**_ended(ended))

    async def pids(self, request: task_pb2.PidsRequest, call: Call) -> task_pb2.PidsResponse:
        response = task_pb2.PidsResponse()
        for pid, exec_id in await self._group.container(request.id).pids():
            info = task_types_pb2.ProcessInfo(pid=pid)
            if exec_id:
                info.info.CopyFrom(anys.pack_bare(options_pb2.ProcessDetails(exec_id=exec_id)))
            response.processes.append(info)
        return response

    async def pause(self, request: task_pb2.PauseRequest, call: Call) -> Empty:
        container = self._group.container(request.id)
        if not (call.replayed and container.init.state is State.PAUSED):
            await container.pause()
        return Empty()

    async def resume(self, request: task_pb2.ResumeRequest, call: Call) -> Empty:
        container = self._group.container(request.id)
        if not (call.replayed and container.init.state is State.RUNNING):
            await container.resume()
        return Empty()

    async def checkpoint(self, request: task_pb2.CheckpointTaskRequest, call: Call) -> Empty:
        container = self._group.container(request.id)
        _check_path("checkpoint path", request.path)
        options = messages.checkpoint_options(request.options)
        await container.take_checkpoint(request.path, options, again=call.replayed)
        return Empty()

    async def kill(self, request: task_pb2.KillRequest, call: Call) -> Empty:
        container = self._group.container(request.id)
        container.process(request.exec_id)  # who is unknown is named first
        await container.kill(request.exec_id, request.signal, everyone=request.all, again=call.replayed)
        return Empty()

    async def exec(self, request: task_pb2.ExecProcessRequest, call: Call) -> Empty:
        container = self._group.container(request.id)
        _check_id("exec id", request.exec_id)
        if call.replayed and request.exec_id in container.execs:
            return Empty()
        io = IO(request.stdin, request.stdout, request.stderr, request.terminal)
        await container.add_exec(request.exec_id, io, messages.process_spec(request.spec))
        return Empty()

    def resize_pty(self, request: task_pb2.ResizePtyRequest, call: Call) -> Empty:
        self._group.container(request.id).resize(request.exec_id, request.width, request.height)
        return Empty()

    async def close_io(self, request: task_pb2.CloseIORequest, call: Call) -> Empty:
        await self._group.container(request.id).close_stdin(request.exec_id)
        return Empty()

    async def update(self, request: task_pb2.UpdateTaskRequest, call: Call) -> Empty:
        container = self._group.container(request.id)
        await container.update(messages.resources(request.resources), again=call.replayed)
        return Empty()

    async def wait(self, request: task_pb2.WaitRequest, call: Call) -> task_pb2.WaitResponse:
        ended = await self._group.container(request.id).process(request.exec_id).wait()
        return task_pb2.WaitResponse(exit_status=ended.status, exited_at=messages.timestamp(ended.exited_at))

    def stats(self, request: task_pb2.StatsRequest, call: Call) -> task_pb2.StatsResponse:
        used = self._group.container(request.id).metrics()
        return task_pb2.StatsResponse(stats=anys.pack_bare(metrics.message(used)))

    def connect(self, request: task_pb2.ConnectRequest, call: Call) -> task_pb2.ConnectResponse:
        container = self._group.containers.get(request.id)
        return task_pb2.ConnectResponse(shim_pid=os.getpid(), task_pid=container.init.pid if container else 0)

    def shutdown(self, request: task_pb2.ShutdownRequest, call: Call) -> Empty:
        self._group.withdraw(request.id)
        if self._group.is_empty:
            self._on_shutdown(self._group)
        return Empty()

    def _to_its_end(
        self, change: Callable[[Any, Call], Coroutine[Any, Any, T]]
    ) -> Callable[[Any, Call], Coroutine[Any, Any, T]]:
        async def run(request: Any, call: Call) -> T:
            task = asyncio.get_running_loop().create_task(self._noting_failure(change, request, call))
            self._changes.add(task)
            task.add_done_callback(self._changes.discard)
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                task.add_done_callback(self._log_unanswered)
                raise
            except Error:
                raise
            except Exception:
                container = self._group.containers.get(request.id)
                if container is not None:
                    container.log.exception("a change failed in an unforeseen way")
                raise

        return run

    async def _noting_failure(
        self, change: Callable[[Any, Call], Coroutine[Any, Any, T]], request: Any, call: Call
    ) -> T:
        """Where a change of a container fails, keep the whole story there before its client is told."""
        container = self._group.containers.get(request.id)
        try:
            return await change(request, call)
        except Error as error:
            if container is not None and self._group.containers.get(request.id) is container:
                exec_id = getattr(request, "exec_id", "")
                stories.note(container.bundle, container.log, change.__name__, exec_id, error)
            raise

    def _log_unanswered(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._log.warning("a change whose client has gone failed: %s", task.exception())


def _ended(ended: Ended) -> dict[str, Any]:
    return {"pid": ended.pid, "exit_status": ended.status, "exited_at": messages.timestamp(ended.exited_at)}


def _check_id(what: str, value: str) -> None:
    if not value or "/" in value or value in (".", "..") or "\0" in value:
        raise InvalidArgument(f"{what} {value!r} is not usable as a name")
    if len(value.encode()) > _ID_BYTES:
        raise InvalidArgument(f"{what} {value[:20]!r}… is longer than {_ID_BYTES} bytes")


def _check_path(what: str, value: str) -> None:
    if not os.path.isabs(value):
        raise InvalidArgument(f"{what} {value!r} is not an absolute path")
    if "\0" in value:
        raise InvalidArgument(f"{what} {value!r} contains a zero byte")


_ID_BYTES = 255 - len(".pid")  # both make file names; containerd's own limit is 76
