"""What the parts of one container work with: its place, its options, and who does its work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dunnage import stdio
from dunnage.container.bundle import Bundle
from dunnage.container.facts import IO, Options
from dunnage.container.host import Host
from dunnage.container.launch import ProcessLaunch
from dunnage.container.process import Process
from dunnage.container.takeover import io_name
from dunnage.errors import Error
from dunnage.runtime.client import Runtime
from dunnage.runtime.failures import CommandFailed


@dataclass(frozen=True)
class Means:
    """One container's; ``env`` is what its launcher handed down."""

    namespace: str
    id: str
    bundle: Bundle
    options: Options
    runtime: Runtime
    host: Host
    log: logging.Logger
    env: Mapping[str, str]
    io_drain_timeout_s: float
    drivers: Callable[[str], stdio.Drivers] | None
    """Where the log driver of the init (an empty id) or of an exec is run; None: nowhere."""

    @property
    def name(self) -> str:
        """How the keeper's store and log lines call the container."""
        return f"{self.namespace}/{self.id}"

    def launch(self, process: Process) -> ProcessLaunch:
        """The stdio of a process, around the runtime's call that makes it."""
        return ProcessLaunch(
            process,
            lambda: self.plan(process.io),
            io_name=io_name(self.name, process.id),
            host=self.host,
            drivers=self.drivers_of(process.id),
            env=self.env,
            log=self.log,
        )

    def drivers_of(self, process_id: str) -> stdio.Drivers | None:
        return None if self.drivers is None else self.drivers(process_id)

    def plan(self, io: IO) -> stdio.Plan:
        """Raises what ``stdio.plan`` raises."""
        return stdio.plan(
            io.stdin,
            io.stdout,
            io.stderr,
            terminal=io.terminal,
            io_uid=self.options.io_uid,
            io_gid=self.options.io_gid,
        )

    async def drain(self, process: Process) -> None:
        """Wait for the last bytes of a process that is over, within the limit."""
        if process.stdio is not None and not await process.stdio.wait_drained(self.io_drain_timeout_s):
            self.log.error("failed to drain %s process %s io", "exec" if process.id else "init", process.id or self.id)

    def release_client_ends(self, process: Process) -> None:
        """No start of this process will be tried again: let go of what a former worker's may have left open."""
        for end in stdio.CLIENT_ENDS:
            self.host.keep.release(f"{io_name(self.name, process.id)}:{end}")

    async def forget_in_runtime(self) -> None:
        """Have the runtime remove what it may have made of a container that failed."""
        try:
            await self.runtime.delete(self.id, force=True)
        except Error as error:
            self.log.error("failed to delete a container that was created in vain: %s", error)


def is_refusal(error: BaseException) -> bool:
    """True if the runtime has failed by itself, and so has cleaned up; False if it was given up or killed, or what
    followed failed."""
    return isinstance(error.__cause__, CommandFailed) and not error.__cause__.killed
