"""What a client promises of containers, with plain children behind the same messages."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.client.conftest import Test
from tests.client.shim import Shim

from dunnage import errors
from dunnage.api import options_pb2
from dunnage.client import PIPE, Node, Settings, Status, Stdio, pipes
from dunnage.ttrpc.errors import Code, RpcError

WithShim = Callable[[Test], None]
ROOT = Path("/")


def shell(script: str) -> Settings:
    return Settings(args=["/bin/sh", "-c", script], rootfs=ROOT)


def test_run_gives_status_and_both_outputs(with_shim: WithShim, tmp_path: Path) -> None:
    async def test(node: Node, shim: Shim) -> None:
        finished = await node.run(shell("echo out; echo err >&2; exit 7"))
        assert finished == (7, b"out\n", b"err\n")
        assert node.local_ids() == []
        assert not (tmp_path / "local/bundles/default").exists()
        assert shim.shut_down

    with_shim(test)


def test_run_feeds_stdin_and_ends_it(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        text = os.urandom(1 << 20)
        finished = await node.run(shell("cat"), stdin=text, timeout_s=30)
        assert finished.stdout == text

    with_shim(test)


def test_run_kills_what_takes_too_long(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        with pytest.raises(TimeoutError):
            await node.run(shell("exec sleep 1000"), timeout_s=0.3)
        assert not shim.children
        assert node.local_ids() == []

    with_shim(test)


def test_a_detached_container_writes_to_its_log_and_can_be_found_again(with_shim: WithShim, tmp_path: Path) -> None:
    async def test(node: Node, shim: Shim) -> None:
        has_written = tmp_path / "has written"
        os.mkfifo(has_written)
        script = f"echo one; echo two >&2; echo yes > '{has_written}'; exec sleep 1000"
        made = await node.create(shell(script), id="web", detached=True)
        await made.start()
        found = await node.get("web")
        assert found.record.log == str(made.bundle.log_path)
        assert found.record.command == ["/bin/sh", "-c", script]
        assert (await found.state()).status is Status.RUNNING
        assert await asyncio.to_thread(has_written.read_text) == "yes\n"
        with pytest.raises(errors.FailedPrecondition, match="is running"):
            await found.remove()
        await found.kill(signal.SIGKILL)
        assert (await found.wait()).status == 137
        assert Path(found.record.log).read_text() == "one\ntwo\n"
        ended = await found.remove()
        assert ended is not None
        assert ended.status == 137
        with pytest.raises(errors.NotFound, match="container web does not exist"):
            await node.get("web")

    with_shim(test)


def test_an_exec_has_the_init_s_environment_with_its_own_in_place(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        settings = Settings(args=["/bin/sleep", "1000"], rootfs=ROOT, env=["A=1", "B=2"])
        async with await node.create(settings) as container:
            await container.start()
            process = await container.exec(["/bin/sh", "-c", "echo $A$B"], env=["B=3"], stdio=pipes())
            await process.start()
            assert (await process.wait_output()).stdout == b"13\n"
            await process.delete()
            assert sorted(container.bundle.stdio_path.iterdir()) == []
            await container.remove(force=True)

    with_shim(test)


def test_streams_can_be_read_and_written_piece_by_piece(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(shell("exec cat"), stdio=Stdio(stdin=PIPE, stdout=PIPE))
        await container.start()
        assert container.stdin is not None
        assert container.stdout is not None
        for word in (b"one\n", b"two\n"):
            container.stdin.write(word)
            assert await container.stdout.readline() == word
        await container.close_stdin()
        assert (await container.wait()).status == 0
        assert await container.stdout.read() == b""
        await container.remove()

    with_shim(test)


def test_descriptors_of_ours_are_copied_and_left_open(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        ours, theirs = os.pipe()
        container = await node.create(shell("echo hello"), stdio=Stdio(stdout=theirs))
        await container.start()
        await container.wait()
        assert await container.streams.wait_drained(5)
        assert os.read(ours, 100) == b"hello\n"
        os.write(theirs, b"still open")
        await container.remove()
        os.close(ours)
        os.close(theirs)

    with_shim(test)


def test_a_sink_that_nobody_reads_is_told(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        ours, theirs = os.pipe()
        os.close(ours)
        container = await node.create(shell("while echo x; do :; done"), stdio=Stdio(stdout=theirs))
        await container.start()
        async with asyncio.timeout(5):
            await container.streams.broken.wait()
        await container.remove(force=True)
        os.close(theirs)

    with_shim(test)


def test_a_failed_create_leaves_nothing(with_shim: WithShim, tmp_path: Path) -> None:
    async def test(node: Node, shim: Shim) -> None:
        shim.refuse_create = RpcError(Code.INVALID_ARGUMENT, "failed to mount rootfs component: invalid argument")
        with pytest.raises(errors.InvalidArgument, match=r"^failed to mount rootfs component"):
            await node.create(shell("true"), id="web", stdio=pipes())
        assert node.local_ids() == []
        assert shim.shut_down == ["web"]

    with_shim(test)


def test_a_launcher_that_refuses_says_why_and_nothing_is_left(tmp_path: Path) -> None:
    async def test() -> None:
        node = Node(state=tmp_path, launcher=["/bin/sh", "-c", "echo no keeper today >&2; exit 1"])
        with pytest.raises(errors.Unavailable, match="no keeper today"):
            await node.create(shell("true"))
        assert node.local_ids() == []

    asyncio.run(test())


def test_an_id_is_taken_once(with_shim: WithShim) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(shell("true"), id="web")
        with pytest.raises(errors.AlreadyExists):
            await node.create(shell("true"), id="web")
        assert len(shim.created) == 1
        await container.remove()

    with_shim(test)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a..b", "-a", "x" * 77])
def test_an_id_that_containerd_would_refuse_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument):
        asyncio.run(Node(state=tmp_path).get(name))


def test_the_runtime_has_a_root_apart_from_containerd_s(with_shim: WithShim, tmp_path: Path) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(Settings(args=["true"], rootfs=ROOT, runtime="crun"))
        any_options = shim.created[0].options
        assert any_options.type_url == "containerd.runc.v1.Options"
        options = options_pb2.Options.FromString(any_options.value)
        assert options.binary_name == "crun"
        assert options.root == str(tmp_path / "local/runtime")
        await container.remove()

    with_shim(test)


def test_a_bundle_s_own_config_is_used_with_its_root_made_absolute(with_shim: WithShim, tmp_path: Path) -> None:
    source = tmp_path / "given"
    (source / "rootfs").mkdir(parents=True)
    process = {"args": ["sh"], "env": ["A=1"], "cwd": "/"}
    (source / "config.json").write_text(json.dumps({"process": process, "root": {"path": "rootfs"}}))

    async def test(node: Node, shim: Shim) -> None:
        container = await node.create(Settings(args=["/bin/true"], bundle=source, env=["B=2"]))
        config = container.bundle.read_config()
        assert config["root"]["path"] == str(source / "rootfs")
        assert config["process"]["args"] == ["/bin/true"]
        assert config["process"]["env"] == ["A=1", "B=2"]
        assert not shim.created[0].rootfs
        await container.remove()

    with_shim(test)


def test_a_bundle_and_what_its_config_says_exclude_each_other() -> None:
    with pytest.raises(errors.InvalidArgument, match="read_only"):
        Settings(bundle=ROOT, read_only=True).check()
    with pytest.raises(errors.InvalidArgument, match="exclude each other"):
        Settings(bundle=ROOT, rootfs=ROOT).check()
    with pytest.raises(errors.InvalidArgument, match="no command"):
        Settings().check()


def test_a_log_must_take_both_outputs_and_a_terminal_needs_a_reader() -> None:
    with pytest.raises(errors.InvalidArgument):
        Stdio(stdout=Path("/x"), stderr=PIPE).check()
    with pytest.raises(errors.InvalidArgument):
        Stdio(stdout=Path("/x"), terminal=True).check()
    with pytest.raises(errors.InvalidArgument):
        Stdio(terminal=True).check()


def test_a_terminal_begins_with_its_size() -> None:
    process: dict[str, object] = {}
    Stdio(stdin=PIPE, stdout=PIPE, terminal=True, size=(120, 40)).apply(process)
    assert process == {"terminal": True, "consoleSize": {"height": 40, "width": 120}}
