"""A node: making containers without containerd, finding those that are there, and asking every worker of the machine.

`Node` does what containerd does, against the same worker: it makes a bundle, has the launcher start a worker for it,
and speaks ttrpc to that worker. It also reads the node sockets of every key, those that a containerd drives included.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dunnage import errors
from dunnage.api import node_pb2, task_pb2
from dunnage.client import launch
from dunnage.client.bundle import (
    DEFAULT_NAMESPACE,
    DEFAULT_STATE,
    LOCAL_KEY,
    Bundle,
    bundles_directory,
    find_bundles,
    new_id,
)
from dunnage.client.checkpoint import Saved, check_images
from dunnage.client.connection import NODE_SERVICE, TASK_SERVICE, Connection
from dunnage.client.container import DETACHED, Container, Process, pipes, stats_of
from dunnage.client.creation import CREATE_TIMEOUT_S, Wish, undo_create, whole_path
from dunnage.client.failures import explaining
from dunnage.client.listing import NodeStatus, event, listed, node_status
from dunnage.client.settings import Prepared, Settings, prepare
from dunnage.client.stats import Stats
from dunnage.client.stdio import OPEN, PIPE, Stdio, Streams
from dunnage.client.values import Event, Finished, Listed, Status

_NODE_TIMEOUT_S = 5.0
_EVENTS_WAIT_MS = 20_000
_KEYS_INTERVAL_S = 1.0


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
        checkpoint: Path | str | None = None,
    ) -> Container:
        """Create a container, not started yet.

        A detached one without streams of its own writes to its log; with `keep_stdin` its stdin waits for a writer.
        With `checkpoint`, a directory of criu's images, starting it restores them; settings, root included, must be
        those of the container that they were taken of (`restore` knows them itself).

        AlreadyExists where the id is taken; any failure leaves nothing behind, a cancellation neither.
        """
        images = "" if checkpoint is None else check_images(Path(checkpoint))

        async def prepared(bundle: Bundle, terminal: bool) -> Prepared:
            return prepare(settings, bundle, terminal=terminal)

        wish = Wish(whole_path(settings.runtime), stdio or Stdio(), detached, remove_when_stopped, images)
        return await self._create(id, wish, prepared, own_stdio=stdio is None, keep_stdin=keep_stdin)

    async def restore(
        self,
        directory: Path | str,
        *,
        id: str | None = None,
        stdio: Stdio | None = None,
        detached: bool = False,
        keep_stdin: bool = False,
        remove_when_stopped: bool = False,
    ) -> Container:
        """Create a container from a checkpoint that `Container.checkpoint` made; it goes on when it is started.

        Its id is the one that it had, unless another is given; the rest is as in `create`. NotFound where there is no
        such directory; AlreadyExists where the id is taken.
        """
        saved = Saved.read(Path(directory))
        saved.check_terminal(stdio is not None and stdio.terminal)
        wish = Wish(saved.record.runtime, stdio or Stdio(), detached, remove_when_stopped, str(saved.directory))
        id = saved.record.id if id is None else id
        return await self._create(id, wish, saved.prepare, own_stdio=stdio is None, keep_stdin=keep_stdin)

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
        explain = explaining(bundle.path)
        connection = Connection(bundle.read_address(), TASK_SERVICE, check=bundle.check_exists, explain=explain)
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

    async def containers(self, *, keys: Sequence[str] | None = None) -> list[Listed]:
        """Every container of every key, or of those given; a key whose worker does not answer has none."""
        answers = await self._ask_all("List", node_pb2.ListRequest(), node_pb2.ListResponse, keys)
        return [listed(key, one) for key, answer in answers for one in answer.containers]

    async def stats(self, one: Listed) -> Stats:
        """What a container of any key has used so far; NotFound or Unavailable where it is gone."""
        self._check_open()
        if not one.address:
            raise errors.NotFound(f"container {one.id} has no worker any more")
        connection = Connection(one.address, TASK_SERVICE)
        try:
            return await stats_of(connection, one.id)
        finally:
            await connection.close()

    async def delete_ended(self, found: Sequence[Listed]) -> list[Listed]:
        """Have execs forgotten that were begun detached and have ended: nobody else does. Returns `found` without them.

        Only local containers are looked at; a containerd's execs are that containerd's.
        """
        self._check_open()
        return [await self._delete_ended_of(one) if one.key == LOCAL_KEY else one for one in found]

    async def status(self) -> list[NodeStatus]:
        """The processes behind every key that answers."""
        answers = await self._ask_all("Status", node_pb2.StatusRequest(), node_pb2.StatusResponse)
        return [node_status(answer) for _, answer in answers]

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
        id: str | None,
        wish: Wish,
        prepare: Callable[[Bundle, bool], Awaitable[Prepared]],
        *,
        own_stdio: bool,
        keep_stdin: bool,
    ) -> Container:
        self._check_open()
        bundle = Bundle(self.state, self.namespace, new_id() if id is None else id)
        bundle.make()
        if own_stdio:
            log = bundle.log_path if wish.detached else None
            wish = wish._replace(stdio=Stdio(stdin=OPEN if keep_stdin else None, stdout=log, stderr=log))
        with bundle.being_made():
            return await self._create_in(bundle, wish, prepare)

    async def _create_in(
        self, bundle: Bundle, wish: Wish, prepare: Callable[[Bundle, bool], Awaitable[Prepared]]
    ) -> Container:
        streams: Streams | None = None
        connection: Connection | None = None
        try:
            prepared = await prepare(bundle, wish.stdio.terminal)
            wish.stdio.apply(prepared.spec["process"])
            bundle.write_config(prepared.spec)
            bundle.write_record(wish.to_record(bundle, prepared))
            streams = Streams(wish.stdio, bundle.stdio_path, "")
            streams.prepare()
            address = await launch.start(bundle.path, self.namespace, bundle.id, self._launcher)
            explain = explaining(bundle.path)
            connection = Connection(address, TASK_SERVICE, check=bundle.check_exists, explain=explain)
            container = Container(bundle, connection, streams, on_close=self._opened.discard)
            await connection.call_to_its_end(
                "Create",
                wish.to_request(bundle, prepared, streams),
                task_pb2.CreateTaskResponse,
                timeout_s=CREATE_TIMEOUT_S,
            )
            await streams.begin()
            self._check_open()  # nobody would close what comes after a close
        except BaseException:
            await undo_create(bundle, connection, streams)
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
                for one in answer.events:
                    after = one.sequence
                    if whole:
                        queue.put_nowait(event(key, one.envelope))
                whole, wait_ms = True, _EVENTS_WAIT_MS
        except errors.Unavailable:
            return  # the last worker of this key has gone; if it comes back its key is followed again
        finally:
            await connection.close()

    async def _delete_ended_of(self, one: Listed) -> Listed:
        detached = [exec_id for exec_id in one.execs if exec_id.startswith(DETACHED)]
        if not detached:
            return one
        gone: set[str] = set()
        connection = Connection(one.address, TASK_SERVICE)
        try:
            async with asyncio.timeout(_NODE_TIMEOUT_S):
                for exec_id in detached:
                    process = Process(connection, one.id, exec_id, Streams(Stdio(), one.bundle, ""), started=True)
                    try:
                        if (await process.state()).status is not Status.STOPPED:
                            continue
                        await process.delete()
                    except errors.NotFound:
                        pass  # somebody else has deleted it
                    gone.add(exec_id)
        except (errors.Error, TimeoutError):
            pass  # it stays in the list: whoever looks next tries again
        finally:
            await connection.close()
        return one._replace(execs=tuple(exec_id for exec_id in one.execs if exec_id not in gone))

    async def _ask_all(
        self, method: str, request: Any, response: Any, keys: Sequence[str] | None = None
    ) -> Sequence[tuple[str, Any]]:
        self._check_open()
        keys = self.keys() if keys is None else keys
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
            if not bundle.exists:
                return  # somebody else was faster
            raise errors.FailedPrecondition(f"{reason}; and cleaning up after it failed: {error}") from error
        bundle.remove()


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
