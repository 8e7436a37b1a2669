"""Every bad request that we can think of, as rows: for each call of the Task service, what it is asked and the code it
has to be refused with.

``c1`` is a container that runs, with an exec ``e1`` that runs and one, ``idle``, that was never started; ``new`` has a
bundle and was never created.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from dunnage.api import mount_pb2, options_pb2, runtimeoptions_pb2, task_pb2
from dunnage.ttrpc.errors import Code

OK = 0
REFUSED = Code.UNKNOWN
INVALID = Code.INVALID_ARGUMENT
NOT_FOUND = Code.NOT_FOUND
FAILED = Code.FAILED_PRECONDITION

REQUESTS: Mapping[str, type[Message]] = {
    "State": task_pb2.StateRequest,
    "Create": task_pb2.CreateTaskRequest,
    "Start": task_pb2.StartRequest,
    "Delete": task_pb2.DeleteRequest,
    "Pids": task_pb2.PidsRequest,
    "Pause": task_pb2.PauseRequest,
    "Resume": task_pb2.ResumeRequest,
    "Checkpoint": task_pb2.CheckpointTaskRequest,
    "Kill": task_pb2.KillRequest,
    "Exec": task_pb2.ExecProcessRequest,
    "ResizePty": task_pb2.ResizePtyRequest,
    "CloseIO": task_pb2.CloseIORequest,
    "Update": task_pb2.UpdateTaskRequest,
    "Wait": task_pb2.WaitRequest,
    "Stats": task_pb2.StatsRequest,
    "Connect": task_pb2.ConnectRequest,
    "Shutdown": task_pb2.ShutdownRequest,
}
NEVER_REFUSED = ("Connect", "Shutdown")
"""They answer for an id that nobody knows too."""

BAD_NAMES = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "slash": "a/b",
    "absolute": "/etc/passwd",
    "climbing": "../../etc",
    "zero byte": "a\0b",
    "10,000 characters": "x" * 10_000,
    "1 MiB": "x" * (1 << 20),
}
"""That nothing may be called."""
ODD_NAMES = {
    "newline": "a\nb",
    "not ascii": "ö\u202e☃",
    "looks like an option": "--force",
    "percent": "%s%n{0}",
    "number sign": "c#1",
}
"""That nothing is called."""

JSON_THAT_IS_NONE = {
    "empty": b"",
    "cut": b'{"args": ["true"]',
    "binary": bytes(range(256)),
    "utf-16": '{"args": []}'.encode("utf-16"),
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "very deep": b"[" * 200_000,
    "very deep in a key": b'{"args":' + b"[" * 200_000,
    **{f"{depth} deep": b'{"args":' * depth + b"3" + b"}" * depth for depth in range(101, 1100, 37)},
    "a very long number": b'{"args": ' + b"9" * 50_000 + b"}",
}


@dataclass(frozen=True)
class Row:
    method: str
    what: str
    payload: bytes
    codes: tuple[int, ...]
    timeout_ns: int = 0


def rows(directory: Path) -> Iterator[Row]:
    """``directory`` holds the bundles, and is used for what some of them name."""
    for method, request_class in REQUESTS.items():
        yield from _of_any_call(method, request_class)
    for method in ("State", "Start", "Delete", "Kill", "ResizePty", "CloseIO", "Wait"):
        for what, name in (BAD_NAMES | ODD_NAMES).items():
            if name:
                yield _row(method, f"exec id: {what}", NOT_FOUND, id="c1", exec_id=name)
    yield from _of_create(directory)
    yield from _of_exec(directory)
    yield from _of_others(directory)


def _of_any_call(method: str, request_class: type[Message]) -> Iterator[Row]:
    unknown = OK if method in NEVER_REFUSED else NOT_FOUND
    bad_name = INVALID if method == "Create" else unknown
    whole = request_class(id="unknown").SerializeToString()
    yield Row(method, "nothing", b"", (bad_name,))
    yield Row(method, "cut short", whole[:-1], (Code.INTERNAL,))
    yield Row(method, "only a tag", b"\x0a", (Code.INTERNAL,))
    yield Row(method, "a length beyond the end", b"\x0a\xff\xff\xff\xff\x07a", (Code.INTERNAL,))
    yield Row(method, "a field of number 0", b"\x00\x00", (Code.INTERNAL,))
    yield Row(method, "a group without an end", b"\x0b", (Code.INTERNAL,))
    yield Row(method, "bytes", b"\xff" * 40, (Code.INTERNAL,))
    yield Row(method, "an id that is not utf-8", b"\x0a\x02\xff\xfe", (Code.INTERNAL,))
    yield Row(method, "an id that is a number", b"\x08\x05", (bad_name,))
    yield Row(method, "unknown fields", whole + b"\xf2\x3f\x03abc", (INVALID if method == "Create" else unknown,))
    yield Row(method, "the id of another", _pack(request_class, id="c0"), (INVALID if method == "Create" else unknown,))
    for what, name in BAD_NAMES.items():
        yield Row(method, f"id: {what}", _pack(request_class, id=name), (bad_name,))
    for what, name in ODD_NAMES.items():
        yield Row(method, f"id: {what}", _pack(request_class, id=name), (INVALID if method == "Create" else unknown,))
    late = (Code.DEADLINE_EXCEEDED,)
    yield Row(method, "a deadline before now", whole, late, timeout_ns=-1)
    yield Row(method, "a deadline long before now", whole, late, timeout_ns=-(1 << 63))
    soon = (*late, INVALID if method == "Create" else unknown)
    yield Row(method, "a deadline in a nanosecond", whole, soon, timeout_ns=1)
    yield Row(method, "a deadline in 292 years", whole, soon[1:], timeout_ns=(1 << 63) - 1)


def _of_create(directory: Path) -> Iterator[Row]:
    file, link, loop, empty = directory / "file", directory / "link", directory / "loop", directory / "empty"
    file.write_text("")
    link.symlink_to(directory / "nowhere")
    loop.symlink_to(loop)
    empty.mkdir()
    bundles = {
        "": INVALID,
        "relative": INVALID,
        "../c1": INVALID,
        "/nowhere": FAILED,
        f"{file}": FAILED,
        f"{link}": FAILED,
        f"{loop}": FAILED,
        f"{empty}": INVALID,
        f"{directory}/new\0": INVALID,
        "/" + "x" * 300: FAILED,
        "/" + "x/" * 5000: FAILED,
        "/proc/self/fd": REFUSED,
    }
    for bundle, code in bundles.items():
        yield _row("Create", f"bundle {bundle[:60]!r}", code, id="new", bundle=bundle)
    for what, text in JSON_THAT_IS_NONE.items():
        (directory / f"spec {what}").mkdir()
        (directory / f"spec {what}/config.json").write_bytes(text)
        if not what.endswith(" deep"):
            yield _row("Create", f"spec: {what}", INVALID, id="new", bundle=f"{directory}/spec {what}")
    bundle = str(directory / "new")

    def create(what: str, *codes: int, **fields: Any) -> Row:
        return Row("Create", what, _pack(task_pb2.CreateTaskRequest, id="new", bundle=bundle, **fields), codes)

    yield _row("Create", "an id that is there", Code.ALREADY_EXISTS, id="c1", bundle=bundle)
    for what, fields in _stdio(directory).items():
        yield create(f"stdio: {what}", INVALID, REFUSED, NOT_FOUND, **fields)
    for what, mount in {
        "a type that there is none of": mount_pb2.Mount(type="nonsense", source="none"),
        "nothing": mount_pb2.Mount(),
        "a source with a zero byte": mount_pb2.Mount(type="bind", source="/a\0b", options=["rbind"]),
        "a target with a zero byte": mount_pb2.Mount(type="tmpfs", source="none", target="/a\0b"),
        "a target above": mount_pb2.Mount(type="bind", source="/nowhere", target="../../../..", options=["rbind"]),
        "an option with a zero byte": mount_pb2.Mount(type="tmpfs", source="none", options=["size=1\0"]),
        "a type with a zero byte": mount_pb2.Mount(type="tmp\0fs", source="none"),
        "a source that is not there": mount_pb2.Mount(type="bind", source="/nowhere", options=["rbind"]),
        "a very long option": mount_pb2.Mount(type="overlay", source="o", options=["lowerdir=" + "/x" * 100_000]),
        "very many options": mount_pb2.Mount(type="tmpfs", source="none", options=["nonsense"] * 20_000),
    }.items():
        yield create(f"mount: {what}", INVALID, REFUSED, NOT_FOUND, FAILED, rootfs=[mount])
    stack = [mount_pb2.Mount(type="tmpfs", source="none")] * 20
    nowhere = mount_pb2.Mount(type="bind", source="/nowhere", options=["rbind"])
    yield create("twenty mounts and one that cannot be made", INVALID, REFUSED, NOT_FOUND, rootfs=[*stack, nowhere])
    yield create("a checkpoint with a zero byte", INVALID, checkpoint="/a\0b")
    for what, options in _anys(options_pb2.Options()).items():
        yield create(f"options: {what}", INVALID, options=options)
    for what, of_runc in {
        "a runtime that is not there": options_pb2.Options(binary_name="no-such-runtime"),
        "a runtime that is a directory": options_pb2.Options(binary_name="/"),
        "a runtime with a zero byte": options_pb2.Options(binary_name="ru\0nc"),
        "a very long runtime": options_pb2.Options(binary_name="x" * 10_000),
        "a root that is a file": options_pb2.Options(root=str(file)),
        "a root with a zero byte": options_pb2.Options(root="/ro\0ot"),
    }.items():
        packed = AnyMessage(type_url="containerd.runc.v1.Options", value=of_runc.SerializeToString())
        yield create(f"options: {what}", INVALID, REFUSED, options=packed)
    for what, runtime_options in {
        "no table": runtimeoptions_pb2.Options(config_body=b"= = ="),
        "a table that is not utf-8": runtimeoptions_pb2.Options(config_body=b"\xff\xfe"),
        "an unknown key": runtimeoptions_pb2.Options(config_body=b"Nonsense = 1"),
        "a value of another type": runtimeoptions_pb2.Options(config_body=b"SystemdCgroup = 3"),
        "a very deep table": runtimeoptions_pb2.Options(config_body=b"a = " + b"[" * 100_000),
        "a file that is not there": runtimeoptions_pb2.Options(config_path="/nowhere"),
        "a file that is a directory": runtimeoptions_pb2.Options(config_path="/"),
        "a file with a zero byte": runtimeoptions_pb2.Options(config_path="/no\0where"),
        "a file without an end": runtimeoptions_pb2.Options(config_path="/dev/zero"),
    }.items():
        packed = AnyMessage(type_url="runtimeoptions.v1.Options", value=runtime_options.SerializeToString())
        yield create(f"options: {what}", INVALID, options=packed)


def _of_exec(directory: Path) -> Iterator[Row]:
    spec = AnyMessage(value=b'{"args": ["true"], "cwd": "/", "env": []}')
    for what, name in BAD_NAMES.items():
        yield _row("Exec", f"exec id: {what}", INVALID, id="c1", exec_id=name, spec=spec)
    yield _row("Exec", "an exec id that is there", Code.ALREADY_EXISTS, id="c1", exec_id="e1", spec=spec)
    yield _row("Exec", "no spec", INVALID, id="c1", exec_id="bad")
    for what, value in JSON_THAT_IS_NONE.items():
        yield _row("Exec", f"spec: {what}", INVALID, id="c1", exec_id="bad", spec=AnyMessage(value=value))
    for number, (what, fields) in enumerate(_stdio(directory).items()):
        # at the Exec or at the Start: what is there may change until then
        bad = {"id": "c1", "exec_id": f"bad{number}"}
        yield _row("Exec", f"stdio: {what}", (OK, INVALID, REFUSED), spec=spec, **bad, **fields)
        yield _row("Start", f"stdio: {what}", (INVALID, REFUSED, NOT_FOUND), **bad)
        yield _row("Delete", f"stdio: {what}", (OK, NOT_FOUND), **bad)


def _of_others(directory: Path) -> Iterator[Row]:
    yield _row("Start", "a container that runs", REFUSED, id="c1")
    yield _row("Start", "an exec that runs", REFUSED, id="c1", exec_id="e1")
    yield _row("Delete", "a container that runs", REFUSED, id="c1")
    yield _row("Delete", "an exec that runs", REFUSED, id="c1", exec_id="e1")
    yield _row("Resume", "a container that runs", REFUSED, id="c1")
    yield _row("Kill", "an exec that was never started", FAILED, id="c1", exec_id="idle", signal=9)
    for number in (65, 1000, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
        yield _row("Kill", f"signal {number}", (INVALID, REFUSED), id="c1", signal=number)
        # runc passes over those that cannot have it, as under the Go shim
        yield _row("Kill", f"signal {number}, all", (OK, REFUSED), id="c1", signal=number, all=True)
        yield _row("Kill", f"signal {number} for an exec", (INVALID, REFUSED), id="c1", exec_id="e1", signal=number)
    yield _row("Kill", "signal 0 for an exec", OK, id="c1", exec_id="e1", signal=0)
    for size in (0, 1, 65535, 65536, (1 << 32) - 1):
        for exec_id in ("", "e1", "idle"):
            yield _row("ResizePty", f"{size} of {exec_id}", OK, id="c1", exec_id=exec_id, width=size, height=size)
    yield _row("CloseIO", "no stdin", OK, id="c1", exec_id="e1", stdin=True)
    for what, value in JSON_THAT_IS_NONE.items():
        yield _row("Update", f"resources: {what}", INVALID, id="c1", resources=AnyMessage(value=value))
    for what, resources in {
        "a list of limits": {"memory": []},
        "a limit that is a word": {"memory": {"limit": "much"}},
        "too large a limit": {"memory": {"limit": 1 << 70}},
        "too small a limit": {"memory": {"limit": 1}},
        "cpus that there are none of": {"cpu": {"cpus": "100000-100001"}},
    }.items():
        packed = AnyMessage(value=json.dumps(resources).encode())
        yield _row("Update", f"resources: {what}", (INVALID, REFUSED), id="c1", resources=packed)
    for path in ("", "relative", "../above"):
        yield _row("Checkpoint", f"path {path!r}", INVALID, id="c1", path=path)
    yield _row("Checkpoint", "a path with a zero byte", INVALID, id="c1", path=f"{directory}/ima\0ge")
    for what, options in _anys(options_pb2.CheckpointOptions()).items():
        yield _row("Checkpoint", f"options: {what}", INVALID, id="c1", path=f"{directory}/image", options=options)


def _stdio(directory: Path) -> dict[str, dict[str, Any]]:
    return {
        "relative": {"stdout": "out"},
        "relative stderr": {"stderr": "../err"},
        "relative stdin": {"stdin": "in"},
        "a zero byte": {"stdout": "/a\0b"},
        "a zero byte in stdin": {"stdin": "/a\0b"},
        "an encoded zero byte": {"stdout": "file:///a%00b"},
        "a scheme that there is none of": {"stdout": "gopher:///x"},
        "a host": {"stdout": "file://elsewhere/x"},
        "a terminal without a stdout": {"terminal": True},
        "a relative program": {"stdout": "binary://logger"},
        "no program": {"stdout": "binary://"},
        "a file that is not there": {"stdout": "/nowhere/out"},
        "a directory": {"stdout": str(directory)},
        "a stdin that is not there": {"stdin": "/nowhere/in", "stdout": ""},
        "a file:// in a directory that is not there": {"stdout": f"file://{directory}/file/x/out"},
        "a file:// that is a directory": {"stdout": f"file://{directory}"},
        "a program that is not there": {"stdout": "binary:///nowhere/logger"},
        "1 MiB": {"stdout": "/" + "x" * (1 << 20)},
    }


def _anys(message: Message) -> dict[str, AnyMessage]:
    name = message.DESCRIPTOR.full_name
    text = next(field.number for field in message.DESCRIPTOR.fields if field.type == field.TYPE_STRING)
    return {
        "no type": AnyMessage(value=b"\x08\x01"),
        "another type": AnyMessage(type_url="google.protobuf.Duration"),
        "another type behind the right one": AnyMessage(type_url=f"{name}/google.protobuf.Duration"),
        "a type that is a path": AnyMessage(type_url="../../etc/passwd"),
        "a very long type": AnyMessage(type_url="x" * 100_000),
        "bytes that are none of it": AnyMessage(type_url=name, value=b"\xff\xff\xff"),
        "cut short": AnyMessage(type_url=f"type.googleapis.com/{name}", value=b"\x0a\x7f"),
        "text that is not utf-8": AnyMessage(type_url=name, value=bytes([text << 3 | 2]) + b"\x02\xff\xfe"),
        "itself": AnyMessage(type_url="google.protobuf.Any", value=AnyMessage(type_url=name).SerializeToString()),
    }


def _row(method: str, what: str, codes: int | tuple[int, ...], **fields: Any) -> Row:
    return Row(method, what, _pack(REQUESTS[method], **fields), codes if isinstance(codes, tuple) else (codes,))


def _pack(request_class: type[Message], **fields: Any) -> bytes:
    return request_class(**fields).SerializeToString()
