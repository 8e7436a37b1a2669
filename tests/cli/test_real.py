"""The command line against the real worker and the real runtimes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.cli.machine import LIMIT_S, Machine, Terminal
from tests.containerd.harness import wait_until

pytestmark = pytest.mark.real

DRAIN_S = 10.0  # how long a worker waits at a delete for output that nobody takes, where it is not told otherwise


@pytest.fixture
def running(machine: Machine, rootfs: Path) -> Iterator[str]:
    """The name of a detached container that sleeps."""
    machine.dunnage("run", "-d", "--rootfs", str(rootfs), "--name", "web", "--", "sleep", "1000")
    yield "web"
    machine.dunnage("rm", "-f", "web", status=None)


def test_a_command_runs_on_the_host_s_own_root_and_changes_nothing_there(machine: Machine) -> None:
    done = machine.dunnage("run", "--rm", "--", "python3", "-c", "print(6*7)")
    assert (done.stdout, done.stderr) == (b"42\n", b"")
    machine.dunnage("run", "--rm", "--", "sh", "-c", "echo x > /of-a-container && test -s /of-a-container")
    assert not Path("/of-a-container").exists()
    refused = machine.dunnage("run", "--rm", "--read-only", "--", "touch", "/of-a-container", status=1)
    assert b"Read-only file system" in refused.stderr
    assert machine.mounts() == []


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_the_exit_status_is_the_command_s(machine: Machine, rootfs: Path, runtime: str) -> None:
    run = ("run", "--rm", "--runtime", runtime, "--rootfs", str(rootfs), "--")
    assert machine.dunnage(*run, "echo", "hello").stdout == b"hello\n"
    machine.dunnage(*run, "sh", "-c", "exit 7", status=7)
    machine.dunnage(*run, "sh", "-c", "sh -c 'kill -9 $$'; exit $?", status=137)
    missing = machine.dunnage(*run, "no-such-command", status=127)
    assert b"no-such-command" in missing.stderr
    machine.dunnage(*run, "/no/such/command", status=127)
    machine.dunnage(*run, "/bin/not-a-program", status=126)
    machine.dunnage(*run, "/etc", status=126)
    assert machine.json("ps", "-a", "--json") == []


def test_our_own_failure_is_125(machine: Machine, rootfs: Path, tmp_path: Path) -> None:
    for wrong in (
        ("--no-such-option",),
        ("--memory", "much", "--", "true"),
        ("--mount", "nonsense", "--", "true"),
        ("--bundle", str(tmp_path), "--", "true"),
        ("--runtime", "no-such-runtime", "--rootfs", str(rootfs), "--", "true"),
        ("--name", "a b", "--", "true"),
        ("-d", "-t", "--", "true"),
        ("-i", "-t", "--", "true"),
        (),
    ):
        done = machine.dunnage("run", *wrong, status=125)
        assert done.stderr
        assert b"Traceback" not in done.stderr
    machine.dunnage("exec", "nobody", "--", "true", status=125)
    assert machine.json("ps", "-a", "--json") == []


def test_bytes_go_through_in_both_directions(machine: Machine, rootfs: Path) -> None:
    text = os.urandom(1_000_000)
    run = ("run", "--rm", "-i", "--rootfs", str(rootfs), "--")
    assert machine.dunnage(*run, "wc", "-c", stdin=text).stdout == b"1000000\n"
    assert hashlib.sha256(machine.dunnage(*run, "cat", stdin=text).stdout).digest() == hashlib.sha256(text).digest()
    done = machine.dunnage(*run, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    assert machine.dunnage("run", "--rm", "--rootfs", str(rootfs), "--", "cat", stdin=text).stdout == b""


def test_a_detached_container_is_listed_followed_killed_and_removed(machine: Machine, rootfs: Path) -> None:
    script = "echo one; echo two >&2; cat; exec sleep 1000"
    made = machine.dunnage("run", "-d", "-i", "--name", "web", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    assert made.stdout == b"web\n"
    assert b"web already exists" in machine.dunnage("run", "--name", "web", "--", "true", status=125).stderr

    (listed,) = machine.json("ps", "--json")
    assert (listed["id"], listed["status"], listed["key"]) == ("web", "running", "local")
    assert listed["command"] == ["sh", "-c", script]
    table = machine.dunnage("ps").stdout.decode().splitlines()
    assert table[0].split()[:3] == ["NAME", "NAMESPACE", "STATUS"]
    assert table[1].split()[:3] == ["web", "default", "running"]

    followed = machine.begin("logs", "-f", "web", stdout=subprocess.PIPE)
    assert followed.stdout is not None
    assert [followed.stdout.readline() for _ in range(2)] == [b"one\n", b"two\n"]
    waited = machine.begin("wait", "web", stdout=subprocess.PIPE)
    machine.dunnage("rm", "web", status=1)
    machine.dunnage("kill", "web")
    assert waited.communicate(timeout=LIMIT_S)[0] == b"137\n"
    assert followed.communicate(timeout=LIMIT_S)[0] == b""

    assert machine.json("ps", "--json") == []
    (stopped,) = machine.json("ps", "-a", "--json")
    assert (stopped["status"], stopped["exit_status"]) == ("stopped", 137)
    inspected = machine.json("inspect", "web")
    assert inspected["state"]["status"] == "stopped"
    assert inspected["spec"]["process"]["args"] == ["sh", "-c", script]
    assert machine.dunnage("rm", "web").stdout == b"web\n"
    machine.dunnage("inspect", "web", status=1)


def test_exec_has_its_own_status_streams_user_and_directory(machine: Machine, running: str) -> None:
    machine.dunnage("exec", running, "--", "sh", "-c", "exit 4", status=4)
    assert machine.dunnage("exec", "-i", running, "wc", "-c", stdin=bytes(1_000_000)).stdout == b"1000000\n"
    script = "id -u; id -g; pwd; echo $A"
    done = machine.dunnage("exec", "-e", "A=b", "-w", "/tmp", "-u", "somebody", running, "--", "sh", "-c", script)
    assert done.stdout == b"1234\n1235\n/tmp\nb\n"
    machine.dunnage("exec", running, "--", "no-such-command", status=127)
    machine.dunnage("exec", running, "--", "/bin/not-a-program", status=126)
    assert machine.json("ps", "--json")[0]["execs"] == []


def test_a_terminal_has_our_size_follows_it_and_takes_ctrl_c(machine: Machine, rootfs: Path) -> None:
    command = machine.command("run", "--rm", "-i", "-t", "--rootfs", str(rootfs), "--", "sh")
    with closing(Terminal(command, columns=90, rows=30)) as terminal:
        terminal.wait_for(b"# ")
        terminal.type(b"stty size; tty\n")
        terminal.wait_for(b"30 90")
        terminal.wait_for(b"/dev/pts/0")
        terminal.type(b"trap 'stty size' WINCH; echo re''ady\n")
        terminal.wait_for(b"ready")
        terminal.signal_resize(100, 40)
        terminal.type(b"while test \"$(stty size)\" != '40 100'; do :; done; echo resi''zed\n")
        terminal.wait_for(b"resized")
        # said by who has the terminal by then: a shell that is about to give it away can lose the interrupt
        terminal.type(b"sh -c 'echo be\"\"gun; exec sleep 1000'; echo inter''rupted\n")
        terminal.wait_for(b"begun")
        terminal.forget()
        terminal.type(b"\x03")
        terminal.wait_for(b"# ")
        terminal.type(b"exit 9\n")
        assert terminal.wait() == 9


def test_exec_has_a_terminal_too(machine: Machine, running: str) -> None:
    with closing(Terminal(machine.command("exec", "-i", "-t", running, "--", "sh"), columns=77, rows=22)) as terminal:
        terminal.wait_for(b"# ")
        terminal.type(b"stty size; exit 3\n")
        terminal.wait_for(b"22 77")
        assert terminal.wait() == 3


def test_signals_reach_a_container_without_a_terminal(machine: Machine, rootfs: Path) -> None:
    script = "trap 'exit 33' INT; trap 'echo term' TERM; echo ready; while :; do sleep 0.05; done"
    run = machine.begin("run", "--rm", "--rootfs", str(rootfs), "--", "sh", "-c", script, stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    run.send_signal(signal.SIGTERM)
    assert run.stdout.readline() == b"term\n"
    run.send_signal(signal.SIGINT)
    assert run.wait(LIMIT_S) == 33
    run.stdout.close()


def is_pending(pid: int, number: signal.Signals) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)) & 1 << number - 1)


def test_ctrl_c_three_times_ends_an_init_that_ignores_it(machine: Machine, rootfs: Path) -> None:
    script = "trap : INT; echo ready; while :; do read x; echo $x; done"
    arguments = ("run", "--rm", "-i", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    run = machine.begin(*arguments, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdin is not None
    assert run.stdout.readline() == b"ready\n"
    for _ in range(2):
        run.send_signal(signal.SIGINT)
        # before it is taken, another one would be one with it (signal(7))
        wait_until(lambda: not is_pending(run.pid, signal.SIGINT), "SIGINT taken")
        run.stdin.write(b"still here\n")
        run.stdin.flush()
        while b"still" not in run.stdout.readline():
            pass
    run.send_signal(signal.SIGINT)
    assert run.wait(LIMIT_S) == 137
    run.stdin.close()
    run.stdout.close()


def test_a_reader_that_goes_away_ends_it_as_in_any_pipeline(machine: Machine, rootfs: Path) -> None:
    run = machine.begin("run", "--rm", "--rootfs", str(rootfs), "--", "yes", stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.read(2) == b"y\n"
    run.stdout.close()
    begun = time.monotonic()
    assert run.wait(LIMIT_S) == 128 + signal.SIGPIPE
    assert time.monotonic() - begun < DRAIN_S, "what nobody reads is not waited for"


def test_a_killed_worker_goes_unnoticed(machine: Machine, rootfs: Path) -> None:
    script = "echo ready; cat; exit 6"
    arguments = ("run", "--rm", "-i", "--rootfs", str(rootfs), "--", "sh", "-c", script)
    run = machine.begin(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdin is not None
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    (before,) = machine.json("status", "--json")
    os.kill(before["worker_pid"], signal.SIGKILL)
    run.stdin.write(b"through another worker\n")
    run.stdin.flush()
    assert run.stdout.readline() == b"through another worker\n"
    (after,) = machine.json("status", "--json")
    assert (after["keeper_pid"], after["containers"]) == (before["keeper_pid"], 1)
    assert after["worker_pid"] != before["worker_pid"]
    run.stdin.close()
    assert run.wait(LIMIT_S) == 6
    run.stdout.close()


def test_a_container_whose_client_was_killed_is_removed_at_once(machine: Machine, rootfs: Path) -> None:
    arguments = ("run", "--rm", "--name", "left", "--rootfs", str(rootfs), "--", "yes")
    run = machine.begin(*arguments, stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.read(2) == b"y\n"
    run.kill()
    run.wait(LIMIT_S)
    run.stdout.close()
    began = time.monotonic()
    machine.dunnage("rm", "-f", "left")
    assert time.monotonic() - began < 8  # without a reader the worker waits 10 s for one


def test_limits_mounts_and_variables_are_the_container_s(machine: Machine, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    limits = ("--memory", "64M", "--cpus", "0.5", "--pids", "20", "--network", "none", "--hostname", "elsewhere")
    mounts = ("--mount", f"type=bind,source={tmp_path}/shared,target=/shared", "--mount", "type=tmpfs,target=/scratch")
    script = (
        "hostname; echo $A; echo x > /shared/file; ls /sys/class/net; cat /proc/1/cgroup; grep /scratch /proc/mounts"
    )
    run = ("run", "--rm", "--rootfs", str(rootfs), *limits, *mounts, "-e", "A=b", "--", "sh", "-c", script)
    lines = machine.dunnage(*run).stdout.decode().splitlines()
    assert lines[:3] == ["elsewhere", "b", "lo"]
    assert any("dunnage--default--" in line for line in lines)
    assert "/scratch tmpfs" in lines[-1]
    assert (tmp_path / "shared/file").read_text() == "x\n"


def test_a_bundle_runs_as_its_config_says(machine: Machine, rootfs: Path, tmp_path: Path) -> None:
    subprocess.run(["runc", "spec", "--bundle", str(tmp_path)], check=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["process"] |= {"args": ["sh", "-c", "echo from the bundle: $HOSTNAME; hostname"], "terminal": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert machine.dunnage("run", "--rm", "--bundle", str(tmp_path)).stdout.endswith(b"\nrunc\n")
    assert machine.dunnage("run", "--rm", "--bundle", str(tmp_path), "--", "echo", "else").stdout == b"else\n"


def test_a_container_without_rm_stays_until_it_is_removed(machine: Machine) -> None:
    machine.dunnage("run", "--name", "done", "--", "sh", "-c", "exit 5", status=5)
    (stopped,) = machine.json("ps", "-a", "--json")
    assert (stopped["id"], stopped["exit_status"]) == ("done", 5)
    assert b"only a detached one" in machine.dunnage("logs", "done", status=1).stderr
    assert machine.dunnage("wait", "done").stdout == b"5\n"
    machine.dunnage("rm", "done")
    assert machine.mounts() == []


def test_a_detached_container_with_rm_is_removed_when_it_has_ended(machine: Machine, rootfs: Path) -> None:
    events = machine.begin("events", "--history", "--json", stdout=subprocess.PIPE)
    assert events.stdout is not None
    machine.dunnage("run", "-d", "--rm", "--name", "brief", "--rootfs", str(rootfs), "--", "true")
    topics = []
    while "/tasks/delete" not in topics:
        event = json.loads(events.stdout.readline())
        topics.append(event["topic"])
        assert event["event"]["container_id"] == "brief"
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    events.send_signal(signal.SIGINT)
    assert events.wait(LIMIT_S) == 130
    events.stdout.close()


def test_namespaces_keep_names_apart_and_stop_ends_all(machine: Machine, rootfs: Path) -> None:
    for namespace in ("one", "two"):
        detached = ("run", "-d", "--name", "web", "--rootfs", str(rootfs), "--", "sleep", "1000")
        machine.dunnage("--namespace", namespace, *detached)
    assert [one["namespace"] for one in machine.json("ps", "--json")] == ["one", "two"]
    machine.dunnage("stop", status=2)
    done = machine.dunnage("stop", "--all").stdout.decode()
    assert "removed container web of namespace one" in done
    assert "has ended" in done
    assert machine.json("status", "--json") == []
    assert machine.json("ps", "-a", "--json") == []


def test_status_names_the_processes(machine: Machine, running: str) -> None:
    (keeper,) = machine.json("status", "--json")
    assert keeper["key"] == "local"
    assert keeper["containers"] == 1
    for pid in (keeper["keeper_pid"], keeper["worker_pid"]):
        assert Path(f"/proc/{pid}/comm").read_text().startswith("containerd-shim")


def test_a_bundle_whose_keeper_was_killed_is_found_by_the_doctor_and_removed(machine: Machine, running: str) -> None:
    (keeper,) = machine.json("status", "--json")
    pidfds = [os.pidfd_open(keeper[name]) for name in ("keeper_pid", "worker_pid")]
    for pidfd in pidfds:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    found = machine.json("doctor", "--json")
    remedies = [one["remedy"] for one in found if one["subject"] == "leftovers"]
    assert f"dunnage --namespace default rm -f {running}" in remedies
    assert machine.json("ps", "-a", "--json")[0]["status"] == "unknown"
    machine.dunnage("rm", running, status=1)
    machine.dunnage("rm", "-f", running)
    assert machine.json("ps", "-a", "--json") == []
