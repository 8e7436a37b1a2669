"""What an init and an exec have in common: a state, an exit that is told to whoever waits, and stdio."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any, ClassVar

from dunnage.container import states
from dunnage.container.facts import IO, Ended
from dunnage.container.host import Death, Watch
from dunnage.container.states import Operation, State
from dunnage.container.turn import Turn
from dunnage.errors import Error, NotFound
from dunnage.stdio import ProcessIO

UNKNOWN_STATUS = 255
"""The status told when a process ended and nobody can say how, as containerd does."""


class Process:
    """One process of a container. Changes take turns (``async with process.turn``); an exit waits for nobody."""

    table: ClassVar[states.Table]

    def __init__(self, process_id: str, io: IO) -> None:
        self.id = process_id
        self.io = io
        self.state = State.CREATED
        self.pid = 0
        self.status = 0
        self.exited_at: int | None = None
        self.was_started = False
        """Its start was told; an init may end without one."""
        self.turn = Turn()
        self.stdio: ProcessIO | None = None
        self.watch: Watch | None = None
        self._over = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """True once nobody need wait any more: it exited, or its start failed."""
        return self._over.is_set()

    @property
    def has_exited(self) -> bool:
        return self.exited_at is not None

    @property
    def ended(self) -> Ended:
        return Ended(self.pid, self.status, self.exited_at)

    def check(self, operation: Operation) -> None:
        """Raise the refusal of this process's state for ``operation``, if there is one."""
        states.check(self.table, operation, self.state)

    def set_exited(self, death: Death) -> None:
        """Write the end down: the first time counts. The state follows when the exit is told (``finish``)."""
        if self.exited_at is None:
            self.status, self.exited_at = death.status, death.seen_at

    def finish(self) -> None:
        """The exit is being told: from now on the process is stopped."""
        if self.state is not State.DELETED:
            self.state = State.STOPPED
        self.release_waiters()

    def release_waiters(self) -> None:
        self._over.set()

    def hold_waiters(self) -> None:
        """A start is tried again: from now on there is an end to wait for."""
        self._over.clear()

    async def wait(self) -> Ended:
        """Wait for the end. Answers status 0 and no time for a process whose start failed."""
        await self._over.wait()
        return self.ended

    def close(self) -> None:
        """Give back descriptors; the process itself is left alone. Idempotent."""
        if self.stdio is not None:
            self.stdio.close()
            self.stdio = None
        if self.watch is not None:
            self.watch.close()
            self.watch = None

    def record(self) -> dict[str, Any]:
        """What ``restore`` needs, in JSON values."""
        return {
            "state": self.state.value,
            "pid": self.pid,
            "status": self.status,
            "exited_at": self.exited_at,
            "was_started": self.was_started,
            "over": self.is_over,
            "io": list(self.io),
        }

    def restore(self, record: dict[str, Any]) -> None:
        self.state = State(record["state"])
        self.pid = record["pid"]
        self.status = record["status"]
        self.exited_at = record["exited_at"]
        self.was_started = record["was_started"]
        if record["over"]:
            self._over.set()


class Init(Process):
    """The container's first process; its id is empty."""

    table = states.INIT

    def __init__(self, io: IO) -> None:
        super().__init__("", io)
        self.began: Operation | None = None
        """A change of its state that the runtime was asked for, until it is known how that ended."""
        self.checkpointed = ""
        """Where its last checkpoint is."""

    @property
    def is_pausing(self) -> bool:
        return self.began is Operation.PAUSE

    def record(self) -> dict[str, Any]:
        began = None if self.began is None else self.began.value
        return {**super().record(), "began": began, "checkpointed": self.checkpointed}

    def restore(self, record: dict[str, Any]) -> None:
        super().restore(record)
        self.began = None if record["began"] is None else Operation(record["began"])
        self.checkpointed = record["checkpointed"]


class Exec(Process):
    """A further process. ``spec`` is an OCI Process as JSON values, its ``terminal`` the request's."""

    table = states.EXEC

    def __init__(self, process_id: str, io: IO, spec: dict[str, Any]) -> None:
        super().__init__(process_id, io)
        self.spec = {**spec, "terminal": io.terminal}

    def kill(self, number: int) -> None:
        """Send it a signal. Raises NotFound where it has ended."""
        if self.watch is None:
            raise NotFound("process already finished")
        try:
            self.watch.signal(number)
        except ProcessLookupError as error:
            raise NotFound("process already finished") from error
        except (OSError, OverflowError) as error:
            reason = os.strerror(getattr(error, "errno", errno.EINVAL)).lower()  # no int, and so no signal
            raise Error(f"exec kill error: unknown error after kill: {reason}") from error

    def record(self) -> dict[str, Any]:
        # once it has been started nobody needs it; and every save of a container writes all of its execs
        return {**super().record(), "spec": self.spec if self.state is State.CREATED else {}}
