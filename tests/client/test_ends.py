"""What a client leaves that is cancelled, closed, or not alone."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.client.conftest import LAUNCHER, Test
from tests.client.shim import Shim

from dunnage import errors
from dunnage.client import Node, Settings, Stdio, launch, pipes
from dunnage.client.bundle import Bundle
from dunnage.ttrpc.client import Client, dial
from dunnage.ttrpc.errors import Code, RpcError

WithShim = Callable[[Test], None]
ROOT = Path("/")
SLEEP = Settings(args=["/bin/sleep", "1000"], rootfs=ROOT)


async def cancel_in(shim: Shim, method: str, work: Awaitable[object]) -> None:
    """Cancel `work` when the shim has been asked for `method`, and let the shim go on only then."""
    is_asked, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        is_asked.set()
        await go_on.wait()

    shim.before[method] = wait
    working = asyncio.ensure_future(work)
    await is_asked.wait()
    working.cancel()
    asyncio.get_running_loop().call_soon(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await working
    del shim.before[method]


@pytest.mark.parametrize("method", ["Create", "Start"])
def test_a_cancelled_run_leaves_nothing(with_shim: WithShim, tmp_path: Path, method: str) -> None:
    async def test(node: Node, shim: Shim) -> None:
        await cancel_in(shim, method, node.run(SLEEP))
        assert not shim.children
        assert len(shim.shut_down) == 1
        assert not (tmp_path / "local/bundles/default").exists()

    with_shim(test)


def test_a_cancelled_launch_is_told_that_nothing_follows(with_shim: WithShim, tmp_path: Path) -> None:
    asked, go_on = tmp_path / "asked", tmp_path / "go on"
    script = "import os, sys; open(sys.argv[2], 'w').close(); open(sys.argv[3]).close()\n" + LAUNCHER

    async def test(node: Node, shim: Shim) -> None:
        for fifo in (asked, go_on):
            os.mkfifo(fifo)
        launcher = [sys.executable, "-c", script, str(shim.path), str(asked), str(go_on)]
        slow = Node(state=tmp_path, launcher=launcher)
        creating = asyncio.ensure_future(slow.create(SLEEP, id="web"))
        await asyncio.to_thread(lambda: asked.open().close())
        creating.cancel()
        await asyncio.to_thread(lambda: go_on.open("w").close())
        with pytest.raises(asyncio.CancelledError):
            await creating
        assert shim.shut_down == ["web"]
        assert slow.local_ids() == []

    with_shim(test)


def test_a_launcher_does_not_hear_our_terminal_s_ctrl_c(with_shim: WithShim, tmp_path: Path) -> None:
    script = "import os; print(os.getsid(0), file=open('/proc/self/cwd/session', 'w'))\n" + LAUNCHER

    async def test(node: Node, shim: Shim) -> None:
        own = Node(state=tmp_path, launcher=[sys.executable, "-c", script, str(shim.path)])
        async with own, await own.create(SLEEP) as container:
            assert int((container.bundle.path / "session").read_text()) != os.getsid(0)
            await container.remove()

    with_shim(test)


def test_a_cancelled_exec_leaves_no_exec(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(SLEEP)
        await container.start()
        await cancel_in(shim, "Exec", container.exec(["/bin/true"], stdio=pipes()))
        assert list(shim.children) == [(container.id, "")]
        assert list(container.bundle.stdio_path.iterdir()) == []
        await container.remove(force=True)

    with_shim(test)


def test_an_exec_id_is_taken_once_also_with_streams(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(SLEEP)
        await container.start()
        process = await container.exec(["/bin/cat"], stdio=pipes(stdin=True), exec_id="one")
        with pytest.raises(errors.AlreadyExists):
            await container.exec(["/bin/cat"], stdio=pipes(stdin=True), exec_id="one")
        await process.start()
        await process.close_stdin()
        assert (await process.wait()).status == 0
        await container.remove(force=True)

    with_shim(test)


def test_a_closed_node_says_so(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        await node.close()
        for call in (node.create(SLEEP), node.run(SLEEP), node.get("web"), node.remove("web"), node.containers()):
            with pytest.raises(errors.FailedPrecondition, match="the node is closed"):
                await call
        with pytest.raises(errors.FailedPrecondition, match="the node is closed"):
            await anext(node.events())
        assert node.local_ids() == []

    with_shim(test)


def test_a_container_that_another_creates_is_not_removed_under_its_hands(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        is_asked, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            is_asked.set()
            await go_on.wait()

        shim.before["Create"] = wait
        creating = asyncio.ensure_future(node.create(SLEEP, id="web"))
        await is_asked.wait()
        with pytest.raises(errors.FailedPrecondition, match="container web is being created"):
            await node.remove("web")
        go_on.set()
        await creating
        await node.remove("web")
        assert node.local_ids() == []

    with_shim(test)


def test_a_container_that_another_deletes_is_removed_all_the_same(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(SLEEP)
        shim.refuse_delete = RpcError(Code.NOT_FOUND, "cannot delete a deleted process: not found")
        assert await container.remove(force=True) is None
        assert node.local_ids() == []

    with_shim(test)


def test_a_worker_that_went_with_its_container_is_no_fault_of_the_worker(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        found = await node.create(SLEEP, id="web")
        await found.close()
        found.bundle.remove()
        shim.path.unlink()
        with pytest.raises(errors.NotFound, match="container web does not exist"):
            await found.state()

    with_shim(test)


def test_bundles_are_made_and_removed_by_many_at_once(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            for _ in range(150):
                bundle = Bundle(tmp_path, "default", f"c{number}")
                bundle.make()
                bundle.remove()
        except (errors.Error, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_what_another_has_unmounted_is_no_failure_of_a_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(tmp_path, "default", "web")
    bundle.make()
    bundle.scratch_path.mkdir()
    is_mounted = [True]  # as it looked before the other came
    monkeypatch.setattr(os.path, "ismount", lambda path: bool(is_mounted) and is_mounted.pop())
    bundle.remove()
    assert not bundle.exists


def test_a_bundle_that_cannot_be_made_whole_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(tmp_path, "default", "web")
    mkdir = Path.mkdir

    def fill(path: Path, mode: int = 0o777) -> None:
        if path == bundle.stdio_path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, mode)

    monkeypatch.setattr(Path, "mkdir", fill)
    with pytest.raises(errors.FailedPrecondition, match="web: no space left on device"):
        bundle.make()
    assert not bundle.exists


def test_calls_that_begin_at_once_share_a_connection(with_shim: WithShim, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Client] = []

    async def connect(address: str, *, timeout_s: float) -> Client:
        await asyncio.sleep(0)  # as behind a full backlog
        made.append(Client(await dial(address, timeout_s=timeout_s)))
        return made[-1]

    async def test(node: Node, shim: Shim) -> None:
        await node.create(SLEEP, id="web")
        monkeypatch.setattr(Client, "connect", connect)
        found = await node.get("web")
        await asyncio.gather(found.state(), found.state())
        await found.close()
        assert [client.closed for client in made] == [True]
        monkeypatch.undo()
        await node.remove("web", force=True)

    with_shim(test)


def test_a_bundle_can_be_removed_twice(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, "default", "web")
    bundle.make()
    bundle.remove()
    bundle.remove()


def test_a_slow_reader_gets_everything(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        ours, theirs = os.pipe()
        settings = Settings(args=["/bin/sh", "-c", "head -c 120000 /dev/zero"], rootfs=ROOT)
        container = await node.create(settings, stdio=Stdio(stdout=theirs))
        await container.start()
        await container.wait()
        drained = asyncio.ensure_future(container.streams.wait_drained(0.05))
        done, _ = await asyncio.wait((drained,), timeout=0.5)
        assert not done, "what nobody has read yet was given up"
        left = 120_000
        while left:
            left -= len(await asyncio.to_thread(os.read, ours, left))
        assert await drained
        await container.remove()
        os.close(ours)
        os.close(theirs)

    with_shim(test)


def test_an_orphan_that_holds_an_output_is_not_waited_for(with_shim: WithShim, tmp_path: Path) -> None:
    async def test(node: Node, shim: Shim) -> None:
        ours, theirs = os.pipe()
        end = tmp_path / "end"
        os.mkfifo(end)
        settings = Settings(args=["/bin/sh", "-c", f"(read x < '{end}') & exit 0"], rootfs=ROOT)
        container = await node.create(settings, stdio=Stdio(stdout=theirs))
        await container.start()
        await container.wait()
        assert not await container.streams.wait_drained(0.05)
        await asyncio.to_thread(lambda: end.open("w").close())
        await container.remove()
        os.close(ours)
        os.close(theirs)

    with_shim(test)


def test_a_sink_without_space_is_told(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        full = os.open("/dev/full", os.O_WRONLY)
        settings = Settings(args=["/bin/echo", "hello"], rootfs=ROOT)
        container = await node.create(settings, stdio=Stdio(stdout=full))
        await container.start()
        async with asyncio.timeout(5):
            await container.streams.broken.wait()
        assert container.streams.failures["stdout"].strerror == "No space left on device"
        await container.wait()
        await container.remove()
        os.close(full)

    with_shim(test)


def test_a_source_that_cannot_be_read_is_its_end_and_told(with_shim: WithShim, tmp_path: Path) -> None:
    async def test(node: Node, shim: Shim) -> None:
        written_only = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
        container = await node.create(Settings(args=["/bin/cat"], rootfs=ROOT), stdio=Stdio(stdin=written_only))
        await container.start()
        assert (await container.wait()).status == 0
        assert list(container.streams.failures) == ["stdin"]
        await container.remove()
        os.close(written_only)

    with_shim(test)


@pytest.mark.parametrize(
    "config",
    [
        [],
        {"process": [], "root": {"path": "rootfs"}},
        {"process": {"args": ["sh"], "env": [1]}, "root": {"path": "rootfs"}},
        {"process": {"args": ["sh"]}, "root": {"path": "rootfs"}, "linux": None},
        {"process": {"args": 7}, "root": {"path": "rootfs"}},
        {"process": {"args": "sh"}, "root": {"path": "rootfs"}},
        {"process": {"args": ["sh"], "env": "A=b"}, "root": {"path": "rootfs"}},
        {"process": {}, "root": {"path": "rootfs"}},
    ],
)
def test_a_bundle_that_is_none_is_refused(config: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    node = Node(state=tmp_path / "state")
    with pytest.raises(errors.InvalidArgument):
        asyncio.run(node.create(Settings(bundle=tmp_path)))
    assert node.local_ids() == []


def test_an_empty_id_is_no_wish_for_one(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument):
        asyncio.run(Node(state=tmp_path).create(SLEEP, id=""))


@pytest.mark.parametrize(
    "settings",
    [
        Settings(args=["/bin/echo", "\udcff"], rootfs=ROOT),
        Settings(args=["/bin/echo"], env=["A=\udcff"], rootfs=ROOT),
        Settings(args=["/bin/echo"], mounts=["/\udcff:/x"], rootfs=ROOT),
        Settings(args=["/bin/echo"], runtime="\udcff", rootfs=ROOT),
    ],
)
def test_what_no_specification_can_hold_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="is not UTF-8"):
        asyncio.run(Node(state=tmp_path).create(settings))


def test_a_runtime_s_path_is_ours_not_the_worker_s(with_shim: WithShim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")

    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(Settings(args=["/bin/true"], rootfs=ROOT, runtime="./sbin/runc"))
        assert b"/usr/sbin/runc" in shim.created[0].options.value
        await container.remove()

    with_shim(test)


def test_a_dead_container_that_another_removes_just_now_is_removed(with_shim: WithShim, tmp_path: Path) -> None:
    async def test(node: Node, shim: Shim) -> None:
        bundle = Bundle(tmp_path, "default", "web")
        with pytest.raises(errors.NotFound, match="container web does not exist"):
            await launch.delete(bundle.path, "default", "web")
        await node._remove_dead(bundle, errors.FailedPrecondition("container web was not completely created"))
        bundle.make()
        failing = Node(state=tmp_path, launcher=["/bin/false"])
        with pytest.raises(errors.FailedPrecondition, match="not completely created; and cleaning up after it failed"):
            await failing._remove_dead(bundle, errors.FailedPrecondition("container web was not completely created"))
        with pytest.raises(FileNotFoundError):
            await launch.delete(bundle.path, "default", "web", ["/no/such/launcher"])
        bundle.remove()

    with_shim(test)
