"""Commands that are interrupted, that meet each other, and whose output nobody takes, against real runtimes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from tests.cli.machine import LIMIT_S, Machine, Terminal

pytestmark = pytest.mark.real


class Gate:
    """A runc that waits, in its create, until it is let go."""

    def __init__(self, directory: Path) -> None:
        self._is_asked, self._go_on = directory / "asked", directory / "go-on"
        for fifo in (self._is_asked, self._go_on):
            os.mkfifo(fifo)
        self.path = directory / "slow-runc"
        wait = f"echo > {self._is_asked}; read x < {self._go_on}"
        self.path.write_text(f'#!/bin/sh\ncase " $* " in *" create "*) {wait};; esac\nexec runc "$@"\n')
        self.path.chmod(0o755)

    def wait_until_asked(self) -> None:
        self._is_asked.read_bytes()

    def open(self) -> None:
        self._go_on.write_text("\n")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


@pytest.mark.parametrize(("how", "number"), [("-i", signal.SIGINT), ("--rm", signal.SIGHUP), ("-d", signal.SIGTERM)])
def test_a_run_interrupted_in_its_create_leaves_nothing(
    machine: Machine, rootfs: Path, gate: Gate, how: str, number: signal.Signals
) -> None:
    run = machine.begin("run", how, "--runtime", str(gate.path), "--rootfs", str(rootfs), "--", "sleep", "1000")
    gate.wait_until_asked()
    run.send_signal(number)
    gate.open()
    assert run.wait(LIMIT_S) == 128 + number
    assert machine.json("ps", "-a", "--json") == []


def test_a_size_that_changes_before_the_start_is_the_container_s(machine: Machine, rootfs: Path, gate: Gate) -> None:
    run = ("run", "--rm", "-t", "--runtime", str(gate.path), "--rootfs", str(rootfs), "--")
    until = "while test \"$(stty size)\" != '40 100'; do sleep 0.05; done; echo resi''zed"
    with closing(Terminal(machine.command(*run, "sh", "-c", until), columns=90, rows=30)) as terminal:
        gate.wait_until_asked()
        terminal.resize(100, 40)
        gate.open()
        terminal.wait_for(b"resized")
        assert terminal.wait() == 0


@pytest.mark.parametrize("how", [(), ("--rm",)])
def test_a_slow_reader_of_a_run_gets_everything(machine: Machine, rootfs: Path, how: tuple[str, ...]) -> None:
    command = ("run", *how, "--rootfs", str(rootfs), "--", "head", "-c", "200000", "/dev/zero")
    run = machine.begin(*command, stdout=subprocess.PIPE)
    assert run.stdout is not None
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(4)
    assert len(run.stdout.read()) == 200_000
    assert run.wait(LIMIT_S) == 0
    run.stdout.close()


def test_output_that_finds_no_space_is_our_failure(machine: Machine, rootfs: Path) -> None:
    with open("/dev/full", "w") as full:
        run = machine.begin("run", "--rm", "--rootfs", str(rootfs), "--", "yes", stdout=full, stderr=subprocess.PIPE)
        assert run.communicate(timeout=LIMIT_S)[1] == b"dunnage: stdout: no space left on device\n"
    assert run.returncode == 125
    assert machine.json("ps", "-a", "--json") == []


def test_a_closed_stdin_is_an_empty_one(machine: Machine, rootfs: Path) -> None:
    command = machine.command("run", "--rm", "-i", "--rootfs", str(rootfs), "--", "cat")
    done = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command], capture_output=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_stopped_container_takes_no_exec_and_says_its_name(machine: Machine, rootfs: Path) -> None:
    machine.dunnage("run", "--name", "web", "--rootfs", str(rootfs), "--", "true")
    for user in ((), ("-u", "root")):
        assert b"web" in machine.dunnage("exec", *user, "web", "--", "true", status=125).stderr
    assert b"web" in machine.dunnage("kill", "web", status=1).stderr


def test_many_removals_at_once_remove_it_once(machine: Machine, rootfs: Path) -> None:
    machine.dunnage("run", "-d", "--name", "web", "--rootfs", str(rootfs), "--", "sleep", "1000")
    removals = [machine.begin("rm", "-f", "web", stderr=subprocess.PIPE) for _ in range(4)]
    said = [removal.communicate(timeout=LIMIT_S)[1] for removal in removals]
    assert 0 in [removal.returncode for removal in removals]
    assert set(said) <= {b"", b"dunnage: container web does not exist\n"}
    assert machine.json("ps", "-a", "--json") == []


@pytest.mark.parametrize("how", ["run", "run --rm", "exec"])
def test_a_signal_ends_the_wait_for_a_reader_that_stalls(machine: Machine, rootfs: Path, how: str) -> None:
    writes = ("sh", "-c", "trap '' TERM; head -c 200000 /dev/zero")
    if how == "exec":
        machine.dunnage("run", "-d", "--name", "web", "--rootfs", str(rootfs), "--", "sleep", "1000")
        run = machine.begin("exec", "web", *writes, stdout=subprocess.PIPE)
    else:
        run = machine.begin(*how.split(), "--rootfs", str(rootfs), "--", *writes, stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert select.select([run.stdout], [], [], LIMIT_S)[0]
    until = time.monotonic() + LIMIT_S / 3
    while run.poll() is None and time.monotonic() < until:
        run.send_signal(signal.SIGTERM)  # to the command while it runs, and to us from its end on
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(1)
    run.kill()
    assert run.wait() == 0
    run.stdout.close()
    left = [one["id"] for one in machine.json("ps", "-a", "--json")]
    assert len(left) == (how != "run --rm")
