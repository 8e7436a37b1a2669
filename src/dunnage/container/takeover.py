"""What a worker that died has left of a container's processes: what the next one may know of them, and what it keeps.

Asks the runtime's calls that are still under way, the files they write and the runtime; changes no process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from dunnage import stdio
from dunnage.container.bundle import Bundle
from dunnage.container.host import Host
from dunnage.container.process import Exec, Init, Process
from dunnage.container.states import Operation, State
from dunnage.errors import Error
from dunnage.runtime.client import Runtime


def io_name(container: str, process_id: str) -> str:
    """What the names of a process's descriptors begin with in the keeper's store; ``container`` has its namespace."""
    return f"io:{container}/{process_id}" if process_id else f"io:{container}"


class Takeover:
    """One container's. ``name`` is the container's with its namespace, ``container_id`` what the runtime calls it;
    ``fds`` what the store holds for ``io:<name>``, by the rest of its name, all its own from now on."""

    def __init__(
        self,
        name: str,
        container_id: str,
        fds: dict[str, int],
        *,
        bundle: Bundle,
        runtime: Runtime,
        host: Host,
        drivers_of: Callable[[str], stdio.Drivers | None],
        log: logging.Logger,
    ) -> None:
        self._name = name
        self._container_id = container_id
        self._fds = fds
        self._bundle = bundle
        self._runtime = runtime
        self._host = host
        self._drivers_of = drivers_of
        self._log = log

    async def pid_if_started(self, process: Process) -> int:
        """The pid, if a Start that nobody answered has had its effect; else 0."""
        if process.state not in (State.CREATED, State.CREATED_CHECKPOINT):
            return 0
        if isinstance(process, Exec):
            await self._host.wait_inherited(f"runtime:{self._name}/{process.id}:exec")
            return self._written_pid(process)
        assert isinstance(process, Init)
        if process.began is not Operation.START:
            return 0
        if process.state is State.CREATED_CHECKPOINT:
            status = await self._host.wait_inherited(f"runtime:{self._name}:restore")
            return self._written_pid(process) if status == 0 else 0
        return process.pid if await self._has_begun() else 0

    async def is_paused(self, began: Operation, *, was: bool) -> bool:
        """Whether the container is frozen, where a Pause or Resume that nobody answered was begun; ``was``: it was so
        before."""
        status = await self._host.wait_inherited(f"runtime:{self._name}:{began.value}")
        if status == 0:
            return began is Operation.PAUSE
        try:
            return (await self._runtime.state(self._container_id)).get("status") == "paused"
        except Error as error:
            self._log.warning("the runtime does not know whether container %s is paused: %s", self._name, error)
            return was

    def take_stdio(self, process: Process, plan: Callable[[], stdio.Plan]) -> stdio.ProcessIO | None:
        """The stdio of a process that ran; None where it has none, or never ran: what such a one would have been given
        is gone with the last worker, and only its client's ends are kept, for a next Start."""
        prefix = f"/{process.id}:" if process.id else ":"
        ends = {end[len(prefix) :]: self._fds.pop(end) for end in list(self._fds) if end.startswith(prefix)}
        name = io_name(self._name, process.id)
        drivers = self._drivers_of(process.id)
        if process.pid and (ends or (drivers is not None and drivers.running())):
            return stdio.ProcessIO.recover(
                plan(),
                ends,
                keep=self._host.keep,
                name=name,
                log=self._log,
                budget=self._host.pipe_budget,
                started=True,
                drivers=drivers,
            )
        for end, fd in ends.items():
            if end not in stdio.CLIENT_ENDS:
                self._host.keep.release(f"{name}:{end}")
            os.close(fd)
        return None

    def let_go_of_the_rest(self) -> None:
        """Of what belonged to a process that was just deleted."""
        for end, fd in self._fds.items():
            self._host.keep.release(f"io:{self._name}{end}")
            os.close(fd)
        self._fds.clear()

    def _written_pid(self, process: Process) -> int:
        try:
            return self._bundle.read_pid(process.id)
        except Error:
            return 0

    async def _has_begun(self) -> bool:
        """Whether the init that was being started runs, or ran: the runtime's call says so, or the runtime."""
        status = await self._host.wait_inherited(f"runtime:{self._name}:start")
        if status is not None:
            return status == 0
        try:
            return (await self._runtime.state(self._container_id)).get("status") != "created"
        except Error as error:
            self._log.warning("the runtime does not know whether container %s was started: %s", self._name, error)
            return False
