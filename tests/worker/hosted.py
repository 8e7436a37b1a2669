"""Scenarios for ``KeeperHost``, run by a real worker of a real keeper; ``test_host.py`` asks for them by name.

A scenario that ends its worker (``die``) is asked for again of the next one, which finds what is in ``keeper``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from dunnage.container.bundle import Bundle
from dunnage.container.facts import Mount
from dunnage.container.host import Death
from dunnage.errors import DeadlineExceeded, Error, InvalidArgument
from dunnage.keeper.client import Exit, Inherited, Keeper, Unclaimed
from dunnage.linux.attributes import Attributes
from dunnage.stdio import PipeBudget
from dunnage.worker import host as host_module
from dunnage.worker.host import KeeperHost

LIMIT_S = 20.0


class Scene:
    """A worker with a host."""

    def __init__(self, inherited: Inherited) -> None:
        self.keeper = Keeper(inherited)
        self.logged: list[str] = []
        self.has_logged = asyncio.Event()
        log = logging.Logger("scene")
        handler = logging.Handler()
        handler.emit = self._note  # type: ignore[method-assign]  # a list
        log.addHandler(handler)
        self.host = KeeperHost(
            self.keeper,
            pipe_budget=PipeBudget(),
            mount_timeout_s=0.2,
            runtime_timeout_s=LIMIT_S,
            checkpoint_timeout_s=LIMIT_S,
            log=log,
        )
        self.keeper.on_child = self.host.look_for_orphans
        host_module._SWEEP_PAUSE_S = 0.2
        self.control = socket.socket(fileno=os.dup(self.keeper.fds["control"]))
        self.control.setblocking(False)
        self.state = Path(self.control.getsockname()).parent

    def _note(self, record: logging.LogRecord) -> None:
        self.logged.append(record.getMessage())
        self.has_logged.set()

    async def run(self, name: str, *argv: str, deadline_s: float = LIMIT_S, fds: dict[int, int] | None = None) -> Exit:
        return await self.host.run(
            name, argv, env={"PATH": os.defpath}, cwd="/", fds=fds or {}, attributes=None, deadline_s=deadline_s
        )

    async def begin(self, name: str, script: str) -> tuple[asyncio.Task[Exit], int, int]:
        """A call that writes a number, which is given back, and lasts until the descriptor is closed."""
        said, said_by_call = os.pipe()
        held, end = os.pipe()
        call = asyncio.create_task(self.run(name, "sh", "-c", f"{script}; cat", fds={0: held, 1: said_by_call}))
        number = int(await asyncio.to_thread(os.read, said, 100))
        for fd in (said, said_by_call, held):
            os.close(fd)
        return call, end, number

    def is_child(self, pid: int) -> bool:
        return os.path.exists(f"/proc/{pid}")

    async def wait_reaped(self, pid: int) -> None:
        """Nothing tells of a reaping: look again in each turn."""
        async with asyncio.timeout(LIMIT_S):
            while self.is_child(pid):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def scenario_a_call_is_seen_to_its_end(self) -> None:
        assert await self.run("runtime:a:ps", "sh", "-c", "exit 3") == Exit(3, None)
        assert await self.run("runtime:a:ps", "sh", "-c", "kill -9 $$") == Exit(None, 9)
        await asyncio.sleep(0)  # who has asked goes on first
        found = await self.keeper.unclaimed(in_flight_s=600)
        assert (found.pids, found.oldest) == (frozenset(), found.made + 1)
        with pytest.raises(FileNotFoundError, match="executable file not found"):
            await self.run("runtime:a:ps", "no-such-program")

    async def scenario_a_death_that_its_tracer_keeps_to_itself_is_waited_for(self) -> None:
        """As criu's is, which traces what it dumps: the pidfd says dead before a parent can ask how."""
        peek, kept = self.keeper.peek, 3

        async def traced(pid: int) -> Exit | None:
            nonlocal kept
            kept -= 1
            return await peek(pid) if kept < 0 else None

        self.keeper.peek = traced  # type: ignore[method-assign]  # the kernel's part
        assert await self.run("runtime:a:ps", "sh", "-c", "exit 3") == Exit(3, None)
        assert kept < 0

    async def scenario_a_call_that_hangs_is_killed_and_reaped(self) -> None:
        read, write = os.pipe()
        with pytest.raises(TimeoutError) as told:
            await self.run("runtime:a:ps", "sh", "-c", "echo $$; exec sleep 100", deadline_s=0.5, fds={1: write})
        pid = int(os.read(read, 100))
        assert str(told.value) == f"process {pid} hangs"
        await self.wait_reaped(pid)
        assert self.logged == [f"process {pid} (runtime:a:ps) is abandoned: nobody waits for it any longer"]

    async def scenario_a_call_whose_caller_goes_is_killed_whenever_it_is_made(self) -> None:
        call = asyncio.create_task(self.run("runtime:a:ps", "sleep", "100"))
        await asyncio.sleep(0)  # asked for, and not made yet
        call.cancel()
        await asyncio.wait((call,))
        assert call.cancelled()
        await self.has_logged.wait()
        await self.wait_reaped(int(self.logged[0].split()[1]))

    async def scenario_a_mount_that_fails_or_hangs_is_told(self) -> None:
        rootfs = self.state / "rootfs"
        rootfs.mkdir()
        with pytest.raises(Error, match="/nowhere"):
            await self.host.mount("default/c1", str(rootfs), [Mount("bind", "/nowhere", "", ("rbind",))])
        host_module.UNMOUNT = "tests.worker.hosted:hang"
        hangs = f"unmounting the rootfs {rootfs} did not end within 0.2 s; process [0-9]+ hangs"
        with pytest.raises(DeadlineExceeded, match=hangs):
            await self.host.unmount("default/c1", str(rootfs))

    async def scenario_what_mounts_and_unmounts_is_in_the_warm_image(self) -> None:
        """The files of an upgrade would else be run by what came before it."""
        entries = (host_module.MOUNT, host_module.UNMOUNT, host_module.OPEN, host_module.READ)
        missing = [entry for entry in entries if entry.partition(":")[0] not in sys.modules]
        assert not missing

    def mount_by_hanging_helper(self) -> asyncio.Task[None]:
        """A mount whose helper, found by what the launcher handed down, and the helper's own child never end."""
        rootfs, programs = self.state / "bundle" / "rootfs", self.state / "bin"
        rootfs.mkdir(parents=True)
        programs.mkdir()
        os.mkfifo(self.state / "pids")
        (programs / "mount.fuse").write_text('#!/bin/sh\n/bin/sleep 100 &\necho $$ $! > "$PIDS"\nwait\n')
        (programs / "mount.fuse").chmod(0o755)
        bundle = Bundle.open(str(rootfs.parent))
        env = {"PATH": str(programs), "PIDS": str(self.state / "pids")}
        bundle.write_launch({"env": env, "attributes": Attributes.of(os.getpid()).to_json()})
        bundle.close()
        return asyncio.create_task(self.host.mount("default/c1", str(rootfs), [Mount("fuse.x", "s", "", ())]))

    async def helpers(self) -> list[int]:
        return [int(pid) for pid in (await asyncio.to_thread((self.state / "pids").read_text)).split()]

    async def scenario_the_helpers_of_a_mount_that_hangs_go_with_it(self) -> None:
        self.host._mount_timeout_s = LIMIT_S
        mounting = self.mount_by_hanging_helper()
        pids = await self.helpers()
        assert len(pids) == 2
        mounting.cancel()
        for pid in pids:
            await self.wait_reaped(pid)

    async def scenario_the_helpers_of_an_inherited_mount_that_hangs_go_with_it(self) -> None:
        if not self.keeper.children:
            self.host._mount_timeout_s = LIMIT_S
            mounting = self.mount_by_hanging_helper()
            (self.state / "told").write_text(json.dumps(await self.helpers()))
            assert not mounting.done()
            die()
        await self.host.wait_inherited("mount:default/c1")
        self.host.recovered()
        for pid in json.loads((self.state / "told").read_text()):
            await self.wait_reaped(pid)

    async def scenario_an_open_that_hangs_is_named_and_killed(self) -> None:
        host_module.OPEN = "tests.worker.hosted:hang"
        path = f"{self.state}/x"
        with pytest.raises(DeadlineExceeded, match=rf"^opening {path} took more than 0\.2 s$"):
            await self.host.open_elsewhere(path, False)
        self.host._mount_timeout_s = LIMIT_S
        opening = asyncio.create_task(self.host.open_elsewhere(path, True))
        await asyncio.sleep(0)  # begun, and asked for in the turn after that
        opening.cancel()
        await asyncio.wait((opening,))
        while len(self.logged) < 2:
            self.has_logged.clear()
            await self.has_logged.wait()
        for line in self.logged:
            assert line.endswith(f" (open:{path}) is abandoned: nobody waits for it any longer")
            await self.wait_reaped(int(line.split()[1]))

    async def scenario_a_file_is_read_where_that_may_hang(self) -> None:
        path = self.state / "file"
        path.write_bytes(b"a\xffb")
        assert await self.host.read_file(str(path)) == b"a\xffb"
        path.write_bytes(bytes(1 << 20))
        assert await self.host.read_file(str(path)) == bytes(1 << 20)
        path.write_bytes(bytes((1 << 20) + 1))
        os.mkfifo(self.state / "fifo")
        for name, reason in (
            ("none", "no such file or directory"),
            ("file/x", "not a directory"),
            ("", "is a directory"),
            ("fifo", "it is not a regular file"),
            ("file", "it is longer than 1048576 bytes"),
        ):
            with pytest.raises(InvalidArgument, match=rf"^{self.state}/{name} cannot be read: {reason}$"):
                await self.host.read_file(f"{self.state}/{name}")
        host_module.READ = "tests.worker.hosted:hang"
        hangs = f"^reading {path} did not end within 0.2 s; process [0-9]+ hangs$"
        with pytest.raises(DeadlineExceeded, match=hangs):
            await self.host.read_file(str(path))

    async def scenario_a_death_is_told_before_the_process_is_reaped(self) -> None:
        child = await self.keeper.spawn(
            "process:init", ["sh", "-c", "exit 7"], env={"PATH": os.defpath}, cwd="/", fds={}
        )
        seen: asyncio.Future[tuple[Death, bool]] = asyncio.get_running_loop().create_future()
        before = time.time_ns()
        watch = self.host.watch(child.pid, lambda death: seen.set_result((death, self.is_child(child.pid))))
        death, was_there = await seen
        assert death.status == 7
        assert before <= death.seen_at <= time.time_ns()
        assert was_there
        await self.wait_reaped(child.pid)
        with pytest.raises(ProcessLookupError):
            watch.signal(9)

    async def scenario_a_death_that_nobody_can_note_is_reaped_all_the_same(self) -> None:
        child = await self.keeper.spawn("process:init", ["true"], env={"PATH": os.defpath}, cwd="/", fds={})

        def fail(death: Death) -> None:
            raise ValueError("a mistake")

        self.host.watch(child.pid, fail)
        await self.wait_reaped(child.pid)

    async def scenario_an_orphan_that_nobody_claims_is_reaped(self) -> None:
        read, write = os.pipe()
        await self.run("runtime:a:ps", "sh", "-c", "sh -c 'echo $$' &", fds={1: write})
        await self.wait_reaped(int(os.read(read, 100)))

    async def scenario_an_orphan_is_reaped_however_busy_the_node_is(self) -> None:
        read, write = os.pipe()
        await self.run("runtime:a:ps", "sh", "-c", "sh -c 'echo $$' &", fds={1: write})
        pid = int(os.read(read, 100))
        call, end, _ = await self.begin("runtime:b:ps", "echo 1")
        while self.is_child(pid):
            later_call, later_end, _ = await self.begin("runtime:b:ps", "echo 1")
            os.close(end)
            await call
            call, end = later_call, later_end
        os.close(end)
        await call

    async def scenario_the_oldest_call_in_flight_is_known(self) -> None:
        made = (await self.keeper.unclaimed(in_flight_s=600)).made
        calls = [await self.begin("runtime:b:ps", "echo 1") for _ in range(2)]
        for number, (call, end, _) in enumerate(calls, start=1):
            found = await self.keeper.unclaimed(in_flight_s=600)
            assert (found.made, found.oldest) == (made + 2, made + number)
            os.close(end)
            await call
            await asyncio.sleep(0)
        assert (await self.keeper.unclaimed(in_flight_s=600)).oldest == made + 3
        assert (await self.keeper.unclaimed(in_flight_s=0)).oldest == made + 3

    async def scenario_an_orphan_is_reaped_while_a_checkpoint_takes_its_time(self) -> None:
        """It may be in a pid namespace, whose init cannot end before it is reaped."""
        read, write = os.pipe()
        call, end, _ = await self.begin("runtime:b:checkpoint", "echo 1")
        await self.run("runtime:a:ps", "sh", "-c", "sh -c 'echo $$' &", fds={1: write})
        await self.wait_reaped(int(os.read(read, 100)))
        assert not call.done()
        os.close(end)
        assert (await call).status == 0

    async def scenario_a_checkpoint_of_a_former_worker_is_waited_for(self) -> None:
        if not self.keeper.children:
            _, _, pid = await self.begin("runtime:b:checkpoint", "echo $$")
            (self.state / "checkpoint").write_text(str(pid))
            await self.keeper.unclaimed(in_flight_s=600)  # whoever is answered has been heard before
            die()
        pid = int((self.state / "checkpoint").read_text())
        assert self.host.inherited_calls == {pid: "runtime:b:checkpoint"}
        assert await self.host.wait_inherited("runtime:b:checkpoint") == 0
        self.host.recovered()
        await self.wait_reaped(pid)

    async def scenario_a_log_driver_is_no_call_in_flight_and_is_found_again(self) -> None:
        settings: dict[str, Any] = {"env": {}, "cwd": "/", "fds": {}, "attributes": Attributes.of(os.getpid())}
        if not self.keeper.children:
            driver = await self.host.spawn_driver("default/c1", ["/bin/sleep", "100"], **settings)
            await self.host.spawn_driver("default/c10", ["/bin/sleep", "100"], **settings)
            found = await self.keeper.unclaimed(in_flight_s=600)
            assert (found.made, found.oldest) == (2, 3)
            (self.state / "driver").write_text(str(driver.pid))
            die()
        (driver,) = self.host.drivers("default/c1")
        assert self.host.drivers("default/c1") == [driver]
        assert driver.pid == int((self.state / "driver").read_text())
        assert len(self.host.unseen) == 1, "the other one is left for whom it belongs to"
        driver.signal(9)
        assert await driver.wait() == 137
        await self.wait_reaped(driver.pid)
        assert not self.host.drivers("default/c1")
        with pytest.raises(FileNotFoundError, match="fork/exec /nowhere: no such file or directory"):
            await self.host.spawn_driver("default/c1", ["/nowhere"], **settings)

    async def scenario_a_log_driver_that_nobody_waits_for_is_not_left(self) -> None:
        attributes = Attributes.of(os.getpid())
        starting = asyncio.create_task(
            self.host.spawn_driver("default/c1", ["/bin/sleep", "100"], env={}, cwd="/", fds={}, attributes=attributes)
        )
        await asyncio.sleep(0)  # asked for, and not made yet
        starting.cancel()
        await asyncio.wait((starting,))
        await self.has_logged.wait()
        await self.wait_reaped(int(self.logged[0].split()[1]))

    async def scenario_a_dead_child_that_a_call_in_flight_may_have_made_is_left_for_it(self) -> None:
        swept = asyncio.Queue[frozenset[int]]()
        unclaimed = self.keeper.unclaimed

        async def unclaimed_and_told(*, in_flight_s: float) -> Unclaimed:
            found = await unclaimed(in_flight_s=in_flight_s)
            swept.put_nowait(found.pids)
            return found

        self.keeper.unclaimed = unclaimed_and_told  # type: ignore[method-assign]  # it says when it is asked
        call, end, pid = await self.begin("runtime:a:exec", "(sh -c 'echo $$' &)")
        for _ in range(4):
            while pid not in await swept.get():
                pass
            await self.run("runtime:b:ps", "true")
        assert self.is_child(pid)
        os.close(end)
        await call
        await self.wait_reaped(pid)

    async def scenario_an_inherited_call_is_waited_for_and_reaped(self) -> None:
        release = self.state / "release"
        if not release.exists():
            os.mkfifo(release)
            for verb in ("create", "kill"):
                await self.keeper.spawn(
                    f"runtime:default/c1:{verb}",
                    ["sh", "-c", f"read line < {release}; exit 1"],
                    env={"PATH": os.defpath},
                    cwd="/",
                    fds={},
                )
            die()
        calls = {name: pid for pid, name in self.keeper.children.items()}
        assert sorted(calls) == ["runtime:default/c1:create", "runtime:default/c1:kill"]
        await self.host.wait_inherited("runtime:default/c10:create")
        await self.host.wait_inherited("runtime:default/c1:crea")
        waiting = [asyncio.create_task(self.host.wait_inherited("runtime:default/c1:create")) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        release.write_text("")
        await asyncio.gather(*waiting)
        await self.host.wait_inherited("runtime:default/c1:kill")
        assert all(map(self.is_child, calls.values())), "what they have made is not claimed yet"
        self.host.recovered()
        for pid in calls.values():
            await self.wait_reaped(pid)  # also the one that nobody waited for
        await self.host.wait_inherited("runtime:default/c1:create")

    async def scenario_an_inherited_call_that_hangs_is_killed(self) -> None:
        if not self.keeper.children:
            await self.keeper.spawn(
                "runtime:default/c1:create", ["sleep", "100"], env={"PATH": os.defpath}, cwd="/", fds={}
            )
            die()
        (pid,) = self.keeper.children
        self.host._runtime_timeout_s = 0.1
        await self.host.wait_inherited("runtime:default/c1:create")
        self.host.recovered()
        await self.wait_reaped(pid)
        assert self.logged == [f"process {pid} (runtime:default/c1:create) of a former worker hangs: it is abandoned"]

    async def scenario_an_inherited_checkpoint_has_the_deadline_of_checkpoints(self) -> None:
        if not self.keeper.children:
            await self.keeper.spawn(
                "runtime:default/c1:checkpoint", ["sleep", "100"], env={"PATH": os.defpath}, cwd="/", fds={}
            )
            die()
        (pid,) = self.keeper.children
        self.host._checkpoint_timeout_s = 0.1
        await self.host.wait_inherited("runtime:default/c1:checkpoint")
        self.host.recovered()
        await self.wait_reaped(pid)

    async def scenario_an_inherited_mount_has_the_deadline_of_mounts(self) -> None:
        if not self.keeper.children:
            await self.keeper.spawn("mount:default/c1", ["sleep", "100"], env={"PATH": os.defpath}, cwd="/", fds={})
            die()
        (pid,) = self.keeper.children
        await self.host.wait_inherited("mount:default/c1")
        self.host.recovered()
        await self.wait_reaped(pid)
        assert self.logged == [f"process {pid} (mount:default/c1) of a former worker hangs: it is abandoned"]


def hang(argument: Any, fds: Any) -> int:
    signal.pause()
    return 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(argument: Any, inherited: Inherited) -> int:
    asyncio.run(_serve(inherited))
    return 0


async def _serve(inherited: Inherited) -> None:
    scene = Scene(inherited)
    loop = asyncio.get_running_loop()
    while True:
        connection, _ = await loop.sock_accept(scene.control)
        with connection:
            name = (await loop.sock_recv(connection, 4096)).decode()
            try:
                async with asyncio.timeout(LIMIT_S):
                    await getattr(scene, f"scenario_{name}")()
                answer = ""
            except Exception:  # noqa: BLE001 - the test shows it
                answer = traceback.format_exc() + "".join(f"\nlogged: {line}" for line in scene.logged)
            print(answer, file=sys.stderr)
            await loop.sock_sendall(connection, json.dumps(answer).encode())
