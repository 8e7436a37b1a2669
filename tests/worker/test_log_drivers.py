"""Log drivers under a real keeper: a worker may die before any of its effects, and each driver's log is whole, nobody's
driver runs beside another's, and none is left."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.worker import mortal
from tests.worker.house import NAMESPACE, House, children, open_house

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
STRIDE = 29  # of the effects that the default run tries; the long run tries every third
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


@pytest.mark.parametrize("effect", range(STRIDE, 6 * STRIDE, STRIDE))
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
