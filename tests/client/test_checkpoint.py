"""What a checkpoint's directory holds, and what a restored container is told."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.client.conftest import Test
from tests.client.shim import Shim

from dunnage import errors
from dunnage.api import options_pb2
from dunnage.client import Container, Node, Settings, Status, Stdio
from dunnage.client.bundle import Bundle, Record
from dunnage.client.checkpoint import Saved, copy_tree
from dunnage.client.settings import HOST_ROOT
from dunnage.ttrpc.errors import Code, RpcError

WithShim = Callable[[Test], None]
ROOT = Path("/")
SLEEP = Settings(args=["/bin/sleep", "1000"], rootfs=ROOT)


async def started(node: Node, settings: Settings = SLEEP, id: str = "web") -> Container:
    container = await node.create(settings, id=id)
    await container.start()
    return container


def options_of(shim: Shim) -> options_pb2.CheckpointOptions:
    request, _ = shim.checkpointed[-1]
    assert request.options.type_url == "containerd.runc.v1.CheckpointOptions"
    return options_pb2.CheckpointOptions.FromString(request.options.value)


def test_a_container_is_written_down_and_made_again(with_shim: WithShim, tmp_path: Path) -> None:
    images = tmp_path / "images"

    async def test(node: Node, shim: Shim) -> None:
        container = await started(node)
        await container.checkpoint(images)
        assert shim.checkpointed[-1][0].path == str(images)
        assert options_of(shim) == options_pb2.CheckpointOptions()
        assert (images / "inventory.img").exists()
        with pytest.raises(errors.AlreadyExists, match="container web already exists"):
            await node.restore(images)
        again = await node.restore(images, id="again", detached=True)
        assert shim.created[-1].checkpoint == str(images)
        assert again.record.command == ["/bin/sleep", "1000"]
        assert again.record.root == container.record.root
        before, after = container.bundle.read_config(), again.bundle.read_config()
        assert before["linux"].pop("cgroupsPath") == "/dunnage--default--web"
        assert after["linux"].pop("cgroupsPath") == "/dunnage--default--again"
        assert before == after
        await again.remove()
        await container.remove(force=True)
        web = await node.restore(str(images))
        assert web.id == "web"
        await web.remove()

    with_shim(test)


def test_every_wish_is_told(with_shim: WithShim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()

    async def test(node: Node, shim: Shim) -> None:
        container = await started(node)
        await container.checkpoint(
            "new",
            exit=True,
            tcp=True,
            unix_sockets=True,
            terminal=True,
            file_locks=True,
            empty_namespaces=["network"],
            work_directory=Path("work"),
            parent=Path("old/er"),
        )
        assert shim.checkpointed[-1][0].path == str(tmp_path / "new")
        assert options_of(shim) == options_pb2.CheckpointOptions(
            exit=True,
            open_tcp=True,
            external_unix_sockets=True,
            terminal=True,
            file_locks=True,
            empty_namespaces=["network"],
            work_path=str(tmp_path / "work"),
            parent_path="../old/er",
        )
        await container.remove()

    with_shim(test)


def test_a_failure_leaves_the_directory_as_it_was(with_shim: WithShim, tmp_path: Path) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await started(node)
        shim.refuse_checkpoint = RpcError(Code.UNKNOWN, "criu failed")
        (tmp_path / "empty").mkdir()
        for name in ("new", "empty"):
            with pytest.raises(errors.Error, match="criu failed"):
                await container.checkpoint(tmp_path / name, exit=True)
        assert not (tmp_path / "new").exists()
        assert list((tmp_path / "empty").iterdir()) == []
        (tmp_path / "full").mkdir()
        (tmp_path / "full/of-somebody").touch()
        with pytest.raises(errors.AlreadyExists, match="is not empty"):
            await container.checkpoint(tmp_path / "full")
        with pytest.raises(errors.InvalidArgument, match="of-somebody is not a directory"):
            await container.checkpoint(tmp_path / "full/of-somebody")
        with pytest.raises(errors.InvalidArgument, match="no such file or directory"):
            await container.checkpoint(tmp_path / "no/where")
        assert len(shim.checkpointed) == 2
        await container.remove(force=True)

    with_shim(test)


@pytest.mark.parametrize("exit", [False, True])
def test_what_is_the_last_of_a_container_stays(
    with_shim: WithShim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit: bool
) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await started(node)
        monkeypatch.setattr(Bundle, "read_record", lambda bundle: container_record)
        with pytest.raises(errors.Internal, match="could not be copied"):
            await container.checkpoint(tmp_path / "images", exit=exit)
        assert (tmp_path / "images/inventory.img").exists() == exit
        assert shim.checkpointed[-1][1] == (2 if exit else 4), "only while it runs on must nothing change meanwhile"
        monkeypatch.undo()
        await container.remove(force=True)

    container_record = Record("web", "default", "", ["x"], HOST_ROOT, "runc", False, False)
    with_shim(test)


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED])
def test_images_stay_of_which_nobody_knows_whether_they_are_the_last(
    with_shim: WithShim, tmp_path: Path, code: Code
) -> None:
    """The runtime may go on without the worker that called it."""

    async def test(node: Node, shim: Shim) -> None:
        container = await started(node)
        shim.refuse_checkpoint = RpcError(code, "lost")
        with pytest.raises(errors.Error, match="lost"):
            await container.checkpoint(tmp_path / "images", exit=True)
        assert (tmp_path / "images/inventory.img").exists()
        await container.remove(force=True)

    with_shim(test)


def test_what_it_changed_on_the_host_s_root_comes_along(
    with_shim: WithShim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(node: Node, shim: Shim) -> None:
        container = await started(node)
        container.bundle.upper_path.mkdir(parents=True)
        (container.bundle.upper_path / "changed").write_text("yes")
        record = container.record
        monkeypatch.setattr(Bundle, "read_record", lambda bundle: replace(record, root=HOST_ROOT))
        await container.checkpoint(tmp_path / "one")
        assert (shim.checkpointed[-1][1], (await container.state()).status) == (4, Status.RUNNING)
        await container.pause()
        await container.checkpoint(tmp_path / "two")
        assert (await container.state()).status is Status.PAUSED, "it was paused before"
        monkeypatch.undo()
        saved = tmp_path / "two/bundle/client.json"
        saved.write_text(json.dumps({**json.loads(saved.read_text()), "root": HOST_ROOT}))
        again = await node.restore(tmp_path / "two", id="again")
        assert (again.bundle.upper_path / "changed").read_text() == "yes"
        (overlay,) = shim.created[-1].rootfs
        assert f"upperdir={again.bundle.upper_path}" in overlay.options
        await again.remove()
        await container.remove(force=True)

    with_shim(test)


def test_a_layer_is_copied_with_what_an_overlay_keeps_in_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "opaque").mkdir(parents=True)
    os.setxattr(source / "opaque", "trusted.overlay.opaque", b"y")
    os.mknod(source / "gone", 0o020000, os.makedev(0, 0))
    (source / "file").write_text("text")
    os.chown(source / "file", 7, 8)
    target = tmp_path / "target"
    asyncio.run(copy_tree(source, target))
    assert os.getxattr(target / "opaque", "trusted.overlay.opaque") == b"y"
    assert (target / "gone").is_char_device()
    found = (target / "file").stat()
    assert (found.st_uid, found.st_gid, found.st_size) == (7, 8, 4)


def test_what_is_no_checkpoint_is_refused(with_shim: WithShim, tmp_path: Path) -> None:
    async def test(node: Node, shim: Shim) -> None:
        for call in (node.restore(tmp_path / "none"), node.create(SLEEP, checkpoint=tmp_path / "none")):
            with pytest.raises(errors.NotFound, match=r"checkpoint .*/none does not exist"):
                await call
        with pytest.raises(errors.InvalidArgument, match="has no container that dunnage could make again"):
            await node.restore(tmp_path)
        assert node.local_ids() == []
        made = await node.create(SLEEP, checkpoint=tmp_path)
        assert shim.created[-1].checkpoint == str(tmp_path)
        await made.remove()

    with_shim(test)


def test_a_terminal_is_given_where_there_was_one_and_only_there() -> None:
    record = Record("web", "default", "", ["x"], HOST_ROOT, "runc", False, terminal=True)
    with pytest.raises(errors.InvalidArgument, match="had a terminal, and needs one to go on"):
        Saved(ROOT, {}, record).check_terminal(False)
    record = Record("web", "default", "", ["x"], HOST_ROOT, "runc", False, terminal=False)
    with pytest.raises(errors.InvalidArgument, match="had no terminal, and takes none to go on"):
        Saved(ROOT, {}, record).check_terminal(True)


def test_a_checkpoint_with_a_part_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    configs: tuple[object, ...] = ([], {"process": {"args": []}, "root": {"path": "/"}, "linux": {}}, {"process": 7})
    for config in configs:
        (tmp_path / "bundle/config.json").write_text(json.dumps(config))
        (tmp_path / "bundle/client.json").write_text("{}")
        with pytest.raises(errors.InvalidArgument, match="is not whole"):
            Saved.read(tmp_path)


def test_a_relative_runtime_is_remembered_whole(with_shim: WithShim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")

    async def test(node: Node, shim: Shim) -> None:
        made = await node.create(Settings(args=["/bin/true"], rootfs=ROOT, runtime="./sbin/runc"), stdio=Stdio())
        assert made.record.runtime == "/usr/sbin/runc"
        await made.remove()

    with_shim(test)
