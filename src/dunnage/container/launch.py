"""The stdio of a process around the runtime call that makes it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from dunnage import stdio
from dunnage.container.host import Host
from dunnage.container.process import Process
from dunnage.errors import Error
from dunnage.runtime.client import Stdio
from dunnage.runtime.console import ConsoleSocket

CONSOLE_TIMEOUT_S = 30.0  # containerd's own limit for setting up a console or the copying (shim v2, §5.9)


class ProcessLaunch:
    """The stdio of a process that the runtime is about to make: set up before the call, given up if it fails."""

    def __init__(
        self,
        process: Process,
        plan: Callable[[], stdio.Plan],
        *,
        io_name: str,
        host: Host,
        drivers: stdio.Drivers | None,
        env: Mapping[str, str],
        log: logging.Logger,
    ) -> None:
        self._process = process
        self._plan = plan
        self._io_name = io_name
        self._host = host
        self._drivers = drivers
        self._env = env
        self._log = log
        self._console: ConsoleSocket | None = None
        self.runtime_stdio: Stdio | None = None

    async def __aenter__(self) -> ProcessLaunch:
        process = self._process
        failure = f"failed to {'start console copy' if process.io.terminal else 'create init process I/O'}"
        try:
            process.stdio = await stdio.ProcessIO.open(
                self._plan(),
                keep=self._host.keep,
                name=self._io_name,
                log=self._log,
                budget=self._host.pipe_budget,
                open_elsewhere=self._host.open_elsewhere,
                drivers=self._drivers,
            )
        except OSError as error:
            raise Error(f"{failure}: {error}") from error
        except stdio.NotOpened as error:
            if error.path == process.io.stdin:
                raise Error(f"failed to open stdin fifo {error.path}: stat {error.path}: {error.reason}") from error
            if process.io.terminal:
                raise Error(f"{failure}: stat {error.path}: {error.reason}") from error
            opening = f'containerd-shim: opening file "{error.path}" failed'
            raise Error(f"failed to start io pipe copy: unable to copy pipes: {opening}: {error}") from error
        except Error as error:
            raise type(error)(f"{failure}: {error}") from error
        if process.io.terminal:
            try:
                self._console = ConsoleSocket.open(self._env)
            except OSError as error:
                await self.__aexit__(type(error), error, None)
                raise Error(f"failed to create OCI runtime console socket: {error}") from error
        else:
            self.runtime_stdio = Stdio(*process.stdio.runtime_fds)
        return self

    @property
    def console_path(self) -> str | None:
        return None if self._console is None else self._console.path

    async def succeeded(self) -> None:
        """The runtime has made the process: let the bytes flow."""
        assert self._process.stdio is not None
        if self._console is not None:
            try:
                master = await self._console.receive(CONSOLE_TIMEOUT_S)
            except (OSError, Error) as error:
                raise Error(f"failed to retrieve console master: {error}") from error
            self._process.stdio.attach_terminal(master)
        else:
            self._process.stdio.runtime_started()
        self._process.stdio.start()

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if self._console is not None:
            self._console.close()
        if error is not None and self._process.stdio is not None:
            given_up, self._process.stdio = self._process.stdio, None
            given_up.close()
            await given_up.wait_driver_stopped()
