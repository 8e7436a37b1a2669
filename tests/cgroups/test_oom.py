from __future__ import annotations

import asyncio
import logging
import os
import select
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.cgroups import live
from tests.cgroups.trees import copied

from dunnage.cgroups import OomWatch, V1Cgroup, V2Cgroup, is_unified, open_oom_watch
from dunnage.cgroups.inotify import Inotify
from dunnage.cgroups.oom import V1OomWatch, V2OomWatch
from dunnage.errors import NotFound

LOG = logging.getLogger(__name__)
LIMIT_BYTES = 8 << 20


class Told:
    """Counts what a watch tells, and can be waited for."""

    def __init__(self) -> None:
        self.times = 0
        self.count = 0
        self._changed = asyncio.Event()

    def __call__(self, count: int) -> None:
        self.times += 1
        self.count = count
        self._changed.set()

    async def wait(self) -> None:
        async with asyncio.timeout(20):
            await self._changed.wait()
        self._changed.clear()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await test()

    asyncio.run(whole())


async def turns(count: int = 5) -> None:
    """Let the loop look at its descriptors."""
    for _ in range(count):
        await asyncio.sleep(0)


def write_kills(tree: Path, count: int) -> None:
    """In place, as the kernel changes it."""
    with (tree / "memory.events").open("r+") as file:
        file.write(f"low 0\nhigh 0\nmax 9\noom 9\noom_kill {count}\noom_group_kill 0\n")
        file.truncate()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = copied("v2", tmp_path)
    write_kills(tree, 0)
    return tree


@pytest.fixture
def memory_cgroup() -> Iterator[V1Cgroup]:
    with live.v1_cgroup(limit_bytes=LIMIT_BYTES) as cgroup:
        yield cgroup


# v2, on directories that a test changes as the kernel does


def test_v2_tells_once_for_each_growth(tree: Path) -> None:
    async def test() -> None:
        watch, told = V2OomWatch(log=LOG), Told()
        watch.watch("c", V2Cgroup(str(tree)), told)
        assert told.times == 0
        write_kills(tree, 1)
        await told.wait()
        write_kills(tree, 1)  # changed, not grown
        await turns()
        assert told.times == 1
        write_kills(tree, 3)
        await told.wait()
        assert told.times == 2
        watch.close()

    run(test)


def test_v2_looks_a_last_time_and_tells_nothing_twice(tree: Path) -> None:
    async def test() -> None:
        watch, told = V2OomWatch(log=LOG), Told()
        watch.watch("c", V2Cgroup(str(tree)), told)
        write_kills(tree, 2)
        assert watch.final("c") == 2
        assert told.times == 1
        assert watch.final("c") == 0
        await turns()  # inotify's own word comes after
        assert told.times == 1
        watch.close()

    run(test)


def test_v2_goes_on_from_what_was_told(tree: Path) -> None:
    async def test() -> None:
        watch, told = V2OomWatch(log=LOG), Told()
        watch.watch("c", V2Cgroup(str(tree)), told)
        write_kills(tree, 1)
        assert watch.final("c") == 1
        assert told.count == 1
        watch.close()
        again = Told()
        watch = V2OomWatch(log=LOG)
        watch.watch("c", V2Cgroup(str(tree)), again, told=told.count)
        assert again.times == 0
        watch.close()
        write_kills(tree, 3)  # while there is no worker
        watch = V2OomWatch(log=LOG)
        watch.watch("c", V2Cgroup(str(tree)), again, told=told.count)
        assert (again.times, again.count) == (1, 3)
        watch.close()

    run(test)


def test_v2_tells_each_container_of_its_own_cgroup(tree: Path, tmp_path: Path) -> None:
    async def test() -> None:
        other = Path(shutil.copytree(tree, tmp_path / "other"))
        watch = V2OomWatch(log=LOG)
        one, two, same = Told(), Told(), Told()
        watch.watch("one", V2Cgroup(str(tree)), one)
        watch.watch("two", V2Cgroup(str(other)), two)
        watch.watch("same", V2Cgroup(str(tree)), same)
        watch.unwatch("one")
        watch.unwatch("one")
        write_kills(tree, 1)
        await same.wait()
        assert (one.times, two.times, same.times) == (0, 0, 1)
        assert watch.final("one") == 0
        watch.close()

    run(test)


def test_v2_outlives_a_cgroup_that_vanishes(tree: Path) -> None:
    async def test() -> None:
        watch, told = V2OomWatch(log=LOG), Told()
        watch.watch("c", V2Cgroup(str(tree)), told)
        shutil.rmtree(tree)
        await turns()
        assert watch.final("c") == 0
        watch.unwatch("c")
        watch.close()
        assert told.times == 0

    run(test)


def test_v2_logs_events_that_can_not_be_understood(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        watch, told = V2OomWatch(log=LOG), Told()
        watch.watch("c", V2Cgroup(str(tree)), told)
        (tree / "memory.events").write_text("what\n")
        assert watch.final("c") == 0
        watch.close()

    run(test)
    assert "out-of-memory kills of c are unknown: memory.events line 1" in caplog.text


def test_v2_without_the_memory_controller_is_not_found(tmp_path: Path) -> None:
    async def test() -> None:
        watch = V2OomWatch(log=LOG)
        with pytest.raises(NotFound, match=r"has no memory\.events$"):
            watch.watch("c", V2Cgroup(str(tmp_path)), Told())
        watch.close()

    run(test)


def test_a_file_of_a_cgroup_tells_inotify_of_its_changes() -> None:
    """What v2's watch rests on, tried on a cgroup of the kernel's: its events file says when it gets processes."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line]
    if not mounts or os.geteuid() != 0:
        pytest.skip("needs a host with cgroup v1 and v2 side by side, and root")
    directory = Path(mounts[0]) / f"dunnage-test-{os.getpid()}"
    directory.mkdir()
    inotify = Inotify()
    try:
        watch = inotify.add(str(directory / "cgroup.events"))
        assert inotify.changed() == set()
        with live.process_in(V1Cgroup({"unified": str(directory)}), "true"):
            assert select.select([inotify.fd], [], [], 20)[0]
            assert inotify.changed() == {watch}
    finally:
        inotify.close()
        directory.rmdir()


# v1, live


def test_v1_tells_a_real_kill_exactly_once_and_before_the_exit(memory_cgroup: V1Cgroup) -> None:
    async def test() -> None:
        watch, told = V1OomWatch(log=LOG), Told()
        watch.watch("c", memory_cgroup, told)
        with live.process_in(memory_cgroup, f"exec {live.EAT}") as process:
            pidfd = os.pidfd_open(process.pid)
            live.begin(process)
            assert select.select([pidfd], [], [], 20)[0]
            os.close(pidfd)
            assert watch.final("c") == 1  # the loop had no chance to look: the exit is not told before
            assert told.times == 1
        await turns()  # the signals, of which there may be two, come after
        assert told.times == 1
        assert watch.final("c") == 0
        watch.close()

    run(test)


def test_v1_tells_each_kill_while_the_init_lives_on(memory_cgroup: V1Cgroup) -> None:
    async def test() -> None:
        watch, told = V1OomWatch(log=LOG), Told()
        watch.watch("c", memory_cgroup, told)
        with live.process_in(memory_cgroup, f"while {live.EAT}; echo over; read line; do :; done") as process:
            assert process.stdout is not None
            for kill in range(1, 6):
                live.begin(process)
                await told.wait()
                assert process.stdout.readline() == b"over\n"
                assert told.times == kill
        watch.close()

    run(test)


def test_v1_looks_again_when_it_is_signalled_before_the_kill_is_counted(tmp_path: Path) -> None:
    """On a directory of files, where signal and count are the test's own."""

    async def test() -> None:
        control = tmp_path / "memory.oom_control"
        control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
        (tmp_path / "cgroup.event_control").touch()
        watch, told = V1OomWatch(log=LOG), Told()
        watch.watch("c", V1Cgroup({"memory": str(tmp_path)}), told)
        os.eventfd_write(int((tmp_path / "cgroup.event_control").read_text().split()[0]), 1)
        await turns()
        assert told.times == 0
        control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
        await told.wait()
        assert told.times == 1
        watch.close()

    run(test)


def test_v1_tells_every_signal_where_the_kernel_is_to_kill_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "memory.oom_control").write_text("oom_kill_disable 1\nunder_oom 1\noom_kill 0\n")
        (tmp_path / "cgroup.event_control").touch()
        watch, told = V1OomWatch(log=LOG), Told()
        watch.watch("c", V1Cgroup({"memory": str(tmp_path)}), told)
        os.eventfd_write(int((tmp_path / "cgroup.event_control").read_text().split()[0]), 1)
        await told.wait()
        assert told.times == 1
        assert watch.final("c") == 0
        watch.close()

    run(test)


def test_v1_tells_a_kill_in_a_cgroup_below(memory_cgroup: V1Cgroup) -> None:
    async def test() -> None:
        watch, told = V1OomWatch(log=LOG), Told()
        watch.watch("c", memory_cgroup, told)
        below = Path(memory_cgroup.directories["memory"], "below")
        below.mkdir()
        with live.process_in(V1Cgroup({"memory": str(below)}), f"exec {live.EAT}") as process:
            live.begin(process)
            await told.wait()
        below.rmdir()
        assert watch.final("c") == 0
        assert told.times == 1
        watch.close()

    run(test)


def test_v1_recovers_a_kill_that_nobody_saw(memory_cgroup: V1Cgroup) -> None:
    async def test() -> None:
        watch, told = V1OomWatch(log=LOG), Told()
        watch.watch("c", memory_cgroup, told)
        watch.close()
        with live.process_in(memory_cgroup, f"exec {live.EAT}") as process:
            live.begin(process)
            assert process.wait(20) == -9
        for _ in range(2):  # and a second recovery tells nothing
            watch = V1OomWatch(log=LOG)
            watch.watch("c", memory_cgroup, told, told=told.count)
            assert (told.times, told.count) == (1, 1)
            watch.close()

    run(test)


def test_v1_takes_the_removal_of_a_cgroup_for_no_kill(memory_cgroup: V1Cgroup) -> None:
    async def test() -> None:
        watch, told = V1OomWatch(log=LOG), Told()
        watch.watch("c", memory_cgroup, told)
        eventfd = watch._watched["c"].eventfd
        os.rmdir(memory_cgroup.directories["memory"])
        assert select.select([eventfd], [], [], 20)[0]
        await turns()
        assert told.times == 0
        assert not select.select([eventfd], [], [], 0)[0]
        assert watch.final("c") == 0
        watch.close()

    run(test)


def test_v1_without_the_memory_controller_is_not_found(tmp_path: Path) -> None:
    async def test() -> None:
        watch = V1OomWatch(log=LOG)
        with pytest.raises(NotFound, match=r"^memory cgroup not supported on this system$"):
            watch.watch("c", V1Cgroup({"cpu": str(tmp_path)}), Told())
        with pytest.raises(NotFound, match=r"memory\.oom_control does not exist$"):
            watch.watch("c", V1Cgroup({"memory": str(tmp_path)}), Told())
        watch.close()

    run(test)


def test_the_watch_is_the_one_that_fits_the_host() -> None:
    async def test() -> None:
        watch: OomWatch = open_oom_watch(log=LOG)
        assert isinstance(watch, V2OomWatch if is_unified() else V1OomWatch)
        watch.close()

    run(test)
