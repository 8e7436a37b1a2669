"""What a launcher is told, by a real worker of a real keeper."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from tests.worker.house import House, open_house

from dunnage.api import anys, bootstrap_pb2, options_pb2, runtimeoptions_pb2, task_pb2
from dunnage.container.container import Container
from dunnage.container.facts import IO
from dunnage.container.group import Group
from dunnage.container.host import Death
from dunnage.container.process import Init
from dunnage.events.publisher import Publisher
from dunnage.keeper.client import Keeper
from dunnage.linux import core_scheduling
from dunnage.linux.attributes import Attributes
from dunnage.ttrpc.server import Server
from dunnage.worker.flags import Flags
from dunnage.worker.launches import shim_cgroup
from dunnage.worker.served import Launch, ServedGroup

pytestmark = pytest.mark.real


def perform(directory: Path, rootfs: Path, scenario: Callable[[House], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), open_house(directory, rootfs) as house:
            await scenario(house)

    asyncio.run(whole())


@pytest.mark.parametrize("annotations", [3, ["x"], {"io.kubernetes.cri.sandbox-id": 1}])
def test_annotations_that_are_no_texts_are_refused(directory: Path, rootfs: Path, annotations: object) -> None:
    async def scenario(house: House) -> None:
        answer = await house.launch("start", "c1", spec={"annotations": annotations})
        assert answer.status == 1
        assert b"annotations are not texts by name" in answer.stderr
        assert not (house.bundle("c1") / "address").exists()

    perform(directory, rootfs, scenario)


@pytest.mark.parametrize("name", ["c1", "c2"])
def test_a_delete_of_what_was_never_created_is_not_told_the_end_of_what_was_there_before(
    directory: Path, rootfs: Path, name: str
) -> None:
    """Neither in a directory that has the inode of another container's, nor in that of an earlier one of its name."""

    async def scenario(house: House) -> None:
        task = await house.start_shim("c1", ["sh", "-c", "exit 3"])
        pid = await task.create()
        await task.call("Start")
        await task.call("Wait")
        await task.call("Delete")
        await task.call("Shutdown")
        ended = task_pb2.DeleteResponse.FromString((await house.launch("delete", "c1")).stdout)
        assert (ended.pid, ended.exit_status) == (pid, 3)
        house.bundle("c1").rename(house.bundle(name))
        for file in ("init.pid", "runtime"):
            (house.bundle(name) / file).unlink(missing_ok=True)
        assert (await house.launch("start", name)).status == 0
        ended = task_pb2.DeleteResponse.FromString((await house.launch("delete", name)).stdout)
        assert (ended.pid, ended.exit_status) == (0xFFFF_FFFF, 137)

    perform(directory, rootfs, scenario)


def test_a_delete_of_another_shim_s_container_goes_by_its_options_file(directory: Path, rootfs: Path) -> None:
    """A mixed upgrade: the shim that made it is gone, and containerd asks whichever there is now (§11.24)."""
    recorder = directory / "recorder"
    recorder.write_text(f'#!/bin/sh\necho "$@" > {directory}/call\n')
    recorder.chmod(0o755)
    found = [
        ('{"root":"/r","io_uid":7,"task_api_version":3}', "/r", []),
        ('{"root":"","systemd_cgroup":true,"binary_name":"x"}', "/run/containerd/runc", ["--systemd-cgroup"]),
        ("{}", "/run/containerd/runc", []),
        ("{", "/run/containerd/runc", []),
        ("[]", "/run/containerd/runc", []),
    ]

    async def scenario(house: House) -> None:
        for number, (options, root, flags) in enumerate(found):
            bundle = house.bundle(f"c{number}")
            bundle.mkdir()
            for name, text in (("options.json", options), ("runtime", str(recorder)), ("init.pid", "4711")):
                (bundle / name).write_text(text)
            answer = await house.launch("delete", bundle.name)
            ended = task_pb2.DeleteResponse.FromString(answer.stdout)
            assert (answer.status, ended.pid, ended.exit_status) == (0, 4711, 137)
            log = ["--log", f"{bundle}/log.json", "--log-format", "json"]
            call = (directory / "call").read_text().split()
            assert call == ["--root", f"{root}/default", *log, *flags, "delete", "--force", bundle.name]

    perform(directory, rootfs, scenario)


def test_the_cgroup_for_a_shim_is_in_the_options_whichever_way_they_come() -> None:
    flags = Flags(namespace="default", id="c1")
    options = anys.pack_bare(options_pb2.Options(shim_cgroup="/shims"))
    table = anys.pack_bare(runtimeoptions_pb2.Options(config_body=b'ShimCgroup = "/table"'))
    other = anys.pack_bare(task_pb2.StateRequest(id="c1"))

    def parameters(container_id: str, *extensions: AnyMessage) -> bytes:
        return bootstrap_pb2.BootstrapParams(
            instance_id=container_id,
            namespace="default",
            extensions=[bootstrap_pb2.Extension(value=value) for value in extensions],
        ).SerializeToString()

    async def read_file(path: str) -> bytes:
        raise AssertionError(path)

    for stdin, cgroup in (
        (b"", ""),
        (b"\xff", ""),
        (options.SerializeToString(), "/shims"),
        (table.SerializeToString(), "/table"),
        (other.SerializeToString(), ""),
        (parameters("c1", other, options), "/shims"),
        (parameters("c1", table), "/table"),
        (parameters("c1"), ""),
        (parameters("c2", options), ""),
    ):
        assert asyncio.run(shim_cgroup(stdin, flags, read_file)) == cgroup


def test_a_group_that_cannot_have_a_core_scheduling_domain_is_refused(directory: Path, rootfs: Path) -> None:
    try:
        core_scheduling.check_offered()
    except OSError as error:
        reason = str(error.strerror).lower()
    else:
        pytest.skip("this kernel offers core scheduling")

    async def scenario(house: House) -> None:
        spec = house.spec("c1", ["true"])
        answer = await house.launch("start", "c1", spec=spec, env={"SCHED_CORE": "1"})
        assert answer.status == 1
        assert f"enable sched core support: {reason}".encode() in answer.stderr
        assert not list((house.state / "s").iterdir())
        assert (await house.launch("start", "c1", env={"SCHED_CORE": ""})).status == 0
        await house.launch("delete", "c1")

    perform(directory, rootfs, scenario)


def test_a_group_s_processes_share_the_core_scheduling_domain_of_a_living_init() -> None:
    group = Group("default", "pod", "unix:///s")
    launch = Launch({"SCHED_CORE": "1"}, Attributes.of(os.getpid()))
    served = ServedGroup(
        group,
        server=cast(Server, None),
        publisher=cast(Publisher, None),
        launch=launch,
        containerd_address="",
        ttrpc_address="",
        keeper=cast(Keeper, None),
    )
    assert served.core_peer() == 0, "it begins one"
    inits = [Init(IO()) for _ in range(2)]
    for number, init in enumerate(inits, start=1):
        init.pid = number
        group.containers[f"c{number}"] = cast(Container, SimpleNamespace(init=init))
    assert served.core_peer() == 1
    inits[0].set_exited(Death(0, 1))
    assert served.core_peer() == 2
    served.launch = launch._replace(env={"SCHED_CORE": ""})
    assert served.core_peer() is None
