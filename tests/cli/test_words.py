"""What the command line reads and says, without a container."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from dunnage import errors
from dunnage.cli import leftovers, machine, stop
from dunnage.cli.control import parse_signal
from dunnage.cli.finding import Verdict
from dunnage.cli.foreground import status_of_failure
from dunnage.cli.main import _COMMANDS, LazyGroup, cli, complain
from dunnage.cli.ps import _command_text
from dunnage.cli.run import resolve_variables
from dunnage.cli.table import print_table
from dunnage.client import Node

RUNC = "OCI runtime create failed: runc create failed: unable to start container process: "
CRUN = "OCI runtime create failed: "


@pytest.mark.parametrize(
    ("sentence", "status"),
    [
        (RUNC + 'exec: "nope": executable file not found in $PATH', 127),
        (RUNC + 'exec: "/nope": stat /nope: no such file or directory', 127),
        (RUNC + 'exec: "/etc": permission denied', 126),
        (RUNC + 'exec: "/etc": is a directory', 126),
        (RUNC + "exec /bin/x: no such file or directory", 127),
        (RUNC + "exec /bin/x: exec format error", 126),
        (CRUN + "executable file `nope` not found in $PATH: No such file or directory", 127),
        (CRUN + "open executable: Operation not permitted", 126),
        (CRUN + "open executable: Permission denied", 126),
        (RUNC + 'error mounting "/x" to rootfs at "/y": stat /x: no such file or directory', 125),
        (CRUN + 'unable to retrieve OCI runtime error (…): exec: "x": executable file not found in $PATH', 125),
        ("no worker for container x: permission denied", 125),
    ],
)
def test_the_runtime_s_sentence_tells_whose_fault_it_was(sentence: str, status: int) -> None:
    assert status_of_failure(errors.Error(sentence)) == status


@pytest.mark.parametrize(("text", "number"), [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("term", 15), ("RTMIN+3", 37)])
def test_a_signal_is_a_name_or_a_number(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "WHAT", "TERM+x", "TERM+1", "9+1", "RTMIN+-3", "-1"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="is no signal"):
        parse_signal(text)


def test_a_variable_without_a_value_takes_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "here")
    monkeypatch.delenv("NOBODYS", raising=False)
    assert resolve_variables(["A=b=c", "OURS", "NOBODYS", "B="]) == ["A=b=c", "OURS=here", "B="]
    with pytest.raises(errors.InvalidArgument):
        resolve_variables(["=x"])


def test_a_table_is_plain_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "X"), [("a long name", "1"), ("b", "")])
    assert capsys.readouterr().out == "NAME         X\na long name  1\nb\n"


def test_a_command_is_told_on_one_line_and_says_nothing_to_the_terminal(tmp_path: Path) -> None:
    process = {"args": ["sh", "-c", "echo one\n\x1b[31m"]}
    (tmp_path / "config.json").write_text(json.dumps({"process": process}))
    assert _command_text(tmp_path) == "sh -c 'echo one\\n\\x1b[31m'"


def test_a_failure_names_its_thing_once(capsys: pytest.CaptureFixture[str]) -> None:
    complain(errors.NotFound("container web does not exist"), "container web")
    complain(errors.NotFound("process already finished: not found"), "container web")
    complain(errors.NotFound("process already finished: not found"), "container process")
    complain(errors.InvalidArgument("container id 'a b' must be one word"), "container a b")
    complain(errors.Error("crun did not terminate successfully: writing file: invalid\n\n"), "container web")
    complain(OSError(errno.ENOSPC, "No space left on device"))
    assert capsys.readouterr().err.splitlines() == [
        "dunnage: container web does not exist",
        "dunnage: container web: process already finished: not found",
        "dunnage: container process: process already finished: not found",
        "dunnage: container id 'a b' must be one word",
        "dunnage: container web: crun did not terminate successfully: writing file: invalid",
        "dunnage: no space left on device",
    ]


def test_a_container_that_cannot_be_stopped_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Full:
        async def remove(self, name: str, *, force: bool) -> None:
            raise errors.DeadlineExceeded("Delete was not answered within 150 s")

    class Vanished:
        async def remove(self, name: str, *, force: bool) -> None:
            raise errors.NotFound("container web does not exist")

    assert asyncio.run(stop._remove(cast(Node, Vanished()), "web"))
    assert not asyncio.run(stop._remove(cast(Node, Full()), "web"))
    assert capsys.readouterr().err == "dunnage: container web: Delete was not answered within 150 s\n"


DUNNAGE = [sys.executable, "-m", "dunnage.cli.main"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_as_if_nobody_used_them(closed: str) -> None:
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *DUNNAGE, "ps"], capture_output=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")


def test_output_that_cannot_be_written_is_a_failure_said_once() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*DUNNAGE, "status", "--json"], stdout=full, stderr=subprocess.PIPE, timeout=30)
    assert (done.returncode, done.stderr) == (1, b"dunnage: no space left on device\n")


def test_output_without_a_reader_ends_it_as_sigpipe_would() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([*DUNNAGE, "ps"], stdout=theirs, stderr=subprocess.PIPE, timeout=30)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_help_can_be_read_in_any_locale() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin1"}
    done = subprocess.run([*DUNNAGE, "run", "--help"], capture_output=True, timeout=30, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_command_is_there_and_has_help() -> None:
    assert isinstance(cli, LazyGroup)
    for name in _COMMANDS:
        done = CliRunner().invoke(cli, [name, "--help"], prog_name="dunnage")
        assert done.exit_code == 0, done.output
        assert done.output.startswith(f"Usage: dunnage {name} ")
    done = CliRunner().invoke(cli, ["no-such-command", "--help"], prog_name="dunnage")
    assert done.exit_code == 2


def test_the_words_for_help_import_no_worker_and_no_table_library() -> None:
    script = (
        "import sys, dunnage.cli.main, dunnage.cli.run; "
        "print([name for name in sys.modules if name.split('.')[0] == 'rich' or name.startswith(('dunnage.worker',"
        " 'dunnage.container', 'dunnage.keeper', 'dunnage.service'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n"


def test_a_state_directory_that_nobody_has_is_a_leftover(tmp_path: Path) -> None:
    assert [one.verdict for one in leftovers.findings(tmp_path / "nothing")] == [Verdict.OK]
    bundle = tmp_path / "local/bundles/default/web"
    bundle.mkdir(parents=True)
    (found,) = leftovers.findings(tmp_path)
    assert str(bundle) in found.fact
    assert found.remedy == "dunnage --namespace default rm -f web"


def test_a_runtime_section_is_found_wherever_it_stands() -> None:
    section = {"runtime_type": "io.containerd.dunnage.v2"}
    assert machine._names_runtime({"plugins": {"cri": {"containerd": {"runtimes": {"x": section}}}}})
    assert not machine._names_runtime({"plugins": {"runtime_type": "io.containerd.runc.v2"}})


def test_the_doctor_finds_this_machine_able() -> None:
    found = list(machine.findings())
    assert {"kernel", "splice", "overlay", "cgroups", "/run/dunnage"} <= {one.subject for one in found}
    assert all(one.remedy for one in found if one.verdict is Verdict.MISSING)
