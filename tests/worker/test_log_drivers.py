"""Log drivers under a real keeper: a worker may die before any of its effects, and each driver's log is whole, nobody's
driver runs beside another's, and none is left."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path
from typing import cast

import pytest
from tests.worker import mortal
from tests.worker.house import LOG, NAMESPACE, House, children, open_house
from tests.worker.test_worker import Keep

from dunnage.config import Config
from dunnage.keeper.client import Keeper
from dunnage.worker import worker as worker_module
from dunnage.worker.host import KeeperHost
from dunnage.worker.worker import Worker

pytestmark = pytest.mark.real

DRIVER = r"""#!/bin/sh
# Says if it runs beside another of its process.
tr '\0' '\n' </proc/$$/environ >"$0.env.$$"
. "$0.env.$$"
for pid in $(cat "$0.$CONTAINER_ID.pids" 2>/dev/null); do
    if kill -0 $pid 2>/dev/null; then echo $pid and $$ >>"$0.twice"; fi
done
echo $$ >>"$0.$CONTAINER_ID.pids"
printf r >&5
exec 5>&-
cat <&3 >>"$0.$CONTAINER_ID.out" & cat <&4 >>"$0.$CONTAINER_ID.err" &
wait
echo $$ >>"$0.$CONTAINER_ID.done"
"""
STRIDE = 47  # of the effects that the default run tries; the long run tries every third
LONG_STRIDE = 3


async def live(house: House, driver: Path) -> None:
    """The life of a container with an exec, each with a driver."""
    uri = f"binary-v2://{driver}"
    script = "trap 'exit 5' TERM; echo up; echo oops >&2; seq 1 50000; while :; do sleep 0.01; done"
    task = await house.start_shim("c1", ["sh", "-c", script])
    await task.create(stdout=uri, stderr=uri)
    waiting = asyncio.create_task(task.call("Wait"))
    await task.call("Start")
    await task.exec("e1", ["sh", "-c", "echo once; exit 3"], stdout=uri, stderr=uri)
    await task.call("Start", exec_id="e1")
    assert (await task.call("Wait", exec_id="e1")).exit_status == 3
    assert (await task.call("Delete", exec_id="e1")).exit_status == 3
    await task.call("Kill", signal=signal.SIGTERM)
    assert (await waiting).exit_status == 5
    assert (await task.call("Delete")).exit_status == 5
    await task.call("Shutdown")
    assert (await house.launch("delete", "c1")).status == 0
    await house.wait_told("c1", "Delete")


def die_at(effect: int, directory: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the worker came to that effect, and so was killed."""
    number = directory / "effect"
    number.write_text(str(effect))
    monkeypatch.setenv(mortal.FILE, str(number))
    driver = directory / "driver"
    driver.write_text(DRIVER)
    driver.chmod(0o755)

    def written(kind: str) -> bytes:
        path = directory / f"driver.{kind}"
        return path.read_bytes() if path.exists() else b""

    async def whole() -> bool:
        async with asyncio.timeout(60), open_house(directory, rootfs, worker="tests.worker.mortal:main") as house:
            try:
                await live(house, driver)
                numbers = b"".join(b"%d\n" % number for number in range(1, 50_001))
                assert written("c1.out") == b"up\n" + numbers
                assert (written("c1.err"), written("e1.out"), written("e1.err")) == (b"oops\n", b"once\n", b"")
                assert written("twice") == b""
                for name in ("c1", "e1"):
                    pids = written(f"{name}.pids").split()
                    assert written(f"{name}.done").split()[-1:] == pids[-1:], "the last one has ended by itself"
                    assert len(pids) <= 2
                async with asyncio.timeout(10):
                    while set(children(house.keeper.pid)) - {house.worker()}:  # noqa: ASYNC110 - nothing tells of it
                        await asyncio.sleep(0.01)
            except BaseException:
                print(f"killed before effect {effect}, told {house.told('c1')}\n{house.log()}")
                raise
            for env in directory.glob("driver.env.*"):
                assert sorted(env.read_text().split())[-1] == f"CONTAINER_NAMESPACE={NAMESPACE}"
            assert not os.listdir(directory / "root" / NAMESPACE)
            return "ended with -9" in house.log()

    return asyncio.run(whole())


def test_a_driver_has_what_the_launcher_handed_down(
    directory: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but its environment. This process passes for the launcher."""
    driver = directory / "driver"
    driver.write_text("#!/bin/sh\n(umask; ulimit -Sc; nice; pwd -P; tr '\\0' ' ' </proc/$$/environ) >\"$0.has\"\n")
    driver.chmod(0o755)

    async def whole() -> None:
        async with asyncio.timeout(60), open_house(directory, rootfs) as house:
            task = await house.start_shim("c1", ["true"])
            await task.create(stdout=f"binary://{driver}", stderr=f"binary://{driver}")
            await task.call("Delete")
            assert (await house.launch("delete", "c1")).status == 0

    core, before = resource.getrlimit(resource.RLIMIT_CORE), os.umask(0o027)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (4096 * 512, core[1]))
        asyncio.run(whole())
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, core)
        os.umask(before)
    environment = f"CONTAINER_ID=c1 CONTAINER_NAMESPACE={NAMESPACE} PWD={directory}/c1"
    has = (directory / "driver.has").read_text().split("\n")
    assert has[:4] == ["0027", "4096", str(os.nice(0)), f"{directory}/c1"]
    assert set(has[4].split()) <= set(environment.split())


@pytest.mark.long
def test_a_driver_of_a_container_that_is_gone_is_stopped_by_the_next_worker(directory: Path, rootfs: Path) -> None:
    driver = directory / "driver"
    driver.write_text("#!/bin/sh\nexec 5>&-\nexec sleep 1000\n")
    driver.chmod(0o755)

    async def whole() -> None:
        async with asyncio.timeout(60), open_house(directory, rootfs) as house:
            task = await house.start_shim("c1", ["sleep", "1000"])
            init = await task.create(stdout=f"binary://{driver}")
            (pid,) = set(children(house.keeper.pid)) - {house.worker(), init}
            assert (await house.launch("delete", "c1")).status == 0
            assert pid in children(house.keeper.pid), "a delete waits for none"
            house.kill_worker()
            await house.wait_gone(pid)
            assert "logging binary" not in house.log(), "nothing out of the ordinary"

    asyncio.run(whole())


def test_a_worker_of_its_own_does_not_end_while_it_has_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memfds_closed: None
) -> None:
    monkeypatch.setattr(worker_module, "_LAST_DELETE_S", 0.01)
    monkeypatch.setattr(worker_module, "_LOOK_S", 0.01)

    async def whole() -> None:
        ended = asyncio.Event()
        keep = Keep()
        worker = Worker(cast(Keeper, keep), Config(), state=str(tmp_path), on_idle=ended.set, log=LOG)
        looks = 0

        def has_drivers(_: KeeperHost) -> bool:
            nonlocal looks
            looks += 1
            assert not ended.is_set()
            return looks < 3

        monkeypatch.setattr(KeeperHost, "has_drivers", property(has_drivers))
        worker.consider_idling()
        await asyncio.wait_for(ended.wait(), 20)
        assert looks == 3
        keep.close()

    asyncio.run(whole())


@pytest.mark.parametrize("effect", range(STRIDE, 4 * STRIDE, STRIDE))
def test_a_worker_may_die_before_some_of_its_effects(
    directory: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch, effect: int
) -> None:
    assert die_at(effect, directory, rootfs, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_worker_may_die_before_any_of_its_effects(
    directory: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    effect = 1
    while True:
        room = directory / str(effect)
        room.mkdir()
        if not die_at(effect, room, rootfs, monkeypatch):
            break
        effect += LONG_STRIDE
    assert effect > 100, "such a life has hundreds"
