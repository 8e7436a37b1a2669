"""A stand-in for a worker: the same messages over the same ttrpc, but what it runs are plain children of the test.

It opens fifos as a shim does (its ends without waiting, an extra reader behind stdout), tells exits as 128 plus the
signal, and refuses what the state tables of the protocol refuse.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from logging import getLogger
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from dunnage.api import anys, metrics_v1_pb2, options_pb2, task_pb2
from dunnage.ttrpc.errors import Code, RpcError
from dunnage.ttrpc.server import Call, Handler, Method, Server


class Child:
    """A process that the shim was told of."""

    def __init__(self, args: list[str], env: list[str], uris: tuple[str, str, str], terminal: bool) -> None:
        self.args, self.env, self.uris, self.terminal = args, env, uris, terminal
        self.process: asyncio.subprocess.Process | None = None
        self.stdin_writer: int | None = None
        self.sizes: list[tuple[int, int]] = []
        self.is_paused = False

    @property
    def status(self) -> int:
        if self.process is None:
            return 1
        if self.is_paused and self.process.returncode is None:
            return 4
        return 2 if self.process.returncode is None else 3

    @property
    def exit_status(self) -> int:
        code = 0 if self.process is None or self.process.returncode is None else self.process.returncode
        return code if code >= 0 else 128 - code

    async def start(self) -> None:
        stdin, stdout, stderr = self.uris
        fds: list[int] = []
        streams: list[int] = []
        for uri, flags in ((stdin, os.O_RDWR), (stdout, os.O_RDWR), (stderr, os.O_RDWR)):
            if not uri:
                streams.append(asyncio.subprocess.DEVNULL)
                continue
            if uri.startswith("file://"):
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            elif uri == stdin:
                flags = os.O_RDONLY | os.O_NONBLOCK
            else:
                flags = os.O_WRONLY | os.O_NONBLOCK
            fds.append(os.open(uri.removeprefix("file://"), flags))
            os.set_blocking(fds[-1], True)
            streams.append(fds[-1])
        if stdin:
            self.stdin_writer = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)
        env = dict(one.split("=", 1) for one in self.env)
        try:
            self.process = await asyncio.create_subprocess_exec(
                *self.args, env=env, stdin=streams[0], stdout=streams[1], stderr=streams[2]
            )
        except FileNotFoundError:
            message = f'OCI runtime create failed: exec: "{self.args[0]}": executable file not found in $PATH'
            raise RpcError(Code.UNKNOWN, message) from None
        finally:
            for fd in fds:
                os.close(fd)

    def close_stdin(self) -> None:
        if self.stdin_writer is not None:
            os.close(self.stdin_writer)
            self.stdin_writer = None


class Shim:
    """Serves the Task API on `path`; `children` is what it has, by (id, exec id), `created` every Create it got."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.children: dict[tuple[str, str], Child] = {}
        self.created: list[task_pb2.CreateTaskRequest] = []
        self.shut_down: list[str] = []
        self.refuse_create: RpcError | None = None
        self.refuse_delete: RpcError | None = None
        self.refuse_checkpoint: RpcError | None = None
        self.updated: list[task_pb2.UpdateTaskRequest] = []
        self.checkpointed: list[tuple[task_pb2.CheckpointTaskRequest, int]] = []
        """Every Checkpoint it got, and the status of the container then; it leaves a file in the directory."""
        self.metrics: Message = metrics_v1_pb2.Metrics()
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        """What a method waits for before it does its work, by name."""
        methods: dict[str, tuple[type[Message], Handler]] = {
            "Create": (task_pb2.CreateTaskRequest, self._create),
            "Start": (task_pb2.StartRequest, self._start),
            "State": (task_pb2.StateRequest, self._state),
            "Wait": (task_pb2.WaitRequest, self._wait),
            "Kill": (task_pb2.KillRequest, self._kill),
            "Exec": (task_pb2.ExecProcessRequest, self._exec),
            "Delete": (task_pb2.DeleteRequest, self._delete),
            "CloseIO": (task_pb2.CloseIORequest, self._close_io),
            "ResizePty": (task_pb2.ResizePtyRequest, self._resize),
            "Pause": (task_pb2.PauseRequest, self._pause),
            "Resume": (task_pb2.ResumeRequest, self._resume),
            "Update": (task_pb2.UpdateTaskRequest, self._update),
            "Checkpoint": (task_pb2.CheckpointTaskRequest, self._checkpoint),
            "Stats": (task_pb2.StatsRequest, self._stats),
            "Shutdown": (task_pb2.ShutdownRequest, self._shutdown),
        }
        table = {name: Method(request, self._after(name, handler)) for name, (request, handler) in methods.items()}
        self._server = Server({"containerd.task.v2.Task": table}, log=getLogger(__name__))
        self._listener = socket.socket(socket.AF_UNIX)
        self._accepting: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def end(self) -> None:
        assert self._accepting is not None
        self._accepting.cancel()
        self._listener.close()
        await self._server.close()
        for child in self.children.values():
            child.close_stdin()
            if child.process is not None and child.process.returncode is None:
                child.process.kill()
                await child.process.wait()

    async def _accept(self) -> None:
        number = 0
        while True:
            peer, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            number += 1
            self._server.attach(peer, f"connection {number}")

    def _after(self, name: str, handler: Handler) -> Handler:
        async def handle(request: Any, call: Call) -> Message:
            if name in self.before:
                await self.before[name]()
            answer = handler(request, call)
            return answer if isinstance(answer, Message) else await answer

        return handle

    def _child(self, request: Any) -> Child:
        child = self.children.get((request.id, getattr(request, "exec_id", "")))
        if child is None:
            raise RpcError(Code.NOT_FOUND, "container not created: not found")
        return child

    async def _create(self, request: task_pb2.CreateTaskRequest, call: Call) -> Message:
        self.created.append(request)
        if self.refuse_create is not None:
            raise self.refuse_create
        process = json.loads((Path(request.bundle) / "config.json").read_bytes())["process"]
        uris = (request.stdin, request.stdout, request.stderr)
        self.children[request.id, ""] = Child(process["args"], process["env"], uris, request.terminal)
        return task_pb2.CreateTaskResponse(pid=1)

    async def _start(self, request: task_pb2.StartRequest, call: Call) -> Message:
        child = self._child(request)
        await child.start()
        assert child.process is not None
        return task_pb2.StartResponse(pid=child.process.pid)

    async def _state(self, request: task_pb2.StateRequest, call: Call) -> Message:
        child = self._child(request)
        answer = task_pb2.StateResponse(id=request.id, pid=1, status=child.status, exit_status=child.exit_status)  # type: ignore[arg-type]  # an int is what the wire has
        answer.stdin, answer.stdout, answer.stderr = child.uris
        answer.exited_at.seconds = 1_700_000_000 if child.status == 3 else -62135596800
        return answer

    async def _wait(self, request: task_pb2.WaitRequest, call: Call) -> Message:
        child = self._child(request)
        assert child.process is not None
        await child.process.wait()
        answer = task_pb2.WaitResponse(exit_status=child.exit_status)
        answer.exited_at.seconds = 1_700_000_000
        return answer

    async def _kill(self, request: task_pb2.KillRequest, call: Call) -> Message:
        child = self._child(request)
        if child.process is None or child.process.returncode is not None:
            raise RpcError(Code.NOT_FOUND, "process already finished: not found")
        child.process.send_signal(signal.Signals(request.signal))
        return Empty()

    async def _exec(self, request: task_pb2.ExecProcessRequest, call: Call) -> Message:
        if (request.id, request.exec_id) in self.children:
            raise RpcError(Code.ALREADY_EXISTS, f"id {request.exec_id}: already exists")
        spec = json.loads(request.spec.value)
        uris = (request.stdin, request.stdout, request.stderr)
        self.children[request.id, request.exec_id] = Child(spec["args"], spec["env"], uris, request.terminal)
        return Empty()

    async def _delete(self, request: task_pb2.DeleteRequest, call: Call) -> Message:
        if self.refuse_delete is not None:
            raise self.refuse_delete
        child = self._child(request)
        if child.status == 2:
            raise RpcError(Code.UNKNOWN, "cannot delete a running process")
        child.close_stdin()
        del self.children[request.id, request.exec_id]
        answer = task_pb2.DeleteResponse(exit_status=child.exit_status)
        answer.exited_at.seconds = 1_700_000_000
        return answer

    async def _close_io(self, request: task_pb2.CloseIORequest, call: Call) -> Message:
        self._child(request).close_stdin()
        return Empty()

    async def _resize(self, request: task_pb2.ResizePtyRequest, call: Call) -> Message:
        self._child(request).sizes.append((request.width, request.height))
        return Empty()

    async def _pause(self, request: task_pb2.PauseRequest, call: Call) -> Message:
        child = self._child(request)
        if child.status != 2:
            raise RpcError(Code.UNKNOWN, "cannot pause a paused container")
        child.is_paused = True
        return Empty()

    async def _resume(self, request: task_pb2.ResumeRequest, call: Call) -> Message:
        self._child(request).is_paused = False
        return Empty()

    async def _update(self, request: task_pb2.UpdateTaskRequest, call: Call) -> Message:
        self._child(request)
        self.updated.append(request)
        return Empty()

    async def _checkpoint(self, request: task_pb2.CheckpointTaskRequest, call: Call) -> Message:
        child = self._child(request)
        self.checkpointed.append((request, child.status))
        (Path(request.path) / "inventory.img").touch()
        if self.refuse_checkpoint is not None:
            raise self.refuse_checkpoint
        if options_pb2.CheckpointOptions.FromString(request.options.value).exit:
            assert child.process is not None
            child.process.kill()
            await child.process.wait()
        return Empty()

    async def _stats(self, request: task_pb2.StatsRequest, call: Call) -> Message:
        self._child(request)
        return task_pb2.StatsResponse(stats=anys.pack_bare(self.metrics))

    async def _shutdown(self, request: task_pb2.ShutdownRequest, call: Call) -> Message:
        self.shut_down.append(request.id)
        return Empty()
