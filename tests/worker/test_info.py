"""``-info``: what this runtime is, and what the OCI runtime that the options name can do (shim v2, §1.8)."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from tests.worker.house import Answer, House, open_house

import dunnage
from dunnage.api import options_pb2, runtimeoptions_pb2
from dunnage.api.anys import pack_bare
from dunnage.api.runtime_info_pb2 import RuntimeInfo
from dunnage.worker.control import LaunchRequest, encode_request

pytestmark = pytest.mark.real

FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def perform(directory: Path, rootfs: Path, scenario: Callable[[House], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), open_house(directory, rootfs) as house:
            await scenario(house)

    asyncio.run(whole())


async def ask(
    house: House, options: AnyMessage | bytes = b"", *, program: str = "containerd-shim-dunnage-v2"
) -> Answer:
    """As containerd asks: with no further flag, in whatever directory."""
    stdin = options if isinstance(options, bytes) else options.SerializeToString()
    env = {"PATH": f"{house.directory}:/usr/sbin:/usr/bin:/sbin:/bin"}
    reader, writer = await asyncio.open_unix_connection(house.state / "control")
    writer.write(encode_request(LaunchRequest((program, "-info"), env, "/", stdin, 0, 0)))
    answer = await reader.read()
    writer.close()
    middle = 10 + int.from_bytes(answer[2:6], "little")
    return Answer(answer[1], answer[10:middle], answer[middle:])


async def info(house: House, options: AnyMessage | bytes = b"", **settings: str) -> RuntimeInfo:
    answer = await ask(house, options, **settings)
    assert answer.status == 0, answer
    return RuntimeInfo.FromString(answer.stdout)


def script(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def features_of(runtime: str) -> bytes:
    printed = subprocess.run([runtime, "features"], capture_output=True, check=False)
    return printed.stdout if printed.returncode == 0 else b""


def test_info_has_name_version_options_and_features_and_needs_no_namespace(directory: Path, rootfs: Path) -> None:
    crun = shutil.which("crun") or ""
    able = script(directory, "able", '[ $# = 1 ] && [ $1 = features ] && echo \'{"ociVersionMin": "1.0.0"}\'')
    path = directory / "runtime.toml"
    path.write_text(f'BinaryName = "{able}"\n')

    async def scenario(house: House) -> None:
        told = await info(house)
        assert told.name == "io.containerd.dunnage.v2"
        assert (told.version.version, told.version.revision) == (dunnage.__version__, dunnage.__version__)
        assert not told.HasField("options")
        assert not told.annotations
        assert told.features.type_url == FEATURES
        assert json.loads(told.features.value) == json.loads(features_of("runc"))
        assert (await info(house, program="/x/containerd-shim-runc-v2")).name == "io.containerd.runc.v2"

        options = pack_bare(options_pb2.Options(binary_name=crun, systemd_cgroup=True))
        told = await info(house, options)
        assert told.options == options
        assert told.features.value == features_of(crun), "crun 1.8 has none, and says so by its exit status"
        assert told.HasField("features") == bool(features_of(crun))

        for generic in (
            runtimeoptions_pb2.Options(config_path=str(path)),
            runtimeoptions_pb2.Options(config_body=b'BinaryName = "able"'),
        ):
            told = await info(house, pack_bare(generic))
            assert told.options == pack_bare(generic)
            assert json.loads(told.features.value) == {"ociVersionMin": "1.0.0"}

    perform(directory, rootfs, scenario)


def test_info_of_a_runtime_that_has_no_features_is_without_them(directory: Path, rootfs: Path) -> None:
    (directory / "empty").touch(0o755)
    script(directory, "failing", "echo '{}'; exit 1")
    script(directory, "babbling", "echo features: many")
    script(directory, "listing", "echo '[]'")

    async def scenario(house: House) -> None:
        for name in ("empty", "failing", "babbling", "listing"):
            told = await info(house, pack_bare(options_pb2.Options(binary_name=name)))
            assert told.name
            assert not told.HasField("features"), name
        assert "babbling features prints none" in house.log()

    perform(directory, rootfs, scenario)


def test_info_of_what_cannot_be_asked_names_it(directory: Path, rootfs: Path) -> None:
    prefix = "io.containerd.dunnage.v2: "
    missing = 'failed to look up the path of "no-runc": executable file not found in $PATH'

    async def scenario(house: House) -> None:
        for options, said in (
            (pack_bare(options_pb2.Options(binary_name="no-runc")), missing),
            (pack_bare(options_pb2.Options(binary_name="/no-runc")), missing.replace("no-runc", "/no-runc")),
            (pack_bare(options_pb2.Options(binary_name=str(directory))), missing.replace("no-runc", str(directory))),
            (
                pack_bare(runtimeoptions_pb2.Options(config_body=b"BinaryName = 3")),
                "BinaryName is 3; it must be a text",
            ),
            (pack_bare(runtimeoptions_pb2.Options(config_path="/nowhere")), "/nowhere cannot be read: no such file"),
            (AnyMessage(type_url="some.Other", value=b"\x01"), "type 'some.Other' where"),
            (b"\xff", "the options on stdin are no Any"),
        ):
            answer = await ask(house, options)
            assert (answer.status, answer.stdout) == (1, b"")
            assert answer.stderr.decode().startswith(prefix)
            assert said in answer.stderr.decode()

    perform(directory, rootfs, scenario)


@pytest.mark.long
def test_info_of_a_runtime_that_hangs_is_without_features_in_time(directory: Path, rootfs: Path) -> None:
    script(directory, "hanging", "exec sleep 1000")

    async def scenario(house: House) -> None:
        async with asyncio.timeout(6):
            told = await info(house, pack_bare(options_pb2.Options(binary_name="hanging")))
        assert not told.HasField("features")
        assert "hanging features did not end within 4 s" in house.log()

    perform(directory, rootfs, scenario)
