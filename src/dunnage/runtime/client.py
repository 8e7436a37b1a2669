"""An OCI runtime, called: each method is one run of its binary, with a deadline, and its failure in containerd's words.

What the runtime writes is collected in a memfd, not a pipe: a process that inherits it cannot make a call hang, nothing
has to be read while it runs, and a call that outlives its caller never meets a full or broken pipe. Of the log only
what the call itself has written counts (``logs``), so neither an old error nor another call's is told.

The ``Spawner`` runs the process; it owns none of the fds it is given.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple, Protocol

from dunnage import errors
from dunnage.runtime import arguments, failures
from dunnage.runtime.failures import Call, CommandFailed, Log
from dunnage.runtime.logs import Logs

DEADLINE_S = 60.0
CHECKPOINT_VERBS = ("checkpoint", "restore")
OUTPUT_BYTES = 1 << 20
"""More output than this is cut: it is only told in errors, and `ps` of a hundred thousand processes fits."""


class Exit(Protocol):
    """How a process ended: exactly one of the two is not None."""

    @property
    def code(self) -> int | None: ...

    @property
    def signal(self) -> int | None: ...


class Spawner(Protocol):
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
        """Run ``argv`` to its end with exactly ``fds`` (its number -> ours). ``name`` says which call it is.

        Raises TimeoutError after ``deadline_s``, whatever became of the process; OSError if it could not be started.
        """
        ...


class Stdio(NamedTuple):
    """What the container's process gets as its stdin, stdout and stderr; None is /dev/null."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


class Runtime:
    """One runtime as one container needs it: its root, its log, its launcher's environment.

    Methods that change something raise ``errors.Error`` with containerd's prefixes; ``update``, ``ps``, ``checkpoint``
    and ``state`` raise the bare ``CommandFailed``. Every one raises DeadlineExceeded, naming command and container.
    """

    def __init__(
        self,
        command: str,
        *,
        root: str,
        log_path: str,
        systemd_cgroup: bool,
        spawner: Spawner,
        env: Mapping[str, str],
        deadline_s: float = DEADLINE_S,
        checkpoint_deadline_s: float = DEADLINE_S,
        scope: str = "",
        criu: str = "",
    ) -> None:
        """``command`` is a path, or a name to be found in ``env``'s PATH; ``scope`` (a namespace) qualifies names.
        ``checkpoint_deadline_s`` is for the calls that write or read all of a container's memory."""
        self.command = command
        self.log_path = log_path
        self.deadline_s = deadline_s
        self.checkpoint_deadline_s = checkpoint_deadline_s
        self._globals = partial(arguments.Globals, root, systemd_cgroup=systemd_cgroup, criu=criu)
        self._logs = Logs(log_path)
        self._spawner = spawner
        self._env = {name: value for name, value in env.items() if name != "NOTIFY_SOCKET"}
        self._scope = scope

    async def create(self, container: str, options: arguments.Create, stdio: Stdio | None = None) -> None:
        """``stdio`` is the container's; None where it has a terminal: then what the runtime says is collected."""
        await self._told("OCI runtime create failed", self._run(container, options, stdio))

    async def restore(self, container: str, options: arguments.Restore, stdio: Stdio | None = None) -> None:
        await self._told("OCI runtime restore failed", self._run(container, options, stdio))

    async def start(self, container: str) -> None:
        await self._told("OCI runtime start failed", self._run(container, arguments.Start()))

    async def exec(
        self,
        container: str,
        exec_id: str,
        process: Mapping[str, object],
        *,
        pid_file: str,
        console_socket: str | None = None,
        stdio: Stdio | None = None,
    ) -> None:
        """Run ``process`` (an OCI process) detached. Its JSON is in a file beside the log while the runtime runs."""
        with _process_file(os.path.dirname(self.log_path), process) as path:
            options = arguments.Exec(path, pid_file, console_socket)
            await self._told("OCI runtime exec failed", self._run(container, options, stdio, exec_id))

    async def kill(self, container: str, signal: int, *, all: bool = False) -> None:
        """NotFound when the process has ended, or the container is gone."""
        call = await self._run(container, arguments.Kill(signal, all))
        if call.failure is not None:
            raise failures.kill_error(call.failure, container) from call.failure

    async def delete(self, container: str, *, force: bool = False) -> None:
        """A container that the runtime doesn't know is deleted."""
        call = await self._run(container, arguments.Delete(force))
        failure = call.failure
        if failure is None or failures.says_no_container(f"{failure}\n{failure.reason}", container):
            return
        raise failures.prefixed("failed to delete task", failure, call.log) from failure

    async def pause(self, container: str) -> None:
        await self._told("OCI runtime pause failed", self._run(container, arguments.Pause()))

    async def resume(self, container: str) -> None:
        await self._told("OCI runtime resume failed", self._run(container, arguments.Resume()))

    async def ps(self, container: str) -> list[int]:
        """The pids, in the runtime's order."""
        output = await self._raw(self._run(container, arguments.Ps(), parsed=True))
        try:
            # runc says null where there are none
            return [int(pid) for pid in json.loads(output) or ()]
        except (TypeError, ValueError) as reason:
            raise CommandFailed(f"{self.command} ps of container {container} gives no pids: {reason}") from reason

    async def update(self, container: str, resources: bytes) -> None:
        """``resources`` is the JSON of an OCI LinuxResources."""
        with _memfd("resources") as stdin:
            os.write(stdin, resources)
            os.lseek(stdin, 0, os.SEEK_SET)
            await self._raw(self._run(container, arguments.Update(), stdin=stdin))

    async def checkpoint(self, container: str, options: arguments.Checkpoint) -> None:
        await self._raw(self._run(container, options))

    async def state(self, container: str) -> dict[str, object]:
        """What the runtime knows of it (``status``, ``pid``, …); NotFound when that is nothing."""
        call = await self._run(container, arguments.State(), parsed=True)
        failure = call.failure
        if failure is not None:
            if failures.says_no_container(f"{failure}\n{failure.reason}", container):
                raise errors.NotFound(failures.NO_CONTAINER) from failure
            raise failure
        try:
            return dict(json.loads(call.output))
        except (TypeError, ValueError) as reason:
            raise CommandFailed(f"{self.command} state of container {container} gives none: {reason}") from reason

    async def _told(self, prefix: str, call: Awaitable[_Call]) -> None:
        result = await call
        if result.failure is not None:
            raise failures.prefixed(prefix, result.failure, result.log) from result.failure

    async def _raw(self, call: Awaitable[_Call]) -> str:
        result = await call
        if result.failure is not None:
            raise result.failure
        return result.output

    async def _run(
        self,
        container: str,
        options: arguments.Arguments,
        stdio: Stdio | None = None,
        process: str = "",
        *,
        stdin: int | None = None,
        parsed: bool = False,
    ) -> _Call:
        """Run it; output is collected unless ``stdio`` is given, and where it is ``parsed``, without stderr."""
        name = ":".join(("runtime", "/".join(filter(None, (self._scope, container, process))), options.verb))
        with ExitStack() as stack:
            log = stack.enter_context(self._logs.of_call())
            null = stack.enter_context(open("/dev/null", "r+b", buffering=0))
            stdout = stack.enter_context(_memfd(f"{options.verb} output"))
            stderr = stack.enter_context(_memfd(f"{options.verb} errors")) if parsed else stdout
            given = stdio or Stdio(stdin, stdout, stderr)
            fds = {number: null.fileno() if fd is None else fd for number, fd in enumerate(given)}
            path: str | None = self.command  # tried as it is: the kernel's reason is told, and only the child may hang
            if "/" not in self.command:
                path = shutil.which(self.command, path=self._env.get("PATH", os.defpath))
            argv = [path or self.command, *self._globals(log.path).argv(), *options.argv(container)]
            call = Call(options.verb, tuple(argv))
            deadline_s = self.checkpoint_deadline_s if options.verb in CHECKPOINT_VERBS else self.deadline_s
            try:
                if path is None:
                    raise FileNotFoundError
                ended = await self._spawner.run(
                    name,
                    argv,
                    env=self._env,
                    cwd=os.path.dirname(self.log_path),
                    fds=fds,
                    deadline_s=deadline_s,
                )
            except TimeoutError as reason:
                what = f"{self.command} {options.verb} of container {container}"
                text = f"{what} did not end within {deadline_s:g} s"
                hanging = f"{_content(stdout)}{reason}"  # it says which process
                failure = CommandFailed(text, output=hanging, killed=True, call=call, log=log.read().text)
                raise errors.DeadlineExceeded(text) from failure
            except OSError as reason:
                text = failures.describe_missing(self.command, None if path is None else reason)
                return _Call("", CommandFailed(text, call=call), log.read())
            output = _content(stdout)
            if ended.code == 0:
                return _Call(output, None, Log())
            words = output + _content(stderr) if parsed else output
            logged = log.read()
        status = ended.code if ended.code is not None else 128 + (ended.signal or 0)
        failure = CommandFailed(
            failures.describe_status(self.command, status, words),
            output=words,
            reason=_sentence(logged),
            killed=failures.is_killed(ended.code),
            call=call._replace(status=status),
            log=logged.text,
        )
        return _Call(output, failure, logged)


class _Call(NamedTuple):
    output: str
    failure: CommandFailed | None
    log: Log


def _sentence(log: Log) -> str:
    try:
        return failures.last_error(log.text) or ""
    except ValueError:
        return ""


def _content(memfd: int) -> str:
    return os.pread(memfd, OUTPUT_BYTES, 0).decode(errors="replace")


@contextmanager
def _memfd(name: str) -> Iterator[int]:
    fd = os.memfd_create(f"dunnage {name}", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _process_file(directory: str, process: Mapping[str, object]) -> Iterator[str]:
    """A file that only its owner may read (it holds the environment), removed in any case."""
    with tempfile.NamedTemporaryFile("w", dir=directory, prefix="process", suffix=".json") as file:
        json.dump(process, file)
        file.flush()
        yield file.name
