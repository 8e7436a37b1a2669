"""Spliced pages stay charged to the container: what nobody reads must not become its death."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stdio.streams import LIMIT_S, LOG, NAME, Store, fifo_plan, open_reader, read_exactly, read_to_end

from dunnage.stdio import ProcessIO

MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 16 << 20


@pytest.fixture
def cgroup() -> Iterator[Path]:
    if not (MEMORY / "memory.limit_in_bytes").exists():
        pytest.skip("needs a host with cgroup v1")
    made = MEMORY / f"dunnage-{uuid.uuid4().hex[:8]}"
    made.mkdir()
    (made / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    yield made
    made.rmdir()


@pytest.mark.parametrize(
    "argv", [("seq", "1", "4000000"), ("head", "-c", "30000000", "/dev/zero")], ids=["seq", "head"]
)
def test_a_small_container_whose_output_nobody_reads_lives(
    store: Store, tmp_path: Path, cgroup: Path, argv: tuple[str, ...]
) -> None:
    made = fifo_plan(tmp_path, "stdout")

    async def scenario() -> None:
        client = open_reader(made.stdout)
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
        script = f"echo $$ > {cgroup}/cgroup.procs; exec {' '.join(argv)}"
        process = subprocess.Popen(["sh", "-c", script], stdout=io.runtime_fds[1])  # noqa: ASYNC220 -- starts it
        io.runtime_started()
        io.start()
        await read_exactly(client, 8_000_000)  # until its pipes are wide; then the client stops
        async with asyncio.timeout(LIMIT_S):
            while (state := _state(process.pid)) != "S" or not _is_stuck(process.pid):
                assert state in "RS", f"it is {state}"
                await asyncio.sleep(0.01)
        assert process.poll() is None
        held = int((cgroup / "memory.usage_in_bytes").read_text())
        print(f"{held} bytes charged to it, at most {(cgroup / 'memory.max_usage_in_bytes').read_text()}", end="")
        assert held < LIMIT_BYTES // 2
        await read_to_end(client)
        assert await asyncio.to_thread(process.wait) == 0
        assert "oom_kill 0" in (cgroup / "memory.oom_control").read_text()
        io.close()

    asyncio.run(scenario())


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _is_stuck(pid: int) -> bool:
    """Whether it sleeps in a write to a pipe."""
    return "pipe_w" in Path(f"/proc/{pid}/wchan").read_text() or "pipe_w" in os.fsdecode(
        Path(f"/proc/{pid}/stack").read_bytes()
    )
