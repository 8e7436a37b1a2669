"""§5.6: what three strings mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunnage import errors
from dunnage.stdio import Kind, Plan, plan
from dunnage.stdio.plan import Driver


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
    with pytest.raises(errors.Error, match=r"^stat : no such file or directory$"):
        plan("/f/0", "", "", terminal=True)


@pytest.mark.parametrize("stdout", ["file:///x", "fifo:///x", "pipe:///x"])
def test_a_terminal_goes_to_a_path_or_a_driver_only(stdout: str) -> None:
    """What containerd's shim says: it takes them for paths."""
    with pytest.raises(errors.Error, match=f"^stat {stdout}: no such file or directory$"):
        plan("/f/0", stdout, "", terminal=True)


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
def test_a_driver_takes_stdout_and_stderr_and_leaves_no_stdin(scheme: str) -> None:
    made = plan("/f/0", f"{scheme}:///usr/bin/my%20driver?a=b", "", terminal=False, io_uid=5, io_gid=6)
    driver = Driver("/usr/bin/my driver", ("a", "b"), must_say_ready=scheme == "binary-v2")
    assert made == Plan(Kind.DRIVER, io_uid=5, io_gid=6, driver=driver)


def test_a_driver_may_have_a_terminal_with_its_stdin() -> None:
    made = plan("/f/0", "binary:///d", "/f/2", terminal=True)
    assert made == Plan(Kind.TERMINAL, "/f/0", terminal=True, driver=Driver("/d", (), must_say_ready=False))


@pytest.mark.parametrize(
    ("query", "arguments"),
    [
        ("", ()),
        ("id", ("id", "")),
        ("id=", ("id", "")),
        ("b=1&a=2&b=3&a", ("b", "1", "a", "2")),
        ("a%20b=c%2Fd%26&x=1+2%2B", ("a b", "c/d&", "x", "1 2+")),
        ("&&=v&k==w=", ("", "v", "k", "=w=")),
        ("bad=%zz&semi;colon=1&good=%c3%a9#fragment=1", ("good", "é")),
    ],
)
def test_a_drivers_arguments_are_each_key_and_its_first_value(query: str, arguments: tuple[str, ...]) -> None:
    made = plan("", f"binary:///d?{query}", "", terminal=False)
    assert made.driver == Driver("/d", arguments, must_say_ready=False)


@pytest.mark.parametrize(
    "url", ["binary://", "binary:d", "binary://host/d", "binary:///d?a=%00", "binary:///%00", "binary-v2://?a=b"]
)
def test_a_driver_that_cannot_be_meant_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        plan("", url, "", terminal=False)


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
    paths = [made.stdin, made.stdout, made.stderr, made.driver.program if made.driver else ""]
    assert all(not path or path.startswith("/") for path in paths)
