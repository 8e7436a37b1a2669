"""Pause, limits, statistics and checkpoints of containers that run, against the real worker and the real runtimes."""

from __future__ import annotations

import json
import os
import select
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from tests import newer
from tests.cli.machine import LIMIT_S, Machine, Terminal

pytestmark = pytest.mark.real

COUNT = "i=0; while :; do i=$((i+1)); echo $i; echo $i >> /tmp/count; sleep 0.02; done"


@pytest.fixture
def with_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime finds it in our PATH, which the launcher hands on."""
    monkeypatch.setenv("PATH", f"{newer.directory('criu')}:{os.environ['PATH']}")


def topics(machine: Machine, *wanted: str) -> list[str]:
    """The remembered events' topics, up to the last one that is wanted."""
    events = machine.begin("events", "--history", "--json", stdout=subprocess.PIPE, bufsize=0)
    assert events.stdout is not None
    found: list[str] = []
    try:
        while not set(wanted) <= set(found):
            assert select.select([events.stdout], [], [], LIMIT_S)[0], found
            found.append(json.loads(events.stdout.readline())["topic"].removeprefix("/tasks/"))
    finally:
        events.kill()
        events.wait()
        events.stdout.close()
    return found


@pytest.mark.parametrize("runtime", ["runc", pytest.param("crun", marks=pytest.mark.long)])
def test_a_container_is_frozen_limited_measured_and_removed(machine: Machine, rootfs: Path, runtime: str) -> None:
    run = ("run", "-d", "--runtime", runtime, "--rootfs", str(rootfs), "--memory", "64m", "--pids-limit", "9")
    machine.dunnage(*run, "--name", "web", "--", "sh", "-c", "while :; do :; done")
    machine.dunnage("pause", "web")
    assert machine.json("ps", "--json")[0]["status"] == "paused"
    assert b"web" in machine.dunnage("pause", "web", status=1).stderr
    machine.dunnage("resume", "web")
    assert b"web" in machine.dunnage("resume", "web", status=1).stderr

    machine.dunnage("update", "web", "--memory", "32m", "--cpus", "0.5", "--pids-limit", "20")
    (found,) = machine.json("stats", "--no-stream", "--json", "--interval", "0.3", "web")
    assert found["memory"]["limit_bytes"] == 32 << 20
    assert 0 < found["memory"]["working_bytes"] <= found["memory"]["usage_bytes"] <= found["memory"]["peak_bytes"]
    assert found["cpus"] > 0
    assert found["cpu"]["periods"] > 0, "no quota is in force"
    assert found["pids"] == {"current": 1, "limit": 20}
    heading, row = machine.dunnage("stats", "--no-stream", "--interval", "0.1").stdout.decode().splitlines()
    assert heading.split() == ["NAME", "NAMESPACE", "CPU", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN", "KEY"]
    assert row.split()[:2] == ["web", "default"]
    assert "32 MiB" in row
    assert b"nobody does not exist" in machine.dunnage("stats", "nobody", status=1).stderr
    if runtime == "runc":  # crun 1.8.1 writes OCI's -1 to pids.max as it is
        machine.dunnage("update", "web", "--pids-limit", "max")
        (found,) = machine.json("stats", "--no-stream", "--json", "--interval", "0.1", "web")
        assert found["pids"]["limit"] is None
    assert machine.dunnage("update", "--cpuset-cpus", "nonsense", "web", status=1).stderr.startswith(b"dunnage: ")

    machine.dunnage("pause", "web")
    machine.dunnage("rm", "-f", "web")
    assert topics(machine, "delete") == ["create", "start", "paused", "resumed", "paused", "exit", "delete"]


def test_statistics_are_followed_on_a_terminal_until_they_are_enough(machine: Machine, rootfs: Path) -> None:
    machine.dunnage("run", "-d", "--rootfs", str(rootfs), "--name", "web", "--", "sleep", "1000")
    with closing(Terminal(machine.command("stats", "--interval", "0.1"))) as terminal:
        terminal.wait_for(b"web")
        terminal.wait_for(b"%")  # at the second look
        terminal.type(b"\x03")
        assert terminal.wait() == 130


def test_a_run_that_is_out_of_memory_says_so(machine: Machine, rootfs: Path) -> None:
    run = ("--memory", "16m", "--rootfs", str(rootfs), "--name", "web", "--", "dd", "if=/dev/zero", "of=/dev/null")
    said = b"dunnage: container web ran out of memory (limit 16 MiB): the kernel killed one process of it\n"
    assert machine.dunnage("run", "--rm", *run, "bs=200M", status=137).stderr == said
    assert topics(machine, "delete") == ["create", "start", "oom", "exit", "delete"]
    machine.dunnage("run", "-d", *run, "bs=200M")
    waited = machine.dunnage("wait", "web")
    assert (waited.stdout, waited.stderr) == (b"137\n", said)


def test_detached_execs_that_have_ended_are_not_kept(machine: Machine, rootfs: Path) -> None:
    machine.dunnage("run", "-d", "--rootfs", str(rootfs), "--name", "web", "--", "sleep", "1000")
    machine.dunnage("exec", "-d", "web", "sleep", "1000")
    (running,) = machine.json("ps", "--json")[0]["execs"]
    machine.dunnage("exec", "-d", "web", "sh", "-c", "echo $$ > /tmp/pid")
    until_it_has_ended = "until [ -s /tmp/pid ]; do :; done; while [ -d /proc/$(cat /tmp/pid) ]; do :; done"
    machine.dunnage("exec", "web", "sh", "-c", until_it_has_ended)
    assert machine.json("ps", "--json")[0]["execs"] == [running]


@pytest.mark.parametrize("on_host", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_container_goes_on_from_its_checkpoint(
    machine: Machine, rootfs: Path, tmp_path: Path, with_criu: None, on_host: bool
) -> None:
    root = () if on_host else ("--rootfs", str(rootfs))
    machine.dunnage("run", "-d", *root, "--name", "web", "--", "sh", "-c", COUNT)
    machine.dunnage("exec", "web", "sh", "-c", "until [ $(tail -n 1 /tmp/count || echo 0) -ge 5 ]; do sleep 0.02; done")
    images = str(tmp_path / "images")
    machine.dunnage("checkpoint", "web", images)
    assert machine.json("ps", "--json")[0]["status"] == "running"
    assert b"is not empty" in machine.dunnage("checkpoint", "web", images, status=1).stderr
    assert b"web already exists" in machine.dunnage("restore", images, status=125).stderr
    machine.dunnage("checkpoint", "--exit", "web", str(tmp_path / "last"))
    assert machine.dunnage("wait", "web").stdout == b"137\n"
    reached = int(machine.dunnage("logs", "web").stdout.split()[-1])
    machine.dunnage("rm", "web")

    going_on = machine.begin("restore", "--rm", str(tmp_path / "last"), stdout=subprocess.PIPE)
    assert going_on.stdout is not None
    assert select.select([going_on.stdout], [], [], LIMIT_S)[0]
    assert int(going_on.stdout.readline()) in (reached, reached + 1)
    assert machine.dunnage("restore", "-d", "--name", "again", images).stdout == b"again\n"
    machine.dunnage("exec", "again", "test", "-s", "/tmp/count")
    machine.dunnage("kill", "web")
    going_on.stdout.read()
    assert going_on.wait(LIMIT_S) == 137
    going_on.stdout.close()
    machine.dunnage("rm", "-f", "again")
    assert machine.json("ps", "-a", "--json") == []


def test_a_checkpoint_that_fails_says_why_and_leaves_nothing(machine: Machine, rootfs: Path, tmp_path: Path) -> None:
    machine.dunnage("run", "-d", "--rootfs", str(rootfs), "--name", "web", "--runtime", "runc", "--", "sleep", "1000")
    done = machine.dunnage("checkpoint", "--empty-ns", "nonsense", "web", str(tmp_path / "images"), status=1)
    assert b"container web" in done.stderr
    assert not (tmp_path / "images").exists()
    assert machine.json("ps", "--json")[0]["status"] == "running"
    for wrong in (tmp_path, tmp_path / "none"):
        assert machine.dunnage("restore", str(wrong), status=125).stderr
