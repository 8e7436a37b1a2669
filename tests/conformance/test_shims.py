"""The suite with the Go shim of Debian 12, the Go shim of a newer Debian, and dunnage: nothing is unexplained."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import newer

from dunnage.cli.install import write_launchers
from dunnage.conformance import cases

pytestmark = pytest.mark.real

ENDS = re.compile(r"^A (?P<passed>✓ \d+), ✗ 0, ≠ \d+, ! 0, – 0, ", re.MULTILINE)
SHIMS = ("go 1.6", "go 2.1", "dunnage")
QUICK = "wire"


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short: paths of sockets are made in it."""
    return tmp_path_factory.mktemp("k")


@pytest.fixture
def shim(request: pytest.FixtureRequest, directory: Path) -> Iterator[Path]:
    if request.param == "go 1.6":
        yield Path(newer.GO_SHIM)
    elif request.param == "go 2.1":
        yield newer.go_shim()
    else:
        binaries = directory / "bin"
        binaries.mkdir()
        (path,) = write_launchers(binaries)
        yield path
        end_keepers(directory)


def end_keepers(directory: Path) -> None:
    """Those that were started with their temporary files in there; they would stay for a while otherwise."""
    for entry in Path("/proc").iterdir():
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue
        if argv[1:2] == [b"keeper"] and os.fsencode(directory) in environ:
            keeper = os.pidfd_open(int(entry.name))
            signal.pidfd_send_signal(keeper, signal.SIGTERM)
            assert select.select([keeper], [], [], 10)[0], "the keeper does not end"
            os.close(keeper)
            shutil.rmtree(os.fsdecode(argv[2]))


def play(shim: Path, directory: Path, *arguments: str, timeout_s: float) -> str:
    """The suite's whole report, with criu in the PATH."""
    done = subprocess.run(
        [sys.executable, "-m", "dunnage.conformance", "--shim", shim, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": f"{newer.directory('criu')}:{os.environ['PATH']}", "TMPDIR": str(directory)},
        timeout=timeout_s,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "never retrieved" not in done.stdout
    return done.stdout


@pytest.mark.parametrize("shim", SHIMS, indirect=True)
def test_a_slice_has_no_unexplained_difference(shim: Path, directory: Path) -> None:
    report = play(shim, directory, "-k", QUICK, timeout_s=100)
    found = ENDS.search(report)
    assert found, report
    assert found["passed"] == f"✓ {len(next(area for area in cases.AREAS if area.name == QUICK).cases)}"


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shim", SHIMS, indirect=True)
def test_the_whole_suite_has_no_unexplained_difference(shim: Path, directory: Path) -> None:
    report = play(shim, directory, timeout_s=1100)
    assert ENDS.search(report), report
