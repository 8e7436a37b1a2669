"""A stage for each test, on runc unless it asks for both runtimes."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.runtime import local
from tests.service.stage import Stage, cgroups_removed

Scenario = Callable[[Stage], Awaitable[None]]


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local.make_rootfs(tmp_path_factory.mktemp("busybox") / "rootfs")


@pytest.fixture
def oci_runtime() -> str:
    return "runc"


@pytest.fixture
def perform(oci_runtime: str, rootfs: Path, tmp_path: Path) -> Iterator[Callable[[Scenario], None]]:
    """``perform(scenario)`` runs it in a loop of its own; what it leaves of containers is removed."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if shutil.which(oci_runtime) is None:
        pytest.skip(f"needs {oci_runtime}")

    def run(scenario: Scenario) -> None:
        async def whole() -> None:
            stage = Stage(tmp_path, rootfs, oci_runtime)
            try:
                await scenario(stage)
            finally:
                await stage.close()

        asyncio.run(whole())

    with local.hugetlb_mounted(), local.child_subreaper(), cgroups_removed():
        yield run
        local.reap_children()
