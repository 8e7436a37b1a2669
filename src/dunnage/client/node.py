"""A node: making containers without containerd, finding those that are there, and asking every worker of the machine.

`Node` does what containerd does, against the same worker: it makes a bundle, has the launcher start a worker for it,
and speaks ttrpc to that worker. It also reads the node sockets of every key, those that a containerd drives included.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from dunnage import errors
from dunnage.api import events_pb2, forward_pb2, mount_pb2, node_pb2, options_pb2, task_pb2
from dunnage.client import launch
from dunnage.client.bundle import (
    DEFAULT_NAMESPACE,
    DEFAULT_STATE,
    LOCAL_KEY,
    Bundle,
    Record,
    bundles_directory,
    find_bundles,
    new_id,
)
from dunnage.client.connection import NODE_SERVICE, TASK_SERVICE, Connection
from dunnage.client.container import Container, Process, pipes
from dunnage.client.settings import Prepared, Settings, prepare
from dunnage.client.stdio import OPEN, PIPE, Stdio, Streams
from dunnage.client.values import Event, Finished, Listed, Status, read_time

_NODE_TIMEOUT_S = 5.0
_EVENTS_WAIT_MS = 20_000
_KEYS_INTERVAL_S = 1.0
_CREATE_TIMEOUT_S = 180.0


class WorkerProcess(NamedTuple):
    """One worker of a node and the group it serves."""

    name: str
    pid: int


class NodeStatus(NamedTuple):
    """The processes behind one key, and how many containers they have."""

    key: str
    version: str
    keeper_pid: int
    worker_pid: int
    worker_started: datetime | None
    containerd_address: str
    containers: int
    workers: tuple[WorkerProcess, ...]


class Node:
    """This machine's containers. `state` is where every key has its directory; `namespace` keeps local ids apart."""

    def __init__(
        self,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        state: Path = DEFAULT_STATE,
        launcher: Sequence[str] | None = None,
    ) -> None:
        self.namespace = namespace
        self.state = state
        self.silent_keys: set[str] = set()
        """Keys that have somebody listening who did not answer when last asked."""
        self._launcher = launcher
        self._opened: set[Container] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of every container that was got here; the containers stay.

        Every later call is FailedPrecondition.
        """
        self._closed = True
        for container in list(self._opened):
            await container.close()

    async def create(
        self,
        settings: Settings,
        *,
        id: str | None = None,
        stdio: Stdio | None = None,
        detached: bool = False,
        keep_stdin: bool = False,
        remove_when_stopped: bool = False,
    ) -> Container:
        """Create a container, not started yet.

        A detached one without streams of its own writes to its log; with `keep_stdin` its stdin waits for a writer.

        AlreadyExists where the id is taken; any failure leaves nothing behind, a cancellation neither.
        """
        self._check_open()
        bundle = Bundle(self.state, self.namespace, new_id() if id is None else id)
        bundle.make()
        with bundle.being_made():
            return await self._create(bundle, settings, stdio, detached, keep_stdin, remove_when_stopped)

    async def run(
        self, settings: Settings, *, id: str | None = None, stdin: bytes = b"", timeout_s: float | None = None
    ) -> Finished:
        """Run a container to its end and remove it: its exit status and what it wrote.

        After `timeout_s` it is killed, and TimeoutError raised.
        """
        container = await self.create(settings, id=id, stdio=pipes(stdin=bool(stdin)))
        try:
            async with asyncio.timeout(timeout_s):
                await container.start()
                return await _communicate(container, stdin)
        finally:
            await container.remove(force=True)

    async def get(self, id: str) -> Container:
        """A local container that is there already. Its streams are the worker's; `attach` gives them to us."""
        self._check_open()
        bundle = Bundle(self.state, self.namespace, id)
        connection = Connection(bundle.read_address(), TASK_SERVICE, check=bundle.check_exists)
        streams = Streams(Stdio(), bundle.stdio_path, "")
        container = Container(bundle, connection, streams, started=True, on_close=self._opened.discard)
        self._opened.add(container)
        return container

    async def remove(self, id: str, *, force: bool = False) -> None:
        """Remove a local container, also one whose worker is gone (with `force`, or when it never came to a task)."""
        self._check_open()
        bundle = Bundle(self.state, self.namespace, id)
        bundle.check_exists()
        try:
            container = await self.get(id)
            await container.remove(force=force)
        except (errors.FailedPrecondition, errors.Unavailable) as error:
            if not force or not bundle.exists:
                raise
            await self._remove_dead(bundle, error)

    def local_ids(self) -> list[str]:
        """The ids of this namespace's local containers, running or not."""
        return [bundle.id for bundle in find_bundles(self.state, self.namespace)]

    def local_namespaces(self) -> list[str]:
        """The namespaces that have local containers."""
        try:
            return sorted(entry.name for entry in os.scandir(bundles_directory(self.state)) if entry.is_dir())
        except FileNotFoundError:
            return []

    def dead_containers(self, living: Sequence[Listed]) -> list[Listed]:
        """Local containers of every namespace whose bundle is there, and that no worker has any more."""
        known = {one.bundle for one in living}
        bundles = [bundle for namespace in self.local_namespaces() for bundle in find_bundles(self.state, namespace)]
        return [
            Listed(LOCAL_KEY, bundle.namespace, bundle.id, Status.UNKNOWN, 0, None, bundle.path)
            for bundle in bundles
            if bundle.path not in known
        ]

    def keys(self) -> list[str]:
        """Every key that has a node socket: ``local``, and one for each containerd."""
        try:
            return sorted(entry.name for entry in os.scandir(self.state) if self._socket_of(entry.name).is_socket())
        except FileNotFoundError:
            return []

    async def containers(self) -> list[Listed]:
        """Every container of every key; a key whose worker does not answer has none."""
        answers = await self._ask_all("List", node_pb2.ListRequest(), node_pb2.ListResponse)
        return [_listed(key, one) for key, answer in answers for one in answer.containers]

    async def status(self) -> list[NodeStatus]:
        """The processes behind every key that answers."""
        answers = await self._ask_all("Status", node_pb2.StatusRequest(), node_pb2.StatusResponse)
        return [_node_status(answer) for _, answer in answers]

    async def events(self, *, history: bool = False) -> AsyncGenerator[Event, None]:
        """Events as they happen, of every key, also of keys that come later; `history` begins with what is remembered.

        Ends only by being closed or cancelled.
        """
        self._check_open()
        queue: asyncio.Queue[Event] = asyncio.Queue()
        followed: dict[str, asyncio.Task[None]] = {}
        first = True
        try:
            while True:
                for key in self.keys():
                    if key not in followed or followed[key].done():
                        # of a key that appears while we listen, everything is news
                        followed[key] = asyncio.create_task(self._follow(key, queue, whole=history or not first))
                first = False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KEYS_INTERVAL_S):
                        yield await queue.get()
        finally:
            for task in followed.values():
                task.cancel()

    async def _create(
        self,
        bundle: Bundle,
        settings: Settings,
        stdio: Stdio | None,
        detached: bool,
        keep_stdin: bool,
        remove_when_stopped: bool,
    ) -> Container:
        if stdio is None:
            log = bundle.log_path if detached else None
            stdio = Stdio(stdin=OPEN if keep_stdin else None, stdout=log, stderr=log)
        streams: Streams | None = None
        connection: Connection | None = None
        try:
            prepared = prepare(settings, bundle, terminal=stdio.terminal)
            stdio.apply(prepared.spec["process"])
            bundle.write_config(prepared.spec)
            bundle.write_record(_record(bundle, settings, prepared, stdio, detached, remove_when_stopped))
            streams = Streams(stdio, bundle.stdio_path, "")
            streams.prepare()
            address = await launch.start(bundle.path, self.namespace, bundle.id, self._launcher)
            connection = Connection(address, TASK_SERVICE, check=bundle.check_exists)
            container = Container(bundle, connection, streams, on_close=self._opened.discard)
            await connection.call_to_its_end(
                "Create",
                _create_request(bundle, settings, prepared, stdio, streams, self.state),
                task_pb2.CreateTaskResponse,
                timeout_s=_CREATE_TIMEOUT_S,
            )
            await streams.begin()
        except BaseException:
            await _undo_create(bundle, connection, streams)
            raise
        self._opened.add(container)
        return container

    async def _follow(self, key: str, queue: asyncio.Queue[Event], *, whole: bool) -> None:
        connection = Connection(self._socket_of(key), NODE_SERVICE, connect_timeout_s=0)
        after, wait_ms = 0, 0
        try:
            while True:
                request = node_pb2.EventsRequest(after=after, wait_ms=wait_ms)
                answer = await connection.call("Events", request, node_pb2.EventsResponse)
                for event in answer.events:
                    after = event.sequence
                    if whole:
                        queue.put_nowait(_event(key, event.envelope))
                whole, wait_ms = True, _EVENTS_WAIT_MS
        except errors.Unavailable:
            return  # the last worker of this key has gone; if it comes back its key is followed again
        finally:
            await connection.close()

    async def _ask_all(self, method: str, request: Any, response: Any) -> Sequence[tuple[str, Any]]:
        self._check_open()
        keys = self.keys()
        answers = await asyncio.gather(*(self._ask(key, method, request, response) for key in keys))
        return [(key, answer) for key, answer in zip(keys, answers, strict=True) if answer is not None]

    async def _ask(self, key: str, method: str, request: Any, response: Any) -> Any:
        connection = Connection(self._socket_of(key), NODE_SERVICE, connect_timeout_s=0)
        try:
            answer = await connection.call(method, request, response, timeout_s=_NODE_TIMEOUT_S)
        except errors.Unavailable:
            return None  # a stale socket: `doctor` names it
        except errors.DeadlineExceeded:
            self.silent_keys.add(key)
            return None
        finally:
            await connection.close()
        self.silent_keys.discard(key)
        return answer

    def _check_open(self) -> None:
        if self._closed:
            raise errors.FailedPrecondition("the node is closed")

    def _socket_of(self, key: str) -> Path:
        return self.state / key / "node"

    async def _remove_dead(self, bundle: Bundle, reason: errors.Error) -> None:
        try:
            await launch.delete(bundle.path, self.namespace, bundle.id, self._launcher)
        except errors.Error as error:
            raise errors.FailedPrecondition(f"{reason}; and cleaning up after it failed: {error}") from error
        bundle.remove()


def _record(
    bundle: Bundle, settings: Settings, prepared: Prepared, stdio: Stdio, detached: bool, remove_when_stopped: bool
) -> Record:
    return Record(
        id=bundle.id,
        namespace=bundle.namespace,
        created_at=datetime.now(UTC).isoformat(),
        command=list(prepared.spec["process"]["args"]),
        root=prepared.root,
        runtime=settings.runtime,
        detached=detached,
        terminal=stdio.terminal,
        log=str(stdio.stdout) if isinstance(stdio.stdout, Path) else None,
        remove_when_stopped=remove_when_stopped,
    )


def _create_request(
    bundle: Bundle, settings: Settings, prepared: Prepared, stdio: Stdio, streams: Streams, state: Path
) -> task_pb2.CreateTaskRequest:
    # a root of our own for the runtime's state: an id of ours may be one of containerd's too
    # the worker's working directory is not ours: a path is said whole
    runtime = os.path.abspath(settings.runtime) if "/" in settings.runtime else settings.runtime
    options = options_pb2.Options(binary_name=runtime, root=str(state / LOCAL_KEY / "runtime"))
    stdin, stdout, stderr = streams.uris
    request = task_pb2.CreateTaskRequest(
        id=bundle.id,
        bundle=str(bundle.path),
        rootfs=[mount_pb2.Mount(type=one.type, source=one.source, options=one.options) for one in prepared.rootfs],
        terminal=stdio.terminal,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )
    request.options.type_url = options.DESCRIPTOR.full_name
    request.options.value = options.SerializeToString()
    return request


async def _undo_create(bundle: Bundle, connection: Connection | None, streams: Streams | None) -> None:
    if streams is not None:
        streams.close()
    if connection is None:
        with contextlib.suppress(errors.Error):  # no worker was asked for it yet
            connection = Connection(bundle.read_address(), TASK_SERVICE)
    if connection is not None:
        with contextlib.suppress(errors.Error):  # it seldom came to a container
            delete = task_pb2.DeleteRequest(id=bundle.id)
            await connection.call("Delete", delete, task_pb2.DeleteResponse, timeout_s=_CREATE_TIMEOUT_S)
        with contextlib.suppress(errors.Error):  # a worker that is gone has dropped the container with it
            shutdown = task_pb2.ShutdownRequest(id=bundle.id)
            await connection.call("Shutdown", shutdown, _empty(), timeout_s=_NODE_TIMEOUT_S)
        await connection.close()
    bundle.remove()


def _empty() -> Any:
    from google.protobuf.empty_pb2 import Empty

    return Empty


async def _communicate(process: Process, stdin: bytes) -> Finished:
    async def write() -> None:
        if process.streams.stdio.stdin is not PIPE or process.stdin is None:
            return
        with contextlib.suppress(ConnectionError):  # a process that ends without reading all of it
            process.stdin.write(stdin)
            await process.stdin.drain()
        await process.close_stdin()

    finished, _ = await asyncio.gather(process.wait_output(), write())
    return finished


def _listed(key: str, one: node_pb2.Container) -> Listed:
    status = Status.of_number(one.status)
    return Listed(
        key=key,
        namespace=one.namespace,
        id=one.id,
        status=status,
        pid=one.pid,
        exit_status=one.exit_status if status is Status.STOPPED else None,
        bundle=Path(one.bundle),
        runtime=one.runtime,
        created_at=read_time(one.created_at),
        exited_at=read_time(one.exited_at) if status is Status.STOPPED else None,
        execs=tuple(one.exec_ids),
    )


def _node_status(answer: node_pb2.StatusResponse) -> NodeStatus:
    return NodeStatus(
        key=answer.key,
        version=answer.version,
        keeper_pid=answer.keeper_pid,
        worker_pid=answer.worker_pid,
        worker_started=read_time(answer.worker_started),
        containerd_address=answer.containerd_address,
        containers=answer.containers,
        workers=tuple(WorkerProcess(worker.name, worker.pid) for worker in answer.workers),
    )


def _event(key: str, envelope: forward_pb2.Envelope) -> Event:
    return Event(
        at=read_time(envelope.timestamp),
        key=key,
        namespace=envelope.namespace,
        topic=envelope.topic,
        fields=_event_fields(envelope.event.type_url, envelope.event.value),
    )


def _event_fields(type_url: str, value: bytes) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    name = type_url.rpartition("/")[2].rpartition(".")[2]
    message_class = getattr(events_pb2, name, None)
    if message_class is None:
        return {"type_url": type_url}
    fields: dict[str, Any] = MessageToDict(
        message_class.FromString(value), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return fields
