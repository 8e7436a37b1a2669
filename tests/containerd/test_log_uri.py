"""`ctr run --log-uri`: output that goes to a file or to a program, and is whole whatever becomes of the worker."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.containerd.harness import Containerd, Process, all_processes, wait_until

pytestmark = pytest.mark.real

NUMBERS = b"".join(b"%d\n" % number for number in range(1, 150_001))  # about 1 MB
SPEAK = ("sh", "-c", "seq 1 150000 & echo oops >&2; wait")

LOGGER = r"""#!/bin/sh
# Writes what it reads, its environment, its arguments and what it has open to files beside itself.
tr '\0' '\n' </proc/$$/environ >"$0.env"
printf '%s\n' "$@" >"$0.arguments"
open=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)
echo "$open" >"$0.open"
{ready}
cat <&3 >"$0.out" & cat <&4 >"$0.err" &
wait
echo done >"$0.done"
"""


class Logger(NamedTuple):
    """A log driver in a file, and what it has written."""

    path: Path

    def written(self, kind: str) -> bytes:
        path = self.path.with_name(f"{self.path.name}.{kind}")
        return path.read_bytes() if path.exists() else b""

    def processes(self) -> list[Process]:
        return [process for process in all_processes() if str(self.path) in process.argv]

    def uri(self, query: str = "", *, scheme: str = "binary") -> str:
        return f"{scheme}://{str(self.path).replace(' ', '%20')}{query}"


Write = Callable[..., Logger]


@pytest.fixture
def write_logger(tmp_path: Path) -> Write:
    def write(body: str = LOGGER, *, name: str = "my logger", ready: str = "exec 5>&-") -> Logger:
        path = tmp_path / name
        path.write_text(body.replace("{ready}", ready))
        path.chmod(0o755)
        return Logger(path)

    return write


def run_logged(containerd: Containerd, uri: str, container_id: str, *command: str) -> int:
    """Its init's status; then the container and its task are gone."""
    containerd.run_detached(container_id, *command, options=["--log-uri", uri])
    wait_until(lambda: containerd.tasks()[container_id][1] == "STOPPED", "it has ended")
    said = re.search(rb"exit with non-zero exit code (\d+)", containerd.ctr("task", "rm", container_id).stderr)
    containerd.ctr("container", "rm", container_id)
    return int(said[1]) if said else 0


def refusal(containerd: Containerd, uri: str) -> str:
    """What ctr says of a container that cannot be made; its record is removed."""
    failed = containerd.ctr(*containerd.run_arguments("c1", "true", options=["--log-uri", uri, "-d"]), check=False)
    assert failed.status != 0
    assert containerd.tasks() == {}
    containerd.ctr("container", "rm", "c1", check=False)
    return failed.stderr.decode()


def test_a_program_gets_both_streams_apart_and_whole(containerd: Containerd, write_logger: Write) -> None:
    logger = write_logger()
    assert run_logged(containerd, logger.uri("?one=1&two=%32%20x&one=3&bare"), "c1", *SPEAK) == 0
    assert logger.written("done") == b"done\n", "a Delete is answered when the driver has ended"
    assert logger.written("out") == NUMBERS
    assert logger.written("err") == b"oops\n"
    assert not logger.processes()
    assert logger.written("open") == b"/dev/null\n" * 3
    environment = sorted(logger.written("env").decode().split())
    assert environment == ["CONTAINER_ID=c1", f"CONTAINER_NAMESPACE={containerd.namespace}"]
    words = logger.written("arguments").decode().splitlines()
    assert dict(zip(words[::2], words[1::2], strict=True)) == {"one": "1", "two": "2 x", "bare": ""}


@pytest.mark.long
def test_a_programs_arguments_keep_their_order(
    containerd: Containerd, write_logger: Write, dunnage_alone: None
) -> None:
    logger = write_logger(ready="printf r >&5")
    assert run_logged(containerd, logger.uri("?b=2&a=1&c=3", scheme="binary-v2"), "c1", "true") == 0
    assert logger.written("arguments").split() == [b"b", b"2", b"a", b"1", b"c", b"3"]


def test_an_execs_program_is_told_the_execs_id(containerd: Containerd, write_logger: Write) -> None:
    logger = write_logger()
    containerd.run_detached("c1", "sleep", "1000")
    options = ["--exec-id", "e1", "--log-uri", logger.uri()]
    script = "echo out; echo err >&2; exit 4"
    done = containerd.ctr("task", "exec", *options, "c1", "sh", "-c", script, check=False)
    assert done.status == 4
    wait_until(lambda: logger.written("done"), "it has ended")
    environment = sorted(logger.written("env").decode().split())
    assert environment == ["CONTAINER_ID=e1", f"CONTAINER_NAMESPACE={containerd.namespace}"]
    assert (logger.written("out"), logger.written("err")) == (b"out\n", b"err\n")
    containerd.remove("c1")


@pytest.mark.long
def test_a_program_that_cannot_be_run_fails_the_create(containerd: Containerd, write_logger: Write) -> None:
    logger = write_logger()
    logger.path.chmod(0o644)
    for uri, path, reason in (
        ("binary:///no/where", "/no/where", "no such file or directory"),
        (logger.uri(), str(logger.path), "permission denied"),
    ):
        said = refusal(containerd, uri)
        assert f"failed to start binary process: fork/exec {path}: {reason}" in said
        assert "failed to create init process I/O: " in said


@pytest.mark.long
def test_a_program_that_ends_unready_fails_binary_v2(
    containerd: Containerd, write_logger: Write, dunnage_alone: None
) -> None:
    logger = write_logger("#!/bin/sh\nexit 3\n")
    said = refusal(containerd, logger.uri(scheme="binary-v2"))
    assert "logging binary did not call ready (it may have crashed or exited prematurely)" in said
    assert run_logged(containerd, logger.uri(), "c2", "true") == 0


@pytest.mark.long
def test_a_container_whose_program_crashes_gets_a_broken_pipe_and_can_be_deleted(
    containerd: Containerd, write_logger: Write
) -> None:
    logger = write_logger("#!/bin/sh\nexec 5>&-\nread line <&3\nkill -9 $$\n")
    speak = "sh -c 'echo line; while echo more; do :; done 2>/dev/null; exit 6'; exit $?"
    assert run_logged(containerd, logger.uri(), "c1", "sh", "-c", speak) == 128 + signal.SIGPIPE
    assert run_logged(containerd, logger.uri(), "c2", "sh", "-c", f"trap '' PIPE; {speak}") == 6


@pytest.mark.long
def test_a_program_that_does_not_end_is_told_to_stop(containerd: Containerd, write_logger: Write) -> None:
    stop = """trap 'echo stopped >"$0.done"; exit' TERM"""
    logger = write_logger(f"#!/bin/sh\n{stop}\nexec 5>&-\nwhile :; do read line <&3 || sleep 0.01; done\n")
    assert run_logged(containerd, logger.uri(), "c1", "echo", "line") == 0
    assert logger.written("done") == b"stopped\n"
    assert not logger.processes()


@pytest.mark.long
def test_a_program_that_minds_nothing_is_killed(containerd: Containerd, write_logger: Write) -> None:
    """And nobody waits for it but the Delete of its container."""
    logger = write_logger("#!/bin/sh\ntrap '' TERM\nexec 5>&-\nexec sleep 1000 # $0\n")
    containerd.run_detached("c1", "true", options=["--log-uri", logger.uri()])
    wait_until(lambda: containerd.tasks()["c1"][1] == "STOPPED", "it has ended")
    with containerd.popen("task", "rm", "c1") as deleting:
        assert containerd.run("c2", "echo", "meanwhile") == (0, b"meanwhile\n", b"")
        assert deleting.poll() is None
        assert deleting.wait(20) == 0
    containerd.ctr("container", "rm", "c1")
    sleeping = [process for process in all_processes() if process.argv.startswith("sleep 1000")]
    assert not [process for process in sleeping if process.parent == containerd.keeper().pid]


def kill_worker(containerd: Containerd) -> None:
    before = containerd.worker()
    os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: [worker for worker in containerd.workers() if worker.pid != before.pid], "a new worker is there")


def test_a_program_loses_no_byte_when_the_worker_dies(
    containerd: Containerd, write_logger: Write, dunnage_alone: None
) -> None:
    logger = write_logger()
    script = "for n in 1 2; do read go; seq 1 75000; done </gate"
    gate = containerd.directory / "gate"
    os.mkfifo(gate)
    containerd.run_detached(
        "c1",
        "sh",
        "-c",
        script,
        options=["--log-uri", logger.uri(), "--mount", f"type=bind,src={gate},dst=/gate,options=rbind:rw"],
    )
    part = b"".join(b"%d\n" % number for number in range(1, 75_001))
    with open(gate, "wb", buffering=0) as go:
        for _ in range(2):
            kill_worker(containerd)
            go.write(b"go\n")
            kill_worker(containerd)
        assert len(logger.processes()) == 1
        wait_until(lambda: containerd.tasks()["c1"][1] == "STOPPED", "it has ended")
    kill_worker(containerd)
    containerd.ctr("task", "rm", "c1")
    containerd.ctr("container", "rm", "c1")
    assert hashlib.sha256(logger.written("out")).digest() == hashlib.sha256(part * 2).digest()
    assert logger.written("done") == b"done\n"
    assert not logger.processes()


def test_a_worker_that_dies_before_the_program_is_ready_starts_it_again_alone(
    containerd: Containerd, write_logger: Write, dunnage_alone: None
) -> None:
    gate = containerd.directory / "gate"
    os.mkfifo(gate)
    ready = f'echo $$ >>"$0.pids"; read go <{gate}; exec 5>&-'
    logger = write_logger(ready=ready)
    containerd.run_detached("c0", "sleep", "1000")  # so that there is a worker to look for
    arguments = containerd.run_arguments("c1", "echo", "said", options=["-d", "--log-uri", logger.uri()])
    with containerd.popen(*arguments) as client:
        wait_until(lambda: len(logger.written("pids").split()) == 1, "the first is there")
        kill_worker(containerd)
        wait_until(lambda: len(logger.written("pids").split()) == 2, "the second is there")
        assert [process.pid for process in logger.processes()] == [int(logger.written("pids").split()[1])]
        with open(gate, "w") as go:
            go.write("go\n")
        assert client.wait(20) == 0
    wait_until(lambda: containerd.tasks()["c1"][1] == "STOPPED", "it has ended")
    for container_id in ("c1", "c0"):
        containerd.remove(container_id)
    assert logger.written("out") == b"said\n"
    assert not logger.processes()


def test_a_file_gets_both_streams_at_its_end(containerd: Containerd, tmp_path: Path) -> None:
    log = tmp_path / "some where" / "my%log"
    uri = f"file://{tmp_path}/some%20where/my%25log?ignored=1"
    assert run_logged(containerd, uri, "c1", "sh", "-c", "echo out; echo err >&2") == 0
    assert sorted(log.read_bytes().split()) == [b"err", b"out"]
    assert (log.stat().st_mode & 0o777, log.parent.stat().st_mode & 0o777) == (0o644, 0o755)
    assert run_logged(containerd, uri, "c2", *SPEAK) == 0
    lines = log.read_bytes().splitlines(keepends=True)
    assert sorted(lines[:2]) == [b"err\n", b"out\n"]
    assert b"".join(line for line in lines[2:] if line != b"oops\n") == NUMBERS
    assert lines.count(b"oops\n") == 1


@pytest.mark.long
def test_two_containers_log_to_one_file(containerd: Containerd, tmp_path: Path) -> None:
    """Whatever one appends the other leaves, and a file that was cut short grows from its start."""
    log = tmp_path / "log"
    script = "for n in 1 2 3; do read go; echo $0 $n; done </gate"
    gates = [tmp_path / "gate1", tmp_path / "gate2"]
    for number, gate in enumerate(gates, start=1):
        os.mkfifo(gate)
        mount = f"type=bind,src={gate},dst=/gate,options=rbind:rw"
        options = ["--log-uri", f"file://{log}", "--mount", mount]
        containerd.run_detached(f"c{number}", "sh", "-c", script, f"c{number}", options=options)
    expected: list[str] = []
    with open(gates[0], "w", buffering=1) as one, open(gates[1], "w", buffering=1) as two:
        for turn in (1, 2, 3):
            for number, go in enumerate((one, two), start=1):
                go.write("go\n")
                expected.append(f"c{number} {turn}")
                wait_until(lambda: log.read_text().splitlines() == expected, f"{expected} are there")
            if turn == 2:
                os.truncate(log, 0)
                expected.clear()
    for container_id in ("c1", "c2"):
        containerd.remove(container_id)
