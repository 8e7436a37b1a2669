"""One life of a worker: a Task service over a ``World``, which may end before any effect that outlives it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from google.protobuf.message import Message
from tests.property.world import RuntimeCall, World
from tests.runtime.local import Exit

from dunnage.api import ttrpc_pb2
from dunnage.cgroups.paths import Cgroup
from dunnage.container.bundle import Bundle, untold
from dunnage.container.container import Container
from dunnage.container.facts import IO, Checkpoint, Ended, Fact, Mount, Options
from dunnage.container.group import Group
from dunnage.container.host import Death
from dunnage.container.states import State
from dunnage.errors import Error
from dunnage.runtime.client import Runtime
from dunnage.service.codes import translate
from dunnage.service.task import TaskService
from dunnage.stdio import PipeBudget
from dunnage.ttrpc.connection import Requested
from dunnage.ttrpc.errors import RpcError
from dunnage.ttrpc.server import Call

NAMESPACE = "default"
ID = "c1"
LOG = logging.getLogger("dunnage.tests.property")


class Dead(BaseException):
    """The worker has ended: nothing it does has any effect."""


class Answer(NamedTuple):
    """What a client was told: a message or an error, when so many events had been told."""

    message: Message | None
    error: RpcError | None
    events: int


class Request:
    """One call of the client, asked anew of each worker until it has its answer."""

    def __init__(self, method: str, message: Message) -> None:
        self.method = method
        self.message = message
        self.answer: Answer | None = None


class Life:
    """The worker as its containers see it (``Host``, ``Keep`` and ``Spawner``), and as its client does (``serve``).

    ``fuse``: it dies before that many effects more; None: it lives on.
    """

    def __init__(self, world: World, path: str, number: int, ended: dict[str, Ended]) -> None:
        self.world = world
        self.number = number
        self.fuse: int | None = None
        self.is_over = False
        self.pipe_budget = PipeBudget()
        self.oom = OomWatch(world)
        self.tasks: set[asyncio.Task[None]] = set()
        self._path = path
        self._ended = ended
        self._bundles: list[Bundle] = []
        self._group = Group(NAMESPACE, "group", "unix:///nowhere")
        service = TaskService(
            self._group,
            make_container=self._make_container,
            on_deleted=self._on_deleted,
            on_shutdown=lambda group: None,
            recall=ended.get,
            read_file=self._read_file,
            log=LOG,
        )
        self._methods = service.methods()

    @property
    def container(self) -> Container | None:
        return self._group.containers.get(ID)

    def effect(self) -> None:
        """Something that outlives the worker is about to be done."""
        if self.fuse is not None:
            self.fuse -= 1
            self.is_over = self.is_over or self.fuse < 0
        if self.is_over:
            raise Dead

    # The worker's own part

    def serve(self, request: Request, *, replayed: bool = False) -> None:
        async def answer() -> None:
            message, refusal = None, None
            call = Call(Requested(1, ttrpc_pb2.Request(), False), "test", os.getpid(), None, replayed=replayed)
            try:
                answered = self._methods[request.method].handler(request.message, call)
                message = answered if isinstance(answered, Message) else await answered
            except Exception as error:
                refusal = translate(error)
                if not isinstance(error, Error):
                    raise
            self.effect()
            request.answer = Answer(message, refusal, len(self.world.events))

        self._begin(answer())

    def take_up(self, then: Sequence[Request]) -> None:
        """Go on where the worker before this one stopped, as ``worker.recovery`` does, and serve what it did not."""

        async def go_on() -> None:
            name = f"bundle:{NAMESPACE}/{ID}"
            if name in self.world.store:
                bundle = self._open_bundle()
                if bundle.read_launch() is None:
                    self.release(name)  # it was deleted
                else:
                    await self._take_up(bundle)
            for pid in sorted(self.world.claimed - set(self.world.watched)):
                self.watch(pid, _ignore)  # nobody's any more: only to be reaped
            for request in then:
                self.serve(request, replayed=True)

        self._begin(go_on())

    async def _take_up(self, bundle: Bundle) -> None:
        record = bundle.read_record()
        for fact in untold(record, len(self.world.events)) if record is not None else ():
            self._tell(fact)
        checkpoint = Checkpoint(*record["checkpoint"]) if record is not None else Checkpoint()
        container = self._container(bundle, checkpoint)
        if record is None or (record["init"]["state"] == State.CREATED.value and not record["init"]["pid"]):
            for verb in ("create", "delete"):
                await self.wait_inherited(f"runtime:{NAMESPACE}/{ID}:{verb}")
            await container.undo_create()
            container.close()
            return
        await container.restore(record, {})
        self._group.containers[ID] = container
        if container.init.state is State.DELETED:
            self._on_deleted(self._group, container)

    def close(self) -> None:
        """Nothing of it goes on."""
        self.is_over = True
        self.world.watched.clear()
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        for bundle in self._bundles:
            bundle.close()

    def _begin(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), Dead):
            raise AssertionError("the worker failed in an unforeseen way") from task.exception()

    def _open_bundle(self) -> Bundle:
        bundle = _Bundle.open(self._path)
        assert isinstance(bundle, _Bundle)
        bundle.effect, bundle.files = self.effect, self.world.files
        self._bundles.append(bundle)
        return bundle

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
        bundle = self._open_bundle()
        self._ended.pop(ID, None)
        bundle.write_launch({"group": "group"})
        self.store(f"bundle:{NAMESPACE}/{ID}", bundle.directory)
        return self._container(bundle, checkpoint)

    def _container(self, bundle: Bundle, checkpoint: Checkpoint) -> Container:
        runtime = Runtime(
            "/bin/true",
            root="/nowhere",
            log_path=bundle.log_path,
            systemd_cgroup=False,
            spawner=self,
            env={},
            scope=NAMESPACE,
        )
        return Container(
            NAMESPACE,
            ID,
            bundle,
            io=IO(),
            rootfs=(),
            options=Options(),
            runtime=runtime,
            host=self,
            tell=self._tell,
            events_written=lambda: len(self.world.events),
            log=LOG,
            env={},
            io_drain_timeout_s=5,
            checkpoint=checkpoint,
        )

    def _tell(self, fact: Fact) -> None:
        self.effect()
        self.world.events.append(fact)

    def _on_deleted(self, group: Group, container: Container) -> None:
        self.effect()
        self._ended[ID] = container.init.ended
        container.bundle.forget()
        group.containers.pop(container.id, None)
        container.close()

    # container.Host

    @property
    def keep(self) -> Life:
        return self

    def store(self, name: str, fd: int) -> None:
        self.effect()
        self.world.store.add(name)

    def release(self, name: str) -> None:
        self.effect()
        self.world.store.discard(name)

    def watch(self, pid: int, on_death: Callable[[Death], None]) -> Watch:
        self.effect()
        if self.world.processes[pid].reaped:
            raise ProcessLookupError(pid)
        self.world.claimed.add(pid)
        self.world.watched[pid] = on_death
        return Watch(self, pid)

    def see(self, pid: int) -> None:
        """A watched process is found dead: written down, then reaped."""
        on_death = self.world.watched.pop(pid)
        on_death(Death(self.world.processes[pid].status, 1_700_000_000_000_000_000 + pid))
        self.effect()
        self.world.processes[pid].reaped = True
        self.world.claimed.discard(pid)

    async def wait_inherited(self, call: str) -> int | None:
        status = None
        for found in list(self.world.inherited(call, self.number)):
            status = await found.end()
            found.waited_for = True
        return status

    async def open_elsewhere(self, path: str, make: bool) -> int:
        raise AssertionError("no history has a log")

    async def _read_file(self, path: str) -> bytes:
        raise AssertionError("no history has options")

    async def run_elsewhere(self, name: str, entry: str, argument: object, what: str) -> None:
        raise AssertionError("no history has a checkpoint")

    async def mount(self, name: str, rootfs: str, mounts: Sequence[Mount]) -> None:
        raise AssertionError("no history has a rootfs")

    async def unmount(self, name: str, rootfs: str) -> None:
        raise AssertionError("no history has a rootfs")

    # runtime.Spawner

    async def run(
        self,
        name: str,
        argv: list[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        fds: Mapping[int, int],
        deadline_s: float,
    ) -> Exit:
        self.effect()
        call = RuntimeCall(name, argv, self.number)
        self.world.calls.append(call)
        status = await call.end()
        call.waited_for = True
        if self.is_over:
            raise Dead
        self.world.write_output(call, fds[1])
        return Exit(status, None) if status < 128 else Exit(None, status - 128)


class OomWatch:
    """Sees the world's count of kills when it is asked to look, or told to (``look``)."""

    unified = False

    def __init__(self, world: World) -> None:
        self._world = world
        self._on_oom: Callable[[int], None] | None = None
        self._told = 0

    def watch(self, name: str, cgroup: Cgroup, on_oom: Callable[[int], None], *, told: int = 0) -> None:
        self._on_oom, self._told = on_oom, told
        self.look()

    def final(self, name: str) -> int:
        return self.look()

    def look(self) -> int:
        new = self._world.oom_kills - self._told
        if self._on_oom is None or not new:
            return 0
        self._told = self._world.oom_kills
        self._on_oom(self._told)
        return new

    def unwatch(self, name: str) -> None:
        self._on_oom = None

    def close(self) -> None:
        self._on_oom = None


class Watch:
    def __init__(self, life: Life, pid: int) -> None:
        self.pid = pid
        self._life = life

    def signal(self, number: int) -> None:
        self._life.effect()
        process = self._life.world.processes[self.pid]
        if process.reaped:
            raise ProcessLookupError(self.pid)
        self._life.world.die(process, 128 + number)

    def close(self) -> None:
        if self._life.world.watched.get(self.pid) is not None and not self._life.is_over:
            self._life.world.watched[self.pid] = _ignore


class _Bundle(Bundle):
    """Its files are the world's. Each change of one is an effect."""

    effect: Callable[[], None]
    files: dict[str, str]

    def _read(self, name: str) -> str:
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def _write(self, name: str, text: str, mode: int) -> None:
        self.effect()
        self.files[name] = text

    def make_work(self) -> None:
        self.effect()

    def remove(self, name: str) -> None:
        self.effect()
        self.files.pop(name, None)


def _ignore(death: Death) -> None:
    """Nobody wants to know."""
