"""What a scene left is found whatever others on the machine are called; and how a shim gets its stdin."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from dunnage.conformance import leftovers
from dunnage.conformance.shim import run


def test_a_process_in_a_directory_whose_name_is_no_text_is_no_obstacle(tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(directory)
    with subprocess.Popen(["sleep", "100"], cwd=directory) as child:
        try:
            found = dict(leftovers.processes("no-such-namespace", tmp_path))
            assert found[child.pid] == "sleep 100"
        finally:
            child.kill()


@pytest.mark.real
def test_a_mount_whose_name_has_a_line_end_of_unicode_is_found(tmp_path: Path) -> None:
    directory = tmp_path / "a\u0085b"
    directory.mkdir()
    with leftovers.tmpfs(directory, 4096):
        assert leftovers.mounts(tmp_path) == [str(directory)]
    assert leftovers.mounts(tmp_path) == []


def test_a_program_gets_all_of_its_stdin_and_then_its_end() -> None:
    data = os.urandom(60_000)
    assert asyncio.run(run(["cat"], cwd=Path("/"), stdin=data)).stdout == data


def test_more_than_a_pipe_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="more than a pipe holds"):
        asyncio.run(run(["true"], cwd=Path("/"), stdin=bytes(1 << 20)))
