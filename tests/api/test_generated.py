"""The generated classes are those of the .proto files, and the numbers in those are the wire's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from dunnage.api import bootstrap_pb2, events_pb2, metrics_v2_pb2, task_pb2, task_v3_pb2, ttrpc_pb2

ROOT = Path(__file__).parents[2]
API = ROOT / "src/dunnage/api"


def test_the_committed_classes_are_what_the_script_generates(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    subprocess.run(
        [ROOT / "scripts/generate-api", tmp_path], check=True, env={**os.environ, "PYTHON": sys.executable}, timeout=60
    )
    fresh = {path.name: path.read_text() for path in (tmp_path / "dunnage/api").iterdir()}
    committed = {path.name: path.read_text() for path in API.glob("*_pb2.py*")}
    assert committed == fresh
    assert {name.removesuffix("_pb2.py") for name in fresh if name.endswith(".py")} == {
        p.stem for p in API.glob("*.proto")
    }


def test_task_v2_and_v3_differ_in_their_package_only() -> None:
    v2, v3 = (API / "task.proto").read_text(), (API / "task_v3.proto").read_text()
    assert v2.replace("package containerd.task.v2;", "package containerd.task.v3;") == v3
    assert task_pb2.StateResponse.DESCRIPTOR.full_name == "containerd.task.v2.StateResponse"
    assert task_v3_pb2.StateResponse.DESCRIPTOR.full_name == "containerd.task.v3.StateResponse"


def test_a_process_that_has_not_exited_has_go_s_zero_time() -> None:
    """The bytes that containerd's own shim was seen to send."""
    response = task_pb2.WaitResponse(exited_at=Timestamp(seconds=-62135596800))
    assert response.SerializeToString() == bytes.fromhex("12 0b 08 80 92 b8 c3 98 fe ff ff ff 01")


def test_debug_is_a_varint_of_ten_bytes() -> None:
    params = bootstrap_pb2.BootstrapParams(log_level=bootstrap_pb2.LOG_LEVEL_DEBUG)
    assert params.SerializeToString() == bytes.fromhex("18 fc ff ff ff ff ff ff ff ff 01")


def test_an_unknown_log_level_is_kept() -> None:
    params = bootstrap_pb2.BootstrapParams.FromString(bytes.fromhex("18 05"))
    assert int(params.log_level) == 5


def test_success_is_a_response_without_a_status() -> None:
    response = ttrpc_pb2.Response.FromString(b"")
    assert not response.HasField("status")
    assert response.payload == b""


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        (task_pb2.CreateTaskRequest.DESCRIPTOR, {"id": 1, "bundle": 2, "rootfs": 3, "terminal": 4, "options": 10}),
        (task_pb2.UpdateTaskRequest.DESCRIPTOR, {"id": 1, "resources": 2, "annotations": 3}),
        (events_pb2.TaskExit.DESCRIPTOR, {"container_id": 1, "id": 2, "pid": 3, "exit_status": 4, "exited_at": 5}),
        (events_pb2.TaskDelete.DESCRIPTOR, {"container_id": 1, "pid": 2, "exit_status": 3, "exited_at": 4, "id": 5}),
        (metrics_v2_pb2.Metrics.DESCRIPTOR, {"pids": 1, "cpu": 2, "memory": 4, "memory_events": 8, "network": 9}),
        (metrics_v2_pb2.MemoryStat.DESCRIPTOR, {"anon": 1, "usage": 32, "swap_max_usage": 37, "psi": 38}),
    ],
)
def test_field_numbers(message: object, numbers: dict[str, int]) -> None:
    fields: dict[str, FieldDescriptor] = message.fields_by_name  # type: ignore[attr-defined]  # Descriptor, untyped here
    assert {name: fields[name].number for name in numbers} == numbers
