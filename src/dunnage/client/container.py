"""A container and its processes, as a client holds them: every call is one RPC to the worker that has the container.

A `Process` may be waited for by any number of tasks and clients. Closing one closes a client's view of it; what runs
goes on running until it ends, is killed, or is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal as signals
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from google.protobuf.any_pb2 import Any as WireAny
from google.protobuf.empty_pb2 import Empty

from dunnage import errors
from dunnage.api import task_pb2
from dunnage.api.options_pb2 import CheckpointOptions
from dunnage.client.bundle import Bundle, Record, check_identifier, new_id
from dunnage.client.checkpoint import Target, Wishes
from dunnage.client.connection import Connection
from dunnage.client.settings import HOST_ROOT
from dunnage.client.stats import Stats, read_stats
from dunnage.client.stdio import PIPE, Stdio, Streams, discarding
from dunnage.client.terminal import terminal_size
from dunnage.client.values import Exit, Finished, State, Status, read_time
from dunnage.spec import Resources, check_process, check_words, merge_env

_PROCESS_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_RESOURCES_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
DETACHED = "detached-"
"""How the id begins of an exec that nobody waits for: `Node.delete_ended` deletes those that have ended."""
# runc create and runc exec take what the container needs; this only bounds a worker that is gone
_CALL_TIMEOUT_S = 150.0
_DRAIN_TIMEOUT_S = 12.0
_LOST = (errors.Unavailable, errors.DeadlineExceeded)  # the call may go on, heard or not
_READERS_S = 1.0


class Process:
    """The init or an exec of a container. Made by `Node.create` and `Container.exec`."""

    def __init__(
        self, connection: Connection, id: str, exec_id: str, streams: Streams, *, started: bool = False
    ) -> None:
        self.id = id
        self.exec_id = exec_id
        self.streams = streams
        self._connection = connection
        self._started = started
        self._stdin_closed = False
        self._background: set[asyncio.Task[None]] = set()

    @property
    def stdin(self) -> asyncio.StreamWriter | None:
        """The writer, where stdin is PIPE; `close_stdin` ends it."""
        return self.streams.stdin

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        return self.streams.stdout

    @property
    def stderr(self) -> asyncio.StreamReader | None:
        return self.streams.stderr

    async def start(self) -> int:
        """Start it; returns its pid on the host."""
        request = task_pb2.StartRequest(id=self.id, exec_id=self.exec_id)
        answer = await self._connection.call_to_its_end(
            "Start", request, task_pb2.StartResponse, timeout_s=_CALL_TIMEOUT_S
        )
        self._begun()
        return int(answer.pid)

    def _begun(self) -> None:
        self._started = True
        self.streams.begin_stdin(self._stdin_ended)
        if self._stdin_closed:
            self._stdin_ended()

    async def wait(self) -> Exit:
        """Wait until it has ended."""
        request = task_pb2.WaitRequest(id=self.id, exec_id=self.exec_id)
        answer = await self._connection.call("Wait", request, task_pb2.WaitResponse)
        return Exit(answer.exit_status, read_time(answer.exited_at))

    async def kill(self, signal: int = signals.SIGTERM, *, all: bool = False) -> None:
        """Send a signal; `all` to every process of the container. NotFound where it has ended already."""
        request = task_pb2.KillRequest(id=self.id, exec_id=self.exec_id, signal=signal, all=all)
        await self._call("Kill", request, Empty)

    async def state(self) -> State:
        request = task_pb2.StateRequest(id=self.id, exec_id=self.exec_id)
        answer = await self._call("State", request, task_pb2.StateResponse)
        status = Status.of_number(answer.status)
        ended = Exit(answer.exit_status, read_time(answer.exited_at)) if status is Status.STOPPED else None
        return State(
            id=answer.id,
            pid=answer.pid,
            status=status,
            exit=ended,
            terminal=answer.terminal,
            bundle=Path(answer.bundle),
            stdin=answer.stdin,
            stdout=answer.stdout,
            stderr=answer.stderr,
        )

    async def resize(self, columns: int, rows: int) -> None:
        """Set the size of its terminal; nothing where it has none."""
        request = task_pb2.ResizePtyRequest(id=self.id, exec_id=self.exec_id, width=columns, height=rows)
        await self._call("ResizePty", request, Empty)

    async def close_stdin(self) -> None:
        """Let it read the end of its stdin, once every writer has closed theirs; ours is closed here.

        Before its start this is remembered: a worker has nothing yet to close of an exec that does not run.
        """
        self._stdin_closed = True
        if self.stdin is not None:
            self.stdin.close()
        if self._started:
            await self._call_close_stdin()

    async def _call_close_stdin(self) -> None:
        await self._call("CloseIO", task_pb2.CloseIORequest(id=self.id, exec_id=self.exec_id, stdin=True), Empty)

    async def wait_output(self) -> Finished:
        """Read PIPEs to their end while waiting for the exit."""
        exit, stdout, stderr = await asyncio.gather(self.wait(), _read_all(self.stdout), _read_all(self.stderr))
        return Finished(exit.status, stdout, stderr)

    async def delete(self) -> Exit:
        """Have the worker forget it; it must have ended (or never have been started)."""
        request = task_pb2.DeleteRequest(id=self.id, exec_id=self.exec_id)
        # the worker waits for a reader of its output, and ours may be none any more
        with discarding(*(self.streams.uris[1:] if self.streams.broken.is_set() else ())):
            answer = await self._call("Delete", request, task_pb2.DeleteResponse)
        await self.streams.wait_drained(_DRAIN_TIMEOUT_S)
        self.streams.close()
        self.streams.unlink()
        return Exit(answer.exit_status, read_time(answer.exited_at))

    async def close(self) -> None:
        """Close our ends of its streams."""
        for task in list(self._background):
            task.cancel()
        self.streams.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _stdin_ended(self) -> None:
        task = asyncio.get_running_loop().create_task(self._close_stdin_quietly())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _close_stdin_quietly(self) -> None:
        try:
            await self._call_close_stdin()
        except errors.Error:
            pass  # it has ended, or was removed: nobody reads that stdin

    async def _call(self, method: str, request: Any, response: Any) -> Any:
        return await self._connection.call(method, request, response, timeout_s=_CALL_TIMEOUT_S)


class Container(Process):
    """A container, and its init. Leaving it as a context manager closes the connection; `remove` is what ends it."""

    def __init__(
        self,
        bundle: Bundle,
        connection: Connection,
        streams: Streams,
        *,
        started: bool = False,
        on_close: Callable[[Container], None],
    ) -> None:
        super().__init__(connection, bundle.id, "", streams, started=started)
        self.bundle = bundle
        self._on_close = on_close

    @property
    def namespace(self) -> str:
        return self.bundle.namespace

    @property
    def record(self) -> Record:
        """What was asked for at its creation."""
        return self.bundle.read_record()

    async def exec(
        self,
        args: Sequence[str],
        *,
        env: Sequence[str] = (),
        cwd: str | None = None,
        user: dict[str, Any] | None = None,
        stdio: Stdio | None = None,
        exec_id: str | None = None,
        detached: bool = False,
    ) -> Process:
        """A further process, not started yet: environment, user and directory are the init's where none is given.

        `env` holds ``NAME=value`` texts; `user` is an OCI ``user`` object. Nobody waits for a `detached` one: once it
        has ended, `Node.delete_ended` may forget it, and with it its exit status.
        """
        stdio = stdio or Stdio()
        kind = DETACHED if detached else "exec-"
        exec_id = check_identifier(exec_id or f"{kind}{new_id()}", "exec id")
        spec = exec_process(self.bundle.read_config(), args, env=env, cwd=cwd, user=user)
        stdio.apply(spec)
        streams = Streams(stdio, self.bundle.stdio_path, f"{exec_id}.")
        process = Process(self._connection, self.id, exec_id, streams)
        is_made = False
        try:
            streams.prepare()
            stdin, stdout, stderr = streams.uris
            request = task_pb2.ExecProcessRequest(
                id=self.id,
                exec_id=exec_id,
                terminal=stdio.terminal,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                spec=WireAny(type_url=_PROCESS_TYPE_URL, value=json.dumps(spec).encode()),
            )
            is_made = True  # or will be, whatever ends our waiting
            await self._connection.call_to_its_end("Exec", request, Empty, timeout_s=_CALL_TIMEOUT_S)
            await streams.begin()
        except BaseException as error:
            streams.close()
            streams.unlink()
            if is_made and not isinstance(error, errors.Error):
                with contextlib.suppress(errors.Error):  # it is not there, or went with its container
                    await process.delete()
            raise
        return process

    async def attach(self, stdio: Stdio) -> Process:
        """The init with streams of ours, where its own are fifos; they begin at once."""
        state = await self.state()
        if state.status is Status.STOPPED:
            raise errors.FailedPrecondition(f"container {self.id} is not running")
        streams = Streams(stdio, self.bundle.stdio_path, "")
        process = Process(self._connection, self.id, "", streams)
        try:
            streams.attach((state.stdin, state.stdout, state.stderr))
            await streams.begin()
        except BaseException:
            streams.close()
            raise
        process._begun()
        return process

    async def pids(self) -> dict[int, str]:
        """Every process in it: pid on the host, and the exec id where it is an exec's own ("" otherwise)."""
        answer = await self._call("Pids", task_pb2.PidsRequest(id=self.id), task_pb2.PidsResponse)
        return {process.pid: _exec_id_of(process.info) for process in answer.processes}

    async def pause(self) -> None:
        """Freeze every process in it; it may still be killed and removed."""
        await self._call("Pause", task_pb2.PauseRequest(id=self.id), Empty)

    async def resume(self) -> None:
        """Let a paused one go on."""
        await self._call("Resume", task_pb2.ResumeRequest(id=self.id), Empty)

    async def update(self, resources: Resources | Mapping[str, Any]) -> None:
        """Change its limits, also while it runs; what is not said stays as it is.

        A mapping is OCI's ``linux.resources``, for what `Resources` has no name for.
        """
        oci = resources.to_oci() if isinstance(resources, Resources) else resources
        wanted = WireAny(type_url=_RESOURCES_TYPE_URL, value=json.dumps(oci).encode())
        await self._call("Update", task_pb2.UpdateTaskRequest(id=self.id, resources=wanted), Empty)

    async def stats(self) -> Stats:
        """What it has used so far. NotFound where it has no cgroup any more."""
        return await stats_of(self._connection, self.id)

    async def checkpoint(
        self,
        directory: Path | str,
        *,
        exit: bool = False,
        tcp: bool = False,
        unix_sockets: bool = False,
        terminal: bool | None = None,
        file_locks: bool = False,
        empty_namespaces: Sequence[str] = (),
        work_directory: Path | None = None,
        parent: Path | None = None,
    ) -> None:
        """Have criu write it down in `directory`, which is made, or is empty; `Node.restore` makes it again from that.

        It runs on, unless `exit`. `tcp`, `unix_sockets` and `file_locks` allow established connections, sockets whose
        other end is outside, and locks; `terminal` (None: where it has one) a terminal. `empty_namespaces` are made
        new (``network``). `parent` is the directory of an earlier checkpoint, of which only the difference is written.

        AlreadyExists for a directory with something in it. A failure leaves the directory as it was, unless with `exit`
        nobody knows whether the container is still there.
        """
        wishes = Wishes(exit, tcp, unix_sockets, terminal, file_locks, empty_namespaces, work_directory, parent)
        record = self.record
        target = Target(Path(directory))
        options = wishes.to_options(target.path, has_terminal=record.terminal)
        target.make()
        is_ended = False
        try:
            # what it changes on the host's root must not go on while that is copied
            async with self._paused(record.root == HOST_ROOT and not exit):
                await self._write_images(target.path, options)
                is_ended = exit
                await target.save(self.bundle)
        except BaseException as error:
            is_told = isinstance(error, errors.Error) and not isinstance(error, _LOST)
            if not is_ended and (is_told or not exit):  # else these may be all that is left of it
                target.undo()
            raise

    async def _write_images(self, directory: Path, options: CheckpointOptions) -> None:
        request = task_pb2.CheckpointTaskRequest(id=self.id, path=str(directory))
        request.options.type_url = options.DESCRIPTOR.full_name
        request.options.value = options.SerializeToString()
        # as long as its memory is large
        await self._connection.call_to_its_end("Checkpoint", request, Empty, timeout_s=None)

    @contextlib.asynccontextmanager
    async def _paused(self, wanted: bool) -> AsyncIterator[None]:
        if not wanted or (await self.state()).status is not Status.RUNNING:
            yield
            return
        await self.pause()
        try:
            yield
        except BaseException:
            with contextlib.suppress(errors.Error):  # it may have ended; what went wrong is told already
                await self.resume()
            raise
        await self.resume()

    async def remove(self, *, force: bool = False) -> Exit | None:
        """Delete it and its bundle; its exit, where one is known.

        FailedPrecondition while it runs, unless `force`, which kills it. A container whose worker is gone, or that was
        never completely created, is removed too: then None.
        """
        ended = await self._delete_task(force)
        await self.close()
        self.bundle.remove()
        return ended

    async def close(self) -> None:
        await super().close()
        await self._connection.close()
        self._on_close(self)

    async def _delete_task(self, force: bool) -> Exit | None:
        try:
            state = await self.state()
        except errors.NotFound:
            if not force and self.bundle.is_being_made:
                raise errors.FailedPrecondition(f"container {self.id} is being created") from None
            await self._shut_down()
            return None
        if state.status not in (Status.STOPPED, Status.CREATED):
            if not force:
                raise errors.FailedPrecondition(
                    f"container {self.id} is {state.status.value}: stop it first, or use force"
                )
            await self._kill_and_wait()
        ended: Exit | None = None
        with contextlib.suppress(errors.NotFound):  # somebody else has deleted it in the meantime
            ended = await self._delete_unread(state)
        await self._shut_down()
        return ended

    async def _delete_unread(self, state: State) -> Exit:
        deleting = asyncio.ensure_future(self.delete())
        try:
            # whoever still reads the output is given the time for it; after that nobody is taken to
            await asyncio.wait((deleting,), timeout=_READERS_S if not any(self.streams.uris) else None)
            with discarding(*(() if deleting.done() else (state.stdout, state.stderr))):
                return await deleting
        finally:
            deleting.cancel()

    async def _kill_and_wait(self) -> None:
        try:
            await self.kill(signals.SIGKILL)
        except errors.NotFound:
            pass  # it ended in the meantime, which is what was wanted
        with contextlib.suppress(errors.NotFound):  # somebody else has deleted it already
            await self.wait()

    async def _shut_down(self) -> None:
        try:
            await self._call("Shutdown", task_pb2.ShutdownRequest(id=self.id), Empty)
        except (errors.Unavailable, errors.NotFound):
            pass  # the socket closes with the last container behind it, sometimes before the answer


async def stats_of(connection: Connection, id: str) -> Stats:
    """What the container with this id behind a connection has used."""
    answer = await connection.call(
        "Stats", task_pb2.StatsRequest(id=id), task_pb2.StatsResponse, timeout_s=_CALL_TIMEOUT_S
    )
    return read_stats(answer.stats)


def exec_process(
    config: dict[str, Any],
    args: Sequence[str],
    *,
    env: Sequence[str] = (),
    cwd: str | None = None,
    user: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The OCI process of an exec: the init's, with what is given put in its place."""
    check_words("command", args)
    check_words("environment", env)
    process = dict(config.get("process") or {})
    process["args"] = list(args)
    process["env"] = merge_env(process.get("env") or [], env)
    if cwd is not None:
        process["cwd"] = cwd
    check_process(process["args"], process["env"], str(process.get("cwd", "/")))
    if user is not None:
        process["user"] = user
    return process


async def _read_all(reader: asyncio.StreamReader | None) -> bytes:
    return b"" if reader is None else await reader.read()


def _exec_id_of(info: WireAny) -> str:
    from dunnage.api import options_pb2

    if info.type_url.rpartition("/")[2] != options_pb2.ProcessDetails.DESCRIPTOR.full_name:
        return ""
    return options_pb2.ProcessDetails.FromString(info.value).exec_id


def own_stdio(*, interactive: bool, terminal: bool) -> Stdio:
    """This process's own standard streams, and the size of the terminal that they are."""
    size = terminal_size(0) or terminal_size(1) if terminal else None
    return Stdio(
        stdin=0 if interactive else None, stdout=1, stderr=None if terminal else 2, terminal=terminal, size=size
    )


def pipes(*, stdin: bool = False) -> Stdio:
    """Streams to read and write here."""
    return Stdio(stdin=PIPE if stdin else None, stdout=PIPE, stderr=PIPE)
