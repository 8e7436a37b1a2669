"""README's lines for Kubernetes in a containerd's configuration: a pod, asked for as a kubelet would, is dunnage's.

The few messages that are needed are written by their field numbers (k8s.io/cri-api, runtime/v1/api.proto).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from tests.containerd import image
from tests.containerd.harness import GO_SHIM, Containerd, Shim, remove_cgroups, wait_until

pytestmark = pytest.mark.real

README = Path(__file__).parents[2] / "README.md"
BEFORE = """\
root = "{directory}/root"
state = "{state}"
disabled_plugins = ["io.containerd.internal.v1.opt"]
"""
# some virtual machines let nobody lower an OOM score
AFTER = """\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%s"
  restrict_oom_score_adj = true
[grpc]
address = "{directory}/c.sock"
"""
NETWORK_OF_THE_NODE = 2
RUNNING, EXITED = 1, 2

Fields = dict[int, list[Any]]


def test_a_pod_runs_by_the_lines_in_the_readme(kubernetes: Containerd) -> None:
    namespaces = message((1, NETWORK_OF_THE_NODE))
    metadata = message((1, "pod"), (2, "uid"), (3, "default"))
    logs = kubernetes.directory / "logs"
    linux = message((1, f"/{kubernetes.mark[:8]}"), (2, message((1, namespaces))))
    pod = message((1, metadata), (3, str(logs)), (8, linux))
    with grpc.insecure_channel(f"unix://{kubernetes.address}") as channel:

        def call(method: str, *fields: tuple[int, int | str | bytes], service: str = "RuntimeService") -> Fields:
            return parsed(channel.unary_unary(f"/runtime.v1.{service}/{method}")(message(*fields), timeout=30))

        def status(container: bytes) -> Fields:
            return parsed(call("ContainerStatus", (1, container))[1][0])

        known = message((1, image.NAME))
        wait_until(lambda: call("ImageStatus", (1, known), service="ImageService"), "the image is known")
        pod_id = call("RunPodSandbox", (1, pod), (2, "dunnage"))[1][0]
        try:
            script = message(
                (1, message((1, "c1"))), (2, known), (3, "sh"), (3, "-c"), (3, "echo hello; sleep 1000"), (11, "c1")
            )
            container = call("CreateContainer", (1, pod_id), (2, script), (3, pod))[1][0]
            call("StartContainer", (1, container))
            done = call("ExecSync", (1, container), (2, "sh"), (2, "-c"), (2, "echo in it; exit 3"), (3, 10))
            assert (done[1], done[3]) == ([b"in it\n"], [3])
            assert status(container)[3] == [RUNNING]
            assert len(kubernetes.shims()) == 2, "a keeper and a worker, and no Go shim"
            listed = kubernetes.ctr("container", "ls").stdout.decode().splitlines()[1:]
            assert [line.split()[-1] for line in listed] == ["io.containerd.dunnage.v2"] * 2
            call("StopContainer", (1, container), (2, 0))
            assert (status(container)[3], status(container)[7]) == ([EXITED], [137])
            assert (logs / "c1").read_text().endswith(" stdout F hello\n")
        finally:
            call("StopPodSandbox", (1, pod_id))
            call("RemovePodSandbox", (1, pod_id))
    assert kubernetes.ctr("container", "ls", "-q").stdout == b""


@pytest.fixture
def kubernetes(
    request: pytest.FixtureRequest, shim_directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    """A containerd with README's lines, and an image that a pod can be made of.

    Its namespace is k8s.io, as under every other containerd: what lies in that name on the host is not removed.
    """
    if request.config.getoption("shim_runtime") == GO_SHIM:
        pytest.skip("about dunnage alone")
    tar = tmp_path_factory.mktemp("image") / "pause.tar"
    image.write_image(tar, command=("/bin/sleep", "1000"))
    shim = Shim("io.containerd.dunnage.v2", "runc", shim_directories["runc"])
    config = BEFORE + lines_in_readme() + AFTER % image.NAME
    with Containerd(tmp_path_factory.mktemp("k"), shim, image_tar=tar, config=config) as containerd:
        own, containerd.namespace = containerd.namespace, "k8s.io"
        containerd.ctr("image", "import", str(tar))
        yield containerd
        containerd.namespace = own
        remove_cgroups(containerd.mark[:8])


def lines_in_readme() -> str:
    blocks: list[str] = re.findall(r"(?ms)^```toml\n(.*?)^```", README.read_text())
    return next(block for block in blocks if "io.containerd.dunnage.v2" in block)


def message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Protobuf's bytes of these fields, numbered."""
    text = b""
    for number, value in fields:
        if isinstance(value, int):
            text += varint(number << 3) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            text += varint(number << 3 | 2) + varint(len(content)) + content
    return text


def parsed(text: bytes) -> Fields:
    """The fields of a message by their numbers; what is neither a number nor bytes is no part of these messages."""
    fields: Fields = {}
    while text:
        key, text = read_varint(text)
        value, text = read_varint(text)
        if key & 7 == 0:
            fields.setdefault(key >> 3, []).append(value)
        else:
            assert key & 7 == 2, key
            fields.setdefault(key >> 3, []).append(text[:value])
            text = text[value:]
    return fields


def varint(value: int) -> bytes:
    text = b""
    while value > 127:
        text += bytes([value & 127 | 128])
        value >>= 7
    return text + bytes([value])


def read_varint(text: bytes) -> tuple[int, bytes]:
    end = next(place for place, byte in enumerate(text) if byte < 128) + 1
    return sum((byte & 127) << 7 * place for place, byte in enumerate(text[:end])), text[end:]
