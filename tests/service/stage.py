"""A Task service without keeper and containerd: real runtimes, real children, real mounts, and what was told.

``Stage.call`` speaks to a service as ttrpc does. The host watches processes that come to this one as orphans (see
``tests.runtime.local.child_subreaper``), peeks and reaps as the worker does.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from google.protobuf.message import Message
from tests.runtime.local import Exit, LocalSpawner

from dunnage.api import task_pb2, ttrpc_pb2
from dunnage.cgroups import open_oom_watch
from dunnage.container.bundle import Bundle
from dunnage.container.container import Container
from dunnage.container.facts import IO, Checkpoint, Ended, Fact, Mount, Options
from dunnage.container.group import Group
from dunnage.container.host import Death
from dunnage.errors import DeadlineExceeded, Error, InvalidArgument
from dunnage.linux import mount
from dunnage.runtime.client import Runtime
from dunnage.service import messages
from dunnage.service.codes import translate
from dunnage.service.task import TaskService
from dunnage.spec import make_spec
from dunnage.stdio import PipeBudget, file
from dunnage.ttrpc.connection import Requested
from dunnage.ttrpc.errors import RpcError
from dunnage.ttrpc.server import Call

NAMESPACE = "default"
LIMIT_S = 30.0


class Keep:
    """The keeper's store: which names are in it."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def store(self, name: str, fd: int) -> None:
        os.fstat(fd)  # a real one copies it
        self.names.add(name)

    def release(self, name: str) -> None:
        self.names.discard(name)


class Watch:
    def __init__(self, host: Host, pid: int, on_death: Callable[[Death], None]) -> None:
        self.pid = pid
        self._host = host
        self._on_death: Callable[[Death], None] | None = on_death
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._dead)
        self.over = asyncio.Event()
        host.watches.add(self)

    def signal(self, number: int) -> None:
        if self._pidfd < 0:
            raise ProcessLookupError(self.pid)
        signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        self._on_death = None

    def stop(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _dead(self) -> None:
        seen = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if seen is None:
            return
        self.stop()
        self._host.watches.discard(self)
        self.over.set()
        status = seen.si_status if seen.si_code == os.CLD_EXITED else 128 + seen.si_status
        if self._on_death is not None:
            self._on_death(Death(status, 1_700_000_000_000_000_000 + self.pid))
        os.waitpid(self.pid, 0)


class Host:
    """``container.Host`` for children of this very process."""

    def __init__(self) -> None:
        self.keep = Keep()
        self.oom = open_oom_watch(log=logging.getLogger("dunnage.tests.stage"))
        self.pipe_budget = PipeBudget()
        self.watches: set[Watch] = set()
        self.hanging_mount: asyncio.Event | None = None

    def watch(self, pid: int, on_death: Callable[[Death], None]) -> Watch:
        return Watch(self, pid, on_death)

    async def wait_inherited(self, call: str) -> int | None:
        """There was no former worker."""
        return None

    async def open_elsewhere(self, path: str, make: bool) -> int:
        return file.open_log(path) if make else file.open_existing(path)

    async def run_elsewhere(self, name: str, entry: str, argument: object, what: str) -> None:
        module, _, function = entry.partition(":")
        await self._in_child(getattr(importlib.import_module(module), function), argument)

    async def mount(self, name: str, rootfs: str, mounts: Sequence[Mount]) -> None:
        if self.hanging_mount is not None:
            self.hanging_mount.set()
            raise DeadlineExceeded(f"mounting the rootfs {rootfs} did not end within 0 s; process 1 hangs")
        argument = {"rootfs": rootfs, "mounts": [mounted._asdict() for mounted in mounts]}
        await self._in_child(mount.mount_all, argument)

    async def unmount(self, name: str, rootfs: str) -> None:
        await self._in_child(mount.unmount_all, {"rootfs": rootfs})

    async def _in_child(self, entry: Callable[[Any, Mapping[str, int]], int], argument: object) -> None:
        error = os.memfd_create("error")
        try:
            pid = os.fork()
            if pid == 0:
                _become(entry, argument, error)
            _, status = os.waitpid(pid, 0)  # noqa: ASYNC222 - the mounts of these tests do not hang
            if status:
                raise Error(os.pread(error, 65536, 0).decode().strip())
        finally:
            os.close(error)


def _become(entry: Callable[[Any, Mapping[str, int]], int], argument: object, error: int) -> NoReturn:
    status = 1
    try:
        status = entry(argument, {"error": error})
    finally:
        os._exit(status)


async def read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from error


class Spawner(LocalSpawner):
    """Runs the runtime; a test may hold back what a call returns, or do something before it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}
        self.in_flight: set[str] = set()

    async def run(self, name: str, argv: Sequence[str], **settings: Any) -> Exit:
        verb = name.rpartition(":")[2]
        if verb in self.before:
            await self.before[verb]()
        self.in_flight.add(name)
        try:
            ended = await super().run(name, argv, **settings)
        finally:
            self.in_flight.discard(name)
        if verb in self.after:
            await self.after[verb]()
        return ended


class Stage:
    def __init__(self, directory: Path, rootfs: Path, command: str) -> None:
        self.directory = directory
        self.rootfs = rootfs
        self.command = command
        self.host = Host()
        self.spawner = Spawner()
        self.facts: list[tuple[str, Fact]] = []
        self.shut_down = 0
        self.recalled: dict[str, Ended] = {}
        self.deadline_s = LIMIT_S
        self.drain_s = 5.0
        self.log = logging.getLogger("dunnage.tests.stage")
        self.group = Group(NAMESPACE, "group", "unix:///nowhere")
        self.service = TaskService(
            self.group,
            make_container=self._make_container,
            on_deleted=self._on_deleted,
            on_shutdown=self._on_shutdown,
            recall=self.recalled.get,
            read_file=read_file,
            log=self.log,
        )
        self._methods = self.service.methods()
        self._changed = asyncio.Event()

    # What a client does

    async def call(self, method: str, request: Message, *, replayed: bool = False) -> Any:
        """Ask the service; raises RpcError."""
        event = Requested(1, ttrpc_pb2.Request(method=method), False)
        try:
            answer = self._methods[method].handler(request, Call(event, "stage", os.getpid(), None, replayed=replayed))
            return await answer if asyncio.iscoroutine(answer) else answer
        except Exception as error:
            raise translate(error) from error

    async def refusal(self, method: str, request: Message) -> tuple[int, str]:
        """The code and text of a call that fails."""
        try:
            answer = await self.call(method, request)
        except RpcError as error:
            return int(error.code), error.message
        raise AssertionError(f"{method} answered {answer}")

    def bundle(self, container: str, args: list[str], **settings: Any) -> Path:
        """A bundle on busybox."""
        path = self.directory / container
        path.mkdir()
        settings = {"rootfs_path": str(self.rootfs), "cgroups_path": f"/t-{os.getpid()}/{container}"} | settings
        host_pids = settings.pop("host_pids", False)
        spec = make_spec(args, env=["PATH=/bin"], **settings)
        if host_pids:
            spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "pid"]
        self.write_spec(path, spec)
        return path

    def write_spec(self, path: Path, spec: Mapping[str, Any]) -> None:
        (path / "config.json").write_text(json.dumps(spec))

    async def create(self, container: str, args: list[str], **settings: Any) -> int:
        request = task_pb2.CreateTaskRequest(id=container)
        for name in ("stdin", "stdout", "stderr", "terminal", "rootfs"):
            if name in settings:
                value = settings.pop(name)
                if name == "rootfs":
                    request.rootfs.extend(value)
                else:
                    setattr(request, name, value)
        request.bundle = str(self.bundle(container, args, **settings))
        answer = await self.call("Create", request)
        return int(answer.pid)

    async def run(self, container: str, args: list[str], **settings: Any) -> int:
        pid = await self.create(container, args, **settings)
        await self.call("Start", task_pb2.StartRequest(id=container))
        return pid

    async def exec(self, container: str, exec_id: str, args: list[str], **settings: Any) -> None:
        process = {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"}
        request = task_pb2.ExecProcessRequest(id=container, exec_id=exec_id, **settings)
        request.spec.value = json.dumps(process).encode()
        await self.call("Exec", request)

    async def start(self, container: str, exec_id: str = "") -> int:
        answer = await self.call("Start", task_pb2.StartRequest(id=container, exec_id=exec_id))
        return int(answer.pid)

    async def wait(self, container: str, exec_id: str = "") -> task_pb2.WaitResponse:
        async with asyncio.timeout(LIMIT_S):
            answer: task_pb2.WaitResponse = await self.call("Wait", task_pb2.WaitRequest(id=container, exec_id=exec_id))
            return answer

    async def kill(self, container: str, exec_id: str = "", number: int = 9) -> None:
        await self.call("Kill", task_pb2.KillRequest(id=container, exec_id=exec_id, signal=number))

    async def delete(self, container: str, exec_id: str = "") -> task_pb2.DeleteResponse:
        answer: task_pb2.DeleteResponse = await self.call(
            "Delete", task_pb2.DeleteRequest(id=container, exec_id=exec_id)
        )
        return answer

    async def state(self, container: str, exec_id: str = "") -> task_pb2.StateResponse:
        answer: task_pb2.StateResponse = await self.call("State", task_pb2.StateRequest(id=container, exec_id=exec_id))
        return answer

    # What was told

    def told(self, container: str) -> list[str]:
        """The facts of a container in their order, each as its kind and, for an exec, its id."""
        return [
            " ".join(filter(None, (type(fact).__name__, getattr(fact, "exec_id", ""))))
            for whose, fact in self.facts
            if whose == container
        ]

    async def wait_told(self, container: str, what: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while what not in self.told(container):
                await self._changed.wait()

    def death_of_init(self, container: str) -> asyncio.Event:
        """Set when the death is seen, which is before it is told."""
        init, seen = self.group.container(container).init, asyncio.Event()
        set_exited = init.set_exited

        def see(death: Death) -> None:
            set_exited(death)
            seen.set()

        init.set_exited = see  # type: ignore[method-assign]  # nothing outside tells of it
        return seen

    # What a worker does

    def _make_container(
        self,
        group: Group,
        container_id: str,
        path: str,
        io: IO,
        rootfs: tuple[Mount, ...],
        options: Options,
        checkpoint: Checkpoint,
    ) -> Container:
        bundle = Bundle.open(path)
        self.host.keep.store(f"bundle:{NAMESPACE}/{container_id}", bundle.directory)
        return self.container(container_id, bundle, io=io, rootfs=rootfs, options=options, checkpoint=checkpoint)

    def container(self, container_id: str, bundle: Bundle, **settings: Any) -> Container:
        runtime = Runtime(
            settings["options"].binary_name or self.command,
            root=str(self.directory / "root"),
            log_path=bundle.log_path,
            systemd_cgroup=False,
            spawner=self.spawner,
            env=os.environ,
            deadline_s=self.deadline_s,
            scope=NAMESPACE,
        )

        def tell(fact: Fact) -> None:
            self.facts.append((container_id, fact))
            messages.event(container_id, fact)
            self._changed.set()
            self._changed = asyncio.Event()

        return Container(
            NAMESPACE,
            container_id,
            bundle,
            runtime=runtime,
            host=self.host,
            tell=tell,
            events_written=lambda: len(self.facts),
            log=self.log,
            env=os.environ,
            io_drain_timeout_s=self.drain_s,
            **settings,
        )

    def _on_deleted(self, group: Group, container: Container) -> None:
        container.bundle.forget()
        group.containers.pop(container.id, None)
        container.close()

    def _on_shutdown(self, group: Group) -> None:
        self.shut_down += 1

    async def close(self) -> None:
        for container in list(self.group.containers.values()):
            await container.destroy()
            self._on_deleted(self.group, container)
        for watch in list(self.host.watches):
            watch.stop()
        self.host.oom.close()


@contextmanager
def cgroups_removed() -> Iterator[None]:
    """The parent of the test's cgroups, which the runtimes leave."""
    yield
    for root in Path("/sys/fs/cgroup").iterdir():
        for path in (root / f"t-{os.getpid()}", Path("/sys/fs/cgroup") / f"t-{os.getpid()}"):
            if path.is_dir():
                path.rmdir()
