"""What a worker is doing, in readable lines, for ``kill -USR1``: written to its log, and nothing is stopped for it.

No line holds what a container was given (environment, arguments, specs, paths of its streams), nor a request's content.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any, NamedTuple

import dunnage
from dunnage import log
from dunnage.api.ttrpc_pb2 import Request
from dunnage.container.container import Container
from dunnage.container.process import Process
from dunnage.ttrpc.frames import split
from dunnage.worker.host import PATHS
from dunnage.worker.notes import Pending
from dunnage.worker.served import ServedGroup
from dunnage.worker.worker import Worker

SIGNAL = signal.SIGUSR1
_NAMES = 3  # of the tasks that wait at the same place


class Dumps:
    """Answers the signal from `listen` on, wherever the worker is: it need not come to its loop for that."""

    def __init__(self) -> None:
        self.worker: Worker | None = None  # until there is one, there is nothing else to tell of

    def listen(self) -> None:
        """The keeper has blocked the signal for the time in which it would have ended this process."""
        signal.signal(SIGNAL, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [SIGNAL])

    def _on_signal(self, _number: int, frame: FrameType | None) -> None:
        log.write_to_stderr("\n".join(dump(self.worker, frame)) + "\n")


def dump(worker: Worker | None, interrupted: FrameType | None) -> Iterator[str]:
    """The lines. What cannot be described, since it is half-changed, is said to be so."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    yield f"=== state of process {os.getpid()} at {moment}, dunnage {dunnage.__version__}"
    parts: list[Callable[[], Iterator[str]]] = [lambda: _place(interrupted), _tasks]
    if worker is None:
        yield "there is no worker yet"
    else:
        known = worker  # not None, also for the type checker
        parts[:0] = [lambda: _worker(known), lambda: _groups(known), lambda: _calls(known), lambda: _events(known)]
        parts += [lambda: _store(known)]
    for part in parts:
        try:
            yield from part()
        except Exception as error:  # noqa: BLE001 - it would end whatever the signal has interrupted
            yield f"and something that cannot be described now: {type(error).__name__}"
    yield f"=== end of the state of process {os.getpid()}"


def _worker(worker: Worker) -> Iterator[str]:
    keeper = worker.keeper
    age_s = (time.time_ns() - worker.started_at) / 1e9
    descriptors = len(os.listdir("/proc/self/fd")) - 1
    yield f"worker {keeper.name} of keeper {keeper.keeper_pid}, state {worker.state}"
    yield f"  {age_s:.3f} s old, {descriptors} descriptors, {len(worker.groups)} groups"
    yield f"  keeper: {keeper.unanswered} requests wait for their answer, {keeper.unsent} for room in its socket"


def _groups(worker: Worker) -> Iterator[str]:
    for served in list(worker.groups.values()):
        yield f"group {served.name} at {served.group.address}"
        yield f"  connections: {', '.join(served.server.names) or 'none'}"
        for container_id, what in served.group.to_come.items():
            yield f"  container {container_id} {what}"
        for container_id, reason in served.group.lost.items():
            yield f"  container {container_id} cannot be taken up: {_in_one_line(reason)}"
        for container in list(served.group.containers.values()):
            yield from _container(container)


def _container(container: Container) -> Iterator[str]:
    yield f"  container {container.id}, bundle {_in_one_line(container.bundle.path)}"
    for process in [container.init, *container.execs.values()]:
        yield f"    {_process(process)}"
        if process.stdio is not None:
            for line in process.stdio.describe():
                yield f"      {_in_one_line(line)}"


def _process(process: Process) -> str:
    said = [f"exec {process.id}" if process.id else "init", process.state.value]
    said.append(f"pid {process.pid}" if process.pid else "no pid")
    if process.has_exited:
        said.append(f"ended with {process.status}{'' if process.is_over else ', not told yet'}")
    if process.turn.locked():
        said.append(f"its turn is {process.turn.holder or 'somebody'}'s, {process.turn.waiting} wait")
    return ": ".join([said[0], ", ".join(said[1:])])


def _calls(worker: Worker) -> Iterator[str]:
    """Those of clients, then those of the runtime that a former worker began."""
    for pending in worker.notes.pending():
        yield f"call {_call(worker, pending)}"
    for pid, name in worker.host.inherited_calls.items():
        what = name.partition(":")[0] if name.startswith(PATHS) else name
        yield f"inherited call {_in_one_line(what)}, process {pid}"
    for pid in sorted(worker.host.unseen):
        yield f"inherited process {pid} that nobody has watched yet"


def _call(worker: Worker, pending: Pending) -> str:
    request = Request.FromString(split(pending.frame)[0][0].data)
    age = "since a former worker" if pending.noted_at is None else f"{time.monotonic() - pending.noted_at:.3f} s"
    served = worker.groups.get(pending.connection.removeprefix("listener:").rpartition("#")[0])
    named = "" if served is None else _whose(served, request)
    return f"{request.method}{named}, {age}, stream {pending.stream_id} of {pending.connection}"


def _whose(served: ServedGroup, request: Request) -> str:
    """Which container and exec it asks about; that and no more of its content."""
    method = served.server.services.get(request.service, {}).get(request.method)
    if method is None:
        return ""
    message: Any = method[0].FromString(request.payload)
    ids = [getattr(message, field, "") for field in ("id", "exec_id")]
    return "".join(f" {_in_one_line(one)}" for one in ids if one)


def _events(worker: Worker) -> Iterator[str]:
    for (namespace, address), publisher in list(worker.publishers.items()):
        yield f"events of {namespace} for {address or 'nobody'}: {publisher.waiting} wait"


def _store(worker: Worker) -> Iterator[str]:
    names = sorted(worker.keeper.stored)
    yield f"the store holds {len(names)} descriptors"
    for name in names:
        yield f"  {_in_one_line(name)}"


class _Place(NamedTuple):
    code: CodeType
    line: int

    def __str__(self) -> str:
        return f"{_short(self.code.co_filename)}:{self.line} {self.code.co_qualname}"


def _place(frame: FrameType | None) -> Iterator[str]:
    """Up to what the keeper calls in a worker that it has forked."""
    yield "it was interrupted at, innermost first"
    while frame is not None and frame.f_code.co_qualname != "Workers._become_worker.<locals>.<lambda>":
        yield f"  {_Place(frame.f_code, frame.f_lineno)}"
        frame = frame.f_back


def _tasks() -> Iterator[str]:
    """Each place where tasks wait, with their names; those at the same one are told of together."""
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:
        return  # there is no loop yet, or no more
    waiting: dict[Sequence[_Place], list[str]] = {}
    for task in tasks:
        waiting.setdefault(_stack(task.get_coro()), []).append(task.get_name())
    yield f"{len(tasks)} tasks, innermost first"
    for stack, names in sorted(waiting.items(), key=lambda found: (-len(found[1]), sorted(found[1]))):
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        yield f"  {', '.join(sorted(names)[:_NAMES])}{more}"
        for place in reversed(stack):
            yield f"    {place}"


def _stack(awaited: Any) -> Sequence[_Place]:
    """From the task's own coroutine to what it waits in."""
    places = []
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:
            break  # a future, or it has ended
        places.append(_Place(frame.f_code, frame.f_lineno))
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return tuple(places)


def _short(path: str) -> str:
    return "/".join(path.rsplit("/", 2)[-2:])


def _in_one_line(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
