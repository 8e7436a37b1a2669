"""Sentences as literals: those of containerd's shim, from what runc and crun were seen to write."""

from __future__ import annotations

import pytest

from dunnage import errors
from dunnage.runtime import failures
from dunnage.runtime.failures import CommandFailed, Log

RUNC_MISSING = (
    r'{"level":"error","msg":"runc create failed: unable to start container process: exec: \"sleep\": '
    r'executable file not found in $PATH","time":"2026-11-24T05:42:45Z"}' + "\n"
)
CRUN_STOPPED = (
    '{"msg":"fail startup","level":"error","time":"2026-11-24T05:42:46.823263Z"}\n'
    '{"msg":"setns(pid=7875, CLONE_NEWUSER): No such process","level":"error","time":"2026-11-24T05:42:46.823589Z"}\n'
)
STATUS_1 = CommandFailed("runc did not terminate successfully: exit status 1")


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("", None),
        ('{"level":"warning","msg":"w"}\n', None),
        ('{"level":"error","msg":"a"}{"level":"error","msg":" b \\n"}\n{"level":"info","msg":"c"}', "b"),
        (CRUN_STOPPED, "setns(pid=7875, CLONE_NEWUSER): No such process"),
        ('{"level":"error","msg":"whole"}\n{"level":"err', "whole"),
        ("[]\n3\n", None),
    ],
)
def test_the_last_error_record_counts(log: str, message: str | None) -> None:
    assert failures.last_error(log) == message


def test_a_log_without_json_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        failures.last_error("segmentation fault\n")


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (
            Log(RUNC_MISSING),
            "OCI runtime create failed: runc create failed: unable to start container process: "
            'exec: "sleep": executable file not found in $PATH',
        ),
        (Log(""), "OCI runtime create failed: runc did not terminate successfully: exit status 1"),
        (
            Log(unreadable="open /b/log.json: no such file or directory"),
            "OCI runtime create failed: unable to retrieve OCI runtime error"
            " (open /b/log.json: no such file or directory)"
            ": runc did not terminate successfully: exit status 1",
        ),
        (
            Log("oops"),
            "OCI runtime create failed: unable to retrieve OCI runtime error"
            " (Expecting value: line 1 column 1 (char 0))"
            ": runc did not terminate successfully: exit status 1",
        ),
    ],
)
def test_a_failure_with_its_prefix(log: Log, text: str) -> None:
    error = failures.prefixed("OCI runtime create failed", STATUS_1, log)
    assert str(error) == text
    assert type(error) is errors.Error


@pytest.mark.parametrize(
    ("output", "error", "text"),
    [
        ("container not running", errors.NotFound, "process already finished"),
        ("os: process already finished", errors.NotFound, "process already finished"),
        ("open pidfd: No such process", errors.NotFound, "process already finished"),
        ("container does not exist", errors.NotFound, "no such container"),
        ('container "c1" does not exist', errors.NotFound, "no such container"),
        ("error opening file `/r/c1/status`: No such file or directory", errors.NotFound, "no such container"),
        ("cannot open directory '/r/c1': No such file or directory", errors.NotFound, "no such container"),
        (
            "error opening file `/r/c11/status`: No such file or directory",
            errors.Error,
            "unknown error after kill: crun did not terminate successfully: exit status 1: "
            "error opening file `/r/c11/status`: No such file or directory",
        ),
        (
            "unknown signal",
            errors.Error,
            "unknown error after kill: crun did not terminate successfully: exit status 1: unknown signal",
        ),
    ],
)
def test_what_a_failed_kill_means(output: str, error: type[errors.Error], text: str) -> None:
    failure = CommandFailed(failures.describe_status("crun", 1, output), output=output)
    told = failures.kill_error(failure, "c1")
    assert type(told) is error
    assert str(told) == text


def test_a_sentence_that_only_the_log_has_counts_too() -> None:
    failure = CommandFailed(failures.describe_status("crun", 1), reason="open pidfd: No such process")
    assert isinstance(failures.kill_error(failure, "c1"), errors.NotFound)


@pytest.mark.parametrize(
    ("command", "reason", "text"),
    [
        ("no-runc", None, 'exec: "no-runc": executable file not found in $PATH'),
        ("/x/runc", FileNotFoundError(2, "No such file or directory"), "fork/exec /x/runc: no such file or directory"),
        ("runc", PermissionError(13, "Permission denied"), "fork/exec runc: permission denied"),
    ],
)
def test_a_runtime_that_cannot_be_run(command: str, reason: OSError | None, text: str) -> None:
    assert failures.describe_missing(command, reason) == text


def test_every_record_is_told_whatever_its_level_and_shape() -> None:
    log = '{"level":"info","msg":"a"}{"level":"error","msg":" b "}\nsegmentation fault\n[3]\n{"level":"error"}\n{"lev'
    assert failures.records(log) == [
        ("info", "a"),
        ("error", "b"),
        ("", "segmentation fault"),
        ("", "[3]"),
        ("", '{"lev'),
    ]
