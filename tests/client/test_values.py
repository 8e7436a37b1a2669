"""What the wire says, read; and what the host's mount table says."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from dunnage import errors
from dunnage.client.bundle import host_filesystems
from dunnage.client.connection import failure
from dunnage.client.values import Status, read_time


def test_go_s_zero_time_is_no_exit() -> None:
    assert read_time(Timestamp(seconds=-62135596800)) is None
    assert read_time(Timestamp()) is None
    assert read_time(Timestamp(seconds=1, nanos=500_000_000)) == datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)


def test_an_unknown_status_is_unknown() -> None:
    assert Status.of_number(2) is Status.RUNNING
    assert Status.of_number(99) is Status.UNKNOWN


def test_an_rpc_s_code_becomes_a_class_with_its_words() -> None:
    assert type(failure(5, "container not created: not found")) is errors.NotFound
    assert str(failure(5, "container not created: not found")) == "container not created: not found"
    assert type(failure(2, "cannot delete a running process")) is errors.Error
    assert type(failure(99, "x")) is errors.Error


def test_only_filesystems_on_block_devices_come_along() -> None:
    table = r"""22 27 0:21 / /proc rw - proc proc rw
27 1 254:0 / / rw - ext4 /dev/vda rw
28 27 254:1 / /home rw shared:1 - ext4 /dev/vdb rw
29 27 254:2 / /mnt/with\040space rw - xfs /dev/vdc rw
30 27 0:30 / /run rw - tmpfs tmpfs rw
31 30 254:3 / /run/media/x rw - ext4 /dev/vdd rw
32 27 0:40 / /net rw - nfs4 server:/export rw
33 27 254:0 /srv/part /part rw - ext4 /dev/vda rw
34 27 0:41 /@home /subvolume rw - btrfs /dev/vde rw
"""
    assert host_filesystems(table) == ["/home", "/mnt/with space", "/subvolume"]


def test_a_mount_point_may_have_any_character_but_a_newline() -> None:
    line = "36 35 8:1 / /mnt/a\rb\x0bc\u2028d rw - ext4 /dev/sda1 rw\n"
    assert host_filesystems(line) == ["/mnt/a\rb\x0bc\u2028d"]
