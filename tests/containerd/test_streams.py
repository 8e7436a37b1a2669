"""Bytes: every one arrives, in its order, whatever other readers do; and the plumbing is no container's burden."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
from tests.containerd import image
from tests.containerd.harness import Containerd, wait_until

pytestmark = pytest.mark.real

NUMBERS = hashlib.sha256(b"".join(b"%d\n" % number for number in range(1, 5_000_001))).hexdigest()
F_GETPIPE_SZ = 1032
CAPABILITIES = (  # ctr's
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP"),
    *("NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
)
WITHOUT_CAPABILITIES = [word for name in CAPABILITIES for word in ("--cap-drop", f"CAP_{name}")]


def checksum_of(process: subprocess.Popen[bytes], *, stall_after: int | None = None, stall_s: float = 0) -> str:
    """Read a client's stdout to its end; after ``stall_after`` bytes do not read for ``stall_s``."""
    assert process.stdout is not None
    digest, count = hashlib.sha256(), 0
    while chunk := os.read(process.stdout.fileno(), 1 << 16):
        digest.update(chunk)
        count += len(chunk)
        if stall_after is not None and count >= stall_after:
            stall_after = None
            select.select([], [], [], stall_s)
    return digest.hexdigest()


def client(containerd: Containerd, container_id: str, *command: str) -> subprocess.Popen[bytes]:
    return containerd.popen(*containerd.run_arguments(container_id, *command, options=["--rm"]))


def test_five_million_lines_arrive_byte_for_byte_while_another_container_idles(containerd: Containerd) -> None:
    containerd.run_detached("idle", "sleep", "1000")
    with client(containerd, "c1", "seq", "1", "5000000") as process:
        assert checksum_of(process) == NUMBERS
    assert process.returncode == 0
    containerd.remove("idle")


def test_a_reader_that_stops_for_5_s_loses_nothing_and_blocks_nobody(containerd: Containerd) -> None:
    read_end, write_end = os.pipe()
    with containerd.popen(
        *containerd.run_arguments("stalled", "seq", "1", "1000000", options=["--rm"]), stdout=write_end
    ) as stalled:
        os.close(write_end)
        first = os.read(read_end, 4096)
        began = time.monotonic()
        with client(containerd, "busy", "seq", "1", "1000000") as busy:
            whole = hashlib.sha256(b"".join(b"%d\n" % number for number in range(1, 1_000_001))).hexdigest()
            assert checksum_of(busy) == whole
        took_s = time.monotonic() - began
        select.select([], [], [], max(0.0, 5 - took_s))
        assert took_s < 5
        assert stalled.poll() is None
        digest = hashlib.sha256(first)
        while chunk := os.read(read_end, 1 << 16):
            digest.update(chunk)
        assert digest.hexdigest() == whole
    os.close(read_end)
    assert stalled.returncode == 0


def test_a_megabyte_goes_in_and_comes_back(containerd: Containerd) -> None:
    content = os.urandom(1 << 20)
    assert containerd.run("c1", "wc", "-c", input=content).stdout.split() == [b"1048576"]
    assert containerd.run("c1", "cat", input=content).stdout == content


def test_a_megabyte_goes_through_an_exec(containerd: Containerd) -> None:
    containerd.run_detached("c1", "sleep", "1000")
    content = os.urandom(1 << 20)
    assert containerd.exec("c1", "wc", "-c", input=content).stdout.split() == [b"1048576"]
    assert containerd.exec("c1", "cat", input=content).stdout == content
    assert containerd.exec("c1", "sh", "-c", "echo out; echo err >&2; exit 9") == (9, b"out\n", b"err\n")
    containerd.remove("c1")


def test_attach_reads_on_where_the_first_client_left(containerd: Containerd) -> None:
    arguments = containerd.run_arguments("c1", "sh", "-c", "echo first; read line; echo got $line", options=[])
    with containerd.popen(*arguments, stdin=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.kill()
    with containerd.popen("task", "attach", "c1", stdin=PIPE) as attached:
        output, _ = attached.communicate(b"second\n", timeout=20)
    assert output == b"got second\n"
    wait_until(lambda: containerd.tasks() == {}, "the task is deleted")
    containerd.ctr("container", "rm", "c1")


def test_a_container_whose_stdout_nobody_reads_is_not_killed_for_its_memory(containerd: Containerd) -> None:
    """Spliced pages stay charged to the container: little enough must be under way to live within 16 MiB."""
    read_end, write_end = os.pipe()
    options = ["--rm", "--memory-limit", str(16 << 20)]
    arguments = containerd.run_arguments("c1", "sh", "-c", "cat /dev/zero | head -c 64000000; exit 8", options=options)
    with containerd.popen(*arguments, stdout=write_end) as process:
        os.close(write_end)
        wait_until(lambda: containerd.tasks().get("c1", (0, ""))[1] == "RUNNING", "it runs")
        assert memory_limit_of(containerd.tasks()["c1"][0]) == 16 << 20
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        count = 0
        while chunk := os.read(read_end, 1 << 16):
            count += len(chunk)
        assert count == 64_000_000
    os.close(read_end)
    assert process.returncode == 8


@pytest.mark.long
def test_a_pipe_made_by_a_container_is_64_kib_with_100_busy_streams(containerd: Containerd) -> None:
    """The quota for pipes (fs.pipe-user-pages-soft) belongs to all of uid 0, containers without capabilities too."""
    containerd.run_detached("c1", "sleep", "1000", options=WITHOUT_CAPABILITIES)
    fifos = containerd.directory / "fifos"  # the clients are killed, and leave theirs
    streams = [
        containerd.popen(*f"task exec --fifo-dir {fifos} --exec-id s{number} c1 cat /dev/zero".split(), stdout=PIPE)
        for number in range(100)
    ]
    for stream in streams:
        assert stream.stdout is not None
        assert os.read(stream.stdout.fileno(), 4096)
    with read_by_a_thread(streams):
        containerd.run_detached("c2", "sh", "-c", "sleep 1000 | cat", options=WITHOUT_CAPABILITIES)
        pid = containerd.tasks()["c2"][0]
        assert "CapEff:\t0000000000000000" in Path(f"/proc/{pid}/status").read_text()
        assert pipe_sizes_of_children(pid) == {65536}
    for name in ("c1", "c2"):
        containerd.remove(name)
    for stream in streams:
        stream.kill()
        stream.communicate()


@contextlib.contextmanager
def read_by_a_thread(clients: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Meanwhile their output is read and thrown away, so that it flows: at least 16 KiB of each."""
    ready, done = threading.Event(), threading.Event()
    left = {client.stdout: 1 << 14 for client in clients if client.stdout is not None}

    def read() -> None:
        while not done.is_set():
            for stdout in select.select(list(left), [], [], 0.1)[0]:
                left[stdout] -= len(os.read(stdout.fileno(), 1 << 16))
            if all(count <= 0 for count in left.values()):
                ready.set()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert ready.wait(60), "all of them flow"
        yield
    finally:
        done.set()
        thread.join()


def memory_limit_of(pid: int) -> int:
    """That of the cgroup it is in, version 1 or 2."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            return int(Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes").read_text())
    return int(Path(f"/sys/fs/cgroup{path}/memory.max").read_text())


def pipe_sizes_of_children(pid: int) -> set[int]:
    """The sizes of the pipes between the shell's two children."""
    wait_until(lambda: len(children(pid)) == 2, "both sides of the pipe run")
    outputs = [f"/proc/{child}/fd/{fd}" for child in children(pid) for fd in (0, 1)]
    pipes = {os.readlink(path): path for path in outputs}
    shared = [path for name, path in pipes.items() if [os.readlink(p) for p in outputs].count(name) == 2]
    sizes = set()
    for path in shared:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        sizes.add(fcntl.fcntl(fd, F_GETPIPE_SZ))
        os.close(fd)
    return sizes


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_images_name_is_the_one_imported(containerd: Containerd) -> None:
    assert containerd.ctr("image", "ls", "-q").stdout.decode().split() == [image.NAME]
