"""A worker's hands: it has no children, so all that must run or die is asked of the keeper, each with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

from dunnage.cgroups import open_oom_watch
from dunnage.container.bundle import Bundle
from dunnage.container.facts import Mount
from dunnage.container.host import Death
from dunnage.container.process import UNKNOWN_STATUS
from dunnage.errors import DeadlineExceeded, Error, Unavailable
from dunnage.keeper.client import Child, Exit, Keeper
from dunnage.linux.attributes import Attributes
from dunnage.linux.mount import mount_all, unmount_all
from dunnage.runtime.client import CHECKPOINT_VERBS
from dunnage.stdio import LogDriver, PipeBudget
from dunnage.stdio.file import open_elsewhere
from dunnage.worker import reading

MOUNT = f"{mount_all.__module__}:{mount_all.__name__}"  # imported, and so in the warm image: an upgrade swaps files
OPEN = "dunnage.stdio.file:send_opened"
READ = "dunnage.worker.reading:send_content"
UNMOUNT = f"{unmount_all.__module__}:{unmount_all.__name__}"

_PROCESS = "process:"
"""How the processes of containers are claimed from the keeper; its other children are calls."""

_DRIVER = "driver:"
"""How log drivers are: they go on from worker to worker, until their process is deleted."""

PATHS = ("open:", "read:")
"""How the calls are named whose names go on with a path."""

_SWEEP_PAUSE_S = 1.0
_TRACED_PAUSE_S = (0.005, 0.5)  # between two looks at a child whose death its tracer keeps to itself: first, and most
_STUCK_S = 600.0  # a call that lasts longer has been given up by its caller


class _Suspect(NamedTuple):
    """A dead child that nobody has claimed yet."""

    started: int  # in clock ticks since boot: tells it from a later one of its pid
    made: int  # how many children had been made for workers when it was seen first
    cleared: bool  # none of those is left


class KeeperStore:
    """The keeper's store, as stdio sees it."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def store(self, name: str, fd: int) -> None:
        self._keeper.store(name, fd)

    def release(self, name: str) -> None:
        self._keeper.release(name)


class ProcessWatch:
    """A child of the keeper, watched by its pidfd until it is dead, written down, and reaped."""

    def __init__(self, host: KeeperHost, pid: int, pidfd: int, on_death: Callable[[Death], None]) -> None:
        self.pid = pid
        host.unseen.discard(pid)
        self._host = host
        self._pidfd = pidfd
        self._on_death: Callable[[Death], None] | None = on_death
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._dead)

    def signal(self, number: int) -> None:
        if self._pidfd < 0:
            raise ProcessLookupError(f"process {self.pid} has ended")
        signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Nothing is told any more; the process is reaped all the same when it dies."""
        self._on_death = None

    def _dead(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._host.in_background(self._record_and_reap())

    async def _record_and_reap(self) -> None:
        try:
            status = (await self._host.exit_of(self.pid)).status
        except (ChildProcessError, Unavailable) as error:
            self._host.log.error("the exit status of process %d is not known: %s", self.pid, error)
            status = UNKNOWN_STATUS
        finally:
            os.close(self._pidfd)
            self._pidfd = -1
        tell, self._on_death = self._on_death, None
        try:
            if tell is not None:
                tell(Death(status, time.time_ns()))
        finally:
            self._host.reap(self.pid)


class KeeperHost:
    """``container.Host`` and, for each set of attributes, ``runtime.Spawner``, over one keeper."""

    def __init__(
        self,
        keeper: Keeper,
        *,
        pipe_budget: PipeBudget,
        mount_timeout_s: float,
        runtime_timeout_s: float,
        checkpoint_timeout_s: float,
        log: logging.Logger,
    ) -> None:
        self.oom = open_oom_watch(log=log)
        self.keeper = keeper
        self.keep = KeeperStore(keeper)
        self.pipe_budget = pipe_budget
        self.log = log
        self._mount_timeout_s = mount_timeout_s
        self._runtime_timeout_s = runtime_timeout_s
        self._checkpoint_timeout_s = checkpoint_timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._suspects: dict[int, _Suspect] = {}
        self.unseen = set(keeper.children)
        """A former worker's processes and calls that nobody has watched yet."""
        self._kept = {pid for pid, name in keeper.children.items() if not name.startswith((_PROCESS, _DRIVER))}
        self._over: set[int] = set()  # of those that are kept
        self._inherited: dict[int, tuple[str, asyncio.Future[int], ProcessWatch]] = {}
        self._drivers: dict[int, KeeperDriver] = {}
        self._left_drivers: dict[str, list[int]] = {}
        for pid, name in keeper.children.items():
            if name.startswith(_DRIVER):
                self._left_drivers.setdefault(name, []).append(pid)
            elif not name.startswith(_PROCESS):
                self._see_to_its_end(pid, name)

    def watch(self, pid: int, on_death: Callable[[Death], None]) -> ProcessWatch:
        """Raises ProcessLookupError when there is no such process, not even a dead one."""
        pidfd = os.pidfd_open(pid)
        self.keeper.claim(f"{_PROCESS}{pid}", pid)
        return ProcessWatch(self, pid, pidfd, on_death)

    async def mount(self, name: str, rootfs: str, mounts: Sequence[Mount]) -> None:
        argument: dict[str, Any] = {"rootfs": rootfs, "mounts": [mount._asdict() for mount in mounts]}
        if any(mount.type.startswith("fuse") for mount in mounts):
            argument["launch"] = _read_launch(rootfs)
        await self._in_forked_child(f"mount:{name}", MOUNT, argument, f"mounting the rootfs {rootfs}")

    async def unmount(self, name: str, rootfs: str) -> None:
        argument = {"rootfs": rootfs, "env": (_read_launch(rootfs) or {}).get("env")}
        await self._in_forked_child(f"unmount:{name}", UNMOUNT, argument, f"unmounting the rootfs {rootfs}")

    async def run_elsewhere(self, name: str, entry: str, argument: object, what: str) -> None:
        await self._in_forked_child(name, entry, argument, what)

    async def open_elsewhere(self, path: str, make: bool) -> int:
        name = f"open:{path}"
        children: list[ProcessWatch] = []

        async def fork(argument: object, fds: Mapping[str, int]) -> None:
            child = await self._make(name, self.keeper.fork(name, OPEN, argument, fds=fds))
            children.append(ProcessWatch(self, child.pid, child.pidfd, _ignore))

        try:
            return await open_elsewhere(fork, path, make=make, deadline_s=self._mount_timeout_s)
        except (DeadlineExceeded, asyncio.CancelledError):
            for child in children:
                self.log.error("process %d (%s) is abandoned: nobody waits for it any longer", child.pid, name)
                with contextlib.suppress(ProcessLookupError):  # it ended just now
                    child.signal(signal.SIGKILL)
            raise

    async def read_file(self, path: str) -> bytes:
        """Read a file that may lie where reading sleeps. Raises InvalidArgument where it cannot be read,
        DeadlineExceeded when it does not answer."""
        content = os.memfd_create("dunnage content", os.MFD_CLOEXEC)
        try:
            await self._in_forked_child(f"read:{path}", READ, path, f"reading {path}", fds={reading.CONTENT: content})
            return reading.received(content, path)
        finally:
            os.close(content)

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        fds: Mapping[int, int],
        attributes: Attributes | None,
        deadline_s: float,
    ) -> Exit:
        """Run a program to its end. Raises TimeoutError after the deadline: the program is killed, and reaped when it
        has gone."""
        spawn = self.keeper.spawn(name, argv, env=env, cwd=cwd, fds=fds, attributes=attributes)
        return await self._call(name, spawn, deadline_s)

    async def spawn_driver(
        self, name: str, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, fds: Mapping[int, int],
        attributes: Attributes,
    ) -> KeeperDriver:  # fmt: skip
        """Run a log driver. Raises OSError; cancelled, it is killed also if the keeper makes it only later."""
        called = f"{_DRIVER}{name}"
        spawn = self.keeper.spawn(called, argv, env=env, cwd=cwd, fds=fds, attributes=attributes)
        child = await self._make(called, spawn)
        return self._note_driver(KeeperDriver(self, called, child.pid, child.pidfd))

    def drivers(self, name: str) -> list[KeeperDriver]:
        """The log drivers of this name that run, a former worker's too, in the order in which they were started."""
        called = f"{_DRIVER}{name}"
        for pid in self._left_drivers.pop(called, ()):
            if pid in self.unseen:
                self._take_driver(pid, called)
        return [driver for driver in self._drivers.values() if driver.name == called]

    @property
    def has_drivers(self) -> bool:
        """Whether any log driver is left: of a process, or one that is being stopped."""
        return bool(self._drivers)

    def _take_driver(self, pid: int, name: str) -> KeeperDriver | None:
        try:
            return self._note_driver(KeeperDriver(self, name, pid, os.pidfd_open(pid)))
        except ProcessLookupError:
            self.unseen.discard(pid)
            self.reap(pid)  # as in `_see_to_its_end`
            return None

    def _note_driver(self, driver: KeeperDriver) -> KeeperDriver:
        self.keeper.claim(driver.name, driver.pid)  # else it would pass for a call that is under way
        self._drivers[driver.pid] = driver
        driver.over.add_done_callback(lambda _: self._drivers.pop(driver.pid, None))
        return driver

    async def wait_inherited(self, call: str) -> int | None:
        """Wait for the calls of this name that a former worker began, and let go of them; the last one's status. One
        that hangs is killed."""
        status = None
        deadline_s = self._deadline_of(call)
        for pid, (name, over, watch) in list(self._inherited.items()):
            if name != call:
                continue
            try:
                async with asyncio.timeout(deadline_s):
                    status = await asyncio.shield(over)
            except TimeoutError:
                self.log.error("process %d (%s) of a former worker hangs: it is abandoned", watch.pid, name)
                try:
                    watch.signal(signal.SIGKILL)
                    _kill_helpers(pid, name)
                except ProcessLookupError:
                    pass  # it ended just now
            self._inherited.pop(pid, None)
        return status

    def _deadline_of(self, call: str) -> float:
        if not call.startswith("runtime:"):
            return self._mount_timeout_s
        verb = call.rpartition(":")[2]
        return self._checkpoint_timeout_s if verb in CHECKPOINT_VERBS else self._runtime_timeout_s

    @property
    def inherited_calls(self) -> Mapping[int, str]:
        """Of a former worker, those that nobody has let go of yet, by pid."""
        return {pid: name for pid, (name, _, _) in self._inherited.items()}

    def adopt_the_rest(self) -> None:
        """Every container of a former worker is watched: reap its other processes too, when they have ended."""
        for pid in tuple(self.unseen):
            name = self.keeper.children[pid]
            if not name.startswith(_DRIVER):
                self._see_to_its_end(pid, name)
            elif (driver := self._take_driver(pid, name)) is not None:
                of = name.removeprefix(_DRIVER)
                LogDriver(driver, f"logging binary of {of}, which is no more", log=self.log).stop()

    def recovered(self) -> None:
        """All that a former worker's calls have made is claimed, so that those which are over may go. Until then they
        say to the sweep of orphans (``_reap_orphans``) that somebody may be about to claim a child."""
        self._kept.clear()
        while self._over:
            self.reap(self._over.pop())

    async def exit_of(self, pid: int) -> Exit:
        """How a child ended that is dead. Where a debugger traces it, or criu, that is told first, and its parent
        hears of it when the tracer has let go. Raises ChildProcessError, Unavailable."""
        pause_s = _TRACED_PAUSE_S[0]
        while (exit := await self.keeper.peek(pid)) is None:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _TRACED_PAUSE_S[1])
        return exit

    def reap(self, pid: int) -> None:
        """Its end is written down: let the pid go."""
        if pid in self._kept:
            self._over.add(pid)
            return
        try:
            self.keeper.reap(pid)
        except Unavailable:
            pass  # without a keeper it is the child of init, which reaps

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def look_for_orphans(self) -> None:
        """A child died. If no worker claims a dead child now or a moment later, it is an orphan of some container."""
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(_SWEEP_PAUSE_S, self._begin_sweep)

    def _begin_sweep(self) -> None:
        self._sweep = None
        self.in_background(self._reap_orphans())

    async def _reap_orphans(self) -> None:
        """Reap what is nobody's. A call that began after a child was seen dead cannot have made it; so it is nobody's
        when none of the calls that were made before is left, and a moment later, in which their callers have read the
        pids, it is unclaimed still."""
        try:
            found = await self.keeper.unclaimed(in_flight_s=_STUCK_S)
        except Unavailable:
            return  # without a keeper they are the children of init
        suspects: dict[int, _Suspect] = {}
        for pid in found.pids:
            started = _start_of(pid)
            seen = self._suspects.get(pid)
            if seen is None or seen.started != started:
                seen = _Suspect(started, found.made, cleared=False)
            if seen.cleared:
                self.reap(pid)
            else:
                suspects[pid] = seen._replace(cleared=found.oldest > seen.made)
        self._suspects = suspects
        if suspects:
            self.look_for_orphans()

    async def _in_forked_child(
        self, name: str, entry: str, argument: object, what: str, *, fds: Mapping[str, int] | None = None
    ) -> None:
        """Raises Error: what the child said, or why there is none."""
        try:
            error_fd = os.memfd_create("dunnage error", os.MFD_CLOEXEC)
        except OSError as error:
            raise Error(f"{what} cannot begin: {error}") from error
        try:
            fork = self.keeper.fork(name, entry, argument, fds={"error": error_fd, **(fds or {})})
            try:
                exit = await self._call(name, fork, self._mount_timeout_s)
            except TimeoutError as error:
                raise DeadlineExceeded(f"{what} did not end within {self._mount_timeout_s:g} s; {error}") from error
            except OSError as error:
                raise Error(f"{what} cannot begin: {error}") from error
            if exit.status:
                text = os.pread(error_fd, 65536, 0).decode(errors="replace").strip()
                raise Error(text or f"{what} ended with status {exit.status}")
        finally:
            os.close(error_fd)

    async def _call(self, name: str, making: Coroutine[Any, Any, Child], deadline_s: float) -> Exit:
        """See a child from its making to its end, and reap it. Raises TimeoutError, saying what hangs, when it is
        abandoned: killed, also if the keeper makes it only later, and reaped when it has gone."""
        made = asyncio.get_running_loop().create_task(making)
        try:
            async with asyncio.timeout(deadline_s):
                child = await asyncio.shield(made)
                if _is_checkpoint(name):
                    self.keeper.claim(name, child.pid)  # no orphan is its child: none waits for its end to be reaped
                await _wait_dead(child.pidfd)
        except asyncio.CancelledError:
            made.add_done_callback(lambda made: self._abandon(made, name))
            raise
        except TimeoutError as error:
            made.add_done_callback(lambda made: self._abandon(made, name))
            hangs = f"process {made.result().pid}" if made.done() and made.exception() is None else "its start"
            raise TimeoutError(f"{hangs} hangs") from error
        os.close(child.pidfd)
        try:
            return await self.exit_of(child.pid)
        finally:
            # the caller goes on first: what it claims then is never without both a call and a claim
            asyncio.get_running_loop().call_soon(self.reap, child.pid)

    async def _make(self, name: str, making: Coroutine[Any, Any, Child]) -> Child:
        """A child whose end is another's to see; cancelled, it is killed also if the keeper makes it only later."""
        made = asyncio.get_running_loop().create_task(making)
        try:
            return await asyncio.shield(made)
        except asyncio.CancelledError:
            made.add_done_callback(lambda made: self._abandon(made, name))
            raise

    def _abandon(self, made: asyncio.Task[Child], name: str) -> None:
        if made.cancelled() or made.exception() is not None:
            return
        child = made.result()
        self.log.error("process %d (%s) is abandoned: nobody waits for it any longer", child.pid, name)
        try:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            _kill_helpers(child.pid, name)
        except ProcessLookupError:
            pass  # it ended just now
        ProcessWatch(self, child.pid, child.pidfd, _ignore)

    def _see_to_its_end(self, pid: int, name: str) -> None:
        """Reap a former worker's call when it has ended, also if nobody waits for it."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.unseen.discard(pid)
            self.reap(pid)  # it was reaped while this worker was being made; the keeper forgets its name
            return
        over: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def ended(death: Death) -> None:
            over.set_result(death.status)

        self._inherited[pid] = name, over, ProcessWatch(self, pid, pidfd, ended)


async def _wait_dead(pidfd: int) -> None:
    loop = asyncio.get_running_loop()
    dead = asyncio.Event()
    loop.add_reader(pidfd, dead.set)
    try:
        await dead.wait()
    finally:
        loop.remove_reader(pidfd)


def _is_checkpoint(call: str) -> bool:
    """A call that may take an hour, and makes nothing that is claimed."""
    return call.startswith("runtime:") and call.endswith(":checkpoint")


def _kill_helpers(pid: int, name: str) -> None:
    """A mount or unmount is given up: its process group has what its helpers left in the foreground. Its pid, not
    reaped yet, is nobody else's."""
    if name.startswith(("mount:", "unmount:")):
        with contextlib.suppress(ProcessLookupError):  # it has made no group yet, and so run no helper
            os.killpg(pid, signal.SIGKILL)


def _read_launch(rootfs: str) -> dict[str, Any] | None:
    """What the launcher handed down to the container with this rootfs; None: its bundle does not say."""
    try:
        bundle = Bundle.open(os.path.dirname(rootfs))
        try:
            return bundle.read_launch()
        finally:
            bundle.close()
    except Error:
        return None


def _start_of(pid: int) -> int:
    """0 for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[19])  # field 22 of proc(5)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _ignore(death: Death) -> None:
    """For what nobody waits for: it is only reaped."""


class KeeperDriver:
    """A log driver's process, the keeper's child (``stdio.driver.DriverProcess``)."""

    def __init__(self, host: KeeperHost, name: str, pid: int, pidfd: int) -> None:
        self.name = name
        self.pid = pid
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._watch = ProcessWatch(host, pid, pidfd, lambda death: self.over.set_result(death.status))

    def signal(self, number: int) -> None:
        self._watch.signal(number)

    async def wait(self) -> int:
        return await asyncio.shield(self.over)


class ContainerSpawner:
    """Runs a container's runtime with what its launcher handed down (``runtime.Spawner``); ``core_peer`` says for each
    call whose core scheduling domain it shares (``Attributes.core_peer``)."""

    def __init__(
        self, host: KeeperHost, attributes: Attributes, *, core_peer: Callable[[], int | None] = lambda: None
    ) -> None:
        self._host = host
        self._attributes = attributes
        self._core_peer = core_peer

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
        attributes = self._attributes._replace(core_peer=self._core_peer())
        return await self._host.run(name, argv, env=env, cwd=cwd, fds=fds, attributes=attributes, deadline_s=deadline_s)
