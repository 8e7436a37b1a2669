"""A containerd of the test's own, in directories of its own, and `ctr` to speak to it; nothing of the host's is used.

Every process carries the session's mark (tests/leaks.py) and a mark of this containerd, by which keeper, worker and
shims are found.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import pytest
from tests.containerd import image

from dunnage.launcher import key_of

MARK = "DUNNAGE_TEST_CONTAINERD"
GO_SHIM = "io.containerd.runc.v2"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CONFIG = """\
version = 2
root = "{directory}/root"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{directory}/c.sock"
"""


class Result(NamedTuple):
    """How a `ctr` ended: its exit status, and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes


class Process(NamedTuple):
    """A process as /proc shows it; ``start`` tells two users of one pid apart."""

    pid: int
    parent: int
    comm: str
    argv: str
    start: int


class Shim(NamedTuple):
    """Which shim and which OCI runtime the containers of a test get.

    ctr 1.6 takes ``--runc-binary`` only for the runtime name of the Go shim: crun under dunnage goes the drop-in's way.
    """

    runtime_name: str
    oci_runtime: str
    directory: Path

    @property
    def is_go(self) -> bool:
        return self.runtime_name == GO_SHIM

    @property
    def binary_name(self) -> str:
        return "containerd-shim-runc-v2" if self.is_go else "containerd-shim-dunnage-v2"

    @property
    def options(self) -> list[str]:
        if self.oci_runtime == "runc":
            return ["--runtime", self.runtime_name]
        return ["--runtime", GO_SHIM, "--runc-binary", self.oci_runtime]


class Containerd:
    """`with Containerd(directory, shim) as containerd:`; ``directory`` is short, since a socket's path has a limit."""

    def __init__(
        self,
        directory: Path,
        shim: Shim,
        *,
        image_tar: Path,
        binary: str = "containerd",
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        state: Path | None = None,
        config: str = _CONFIG,
    ) -> None:
        self.directory, self.shim, self.namespace = directory, shim, f"t-{uuid.uuid4().hex[:8]}"
        self.address = f"{directory}/c.sock"
        self.mark = uuid.uuid4().hex
        self.log = directory / "containerd.log"
        self.image_tar, self._prefix, self._config = image_tar, list(prefix), config
        self._namespaces = {self.namespace}
        self._binary = shutil.which(binary, path=PATH) or binary
        self._ctr = shutil.which("ctr", path=f"{Path(self._binary).parent}:{PATH}") or "ctr"
        self.state = state or directory / "state"
        self.path = PATH if shim.is_go else f"{shim.directory}:{PATH}"
        self.environment = {"PATH": self.path, "HOME": "/root", MARK: self.mark, **environment}
        self.environment |= {name: value for name, value in os.environ.items() if name == "DUNNAGE_TEST_SESSION"}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        (self.directory / "config.toml").write_text(self._config.format(directory=self.directory, state=self.state))
        self.start()
        try:
            self.ctr("image", "import", str(self.image_tar))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # containerd itself

    @property
    def pid(self) -> int:
        assert self._process is not None
        return next((p.pid for p in self.processes() if p.comm == "containerd"), self._process.pid)

    def start(self) -> None:
        """Returns when it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, self._binary, "--config", f"{self.directory}/config.toml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                process_group=0,
                cwd="/",
            )
        deadline = time.monotonic() + 30
        while self.ctr("version", check=False).status != 0:
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "containerd does not answer"

    def stop(self) -> None:
        """As systemd does it: SIGTERM to containerd alone (KillMode=process)."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Stop containerd and its keepers; remove what runc leaves as a rule (the namespace's own empty cgroups)."""
        left = self.leftovers()
        if left:
            self._sweep()
        self.stop()
        self._end_shims()
        left += self._remove_state_directories()
        for namespace in self._namespaces:
            remove_cgroups(namespace)
            shutil.rmtree(f"/run/containerd/runc/{namespace}", ignore_errors=True)
        for directory in (self.directory / "root", self.state, self.directory / "fifos"):
            shutil.rmtree(directory, ignore_errors=True)
        if left:
            print(f"containerd's log:\n{self.log.read_text()[-8000:]}")
            pytest.fail("containerd's test left behind:\n" + "\n".join(left), pytrace=False)

    # ctr

    def command(self, *arguments: str) -> list[str]:
        return [self._ctr, "--address", self.address, "--namespace", self.namespace, *arguments]

    def ctr(self, *arguments: str, input: bytes | None = None, timeout_s: float = 60, check: bool = True) -> Result:
        """Run ctr to its end; with ``check`` a failure is the test's failure, with everything ctr said."""
        done = subprocess.run(
            self.command(*arguments),
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
            capture_output=True,
            timeout=timeout_s,
            env=self.environment,
            check=False,
        )
        result = Result(done.returncode, done.stdout, done.stderr)
        if check and result.status != 0:
            raise AssertionError(f"ctr {' '.join(arguments)}: status {result.status}: {result.stderr.decode()}")
        return result

    def run_arguments(self, container_id: str, *command: str, options: Sequence[str] = ()) -> list[str]:
        return ["run", *self.shim.options, *options, image.NAME, container_id, *command]

    def run(
        self,
        container_id: str,
        *command: str,
        options: Sequence[str] = (),
        input: bytes | None = None,
        timeout_s: float = 60,
        check: bool = False,
    ) -> Result:
        """`ctr run --rm`: the status is the container's."""
        arguments = self.run_arguments(container_id, *command, options=["--rm", *options])
        return self.ctr(*arguments, input=input, timeout_s=timeout_s, check=check)

    def run_detached(self, container_id: str, *command: str, options: Sequence[str] = ()) -> None:
        self.ctr(*self.run_arguments(container_id, *command, options=["-d", *options]))

    def exec(
        self, container_id: str, *command: str, exec_id: str = "e", input: bytes | None = None, timeout_s: float = 60
    ) -> Result:
        return self.ctr(
            "task", "exec", "--exec-id", exec_id, container_id, *command, input=input, timeout_s=timeout_s, check=False
        )

    def popen(
        self, *arguments: str, stdin: int | None = subprocess.DEVNULL, stdout: int | None = None, bufsize: int = -1
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments),
            stdin=stdin,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.STDOUT if stdout is None else subprocess.DEVNULL,
            env=self.environment,
            bufsize=bufsize,
        )

    def tasks(self) -> dict[str, tuple[int, str]]:
        """Each task's init pid and status, as `ctr task ls` shows them."""
        lines = self.ctr("task", "ls").stdout.decode().splitlines()[1:]
        return {line.split()[0]: (int(line.split()[1]), line.split()[2]) for line in lines}

    def remove(self, container_id: str) -> None:
        """Kill what runs, delete the task when it has stopped, and the container."""
        if container_id in self.tasks():
            self.ctr("task", "kill", "-s", "9", container_id, check=False)
            wait_until(
                lambda: self.tasks().get(container_id, (0, "STOPPED"))[1] == "STOPPED", f"{container_id} has stopped"
            )
            self.ctr("task", "rm", container_id, check=False)  # 137 is the container's
        self.ctr("container", "rm", container_id)

    @contextlib.contextmanager
    def in_namespace(self, namespace: str) -> Iterator[None]:
        """Speak in another containerd namespace for a while."""
        self._namespaces.add(namespace)
        before, self.namespace = self.namespace, namespace
        try:
            yield
        finally:
            self.namespace = before

    @contextlib.contextmanager
    def events(self) -> Iterator[Events]:
        """`ctr events`, subscribed before the block begins."""
        with self.popen("events") as process:
            events = Events(process)
            try:
                stamp = 0
                while not any(event.topic == "/namespaces/update" for event in events.read(0.2)):
                    stamp += 1
                    self.ctr("namespace", "label", self.namespace, f"stamp={stamp}")
                events.seen.clear()
                yield events
            finally:
                process.kill()

    # what is there

    def processes(self) -> list[Process]:
        """Everything this containerd started that still carries its mark, zombies of the test's own included."""
        return [process for process in all_processes() if _environment(process.pid).get(MARK) == self.mark]

    def keeper(self) -> Process:
        """The one keeper of this containerd: marked shim whose parent is no shim."""
        keepers = self.keepers()
        assert len(keepers) == 1, keepers
        return keepers[0]

    def keepers(self) -> list[Process]:
        shims = self.shims()
        pids = {shim.pid for shim in shims}
        return [shim for shim in shims if shim.parent not in pids]

    def workers(self) -> list[Process]:
        """The keeper's children that are named worker."""
        keeper = self.keeper().pid
        return [shim for shim in self.shims() if shim.parent == keeper and " worker " in f"{shim.argv} "]

    def worker(self) -> Process:
        workers = self.workers()
        assert len(workers) == 1, workers
        return workers[0]

    def shims(self) -> list[Process]:
        return [process for process in self.processes() if process.comm.startswith("containerd-shim")]

    def bundle(self, container_id: str) -> Path:
        return self.state / "io.containerd.runtime.v2.task" / self.namespace / container_id

    def leftovers(self) -> list[str]:
        """Containers, tasks, bundles, cgroups, mounts and (Go's) shims, given 5 s to go."""
        deadline = time.monotonic() + 5
        while True:
            left = self._leftovers()
            if not left or time.monotonic() > deadline:
                return left
            select.select([], [], [], 0.05)

    def _leftovers(self) -> list[str]:
        assert self._process is not None
        if self._process.poll() is not None:
            self.start()
        left = [f"mount {target}" for target in self.mounts()]
        if self.shim.is_go:
            left += [f"shim {process}" for process in self.shims()]
        for namespace in sorted(self._namespaces):
            with self.in_namespace(namespace):
                left += [f"container {name}" for name in self.ctr("container", "ls", "-q").stdout.decode().split()]
                left += [f"task {name} {pid_status}" for name, pid_status in self.tasks().items()]
                left += [f"bundle {name}" for name in _listed(str(self.bundle("x").parent))]
                left += [f"runtime state {name}" for name in _listed(f"/run/containerd/runc/{namespace}")]
                left += [f"cgroup {path}" for path in cgroups_below(namespace)]
        return left

    def mounts(self) -> list[str]:
        """Mounts below this containerd's directories, in its own mount namespace."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        targets = [line.split()[4].encode().decode("unicode_escape") for line in lines]
        return [target for target in targets if target.startswith(f"{self.directory}/")]

    def _sweep(self) -> None:
        for namespace in sorted(self._namespaces):
            with self.in_namespace(namespace):
                for name in self.ctr("container", "ls", "-q", check=False).stdout.decode().split():
                    for arguments in (("task", "rm", "-f", name), ("container", "rm", name)):
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            self.ctr(*arguments, check=False, timeout_s=15)

    def _end_shims(self) -> None:
        """Keepers first asked, then everything that still carries the mark killed.

        Asked again and again: what a failed runc leaves is a child of the keeper's until it has been seen dead twice.
        """
        deadline = time.monotonic() + 5
        while (left := self.processes()) and time.monotonic() < deadline:
            for keeper in self.keepers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(keeper.pid, signal.SIGTERM)
            select.select([], [], [], 0.05)
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def state_directories(self) -> list[Path]:
        """Those of its keepers: one for each set of namespaces."""
        key = key_of(self.address)
        return [path for path in Path("/run/dunnage").glob("*") if path.name.partition("+")[0] == key]

    def _remove_state_directories(self) -> list[str]:
        """A keeper that ended leaves its lock and its log, and nothing else."""
        left = []
        for directory in self.state_directories():
            left += [f"file {path}" for path in directory.iterdir() if path.name not in ("lock", "log")]
            with contextlib.suppress(FileNotFoundError):
                log = (directory / "log").read_text()
                if "Traceback" in log:
                    left.append(f"traceback in a keeper's log:\n{log[-6000:]}")
            shutil.rmtree(directory)
        return left


class Event(NamedTuple):
    topic: str
    fields: Mapping[str, object]

    @property
    def is_of_a_task(self) -> bool:
        return self.topic.startswith("/tasks/")

    @property
    def container_id(self) -> str:
        return str(self.fields.get("container_id", ""))


class Events:
    """What `ctr events` has shown so far, in its order."""

    _LINE = re.compile(rb"^\S+ \S+ \S+ \S+ \S+ (/\S+) (\{.*\})$")

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.seen: list[Event] = []
        self._process = process
        self._rest = b""

    def read(self, timeout_s: float) -> list[Event]:
        """What comes within ``timeout_s``; returns early with the first."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            return []
        *lines, self._rest = (self._rest + os.read(self._process.stdout.fileno(), 1 << 16)).split(b"\n")
        matches = [self._LINE.match(line) for line in lines]
        fresh = [Event(match[1].decode(), json.loads(match[2])) for match in matches if match]
        self.seen += fresh
        return fresh

    def of(self, container_id: str) -> list[Event]:
        """Its task events."""
        return [
            event for event in self.seen if event.topic.startswith("/tasks/") and event.container_id == container_id
        ]

    def topics(self, container_id: str) -> list[str]:
        return [event.topic.removeprefix("/tasks/") for event in self.of(container_id)]

    def wait_for(self, predicate: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while not predicate():
            assert time.monotonic() < deadline, f"{what} did not happen; seen: {self.seen[-20:]}"
            self.read(0.2)

    def read_all(self, quiet_s: float) -> None:
        """Until nothing came for ``quiet_s``: the way to see that something is *not* told."""
        while self.read(quiet_s):
            pass


class Terminal:
    """A `ctr` on a pty, as a person would sit before it.

    A shell leads the session and outlives ctr: at the end of a leader the kernel throws away what is not read yet.
    """

    _SHELL = ("sh", "-c", """"$@"; printf 'ended with %s\\n' $?; read end""", "-")

    def __init__(self, argv: Sequence[str], *, rows: int = 24, columns: int = 80) -> None:
        self.seen = b""
        self._master, slave = pty.openpty()
        self.resize(rows, columns)

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self._leader = subprocess.Popen(
            [*self._SHELL, *argv], stdin=slave, stdout=slave, stderr=slave, preexec_fn=take_terminal
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        os.close(self._master)

    def hang_up(self) -> None:
        """As when a terminal's window is closed: ctr gets SIGHUP. Idempotent."""
        self._leader.kill()
        self._leader.wait()

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text: bytes) -> None:
        os.write(self._master, text)

    def wait_for(self, pattern: bytes, timeout_s: float = 20) -> re.Match[bytes]:
        """Read until ``pattern`` (a regular expression) is in what came since the last match."""
        match = self.comes(pattern, timeout_s)
        assert match, f"{pattern!r} did not come; seen: {self.seen[-2000:]!r}"
        return match

    def comes(self, pattern: bytes, timeout_s: float) -> re.Match[bytes] | None:
        """As ``wait_for``, but None if it does not come."""
        deadline = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self.seen)):
            if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            # a line ends in one newline: the container's terminal adds a carriage return, and ctr's own another
            self.seen = re.sub(rb"\r+\n", b"\n", self.seen + os.read(self._master, 1 << 16))
        self.seen = self.seen[match.end() :]
        return match

    def wait(self, timeout_s: float = 20) -> tuple[int, bytes]:
        """ctr's exit status, and what was written since the last match."""
        match = self.wait_for(rb"(?s)\A(.*)ended with (\d+)\n", timeout_s)
        return int(match[2]), match[1]


def wait_until(predicate: Callable[[], object], what: str, timeout_s: float = 20) -> None:
    """For what no event tells: looked at every 50 ms."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        select.select([], [], [], 0.05)


def all_processes() -> list[Process]:
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            comm, _, rest = Path(f"/proc/{name}/stat").read_text().partition("(")[2].rpartition(")")
            argv = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        fields = rest.split()
        if fields[0] != "Z":
            found.append(Process(int(name), int(fields[1]), comm, argv, int(fields[19])))
    return found


def fds(pid: int) -> list[str]:
    """What the process has open, one text for each descriptor."""
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return links


def remove_cgroups(namespace: str) -> None:
    """Remove the (empty) cgroups `/<namespace>` that runc leaves in every hierarchy."""
    for top in cgroups_named(namespace):
        for path, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)


def cgroups_below(namespace: str) -> list[str]:
    """Those of containers: the directories in `/<namespace>` of every hierarchy."""
    return [f"{top}/{name}" for top in cgroups_named(namespace) for name in next(os.walk(top), ("", [], []))[1]]


def cgroups_named(name: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"{line.split()[4]}/{name}" for line in lines if " - cgroup" in line]


def _environment(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
