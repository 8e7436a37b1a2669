"""§5.6: what three strings mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunnage import errors
from dunnage.stdio import Kind, Plan, plan


def test_all_empty_is_null() -> None:
    assert plan("", "", "", terminal=False) == Plan(Kind.NULL)


def test_paths_are_fifos() -> None:
    made = plan("/f/0", "/f/1", "/f/2", terminal=False, io_uid=5, io_gid=6)
    assert made == Plan(Kind.FIFO, "/f/0", "/f/1", "/f/2", io_uid=5, io_gid=6)


@pytest.mark.parametrize(
    ("stdin", "stdout", "stderr"), [("/f/0", "", ""), ("", "/f/1", ""), ("", "", "/f/2"), ("", "/a b:c", "/f/2")]
)
def test_a_missing_stream_is_skipped(stdin: str, stdout: str, stderr: str) -> None:
    assert plan(stdin, stdout, stderr, terminal=False) == Plan(Kind.FIFO, stdin, stdout, stderr)


def test_a_terminal_has_no_stderr() -> None:
    assert plan("/f/0", "/f/1", "/f/2", terminal=True) == Plan(Kind.TERMINAL, "/f/0", "/f/1", "", terminal=True)


def test_a_terminal_needs_a_stdout() -> None:
    with pytest.raises(errors.InvalidArgument, match="a terminal needs a stdout"):
        plan("/f/0", "", "", terminal=True)


def test_a_file_takes_stdout_and_stderr_whatever_stderr_says() -> None:
    made = plan("/f/0", "file:///var/log/my%20app.log", "file:///other", terminal=False)
    path = "/var/log/my app.log"
    assert made == Plan(Kind.FILE, "/f/0", path, path, log_file=True)


def test_a_file_leaves_an_unwanted_stderr_alone() -> None:
    assert plan("", "FILE:///x", "", terminal=False) == Plan(Kind.FILE, "", "/x", "", log_file=True)


def test_only_stdout_decides_on_the_scheme() -> None:
    with pytest.raises(errors.InvalidArgument, match="not absolute"):
        plan("", "", "file:///x", terminal=False)


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_log_drivers_are_refused_clearly(scheme: str) -> None:
    with pytest.raises(errors.Unimplemented, match=f"{scheme}://"):
        plan("", f"{scheme}:///usr/bin/driver?a=b", "", terminal=False)


@pytest.mark.parametrize("scheme", ["pipe", "npipe", "http", "x"])
def test_unknown_schemes_are_named(scheme: str) -> None:
    with pytest.raises(errors.Error, match=f"^unknown STDIO scheme {scheme}$"):
        plan("", f"{scheme}:///x", "", terminal=False)


@pytest.mark.parametrize(
    "stdout", ["relative/path", "file://host/x", "file:relative", "file://", "/a\0b", "file:///%00"]
)
def test_what_cannot_be_meant_is_refused(stdout: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        plan("", stdout, "", terminal=False)


@given(st.text(), st.text(), st.text(), st.booleans())
def test_any_strings_give_a_plan_or_an_error_of_ours(stdin: str, stdout: str, stderr: str, terminal: bool) -> None:
    try:
        made = plan(stdin, stdout, stderr, terminal=terminal)
    except errors.Error:
        return
    assert all(not path or path.startswith("/") for path in (made.stdin, made.stdout, made.stderr))
