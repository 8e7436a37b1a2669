"""What the tests with a real worker share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime import local
from tests.service.stage import cgroups_removed


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local.make_rootfs(tmp_path_factory.mktemp("busybox") / "rootfs")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with cgroups_removed():
        yield tmp_path


@pytest.fixture
def memfds_closed() -> Iterator[None]:
    """Closes the memfds of journals: a worker has each of them for all its life."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    for fd in set(os.listdir("/proc/self/fd")) - before:
        with contextlib.suppress(FileNotFoundError):  # what listed them
            if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:dunnage"):
                os.close(int(fd))
