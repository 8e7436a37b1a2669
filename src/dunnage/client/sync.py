"""The client without `await`: the same `Node`, `Container` and `Process`, their work done by one loop on one thread.

    with Node() as node:
        print(node.run(Settings(args=["id"])).stdout)

The thread is the node's own and ends with it. Any thread may call; Ctrl-C interrupts what waits, and a container that
was there before the call stays as it is. Streams are file descriptors, logs, or what `wait_output` and `Node.run`
collect: a PIPE to read piece by piece needs the asynchronous client.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal as signals
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from dunnage import errors
from dunnage.client import container as asynchronous_container
from dunnage.client import node as asynchronous_node
from dunnage.client.bundle import DEFAULT_NAMESPACE, DEFAULT_STATE, Record
from dunnage.client.listing import NodeStatus
from dunnage.client.settings import Settings
from dunnage.client.stats import Stats
from dunnage.client.stdio import Stdio
from dunnage.client.values import Event, Exit, Finished, Listed, State
from dunnage.spec import Resources

T = TypeVar("T")

_SIGNALS_S = 1.0


class Portal:
    """One event loop on a thread of its own; `call` runs a coroutine there and waits for it here."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._tasks: dict[concurrent.futures.Future[Any], asyncio.Task[Any]] = {}
        self.is_closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="dunnage-client", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. What interrupts the wait cancels it, and waits until it has tidied up.

        FailedPrecondition where the portal is closed, or another thread closes it.
        """
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._lock:
            if self.is_closed:
                work.close()
                raise errors.FailedPrecondition("the node is closed")
            self._loop.call_soon_threadsafe(self._begin, work, outcome)
        try:
            while not outcome.done():
                # a signal that the kernel gave to another thread wakes nobody here, and is seen at the next turn
                concurrent.futures.wait((outcome,), timeout=_SIGNALS_S)
            return outcome.result()
        except BaseException:
            if not outcome.done():
                self._loop.call_soon_threadsafe(self._cancel, outcome)
                concurrent.futures.wait((outcome,))
            raise

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancel what other threads wait for, do one thing more, and end the thread."""
        with self._lock:
            if self.is_closed:
                last.close()
                return
            self.is_closed = True
        try:
            asyncio.run_coroutine_threadsafe(self._end(last), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _begin(self, work: Coroutine[Any, Any, T], outcome: concurrent.futures.Future[T]) -> None:
        def tell(task: asyncio.Task[T]) -> None:
            del self._tasks[outcome]
            if task.cancelled():
                outcome.set_exception(errors.FailedPrecondition("the node was closed meanwhile"))
            elif (error := task.exception()) is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(task.result())

        self._tasks[outcome] = self._loop.create_task(work)
        self._tasks[outcome].add_done_callback(tell)

    def _cancel(self, outcome: concurrent.futures.Future[Any]) -> None:
        if outcome in self._tasks:
            self._tasks[outcome].cancel()

    async def _end(self, last: Coroutine[Any, Any, None]) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await last
        await self._loop.shutdown_asyncgens()


class Process:
    """The init or an exec of a container; see `dunnage.client.Process`."""

    def __init__(self, portal: Portal, inner: asynchronous_container.Process) -> None:
        self._portal = portal
        self._process = inner

    @property
    def id(self) -> str:
        return self._process.id

    @property
    def exec_id(self) -> str:
        return self._process.exec_id

    def start(self) -> int:
        """Start it; returns its pid on the host."""
        return self._portal.call(self._process.start())

    def wait(self) -> Exit:
        """Wait until it has ended."""
        return self._portal.call(self._process.wait())

    def wait_output(self) -> Finished:
        """Wait until it has ended, and read what it wrote to PIPEs."""
        return self._portal.call(self._process.wait_output())

    def kill(self, signal: int = signals.SIGTERM, *, all: bool = False) -> None:
        """Send a signal; `all` to every process of the container. NotFound where it has ended already."""
        self._portal.call(self._process.kill(signal, all=all))

    def state(self) -> State:
        return self._portal.call(self._process.state())

    def resize(self, columns: int, rows: int) -> None:
        """Set the size of its terminal; nothing where it has none."""
        self._portal.call(self._process.resize(columns, rows))

    def close_stdin(self) -> None:
        """Let it read the end of its stdin, once every writer has closed theirs."""
        self._portal.call(self._process.close_stdin())

    def delete(self) -> Exit:
        """Have the worker forget it; it must have ended (or never have been started)."""
        return self._portal.call(self._process.delete())

    def close(self) -> None:
        """Close our ends of its streams."""
        self._portal.call(self._process.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Container(Process):
    """A container, and its init; see `dunnage.client.Container`."""

    def __init__(self, portal: Portal, inner: asynchronous_container.Container) -> None:
        super().__init__(portal, inner)
        self._container = inner

    @property
    def namespace(self) -> str:
        return self._container.namespace

    @property
    def record(self) -> Record:
        """What was asked for at its creation."""
        return self._container.record

    def exec(
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
        """A further process, not started yet; a `detached` one is forgotten by `Node.delete_ended`."""
        work = self._container.exec(args, env=env, cwd=cwd, user=user, stdio=stdio, exec_id=exec_id, detached=detached)
        return Process(self._portal, self._portal.call(work))

    def attach(self, stdio: Stdio) -> Process:
        """The init with streams of ours, where its own are fifos; they begin at once."""
        return Process(self._portal, self._portal.call(self._container.attach(stdio)))

    def pids(self) -> dict[int, str]:
        """Every process in it: pid on the host, and the exec id where it is an exec's own ("" otherwise)."""
        return self._portal.call(self._container.pids())

    def pause(self) -> None:
        """Freeze every process in it; it may still be killed and removed."""
        self._portal.call(self._container.pause())

    def resume(self) -> None:
        """Let a paused one go on."""
        self._portal.call(self._container.resume())

    def update(self, resources: Resources | Mapping[str, Any]) -> None:
        """Change its limits, also while it runs; what is not said stays as it is."""
        self._portal.call(self._container.update(resources))

    def stats(self) -> Stats:
        """What it has used so far. NotFound where it has no cgroup any more."""
        return self._portal.call(self._container.stats())

    def checkpoint(
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
        """Have criu write it down in `directory`; `Node.restore` makes it again from that."""
        work = self._container.checkpoint(
            directory,
            exit=exit,
            tcp=tcp,
            unix_sockets=unix_sockets,
            terminal=terminal,
            file_locks=file_locks,
            empty_namespaces=empty_namespaces,
            work_directory=work_directory,
            parent=parent,
        )
        self._portal.call(work)

    def remove(self, *, force: bool = False) -> Exit | None:
        """Delete it and its bundle; with `force`, kill it first."""
        return self._portal.call(self._container.remove(force=force))


class Node:
    """This machine's containers; see `dunnage.client.Node`."""

    def __init__(
        self,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        state: Path = DEFAULT_STATE,
        launcher: Sequence[str] | None = None,
    ) -> None:
        self._node = asynchronous_node.Node(namespace=namespace, state=state, launcher=launcher)
        self._portal = Portal()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection, and end the thread; the containers stay.

        What other threads wait for fails with FailedPrecondition, as does every later call.
        """
        self._portal.close(self._node.close())

    def create(
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
        """Create a container, not started yet; with `checkpoint`, starting it restores criu's images there."""
        work = self._node.create(
            settings,
            id=id,
            stdio=stdio,
            detached=detached,
            keep_stdin=keep_stdin,
            remove_when_stopped=remove_when_stopped,
            checkpoint=checkpoint,
        )
        return Container(self._portal, self._portal.call(work))

    def restore(
        self,
        directory: Path | str,
        *,
        id: str | None = None,
        stdio: Stdio | None = None,
        detached: bool = False,
        keep_stdin: bool = False,
        remove_when_stopped: bool = False,
    ) -> Container:
        """Create a container from a checkpoint that `Container.checkpoint` made; it goes on when it is started."""
        work = self._node.restore(
            directory,
            id=id,
            stdio=stdio,
            detached=detached,
            keep_stdin=keep_stdin,
            remove_when_stopped=remove_when_stopped,
        )
        return Container(self._portal, self._portal.call(work))

    def run(
        self, settings: Settings, *, id: str | None = None, stdin: bytes = b"", timeout_s: float | None = None
    ) -> Finished:
        """Run a container to its end and remove it: its exit status and what it wrote."""
        return self._portal.call(self._node.run(settings, id=id, stdin=stdin, timeout_s=timeout_s))

    def get(self, id: str) -> Container:
        """A local container that is there already."""
        return Container(self._portal, self._portal.call(self._node.get(id)))

    def remove(self, id: str, *, force: bool = False) -> None:
        """Remove a local container, also one whose worker is gone."""
        self._portal.call(self._node.remove(id, force=force))

    def local_ids(self) -> list[str]:
        """The ids of this namespace's local containers, running or not."""
        return self._node.local_ids()

    def containers(self, *, keys: Sequence[str] | None = None) -> list[Listed]:
        """Every container of every key, or of those given."""
        return self._portal.call(self._node.containers(keys=keys))

    def stats(self, one: Listed) -> Stats:
        """What a container of any key has used so far; NotFound where it is gone."""
        return self._portal.call(self._node.stats(one))

    def delete_ended(self, found: Sequence[Listed]) -> list[Listed]:
        """Have execs forgotten that were begun detached and have ended. Returns `found` without them."""
        return self._portal.call(self._node.delete_ended(found))

    def status(self) -> list[NodeStatus]:
        """The processes behind every key that answers."""
        return self._portal.call(self._node.status())

    def events(self, *, history: bool = False) -> Iterator[Event]:
        """Events as they happen, without end; `history` begins with what is remembered."""
        events = self._node.events(history=history)
        try:
            while True:
                yield self._portal.call(_next(events))
        finally:
            if not self._portal.is_closed:
                self._portal.call(_close(events))


async def _next(events: Any) -> Event:
    event: Event = await anext(events)
    return event


async def _close(events: Any) -> None:
    async with aclosing(events):
        pass
