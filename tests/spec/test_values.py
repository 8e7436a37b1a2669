"""Sizes, processors and mounts as people write them."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunnage import errors
from dunnage.spec import Mount, parse_cpus, parse_memory, parse_mount


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("100000b", 100000),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("64MB", 64 << 20),
        ("64MiB", 64 << 20),
        ("1.5G", 3 << 29),
        (" 2 T ", 2 << 40),
        ("8k", 8192),
    ],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "64X", "M", "1.G", "inf", "64 M B", "9P" * 9, "9999999P"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"^memory .* is not a size such as 64M"):
        parse_memory(text)


@pytest.mark.parametrize(("text", "cpus"), [("0.5", 0.5), ("2", 2.0), ("0.01", 0.01), ("1e1", 10.0)])
def test_processors(text: str, cpus: float) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "0", "0.001", "-1", "nan", "inf", "half"])
def test_what_are_no_processors(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="is not a number of processors"):
        parse_cpus(text)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/a:/b", Mount("/b", "bind", "/a", ("rbind",))),
        ("/a:/b:ro", Mount("/b", "bind", "/a", ("rbind", "ro"))),
        ("/a:/b:rw", Mount("/b", "bind", "/a", ("rbind",))),
        ("/a=1:/b", Mount("/b", "bind", "/a=1", ("rbind",))),
        ("./a:/b/", Mount("/b", "bind", f"{os.getcwd()}/a", ("rbind",))),
        ("type=bind,source=/a,target=/b,readonly", Mount("/b", "bind", "/a", ("rbind", "ro"))),
        ("type=bind,src=/a,dst=/b,ro=false", Mount("/b", "bind", "/a", ("rbind",))),
        ("source=/a:c,destination=/b", Mount("/b", "bind", "/a:c", ("rbind",))),
        ("type=bind,src=/a,dst=/b,options=bind:ro:noexec", Mount("/b", "bind", "/a", ("bind", "ro", "noexec"))),
        (
            "type=tmpfs,target=/t,tmpfs-size=1M,tmpfs-mode=700",
            Mount("/t", "tmpfs", "tmpfs", ("size=1048576", "mode=700")),
        ),
    ],
)
def test_a_mount(text: str, mount: Mount) -> None:
    assert parse_mount(text) == mount


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither SOURCE:TARGET"),
        ("/a", "neither SOURCE:TARGET"),
        ("/a:/b:rx", "neither SOURCE:TARGET"),
        ("/a:/b:ro:c", "neither SOURCE:TARGET"),
        (":/b", "neither SOURCE:TARGET"),
        ("/a:b", "target must be an absolute path"),
        ("/a:/", "target cannot be the root"),
        ("/a://", "target cannot be the root"),
        ("type=bind,source=/a", "target must be an absolute path"),
        ("type=bind,target=/b", "a bind mount needs a source"),
        ("type=bind,colour=red", "unknown key 'colour'"),
        ("type=bind,source,target=/b", "source needs a value"),
        ("type=bind,src=/a,source=/a,target=/b", "source is given twice"),
        ("type=bind,src=/a,dst=/b,readonly=maybe", "readonly is true or false, not 'maybe'"),
        ("src=/a,dst=/b,tmpfs-size=1M", "tmpfs-size is for type=tmpfs"),
    ],
)
def test_what_is_no_mount(text: str, reason: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=reason) as told:
        parse_mount(text)
    assert str(told.value).startswith(f"mount {text!r}")


@given(st.text(max_size=40), st.sampled_from([parse_memory, parse_cpus, parse_mount]))
def test_any_text_is_understood_or_refused(text: str, parse: Callable[[str], object]) -> None:
    try:
        parse(text)
    except errors.InvalidArgument as refusal:
        assert repr(text) in str(refusal)  # noqa: PT017  # any text may also be understood
