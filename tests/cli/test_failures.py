"""What the command line says of a failure: the first sentence, a hint, and on request all that is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.machine import Machine

pytestmark = pytest.mark.real


def said(machine: Machine, *arguments: str, status: int) -> list[str]:
    return machine.dunnage(*arguments, status=status).stderr.decode().splitlines()


def test_a_run_that_fails_says_one_sentence_and_a_hint_and_all_there_is_when_asked(
    machine: Machine, rootfs: Path
) -> None:
    run = ("run", "--rm", "--rootfs", str(rootfs), "--", "no-such-command")
    short = said(machine, *run, status=127)
    assert short == [
        "dunnage: OCI runtime create failed: runc create failed: unable to start container process: "
        'exec: "no-such-command": executable file not found in $PATH',
        "dunnage: hint: no-such-command is in no directory of the PATH that the process has in the container",
    ]
    long = said(machine, "--verbose", *run, status=127)
    assert long[:2] == short
    assert long[2] == "dunnage: step: runtime create"
    assert long[3].startswith("dunnage: command: /")
    assert " create --bundle " in long[3]
    assert long[3].endswith(": exit status 1")
    assert any(line.startswith("dunnage: the runtime logged error: ") for line in long[4:])
    lines = said(machine, "run", "--runtime", "no-such-runtime", "--rootfs", str(rootfs), "--", "true", status=125)
    assert lines[1].startswith("dunnage: hint: the OCI runtime no-such-runtime is in no directory of the PATH")
    assert len(lines) == 2
    assert machine.json("ps", "-a", "--json") == []


def test_inspect_has_the_failures_of_a_container_s_life(machine: Machine, rootfs: Path) -> None:
    machine.dunnage("run", "-d", "--name", "web", "--rootfs", str(rootfs), "--", "sleep", "1000")
    assert machine.json("inspect", "web")["failures"] == []
    assert "dunnage: hint: nope is in no directory" in said(machine, "exec", "web", "nope", status=127)[1]
    (story,) = machine.json("inspect", "web")["failures"]
    assert (story["call"], story["step"], story["exit_status"]) == ("start", "runtime exec", 255)
    assert 'exec: "nope"' in story["error"]
    assert "exec" in story["command"]
    machine.dunnage("rm", "-f", "web")
    assert said(machine, "inspect", "web", status=1) == ["dunnage: container web does not exist"]
