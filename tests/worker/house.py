"""A real keeper, a real worker and a real runtime without containerd: the test is launcher, client and events' reader.

``Killer`` is a runtime that kills the worker before or after one of its own calls, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from tests.runtime import local

from dunnage.api import events_pb2, forward_pb2, options_pb2, task_pb2
from dunnage.api.anys import unpack
from dunnage.events import publisher
from dunnage.events.topics import TOPICS
from dunnage.spec import make_spec
from dunnage.ttrpc.client import Client
from dunnage.ttrpc.server import Call, Method, Server
from dunnage.worker.control import LaunchRequest, encode_request

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "default"
LIMIT_S = 30.0
LOG = logging.getLogger("dunnage.tests.house")

_REQUESTS = {
    "State": (task_pb2.StateRequest, task_pb2.StateResponse),
    "Create": (task_pb2.CreateTaskRequest, task_pb2.CreateTaskResponse),
    "Start": (task_pb2.StartRequest, task_pb2.StartResponse),
    "Delete": (task_pb2.DeleteRequest, task_pb2.DeleteResponse),
    "Pause": (task_pb2.PauseRequest, Empty),
    "Resume": (task_pb2.ResumeRequest, Empty),
    "Checkpoint": (task_pb2.CheckpointTaskRequest, Empty),
    "Kill": (task_pb2.KillRequest, Empty),
    "Exec": (task_pb2.ExecProcessRequest, Empty),
    "Update": (task_pb2.UpdateTaskRequest, Empty),
    "Wait": (task_pb2.WaitRequest, task_pb2.WaitResponse),
    "Stats": (task_pb2.StatsRequest, task_pb2.StatsResponse),
    "Shutdown": (task_pb2.ShutdownRequest, Empty),
}


class Answer(NamedTuple):
    status: int
    stdout: bytes
    stderr: bytes


@contextmanager
def keeper_running(state: Path, worker: str) -> Iterator[subprocess.Popen[bytes]]:
    """A keeper of ``state`` whose workers run the function ``worker``."""
    state.mkdir()
    lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(state / "control"))
        control.listen(64)
        options = ["--state", str(state), "--lock-fd", str(lock), "--control-fd", str(control.fileno())]
        with open(state / "log", "ab") as log:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "dunnage.keeper", *options, "--worker", worker, "x" * 200],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock, control.fileno()],
            )
        os.close(lock)
    try:
        yield keeper
    finally:
        for pid in (keeper.pid, *children(keeper.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        keeper.wait(10)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Killer:
    """A runtime for Create's options: runc, but before or after ``verb`` it kills the worker, the first time."""

    def __init__(self, directory: Path, verb: str, moment: str) -> None:
        self.path = directory / "killer"
        self.done = directory / "killed"
        self.path.write_text(
            f"""#!/bin/sh
            case " $* " in *" {verb} "*) mkdir {self.done} 2>/dev/null && moment={moment};; esac
            kill_worker() {{
                for pid in $(cat /proc/$PPID/task/$PPID/children); do
                    if tr '\\0' ' ' < /proc/$pid/cmdline | grep -q 'worker node'; then kill -9 $pid; fi
                done
            }}
            [ "$moment" = before ] && kill_worker
            runc "$@"
            status=$?
            [ "$moment" = after ] && kill_worker
            exit $status
            """
        )
        self.path.chmod(0o755)


class House:
    def __init__(self, directory: Path, rootfs: Path, state: Path, keeper: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.rootfs = rootfs
        self.keeper = keeper
        self.state = state
        self.events: list[Message] = []
        self._event = asyncio.Event()
        self._clients: list[Client] = []

    # As containerd

    async def launch(
        self,
        action: str,
        container: str,
        *,
        spec: Mapping[str, Any] | None = None,
        flags: Sequence[str] = (),
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> Answer:
        """Run the launcher; asked again while a worker dies of it."""
        bundle = self.bundle(container)
        if spec is not None:
            bundle.mkdir()
            (bundle / "config.json").write_text(json.dumps(spec))
        env = {**os.environ, "TTRPC_ADDRESS": str(self.directory / "events"), **(env or {})}
        names = ("-namespace", NAMESPACE, "-id", container, "-address", "")
        argv = ("containerd-shim-dunnage-v2", *names, *flags, action)
        while True:
            reader, writer = await asyncio.open_unix_connection(self.state / "control")
            try:
                writer.write(encode_request(LaunchRequest(argv, env, str(bundle), stdin, 0, 0)))
                answer = await reader.read()
            except ConnectionError:
                continue
            finally:
                writer.close()
            if answer:
                stdout = int.from_bytes(answer[2:6], "little")
                return Answer(answer[1], answer[10 : 10 + stdout], answer[10 + stdout :])

    def bundle(self, container: str) -> Path:
        return self.directory / container

    def spec(self, container: str, args: list[str], *, group: str | None = None, host_pids: bool = False) -> Any:
        annotations = {"io.kubernetes.cri.sandbox-id": group} if group else None
        spec = make_spec(
            args,
            env=["PATH=/bin"],
            rootfs_path=str(self.rootfs),
            cgroups_path=f"/t-{os.getpid()}/{container}",
            annotations=annotations,
        )
        if host_pids:
            spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "pid"]
        return spec

    async def start_shim(self, container: str, args: list[str], **settings: Any) -> Task:
        answer = await self.launch("start", container, spec=self.spec(container, args, **settings))
        assert answer.status == 0, answer
        return Task(self, container, await self.connect(answer.stdout.decode()))

    async def connect(self, address: str) -> Client:
        client = await Client.connect(address, timeout_s=5)
        self._clients.append(client)
        return client

    # As containerd's events service

    def forward(self, request: forward_pb2.ForwardRequest, call: Call) -> Empty:
        self.events.append(unpack(request.envelope.event, TOPICS))
        self._event.set()
        self._event = asyncio.Event()
        return Empty()

    def told(self, container: str) -> list[str]:
        return [
            " ".join(filter(None, (type(event).__name__.removeprefix("Task"), _exec_of(event))))
            for event in self.events
            if getattr(event, "container_id", "") == container
        ]

    async def wait_told(self, container: str, what: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while what not in self.told(container):
                await self._event.wait()

    # What is there

    def worker(self) -> int:
        """Its pid; 0 in the moment in which there is none."""
        for pid in children(self.keeper.pid):
            with contextlib.suppress(FileNotFoundError):
                if b"worker\0node" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return 0

    async def wait_gone(self, pid: int) -> None:
        """Until the process is reaped; nothing tells of that."""
        async with asyncio.timeout(LIMIT_S):
            while os.path.exists(f"/proc/{pid}"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def kill_worker(self) -> None:
        worker = self.worker()
        assert worker, "there is none, and 0 is our own process group"
        os.kill(worker, signal.SIGKILL)

    def descriptors(self, pid: int) -> list[str]:
        """Of a process, those that are no part of its making."""
        found = []
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        return sorted(name for name in found if "eventpoll" not in name and "socket:" not in name)

    def log(self) -> str:
        return (self.state / "log").read_text()

    def close(self) -> None:
        for client in self._clients:
            client.close()


class Task:
    """One container, as its client sees it on one connection for all its life."""

    def __init__(self, house: House, container: str, client: Client) -> None:
        self.house = house
        self.id = container
        self.client = client

    async def call(self, method: str, **fields: Any) -> Any:
        request_class, response_class = _REQUESTS[method]
        request = request_class(id=self.id, **fields)
        return await self.client.call("containerd.task.v2.Task", method, request, response_class, timeout_s=LIMIT_S)

    async def create(self, runtime: Path | None = None, **fields: Any) -> int:
        options = options_pb2.Options(binary_name=str(runtime or ""), root=str(self.house.directory / "root"))
        request = task_pb2.CreateTaskRequest(id=self.id, bundle=str(self.house.bundle(self.id)), **fields)
        request.options.type_url = "containerd.runc.v1.Options"
        request.options.value = options.SerializeToString()
        answer = await self.client.call(
            "containerd.task.v2.Task", "Create", request, task_pb2.CreateTaskResponse, timeout_s=LIMIT_S
        )
        return int(answer.pid)

    async def exec(self, exec_id: str, args: list[str], **fields: Any) -> None:
        process = {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"}
        request = task_pb2.ExecProcessRequest(id=self.id, exec_id=exec_id, **fields)
        request.spec.value = json.dumps(process).encode()
        await self.client.call("containerd.task.v2.Task", "Exec", request, Empty, timeout_s=LIMIT_S)


def _exec_of(event: Message) -> str:
    if isinstance(event, events_pb2.TaskExit):
        return "" if event.id == event.container_id else event.id
    return str(getattr(event, "exec_id", ""))


@asynccontextmanager
async def open_house(
    directory: Path, rootfs: Path, *, worker: str = "dunnage.worker.main:main"
) -> AsyncIterator[House]:
    with (
        local.hugetlb_mounted(),
        tempfile.TemporaryDirectory(prefix="d") as short,  # the groups' sockets lie below it
        keeper_running(Path(short) / "state", worker) as keeper,
    ):
        house = House(directory, rootfs, Path(short) / "state", keeper)
        server = Server({publisher.SERVICE: {"Forward": Method(forward_pb2.ForwardRequest, house.forward)}}, log=LOG)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(str(directory / "events"))
        listener.listen()
        accepted = 0

        def accept() -> None:
            nonlocal accepted
            accepted += 1
            server.attach(listener.accept()[0], f"events#{accepted}")

        asyncio.get_running_loop().add_reader(listener, accept)
        try:
            yield house
        finally:
            house.close()
            await server.close()
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
            root = directory / "root" / NAMESPACE
            for container in os.listdir(root) if root.is_dir() else ():
                force = ["runc", "--root", str(root), "delete", "--force", container]
                subprocess.run(force, check=False)  # noqa: ASYNC221 - nothing else is left to run
