"""Type URLs are bare when written; read with a prefix too."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any

from dunnage import errors
from dunnage.api import anys, options_pb2


def test_a_written_type_url_is_the_bare_full_name() -> None:
    packed = anys.pack_bare(options_pb2.ProcessDetails(exec_id="e1"))
    assert packed.type_url == "containerd.runc.v1.ProcessDetails"
    assert packed.SerializeToString().count(b"/") == 0


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/", "types.containerd.io/", "/"])
def test_a_read_type_url_may_have_a_prefix(prefix: str) -> None:
    packed = Any(type_url=f"{prefix}containerd.runc.v1.Options", value=b"\x08\x01")
    options = anys.unpack(packed, [options_pb2.Options])
    assert options == options_pb2.Options(no_pivot_root=True)


def test_the_type_decides_the_class() -> None:
    packed = anys.pack_bare(options_pb2.CheckpointOptions(exit=True))
    both: list[type[options_pb2.Options | options_pb2.CheckpointOptions]]
    both = [options_pb2.Options, options_pb2.CheckpointOptions]
    assert isinstance(anys.unpack(packed, both), options_pb2.CheckpointOptions)


def test_another_type_is_an_invalid_argument_that_names_it() -> None:
    with pytest.raises(
        errors.InvalidArgument, match=r"'containerd\.runc\.v1\.ProcessDetails' where containerd\.runc\.v1\.Options"
    ):
        anys.unpack(anys.pack_bare(options_pb2.ProcessDetails()), [options_pb2.Options])


def test_bytes_that_are_no_message_are_an_invalid_argument() -> None:
    with pytest.raises(errors.InvalidArgument, match="value of an Any is no containerd"):
        anys.unpack(Any(type_url="containerd.runc.v1.Options", value=b"\xff"), [options_pb2.Options])
