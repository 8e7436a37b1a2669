"""What the launcher decides by itself: the key of a keeper, the action, the request's bytes. All pure."""

from __future__ import annotations

import os
import posix
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunnage import launcher
from dunnage.worker import control, flags

PRINTABLE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=120)
FLAGS = ("-id", "-id=c", "--id=c", "-debug", "-debug=false", "-v", "-info", "-address", "-namespace", "-bundle=/b")
WORDS = st.sampled_from(
    [*FLAGS, "-publish-binary", "--version=0", "-socket", "--", "-", "", "start", "delete", "/run/a"]
)


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("", "local"),
        ("/run/containerd/containerd.sock", "run-containerd-containerd.sock"),
        ("/run/k3s-1/a:b_c", "run-k3s\\x2d1-a:b_c"),
        ("/", "-"),
        ("//run", "-run"),
        ("relative", "relative"),
        ("local", "\\x6cocal"),
        ("/local", "\\x6cocal"),
        (".", "\\x2e"),
        ("..", "\\x2e."),
        ("/.x", "\\x2ex"),
        ("/a b+ä", "a\\x20b\\x2b\\xc3\\xa4"),
        ("/" + "a" * 64, "a" * 64),
        ("/" + "a" * 65, "a" * 40 + f"-{launcher.fnv1a(b'a' * 65):016x}"),
    ],
)
def test_the_key_of_an_address(address: str, key: str) -> None:
    assert launcher.key_of(address) == key


@given(PRINTABLE)
def test_a_key_is_one_short_file_name(address: str) -> None:
    key = launcher.key_of(address)
    assert key
    assert key not in (".", "..")
    assert not set(key) & {"/", "\0"}
    assert key.isascii()
    assert len(f"/run/dunnage/{key}+0123456789abcdef/control") < 108


def test_two_long_addresses_with_one_tail_have_two_keys() -> None:
    assert launcher.key_of("/a" + "x" * 80) != launcher.key_of("/b" + "x" * 80)


@pytest.mark.parametrize(
    ("text", "value"),
    [(b"", 0xCBF29CE484222325), (b"a", 0xAF63DC4C8601EC8C), (b"foobar", 0x85944171F73967E8)],
)
def test_fnv1a_has_its_published_values(text: bytes, value: int) -> None:
    assert launcher.fnv1a(text) == value


def test_namespaces_of_one_process_have_one_key() -> None:
    assert launcher.own_key("local") == launcher.own_key("local")
    assert launcher.own_key("local").startswith("local+")


@given(st.lists(WORDS, max_size=6))
def test_a_command_line_is_scanned_as_the_worker_parses_it(words: Sequence[str]) -> None:
    found, action = launcher.scan(["shim", *words])
    try:
        parsed = flags.parse(["shim", *words])
    except flags.FlagError:
        assert action == ""
        return
    assert action == parsed.action
    assert found.get("address", "") == parsed.address
    assert found.get("id", "") == parsed.id
    assert (found.get("info") in launcher.TRUE) == parsed.info
    assert (found.get("v") in launcher.TRUE or found.get("version") in launcher.TRUE) == parsed.version


def test_the_request_is_what_the_worker_reads() -> None:
    argv = ["/bin/shim", "-id", os.fsdecode(b"\xff\xfe"), "", "start"]
    frame = launcher.frame_of(argv, {b"A": b"1=2", b"R": b"\xfe"}, b"\0raw\0")
    assert frame[:1] == control.VERSION
    assert int.from_bytes(frame[1:5], "little") == len(frame) - 5
    request = control.decode_request(frame[5:], pid=1, uid=2)
    env = {"A": "1=2", "R": os.fsdecode(b"\xfe")}
    assert request == control.LaunchRequest(tuple(argv), env, os.getcwd(), b"\0raw\0", 1, 2)
    assert control.encode_request(request) == frame


def test_the_version_is_laid_out_as_upstream_s() -> None:
    lines = launcher.version_text("/usr/local/bin/containerd-shim-dunnage-v2").decode().split("\n")
    assert lines[0] == "containerd-shim-dunnage-v2:"
    assert [line.split(":")[0] for line in lines[1:4]] == ["  Version", "  Revision", "  Python version"]
    assert lines[4:] == ["", ""]


def test_the_clock_runs_in_seconds() -> None:
    assert abs(launcher.clock() - posix.times().elapsed) < 1
