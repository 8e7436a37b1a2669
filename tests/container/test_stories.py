"""Which failures have a story, what is in it, and how a log tells it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from dunnage.container import stories
from dunnage.container.bundle import Bundle
from dunnage.container.stories import Story, lines, tell
from dunnage.errors import DeadlineExceeded, Error, FailedPrecondition, NotFound
from dunnage.runtime import failures
from dunnage.runtime.failures import Call, CommandFailed, Log

LOG = (
    '{"level":"warning","msg":"lstat /proc/self: odd"}\n'
    '{"level":"error","msg":"runc create failed: exec: \\"nope\\": executable file not found in $PATH"}\n'
)
ARGV = ("/usr/bin/runc", "--root", "/r o", "create", "c1")
FAILED = CommandFailed(
    "runc did not terminate successfully: exit status 1",
    output='runc create failed: exec: "nope": executable file not found in $PATH\nand more\n',
    call=Call("create", ARGV, 1),
    log=LOG,
)


def create_failed() -> Error:
    error = failures.prefixed("OCI runtime create failed", FAILED, Log(LOG))
    error.__cause__ = FAILED
    return error


def test_a_runtime_s_failure_has_everything_in_its_story() -> None:
    story = tell("create", "", create_failed(), 7)
    assert story is not None
    sentence = 'runc create failed: exec: "nope": executable file not found in $PATH'
    assert story == Story(
        at=7,
        call="create",
        exec_id="",
        error=f"OCI runtime create failed: {sentence}",
        step="runtime create",
        hint="nope is in no directory of the PATH that the process has in the container",
        command=ARGV,
        exit_status=1,
        records=(("warning", "lstat /proc/self: odd"), ("error", sentence)),
        output=f"{sentence}\nand more",
    )
    assert list(lines(story)) == [
        f"create failed at runtime create: {story.error}; hint: {story.hint}; "
        "/usr/bin/runc --root '/r o' create c1: exit status 1",
        "the runtime logged warning: lstat /proc/self: odd",
        "the runtime wrote: and more",
    ]


def test_the_hint_may_be_in_an_earlier_record_or_in_the_output() -> None:
    error = Error("OCI runtime start failed: sorry")
    error.__cause__ = CommandFailed("x", log='{"level":"info","msg":"too many open files"}', output="seccomp")
    story = tell("start", "", error, 0)
    assert story is not None
    assert "open files" in story.hint
    error.__cause__ = CommandFailed("x", output="bad seccomp filter")
    story = tell("start", "", error, 0)
    assert story is not None
    assert "seccomp" in story.hint


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (Error("failed to mount rootfs component: no such device"), "mounting the rootfs"),
        (DeadlineExceeded("failed to mount rootfs component: it hangs"), "mounting the rootfs"),
        (Error("failed rootfs umount: busy"), "unmounting the rootfs"),
        (Error("failed to create init process I/O: opening /x: no such file"), "stdio"),
        (Error("failed to create OCI runtime console socket: no room"), "terminal"),
        (DeadlineExceeded("failed to retrieve console master: none came"), "terminal"),
        (Error("failed to retrieve OCI runtime container pid: no such file"), "pid file"),
        (Error("/b/config.json is not JSON: x"), "config.json"),
        (Error("bundle /b cannot be written: no space left on device"), "bundle"),
        (CommandFailed("runc did not", call=Call("update")), "runtime update"),
    ],
)
def test_each_step_that_can_fail_has_its_name(error: Error, step: str) -> None:
    story = tell("create", "", error, 0)
    assert story is not None
    assert story.step == step


def test_a_call_that_did_not_end_is_a_step_of_the_runtime_without_a_status() -> None:
    error = DeadlineExceeded("runc start of container c1 did not end within 1 s")
    error.__cause__ = CommandFailed(str(error), output="process 7 hangs", killed=True, call=Call("start", ("runc",)))
    story = tell("start", "e1", error, 0)
    assert story is not None
    assert (story.step, story.exit_status, story.output) == ("runtime start", None, "process 7 hangs")
    said = list(lines(story))
    assert said[0].startswith("start of exec e1 failed at runtime start: runc start of container c1 did not end")
    assert said[0].endswith("; runc: did not end in order")
    assert said[1:] == ["the runtime wrote: process 7 hangs"]


@pytest.mark.parametrize(
    "error", [NotFound("process already finished"), Error("cannot delete a running process"), FailedPrecondition("x")]
)
def test_a_refusal_has_none(error: Error) -> None:
    assert tell("delete", "", error, 0) is None
    if isinstance(error, NotFound):
        error.__cause__ = CommandFailed("container not running", call=Call("kill"))
        assert tell("kill", "", error, 0) is None, "clients ask whether it runs by killing it"


def test_whatever_is_long_is_cut() -> None:
    log = "".join(json.dumps({"level": "error", "msg": f"{number} " + "x" * 9000}) + "\n" for number in range(100))
    error = CommandFailed("e" * 9000, call=Call("ps", ("w" * 9000,)), log=log, output="first" + "o" * 9000 + "last")
    story = tell("pids", "", error, 0)
    assert story is not None
    assert len(json.dumps(stories.to_json(story))) < (stories.RECORDS + 4) * stories.TEXT_CHARACTERS
    assert story.records[-1][1].startswith("99 x")
    assert story.output.endswith("last")


def test_a_bundle_keeps_the_last_ones_and_they_go_with_the_container(tmp_path: Path) -> None:
    bundle = Bundle.open(str(tmp_path))
    log = logging.Logger("stories")
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]  # a list
    log.addHandler(handler)
    for number in range(stories.KEPT + 3):
        stories.note(bundle, log, "start", f"e{number}", create_failed())
    stories.note(bundle, log, "delete", "", Error("cannot delete a running process"))
    kept = bundle.read_failures()
    assert [story["exec_id"] for story in kept] == [f"e{number}" for number in range(3, stories.KEPT + 3)]
    assert kept[0]["records"][0] == {"level": "warning", "msg": "lstat /proc/self: odd"}
    assert len(logged) == 3 * (stories.KEPT + 3)
    (tmp_path / "dunnage-failures.json").write_text("{")
    stories.note(bundle, log, "start", "e1", create_failed())
    assert len(bundle.read_failures()) == 1
    bundle.forget()
    assert list(tmp_path.iterdir()) == []
    bundle.close()
