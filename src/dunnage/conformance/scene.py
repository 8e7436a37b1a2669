"""What a case plays in: a shim, a namespace of its own, bundles, tasks, events; and at the end nothing may be left.

Scenes of one host share a containerd address, as the containers of a node do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from dunnage.api import bootstrap_pb2, options_pb2, task_pb2, task_types_pb2
from dunnage.conformance import bundle, leftovers
from dunnage.conformance.bundle import Bundle
from dunnage.conformance.check import Failed, equal, wait_until
from dunnage.conformance.events import Events, EventsService
from dunnage.conformance.shim import Address, Connection, Ran, Shim
from dunnage.conformance.stdio import Fifos
from dunnage.ttrpc.errors import ConnectionClosed, RpcError

SPEC_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
STATE: Final = "io.containerd.runtime.v2.task"
SOCKETS_LIMIT_S: Final = 8.0
"""How long a shim may take to go: five seconds for its last events, and some."""
FOREVER: Final = ("sleep", "100000")
Status = task_types_pb2


class Host:
    """containerd's place for one shim: a state directory, an address, the socket for events, a root filesystem."""

    def __init__(self, directory: Path, shim: Shim, runtime: str, log: logging.Logger) -> None:
        self.directory = directory
        self.shim = shim
        self.runtime = runtime
        self.log = log
        self.address = directory / "containerd.sock"
        self.events = EventsService(directory / "containerd.sock.ttrpc", log)
        self.rootfs = directory / "busybox"
        bundle.make_rootfs(self.rootfs)

    async def close(self) -> None:
        await self.events.close()

    def scene(self) -> Scene:
        return Scene(self, f"conf-{secrets.token_hex(5)}")


class Scene:
    def __init__(self, host: Host, namespace: str) -> None:
        self.host = host
        self.shim = host.shim
        self.namespace = namespace
        self.directory = host.directory / namespace
        (self.directory / "tmp").mkdir(parents=True)
        self.tasks: list[Task] = []
        self.addresses: list[Address] = []
        self.is_killed = False
        """Whether the case has killed a shim, which then removes no socket."""
        self.closers: list[Callable[[], None]] = []
        """What is called at the end, however the case ends."""
        self._bundles: list[Bundle] = []
        self._fifos: list[Fifos] = []

    @property
    def events(self) -> Events:
        return self.host.events.of(self.namespace)

    # Setting the scene

    def options(self, **fields: Any) -> options_pb2.Options:
        """The runtime's options, with the runtime that the suite was asked to use; empty ones for runc, as from ctr."""
        runtime = {} if self.host.runtime == "runc" else {"binary_name": self.host.runtime}
        return options_pb2.Options(**{**runtime, **fields})

    def spec(self, args: Sequence[str], *, id: str = "c1", **of: bool) -> dict[str, Any]:
        """A config.json with a cgroup of the scene, to be changed at will."""
        return bundle.config(args, cgroup=f"/{self.namespace}/{id}", **{"terminal": False, **of})

    def bundle(
        self,
        args: Sequence[str] = FOREVER,
        *,
        id: str = "c1",
        terminal: bool = False,
        rootfs: bool = True,
        private_pids: bool = True,
        spec: Mapping[str, Any] | None = None,
        annotations: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Bundle:
        """`spec` replaces the whole of what the other arguments describe."""
        if spec is None:
            made = self.spec(args, id=id, terminal=terminal, private_pids=private_pids)
            made["process"]["env"] += [f"{name}={value}" for name, value in (env or {}).items()]
            spec = {**made, **({"annotations": dict(annotations)} if annotations else {})}
        path = self.directory / "state" / STATE / self.namespace / id
        new = Bundle(path, spec, self.host.rootfs if rootfs else None, self.directory / "work" / id)
        self._bundles.append(new)
        return new

    def fifos(self, name: str = "c1", *, stdin: bool = False, terminal: bool = False) -> Fifos:
        new = Fifos(self.directory, name, stdin=stdin, terminal=terminal)
        self._fifos.append(new)
        return new

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "GOMAXPROCS": "2",
            "TTRPC_ADDRESS": f"{self.host.address}.ttrpc",
            "TMPDIR": os.fspath(self.directory / "tmp"),
        }

    def arguments(self, id: str) -> list[str]:
        return [
            *("-namespace", self.namespace),
            *("-address", os.fspath(self.host.address)),
            *("-publish-binary", "/usr/bin/containerd"),
            *("-id", id),
        ]

    async def run_start(
        self, of: Bundle, *, options: Message | None = None, stdin: bytes | None = None, **env: str
    ) -> Ran:
        """The action `start`, as containerd runs it; `stdin` instead of the options, byte for byte."""
        if stdin is None:
            stdin = self._start_input(of.id, options or self.options())
        return await self.shim.run(
            *self.arguments(of.id), "start", cwd=of.path, env={**self.environment, **env}, stdin=stdin
        )

    def _start_input(self, id: str, options: Message) -> bytes:
        any = pack(options)
        if not self.shim.wants_bootstrap:
            return any.SerializeToString()
        return self.bootstrap(id, any)

    def bootstrap(self, id: str, options: AnyMessage) -> bytes:
        """What containerd 2.3 and later give to `start`."""
        return bootstrap_pb2.BootstrapParams(
            instance_id=id,
            namespace=self.namespace,
            containerd_ttrpc_address=f"{self.host.address}.ttrpc",
            containerd_grpc_address=os.fspath(self.host.address),
            containerd_binary="/usr/bin/containerd",
            extensions=[bootstrap_pb2.Extension(value=options)],
            socket_dir="/run/containerd/s",
        ).SerializeToString()

    async def run_delete(self, of: Bundle) -> Ran:
        arguments = [*self.arguments(of.id), "-bundle", os.fspath(of.path), "delete"]
        return await self.shim.run(*arguments, cwd=of.path, env=self.environment)

    async def start_shim(self, of: Bundle, *, options: Message | None = None) -> Address:
        ran = await self.run_start(of, options=options)
        if ran.status:
            raise Failed(f"start exits with {ran.status}: {(ran.stdout + ran.stderr).decode(errors='replace')!r}")
        address = Address.parse(ran.stdout + ran.stderr)  # containerd does not tell them apart either
        self.addresses.append(address)
        return address

    async def task(self, of: Bundle, *, options: Message | None = None) -> Task:
        """The shim is there and connected to; nothing is created yet."""
        return await self.connected(of, await self.start_shim(of, options=options), options=options)

    async def connected(self, of: Bundle, address: Address, *, options: Message | None = None) -> Task:
        """The task of a shim that listens there."""
        task = Task(self, of, address, await Connection.open(address, self.namespace), options)
        self.tasks.append(task)
        return task

    async def created(
        self, *args: str, id: str = "c1", fifos: Fifos | None = None, options: Message | None = None, **of: Any
    ) -> Task:
        terminal = fifos is not None and fifos.terminal
        task = await self.task(self.bundle(args or FOREVER, id=id, terminal=terminal, **of), options=options)
        await task.create(**({} if fifos is None else fifos.fields))
        return task

    async def running(self, *args: str, **of: Any) -> Task:
        task = await self.created(*args, **of)
        await task.call("Start")
        return task

    async def paused(self, *args: str, **of: Any) -> Task:
        task = await self.running(*args, **of)
        await task.call("Pause")
        return task

    async def stopped(self, *args: str, **of: Any) -> Task:
        task = await self.running(*(args or ("true",)), **of)
        await task.call("Wait")
        return task

    async def deleted(self, *args: str, **of: Any) -> Task:
        task = await self.stopped(*args, **of)
        await task.call("Delete")
        return task

    async def checkpoint(self, *args: str, id: str = "c1", **of: Any) -> Path:
        """The image of a container that ran, and is gone for it; its id and its bundle are free again."""
        task = await self.running(*args, id=id, **of)
        image = self.directory / f"image-of-{id}"
        await task.call("Checkpoint", path=os.fspath(image), options=pack(options_pb2.CheckpointOptions(exit=True)))
        await task.call("Wait")
        await task.end()
        self.tasks.remove(task)
        equal("delete's exit status", (await self.run_delete(task.bundle)).status, 0)
        self.forget(task.bundle)
        return image

    def forget(self, of: Bundle) -> None:
        """What containerd does last: the bundle goes."""
        of.close()
        self._bundles.remove(of)
        shutil.rmtree((of.path / "work").resolve())
        shutil.rmtree(of.path)

    # Striking it

    async def close(self) -> None:
        """End every task and its shim as containerd does. What is left then, or goes wrong, fails the case."""
        for task in self.tasks:
            await task.end()
        for fifos in self._fifos:
            fifos.close()
        if not self.is_killed:
            await wait_until(
                lambda: not any(a.path.exists() for a in self.addresses), "its sockets go", SOCKETS_LIMIT_S
            )
        for of in self._bundles:
            if "runtime" in of.names:  # without it the older Go shims give up
                ran = await self.run_delete(of)
                equal(f"delete's exit status (stderr: {ran.stderr.decode(errors='replace')!r})", ran.status, 0)
                task_pb2.DeleteResponse.FromString(ran.stdout)
        left: list[str] = []

        def is_clean() -> bool:
            left[:] = leftovers.find(self.namespace, self.directory)
            return not left

        try:
            await wait_until(is_clean, "nothing is left", 5)
        except Failed:
            raise Failed(f"left behind: {'; '.join(left)}") from None

    async def abandon(self, *, failed: bool) -> None:
        """By force, whatever state it is in. A scene that failed has its bundles' `delete` run, as containerd would."""
        for task in self.tasks:
            task.connection.close()
        for close in self.closers:
            close()
        for of in self._bundles if failed else ():
            try:
                await self.run_delete(of)
            except (Failed, OSError) as error:
                self.host.log.warning("delete of %s in %s: %s", of.id, self.namespace, error)
        for fifos in self._fifos:
            fifos.close()
        for of in self._bundles:
            of.close()
        leftovers.sweep(self.namespace, self.directory)
        for address in self.addresses:
            address.path.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def log(self) -> str:
        """The last that the shims wrote into their logs."""
        return "\n".join(of.log.decode(errors="replace") for of in self._bundles)


class Task:
    """One container and the connection that containerd would have for it."""

    def __init__(
        self, scene: Scene, of: Bundle, address: Address, connection: Connection, options: Message | None
    ) -> None:
        self.scene = scene
        self.bundle = of
        self.address = address
        self.connection = connection
        self.options = options

    @property
    def id(self) -> str:
        return self.bundle.id

    async def call(self, method: str, *, timeout_s: float | None = None, **fields: Any) -> Any:
        return await self.connection.call(method, timeout_s=timeout_s, **{"id": self.id, **fields})

    async def create(self, **fields: Any) -> Any:
        """With empty options of the runtime, as ctr sends them, unless the task has others."""
        options = pack(self.options or self.scene.options())
        return await self.call("Create", **{"bundle": os.fspath(self.bundle.path), "options": options, **fields})

    async def exec(self, exec_id: str, *args: str, fifos: Fifos | None = None, **process: Any) -> None:
        """Exec, and nothing started yet."""
        spec = any_of_json(PROCESS_URL, bundle.process(args or FOREVER, **process))
        await self.call("Exec", exec_id=exec_id, spec=spec, **({} if fifos is None else fifos.fields))

    async def exec_with(self, exec_id: str, args: Sequence[str], **fields: Any) -> None:
        """The same with any fields of the request."""
        spec = any_of_json(PROCESS_URL, bundle.process(args))
        await self.call("Exec", exec_id=exec_id, spec=spec, **fields)

    async def started_exec(self, exec_id: str, *args: str, fifos: Fifos | None = None, **process: Any) -> int:
        await self.exec(exec_id, *args, fifos=fifos, **process)
        return int((await self.call("Start", exec_id=exec_id)).pid)

    async def stopped_exec(self, exec_id: str, *args: str) -> int:
        pid = await self.started_exec(exec_id, *(args or ("true",)))
        await self.call("Wait", exec_id=exec_id)
        return pid

    async def deleted_exec(self, exec_id: str) -> int:
        pid = await self.stopped_exec(exec_id)
        await self.call("Delete", exec_id=exec_id)
        return pid

    async def status(self, exec_id: str = "") -> int:
        return int((await self.call("State", exec_id=exec_id)).status)

    async def end(self) -> None:
        """Kill and delete what is there, shut down; containerd's way of removing a task by force."""
        await self.end_without_closing()
        self.connection.close()

    async def end_without_closing(self) -> None:
        """The same, and it is the shim that has to close the connection."""
        try:
            await self._remove()
            await self.call("Shutdown", timeout_s=3)
        except ConnectionClosed:
            pass  # the shim was asked before, or goes faster than its answer

    async def _remove(self) -> None:
        try:
            status = await self.status()
        except RpcError:
            return  # there is none, or no more
        if status == Status.PAUSED:
            await self.call("Resume")
        if status != Status.STOPPED:
            try:
                await self.call("Kill", signal=9, all=True)
                await self.call("Wait")
            except RpcError as error:
                if status != Status.CREATED:
                    raise Failed(f"the task cannot be killed at the end: {error}") from error
        told = len(self.scene.events.of("delete", self.id))
        await self.call("Delete")
        await self.scene.events.wait_for("delete", self.id, count=told + 1)  # some shims forget it over a Shutdown


def pack(message: Message) -> AnyMessage:
    """With the bare name, as containerd writes it."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def any_of_json(type_url: str, value: object) -> AnyMessage:
    return AnyMessage(type_url=type_url, value=json.dumps(value).encode())


async def together(*calls: Any) -> list[Any]:
    """All at once; what each gives, an exception too."""
    return list(await asyncio.gather(*calls, return_exceptions=True))
