"""``scripts/newer``: what is there is printed at once, and nothing comes from a mirror that is not signed for."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import newer

ROOT = Path(__file__).parents[2]
UNSIGNED = "unsigned"


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts/newer", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, **env},
        timeout=60,
        check=False,
        text=True,
    )


@pytest.fixture
def unsigned_mirror(tmp_path: Path) -> Iterator[str]:
    release = tmp_path / "dists" / UNSIGNED / "Release"
    release.parent.mkdir(parents=True)
    release.write_text(
        f"Suite: {UNSIGNED}\nComponents: main\nArchitectures: amd64\nDate: Tue, 24 Nov 2026 00:00:00 UTC\n"
    )
    yield f"file://{tmp_path}"
    shutil.rmtree(ROOT / ".cache/newer" / f"apt-{UNSIGNED}", ignore_errors=True)


def test_what_was_fetched_is_printed_and_not_fetched_again() -> None:
    done = run("criu", "containerd", DEBIAN_MIRROR="file:///nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(newer.directory("criu")), str(newer.directory("containerd"))]


def test_criu_runs_by_its_own_loader_and_can_work_on_this_kernel() -> None:
    assert subprocess.run([newer.directory("criu") / "criu", "check"], capture_output=True, check=False).returncode == 0


def test_a_name_that_is_none_is_refused() -> None:
    done = run("criu;true")
    assert done.returncode == 1
    assert "is no name of a suite or package" in done.stderr


def test_a_mirror_without_the_archives_signature_is_refused(unsigned_mirror: str) -> None:
    done = run("--suite", UNSIGNED, "criu", DEBIAN_MIRROR=unsigned_mirror)
    assert done.returncode == 1
    assert "is not signed" in done.stderr
    assert newer.directory("criu").is_dir()
