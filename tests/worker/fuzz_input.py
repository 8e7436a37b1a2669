"""Bytes to frames: whatever a fuzzer draws is read as calls of any kind, most of them well-made but for a detail.

``c1`` is a container that runs all the time and is asked most; ``n1`` and ``n2`` have bundles, and come and go.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from tests.worker.bad_input import REQUESTS
from tests.worker.wire import TASK

from dunnage.api import mount_pb2, options_pb2, task_pb2
from dunnage.api.ttrpc_pb2 import KeyValue, Request
from dunnage.ttrpc.frames import MAX_DATA_BYTES, Type

GUEST = "c1"
OTHERS = ("n1", "n2")

T = TypeVar("T")

IDS = (*[GUEST] * 12, *OTHERS * 3, "c0", "", "..", "a/b", "x" * 300)
EXEC_IDS = (*("", "e1", "e2", "e3", "e4") * 3, "../e1", "e" * 260)
NUMBERS = (0, 1, 9, 15, 19, 65, 80, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
HARMLESS = (0, 17, 18, 23, 28, 65, 1 << 31)  # signals that do not end the guest
TIMEOUTS_NS = (*[0] * 20, 1, 1000, 10**6, 10**9, -1, -(1 << 63), (1 << 63) - 1)
STDIO = (*[""] * 8, "/proc/nowhere/x", "relative", "gopher:///x", "binary:///bin/true", "fifo:///proc/nowhere", "/a\0b")
METHODS = (*REQUESTS, *("Exec", "Start") * 5, *("Create", "Kill", "Delete", "Wait", "State") * 2)
PROGRAMS: Sequence[Any] = (
    ["true"],
    ["sleep", "0.02"],
    ["sleep", "1000"],
    ["sh", "-c", "exit 3"],
    ["nope"],
    [],
    "true",
    None,
)
JSON: Sequence[Any] = (None, True, 3, -1, 1e300, "x", [], {}, [[]], {"": {}}, {"a": [1]}, 1 << 70)
RESOURCES: Sequence[Any] = ({}, {"cpu": {"shares": 512}}, {"memory": {}}, {"pids": {"limit": 1000}}, {"cpu": 3}, [], 1)
_MAY_END_IT = task_pb2.KillRequest | task_pb2.CreateTaskRequest  # in another form than ``_tamed`` has seen
_HEADER = struct.Struct(">IIBB")


class Choices:
    """Decisions read off bytes; when they are used up, every one is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def number(self, below: int) -> int:
        return (next(self._data, 0) << 8 | next(self._data, 0)) % below if below > 256 else next(self._data, 0) % below

    def pick(self, values: Sequence[T]) -> T:
        return values[self.number(len(values))]

    def bytes(self, most: int) -> bytes:
        return bytes(next(self._data, 0) for _ in range(self.number(most + 1)))


class Sent(NamedTuple):
    """One frame on one wire. ``keeps_step``: what follows it is read as a frame of its own."""

    wire: int
    frame: bytes
    own_id: bool
    keeps_step: bool
    closes: bool
    mutable: Request | None
    """What may be sent in any changed form."""


def any_frame(choices: Choices, directory: str, wires: int) -> Sent:
    """``directory`` holds the bundles; ``wires`` is how many connections there are."""
    method = choices.pick(METHODS)
    message = any_request(choices, method, directory)
    how = choices.pick((*["well"] * 8, "request", "frame", "header", "bytes"))
    if not choices.number(100):
        how = "oversized"
    tame = how == "well" or not isinstance(message, _MAY_END_IT)
    request = Request(
        service=choices.pick((TASK, TASK, TASK, "containerd.task.v3.Task", "dunnage.node.v1.Node", "")),
        method=method,
        payload=message.SerializeToString() if tame else b"\x0a\x02n1",
        timeout_nano=choices.pick(TIMEOUTS_NS),
        metadata=[KeyValue(key="containerd-namespace-ttrpc", value="default")] * choices.number(3),
    )
    data = request.SerializeToString()
    length, kind, flags, own_id = len(data), int(Type.REQUEST), 0, True
    match how:
        case "request":
            data = mutant(data, random.Random(choices.number(60_000)))
            length = len(data)
        case "bytes":
            data = choices.bytes(50)
            length = len(data)
        case "oversized":
            length = MAX_DATA_BYTES + 1 + choices.number(9)
            data = bytes(length)
        case "header":
            length = choices.pick((length, length, length + 1, max(0, length - 1), 70_000, (1 << 32) - 1))
            kind, flags, own_id = choices.number(5), choices.number(8), choices.number(2) > 0
    frame = _HEADER.pack(length, 0, kind, flags) + data
    if how == "frame":
        frame = frame[: choices.number(len(frame) + 1)]
    keeps_step = len(frame) == _HEADER.size + length
    mutable = None if isinstance(message, _MAY_END_IT) else request
    return Sent(choices.number(wires), frame, own_id, keeps_step, not choices.number(20), mutable)


def any_request(choices: Choices, method: str, directory: str) -> Message:
    request_class = REQUESTS[method]
    made = {
        field.name: _any_value(choices, request_class, field, directory) for field in request_class.DESCRIPTOR.fields
    }
    return _tamed(request_class(**made), choices)


def mutant_request(request: Request, chance: random.Random) -> bytes:
    """Mostly one whose payload alone is changed."""
    if not chance.randrange(5):
        return mutant(request.SerializeToString(), chance)
    changed = Request(service=TASK, method=request.method, payload=mutant(request.payload, chance))
    return changed.SerializeToString()


def mutant(data: bytes, chance: random.Random) -> bytes:
    """The same bytes but for a few."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(result) + 1)
        match chance.randrange(4):
            case 0 if at < len(result):
                result[at] ^= 1 << chance.randrange(8)
            case 1:
                result[at:at] = chance.randbytes(chance.randrange(1, 4))
            case 2:
                del result[at : at + chance.randrange(1, 6)]
            case 3:
                other = chance.randrange(len(result) + 1)
                result[at:at] = result[other : other + 12]
    return bytes(result)


def _any_value(choices: Choices, request_class: type[Message], field: Any, directory: str) -> object:
    special: Mapping[tuple[type[Message], str], Callable[[], object]] = {
        (task_pb2.CreateTaskRequest, "id"): lambda: choices.pick((*OTHERS * 4, GUEST, "", "..")),
        (task_pb2.CreateTaskRequest, "bundle"): lambda: choices.pick(
            [f"{directory}/{name}" for name in OTHERS] * 4 + ["", "/proc/nowhere", directory]
        ),
        (task_pb2.CreateTaskRequest, "options"): lambda: _any_message(choices, _options(directory)),
        (task_pb2.CreateTaskRequest, "rootfs"): lambda: _mounts(choices),
        (task_pb2.CreateTaskRequest, "checkpoint"): lambda: choices.pick(
            ("", "", "", "", "relative", "/proc/nowhere", "\0")
        ),
        (task_pb2.CheckpointTaskRequest, "path"): lambda: choices.pick(("", "relative", "/a\0b")),
        (task_pb2.CheckpointTaskRequest, "options"): lambda: _any_message(
            choices, AnyMessage(type_url="containerd.runc.v1.CheckpointOptions", value=choices.bytes(9))
        ),
        (task_pb2.ExecProcessRequest, "spec"): lambda: _any_message(choices, _process(choices)),
        (task_pb2.UpdateTaskRequest, "resources"): lambda: _any_message(
            choices, AnyMessage(value=json.dumps(choices.pick(RESOURCES)).encode())
        ),
        (task_pb2.UpdateTaskRequest, "annotations"): lambda: {choices.pick(IDS): "x"},
    }
    value = special.get((request_class, field.name))
    if value is not None:
        return value()
    match field.name:
        case "id":
            return choices.pick(IDS)
        case "exec_id":
            return choices.pick(EXEC_IDS)
        case "now":
            return False
        case _ if field.type == field.TYPE_BOOL:
            return choices.number(4) == 0
        case _ if field.type == field.TYPE_STRING:
            return choices.pick(STDIO)
    return choices.pick(NUMBERS)


def _any_message(choices: Choices, usual: AnyMessage) -> AnyMessage:
    match choices.number(8):
        case 0:
            return AnyMessage(type_url=choices.pick(("", "x", "google.protobuf.Any")), value=choices.bytes(20))
        case 1:
            value = mutant(usual.value, random.Random(choices.number(60_000)))
            # a runtime makes the root that it does not find, and it would make it anywhere on this host
            return AnyMessage(type_url=usual.type_url, value=value) if not _moves_root(usual, value) else usual
    return usual


def _moves_root(usual: AnyMessage, value: bytes) -> bool:
    if usual.type_url != "containerd.runc.v1.Options":
        return False
    try:
        root = options_pb2.Options.FromString(value).root
    except DecodeError:
        return False
    return not f"{root}/".startswith(f"{options_pb2.Options.FromString(usual.value).root}/")


def _options(directory: str) -> AnyMessage:
    options = options_pb2.Options(root=f"{directory}/root")
    return AnyMessage(type_url="containerd.runc.v1.Options", value=options.SerializeToString())


def _process(choices: Choices) -> AnyMessage:
    process: dict[str, Any] = {"args": choices.pick(PROGRAMS), "cwd": "/", "env": ["PATH=/bin"]}
    if not choices.number(4):
        process[choices.pick(("cwd", "env", "user", "capabilities", "rlimits", "terminal"))] = choices.pick(JSON)
    return AnyMessage(value=json.dumps(process).encode())


def _mounts(choices: Choices) -> list[mount_pb2.Mount]:
    return [
        mount_pb2.Mount(
            type=choices.pick(("tmpfs", "bind", "nonsense", "")),
            source=choices.pick(("none", "/proc/nowhere", "\0", "")),
            target=choices.pick(("", "/x", "../..", "\0")),
            options=[choices.pick(("ro", "rbind", "nonsense", "size=1k", "\0"))],
        )
        for _ in range(max(0, choices.number(6) - 3))
    ]


def _tamed(message: Message, choices: Choices) -> Message:
    """What does not end the guest: the rest would be about a container that is over."""
    if isinstance(message, task_pb2.KillRequest) and message.id == GUEST and message.exec_id not in EXEC_IDS[2:5]:
        message.signal = choices.pick(HARMLESS)
    return message
