"""A container's options: in the message for runc, in a TOML table for every other name, in a file that is such a table;
and what is no option, told by file, key and fact."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from dunnage.api import options_pb2, runtimeoptions_pb2, task_pb2
from dunnage.container.facts import Options
from dunnage.errors import DeadlineExceeded, InvalidArgument
from dunnage.service.options import KEYS, options_file, parse_table, read_options

# what containerd 1.7 makes of the table `options` of its configuration
BODY = b"""
BinaryName = "/usr/bin/crun"
CriuPath = "/opt/criu"
CriuWorkPath = "/criu"
CriuImagePath = ""
IoGid = 8
IoUid = 7
NoNewKeyring = true
NoPivotRoot = false
Root = "/r"
ShimCgroup = "/shims"
SystemdCgroup = true
"""
MEANT = Options(
    no_new_keyring=True,
    shim_cgroup="/shims",
    io_uid=7,
    io_gid=8,
    binary_name="/usr/bin/crun",
    root="/r",
    systemd_cgroup=True,
    criu_work_path="/criu",
    criu_path="/opt/criu",
)
FILES = {"/etc/runc.toml": BODY}


async def read_file(path: str) -> bytes:
    if path == "/hanging":
        raise DeadlineExceeded("reading /hanging did not end within 30 s")
    if path not in FILES:
        raise InvalidArgument(f"{path} cannot be read: no such file or directory")
    return FILES[path]


def read(packed: AnyMessage) -> Options:
    return asyncio.run(read_options(packed, read_file))


def any_of(message: Message, prefix: str = "") -> AnyMessage:
    return AnyMessage(type_url=f"{prefix}{message.DESCRIPTOR.full_name}", value=message.SerializeToString())


def generic(**fields: Any) -> AnyMessage:
    return any_of(runtimeoptions_pb2.Options(**fields))


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/", "/", "types.containerd.io/x/"])
def test_options_come_under_a_bare_name_or_with_a_prefix(prefix: str) -> None:
    message = options_pb2.Options(binary_name="crun", root="/r", systemd_cgroup=True, io_uid=7, io_gid=8)
    assert read(any_of(message, prefix)) == Options(
        binary_name="crun", root="/r", systemd_cgroup=True, io_uid=7, io_gid=8
    )
    assert read(any_of(runtimeoptions_pb2.Options(config_body=BODY), prefix)) == MEANT


def test_absent_or_empty_options_are_the_defaults() -> None:
    assert read(AnyMessage()) == Options()
    assert read(task_pb2.CreateTaskRequest().options) == Options()
    assert read(any_of(options_pb2.Options())) == Options()
    assert read(generic()) == Options(), "containerd 1.6 leaves the body out"


def test_unreadable_options_are_an_invalid_argument() -> None:
    with pytest.raises(InvalidArgument, match=r"containerd\.runc\.v1\.Options"):
        read(AnyMessage(type_url="containerd.runc.v1.Options", value=b"\xff\xff"))
    with pytest.raises(InvalidArgument, match=r"^type 'some\.Other' where .*runc\.v1\.Options or runtimeoptions\.v1"):
        read(AnyMessage(type_url="some.Other"))
    with pytest.raises(InvalidArgument, match=r"^the runtime options: root has a NUL in it$"):
        read(any_of(options_pb2.Options(root="/r\0oot")))


def test_a_file_is_read_where_one_is_named_and_the_body_is_not() -> None:
    assert read(generic(config_path="/etc/runc.toml", config_body=b"Root = 3")) == MEANT
    assert read(generic(type_url="containerd.runc.v1.Options", config_path="/etc/runc.toml")) == MEANT


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"config_path": "/etc/none"}, r"^/etc/none cannot be read: no such file or directory$"),
        ({"config_path": "runc.toml"}, r"^the runtime options: ConfigPath is 'runc.toml'; it must be an absolute"),
        ({"config_path": "/a\0b"}, r"must be an absolute path$"),
        (
            {"type_url": "io.containerd.runsc.v1.options", "config_path": "/etc/runc.toml"},
            r"^/etc/runc.toml: TypeUrl is 'io.containerd.runsc.v1.options'; it may be 'containerd.runc.v1.Options'",
        ),
        ({"config_body": b"Root = "}, r"^the runtime options \(config_body\) is not TOML: Invalid value"),
        ({"config_body": b"Root = '\xff'"}, r"^the runtime options \(config_body\) is not TOML: .*0xff"),
    ],
)
def test_a_table_that_cannot_be_had_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        read(generic(**fields))


def test_a_file_that_does_not_answer_is_no_fault_of_the_client() -> None:
    with pytest.raises(DeadlineExceeded, match="/hanging"):
        read(generic(config_path="/hanging"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SystemCgroup = true", r"^f: unknown key SystemCgroup; known are BinaryName, CriuPath, .* SystemdCgroup$"),
        ("[options]\nRoot = '/r'", r"^f: unknown key options; "),
        ("system_cgroup = true", r"^f: unknown key system_cgroup; "),
        ("SystemdCgroup = 'true'", r"^f: SystemdCgroup is 'true'; it must be true or false$"),
        ("NoPivotRoot = 1", r"^f: NoPivotRoot is 1; it must be true or false$"),
        ("IoUid = true", r"^f: IoUid is True; it must be a number up to 4294967295$"),
        ("IoGid = -1", r"^f: IoGid is -1; it must be a number"),
        ("IoGid = 4294967296", r"^f: IoGid is 4294967296; it must be a number"),
        ("IoUid = 1.0", r"^f: IoUid is 1\.0; it must be a number"),
        ("root = 3", r"^f: Root is 3; it must be a text$"),
        ("BinaryName = ['crun']", r"^f: BinaryName is \['crun'\]; it must be a text$"),
        ("Root = '/a'\nROOT = '/b'", r"^f: Root is there twice$"),
        ('Root = "/a\\u0000b"', r"^f: root has a NUL in it$"),
    ],
)
def test_what_is_no_option_is_told_by_file_key_and_fact(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        parse_table(text.encode(), "f")


def test_keys_count_in_letters_of_either_case_and_containerd_s_own_are_passed_over() -> None:
    text = "systemdcgroup = true\nIOUID = 4294967295\nTypeUrl = 'x'\nConfigPath = ''\nTaskApiVersion = 3\n"
    assert parse_table(text.encode(), "f") == Options(systemd_cgroup=True, io_uid=0xFFFF_FFFF)


def test_every_option_has_a_key_and_the_other_way_round() -> None:
    assert sorted(KEYS.values()) == sorted(Options._fields)


def test_the_options_file_has_the_names_of_the_fields_and_nothing_empty() -> None:
    assert options_file(Options()) == {}
    every = Options(True, True, "/shim", 1, 2, "crun", "/root", True, "/criu", "/opt/criu")
    assert options_file(every) == {
        "no_pivot_root": True,
        "no_new_keyring": True,
        "shim_cgroup": "/shim",
        "io_uid": 1,
        "io_gid": 2,
        "binary_name": "crun",
        "root": "/root",
        "systemd_cgroup": True,
        "criu_work_path": "/criu",
        "criu_path": "/opt/criu",
    }
    fields = {field.name for field in options_pb2.Options.DESCRIPTOR.fields}
    assert set(options_file(every)) <= fields
